//! The state of a thin pool, as the kernel reports it.

/// The requests that a pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// All requests.
    ReadWrite,
    /// Reads only: the metadata are full or damaged.
    ReadOnly,
    /// Requests that need no new block.
    OutOfData,
    /// None; the pool needs a repair.
    Failed,
}

/// The state of a thin pool. Data blocks are chunks of the pool, metadata blocks are 4 KiB. All numbers of a failed pool are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinPoolStatus {
    pub mode: PoolMode,
    /// Data blocks in use.
    pub used_data: u64,
    /// All data blocks.
    pub total_data: u64,
    /// Metadata blocks in use.
    pub used_metadata: u64,
    /// All metadata blocks.
    pub total_metadata: u64,
    /// Writes that need a block fail at once if there is none, instead of queueing for an extension.
    pub error_if_no_space: bool,
    /// The metadata must be checked before the pool can be activated again.
    pub needs_check: bool,
}

impl ThinPoolStatus {
    /// Whole percent of the data blocks in use, rounded up; 100 for a pool without blocks.
    pub fn data_percent(&self) -> u64 {
        percent(self.used_data, self.total_data)
    }

    /// Whole percent of the metadata blocks in use, rounded up; 100 for a pool without blocks.
    pub fn metadata_percent(&self) -> u64 {
        percent(self.used_metadata, self.total_metadata)
    }

    /// Whether it serves at least all requests that need no new block, and needs no check.
    pub fn is_healthy(&self) -> bool {
        !self.needs_check && matches!(self.mode, PoolMode::ReadWrite | PoolMode::OutOfData)
    }
}

fn percent(used: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { used.saturating_mul(100).div_ceil(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_up_and_never_divide_by_zero() {
        assert_eq!((percent(0, 10), percent(1, 1000), percent(10, 10), percent(0, 0)), (0, 1, 100, 100));
    }
}
