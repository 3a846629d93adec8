//! Signatures on a device, as libblkid finds them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The usage of a signature, as blkid(8) defines it (`USAGE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureUsage {
    Filesystem,
    /// A member of a RAID set or volume group.
    Raid,
    /// An encrypted device.
    Crypto,
    /// A partition table; libblkid has no usage for it.
    PartitionTable,
    Other,
}

impl SignatureUsage {
    /// Reads libblkid's `USAGE`.
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
    /// libblkid's `TYPE`: `ext4`, `xfs`, `crypto_LUKS`, `LVM2_member`, `gpt`, …
    #[serde(rename = "type")]
    pub kind: String,
    pub usage: SignatureUsage,
    /// Its UUID, if it has one; text form, lower case.
    pub uuid: Option<String>,
    /// Its label, if it has one that is text.
    pub label: Option<String>,
    /// Its checksum is wrong: the structure was there and is damaged.
    pub damaged: bool,
    /// Offset of its magic number, in bytes from the beginning of the device; `None` for a partition table, or if it is unknown.
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
