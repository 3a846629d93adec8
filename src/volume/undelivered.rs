//! LVs that stand in the metadata and not in their thin pool.
//!
//! LVM commits a thin LV together with a message to the pool, delivers the message, and commits once more that it is delivered. An
//! lvm that dies in between, or a power cut, leaves the message, and LVM delivers it with its next creation or removal in that
//! pool and not before: until then the LV cannot be activated, and a snapshot among them is not cut.

use crate::lvm::command::Command;
use crate::lvm::metadata::SegmentKind;
use crate::types::{LvName, LvUuid};

use super::inventory::{Class, Inventory};

/// An LV whose creation is not known to have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// Name of its thin pool.
    pub pool: LvName,
    /// UUID of the pool.
    pub pool_uuid: LvUuid,
    /// The command that removes it.
    pub remove: Command,
    made_by: u64,
}

impl Undelivered {
    /// Whether a pool that has heard of all transactions up to this one does not know the LV.
    pub fn is_unknown_at(&self, transaction: u64) -> bool {
        transaction <= self.made_by
    }
}

/// The LV of ours with this name, where its pool has messages that are not known to be delivered.
pub fn find(inventory: &Inventory, name: &LvName) -> Option<Undelivered> {
    let vg = &inventory.vg;
    if !matches!(
        inventory.class(name.as_str())?,
        Class::Volume(_) | Class::Unfinished(_) | Class::Snapshot(_) | Class::Ephemeral(_)
    ) {
        return None;
    }
    let lv = vg.lv(name.as_str())?;
    let SegmentKind::Thin { pool, transaction_id, .. } = &lv.segments.first()?.kind else { return None };
    let pool = vg.lv(pool)?;
    match &pool.segments.first()?.kind {
        SegmentKind::ThinPool { pending, .. } if *pending > 0 => Some(Undelivered {
            pool: LvName::new(&pool.name).ok()?,
            pool_uuid: pool.uuid.clone(),
            remove: Command::Remove { vg: vg.name.clone(), targets: vec![(name.clone(), lv.uuid.clone())] },
            made_by: *transaction_id,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{Group, lv, thin};
    use super::*;
    use crate::lvm::simulated::send_message;
    use crate::types::Bytes;

    #[test]
    fn only_a_message_that_waits_makes_an_lv_of_ours_undelivered() {
        let inventory = Group::new()
            .with(thin("pvc-1", 4, &["lvm-csi=1", "csi.fs=blank"]))
            .with(thin("theirs", 4, &[]))
            .with(lv("pvc-2", 4, &["lvm-csi=1", "csi.fs=blank"]))
            .inventory();
        let name = |name: &str| LvName::new(name).unwrap();
        assert_eq!(find(&inventory, &name("pvc-1")), None);
        let mut vg = (*inventory.vg).clone();
        send_message(&mut vg);
        let inventory = Inventory::from(Arc::new(vg), Bytes(0), &super::super::testing::identity());
        let undelivered = find(&inventory, &name("pvc-1")).unwrap();
        // It was made by transaction 1, after which the pool is at 2.
        assert!(undelivered.is_unknown_at(1) && !undelivered.is_unknown_at(2));
        assert_eq!(undelivered.pool.as_str(), "pool");
        for other in ["theirs", "pvc-2", "pool", "pvc-3"] {
            assert_eq!(find(&inventory, &name(other)), None);
        }
    }
}
