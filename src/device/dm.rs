//! Finds the dm device of a logical volume, and only that one.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::host::{DmDevice, Kernel};
use crate::types::{LvName, LvUuid, VgName, VgUuid};

use super::error::DeviceError;

/// The pause between two looks at an open device.
const CLOSE_STEP: Duration = Duration::from_millis(20);

/// The UUID that LVM gives a logical volume's dm device.
pub fn lv_dm_uuid(vg: &VgUuid, lv: &LvUuid) -> String {
    format!("LVM-{}{}", vg.compact(), lv.compact())
}

/// The name that LVM gives a logical volume's dm device: both names with their hyphens doubled, and a hyphen between.
pub fn lv_dm_name(vg: &VgName, lv: &LvName) -> String {
    format!("{}-{}", lvm_name(vg.as_str()), lvm_name(lv.as_str()))
}

/// A name, or a prefix of one, as LVM writes it in dm names.
pub fn lvm_name(name: &str) -> String {
    name.replace('-', "--")
}

/// Finds the dm device with this UUID, and compares the UUID of the kernel's answer.
pub(super) fn find(kernel: &dyn Kernel, uuid: &str) -> Result<Option<DmDevice>, DeviceError> {
    match kernel.dm_find(uuid).map_err(DeviceError::kernel("looking for the dm device with UUID", uuid))? {
        Some(device) if device.uuid != uuid => Err(DeviceError::Unusable {
            device: device.name,
            reason: format!("has UUID {:?}, but the kernel found it by UUID {uuid:?}", device.uuid),
        }),
        device => Ok(device),
    }
}

/// The dm device of a logical volume; `None` if it is not active.
///
/// # Errors
/// The kernel's error.
pub fn find_lv(kernel: &dyn Kernel, vg: &VgUuid, lv: &LvUuid) -> Result<Option<DmDevice>, DeviceError> {
    find(kernel, &lv_dm_uuid(vg, lv))
}

/// As [`find_lv`], but waits until the device is closed, at most for `limit`.
///
/// # Errors
/// The kernel's error.
pub fn wait_closed(kernel: &dyn Kernel, vg: &VgUuid, lv: &LvUuid, limit: Duration) -> Result<Option<DmDevice>, DeviceError> {
    let begin = Instant::now();
    loop {
        let device = find_lv(kernel, vg, lv)?;
        if device.as_ref().is_none_or(|device| device.open_count == 0) || begin.elapsed() >= limit {
            return Ok(device);
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the kernel does not notify about closed devices; the loop looks again, up to the limit"
        )]
        std::thread::sleep(CLOSE_STEP);
    }
}

/// Finds another dm device with the name that LVM will give this logical volume, left over from a volume that had the name
/// before. Activation would fail because of it, and whoever opens `/dev/VG/LV` would get its bytes.
///
/// # Errors
/// The kernel's error.
pub fn stale_by_name(
    kernel: &dyn Kernel,
    vg_name: &VgName,
    lv_name: &LvName,
    vg: &VgUuid,
    lv: &LvUuid,
) -> Result<Option<DmDevice>, DeviceError> {
    let (name, uuid) = (lv_dm_name(vg_name, lv_name), lv_dm_uuid(vg, lv));
    let devices = kernel.dm_list("").map_err(DeviceError::kernel("listing dm devices to find", name.as_str()))?;
    Ok(devices.into_iter().find(|device| device.name == name && device.uuid != uuid))
}

