//! How full filesystems are.

use super::size::Bytes;

/// How full a filesystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: Bytes,
    /// Free for unprivileged users.
    pub available: Bytes,
}

impl Usage {
    /// The share of what users can have that is in use, in percent, as `df` tells it but rounded down: what is kept for root is no
    /// room of theirs. All of nothing.
    pub fn percent(self) -> u64 {
        let all = u128::from(self.used.0) + u128::from(self.available.0);
        let percent = (u128::from(self.used.0) * 100).checked_div(all).unwrap_or(100);
        u64::try_from(percent).unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_keeps_is_no_room() {
        let percent = |used, available| Usage { used: Bytes(used), available: Bytes(available) }.percent();
        assert_eq!([percent(799, 201), percent(800, 200), percent(5, 0), percent(0, 5)], [79, 80, 100, 0]);
        assert_eq!([percent(0, 0), percent(u64::MAX, u64::MAX)], [100, 50]);
    }
}
