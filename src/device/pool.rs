//! How full a thin pool is, as the kernel says (admin-guide/device-mapper/thin-provisioning.rst, "Status").

use crate::host::Kernel;
use crate::types::{LvUuid, VgUuid};

use super::dm::{find, lv_dm_uuid};
use super::error::DeviceError;

/// Which requests a pool serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// All.
    ReadWrite,
    /// Reads only: metadata is full or damaged.
    ReadOnly,
    /// Those that need no new block.
    OutOfData,
    /// None: only a repair helps.
    Failed,
}

/// The state of a thin pool. Blocks of data are chunks of the pool, blocks of metadata are 4 KiB. Of a pool that failed all
/// figures are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinPoolStatus {
    /// Which requests it serves.
    pub mode: PoolMode,
    /// Data blocks in use.
    pub used_data: u64,
    /// Data blocks in all.
    pub total_data: u64,
    /// Metadata blocks in use.
    pub used_metadata: u64,
    /// Metadata blocks in all.
    pub total_metadata: u64,
    /// Writes that need a block when there is none fail at once, instead of being held back for an extension.
    pub error_if_no_space: bool,
    /// The metadata must be checked before the pool can be activated again.
    pub needs_check: bool,
}

impl ThinPoolStatus {
    /// Reads the status line of a `thin-pool` target; `None` when it is not one.
    fn parse(line: &str) -> Option<Self> {
        if line.trim() == "Fail" {
            return Some(Self {
                mode: PoolMode::Failed,
                used_data: 0,
                total_data: 0,
                used_metadata: 0,
                total_metadata: 0,
                error_if_no_space: false,
                needs_check: true,
            });
        }
        // <transaction> <metadata> <data> <held root> <mode> <discards> <no space> [<needs check> [<low water mark>]]
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [transaction, metadata, data, _root, mode, _discards, no_space, rest @ ..] = fields.as_slice() else { return None };
        transaction.parse::<u64>().ok()?;
        let (used_metadata, total_metadata) = share(metadata)?;
        let (used_data, total_data) = share(data)?;
        let mode = match *mode {
            "rw" => PoolMode::ReadWrite,
            "ro" => PoolMode::ReadOnly,
            "out_of_data_space" => PoolMode::OutOfData,
            _ => return None,
        };
        let error_if_no_space = match *no_space {
            "error_if_no_space" => true,
            "queue_if_no_space" => false,
            _ => return None,
        };
        let needs_check = match rest.first() {
            Some(&"needs_check") => true,
            Some(&"-") | None => false,
            Some(_) => return None,
        };
        Some(Self { mode, used_data, total_data, used_metadata, total_metadata, error_if_no_space, needs_check })
    }

    /// Whole percent of the data blocks in use, rounded up; 100 for a pool without blocks.
    pub fn data_percent(&self) -> u64 {
        percent(self.used_data, self.total_data)
    }

    /// Whole percent of the metadata blocks in use, rounded up; 100 for a pool without blocks.
    pub fn metadata_percent(&self) -> u64 {
        percent(self.used_metadata, self.total_metadata)
    }
}

fn percent(used: u64, total: u64) -> u64 {
    if total == 0 { 100 } else { used.saturating_mul(100).div_ceil(total) }
}

/// `<used>/<total>`
fn share(field: &str) -> Option<(u64, u64)> {
    let (used, total) = field.split_once('/')?;
    Some((used.parse().ok()?, total.parse().ok()?))
}

/// The status of a thin pool; `None` while the pool is not active.
///
/// # Errors
/// When the kernel cannot be asked, or its answer is not that of a thin pool.
pub fn pool_status(kernel: &dyn Kernel, vg: &VgUuid, pool: &LvUuid) -> Result<Option<ThinPoolStatus>, DeviceError> {
    // The target is in a layer beneath the LV's own device.
    let Some(device) = find(kernel, &format!("{}-tpool", lv_dm_uuid(vg, pool)))? else { return Ok(None) };
    let targets = kernel.dm_status(&device.name).map_err(DeviceError::kernel("reading the status of", device.name.as_str()))?;
    let status = match targets.as_slice() {
        [target] if target.kind == "thin-pool" => ThinPoolStatus::parse(&target.rest),
        _ => None,
    };
    status.map(Some).ok_or_else(|| {
        let words = targets.iter().map(|target| format!("{} {}", target.kind, target.rest)).collect::<Vec<_>>().join("; ");
        DeviceError::Unknown { device: device.name, words }
    })
}

/// Reads the bytes as a status, for the fuzzer.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    if let Some(status) = ThinPoolStatus::parse(line) {
        let _ = (status.data_percent(), status.metadata_percent());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read() {
        let line = "3 141/1024 5/800 - rw no_discard_passdown queue_if_no_space - 1024 ";
        let status = ThinPoolStatus::parse(line).unwrap();
        assert_eq!(
            status,
            ThinPoolStatus {
                mode: PoolMode::ReadWrite,
                used_data: 5,
                total_data: 800,
                used_metadata: 141,
                total_metadata: 1024,
                error_if_no_space: false,
                needs_check: false,
            }
        );
        assert_eq!((status.data_percent(), status.metadata_percent()), (1, 14));
    }

    #[test]
    fn every_mode_is_told() {
        let mode =
            |line: &str| ThinPoolStatus::parse(line).map(|status| (status.mode, status.error_if_no_space, status.needs_check));
        let full = "0 1/9 9/9 12 out_of_data_space discard_passdown error_if_no_space - 1024";
        assert_eq!(mode(full), Some((PoolMode::OutOfData, true, false)));
        let damaged = "0 1/9 9/9 - ro ignore_discard queue_if_no_space needs_check 1024";
        assert_eq!(mode(damaged), Some((PoolMode::ReadOnly, false, true)));
        // Kernels before 4.2 end here.
        assert_eq!(mode("0 1/9 9/9 - rw discard_passdown queue_if_no_space"), Some((PoolMode::ReadWrite, false, false)));
        assert_eq!(mode("Fail"), Some((PoolMode::Failed, false, true)));
    }

    #[test]
    fn anything_else_is_no_status() {
        for line in [
            "",
            "Error",
            "0 1/9",
            "x 1/9 9/9 - rw discard_passdown queue_if_no_space - 0",
            "0 1-9 9/9 - rw discard_passdown queue_if_no_space - 0",
            "0 1/9 9/9 - xx discard_passdown queue_if_no_space - 0",
            "0 1/9 9/9 - rw discard_passdown some_if_no_space - 0",
            "0 1/9 9/9 - rw discard_passdown queue_if_no_space maybe 0",
        ] {
            assert_eq!(ThinPoolStatus::parse(line), None, "{line}");
        }
    }

    #[test]
    fn percents_round_up_and_never_divide_by_nothing() {
        assert_eq!((percent(0, 10), percent(1, 1000), percent(10, 10), percent(0, 0)), (0, 1, 100, 100));
    }
}
