//! The holder of a published raw block volume: a linear dm device of ours over the whole LV.
//!
//! The node bind-mounted into the pod is the holder's. A bind-mounted device node does not count as an opener: if the LV's own
//! node were shown, LVM could deactivate and remove the LV, and the pod would then write to whatever gets its minor next. The
//! holder opens the LV, and only we remove the holder. It also separates the size that the pod sees from the size of the LV: the
//! pod sees an extension only after [`ensure_holder`] gets the new size.
//!
//! Its UUID is that of an LV in a group that does not exist, so the host's LVM no more looks inside it than inside LVs.
//!
//! A volume published read-only has a second holder that rejects writes: a read-only bind mount of a device node stops nobody
//! from opening it for writing.
//!
//! A holder shows no more than the tag `csi.z` says is zeroed, whatever the LV's live table has. So a raw volume grows like any other:
//! it is zeroed through its LV behind the end of the holder, and the holder grows last. That works for every layout of LVM. Root of the
//! host can read the LV's own node meanwhile and sees old bytes there, as on the PV.
//!
//! The UUID has exactly the length of an LV's. A longer one would hide the device also from the `blkid` and `mkfs` of a guest.

use crate::host::{DmAccess, DmDevice, FORMER_DM_PREFIX, HIDDEN_DM_PREFIX, Kernel, LinearMap, OWN_DM_PREFIX};
use crate::types::{Bytes, LvUuid, SECTOR, VgUuid};

use super::dm::{find, find_lv, lv_dm_uuid, usable};
use super::error::DeviceError;

fn holder_uuid(lv: &LvUuid, access: DmAccess) -> String {
    let group = match access {
        DmAccess::ReadWrite => "Rw",
        DmAccess::ReadOnly => "Ro",
    };
    format!("{:0<36}{}", format!("{OWN_DM_PREFIX}{group}"), lv.compact())
}

/// The UUID that earlier versions gave the holder; a holder that a pod uses keeps it.
fn former_uuid(lv: &LvUuid, access: DmAccess) -> String {
    format!("{FORMER_DM_PREFIX}{}{}", infix(access), lv.compact())
}

fn infix(access: DmAccess) -> &'static str {
    match access {
        DmAccess::ReadWrite => "",
        DmAccess::ReadOnly => "RO-",
    }
}

/// The name under `/dev/mapper`: what LVM would call LV `<uuid>` of VG `lvm-csi`, so that it is readable in listings.
fn holder_name(lv: &LvUuid, access: DmAccess) -> String {
    format!("{HIDDEN_DM_PREFIX}{}{}", infix(access), lv.compact())
}

/// The holders of a volume, in any state.
///
/// # Errors
/// The kernel's error.
pub fn holders(kernel: &dyn Kernel, lv: &LvUuid) -> Result<Vec<(DmAccess, DmDevice)>, DeviceError> {
    let mut holders = Vec::new();
    for access in [DmAccess::ReadWrite, DmAccess::ReadOnly] {
        holders.extend(find_holder(kernel, lv, access)?.map(|holder| (access, holder)));
    }
    Ok(holders)
}

fn find_holder(kernel: &dyn Kernel, lv: &LvUuid, access: DmAccess) -> Result<Option<DmDevice>, DeviceError> {
    Ok(match find(kernel, &holder_uuid(lv, access))? {
        Some(holder) => Some(holder),
        None => find(kernel, &former_uuid(lv, access))?,
    })
}

/// Creates the holder of an active LV, or grows it to `size` (rounded down to sectors); a larger one keeps its size. Repairs a
/// holder that was half made or half grown when the driver died.
///
/// # Errors
/// [`DeviceError::Inactive`] if the LV has no device; [`DeviceError::Unusable`] if that device cannot serve I/O, or if the holder
/// has a table that this function does not make; [`DeviceError::Kernel`], also for an LV smaller than `size`.
pub fn ensure_holder(
    kernel: &dyn Kernel,
    vg: &VgUuid,
    lv: &LvUuid,
    size: Bytes,
    access: DmAccess,
) -> Result<DmDevice, DeviceError> {
    let beneath = find_lv(kernel, vg, lv)?.ok_or_else(|| DeviceError::Inactive { uuid: lv_dm_uuid(vg, lv) })?;
    let map = LinearMap { device: usable(kernel, &beneath)?, offset: 0, length: size.0 / SECTOR };
    let name = holder_name(lv, access);
    if let Some(holder) = find_holder(kernel, lv, access)? {
        let repaired = repair(kernel, holder)?;
        if let Some(holder) = repaired {
            if shown(kernel, &holder, &beneath)? < map.length {
                load(kernel, &holder, map, access)?;
            }
            return Ok(holder);
        }
    }
    kernel.dm_create_linear(&name, &holder_uuid(lv, access), &[map], access).map_err(|error| match error.raw_os_error() {
        Some(nix::libc::EBUSY) => DeviceError::Claimed { openers: beneath.openers(), device: beneath.name },
        _ => DeviceError::kernel("making the holder", name)(error),
    })
}

