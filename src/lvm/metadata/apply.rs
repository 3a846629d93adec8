//! Predicts the metadata after a command: the base of a simulated LVM. Pure.
//!
//! Follows the observed behaviour of LVM 2.03.31, down to the number of commits. Placement is an approximation. The model does
//! not include what is active in the kernel: a caller that simulates LVM must first refuse what activation forbids.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::lvm::command::{Command, PoolShape};
use crate::types::{Bytes, Extents, LvName, LvUuid, Sectors, Tag, VgUuid};

use super::model::{Lv, Segment, SegmentKind, Stripe, Vg};

/// Why LVM would refuse a command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The command is for another group.
    #[error("volume group {0} not found")]
    OtherVg(String),
    #[error("volume group {vg} cannot be changed while it is {state}")]
    Unchangeable {
        vg: String,
        /// "exported", "read-only" or "missing a PV".
        state: &'static str,
    },
    #[error("failed to find logical volume {0}")]
    Missing(String),
    #[error("logical volume {0} exists already")]
    Exists(String),
    /// The command does not apply to this kind of LV.
    #[error("logical volume {lv} is not {needed}")]
    Kind {
        lv: String,
        /// The kind that the command needs.
        needed: &'static str,
    },
    #[error("insufficient free space ({free}): {needed} required")]
    NoSpace { needed: Extents, free: Extents },
    /// A new LV must not be empty, and an extension must enlarge it.
    #[error("the new size of {lv} ({new}) is not larger than {old}")]
    Size {
        lv: String,
        old: Extents,
        /// The requested size.
        new: Extents,
    },
    /// The setting is already as requested, which LVM treats as an error.
    #[error("logical volume {0} is so already")]
    Unchanged(String),
    #[error("volume group {vg} may hold {max} logical volumes only")]
    TooMany { vg: String, max: u64 },
}

/// Returns the group after a command, or why LVM would refuse it.
///
/// # Errors
/// See [`ApplyError`]. A removal refuses nothing: targets that the guard protects stay, and names that do not exist are skipped
/// (LVM then exits with 5, but removes the others).
pub fn apply(vg: &Vg, command: &Command) -> Result<Vg, ApplyError> {
    if command.vg() != &vg.name {
        return Err(ApplyError::OtherVg(command.vg().to_string()));
    }
    let mut after = vg.clone();
    match command {
        Command::CreateLinear { lv, extents, tags, .. } => after.create_linear(lv, *extents, tags)?,
        Command::CreateThin { pool, lv, size, tags, .. } => after.create_thin(pool, lv, *size, tags)?,
        Command::SnapshotThin { origin, lv, tags, read_only, .. } => after.snapshot_thin(origin, lv, tags, *read_only)?,
        Command::CreateThinPool { lv, size, shape, tags, .. } => after.create_pool(lv, *size, *shape, tags)?,
        Command::ExtendMetadata { lv, size, .. } => after.extend_metadata(lv, *size)?,
        Command::ErrorWhenFull { lv, error, .. } => after.error_when_full(lv, *error)?,
        Command::Extend { lv, extents, .. } => after.extend(lv, *extents)?,
        Command::Refresh { lv, .. } => {
            after.usable()?;
            after.index(lv)?;
        }
        Command::Activate { lvs, .. } | Command::Deactivate { lvs, .. } => {
            after.usable()?;
            for lv in lvs {
                after.index(lv)?;
            }
        }
        Command::Retag { lvs, remove, add, .. } => {
            for lv in lvs {
                after.retag(lv, remove, add)?;
            }
        }
        Command::Adopt { lv, tags, .. } => after.retag(lv, &[], tags)?,
        Command::RetagGroup { uuid, remove, add, .. } => after.retag_group(uuid, remove, add)?,
        Command::Remove { targets, .. } => after.remove(targets)?,
    }
    Ok(after)
}

impl Vg {
    /// Checks that LVM may use the group at all.
    fn usable(&self) -> Result<(), ApplyError> {
        let state = if self.exported {
            "exported"
        } else if !self.writable {
            "read-only"
        } else {
            return Ok(());
        };
        Err(ApplyError::Unchangeable { vg: self.name.to_string(), state })
    }

