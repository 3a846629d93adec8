//! Volume groups in memory for the tests of the rules.

use std::sync::Arc;

use crate::lvm::metadata::{Lv, Pv, Segment, SegmentKind, Stripe, Vg};
use crate::types::{Bytes, Extents, LvName, LvUuid, Placement, Pool, PvUuid, Sectors, ThinRules, VgName, VgUuid};

use super::inventory::{DriverIdentity, Inventory};

/// Extents on the one PV of a test group.
pub(super) const PV_EXTENTS: u64 = 1000;
/// The extent size of a test group.
pub(super) const EXTENT: Bytes = Bytes(4 << 20);

/// A group of one PV that holds a thin pool `pool` of 100 extents.
pub(super) struct Group {
    vg: Vg,
    next: u64,
}

/// What [`Group::with`] adds.
pub(super) struct NewLv {
    name: &'static str,
    extents: u64,
    tags: Vec<String>,
    thin: bool,
}

pub(super) fn lv(name: &'static str, extents: u64, tags: &[&str]) -> NewLv {
    NewLv { name, extents, tags: tags.iter().map(|&tag| tag.to_owned()).collect(), thin: false }
}

pub(super) fn thin(name: &'static str, extents: u64, tags: &[&str]) -> NewLv {
    NewLv { thin: true, ..lv(name, extents, tags) }
}

pub(super) const DRIVER: &str = "lvm-csi.dev";

pub(super) fn identity() -> DriverIdentity {
    DriverIdentity { driver: DRIVER.to_owned(), is_default: true, ..DriverIdentity::default() }
}

pub(super) fn vg_uuid() -> VgUuid {
    VgUuid::from_compact(&"v".repeat(32)).unwrap()
}

pub(super) fn linear_pool() -> Pool {
    Pool {
        name: "linear".into(),
        vg: VgName::new("vg0").unwrap(),
        placement: Placement::LINEAR,
        rules: ThinRules::default(),
        default_size: Bytes::GIB,
        reserved: Extents(0),
    }
}

pub(super) fn thin_pool(overprovision_percent: u32) -> Pool {
    let pool = LvName::new("pool").unwrap();
    Pool {
        name: "thin".into(),
        placement: Placement::Thin { pool },
        rules: ThinRules { overprovision_percent, max_snapshots: 3, full_percent: 95 },
        ..linear_pool()
    }
}

impl Group {
    pub(super) fn new() -> Self {
        let vg = Vg {
            uuid: vg_uuid(),
            name: VgName::new("vg0").unwrap(),
            seqno: 1,
            extent_size: Sectors(EXTENT.0 / 512),
            writable: true,
            exported: false,
            autoactivation: true,
            partial: false,
            system_id: None,
            lock_type: None,
            tags: Vec::new(),
            max_lv: 0,
            pvs: vec![Pv {
                uuid: PvUuid::from_compact(&"p".repeat(32)).unwrap(),
                key: "pv0".into(),
                device: Some("/dev/sda".into()),
                missing: false,
                allocatable: true,
                dev_size: Sectors(0),
                pe_start: Sectors(2048),
                pe_count: Extents(PV_EXTENTS),
            }],
            lvs: Vec::new(),
            metadata_bytes: 4000,
        };
        let mut group = Self { vg, next: 0 };
        group.push("pool_tdata", false, Vec::new(), 100, None);
        let pool = SegmentKind::ThinPool {
            data: "pool_tdata".into(),
            metadata: "pool_tmeta".into(),
            transaction_id: 1,
            chunk_size: Sectors(128),
            zero_new_blocks: true,
            discards: "passdown".into(),
            pending: 0,
        };
        group.push("pool", true, Vec::new(), 100, Some(pool));
        group
    }

    pub(super) fn with(mut self, new: NewLv) -> Self {
        let kind = new.thin.then(|| SegmentKind::Thin {
            pool: "pool".into(),
            device_id: self.next,
            transaction_id: 1,
            origin: None,
            external_origin: None,
            merging: false,
        });
        self.push(new.name, true, new.tags, new.extents, kind);
        self
    }

    /// Changes the group itself.
    pub(super) fn but(mut self, change: impl FnOnce(&mut Vg)) -> Self {
        change(&mut self.vg);
        self
    }

    pub(super) fn inventory(self) -> Inventory {
        Inventory::from(Arc::new(self.vg), Bytes(1 << 20), &identity())
    }

    fn push(&mut self, name: &str, visible: bool, tags: Vec<String>, extents: u64, kind: Option<SegmentKind>) {
        let used: u64 = PV_EXTENTS - self.vg.free_extents().0;
        let linear = || SegmentKind::Striped {
            stripes: vec![Stripe::Pv { key: "pv0".into(), start: Extents(used) }],
            stripe_size: Sectors(0),
        };
        self.next += 1;
        self.vg.lvs.push(Lv {
            uuid: LvUuid::from_compact(&format!("{:0>32}", self.next)).unwrap(),
            name: name.into(),
            visible,
            writable: true,
            activation_skip: false,
            autoactivation: false,
            error_when_full: false,
            tags,
            created: Some(1_700_000_000),
            segments: vec![Segment { start: Extents(0), count: Extents(extents), kind: kind.unwrap_or_else(linear) }],
        });
    }
}
