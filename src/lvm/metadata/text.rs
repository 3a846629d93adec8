//! LVM's text format: sections `name { … }`, values `name = value`, and arrays; `#` begins a comment.
//!
//! Any bytes give a tree or an error with the line; nothing panics, recurses without limit or takes more memory than a small
//! multiple of the input. Stricter than LVM in two points, since a text in doubt is a volume in doubt: a name may appear once in
//! its section, and a number has no leading zero (LVM would read octal).

use std::borrow::Cow;
use std::collections::HashSet;

/// The largest text that is read, in bytes: far beyond what LVM itself handles well.
pub const LARGEST: usize = 64 << 20;
/// How deep sections may lie in one another; LVM's own texts reach 5.
const DEEPEST: usize = 16;
/// So many names are looked through sooner than they are put into a set.
const FEW: usize = 16;

/// Why bytes are no such text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {fault}")]
pub struct TextError {
    /// Where, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// What can be wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Larger than [`LARGEST`].
    #[error("the text is larger than {LARGEST} bytes")]
    TooLarge,
    /// Sections nested too deep.
    #[error("sections lie more than {DEEPEST} deep")]
    TooDeep,
    /// The text ends within something.
    #[error("the text ends within a {0}")]
    Ends(&'static str),
    /// Something else was due here.
    #[error("{0} was expected")]
    Expected(&'static str),
    /// A number that is none, or that LVM would read as octal.
    #[error("{0:?} is not a decimal number")]
    Number(String),
    /// The same name twice in one section.
    #[error("{0:?} is there twice")]
    Twice(String),
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A whole number.
    Int(i64),
    /// Any other number; also a whole one that an `i64` cannot hold, so that only who needs that number fails on it.
    Float(f64),
    /// A string, escapes resolved; bytes that are not UTF-8 are replaced.
    Text(Cow<'a, str>),
    /// An array.
    List(Vec<Value<'a>>),
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Node<'a> {
    /// A value.
    Value(Value<'a>),
    /// A section.
    Section(Section<'a>),
}

/// The names of a section with what they stand for, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Section<'a>(Vec<(Cow<'a, str>, Node<'a>)>);

impl<'a> Section<'a> {
    /// What a name stands for.
    pub fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, node)| node)
    }

    /// The value of a name.
    pub fn value(&self, name: &str) -> Option<&Value<'a>> {
        match self.get(name)? {
            Node::Value(value) => Some(value),
            Node::Section(_) => None,
        }
    }

    /// The section of a name.
    pub fn section(&self, name: &str) -> Option<&Section<'a>> {
        match self.get(name)? {
            Node::Section(section) => Some(section),
            Node::Value(_) => None,
        }
    }

    /// All sections within, in their order.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Section<'a>)> {
        self.0.iter().filter_map(|(name, node)| match node {
            Node::Section(section) => Some((name.as_ref(), section)),
            Node::Value(_) => None,
        })
    }

    /// All values within, in their order.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value<'a>)> {
        self.0.iter().filter_map(|(name, node)| match node {
            Node::Value(value) => Some((name.as_ref(), value)),
            Node::Section(_) => None,
        })
    }
}

/// Reads a text. It ends at the first zero byte outside a string, as LVM's texts do on disk.
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

    /// Skips blanks and comments, and gives the next byte.
    fn next_token(&mut self) -> Option<u8> {
        let mut comment = false;
        while let Some(byte) = self.peek() {
            match byte {
                b'\n' => {
                    self.line += 1;
                    comment = false;
                }
                b'#' => comment = true,
                // The vertical tab is white space to C.
                _ if comment || byte.is_ascii_whitespace() || byte == 0x0b => {}
                _ => return Some(byte),
            }
            self.at += 1;
        }
        None
    }

    /// The entries of a section up to its end; the outermost ends with the text.
    fn section(&mut self, depth: usize) -> Result<Section<'a>, TextError> {
        let mut entries: Vec<(Cow<'a, str>, Node<'a>)> = Vec::new();
        // Names are compared one by one while there are few, as in nearly all of the many sections of a text.
        let mut seen = HashSet::new();
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
                seen.extend(entries.iter().map(|(name, _)| name.clone()));
            }
            let twice =
                if entries.len() < FEW { entries.iter().any(|(other, _)| *other == name) } else { !seen.insert(name.clone()) };
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

    /// The bytes up to the first that ends a word.
    fn word(&mut self, ends: impl Fn(u8) -> bool) -> Cow<'a, str> {
        let start = self.at;
        while self.peek().is_some_and(|b| !ends(b)) {
            self.at += 1;
        }
        String::from_utf8_lossy(&self.bytes[start..self.at])
    }

    /// A quoted string; a backslash in double quotes makes the next byte plain.
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
