//! The model of one volume group, from its metadata text.

use std::collections::BTreeSet;

use crate::types::{Bytes, Extents, LvName, LvUuid, PvUuid, Sectors, VgName, VgUuid};

use super::MetadataError;

/// The prefix of `pvmove`'s own LVs; LVM reserves it.
const MOVER: &str = "pvmove";

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vg {
    /// Stays the same when the group is renamed or its disks move.
    pub uuid: VgUuid,
    pub name: VgName,
    /// Each commit increments it.
    pub seqno: u64,
    /// The size of one extent, in sectors; never 0.
    pub extent_size: Sectors,
    /// The group may be changed; `vgchange -pr` forbids it.
    pub writable: bool,
    /// Exported with `vgexport`: LVM refuses to use it until it is imported.
    pub exported: bool,
    /// The host's LVM activates the group's LVs by itself (`vgchange -aay`).
    pub autoactivation: bool,
    /// A PV is flagged missing in the text. Does not show a disk that is away unless LVM has noticed it.
    pub partial: bool,
    /// The host that owns the group; other hosts refuse it.
    pub system_id: Option<String>,
    /// `sanlock` or `dlm` for a group shared through lvmlockd.
    pub lock_type: Option<String>,
    /// The group's tags, raw.
    pub tags: Vec<String>,
    /// The most LVs the group may hold; 0 is no limit.
    pub max_lv: u64,
    /// In the order of the text.
    pub pvs: Vec<Pv>,
    /// Including hidden LVs, in the order of the text.
    pub lvs: Vec<Lv>,
    /// The size of the text in bytes, without the zero byte at its end.
    pub metadata_bytes: usize,
}

/// A physical volume of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pv {
    pub uuid: PvUuid,
    /// The name that segments use for it: `pv0`.
    pub key: String,
    /// The device it was last on. Only a hint: devices are found by UUID.
    pub device: Option<String>,
    /// LVM once wrote while this disk was away. It stays out of use until `vgextend --restoremissing`.
    pub missing: bool,
    /// LVM may allocate new extents on it.
    pub allocatable: bool,
    /// The size of the whole device, in sectors; 0 if an old text does not say.
    pub dev_size: Sectors,
    /// The first sector of extent 0.
    pub pe_start: Sectors,
    pub pe_count: Extents,
}

/// A logical volume, hidden ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lv {
    pub uuid: LvUuid,
    /// Raw: hidden LVs have names that LVM reserves.
    pub name: String,
    /// Not one of LVM's hidden parts, according to the text. For a COW snapshot the text has the LV with its name as hidden, and
    /// the link `snapshotN` as visible.
    pub visible: bool,
    /// LVM activates it writable.
    pub writable: bool,
    /// A plain activation skips it (`-K` does not).
    pub activation_skip: bool,
    /// The host's LVM activates it by itself, at boot or when its disks appear (`vgchange -aay`), unless the group forbids it.
    pub autoactivation: bool,
    /// A full thin pool fails writes at once; without this it queues them.
    pub error_when_full: bool,
    /// Raw, in the order of the text.
    pub tags: Vec<String>,
    /// The creation time, in seconds since 1970.
    pub created: Option<u64>,
    /// By ascending start, without gaps.
    pub segments: Vec<Segment>,
}

/// A run of an LV's extents with one mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first extent within the LV.
    pub start: Extents,
    /// The number of extents.
    pub count: Extents,
    pub kind: SegmentKind,
}

/// The mapping of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Linear (one stripe) or striped.
    Striped {
        /// At least one, each with the same number of extents.
        stripes: Vec<Stripe>,
        /// In sectors; 0 for linear.
        stripe_size: Sectors,
    },
    ThinPool {
        /// The hidden LV with the data.
        data: String,
        /// The hidden LV with the mappings.
        metadata: String,
        /// Must match the one in the pool's own metadata.
        transaction_id: u64,
        /// In sectors.
        chunk_size: Sectors,
        /// New chunks are zeroed before a reader sees them.
        zero_new_blocks: bool,
        /// `passdown`, `nopassdown` or `ignore`.
        discards: String,
        /// Messages to the kernel that are committed but may be undelivered; LVM delivers them with its next change.
        pending: usize,
    },
    Thin {
        pool: String,
        device_id: u64,
        /// The pool's transaction that made it.
        transaction_id: u64,
        /// The thin volume it is a snapshot of, while that exists. The two are independent.
        origin: Option<String>,
        /// The read-only LV that supplies unwritten parts; this LV depends on it.
        external_origin: Option<String>,
        /// A merge into its origin is in progress.
        merging: bool,
    },
    /// The link between a COW snapshot and its origin; LVM keeps it in a separate LV named `snapshotN`.
    Snapshot {
        /// The LV whose old content the snapshot keeps.
        origin: String,
        /// The LV that stores the old content and has the snapshot's name.
        cow: String,
        /// In sectors.
        chunk_size: Sectors,
        /// A merge into its origin is in progress.
        merging: bool,
    },
    /// Anything else: RAID, mirror, cache, VDO, error, and types of future versions.
    Other {
        /// The type in the text, without flags after a `+`.
        type_name: String,
        /// Every LV of the group that the segment mentions.
        refs: Vec<String>,
        /// Runs of `count` extents that it occupies elsewhere (`pvmove` and old mirrors are on PVs directly).
        areas: Vec<Stripe>,
    },
}

