//! Checks the documents without running anything: that they exist and are short, that their links lead somewhere, that each block says
//! what it is and parses, and that the error texts they quote are those of the program. `tests/cluster/documents.rs` runs the commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use testkit::markdown::{Page, code_spans};
use testkit::tool;

/// The documents that must exist. Further ones in `docs` are checked too.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "deploy/README.md",
    "hack/README.md",
    "tests/README.md",
    "docs/README.md",
    "docs/backup.md",
    "docs/configuration.md",
    "docs/faq.md",
    "docs/install.md",
    "docs/monitoring.md",
    "docs/operations.md",
    "docs/overprovisioning.md",
    "docs/performance.md",
    "docs/recovery.md",
    "docs/requirements.md",
    "docs/security.md",
    "docs/storageclass.md",
    "docs/troubleshooting.md",
];

/// How many words these may have, with their tables and blocks.
const LENGTHS: &[(&str, usize)] = &[("README.md", 950), ("ARCHITECTURE.md", 1300)];

/// What a block can be. `sh node` is for each node as root; nothing runs `sh skip`.
const LANGUAGES: &[&str] = &["sh", "sh node", "sh skip", "yaml", "text", "mermaid", "toml", "rust", "json"];

/// The document that quotes the program: in code spans of its headings, and of the first cells of tables that begin with such a column.
const QUOTES: &str = "docs/troubleshooting.md";
const QUOTING: &[&str] = &["text", "code", "event"];

/// Where the program's texts are.
const SOURCES: &[&str] = &["src", "proto", "deploy"];

/// The codes with which gRPC names the kind of an error. They may stand before its text.
const CODES: &[&str] = &[
    "ABORTED",
    "ALREADY_EXISTS",
    "DEADLINE_EXCEEDED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
];

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The documents that exist below a directory, by their paths there.
fn documents(top: &Path) -> BTreeMap<String, String> {
    let more = files(&top.join("docs")).into_iter().filter(|path| path.extension().is_some_and(|end| end == "md"));
    let more = more.filter_map(|path| Some(path.strip_prefix(top).ok()?.to_str()?.to_owned()));
    let names = DOCUMENTS.iter().map(|name| (*name).to_owned()).chain(more);
    names.filter_map(|name| fs::read_to_string(top.join(&name)).ok().map(|text| (name, text))).collect()
}

/// All files below a directory, and none if it does not exist.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

#[test]
fn every_document_exists_and_is_short_enough() {
    none(&missing_or_long(top()));
}

#[test]
fn every_link_leads_somewhere() {
    none(&broken_links(top()));
}

#[test]
fn every_block_says_what_it_is_and_parses() {
    none(&wrong_blocks(top()));
}

#[test]
fn every_quoted_error_is_one_of_the_program() {
    none(&unknown_errors(top()));
}

#[test]
fn every_example_is_named_in_a_document() {
    none(&unnamed_examples(top()));
}

fn missing_or_long(top: &Path) -> Vec<String> {
    let documents = documents(top);
    let missing = DOCUMENTS.iter().filter(|name| !documents.contains_key(**name)).map(|name| format!("{name} does not exist"));
    let long = LENGTHS.iter().filter_map(|(name, most)| {
        let words = documents.get(*name)?.split_whitespace().count();
        (words > *most).then(|| format!("{name} has {words} words, and may have {most}"))
    });
    missing.chain(long).collect()
}

/// The page of a document, or a finding about it.
fn page(name: &str, text: &str, wrong: &mut Vec<String>) -> Page {
    Page::read(text).unwrap_or_else(|line| {
        wrong.push(format!("{name}:{line}: this block has no end"));
        Page::default()
    })
}

fn broken_links(top: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, text) in documents(top) {
        for (line, prose) in page(&name, &text, &mut wrong).prose {
            for target in targets(&code_spans(&prose).1) {
                if let Err(why) = follow(top, &name, &target) {
                    wrong.push(format!("{name}:{line}: {target}: {why}"));
                }
            }
        }
    }
    wrong
}

/// The targets of the links in a line, and of a definition such as `[name]: target`.
fn targets(line: &str) -> Vec<String> {
    let inline = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let definition = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: "));
    let definition = definition.and_then(|(_, target)| target.split_whitespace().next());
    inline.chain(definition).map(|target| target.trim_matches(['<', '>']).to_owned()).collect()
}