    /// Checks that LVs may be created or grow. With a PV missing LVM refuses that, but not tag changes.
    fn whole(&self) -> Result<(), ApplyError> {
        self.usable()?;
        if self.partial { Err(ApplyError::Unchangeable { vg: self.name.to_string(), state: "missing a PV" }) } else { Ok(()) }
    }

    fn index(&self, lv: &LvName) -> Result<usize, ApplyError> {
        self.lvs
            .iter()
            .position(|other| other.name == lv.as_str())
            .ok_or_else(|| ApplyError::Missing(format!("{}/{lv}", self.name)))
    }

    fn free_name(&self, lv: &LvName) -> Result<(), ApplyError> {
        self.whole()?;
        if self.lv(lv.as_str()).is_some() {
            return Err(ApplyError::Exists(format!("{}/{lv}", self.name)));
        }
        let visible = self.lvs.iter().filter(|lv| lv.visible).count() as u64;
        if self.max_lv != 0 && visible >= self.max_lv {
            return Err(ApplyError::TooMany { vg: self.name.to_string(), max: self.max_lv });
        }
        Ok(())
    }

    /// A new LV. Its UUID derives from name and seqno, so that equal runs give equal groups.
    fn new_lv(&self, name: &str, visible: bool, tags: &[Tag], segments: Vec<Segment>) -> Lv {
        let mut kept = Vec::new();
        add_tags(&mut kept, tags);
        Lv {
            uuid: made_up_uuid(name, self.seqno),
            name: name.to_owned(),
            visible,
            writable: true,
            activation_skip: false,
            autoactivation: true,
            error_when_full: false,
            tags: kept,
            created: None,
            segments,
        }
    }

    fn create_linear(&mut self, lv: &LvName, extents: Extents, tags: &[Tag]) -> Result<(), ApplyError> {
        self.free_name(lv)?;
        if extents.0 == 0 {
            return Err(ApplyError::Size { lv: lv.to_string(), old: extents, new: extents });
        }
        let segments = self.allocate(extents, &[])?;
        self.lvs.push(Lv { autoactivation: false, ..self.new_lv(lv.as_str(), true, tags, segments) });
        self.seqno += 1;
        Ok(())
    }

    fn create_thin(&mut self, pool: &LvName, lv: &LvName, size: Bytes, tags: &[Tag]) -> Result<(), ApplyError> {
        self.free_name(lv)?;
        let count = size.to_extents_up(self.extent_bytes());
        if count.0 == 0 {
            return Err(ApplyError::Size { lv: lv.to_string(), old: count, new: count });
        }
        let (device_id, transaction_id) = self.next_thin(pool.as_str())?;
        let kind = SegmentKind::Thin {
            pool: pool.to_string(),
            device_id,
            transaction_id,
            origin: None,
            external_origin: None,
            merging: false,
        };
        let made = self.new_lv(lv.as_str(), true, tags, vec![Segment { start: Extents(0), count, kind }]);
        self.lvs.push(Lv { activation_skip: true, ..made });
        // One commit with the message to the kernel, one once it is delivered.
        self.seqno += 2;
        Ok(())
    }

    fn snapshot_thin(&mut self, origin: &LvName, lv: &LvName, tags: &[Tag], read_only: bool) -> Result<(), ApplyError> {
        self.free_name(lv)?;
        let source = &self.lvs[self.index(origin)?];
        let count = source.extents();
        let Some(SegmentKind::Thin { pool, external_origin, .. }) = source.segments.first().map(|s| s.kind.clone()) else {
            return Err(ApplyError::Kind { lv: origin.to_string(), needed: "a thin volume" });
        };
        let (device_id, transaction_id) = self.next_thin(&pool)?;
        let origin = Some(origin.to_string());
        let kind = SegmentKind::Thin { pool, device_id, transaction_id, origin, external_origin, merging: false };
        let mut made = self.new_lv(lv.as_str(), true, tags, vec![Segment { start: Extents(0), count, kind }]);
        made.writable = !read_only;
        made.activation_skip = true;
        self.lvs.push(made);
        self.seqno += 2;
        Ok(())
    }

    /// Takes the device id and the transaction for a pool's next thin volume.
    fn next_thin(&mut self, name: &str) -> Result<(u64, u64), ApplyError> {
        let highest = self.thins(name).filter_map(|lv| match lv.segments.first()?.kind {
            SegmentKind::Thin { device_id, .. } => Some(device_id),
            _ => None,
        });
        let device_id = highest.max().unwrap_or(0) + 1;
        Ok((device_id, self.next_transaction(name)?))
    }

