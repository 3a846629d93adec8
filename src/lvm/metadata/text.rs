//! LVM's text format: sections `name { … }`, values `name = value`, and arrays; `#` begins a comment.
//!
//! Any input gives a tree or an error with its line. Nothing panics, recurses without limit or uses more memory than a small
//! multiple of the input. The parser is stricter than LVM in two points, since a doubtful text means a doubtful volume: a name
//! may appear only once in its section, and a number has no leading zero (LVM would read octal).

use std::borrow::Cow;
use std::collections::HashSet;

/// The largest accepted text, in bytes: far beyond what LVM itself handles well.
pub const LARGEST: usize = 64 << 20;
/// The deepest accepted nesting of sections; LVM's own texts reach 5.
const DEEPEST: usize = 16;
/// Up to this many names a linear search is faster than a set.
const FEW: usize = 16;

/// Why the bytes are not such a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct TextError {
    /// Counted from 1.
    pub line: usize,
    pub fault: Fault,
}

/// A fault in a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the text is larger than {LARGEST} bytes")]
    TooLarge,
    #[error("sections are nested more than {DEEPEST} deep")]
    TooDeep,
    /// The text ends inside something.
    #[error("the text ends inside a {0}")]
    Ends(&'static str),
    #[error("expected {0}")]
    Expected(&'static str),
    /// Not a number, or one that LVM would read as octal.
    #[error("{0:?} is not a decimal number")]
    Number(String),
    /// A name occurs twice in one section.
    #[error("{0:?} occurs twice")]
    Twice(String),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// An integer.
    Int(i64),
    /// Any other number, including an integer that does not fit into `i64`: only a reader of that number then fails.
    Float(f64),
    /// A string with escapes resolved; bytes that are not UTF-8 are replaced.
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    Value(Value<'a>),
    Section(Section<'a>),
}

/// The entries of a section, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

impl<'a> Section<'a> {
    pub fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    pub fn value(&self, name: &str) -> Option<&Value<'a>> {
        match self.get(name)? {
            Node::Value(value) => Some(value),
            Node::Section(_) => None,
        }
    }

    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        match self.get(name)? {
            Node::Section(section) => Some(section),
            Node::Value(_) => None,
        }
    }

    /// All direct subsections, in order.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section<'a>)> {
        self.0.iter().filter_map(|(name, node)| match node {
            Node::Section(section) => Some((name.as_ref(), section)),
            Node::Value(_) => None,
        })
    }

    /// All direct values, in order.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.0.iter().filter_map(|(name, node)| match node {
            Node::Value(value) => Some((name.as_ref(), value)),
            Node::Section(_) => None,
        })
    }
}

