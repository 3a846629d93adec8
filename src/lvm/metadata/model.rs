//! The model of one volume group, as its metadata text tells it.

use std::collections::BTreeSet;

use crate::types::{Bytes, Extents, LvName, LvUuid, PvUuid, Sectors, VgName, VgUuid};

use super::MetadataError;

/// How the names of `pvmove`'s own LVs begin; LVM gives none such to anyone else.
const MOVER: &str = "pvmove";

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vg {
    /// Its UUID, which stays when the group is renamed or its disks move.
    pub uuid: VgUuid,
    pub name: VgName,
    /// Counts the commits; every change of the metadata raises it.
    pub seqno: u64,
    /// The size of one extent, in sectors; never 0.
    pub extent_size: Sectors,
    /// The group may be changed (`vgchange -pr` takes that away).
    pub writable: bool,
    /// Exported with `vgexport`: LVM refuses to use it until it is imported.
    pub exported: bool,
    /// LVM of a host activates its LVs by itself (`vgchange -aay`).
    pub autoactivation: bool,
    /// A PV is flagged missing in the text. A disk that is away without LVM having noticed does not show here.
    pub partial: bool,
    /// The host that owns the group; others refuse it.
    pub system_id: Option<String>,
    /// `sanlock` or `dlm` for a group shared through lvmlockd.
    pub lock_type: Option<String>,
    /// Tags of the group, raw.
    pub tags: Vec<String>,
    /// The most LVs the group may hold; 0 is no limit.
    pub max_lv: u64,
    /// The PVs, in the order of the text.
    pub pvs: Vec<Pv>,
    /// All LVs, hidden ones too, in the order of the text.
    pub lvs: Vec<Lv>,
    /// The size of the text in bytes, without the zero byte at its end.
    pub metadata_bytes: usize,
}

/// A physical volume of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pv {
    pub uuid: PvUuid,
    /// How the text's segments call it: `pv0`.
    pub key: String,
    /// The device it was last seen on. A hint only: devices are found by UUID.
    pub device: Option<String>,
    /// LVM once wrote while this disk was away; it stays out of use until `vgextend --restoremissing`.
    pub missing: bool,
    /// New extents may be taken from it.
    pub allocatable: bool,
    /// Size of the whole device, in sectors; 0 where an old text does not say.
    pub dev_size: Sectors,
    /// First sector of extent 0.
    pub pe_start: Sectors,
    /// Extents on it.
    pub pe_count: Extents,
}

/// A logical volume, hidden ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lv {
    pub uuid: LvUuid,
    /// Its name, raw: LVM's hidden LVs bear names that nobody else may use.
    pub name: String,
    /// Not one of LVM's hidden parts. As the text has it: of a COW snapshot the LV that bears its name counts as hidden, and the
    /// link `snapshotN` as visible.
    pub visible: bool,
    /// It is activated writable.
    pub writable: bool,
    /// A plain activation passes it by (`-K` does not).
    pub activation_skip: bool,
    /// LVM of a host activates it by itself, at boot or when its disks come (`vgchange -aay`), unless the group says no.
    pub autoactivation: bool,
    /// A thin pool that fails writes at once when it is full, where others queue them.
    pub error_when_full: bool,
    /// Its tags, raw, in the order of the text.
    pub tags: Vec<String>,
    /// When it was created, in seconds since 1970.
    pub created: Option<u64>,
    /// Its segments, by rising start, without gaps.
    pub segments: Vec<Segment>,
}

/// A run of an LV's extents that is mapped in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The first extent of the LV it maps.
    pub start: Extents,
    /// How many.
    pub count: Extents,
    /// How they are mapped.
    pub kind: SegmentKind,
}

/// How a segment is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Linear (one stripe) or striped over several.
    Striped {
        /// What lies beneath; at least one, each with the same number of extents.
        stripes: Vec<Stripe>,
        /// The size of one stripe, in sectors; 0 for linear.
        stripe_size: Sectors,
    },
    /// A thin pool.
    ThinPool {
        /// The hidden LV that holds the data.
        data: String,
        /// The hidden LV that holds the mappings.
        metadata: String,
        /// Must equal the one in the pool's own metadata.
        transaction_id: u64,
        /// In sectors.
        chunk_size: Sectors,
        /// New chunks are zeroed before a reader sees them.
        zero_new_blocks: bool,
        /// `passdown`, `nopassdown` or `ignore`.
        discards: String,
        /// Messages to the kernel that are committed but not yet known to be delivered; LVM delivers them at its next change.
        pending: usize,
    },
    /// A thin volume.
    Thin {
        /// The pool's name.
        pool: String,
        /// The id in the pool.
        device_id: u64,
        /// The pool's transaction that made it.
        transaction_id: u64,
        /// The thin volume it is a snapshot of, while that exists; the two live independently.
        origin: Option<String>,
        /// The read-only LV that unwritten parts are read from; this one depends on it.
        external_origin: Option<String>,
        /// It is being merged into its origin.
        merging: bool,
    },
    /// The link between a COW snapshot and its origin; LVM keeps it in an LV of its own, named `snapshotN`.
    Snapshot {
        /// The LV whose old content is kept.
        origin: String,
        /// The LV that keeps it, and that bears the snapshot's name.
        cow: String,
        /// In sectors.
        chunk_size: Sectors,
        /// It is being merged into its origin.
        merging: bool,
    },
    /// Anything else: RAID, mirror, cache, VDO, error, and what future versions bring.
    Other {
        /// As the text calls it, without flags after a `+`.
        type_name: String,
        /// Every LV of the group that it mentions.
        refs: Vec<String>,
        /// Runs of `count` extents that it takes elsewhere (`pvmove` and old mirrors lie on PVs directly).
        areas: Vec<Stripe>,
    },
}

