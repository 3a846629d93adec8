//! How long and how hard a disk is zeroed.

use std::time::Duration;

/// What zeroing may take of a disk's time, and of a caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zeroing {
    /// Most of a disk's time, in percent; the rest is left to those who use the disk.
    pub percent: u32,
    /// How long one call zeroes before it answers how far it is; the next one goes on from there. With zero it makes one step.
    pub call: Duration,
}

impl Default for Zeroing {
    /// Half of the disk's time, and a call well within the two minutes that kubelet waits.
    fn default() -> Self {
        Self { percent: 50, call: Duration::from_secs(80) }
    }
}