/// Parses a text. It ends at the first zero byte outside a string, as LVM's texts do on disk.
///
/// # Errors
/// See [`Fault`].
pub fn parse(bytes: &[u8]) -> Result<Section<'_>, TextError> {
    if bytes.len() > LARGEST {
        return Err(TextError { line: 1, fault: Fault::TooLarge });
    }
    Reader { bytes, at: 0, line: 1 }.section(0)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, fault: Fault) -> TextError {
        TextError { line: self.line, fault }
    }

    /// The next byte; `None` at the end.
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied().filter(|b| *b != 0)
    }

    /// Skips white space and comments, and returns the next byte.
    fn next_token(&mut self) -> Option<u8> {
        let mut comment = false;
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => {
                    self.line += 1;
                    comment = false;
                }
                b'#' => comment = true,
                // C also counts the vertical tab as white space.
                _ if comment || byte.is_ascii_whitespace() || byte == 0x0b => {}
                _ => return Some(byte),
            }
            self.at += 1;
        }
        None
    }

    /// Reads the entries of a section up to its end; the outermost ends with the text.
    fn section(&mut self, depth: usize) -> Result<Section<'a>, TextError> {
        let mut entries: Vec<(Cow<'a, str>, Node<'a>)> = Vec::new();
        // Compare names one by one while there are few, as in nearly all of the many sections of a text.
        let mut names = HashSet::new();
        loop {
            match self.next_token() {
                None if depth == 0 => return Ok(Section(entries)),
                None => return Err(self.error(Fault::Ends("section"))),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(Section(entries));
                }
                Some(_) => {}
            }
            let name = self.name()?;
            if entries.len() == FEW {
                names.extend(entries.iter().map(|(name, _)| name.clone()));
            }
            let twice =
                if entries.len() < FEW { entries.iter().any(|(other, _)| *other == name) } else { !names.insert(name.clone()) };
            if twice {
                return Err(self.error(Fault::Twice(name.into_owned())));
            }
            let node = match self.next_token() {
                Some(b'=') => {
                    self.at += 1;
                    Node::Value(self.value()?)
                }
                Some(b'{') if depth + 1 > DEEPEST => return Err(self.error(Fault::TooDeep)),
                Some(b'{') => {
                    self.at += 1;
                    Node::Section(self.section(depth + 1)?)
                }
                Some(_) => return Err(self.error(Fault::Expected("= or {"))),
                None => return Err(self.error(Fault::Ends("line"))),
            };
            entries.push((name, node));
        }
    }

    fn name(&mut self) -> Result<Cow<'a, str>, TextError> {
        let name = match self.peek() {
            Some(quote @ (b'"' | b'\'')) => self.string(quote)?,
            _ => self.word(|b| b.is_ascii_whitespace() || b"#={}\"[],".contains(&b)),
        };
        if name.is_empty() { Err(self.error(Fault::Expected("a name"))) } else { Ok(name) }
    }

    fn value(&mut self) -> Result<Value<'a>, TextError> {
        if self.next_token() != Some(b'[') {
            return self.scalar();
        }
        self.at += 1;
        let mut items = Vec::new();
        loop {
            match self.next_token() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::List(items));
                }
                Some(b',') if !items.is_empty() => self.at += 1,
                Some(_) => items.push(self.scalar()?),
                None => return Err(self.error(Fault::Ends("array"))),
            }
        }
    }

    fn scalar(&mut self) -> Result<Value<'a>, TextError> {
        match self.next_token() {
            Some(quote @ (b'"' | b'\'')) => Ok(Value::Text(self.string(quote)?)),
            Some(b'0'..=b'9' | b'+' | b'-' | b'.') => self.number(),
            Some(b'{' | b'}' | b'[' | b']' | b',' | b'=') => Err(self.error(Fault::Expected("a value"))),
            Some(_) => Ok(Value::Text(self.word(|b| b.is_ascii_whitespace() || b"#={}[],\"".contains(&b)))),
            None => Err(self.error(Fault::Ends("line"))),
        }
    }

    fn number(&mut self) -> Result<Value<'a>, TextError> {
        let text = self.word(|b| b.is_ascii_whitespace() || b"#={}[],\"".contains(&b));
        let digits = text.trim_start_matches(['+', '-']);
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') && text.len() - digits.len() <= 1;
        let octal = digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0.");
        let number =
            if plain && !octal { text.parse().map(Value::Int).or_else(|_| text.parse().map(Value::Float)).ok() } else { None };
        number.ok_or_else(|| self.error(Fault::Number(text.into_owned())))
    }

    /// The bytes before the first that ends a word.
    fn word(&mut self, ends: impl Fn(u8) -> bool) -> Cow<'a, str> {
        let start = self.at;
        while self.peek().is_some_and(|b| !ends(b)) {
            self.at += 1;
        }
        String::from_utf8_lossy(&self.bytes[start..self.at])
    }

    /// Reads a quoted string; a backslash in double quotes escapes the next byte.
    fn string(&mut self, quote: u8) -> Result<Cow<'a, str>, TextError> {
        let opened = self.line;
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.peek() {
                Some(b'\\') if quote == b'"' => {
                    escaped = true;
                    self.at += 1;
                    if self.peek() == Some(b'\n') {
                        self.line += 1;
                    }
                }
                Some(byte) if byte == quote => break,
                Some(b'\n') => self.line += 1,
                Some(_) => {}
                None => return Err(TextError { line: opened, fault: Fault::Ends("string") }),
            }
            self.at = (self.at + 1).min(self.bytes.len());
        }
        let raw = &self.bytes[start..self.at];
        self.at += 1;
        if !escaped {
            return Ok(String::from_utf8_lossy(raw));
        }
        let mut plain = Vec::with_capacity(raw.len());
        let mut bytes = raw.iter();
        while let Some(byte) = bytes.next() {
            plain.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
        }
        Ok(Cow::Owned(String::from_utf8_lossy(&plain).into_owned()))
    }
}