/// A place where extents lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stripe {
    /// On a PV.
    Pv {
        /// The PV's key.
        key: String,
        /// First extent there.
        start: Extents,
    },
    /// In another LV.
    Lv {
        /// The LV's name.
        name: String,
        /// First extent there.
        start: Extents,
    },
}

impl Vg {
    /// Reads a metadata text.
    ///
    /// # Errors
    /// A text of another form, or one that leaves the identity or size of an object in doubt. What is merely unknown is passed by.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Vg, MetadataError> {
        super::parse::vg(text.as_ref())
    }

    /// The LV of a name, hidden ones included.
    pub fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    /// The thin pool that the thin volume of a name lies in.
    pub fn thin_pool_of(&self, lv: &LvName) -> Option<&str> {
        match &self.lv(lv.as_str())?.segments.first()?.kind {
            SegmentKind::Thin { pool, .. } => Some(pool),
            _ => None,
        }
    }

    /// The LV of a UUID.
    pub fn lv_by_uuid(&self, uuid: &LvUuid) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.uuid == *uuid)
    }

    /// The PV that segments call by this key.
    pub fn pv(&self, key: &str) -> Option<&Pv> {
        self.pvs.iter().find(|pv| pv.key == key)
    }

    /// The size of one extent.
    pub fn extent_bytes(&self) -> Bytes {
        self.extent_size.to_bytes()
    }

    /// The size of an LV; for a thin volume its virtual size.
    pub fn lv_size(&self, lv: &Lv) -> Bytes {
        lv.extents().to_bytes(self.extent_bytes())
    }

    /// Extents that no LV holds, over all PVs that LVM would take new ones from.
    pub fn free_extents(&self) -> Extents {
        Extents(self.pvs.iter().map(|pv| self.free_extents_of(pv).0).fold(0, u64::saturating_add))
    }

    /// Extents of one PV that no LV holds; none where LVM would not take new ones from it.
    pub fn free_extents_of(&self, pv: &Pv) -> Extents {
        Extents(self.gaps(pv).iter().map(|(_, count)| count.0).sum())
    }

    /// The free runs of a PV, by rising start: first extent and length. None where LVM would not take new extents from it.
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

    /// The names of the LVs that would lose their content with this one: its COW snapshots, and thin volumes that read from it as
    /// their external origin. Thin snapshots do not depend on their origin.
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

    /// The LV through which `pvmove` moves extents of this one, or of the pool it lies in. Until that is over LVM does not change the
    /// size of an LV whose extents move nor remove it, and crashes when it removes a thin volume from a pool that moves.
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

    /// The keys of the PVs beneath an LV. For a thin volume those of its pool's data, which alone give its device their limits.
    pub fn pvs_beneath<'a>(&'a self, lv: &'a Lv) -> BTreeSet<&'a str> {
        let (mut keys, mut seen, mut next) = (BTreeSet::new(), BTreeSet::new(), vec![lv]);
        while let Some(lv) = next.pop() {
            if !seen.insert(&lv.name) {
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

    /// Where a linear LV's extents from `from` to its end lie: PV, first sector on the device, number of sectors. `None` where the
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
    /// Its size in extents; for a thin volume the virtual one.
    pub fn extents(&self) -> Extents {
        Extents(self.segments.last().map_or(0, |s| s.start.0.saturating_add(s.count.0)))
    }

    /// Every segment is one stripe on a PV.
    pub fn is_linear(&self) -> bool {
        !self.segments.is_empty() && self.segments.iter().all(|s| s.linear().is_some())
    }

    /// The LV through which `pvmove` moves extents that this one holds itself.
    fn own_mover(&self) -> Option<&str> {
        let places = self.segments.iter().flat_map(|segment| segment.places().0);
        let mut beneath = places.filter_map(|place| if let Stripe::Lv { name, .. } = place { Some(name.as_str()) } else { None });
        beneath.find(|name| name.starts_with(MOVER))
    }

    /// The runs of extents that this LV holds on a PV: first extent and length.
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

    /// The places the segment takes, and how many extents at each.
    pub fn places(&self) -> (&[Stripe], Extents) {
        match &self.kind {
            SegmentKind::Striped { stripes, .. } => (stripes, Extents(self.count.0 / (stripes.len() as u64).max(1))),
            SegmentKind::Other { areas, .. } => (areas, self.count),
            SegmentKind::ThinPool { .. } | SegmentKind::Thin { .. } | SegmentKind::Snapshot { .. } => (&[], Extents(0)),
        }
    }
}