/// Fails unless a link of a document leads to a file or a heading. Other sites are not asked.
fn follow(top: &Path, from: &str, target: &str) -> Result<(), String> {
    if ["https://", "http://", "mailto:"].iter().any(|scheme| target.starts_with(scheme)) {
        return Ok(());
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
    if path.starts_with('/') {
        return Err("links within the repository are relative".to_owned());
    }
    let directory = Path::new(from).parent().unwrap_or(Path::new(""));
    let path = if path.is_empty() {
        PathBuf::from(from)
    } else {
        plain(&directory.join(path)).ok_or("it leads out of the repository")?
    };
    if !top.join(&path).exists() {
        return Err(format!("there is no {}", path.display()));
    }
    let Some(anchor) = anchor else { return Ok(()) };
    if path.extension().is_none_or(|end| end != "md") {
        return Err("only headings of documents have stable anchors".to_owned());
    }
    let text = fs::read_to_string(top.join(&path)).map_err(|error| error.to_string())?;
    let anchors = anchors(&Page::read(&text).unwrap_or_default());
    if anchors.iter().any(|found| found == anchor) {
        return Ok(());
    }
    Err(format!("{} has no such heading, but {}", path.display(), anchors.join(", ")))
}

/// The path without `.` and `..`; nothing if it leads out of the directory that it begins in.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return None,
        }
    }
    Some(plain)
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &Page) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = Vec::new();
    for (_, line) in &page.prose {
        let Some(title) = heading(line) else { continue };
        let mut text = String::new();
        // Of a link only its text is shown.
        for (at, part) in title.split("](").enumerate() {
            text.push_str(if at == 0 { part } else { part.split_once(')').map_or("", |(_, rest)| rest) });
        }
        let lower = text.to_lowercase();
        let kept = lower.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let count = seen.entry(anchor.clone()).or_default();
        anchors.push(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
        *count += 1;
    }
    anchors
}

/// The text of a heading.
fn heading(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches('#');
    ((1..=6).contains(&(line.len() - rest.len())) && rest.starts_with(' ')).then(|| rest.trim())
}

fn wrong_blocks(top: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, text) in documents(top) {
        for block in page(&name, &text, &mut wrong).blocks {
            if let Err(why) = parses(&block.language, &block.text) {
                wrong.push(format!("{name}:{}: {why}", block.line));
            }
        }
    }
    wrong
}

fn parses(language: &str, text: &str) -> Result<(), String> {
    if !LANGUAGES.contains(&language) {
        return Err(format!("this block is {language:?}, which is none of {LANGUAGES:?}"));
    }
    match language {
        "yaml" => serde_saphyr::from_multiple::<serde_json::Value>(text).map(drop).map_err(|error| error.to_string()),
        "json" => serde_json::from_str::<serde_json::Value>(text).map(drop).map_err(|error| error.to_string()),
        _ if language.starts_with("sh") => {
            tool::finish(tool::command("bash").args(["-n", "-c", text])).map(drop).map_err(|error| error.to_string())
        }
        _ => Ok(()),
    }
}

fn unknown_errors(top: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(text) = documents(top).remove(QUOTES) else { return vec![format!("{QUOTES} does not exist")] };
    let known = program_texts(top);
    let quotes = quotes(&page(QUOTES, &text, &mut wrong));
    if quotes.is_empty() {
        wrong.push(format!("{QUOTES} quotes no error"));
    }
    for (line, quote) in quotes {
        let parts = constant_parts(&quote);
        // A single short word proves nothing.
        if parts.iter().all(|part| part.len() < 5) {
            wrong.push(format!("{QUOTES}:{line}: `{quote}` has no text that could be looked up"));
        }
        for part in parts.into_iter().filter(|part| !known.iter().any(|text| text.contains(part))) {
            wrong.push(format!("{QUOTES}:{line}: the program has no text {part:?} (of `{quote}`); write … for what varies"));
        }
    }
    wrong
}

/// The code spans of headings and of first cells, with their lines.
fn quotes(page: &Page) -> Vec<(usize, String)> {
    let mut quotes = Vec::new();
    let mut quoting = false;
    let mut before = "";
    for (number, line) in &page.prose {
        let line = line.trim();
        let cell = first_cell(line);
        if cell.is_some() && first_cell(before).is_none() {
            quoting = cell.as_deref().is_some_and(|head| QUOTING.contains(&head));
        }
        if let Some(text) = heading(line).map(str::to_owned).or(cell.filter(|_| quoting)) {
            quotes.extend(code_spans(&text).0.into_iter().map(|quote| (*number, quote)));
        }
        before = line;
    }
    quotes
}

