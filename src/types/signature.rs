//! What stands on a device, as libblkid finds it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a signature is a sign of, as blkid(8) sorts them (`USAGE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureUsage {
    /// A filesystem.
    Filesystem,
    /// A member of a RAID set or volume group.
    Raid,
    /// An encrypted device.
    Crypto,
    /// A partition table; libblkid has no word for it.
    PartitionTable,
    /// Anything else.
    Other,
}

impl SignatureUsage {
    /// Reads libblkid's word.
    pub fn of(word: &str) -> Self {
        match word {
            "filesystem" => Self::Filesystem,
            "raid" => Self::Raid,
            "crypto" => Self::Crypto,
            _ => Self::Other,
        }
    }
}

/// One signature on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// What it is of, as libblkid calls it: `ext4`, `xfs`, `crypto_LUKS`, `LVM2_member`, `gpt`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// What sort of thing that is.
    pub usage: SignatureUsage,
    /// Its UUID, where it has one; text form, lower case.
    pub uuid: Option<String>,
    /// Its label, where it has one that is text.
    pub label: Option<String>,
    /// Its checksum does not fit: there was such a thing, and it is damaged.
    pub damaged: bool,
    /// Where its magic number lies, in bytes from the beginning of the device; `None` for a partition table, or where that is not known.
    pub offset: Option<u64>,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(uuid) = &self.uuid {
            write!(f, " {uuid}")?;
        }
        match &self.label {
            Some(label) if !label.is_empty() => write!(f, " labelled {label:?}"),
            _ => Ok(()),
        }
    }
}
