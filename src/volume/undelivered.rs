//! LVs that the metadata have and their thin pool in the kernel does not.
//!
//! LVM commits a thin LV together with a message to the pool, delivers the message, and commits once more that it is delivered. If
//! lvm dies in between, or the power fails, the message remains. LVM delivers it only with its next creation or removal in that pool:
//! until then the LV cannot be activated, and a snapshot among them is not cut.

use crate::lvm::command::Command;
use crate::lvm::metadata::SegmentKind;
use crate::types::{LvName, LvUuid};

use super::inventory::{Class, Inventory};

/// An LV whose creation may not have ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undelivered {
    pub pool: LvName,
    pub pool_uuid: LvUuid,
    /// The command that removes it.
    pub remove: Command,
    /// The transaction of the pool that created it.
    made_by: u64,
}

impl Undelivered {
    /// Whether a pool whose transaction id is `transaction` does not have the LV.
    pub fn is_unknown_at(&self, transaction: u64) -> bool {
        transaction <= self.made_by
    }
}

/// This driver's LV with this name, if its pool has messages that may not be delivered.
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
    fn only_a_pending_message_makes_one_of_our_lvs_undelivered() {
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
        // Transaction 1 made it; the pool is at 2 afterwards.
        assert!(undelivered.is_unknown_at(1) && !undelivered.is_unknown_at(2));
        assert_eq!(undelivered.pool.as_str(), "pool");
        for other in ["theirs", "pvc-2", "pool", "pvc-3"] {
            assert_eq!(find(&inventory, &name(other)), None);
        }
    }
}
