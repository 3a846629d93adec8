//! Errors of device operations.

use std::io;

use crate::host::{Openers, ToolError};

/// Why an operation on a device failed, or why its content is unknown.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A kernel call failed.
    #[error("{action} {device}")]
    Kernel {
        /// The failed operation, as a participle: `reading`.
        action: &'static str,
        device: String,
        source: io::Error,
    },
    /// The volume has no dm device: it is not active.
    #[error("logical volume with dm UUID {uuid} is not active")]
    Inactive { uuid: String },
    /// The device is there but cannot be used.
    #[error("device {device}: {reason}")]
    Unusable {
        device: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Somebody has the device open.
    #[error("device {device} is in use ({open_count} openers{openers}); see what holds it with lsblk and findmnt")]
    InUse {
        device: String,
        /// The kernel's count.
        open_count: u32,
        /// The openers, as far as they can be identified.
        openers: Openers,
    },
    /// Something has the device open exclusively, so nothing else can use it.
    #[error("something else has device {device} open exclusively{openers}; find it with lsblk and remove it")]
    Claimed {
        device: String,
        /// The opener, as far as it can be identified.
        openers: Openers,
    },
    /// The driver does not understand the kernel's answer.
    #[error("cannot understand the kernel's status of {device}: {words:?}")]
    Unknown {
        device: String,
        /// The kernel's answer.
        words: String,
    },
    /// The device could not be read in full, so its content is unknown. Nothing may be written to it.
    #[error("cannot tell what is on {device}: {reason}")]
    Unreadable {
        device: String,
        /// Which read failed and why.
        reason: String,
    },
    /// The child that probes the device failed.
    #[error("cannot probe what is on {device}")]
    Probe { device: String, source: ToolError },
    /// The child ended without an answer: bytes made a parser loop or use too much memory, or it crashed.
    #[error(
        "cannot tell what is on {device}: its probe gave no answer, {reason}. Nothing was written; look at it with wipefs -n"
    )]
    ProbeEnded {
        device: String,
        /// How the child ended.
        reason: String,
    },
    /// The child's answer does not parse.
    #[error("cannot understand the probe's answer about {device}: {answer:?}")]
    ProbeAnswer { device: String, answer: String, source: serde_json::Error },
}

impl DeviceError {
    /// For `map_err` after a kernel call on a device.
    pub(super) fn kernel(action: &'static str, device: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let device = device.into();
        move |source| DeviceError::Kernel { action, device, source }
    }
}
