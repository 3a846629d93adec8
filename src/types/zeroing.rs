//! Limits of zeroing.

use std::time::Duration;

/// How much time zeroing may take from a disk and from a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zeroing {
    /// Largest share of a disk's time, in percent; the rest is for the disk's users.
    pub percent: u32,
    /// How long one call zeroes before it answers with the progress; the next call continues. A call with zero takes one step.
    pub call: Duration,
}

impl Default for Zeroing {
    /// Half of the disk's time, and a call well within the two minutes that kubelet waits.
    fn default() -> Self {
        Self { percent: 50, call: Duration::from_secs(80) }
    }
}
