//! `lvm-csi prepare-metadata`: an older copy of the metadata, made to fit the thin pools as they are.

use std::path::Path;

use anyhow::Context;

use crate::host::Linux;
use crate::lvm::prepare;

/// The text of a copy, made to fit. Reads disks and changes nothing.
///
/// # Errors
/// The file cannot be read, or why its text cannot be made to fit.
pub fn prepare_metadata(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    prepare(&Linux, text.trim_end_matches('\0')).with_context(|| format!("making {} fit", file.display()))
}