    /// Takes the pool's transaction; the pool moves on to the next.
    fn next_transaction(&mut self, name: &str) -> Result<u64, ApplyError> {
        let pool = self.lvs.iter_mut().find(|lv| lv.name == name);
        let pool = pool.ok_or_else(|| ApplyError::Missing(format!("{}/{name}", self.name)))?;
        match pool.segments.first_mut().map(|segment| &mut segment.kind) {
            Some(SegmentKind::ThinPool { transaction_id, .. }) => {
                *transaction_id += 1;
                Ok(*transaction_id - 1)
            }
            _ => Err(ApplyError::Kind { lv: name.to_owned(), needed: "a thin pool" }),
        }
    }

    fn create_pool(&mut self, lv: &LvName, size: Bytes, shape: PoolShape, tags: &[Tag]) -> Result<(), ApplyError> {
        self.free_name(lv)?;
        let extent = self.extent_bytes();
        let (count, metadata_count) = (size.to_extents_up(extent), shape.metadata.to_extents_up(extent));
        if count.0 == 0 {
            return Err(ApplyError::Size { lv: lv.to_string(), old: count, new: count });
        }
        let (data, metadata) = (format!("{lv}_tdata"), format!("{lv}_tmeta"));
        let segments = self.allocate(count, &[])?;
        self.lvs.push(self.new_lv(&data, false, &[], segments));
        let segments = self.allocate(metadata_count, &[])?;
        self.lvs.push(self.new_lv(&metadata, false, &[], segments));
        // LVM commits metadata and pool one after the other.
        self.seqno += 2;
        self.spare(metadata_count)?;
        let kind = SegmentKind::ThinPool {
            data,
            metadata,
            transaction_id: 0,
            chunk_size: Sectors(shape.chunk.0 / crate::types::SECTOR),
            zero_new_blocks: true,
            discards: "passdown".to_owned(),
            pending: 0,
        };
        self.lvs.push(self.new_lv(lv.as_str(), true, tags, vec![Segment { start: Extents(0), count, kind }]));
        Ok(())
    }

    /// Keeps one spare for the metadata of all pools of the group, as large as the largest. Creating it is a commit of its own.
    fn spare(&mut self, extents: Extents) -> Result<(), ApplyError> {
        match self.lvs.iter().position(|lv| lv.name.ends_with("_pmspare")) {
            None => {
                let segments = self.allocate(extents, &[])?;
                self.lvs.push(self.new_lv("lvol0_pmspare", false, &[], segments));
                self.seqno += 1;
                Ok(())
            }
            Some(spare) if self.lvs[spare].extents() < extents => self.grow(spare, extents),
            Some(_) => Ok(()),
        }
    }

    fn extend_metadata(&mut self, lv: &LvName, size: Bytes) -> Result<(), ApplyError> {
        self.whole()?;
        let metadata = match self.lvs[self.index(lv)?].segments.first().map(|segment| &segment.kind) {
            Some(SegmentKind::ThinPool { metadata, .. }) => self.lvs.iter().position(|lv| lv.name == *metadata),
            _ => return Err(ApplyError::Kind { lv: lv.to_string(), needed: "a thin pool" }),
        };
        let metadata = metadata.ok_or_else(|| ApplyError::Missing(format!("{}/{lv}", self.name)))?;
        let (old, new) = (self.lvs[metadata].extents(), size.to_extents_up(self.extent_bytes()));
        if new == old {
            return Ok(());
        }
        if new < old {
            return Err(ApplyError::Size { lv: lv.to_string(), old, new });
        }
        self.grow(metadata, new)?;
        self.spare(new)?;
        self.seqno += 1;
        Ok(())
    }

    fn error_when_full(&mut self, lv: &LvName, error: bool) -> Result<(), ApplyError> {
        self.usable()?;
        let at = self.index(lv)?;
        if !matches!(self.lvs[at].segments.first().map(|segment| &segment.kind), Some(SegmentKind::ThinPool { .. })) {
            return Err(ApplyError::Kind { lv: lv.to_string(), needed: "a thin pool" });
        }
        if self.lvs[at].error_when_full == error {
            return Err(ApplyError::Unchanged(lv.to_string()));
        }
        self.lvs[at].error_when_full = error;
        self.seqno += 1;
        Ok(())
    }

