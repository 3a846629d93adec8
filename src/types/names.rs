//! Names as LVM allows them, checked once, when they are built.

use std::fmt;

/// Why a text is not a name or tag that LVM takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing in it.
    #[error("is empty")]
    Empty,
    /// More than LVM or device-mapper can hold, in bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// A character that LVM refuses.
    #[error("holds {0:?}, which LVM does not allow there")]
    Character(char),
    /// A name that LVM keeps for itself.
    #[error("is reserved by LVM")]
    Reserved,
}

/// Bytes in the longest VG or LV name we make or accept: two of them, hyphens doubled, fit into a dm name.
const LONGEST: usize = 63;
/// Bytes in the longest LV name that LVM itself takes.
const LONGEST_OF_LVM: usize = 127;
/// Bytes in the longest tag; LVM itself takes 1024.
const LONGEST_TAG: usize = 256;

/// Parts that mark LVM's hidden LVs (lvm(8), "reserved names").
const RESERVED_PARTS: [&str; 15] = [
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage", "_rmeta", "_tdata", "_tmeta",
    "_vdata", "_pmspare", "_vorigin",
];

fn check(text: &str, longest: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > longest {
        return Err(NameError::TooLong(longest));
    }
    if text == "." || text == ".." {
        return Err(NameError::Reserved);
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "+_.-".contains(*c))) {
        Some(other) => Err(NameError::Character(other)),
        None if text.starts_with('-') => Err(NameError::Character('-')),
        None => Ok(()),
    }
}

/// The name of a volume group: `[A-Za-z0-9+_.-]`, not beginning with a hyphen (lvm(8), "VALID NAMES").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VgName(String);

impl VgName {
    /// Checks a name.
    ///
    /// # Errors
    /// What LVM would refuse in it.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check(&text, LONGEST)?;
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a logical volume that the driver makes or is given: LVM's characters, none of its reserved names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LvName(String);

impl LvName {
    /// Checks a name.
    ///
    /// # Errors
    /// What LVM would refuse in it.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check(&text, LONGEST)?;
        let reserved =
            text.starts_with("snapshot") || text.starts_with("pvmove") || RESERVED_PARTS.iter().any(|part| text.contains(part));
        if reserved {
            return Err(NameError::Reserved);
        }
        Ok(Self(text))
    }

    /// The name of an LV that is there: an administrator may have given it one that the driver would not take.
    ///
    /// # Errors
    /// No LV can have it.
    pub fn of_existing(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check(&text, LONGEST_OF_LVM)?;
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An LVM tag: `[A-Za-z0-9_+.\-/=!:&#]` (lvm(8), "TAGS"), not beginning with a hyphen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// Checks a tag.
    ///
    /// # Errors
    /// What LVM would refuse in it.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > LONGEST_TAG {
            return Err(NameError::TooLong(LONGEST_TAG));
        }
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(*c))) {
            Some(other) => Err(NameError::Character(other)),
            None if text.starts_with('-') => Err(NameError::Character('-')),
            None => Ok(Self(text)),
        }
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VgName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lvm_refuses_is_refused_here() {
        assert_eq!(LvName::new("").unwrap_err(), NameError::Empty);
        assert_eq!(LvName::new("-a").unwrap_err(), NameError::Character('-'));
        assert_eq!(LvName::new("a b").unwrap_err(), NameError::Character(' '));
        assert_eq!(LvName::new("a/b").unwrap_err(), NameError::Character('/'));
        assert_eq!(LvName::new("..").unwrap_err(), NameError::Reserved);
        assert_eq!(LvName::new("snapshot-1").unwrap_err(), NameError::Reserved);
        assert_eq!(LvName::new("x_tdata").unwrap_err(), NameError::Reserved);
        assert_eq!(LvName::new("a".repeat(64)).unwrap_err(), NameError::TooLong(63));
        assert!(LvName::new("pvc-0b6c6a0e-1111-4222-8333-444455556666").is_ok());
        assert!(LvName::of_existing("snapshot".repeat(15)).is_ok());
        assert_eq!(LvName::of_existing("a".repeat(128)).unwrap_err(), NameError::TooLong(127));
        assert_eq!(LvName::of_existing("--yes").unwrap_err(), NameError::Character('-'));
        assert_eq!(Tag::new("a@b").unwrap_err(), NameError::Character('@'));
        assert!(Tag::new("a/b=c:d&e#f!g+h.i-j").is_ok());
    }
}