/// The node of a device that serves I/O, once the node is verified to be this device.
///
/// # Errors
/// [`DeviceError::Unusable`] if the device is suspended or has no table, or if its node is missing here or another device's.
pub fn usable(kernel: &dyn Kernel, device: &DmDevice) -> Result<PathBuf, DeviceError> {
    let unusable = |reason: String| Err(DeviceError::Unusable { device: device.name.clone(), reason });
    if device.suspended {
        return unusable("is suspended, so its I/O hangs; the recovery of its volume group resumes it".to_owned());
    }
    if !device.has_live_table {
        return unusable("has no table; the recovery of its volume group removes it".to_owned());
    }
    let node = device.node();
    let numbers = kernel.device_number(&node).map_err(DeviceError::kernel("looking at", node.display().to_string()))?;
    if numbers == Some((device.major, device.minor)) {
        return Ok(node);
    }
    let path = node.display();
    match numbers {
        None => unusable(format!("has no node {path}; is the host's /dev visible here?")),
        Some((major, minor)) => unusable(format!(
            "{path} is device {major}:{minor}, but {}:{} is expected; is the host's /dev visible here?",
            device.major, device.minor
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, device};
    use super::*;

    fn ids() -> (VgUuid, LvUuid) {
        (VgUuid::from_compact(&"V".repeat(32)).unwrap(), LvUuid::from_compact(&"L".repeat(32)).unwrap())
    }

    fn names() -> (VgName, LvName) {
        (VgName::new("fast-1").unwrap(), LvName::new("pvc-a--b").unwrap())
    }

    #[test]
    fn names_and_uuids_are_those_of_lvm() {
        let (vg, lv) = ids();
        assert_eq!(lv_dm_uuid(&vg, &lv), format!("LVM-{}{}", "V".repeat(32), "L".repeat(32)));
        let (vg, lv) = names();
        assert_eq!(lv_dm_name(&vg, &lv), "fast--1-pvc--a----b");
    }

    #[test]
    fn another_device_of_the_name_is_stale_and_the_volumes_own_is_not() {
        let ((vg, lv), (vg_name, lv_name)) = (ids(), names());
        let own = device(&lv_dm_name(&vg_name, &lv_name), &lv_dm_uuid(&vg, &lv), 3);
        let kernel = Fake::with(vec![(own.clone(), vec![])]);
        assert_eq!(stale_by_name(&kernel, &vg_name, &lv_name, &vg, &lv).unwrap(), None);
        assert_eq!(find_lv(&kernel, &vg, &lv).unwrap(), Some(own.clone()));
        let other = DmDevice { uuid: "LVM-other".into(), ..own };
        let kernel = Fake::with(vec![(other.clone(), vec![])]);
        assert_eq!(stale_by_name(&kernel, &vg_name, &lv_name, &vg, &lv).unwrap(), Some(other));
        assert_eq!(find_lv(&kernel, &vg, &lv).unwrap(), None);
    }

    #[test]
    fn the_wait_for_an_open_device_has_a_limit() {
        let (vg, lv) = ids();
        let open = DmDevice { open_count: 1, ..device("d", &lv_dm_uuid(&vg, &lv), 3) };
        let limit = Duration::from_millis(30);
        let kernel = Fake::with(vec![(open.clone(), vec![])]);
        let begin = Instant::now();
        assert_eq!(wait_closed(&kernel, &vg, &lv, limit).unwrap(), Some(open.clone()));
        assert!(begin.elapsed() >= limit);
        let closed = DmDevice { open_count: 0, ..open };
        let kernel = Fake::with(vec![(closed.clone(), vec![])]);
        assert_eq!(wait_closed(&kernel, &vg, &lv, Duration::from_secs(3600)).unwrap(), Some(closed));
        assert_eq!(wait_closed(&Fake::default(), &vg, &lv, Duration::from_secs(3600)).unwrap(), None);
    }

    #[test]
    fn only_a_device_that_serves_io_at_its_own_node_is_usable() {
        let good = device("d", "u", 3);
        let kernel = Fake::with(vec![(good.clone(), vec![])]);
        assert_eq!(usable(&kernel, &good).unwrap(), PathBuf::from("/dev/dm-3"));
        for bad in [
            DmDevice { suspended: true, ..good.clone() },
            DmDevice { has_live_table: false, ..good.clone() },
            DmDevice { minor: 4, ..good.clone() },
            DmDevice { major: 252, ..good.clone() },
        ] {
            assert!(matches!(usable(&kernel, &bad), Err(DeviceError::Unusable { .. })), "{bad:?}");
        }
    }
}