    fn extend(&mut self, lv: &LvName, extents: Extents) -> Result<(), ApplyError> {
        self.whole()?;
        let at = self.index(lv)?;
        let old = self.lvs[at].extents();
        if extents <= old {
            return Err(ApplyError::Size { lv: lv.to_string(), old, new: extents });
        }
        match self.lvs[at].segments.first().map(|segment| segment.kind.clone()) {
            Some(SegmentKind::Thin { .. }) => self.lvs[at].segments[0].count = extents,
            Some(SegmentKind::ThinPool { data, .. }) => {
                let data = self.lvs.iter().position(|lv| lv.name == data);
                let data = data.ok_or_else(|| ApplyError::Missing(format!("{}/{lv}", self.name)))?;
                self.grow(data, extents)?;
                self.lvs[at].segments[0].count = extents;
            }
            _ if self.lvs[at].is_linear() => self.grow(at, extents)?,
            _ => return Err(ApplyError::Kind { lv: lv.to_string(), needed: "linear, thin or a thin pool" }),
        }
        self.seqno += 1;
        Ok(())
    }

    /// Extends a linear LV. Adjacent runs become one segment.
    fn grow(&mut self, at: usize, extents: Extents) -> Result<(), ApplyError> {
        let old = self.lvs[at].extents();
        let more = self.allocate(Extents(extents.0 - old.0), &self.lvs[at].segments)?;
        for mut segment in more {
            segment.start.0 += old.0;
            let segments = &mut self.lvs[at].segments;
            let follows = |last: &Segment| match (last.linear(), segment.linear()) {
                (Some((key, start)), Some((next, begin))) => key == next && start.0 + last.count.0 == begin.0,
                _ => false,
            };
            match segments.last_mut() {
                Some(last) if follows(last) => last.count.0 += segment.count.0,
                _ => segments.push(segment),
            }
        }
        Ok(())
    }

    /// Allocates linear segments for new extents, starting at 0: directly behind the last of `behind` if all fit there, else in
    /// the first free run that holds all, else in runs in order.
    fn allocate(&self, extents: Extents, behind: &[Segment]) -> Result<Vec<Segment>, ApplyError> {
        let free = self.free_extents();
        if free < extents {
            return Err(ApplyError::NoSpace { needed: extents, free });
        }
        let gaps: Vec<(&str, u64, u64)> = self
            .pvs
            .iter()
            .flat_map(|pv| self.gaps(pv).into_iter().map(|(start, count)| (pv.key.as_str(), start.0, count.0)))
            .collect();
        let next = behind.last().and_then(|last| last.linear().map(|(key, start)| (key, start.0 + last.count.0)));
        let whole = |gap: &&(&str, u64, u64)| gap.2 >= extents.0;
        let best = gaps.iter().filter(whole).find(|gap| Some((gap.0, gap.1)) == next).or_else(|| gaps.iter().find(whole));
        let mut segments = Vec::new();
        let mut done = 0;
        for (key, start, count) in best.into_iter().chain(gaps.iter().filter(|_| best.is_none())) {
            let count = (*count).min(extents.0 - done);
            if count == 0 {
                break;
            }
            let stripes = vec![Stripe::Pv { key: (*key).to_owned(), start: Extents(*start) }];
            let kind = SegmentKind::Striped { stripes, stripe_size: Sectors(0) };
            segments.push(Segment { start: Extents(done), count: Extents(count), kind });
            done += count;
        }
        Ok(segments)
    }

    fn retag(&mut self, lv: &LvName, remove: &[Tag], add: &[Tag]) -> Result<(), ApplyError> {
        self.usable()?;
        let at = self.index(lv)?;
        let tags = &mut self.lvs[at].tags;
        tags.retain(|tag| !remove.iter().any(|gone| gone.as_str() == tag) || add.iter().any(|kept| kept.as_str() == tag));
        add_tags(tags, add);
        self.lvs[at].autoactivation = false;
        // LVM commits even if nothing changes.
        self.seqno += 1;
        Ok(())
    }

