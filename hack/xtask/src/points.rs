//! Compares the acceptance points with the tests that ran, and maintains the table of both in tests/README.md.
//!
//! The acceptance file has lines `number<TAB>in|later<TAB>description`. The coverage file, to which the tests append, has lines
//! `number<TAB>test`. Fails if no test has executed a point that is `in`, or if the table is stale.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use testkit::error::{Result, Trouble, ensure};
use testkit::lab::say;

/// The lines of the README around the table.
const BEGIN: &str = "<!-- points: begin; written by `xtask points --write`, do not edit -->";
const END: &str = "<!-- points: end -->";

/// An acceptance point.
#[derive(Debug, PartialEq, Eq)]
struct Point {
    /// `in`: a test must execute it.
    now: bool,
    /// What it requires, or why it comes later.
    text: String,
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The acceptance points, such as tests/acceptance.txt
    #[arg(long, value_name = "FILE")]
    acceptance: PathBuf,
    /// What the tests that ran have executed
    #[arg(long, value_name = "FILE")]
    coverage: PathBuf,
    /// The document that holds the table of points
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Writes the table where it is stale
    #[arg(long, requires = "readme")]
    write: bool,
    /// Fails where the table is stale
    #[arg(long, requires = "readme", conflicts_with = "write")]
    check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let points = points(&read(&options.acceptance)?)?;
    let tests = tests(&read(&options.coverage)?, &points)?;
    let missing: Vec<String> = points
        .iter()
        .filter(|(number, point)| point.now && !tests.contains_key(number))
        .map(|(number, point)| format!("{number}. {}", point.text))
        .collect();
    ensure(missing.is_empty(), || format!("no test has executed these points:\n  {}", missing.join("\n  ")))?;
    if let Some(readme) = &options.readme {
        let text = read(readme)?;
        let new = replace(&text, &table(&points, &tests))?;
        if options.write && new != text {
            fs::write(readme, &new).map_err(Trouble::io(format!("writing {}", readme.display())))?;
        }
        let stale = options.check && new != text;
        ensure(!stale, || {
            format!("the table in {} is stale: run xtask points with --write instead of --check", readme.display())
        })?;
    }
    let now = points.values().filter(|point| point.now).count();
    say(&format!("points: {now} acceptance points executed by tests, {} for later", points.len() - now));
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(Trouble::io(format!("reading {}", path.display())))
}

fn points(text: &str) -> Result<BTreeMap<u32, Point>> {
    let mut points = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let wrong = || Trouble::wrong(format!("malformed line of the acceptance file: {line:?}"));
        let fields: Vec<&str> = line.splitn(3, '\t').collect();
        let [number, state, text] = fields[..] else { return Err(wrong()) };
        let number: u32 = number.parse().map_err(|_| wrong())?;
        let now = match state {
            "in" => true,
            "later" => false,
            _ => return Err(wrong()),
        };
        let before = points.insert(number, Point { now, text: text.to_owned() });
        ensure(before.is_none(), || format!("acceptance point {number} is listed twice"))?;
    }
    Ok(points)
}

fn tests(text: &str, points: &BTreeMap<u32, Point>) -> Result<BTreeMap<u32, BTreeSet<String>>> {
    let mut tests: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let pair = line.split_once('\t').and_then(|(number, test)| Some((number.parse::<u32>().ok()?, test)));
        let (number, test) = pair.ok_or_else(|| Trouble::wrong(format!("malformed line of the coverage file: {line:?}")))?;
        ensure(points.contains_key(&number), || format!("{test} executes point {number}, which does not exist"))?;
        tests.entry(number).or_default().insert(test.to_owned());
    }
    Ok(tests)
}

fn table(points: &BTreeMap<u32, Point>, tests: &BTreeMap<u32, BTreeSet<String>>) -> String {
    let mut text = String::from("| Point | What it asks for | Tests that execute it |\n|---|---|---|\n");
    for (number, point) in points {
        let names: Vec<String> = tests.get(number).into_iter().flatten().map(|test| format!("`{test}`")).collect();
        let tests = if names.is_empty() { "later".to_owned() } else { names.join(", ") };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "| {number} | {} | {tests} |", point.text.replace('|', "\\|"));
    }
    text
}

fn replace(text: &str, table: &str) -> Result<String> {
    let around = text.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = around.ok_or_else(|| Trouble::wrong(format!("the README lacks the lines {BEGIN:?} and {END:?}")))?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTANCE: &str = "1\tin\tfields\n2\tlater\tgroups come later\n";

    #[test]
    fn lines_that_are_no_points_are_refused() {
        for text in ["1\tin", "x\tin\ty", "1\tnow\ty", "1\tin\ta\n1\tin\tb"] {
            assert!(points(text).is_err(), "{text:?}");
        }
        assert_eq!(points(ACCEPTANCE).expect("two points").len(), 2);
    }

    #[test]
    fn a_test_of_a_point_that_there_is_not_is_refused() {
        let points = points(ACCEPTANCE).expect("two points");
        assert!(tests("3\tlab::x", &points).is_err());
        assert!(tests("one\tlab::x", &points).is_err());
        assert_eq!(tests("1\tb\n1\ta\n1\tb\n", &points).expect("coverage")[&1].len(), 2);
    }

    #[test]
    fn the_table_replaces_only_what_is_between_the_marks() {
        let points = points(ACCEPTANCE).expect("two points");
        let table = table(&points, &tests("1\tlab::x\n", &points).expect("coverage"));
        let text = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let new = replace(&text, &table).expect("marks");
        assert!(new.starts_with("head\n") && new.ends_with("\ntail\n") && !new.contains("old"));
        assert!(new.contains("| 1 | fields | `lab::x` |") && new.contains("| 2 | groups come later | later |"));
        assert_eq!(replace(&new, &table).expect("marks"), new);
        assert!(replace("no marks", &table).is_err());
    }
}
