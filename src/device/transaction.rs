//! How far a thin pool is, in the count of changes that LVM and the kernel keep both.

use crate::host::Kernel;
use crate::types::{LvUuid, VgUuid};

use super::dm::{find, lv_dm_uuid};
use super::error::DeviceError;

/// The last transaction that a thin pool has heard of (the first word of its status); `None` while the pool is not active.
///
/// # Errors
/// When the kernel cannot be asked, or its answer is not that of a thin pool that works.
pub fn pool_transaction(kernel: &dyn Kernel, vg: &VgUuid, pool: &LvUuid) -> Result<Option<u64>, DeviceError> {
    let Some(device) = find(kernel, &format!("{}-tpool", lv_dm_uuid(vg, pool)))? else { return Ok(None) };
    let targets = kernel.dm_status(&device.name).map_err(DeviceError::kernel("reading the status of", device.name.as_str()))?;
    let words = targets.iter().map(|target| format!("{} {}", target.kind, target.rest)).collect::<Vec<_>>().join("; ");
    match words.split_whitespace().collect::<Vec<_>>()[..] {
        ["thin-pool", first, ..] if first.bytes().all(|byte| byte.is_ascii_digit()) => Ok(first.parse().ok()),
        _ => Err(DeviceError::Unknown { device: device.name, words }),
    }
}