/// The first cell of a row of a table.
fn first_cell(line: &str) -> Option<String> {
    let row = line.strip_prefix('|')?.replace("\\|", "\u{0}");
    row.split('|').next().map(|cell| cell.trim().replace('\u{0}', "|"))
}

/// The parts of a quoted text that do not vary: what is between `…`, without a code of gRPC at the beginning.
fn constant_parts(quote: &str) -> Vec<&str> {
    let code =
        CODES.iter().find_map(|code| quote.strip_prefix(code).filter(|rest| rest.is_empty() || rest.starts_with([' ', ':'])));
    let rest = code.map_or(quote, |rest| rest.trim_start_matches(':'));
    rest.split('…').map(str::trim).filter(|part| part.contains(char::is_alphanumeric)).collect()
}

/// The sources, each as one text in which string literals do not break and comments and tests are left out.
fn program_texts(top: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for path in SOURCES.iter().flat_map(|directory| files(&top.join(directory))) {
        let inside = path.strip_prefix(top).unwrap_or(&path);
        let of_tests =
            inside.components().any(|part| ["tests", "tests.rs", "examples"].iter().any(|name| part.as_os_str() == *name));
        let document = path.extension().is_some_and(|end| end == "md");
        if let (false, false, Ok(text)) = (of_tests, document, fs::read_to_string(&path)) {
            texts.push(program_text(&text));
        }
    }
    texts
}