/// A place of extents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stripe {
    Pv {
        key: String,
        /// The first extent there.
        start: Extents,
    },
    Lv {
        name: String,
        /// The first extent there.
        start: Extents,
    },
}

impl Vg {
    /// Parses a metadata text.
    ///
    /// # Errors
    /// The text has another format, or leaves the identity or size of an object in doubt. Unknown parts are ignored.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Vg, MetadataError> {
        super::parse::vg(text.as_ref())
    }

    /// The LV with this name, including hidden ones.
    pub fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    /// The thin pool of the thin volume with this name.
    pub fn thin_pool_of(&self, lv: &LvName) -> Option<&str> {
        match &self.lv(lv.as_str())?.segments.first()?.kind {
            SegmentKind::Thin { pool, .. } => Some(pool),
            _ => None,
        }
    }

    pub fn lv_by_uuid(&self, uuid: &LvUuid) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.uuid == *uuid)
    }

    /// The PV with this key.
    pub fn pv(&self, key: &str) -> Option<&Pv> {
        self.pvs.iter().find(|pv| pv.key == key)
    }

    pub fn extent_bytes(&self) -> Bytes {
        self.extent_size.to_bytes()
    }

    /// The size of an LV; for a thin volume its virtual size.
    pub fn lv_size(&self, lv: &Lv) -> Bytes {
        lv.extents().to_bytes(self.extent_bytes())
    }

    /// The unused extents of all PVs on which LVM may allocate.
    pub fn free_extents(&self) -> Extents {
        Extents(self.pvs.iter().map(|pv| self.free_extents_of(pv).0).fold(0, u64::saturating_add))
    }

    /// The unused extents of one PV; none if LVM may not allocate on it.
    pub fn free_extents_of(&self, pv: &Pv) -> Extents {
        Extents(self.gaps(pv).iter().map(|(_, count)| count.0).sum())
    }

    /// The free runs of a PV, by ascending start: first extent and length. None if LVM may not allocate on it.
    pub fn gaps(&self, pv: &Pv) -> Vec<(Extents, Extents)> {
        if pv.missing || !pv.allocatable {
            return Vec::new();
        }
        let mut used: Vec<(u64, u64)> = self.lvs.iter().flat_map(|lv| lv.runs_on(&pv.key)).collect();
        used.sort_unstable();
        let mut gaps = Vec::new();
        let mut at = 0;
        for (start, count) in used.into_iter().chain([(pv.pe_count.0, 0)]) {
            let end = start.min(pv.pe_count.0);
            if end > at {
                gaps.push((Extents(at), Extents(end - at)));
            }
            at = at.max(start.saturating_add(count));
        }
        gaps
    }

    /// The thin volumes of a pool.
    pub fn thins<'a>(&'a self, pool: &'a str) -> impl Iterator<Item = &'a Lv> {
        self.lvs.iter().filter(
            move |lv| matches!(lv.segments.first().map(|s| &s.kind), Some(SegmentKind::Thin { pool: of, .. }) if of == pool),
        )
    }

    /// The sum of the virtual sizes of a pool's thin volumes.
    pub fn provisioned(&self, pool: &str) -> Bytes {
        Bytes(self.thins(pool).map(|lv| self.lv_size(lv).0).fold(0, u64::saturating_add))
    }

    /// The names of the LVs that would lose their content with this one: its COW snapshots, and thin volumes with this as
    /// external origin. Thin snapshots do not depend on their origin.
    pub fn dependents(&self, name: &str) -> Vec<&str> {
        self.lvs
            .iter()
            .filter_map(|lv| match &lv.segments.first()?.kind {
                SegmentKind::Snapshot { origin, cow, .. } if origin == name => Some(cow.as_str()),
                SegmentKind::Thin { external_origin: Some(origin), .. } if origin == name => Some(lv.name.as_str()),
                _ => None,
            })
            .collect()
    }

    /// The LV through which `pvmove` moves extents of this one, or of its pool. During the move LVM neither resizes nor removes
    /// an LV whose extents move, and it crashes when it removes a thin volume from a pool that moves.
    pub fn mover<'a>(&'a self, lv: &'a Lv) -> Option<&'a str> {
        let kind = |lv: &'a Lv| lv.segments.first().map(|segment| &segment.kind);
        let pool = match kind(lv) {
            Some(SegmentKind::Thin { pool, .. }) => self.lv(pool)?,
            _ => lv,
        };
        let parts = match kind(pool) {
            Some(SegmentKind::ThinPool { data, metadata, .. }) => vec![self.lv(data), self.lv(metadata)],
            _ => vec![Some(pool)],
        };
        parts.into_iter().flatten().find_map(Lv::own_mover)
    }

    /// The keys of the PVs beneath an LV. For a thin volume these are the PVs of its pool's data, which alone determine its
    /// device limits.
    pub fn pvs_beneath<'a>(&'a self, lv: &'a Lv) -> BTreeSet<&'a str> {
        let (mut keys, mut visited, mut next) = (BTreeSet::new(), BTreeSet::new(), vec![lv]);
        while let Some(lv) = next.pop() {
            if !visited.insert(&lv.name) {
                continue;
            }
            for segment in &lv.segments {
                for place in segment.places().0 {
                    match place {
                        Stripe::Pv { key, .. } => drop(keys.insert(key.as_str())),
                        Stripe::Lv { name, .. } => next.extend(self.lv(name)),
                    }
                }
                match &segment.kind {
                    SegmentKind::Striped { .. } => {}
                    SegmentKind::ThinPool { data, .. } => next.extend(self.lv(data)),
                    SegmentKind::Thin { pool, external_origin, .. } => {
                        next.extend(
                            [Some(pool), external_origin.as_ref()].into_iter().flatten().filter_map(|name| self.lv(name)),
                        );
                    }
                    SegmentKind::Snapshot { origin, cow, .. } => {
                        next.extend([origin, cow].into_iter().filter_map(|name| self.lv(name)));
                    }
                    SegmentKind::Other { refs, .. } => next.extend(refs.iter().filter_map(|name| self.lv(name))),
                }
            }
        }
        keys
    }

    /// Where a linear LV's extents from `from` to its end are: PV, first sector on the device, number of sectors. `None` if the
    /// LV is not linear on PVs of this group, or has no such extent.
    pub fn linear_map(&self, lv: &Lv, from: Extents) -> Option<Vec<(PvUuid, Sectors, Sectors)>> {
        if from > lv.extents() {
            return None;
        }
        let mut map = Vec::new();
        for segment in &lv.segments {
            let (key, start) = segment.linear()?;
            let pv = self.pv(key)?;
            let skip = from.0.saturating_sub(segment.start.0).min(segment.count.0);
            if skip == segment.count.0 {
                continue;
            }
            let first = start.0.checked_add(skip)?.checked_mul(self.extent_size.0)?.checked_add(pv.pe_start.0)?;
            map.push((pv.uuid.clone(), Sectors(first), Sectors((segment.count.0 - skip).checked_mul(self.extent_size.0)?)));
        }
        Some(map)
    }
}

