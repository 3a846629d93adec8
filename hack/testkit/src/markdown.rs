//! Markdown, as far as the tests of the documents read it: fenced blocks, and the prose between them.

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The number of the line with its first fence, from 1.
    pub line: usize,
    /// What follows the first fence, such as `sh` or `sh node`; may be empty.
    pub language: String,
    /// Its lines, without the indentation of the fence.
    pub text: String,
}

/// A page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The lines outside the blocks, with their numbers from 1.
    pub prose: Vec<(usize, String)>,
    pub blocks: Vec<Block>,
}

impl Page {
    /// # Errors
    /// The line of a fence that nothing closes.
    pub fn read(text: &str) -> Result<Self, usize> {
        let mut page = Self::default();
        let mut open: Option<(Block, usize, &str)> = None;
        for (number, line) in (1..).zip(text.lines()) {
            let bare = line.trim_start();
            let ticks = bare.len() - bare.trim_start_matches('`').len();
            let rest = bare[ticks..].trim();
            open = match open {
                Some((block, fence, _)) if ticks >= fence && rest.is_empty() => {
                    page.blocks.push(block);
                    None
                }
                Some((mut block, fence, indent)) => {
                    block.text.push_str(line.strip_prefix(indent).unwrap_or(bare));
                    block.text.push('\n');
                    Some((block, fence, indent))
                }
                // Three backticks and a text with further ones are code in a line.
                None if ticks >= 3 && !rest.contains('`') => {
                    let block = Block { line: number, language: rest.to_owned(), text: String::new() };
                    Some((block, ticks, &line[..line.len() - bare.len()]))
                }
                None => {
                    page.prose.push((number, line.to_owned()));
                    None
                }
            };
        }
        open.map_or(Ok(page), |(block, ..)| Err(block.line))
    }
}

/// Returns the contents of the code spans of a line, and the line without them.
pub fn code_spans(line: &str) -> (Vec<String>, String) {
    let (mut spans, mut rest, mut without) = (Vec::new(), line, String::new());
    while let Some(start) = rest.find('`') {
        let ticks = rest[start..].len() - rest[start..].trim_start_matches('`').len();
        let (fence, inside) = (&rest[start..start + ticks], &rest[start + ticks..]);
        let Some(end) = closing(inside, fence) else { break };
        without.push_str(&rest[..start]);
        spans.push(inside[..end].trim().to_owned());
        rest = &inside[end + ticks..];
    }
    without.push_str(rest);
    (spans, without)
}

/// Returns the position of a run of exactly as many backticks.
fn closing(text: &str, fence: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = text[from..].find('`') {
        let start = from + found;
        let run = text[start..].len() - text[start..].trim_start_matches('`').len();
        if run == fence.len() {
            return Some(start);
        }
        from = start + run;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_at_their_own_fence() {
        let text = "# Title\n```sh node\nls\n```\n- item\n  ````text\n  ```\n    deep\n  ````\n```inline `code` ```\nend\n";
        let page = Page::read(text).unwrap();
        let block = |line, language: &str, text: &str| Block { line, language: language.to_owned(), text: text.to_owned() };
        assert_eq!(page.blocks, [block(2, "sh node", "ls\n"), block(6, "text", "```\n  deep\n")]);
        let lines: Vec<usize> = page.prose.iter().map(|(number, _)| *number).collect();
        assert_eq!(lines, [1, 5, 10, 11]);
        assert_eq!(Page::read("a\n```sh\nls\n"), Err(2));
    }

    #[test]
    fn code_spans_are_taken_out_of_a_line() {
        assert_eq!(code_spans("a `b` c ``d ` e`` f"), (vec!["b".to_owned(), "d ` e".to_owned()], "a  c  f".to_owned()));
        assert_eq!(code_spans("a ` b"), (vec![], "a ` b".to_owned()));
    }
}