    fn retag_group(&mut self, uuid: &VgUuid, remove: &[Tag], add: &[Tag]) -> Result<(), ApplyError> {
        self.usable()?;
        if self.uuid == *uuid {
            self.tags
                .retain(|tag| !remove.iter().any(|gone| gone.as_str() == tag) || add.iter().any(|kept| kept.as_str() == tag));
            add_tags(&mut self.tags, add);
            self.seqno += 1;
        }
        Ok(())
    }

    fn remove(&mut self, targets: &[(LvName, LvUuid)]) -> Result<(), ApplyError> {
        self.usable()?;
        // LVM removes them in its own order, and accepts any of the UUIDs for any of the names.
        let named = |lv: &&Lv| targets.iter().any(|(name, _)| name.as_str() == lv.name);
        let meant = |lv: &&Lv| targets.iter().any(|(_, uuid)| *uuid == lv.uuid);
        let names: Vec<String> = self.lvs.iter().filter(named).filter(meant).map(|lv| lv.name.clone()).collect();
        let mut uncommitted = false;
        for name in &names {
            // An earlier target may have taken this one along.
            let Some(lv) = self.lv(name) else { continue };
            let kind = lv.segments.first().map(|segment| segment.kind.clone());
            if matches!(kind, Some(SegmentKind::ThinPool { .. })) || !self.dependents(name).is_empty() {
                continue;
            }
            if let Some(SegmentKind::Thin { pool, .. }) = kind {
                // Two commits each, which include earlier uncommitted removals.
                self.next_transaction(&pool)?;
                self.seqno += 2;
                uncommitted = false;
            } else {
                // LVM first unlinks a COW snapshot from its origin, in a commit of its own.
                self.seqno += u64::from(self.lvs.iter().any(|lv| is_link_of(lv, name)));
                uncommitted = true;
            }
            self.forget(name);
        }
        self.seqno += u64::from(uncommitted);
        Ok(())
    }

    /// Deletes an LV, the link that makes it a COW snapshot, and the mentions in its thin snapshots.
    fn forget(&mut self, name: &str) {
        self.lvs.retain(|lv| lv.name != name && !is_link_of(lv, name));
        for segment in self.lvs.iter_mut().flat_map(|lv| &mut lv.segments) {
            if let SegmentKind::Thin { origin, .. } = &mut segment.kind {
                *origin = origin.take().filter(|of| of != name);
            }
        }
    }
}

fn is_link_of(lv: &Lv, name: &str) -> bool {
    lv.segments.iter().any(|s| matches!(&s.kind, SegmentKind::Snapshot { cow, .. } if cow == name))
}

fn add_tags(tags: &mut Vec<String>, add: &[Tag]) {
    for tag in add {
        if !tags.iter().any(|there| there == tag.as_str()) {
            tags.push(tag.to_string());
        }
    }
}

/// A UUID determined by name and seqno.
fn made_up_uuid(name: &str, seqno: u64) -> LvUuid {
    const LETTERS: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZab";
    let digest = Sha256::new().chain_update(name).chain_update(seqno.to_le_bytes()).finalize();
    let text: String = digest.iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect();
    LvUuid::from_compact(&text).expect("32 letters and digits")
}

/// The differences between two models of a group, one per line. Ignores UUIDs, times, placement, the order of LVs and tags, and
/// the size of the text.
pub fn differences(left: &Vg, right: &Vg) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |what: String, left: String, right: String| {
        if left != right {
            lines.push(format!("{what}: {left} and {right}"));
        }
    };
    for (what, of) in VG_FACTS {
        compare(format!("group {}: {what}", left.name), of(left), of(right));
    }
    let names: BTreeSet<&str> = left.lvs.iter().chain(&right.lvs).map(|lv| lv.name.as_str()).collect();
    for name in names {
        match (left.lv(name), right.lv(name)) {
            (Some(a), Some(b)) => {
                for (what, of) in LV_FACTS {
                    compare(format!("LV {name}: {what}"), of(a), of(b));
                }
            }
            (a, _) => compare(format!("LV {name}"), presence(a.is_some()), presence(a.is_none())),
        }
    }
    lines
}

fn presence(there: bool) -> String {
    if there { "there" } else { "missing" }.to_owned()
}