impl Lv {
    /// The size in extents; for a thin volume the virtual size.
    pub fn extents(&self) -> Extents {
        Extents(self.segments.last().map_or(0, |s| s.start.0.saturating_add(s.count.0)))
    }

    /// Whether every segment is one stripe on a PV.
    pub fn is_linear(&self) -> bool {
        !self.segments.is_empty() && self.segments.iter().all(|s| s.linear().is_some())
    }

    /// The LV through which `pvmove` moves this LV's own extents.
    fn own_mover(&self) -> Option<&str> {
        let places = self.segments.iter().flat_map(|segment| segment.places().0);
        let mut beneath = places.filter_map(|place| if let Stripe::Lv { name, .. } = place { Some(name.as_str()) } else { None });
        beneath.find(|name| name.starts_with(MOVER))
    }

    /// The runs of extents that this LV occupies on a PV: first extent and length.
    fn runs_on<'a>(&'a self, key: &'a str) -> impl Iterator<Item = (u64, u64)> {
        self.segments.iter().flat_map(move |segment| {
            let (places, length) = segment.places();
            places.iter().filter_map(move |place| match place {
                Stripe::Pv { key: of, start } if of == key => Some((start.0, length.0)),
                _ => None,
            })
        })
    }
}

impl Segment {
    /// The PV's key and the first extent there, for a linear segment on a PV.
    pub fn linear(&self) -> Option<(&str, Extents)> {
        match &self.kind {
            SegmentKind::Striped { stripes, .. } => match stripes.as_slice() {
                [Stripe::Pv { key, start }] => Some((key, *start)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The places that the segment occupies, and the number of extents at each.
    pub fn places(&self) -> (&[Stripe], Extents) {
        match &self.kind {
            SegmentKind::Striped { stripes, .. } => (stripes, Extents(self.count.0 / (stripes.len() as u64).max(1))),
            SegmentKind::Other { areas, .. } => (areas, self.count),
            SegmentKind::ThinPool { .. } | SegmentKind::Thin { .. } | SegmentKind::Snapshot { .. } => (&[], Extents(0)),
        }
    }
}
