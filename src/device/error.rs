//! What can go wrong with a device.

use std::io;

use crate::host::{Openers, ToolError};

/// Why something was not done with a device, or why nothing is known of it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A kernel call failed.
    #[error("{action} {device}")]
    Kernel {
        /// What was done, as a participle: `reading`.
        action: &'static str,
        /// To which device.
        device: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The volume has no dm device: it is not active.
    #[error("logical volume with dm UUID {uuid} is not active")]
    Inactive {
        /// The dm UUID looked for.
        uuid: String,
    },
    /// The device is there and cannot be used as it is.
    #[error("device {device}: {reason}")]
    Unusable {
        device: String,
        /// What is wrong with it and what helps.
        reason: String,
    },
    /// Somebody has the device open.
    #[error("device {device} is in use ({open_count} openers{openers}); see what holds it with lsblk and findmnt")]
    InUse {
        device: String,
        /// How many openers the kernel counts.
        open_count: u32,
        /// Who they are, as far as can be told.
        openers: Openers,
    },
    /// Something has the volume to itself, so that nothing else can be put on it.
    #[error("something else has device {device} to itself{openers}; take that away, see lsblk")]
    Claimed {
        device: String,
        /// Who that is, as far as can be told.
        openers: Openers,
    },
    /// The kernel said something of the device that this driver does not understand.
    #[error("the kernel's words on {device} are unknown: {words:?}")]
    Unknown {
        device: String,
        /// The words.
        words: String,
    },
    /// What is on the device is not known, since it could not be read in full. Nothing may be written to it.
    #[error("cannot tell what is on {device}: {reason}")]
    Unreadable {
        device: String,
        /// What could not be read.
        reason: String,
    },
    /// The child that was to look at the device failed.
    #[error("looking at what is on {device}")]
    Probe {
        device: String,
        /// Why the child failed.
        source: ToolError,
    },
    /// That child ended without an answer: bytes that make a parser loop or take memory, or a parser that fails.
    #[error(
        "what is on {device} could not be told: the child that looked at it gave no answer, {reason}. Nothing was written; see with \
         wipefs -n what stands there"
    )]
    ProbeEnded {
        device: String,
        /// How it ended.
        reason: String,
    },
    /// The answer of that child is not one.
    #[error("the answer on what is on {device} cannot be read: {answer:?}")]
    ProbeAnswer {
        device: String,
        /// The beginning of the answer.
        answer: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl DeviceError {
    /// For `map_err`: a kernel call on a device.
    pub(super) fn kernel(action: &'static str, device: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let device = device.into();
        move |source| DeviceError::Kernel { action, device, source }
    }
}