/// Brings a holder into a state with only a live table and not suspended; `None` if it had to be removed.
fn repair(kernel: &dyn Kernel, mut holder: DmDevice) -> Result<Option<DmDevice>, DeviceError> {
    let failed = |action| DeviceError::kernel(action, holder.name.as_str());
    if !holder.has_live_table {
        kernel.dm_remove(&holder.name).map_err(failed("removing the half-made holder"))?;
        return Ok(None);
    }
    // Clear the inactive table first: resuming would activate it.
    if holder.has_inactive_table {
        kernel.dm_clear_inactive(&holder.name).map_err(failed("clearing the inactive table of the holder"))?;
        holder.has_inactive_table = false;
    }
    if holder.suspended {
        kernel.dm_resume(&holder.name).map_err(failed("resuming the holder"))?;
        holder.suspended = false;
    }
    Ok(Some(holder))
}

/// Shrinks the holders of an active LV to `size` (rounded down to sectors) if they are larger.
///
/// # Errors
/// As for [`ensure_holder`].
pub fn cap_holders(kernel: &dyn Kernel, beneath: &DmDevice, lv: &LvUuid, size: Bytes) -> Result<(), DeviceError> {
    for (access, holder) in holders(kernel, lv)? {
        let Some(holder) = repair(kernel, holder)? else { continue };
        let length = size.0 / SECTOR;
        if shown(kernel, &holder, beneath)? > length {
            load(kernel, &holder, LinearMap { device: usable(kernel, beneath)?, offset: 0, length }, access)?;
        }
    }
    Ok(())
}

/// How many sectors of the device beneath a holder shows.
fn shown(kernel: &dyn Kernel, holder: &DmDevice, beneath: &DmDevice) -> Result<u64, DeviceError> {
    let table = kernel.dm_table(&holder.name).map_err(DeviceError::kernel("reading the table of", holder.name.as_str()))?;
    let ours = format!("{}:{} 0", beneath.major, beneath.minor);
    match table.as_slice() {
        [line] if line.kind == "linear" && line.start == 0 && line.rest == ours => Ok(line.length),
        _ => {
            let reason = format!("is a holder, but its table is not the single line \"linear {ours}\"; nothing was changed");
            Err(DeviceError::Unusable { device: holder.name.clone(), reason })
        }
    }
}

fn load(kernel: &dyn Kernel, holder: &DmDevice, map: LinearMap, access: DmAccess) -> Result<(), DeviceError> {
    kernel
        .dm_reload_linear(&holder.name, &[map], access)
        .map_err(DeviceError::kernel("resizing the holder", holder.name.as_str()))
}