/// A compared property: its name, and how to display it.
type Fact<T> = (&'static str, fn(&T) -> String);

const VG_FACTS: [Fact<Vg>; 8] = [
    ("name", |vg| vg.name.to_string()),
    ("seqno", |vg| vg.seqno.to_string()),
    ("extent size", |vg| vg.extent_size.to_string()),
    ("writable, exported, partial", |vg| format!("{:?}", (vg.writable, vg.exported, vg.partial))),
    ("system id, lock type", |vg| format!("{:?}", (&vg.system_id, &vg.lock_type))),
    ("tags", |vg| sorted(&vg.tags)),
    ("PVs", |vg| {
        format!("{:?}", vg.pvs.iter().map(|pv| (&pv.key, pv.missing, pv.allocatable, pv.pe_count.0)).collect::<Vec<_>>())
    }),
    ("free", |vg| vg.free_extents().to_string()),
];

const LV_FACTS: [Fact<Lv>; 5] = [
    ("size", |lv| lv.extents().to_string()),
    ("visible, writable", |lv| format!("{:?}", (lv.visible, lv.writable))),
    ("activation skip, autoactivation, error when full", |lv| {
        format!("{:?}", (lv.activation_skip, lv.autoactivation, lv.error_when_full))
    }),
    ("tags", |lv| sorted(&lv.tags)),
    ("kind", |lv| lv.segments.first().map_or_else(String::new, kind_without_place)),
];

fn sorted(tags: &[String]) -> String {
    format!("{:?}", tags.iter().collect::<BTreeSet<_>>())
}

fn kind_without_place(segment: &Segment) -> String {
    match &segment.kind {
        SegmentKind::Striped { stripes, stripe_size } => format!("{} stripes of {stripe_size}", stripes.len()),
        SegmentKind::Other { type_name, refs, .. } => format!("{type_name} of {refs:?}"),
        kind => format!("{kind:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VgName;

    fn start() -> Vg {
        Vg::parse(include_bytes!("../../../tests/fixtures/lvm/snapshots.txt")).unwrap()
    }

    fn lv(name: &str) -> LvName {
        LvName::new(name).unwrap()
    }

    fn tags(names: &[&str]) -> Vec<Tag> {
        names.iter().map(|name| Tag::new(*name).unwrap()).collect()
    }

    fn vg() -> VgName {
        VgName::new("vg").unwrap()
    }

    fn linear(name: &str, extents: u64) -> Command {
        Command::CreateLinear { vg: vg(), lv: lv(name), extents: Extents(extents), tags: tags(&["b", "a", "b"]) }
    }

    fn extend(name: &str, extents: u64) -> Command {
        Command::Extend { vg: vg(), lv: lv(name), extents: Extents(extents) }
    }

    fn remove(of: &Vg, names: &[&str]) -> Command {
        let target = |name: &&str| (lv(name), of.lv(name).unwrap().uuid.clone());
        Command::Remove { vg: vg(), targets: names.iter().map(target).collect() }
    }

    #[test]
    fn made_up_uuids_differ() {
        let uuids: BTreeSet<String> = (0..2000).map(|n| made_up_uuid(&format!("lv{}", n % 40), n / 40).to_string()).collect();
        assert_eq!(uuids.len(), 2000);
    }

    #[test]
    fn a_linear_lv_takes_a_run_that_fits_and_grows_behind_itself() {
        let before = start();
        let after = apply(&before, &linear("new", 600)).unwrap();
        let made = after.lv("new").unwrap();
        // No free run holds 600, so it is spread.
        assert!(made.segments.len() > 1 && made.is_linear());
        assert_eq!((made.extents(), made.tags.clone()), (Extents(600), vec!["b".to_owned(), "a".into()]));
        assert_eq!(after.seqno, before.seqno + 1);
        assert_eq!(after.free_extents().0, before.free_extents().0 - 600);
        let small = apply(&before, &linear("new", 5)).unwrap();
        let grown = apply(&small, &extend("new", 9)).unwrap();
        assert_eq!(grown.lv("new").unwrap().segments.len(), 1);
        // v2 has no room behind it: a second segment.
        let grown = apply(&before, &extend("v2", 9)).unwrap();
        let map = grown.linear_map(grown.lv("v2").unwrap(), Extents(4)).unwrap();
        assert_eq!((map.len(), map[0].2), (1, Sectors(5 * 8192)));
    }

    #[test]
    fn what_lvm_refuses_is_refused() {
        let before = start();
        let refused = |command: &Command| apply(&before, command).unwrap_err();
        assert_eq!(refused(&linear("v1", 1)), ApplyError::Exists("vg/v1".into()));
        assert!(matches!(refused(&linear("x", 10_000)), ApplyError::NoSpace { .. }));
        assert!(matches!(refused(&linear("x", 0)), ApplyError::Size { .. }));
        assert!(matches!(refused(&extend("v1", 12)), ApplyError::Size { .. }));
        assert_eq!(refused(&extend("x", 12)), ApplyError::Missing("vg/x".into()));
        let thin = Command::CreateThin { vg: vg(), pool: lv("v1"), lv: lv("x"), size: Bytes(1), tags: vec![] };
        assert!(matches!(refused(&thin), ApplyError::Kind { .. }));
        let clone = Command::SnapshotThin { vg: vg(), origin: lv("v1"), lv: lv("x"), tags: vec![], read_only: false };
        assert!(matches!(refused(&clone), ApplyError::Kind { .. }));
        let other = Command::Refresh { vg: VgName::new("other").unwrap(), lv: lv("v1") };
        assert_eq!(refused(&other), ApplyError::OtherVg("other".into()));
        let limited = Vg { max_lv: 3, ..before.clone() };
        assert!(matches!(apply(&limited, &linear("x", 1)), Err(ApplyError::TooMany { max: 3, .. })));
        let exported = Vg { exported: true, ..before.clone() };
        assert!(matches!(apply(&exported, &remove(&before, &["v1"])), Err(ApplyError::Unchangeable { state: "exported", .. })));
    }

    #[test]
    fn with_a_missing_pv_only_tags_change() {
        let before = Vg::parse(include_bytes!("../../../tests/fixtures/lvm/missing-pv.txt")).unwrap();
        assert!(matches!(apply(&before, &linear("new", 1)), Err(ApplyError::Unchangeable { state: "missing a PV", .. })));
        let retag = Command::Retag { vg: vg(), lvs: vec![lv("st")], remove: tags(&["late", "x"]), add: tags(&["x"]) };
        let after = apply(&before, &retag).unwrap();
        assert_eq!((after.seqno, after.lv("st").unwrap().tags.clone()), (before.seqno + 1, vec!["x".to_owned()]));
    }

    #[test]
    fn thin_volumes_count_their_pools_transactions() {
        let before = start();
        let thin = Command::CreateThin { vg: vg(), pool: lv("pool"), lv: lv("new"), size: Bytes(1), tags: vec![] };
        let after = apply(&before, &thin).unwrap();
        let snapshot = Command::SnapshotThin { vg: vg(), origin: lv("new"), lv: lv("snap"), tags: vec![], read_only: true };
        let after = apply(&after, &snapshot).unwrap();
        let kind = |name: &str| after.lv(name).unwrap().segments[0].kind.clone();
        assert!(matches!(kind("new"), SegmentKind::Thin { device_id: 5, transaction_id: 5, origin: None, .. }));
        assert!(
            matches!(kind("snap"), SegmentKind::Thin { device_id: 6, transaction_id: 6, origin: Some(of), .. } if of == "new")
        );
        assert!(matches!(kind("pool"), SegmentKind::ThinPool { transaction_id: 7, .. }));
        assert!(!after.lv("snap").unwrap().writable && after.lv("snap").unwrap().activation_skip);
        assert_eq!(after.seqno, before.seqno + 4);
        let gone = apply(&after, &remove(&after, &["new"])).unwrap();
        assert!(matches!(gone.lv("snap").unwrap().segments[0].kind, SegmentKind::Thin { origin: None, .. }));
        assert_eq!(gone.seqno, after.seqno + 2);
    }

    #[test]
    fn a_removal_is_guarded_for_each_lv() {
        let before = start();
        // g3 has a COW snapshot and the pool has volumes; both stay.
        let after = apply(&before, &remove(&before, &["v1", "g3", "pool", "v2"])).unwrap();
        let left = |name: &str| after.lv(name).is_some();
        assert_eq!((left("v1"), left("g3"), left("pool"), left("v2")), (false, true, true, false));
        assert_eq!(after.seqno, before.seqno + 1);
        // An LV with another UUID stays; one that is already gone is skipped.
        let other = Command::Remove { vg: vg(), targets: vec![(lv("v1"), before.lv("v2").unwrap().uuid.clone())] };
        assert_eq!(apply(&before, &other).unwrap(), before);
        assert_eq!(apply(&after, &remove(&before, &["v1"])).unwrap(), after);
        // A COW snapshot takes its link along, and then its origin may go. Thin ones include what was uncommitted.
        let after = apply(&before, &remove(&before, &["g3snap"])).unwrap();
        assert!(after.lv("snapshot0").is_none());
        assert!(apply(&after, &remove(&after, &["g3"])).unwrap().lv("g3").is_none());
        let mixed = apply(&before, &remove(&before, &["c1", "v1"])).unwrap();
        assert_eq!(mixed.seqno, before.seqno + 2);
    }

    #[test]
    fn a_pool_takes_data_metadata_and_a_spare() {
        let before = start();
        let size = Bytes(64 << 20);
        let pool =
            |name: &str| Command::CreateThinPool { vg: vg(), lv: lv(name), size, shape: PoolShape::of(size), tags: vec![] };
        let after = apply(&before, &pool("other")).unwrap();
        // The group's spare is already large enough: 16 extents of data, 2 of metadata.
        assert_eq!((after.free_extents().0, after.seqno), (before.free_extents().0 - 18, before.seqno + 2));
        let grown = apply(&after, &extend("other", 20)).unwrap();
        assert_eq!(
            (grown.lv("other").unwrap().extents(), grown.lv("other_tdata").unwrap().extents()),
            (Extents(20), Extents(20))
        );
        let mut bare = before.clone();
        bare.lvs.clear();
        let after = apply(&bare, &pool("first")).unwrap();
        assert_eq!((after.free_extents().0, after.seqno), (bare.free_extents().0 - 20, bare.seqno + 3));
        assert_eq!(after.lv("lvol0_pmspare").unwrap().extents(), Extents(2));
    }

    #[test]
    fn metadata_grow_with_their_spare_and_the_mode_of_a_full_pool_changes() {
        let before = start();
        let metadata = |size| Command::ExtendMetadata { vg: vg(), lv: lv("pool"), size: Bytes(size) };
        let old = before.lv("pool_tmeta").unwrap().extents();
        let extent = before.extent_bytes();
        let after = apply(&before, &metadata((old.0 + 2) * extent.0)).unwrap();
        let size = |vg: &Vg, name: &str| vg.lv(name).unwrap().extents().0 - old.0;
        assert_eq!((size(&after, "pool_tmeta"), size(&after, "lvol0_pmspare"), after.seqno), (2, 2, before.seqno + 1));
        assert_eq!(apply(&before, &metadata(old.to_bytes(extent).0)).unwrap(), before);
        let mut bare = before.clone();
        bare.lvs.retain(|lv| lv.name != "lvol0_pmspare");
        assert_eq!(apply(&bare, &metadata((old.0 + 1) * extent.0)).unwrap().seqno, before.seqno + 2);
        let when_full = |name: &str, error| Command::ErrorWhenFull { vg: vg(), lv: lv(name), error };
        let after = apply(&before, &when_full("pool", true)).unwrap();
        assert!(after.lv("pool").unwrap().error_when_full && after.seqno == before.seqno + 1);
        assert_eq!(apply(&after, &when_full("pool", true)), Err(ApplyError::Unchanged("pool".into())));
        assert!(matches!(apply(&before, &when_full("v1", true)), Err(ApplyError::Kind { .. })));
    }

    #[test]
    fn differences_are_listed_and_placement_is_not() {
        let before = start();
        assert_eq!(differences(&before, &before), Vec::<String>::new());
        let mut moved = before.clone();
        for lv in &mut moved.lvs {
            lv.uuid = made_up_uuid(&lv.name, 7);
            lv.created = None;
        }
        moved.lvs.reverse();
        assert_eq!(differences(&before, &moved), Vec::<String>::new());
        let retag = Command::Retag { vg: vg(), lvs: vec![lv("v1")], remove: vec![], add: tags(&["more"]) };
        let other = apply(&before, &retag).unwrap();
        assert_eq!(differences(&before, &other).len(), 3);
        let other = apply(&before, &linear("new", 1)).unwrap();
        assert_eq!(differences(&before, &other).last().unwrap(), "LV new: missing and there");
    }
}
