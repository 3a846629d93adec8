//! Names that LVM allows, checked once when they are built.

use std::fmt;

/// Why LVM does not accept a text as a name or tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    /// More bytes than LVM or device-mapper can hold.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    #[error("contains {0:?}, which LVM does not allow there")]
    Character(char),
    #[error("is reserved by LVM")]
    Reserved,
}

/// Length in bytes of the longest VG or LV name that the driver makes or accepts. A dm name holds two of them with doubled hyphens.
const LONGEST: usize = 63;
/// Length in bytes of the longest LV name that LVM itself accepts.
const LONGEST_OF_LVM: usize = 127;
/// Length in bytes of the longest tag; LVM itself accepts 1024.
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
    /// # Errors
    /// What LVM would refuse in it.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check(&text, LONGEST)?;
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a logical volume: LVM's characters, and none of its reserved names unless built by [`LvName::of_existing`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LvName(String);

impl LvName {
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

    /// The name of an existing LV: an administrator may have given it a name that the driver would not accept.
    ///
    /// # Errors
    /// No LV can have this name.
    pub fn of_existing(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check(&text, LONGEST_OF_LVM)?;
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An LVM tag: `[A-Za-z0-9_+.\-/=!:&#]` (lvm(8), "TAGS"), not beginning with a hyphen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// # Errors
    /// What LVM would refuse in it, or that it is longer than 256 bytes.
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
    fn names_and_tags_that_lvm_refuses_are_refused() {
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