fn program_text(source: &str) -> String {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or(source);
    let mut text = String::new();
    for line in source.lines() {
        let line = line.trim();
        if line.starts_with("//") {
            continue;
        }
        // A backslash at the end of a line joins it with the next one.
        match line.strip_suffix('\\') {
            Some(part) => text.push_str(part),
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text.replace("\\\"", "\"")
}

fn unnamed_examples(top: &Path) -> Vec<String> {
    let documents = documents(top);
    let texts: Vec<&String> =
        documents.iter().filter(|(name, _)| *name == "README.md" || name.starts_with("docs/")).map(|(_, text)| text).collect();
    let names = files(&top.join("deploy/examples")).into_iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let unnamed = names.filter(|name| !texts.iter().any(|text| text.contains(name.as_str())));
    unnamed.map(|name| format!("no document names deploy/examples/{name}")).collect()
}

/// Each check finds what it is for, in a repository of a few files.
#[cfg(test)]
mod findings {
    use super::*;

    /// A directory with these files.
    fn repository(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    fn all_found(found: &[String], expected: &[&str]) {
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found:?} does not say {expected:?}");
        }
    }

    #[test]
    fn a_document_that_is_missing_or_too_long() {
        let short: Vec<(&str, &str)> = DOCUMENTS.iter().map(|name| (*name, "a few words")).collect();
        all_found(&missing_or_long(repository(&short).path()), &[]);
        let long = "| word |\n".repeat(400);
        let directory = repository(&[&short[1..], &[("ARCHITECTURE.md", &long)]].concat());
        all_found(&missing_or_long(directory.path()), &["README.md does not exist"]);
        fs::write(directory.path().join("README.md"), &long).unwrap();
        all_found(&missing_or_long(directory.path()), &["README.md has 1200 words, and may have 950"]);
        fs::write(directory.path().join("README.md"), "short").unwrap();
        fs::write(directory.path().join("ARCHITECTURE.md"), long.repeat(2)).unwrap();
        all_found(&missing_or_long(directory.path()), &["ARCHITECTURE.md has 2400 words, and may have 1300"]);
    }

    #[test]
    fn a_link_that_leads_nowhere() {
        let directory = repository(&[
            (
                "README.md",
                "# One `two`, three!\n# Twice\n# Twice\n[a](docs/faq.md) [b](#one-two-three) [c](#twice-1) [d](src) `[e](gone)`\n\
                 [f](https://example.org/gone) [g](docs/faq.md#how-do-i \"title\")\n```text\n[h](gone)\n```\n[i]: docs/faq.md\n",
            ),
            ("docs/faq.md", "## How do I?\n[up](../README.md#twice) [here](faq.md)\n"),
            ("src/lib.rs", ""),
        ]);
        all_found(&broken_links(directory.path()), &[]);
        let text = "# One\n[a](gone.md) [b](#two) [c](/README.md) [d](../../x)\n[e](../src/lib.rs#L1) [f](../README.md#three)\n[g]: nothing\n";
        fs::write(directory.path().join("docs/faq.md"), format!("{text}```sh\n")).unwrap();
        // The page with an open block is not read, and the heading is gone with it.
        all_found(
            &broken_links(directory.path()),
            &["README.md:5: docs/faq.md#how-do-i: docs/faq.md has no such heading", "docs/faq.md:5: this block has no end"],
        );
        fs::write(directory.path().join("docs/faq.md"), text).unwrap();
        let expected = [
            "README.md:5: docs/faq.md#how-do-i: docs/faq.md has no such heading",
            "docs/faq.md:2: gone.md: there is no docs/gone.md",
            "#two: docs/faq.md has no such heading, but one",
            "/README.md: links within the repository are relative",
            "../../x: it leads out",
            "../src/lib.rs#L1: only headings",
            "../README.md#three: README.md has no such heading",
            "docs/faq.md:4: nothing: there is no docs/nothing",
        ];
        all_found(&broken_links(directory.path()), &expected);
    }

    #[test]
    fn headings_have_the_anchors_of_github() {
        let text =
            "# What if …\n## A node – is `off`?\n### [Link](to.md) and_more\n#no heading\n####### nor this\n## What if …\n";
        let expected = ["what-if-", "a-node--is-off", "link-and_more", "what-if--1"];
        assert_eq!(anchors(&Page::read(text).unwrap()), expected);
    }

    #[test]
    fn a_block_that_does_not_parse() {
        let directory = repository(&[(
            "README.md",
            "```sh\nfor x in y; do\n```\n```sh node\necho 'a\n```\n```sh skip\nif\n```\n```yaml\na: {\n```\n```json\n{\n```\n```\nx\n```\n```bash\nx\n```\n\
             ```sh\nls | sort\n```\n```yaml\na: 1\n---\nb: [2]\n```\n```text\n{ if\n```\n```mermaid\nflowchart\n```\n",
        )]);
        let found = wrong_blocks(directory.path());
        all_found(
            &found,
            &["md:1: ", "md:4: ", "md:7: ", "md:10: ", "md:13: ", "md:16: this block is \"\"", "md:19: this block is \"bash\""],
        );
    }

    #[test]
    fn an_error_that_the_program_does_not_say() {
        let source = "// only in a comment\nfn f() {\n    format!(\"{vg} has been running for {time}, \\\n             and \\\"still\\\" is\")\n}\n\
                      #[cfg(test)]\nmod tests {\n    \"only in a test\"\n}\n";
        let page =
            |rows: &str| repository(&[(QUOTES, rows), ("src/a.rs", source), ("deploy/script", "echo 'a line of a script'\n")]);
        let good = "| what | |\n|---|---|\n| `a tool` | |\n\n| text | |\n|---|---|\n| `UNAVAILABLE … has been running for …, and \"still\" is` | `other` |\n\
                    # `a line of a script`\n| event \\| | |\n| `not of a table that quotes` | |\n";
        all_found(&unknown_errors(page(good).path()), &[]);
        let bad = "| text |\n|---|\n| `ABORTED … has been walking for …` |\n| `only in a comment` |\n| `only in a test` or `UNAVAILABLE …` |\n";
        let found = unknown_errors(page(bad).path());
        all_found(
            &found,
            &[":3: the program has no text \"has been walking for\"", ":4: ", ":5: ", ":5: `UNAVAILABLE …` has no text"],
        );
        all_found(&unknown_errors(page("nothing\n").path()), &["quotes no error"]);
        all_found(&unknown_errors(repository(&[]).path()), &["does not exist"]);
    }

    #[test]
    fn an_example_without_a_name() {
        let examples =
            [("deploy/examples/a.yaml", ""), ("deploy/examples/b.yaml", ""), ("deploy/README.md", "a.yaml and b.yaml")];
        let directory = repository(&[&examples[..], &[("docs/faq.md", "see `b.yaml`")]].concat());
        all_found(&unnamed_examples(directory.path()), &["deploy/examples/a.yaml"]);
    }
}
