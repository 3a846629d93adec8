//! The content of a volume: the supported filesystem types, and the [`Life`] that the volume's tag records.

use std::fmt;

use super::size::Bytes;

/// A supported filesystem type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsKind {
    Ext4,
    Xfs,
}

impl FsKind {
    /// The type where nobody names one.
    pub const DEFAULT: FsKind = FsKind::Ext4;
    pub const ALL: [FsKind; 2] = [FsKind::Ext4, FsKind::Xfs];

    /// Reads a CSI `fs_type`; `None` if it is not supported.
    pub fn parse(text: &str) -> Option<Self> {
        FsKind::ALL.into_iter().find(|kind| kind.name() == text)
    }

    /// The name that mount(8), blkid(8) and CSI's `fs_type` use.
    pub fn name(self) -> &'static str {
        match self {
            FsKind::Ext4 => "ext4",
            FsKind::Xfs => "xfs",
        }
    }

    /// The smallest device for a useful filesystem of this kind.
    ///
    /// XFS: mkfs.xfs refuses less. ext4: below 2048 blocks (8 MiB at 4 KiB per block) mkfs.ext4 omits the journal and only warns;
    /// without a journal a crash needs a full check.
    pub fn minimal_size(self) -> Bytes {
        match self {
            FsKind::Ext4 => Bytes(16 << 20),
            FsKind::Xfs => Bytes(300 << 20),
        }
    }
}

impl fmt::Display for FsKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a volume holds, committed as a tag before and after each step that cannot be undone.
///
/// ```text
///   created to be mounted ─────────────────────┐
///                                              ▼           mkfs done and flushed
///   created as a device ──▶ Blank ──▶ staged: Formatting ────────────────────────▶ Formatted
///                             │                │ first stage as a block device
///                             └────────────────┴─────────────────────────────────▶ Raw
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    /// Nothing was ever written for a user.
    Blank,
    /// It is to hold this filesystem. mkfs may have begun, and no user has seen the volume.
    Formatting(FsKind),
    /// Holds a filesystem; never formatted again.
    Formatted(FsKind),
    /// Was given to a user as a block device; never formatted.
    Raw,
}

impl Life {
    pub const ALL: [Life; 6] = [
        Life::Blank,
        Life::Formatting(FsKind::Ext4),
        Life::Formatting(FsKind::Xfs),
        Life::Formatted(FsKind::Ext4),
        Life::Formatted(FsKind::Xfs),
        Life::Raw,
    ];

    /// Whether no user has seen the volume, so that nothing in it can be lost.
    pub fn is_unused(self) -> bool {
        matches!(self, Life::Blank | Life::Formatting(_))
    }

    /// Reads the value of the tag; `None` for any other text, which makes the volume damaged.
    pub fn parse(text: &str) -> Option<Self> {
        Life::ALL.into_iter().find(|life| life.as_str() == text)
    }

    /// The value of the tag.
    pub fn as_str(self) -> &'static str {
        match self {
            Life::Blank => "blank",
            Life::Formatting(FsKind::Ext4) => "formatting=ext4",
            Life::Formatting(FsKind::Xfs) => "formatting=xfs",
            Life::Formatted(kind) => kind.name(),
            Life::Raw => "raw",
        }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_has_its_own_text() {
        for life in Life::ALL {
            assert_eq!(Life::parse(life.as_str()), Some(life));
        }
        for other in ["", "Blank", "formatting", "formatting=", "formatting=raw", "formatting=blank", "btrfs"] {
            assert_eq!(Life::parse(other), None, "{other}");
        }
    }
}
