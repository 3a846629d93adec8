//! `lvm-csi prepare-metadata`: adapts an older copy of the metadata to the present state of the thin pools.

use std::path::Path;

use anyhow::Context;

use crate::host::Linux;
use crate::lvm::prepare;

/// Returns the adapted text of a copy. Reads disks and changes nothing.
///
/// # Errors
/// The file cannot be read, or its text cannot be adapted.
pub fn prepare_metadata(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    prepare(&Linux, text.trim_end_matches('\0')).with_context(|| format!("adapting {} to the thin pools", file.display()))
}
