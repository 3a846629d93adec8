//! The version of the installed LVM.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// As 2 in 2.03.31.
    pub major: u32,
    /// As 3 in 2.03.31.
    pub minor: u32,
    /// As 31 in 2.03.31.
    pub patch: u32,
}

/// Why an LVM cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The output of `lvm version` has no version.
    #[error("cannot find a version in the output of `lvm version`: {said:?}")]
    Unreadable {
        /// The beginning of the output.
        said: String,
    },
    /// Older than [`Version::MINIMAL`].
    #[error("LVM {found} is too old: {minimal} or newer is needed", minimal = Version::MINIMAL)]
    TooOld { found: Version },
}

impl Version {
    /// The first version with `json_std` reports.
    pub const MINIMAL: Version = Version { major: 2, minor: 3, patch: 17 };
    /// From this version on large groups take half the time.
    pub const RECOMMENDED: Version = Version { major: 2, minor: 3, patch: 30 };

    /// Reads what `lvm version` prints.
    ///
    /// # Errors
    /// The output has no version, or one that is too old.
    pub fn parse(output: &[u8]) -> Result<Version, VersionError> {
        let output = String::from_utf8_lossy(output);
        let found = output
            .lines()
            .find_map(|line| read(line.trim().strip_prefix("LVM version:")?.trim()))
            .ok_or_else(|| VersionError::Unreadable { said: output.trim().chars().take(200).collect() })?;
        if found < Version::MINIMAL { Err(VersionError::TooOld { found }) } else { Ok(found) }
    }
}

/// Reads `2.03.31(2) (2025-02-27)` and `2.03.40(2)-git (…)`.
fn read(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut parts = text[..end].split('.').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some(Version { major: next()?, minor: next()?, patch: next()? })
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}.{:02}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm_prints_is_read() {
        let output = b"  LVM version:     2.03.31(2) (2025-02-27)\n  Library version: 1.02.205 (2025-02-27)\n";
        let version = Version::parse(output).unwrap();
        assert_eq!(version, Version { major: 2, minor: 3, patch: 31 });
        assert!(version > Version::RECOMMENDED);
        assert_eq!(version.to_string(), "2.03.31");
        assert!(Version::parse(b"noise\n  LVM version:     2.03.40(2)-git (2026-04-01)\n").is_ok());
    }

    #[test]
    fn an_old_or_unknown_lvm_is_refused() {
        let old = Version::parse(b"  LVM version:     2.03.16(2) (2022-05-18)").unwrap_err();
        assert_eq!(old.to_string(), "LVM 2.03.16 is too old: 2.03.17 or newer is needed");
        for other in [&b""[..], b"LVM version: 2.03", b"LVM version: x", b"LVM version: 99999999999.1.1", b"\xff\xfe"] {
            assert!(matches!(Version::parse(other), Err(VersionError::Unreadable { .. })), "{other:?}");
        }
    }
}