/// Removes the holder of a volume; false if there was none. Unmount every bind mount of its node first: these do not count as
/// openers.
///
/// # Errors
/// [`DeviceError::InUse`] if somebody has it open.
pub fn remove_holder(kernel: &dyn Kernel, lv: &LvUuid, access: DmAccess) -> Result<bool, DeviceError> {
    let Some(holder) = find_holder(kernel, lv, access)? else { return Ok(false) };
    if holder.open_count > 0 {
        let openers = holder.openers();
        return Err(DeviceError::InUse { device: holder.name, open_count: holder.open_count, openers });
    }
    kernel.dm_remove(&holder.name).map_err(DeviceError::kernel("removing the holder", holder.name))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, device};
    use super::*;
    use crate::host::DmTarget;

    const MIB: u64 = 1 << 20;

    fn ids() -> (VgUuid, LvUuid) {
        (VgUuid::from_compact(&"V".repeat(32)).unwrap(), LvUuid::from_compact(&"L".repeat(32)).unwrap())
    }

    fn active_lv() -> (DmDevice, Vec<DmTarget>) {
        let (vg, lv) = ids();
        (device("vg-lv", &lv_dm_uuid(&vg, &lv), 3), Vec::new())
    }

    /// A holder over `lower`, of this many sectors.
    fn holder(lower: &str, sectors: u64) -> (DmDevice, Vec<DmTarget>) {
        let (_, lv) = ids();
        let line = DmTarget { start: 0, length: sectors, kind: "linear".into(), rest: lower.into() };
        (device(&holder_name(&lv, DmAccess::ReadWrite), &holder_uuid(&lv, DmAccess::ReadWrite), 9), vec![line])
    }

    fn ensure(kernel: &Fake) -> Result<DmDevice, DeviceError> {
        let (vg, lv) = ids();
        ensure_holder(kernel, &vg, &lv, Bytes(8 * MIB), DmAccess::ReadWrite)
    }

    fn name() -> String {
        holder_name(&ids().1, DmAccess::ReadWrite)
    }

    #[test]
    fn without_the_lv_nothing_is_made() {
        let kernel = Fake::default();
        assert!(matches!(ensure(&kernel), Err(DeviceError::Inactive { .. })));
        let mut suspended = active_lv();
        suspended.0.suspended = true;
        let kernel = Fake::with(vec![suspended]);
        assert!(matches!(ensure(&kernel), Err(DeviceError::Unusable { .. })));
        assert_eq!(kernel.effects(), Vec::<String>::new());
    }

    #[test]
    fn it_is_made_once_and_grown_when_smaller() {
        let kernel = Fake::with(vec![active_lv()]);
        let made = ensure(&kernel).unwrap();
        // LVM and libblkid, including those of guests, treat a device with a longer UUID, or with a hyphen in it, as private.
        assert!(made.uuid.starts_with(OWN_DM_PREFIX) && made.uuid.len() == lv_dm_uuid(&ids().0, &ids().1).len());
        assert!(!made.uuid["LVM-".len()..].contains('-'));
        assert_eq!(kernel.effects(), [format!("create {} 16384", name())]);
        ensure(&kernel).unwrap();
        assert_eq!(kernel.effects(), Vec::<String>::new());

        let kernel = Fake::with(vec![active_lv(), holder("253:3 0", 100)]);
        ensure(&kernel).unwrap();
        assert_eq!(kernel.effects(), [format!("reload {} 16384", name())]);
        let kernel = Fake::with(vec![active_lv(), holder("253:3 0", 99_999)]);
        ensure(&kernel).unwrap();
        assert_eq!(kernel.effects(), Vec::<String>::new());
    }

    #[test]
    fn it_is_capped_with_its_lv() {
        let (_, lv) = ids();
        for (shown, effects) in [(99_999, vec![format!("reload {} 16384", name())]), (16384, vec![]), (100, vec![])] {
            let kernel = Fake::with(vec![active_lv(), holder("253:3 0", shown)]);
            cap_holders(&kernel, &active_lv().0, &lv, Bytes(8 * MIB)).unwrap();
            assert_eq!(kernel.effects(), effects);
        }
        let kernel = Fake::with(vec![active_lv(), holder("253:4 0", 99_999)]);
        assert!(matches!(cap_holders(&kernel, &active_lv().0, &lv, Bytes(8 * MIB)), Err(DeviceError::Unusable { .. })));
        assert_eq!(kernel.effects(), Vec::<String>::new());
        cap_holders(&Fake::with(vec![active_lv()]), &active_lv().0, &lv, Bytes(8 * MIB)).unwrap();
    }

    #[test]
    fn a_holder_of_an_earlier_version_is_found_and_removed() {
        let (_, lv) = ids();
        let (mut former, table) = holder("253:3 0", 16384);
        former.uuid = format!("LVMCSI-{}", lv.compact());
        let kernel = Fake::with(vec![active_lv(), (former.clone(), table)]);
        assert_eq!(ensure(&kernel).unwrap().uuid, former.uuid);
        assert_eq!(kernel.effects(), Vec::<String>::new());
        assert!(remove_holder(&kernel, &lv, DmAccess::ReadWrite).unwrap());
    }

    #[test]
    fn a_holder_over_anything_else_is_left_alone() {
        for lower in ["253:4 0", "253:3 2048"] {
            let kernel = Fake::with(vec![active_lv(), holder(lower, 16384)]);
            assert!(matches!(ensure(&kernel), Err(DeviceError::Unusable { .. })), "{lower}");
            assert_eq!(kernel.effects(), Vec::<String>::new());
        }
    }

    #[test]
    fn what_a_dead_driver_left_is_repaired() {
        let mut empty = holder("", 0);
        (empty.0.has_live_table, empty.0.has_inactive_table) = (false, true);
        let kernel = Fake::with(vec![active_lv(), empty]);
        ensure(&kernel).unwrap();
        assert_eq!(kernel.effects(), [format!("remove {}", name()), format!("create {} 16384", name())]);

        let mut stopped = holder("253:3 0", 100);
        (stopped.0.suspended, stopped.0.has_inactive_table) = (true, true);
        let kernel = Fake::with(vec![active_lv(), stopped]);
        ensure(&kernel).unwrap();
        let name = name();
        assert_eq!(kernel.effects(), [format!("clear {name}"), format!("resume {name}"), format!("reload {name} 16384")]);
    }

    #[test]
    fn it_is_removed_only_when_nobody_has_it_open() {
        let (_, lv) = ids();
        let mut open = holder("253:3 0", 16384);
        open.0.open_count = 1;
        let kernel = Fake::with(vec![open]);
        assert!(matches!(remove_holder(&kernel, &lv, DmAccess::ReadWrite), Err(DeviceError::InUse { open_count: 1, .. })));
        let kernel = Fake::with(vec![holder("253:3 0", 16384)]);
        assert!(remove_holder(&kernel, &lv, DmAccess::ReadWrite).unwrap());
        assert_eq!(kernel.effects(), [format!("remove {}", name())]);
        assert!(!remove_holder(&kernel, &lv, DmAccess::ReadWrite).unwrap());
    }
}
