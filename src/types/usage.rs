//! Space used in filesystems.

use super::size::Bytes;

/// Space used in a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub used: Bytes,
    /// Free for unprivileged users.
    pub available: Bytes,
}

impl Usage {
    /// Used space in percent of the space for users, as in `df` but rounded down. Blocks reserved for root do not count as available.
    /// 100 for a filesystem without any space.
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
    fn space_reserved_for_root_is_not_available() {
        let percent = |used, available| Usage { used: Bytes(used), available: Bytes(available) }.percent();
        assert_eq!([percent(799, 201), percent(800, 200), percent(5, 0), percent(0, 5)], [79, 80, 100, 0]);
        assert_eq!([percent(0, 0), percent(u64::MAX, u64::MAX)], [100, 50]);
    }
}
