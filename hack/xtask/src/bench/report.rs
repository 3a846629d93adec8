//! Stores rows in files, and prints them as a table or as JSON.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use testkit::error::{Result, Trouble};

use super::measure::{Bound, Row, Times};

/// Writes rows to a file that [`read`] understands.
pub(crate) fn write(path: &Path, rows: &[Row]) -> Result<()> {
    fs::write(path, json(rows)?).map_err(Trouble::io(format!("writing {}", path.display())))
}

/// Reads the rows of some files.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for path in paths {
        let text = fs::read_to_string(path).map_err(Trouble::io(format!("reading {}", path.display())))?;
        let more: Vec<Row> =
            serde_json::from_str(&text).map_err(|error| Trouble::wrong(format!("{}: {error}", path.display())))?;
        rows.extend(more);
    }
    Ok(rows)
}

/// Formats rows as a JSON array.
pub(crate) fn json(rows: &[Row]) -> Result<String> {
    serde_json::to_string_pretty(rows).map_err(|error| Trouble::wrong(format!("writing JSON: {error}")))
}

/// Formats rows as a table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<7}{:<48}{:>4}{:>8}{:>8}{:>8}   {:<42}{:>8}{:>8}{:>8}   {:>13} {}\n",
        "where", "what", "n", "min ms", "p50", "p90", "against", "min ms", "p50", "p90", "figure", "bound"
    );
    for row in rows {
        let times = |Times { min, p50, p90, .. }: Times| format!("{min:>8.1}{p50:>8.1}{p90:>8.1}");
        let (promised, verdict) = match row.bound {
            Bound::AtMost(most) => (format!("≤ {most}"), verdict(row)),
            Bound::AtLeast(least) => (format!("≥ {least}"), verdict(row)),
            Bound::None => (String::new(), ""),
        };
        let (driver, other) = (times(row.driver), row.other.map_or_else(String::new, times));
        let figure = format!("{:.2} {}", row.figure, row.unit);
        let _ = writeln!(
            text,
            "{:<7}{:<48}{:>4}{driver}   {:<42}{other:>24}   {figure:>13} {promised:<6} {verdict}",
            row.place, row.what, row.driver.n, row.against
        );
    }
    let missed = rows.iter().filter(|row| !row.holds()).count();
    let _ = write!(text, "{} figures, {missed} missed", rows.len());
    text
}

fn verdict(row: &Row) -> &'static str {
    if row.holds() { "ok" } else { "MISSED" }
}
