//! Reads how full a thin pool is from the kernel (admin-guide/device-mapper/thin-provisioning.rst, "Status").

use crate::host::Kernel;
use crate::types::{LvUuid, PoolMode, ThinPoolStatus, VgUuid};

use super::dm::{find, lv_dm_uuid};
use super::error::DeviceError;

/// Parses the status line of a `thin-pool` target; `None` if it is not one.
fn parse(line: &str) -> Option<ThinPoolStatus> {
    if line.trim() == "Fail" {
        return Some(ThinPoolStatus {
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
    Some(ThinPoolStatus { mode, used_data, total_data, used_metadata, total_metadata, error_if_no_space, needs_check })
}

/// `<used>/<total>`
fn share(field: &str) -> Option<(u64, u64)> {
    let (used, total) = field.split_once('/')?;
    Some((used.parse().ok()?, total.parse().ok()?))
}

/// The status of a thin pool; `None` if the pool is not active.
///
/// # Errors
/// The kernel's error, or its answer is not that of a thin pool.
pub fn pool_status(kernel: &dyn Kernel, vg: &VgUuid, pool: &LvUuid) -> Result<Option<ThinPoolStatus>, DeviceError> {
    read(kernel, vg, pool, parse)
}

/// The kernel's transaction of a thin pool, which LVM counts too; `None` if the pool is not active.
///
/// # Errors
/// The kernel's error, or its answer is not that of a working thin pool.
pub fn pool_transaction(kernel: &dyn Kernel, vg: &VgUuid, pool: &LvUuid) -> Result<Option<u64>, DeviceError> {
    read(kernel, vg, pool, |line| line.split_whitespace().next()?.parse().ok())
}

/// Reads the status line of an active pool.
fn read<T>(
    kernel: &dyn Kernel,
    vg: &VgUuid,
    pool: &LvUuid,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, DeviceError> {
    // The target is in a layer beneath the LV's own device.
    let Some(device) = find(kernel, &format!("{}-tpool", lv_dm_uuid(vg, pool)))? else { return Ok(None) };
    let targets = kernel.dm_status(&device.name).map_err(DeviceError::kernel("reading the status of", device.name.as_str()))?;
    let status = match targets.as_slice() {
        [target] if target.kind == "thin-pool" => parse(&target.rest),
        _ => None,
    };
    status.map(Some).ok_or_else(|| {
        let words = targets.iter().map(|target| format!("{} {}", target.kind, target.rest)).collect::<Vec<_>>().join("; ");
        DeviceError::Unknown { device: device.name, words }
    })
}

/// For the fuzzer: parses the bytes as a status.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    if let Some(status) = parse(line) {
        let _ = (status.data_percent(), status.metadata_percent());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read() {
        let line = "3 141/1024 5/800 - rw no_discard_passdown queue_if_no_space - 1024 ";
        let status = parse(line).unwrap();
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
    fn every_mode_is_parsed() {
        let mode = |line: &str| parse(line).map(|status| (status.mode, status.error_if_no_space, status.needs_check));
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
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
