//! CreateVolume: new and empty, restored from a snapshot, or cloned from a volume.

use crate::lvm::command::Command;
use crate::types::{
    AccessType, Bytes, Error, Extents, FsKind, Life, LvName, Object, Parameters, Placement, Pool, SnapshotId, VgName, VgUuid,
    VolumeId,
};

use super::inventory::{Class, Inventory, Volume};
use super::name::VolumeName;
use super::tag::{ClaimTag, Marks, Origin};
use super::{Decision, FOR_VOLUMES, PoolUse, SizeRange, Step, capacity, may_change, may_reshape, room_for_metadata};

/// Source of a new volume's content (CSI `VolumeContentSource`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Snapshot(SnapshotId),
    Volume(VolumeId),
}

impl Source {
    pub fn vg(&self) -> &VgUuid {
        match self {
            Self::Snapshot(id) => &id.vg,
            Self::Volume(id) => &id.vg,
        }
    }

    pub fn lv(&self) -> &LvName {
        match self {
            Self::Snapshot(id) => &id.lv,
            Self::Volume(id) => &id.lv,
        }
    }

    /// Its kind, for errors.
    pub fn object(&self) -> Object {
        match self {
            Self::Snapshot(_) => Object::Snapshot,
            Self::Volume(_) => Object::Volume,
        }
    }

    /// The origin that the tags of a volume made from it record.
    fn origin(&self) -> Origin {
        match self {
            Self::Snapshot(id) => Origin::Snapshot(id.lv.clone()),
            Self::Volume(id) => Origin::Volume(id.lv.clone()),
        }
    }

    fn handle(&self) -> String {
        format!("{}/{}", self.vg(), self.lv())
    }
}

/// The volume that CreateVolume requests, from the call to the decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeSpec {
    pub name: VolumeName,
    pub size: SizeRange,
    /// Requested uses; several if the claim has several access modes.
    pub access: Vec<AccessType>,
    /// Source of its content; `None` for an empty volume.
    pub source: Option<Source>,
    /// What its StorageClass says.
    pub parameters: Parameters,
    /// The claim that it is for, if the caller passes it.
    pub claim: Option<ClaimTag>,
}

impl VolumeSpec {
    /// What a new and empty volume is born as. One that is to be mounted is on its way to its filesystem, which spares the first stage a
    /// commit. Until mkfs begins it may still become anything else.
    fn born(&self) -> Life {
        let mut kinds = self.access.iter().filter_map(|access| match access {
            AccessType::Mount(kind) => Some(*kind),
            AccessType::Block => None,
        });
        let Some(first) = kinds.next() else { return Life::Blank };
        Life::Formatting(first.or_else(|| kinds.flatten().next()).unwrap_or(FsKind::DEFAULT))
    }
}

/// The content source as found in the inventory.
struct FoundSource {
    lv: LvName,
    size: Bytes,
    life: Life,
    placement: Placement,
    origin: Origin,
}

/// Decides the next step towards a volume in a pool. `unfit` is why the volume that is to be cloned cannot be copied now.
pub fn decide(
    inventory: &Inventory,
    pool: &Pool,
    spec: &VolumeSpec,
    pool_use: Option<PoolUse>,
    unfit: Option<&Error>,
) -> Decision<Volume> {
    next(inventory, pool, spec, pool_use, unfit).unwrap_or_else(Decision::Refuse)
}

fn next(
    inventory: &Inventory,
    pool: &Pool,
    spec: &VolumeSpec,
    pool_use: Option<PoolUse>,
    unfit: Option<&Error>,
) -> Result<Decision<Volume>, Error> {
    let what = || format!("volume {:?} in pool {}", spec.name.csi(), pool.name);
    let lv = spec.name.lv().clone();
    let vg = &inventory.vg;
    let extent = vg.extent_bytes();
    inventory.check_name(Object::Volume, &vg.uuid, &lv)?;
    match inventory.class(lv.as_str()) {
        None => {}
        Some(Class::Volume(volume)) => return compatible(volume, pool, spec).map(|()| Decision::AlreadyThere(volume.clone())),
        Some(Class::Unfinished(volume)) => {
            let min = volume.marks.min.unwrap_or_default();
            // If the request has another size than the first call, the rules for a finished volume of the first size apply.
            compatible(&Volume { size: min, ..volume.clone() }, pool, spec)?;
            let extents = min.to_extents_up(extent);
            let more = Extents(extents.0 - volume.size.to_extents_down(extent).0);
            may_change(vg)?;
            capacity::check(inventory, pool, pool_use, more).map_err(|short| short.of_new(&what()))?;
            return Ok(Decision::Do(Step::Lvm(Command::Extend { vg: vg.name.clone(), lv, extents })));
        }
        Some(Class::Damaged(why)) => {
            return Err(taken(spec, format!("its LV {}/{lv} is damaged: {why}", vg.name)));
        }
        Some(_) => {
            let stranger =
                || format!("LV {}/{lv} is not a volume of this driver, which leaves it alone; rename it with lvrename", vg.name);
            let reason = inventory.others(&lv).unwrap_or_else(stranger);
            return Err(taken(spec, reason));
        }
    }
    may_change(vg)?;
    may_reshape(vg, pool.placement.thin_pool().and_then(|pool| vg.lv(pool.as_str())), &what())?;
    let source = spec.source.as_ref().map(|source| find(inventory, pool, spec, source, unfit)).transpose()?;
    let default = source.as_ref().map_or(pool.default_size, |source| source.size);
    let extents = spec.size.extents(&what(), default, extent)?;
    room_for_metadata(vg, inventory.metadata_area, FOR_VOLUMES, &what())?;
    capacity::check_new(inventory, pool, pool_use, extents).map_err(|short| short.of_new(&what()))?;
    let command = match source {
        None => {
            let marks = Marks { life: spec.born(), claim: spec.claim.clone(), ..inventory.new_marks(&lv) };
            pool.create(vg, lv, extents, marks.tags())
        }
        Some(source) => {
            let size = extents.to_bytes(extent);
            if size < source.size {
                let reason = format!("its content source has {}, but the request is for {size}", source.size);
                return Err(Error::OutOfRange { what: what(), reason });
            }
            let min = (size > source.size).then_some(size);
            // A copy of what nobody used is as empty, and on its own way.
            let life = if source.life.is_unused() { spec.born() } else { source.life };
            let marks = Marks { life, from: Some(source.origin), min, claim: spec.claim.clone(), ..inventory.new_marks(&lv) };
            Command::SnapshotThin { vg: vg.name.clone(), origin: source.lv, lv, tags: marks.tags(), read_only: false }
        }
    };
    Ok(Decision::Do(Step::Lvm(command)))
}

fn taken(spec: &VolumeSpec, difference: String) -> Error {
    Error::Differs { object: Object::Volume, id: spec.name.csi().to_owned(), difference }
}

/// Refuses a volume of the same name that differs from the request (CSI: 6 ALREADY_EXISTS).
fn compatible(volume: &Volume, pool: &Pool, spec: &VolumeSpec) -> Result<(), Error> {
    if !volume.placement.is_of(&pool.placement) {
        return Err(taken(spec, format!("it is {}, and the request is for pool {}", volume.placement, pool.name)));
    }
    if !spec.size.holds(volume.size) {
        return Err(taken(spec, format!("it has {}, which is outside the requested size", volume.size)));
    }
    let is_elsewhere = spec.source.as_ref().is_some_and(|source| *source.vg() != volume.id.vg);
    if is_elsewhere || volume.marks.from != spec.source.as_ref().map(Source::origin) {
        return Err(taken(spec, "it has another content source".to_owned()));
    }
    for access in &spec.access {
        usable_as(volume.marks.life, &volume.placement, *access).map_err(|why| taken(spec, why))?;
    }
    Ok(())
}

/// Refuses a use that the content of a volume does not allow.
///
/// A filesystem hides old bytes in its free space; a block device would show them.
pub(crate) fn usable_as(life: Life, placement: &Placement, access: AccessType) -> Result<(), String> {
    match (life, access) {
        (Life::Formatted(is), AccessType::Block) if placement.needs_zeroing() => {
            Err(format!("it holds {is}, whose free space may hold old bytes, so it cannot be a block device"))
        }
        (Life::Raw, AccessType::Mount(_)) => Err("it was used as a raw block device, so the driver never formats it".to_owned()),
        (Life::Formatted(is), AccessType::Mount(Some(wanted))) if is != wanted => {
            Err(format!("it holds {is}, and the request is for {wanted}"))
        }
        _ => Ok(()),
    }
}

/// Refuses uses that one volume cannot have together.
///
/// # Errors
/// The two uses that exclude each other.
pub(crate) fn usable_together(access: &[AccessType]) -> Result<(), String> {
    if access.contains(&AccessType::Block) && access.iter().any(|access| *access != AccessType::Block) {
        return Err("the request has both block and mount; a volume is either a raw device or a filesystem".to_owned());
    }
    let mut kinds = access.iter().filter_map(|access| match access {
        AccessType::Mount(kind) => *kind,
        AccessType::Block => None,
    });
    let Some(first) = kinds.next() else { return Ok(()) };
    match kinds.find(|kind| *kind != first) {
        None => Ok(()),
        Some(second) => Err(format!("the request has both {first} and {second}; a volume has one filesystem")),
    }
}

fn find(
    inventory: &Inventory,
    pool: &Pool,
    spec: &VolumeSpec,
    source: &Source,
    unfit: Option<&Error>,
) -> Result<FoundSource, Error> {
    let (object, id) = (source.object(), source.handle());
    inventory.check_name(object, source.vg(), source.lv())?;
    inventory.check_whole(object, source.vg(), source.lv())?;
    let existing = match source {
        Source::Snapshot(id) => inventory.snapshot(id).map(|it| (it.size, it.marks.life, it.placement.clone())),
        Source::Volume(id) => inventory.volume(id).map(|it| (it.size, it.marks.life, it.placement.clone())),
    };
    let (size, life, placement) = existing.ok_or_else(|| Error::missing(object, &id))?;
    let found = FoundSource { lv: source.lv().clone(), size, life, placement, origin: source.origin() };
    if found.placement.snapshot_kind().is_none() || !found.placement.is_of(&pool.placement) {
        return Err(not_copied(source, &inventory.vg.name, &found.placement, pool));
    }
    if let (Source::Volume(_), Some(error)) = (source, unfit) {
        return Err(error.clone());
    }
    for access in &spec.access {
        usable_as(found.life, &found.placement, *access).map_err(|why| {
            Error::invalid("volume_capabilities", format!("{access:?}"), format!("the content source does not allow it: {why}"))
        })?;
    }
    Ok(found)
}

/// The error for a copy of a volume on which mkfs has begun: the copy would hold half a filesystem, with the UUID of another volume.
pub fn half_made_source(id: &VolumeId, kind: FsKind) -> Error {
    let running = format!("its first {kind} filesystem is being created; repeat the call when its first pod runs");
    Error::busy(format!("volume {id}"), running)
}

/// The error for a content source that is not in the pool of the requested volume; `vg` is the source's group.
pub fn not_copied(source: &Source, vg: &VgName, placement: &Placement, asked: &Pool) -> Error {
    let lies = placement.thin_pool().map_or_else(|| placement.to_string(), |pool| format!("in thin pool {vg}/{pool}"));
    let reason = format!(
        "the {} is {lies}, and the request is for pool {} (volume group {}); only thin pools make copies, each within itself: use a \
         StorageClass of the source's pool",
        source.object(),
        asked.name,
        asked.vg
    );
    Error::invalid("volume_content_source", source.handle(), reason)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{EXTENT, Group, linear_pool, lv, thin, thin_pool, vg_uuid};
    use super::*;
    use crate::types::FsKind;

    struct Request {
        pool: Pool,
        spec: VolumeSpec,
    }

    fn decide(inventory: &Inventory, request: &Request, pool_use: Option<PoolUse>) -> Decision<Volume> {
        super::decide(inventory, &request.pool, &request.spec, pool_use, None)
    }

    fn request(pool: Pool, extents: u64) -> Request {
        let size = SizeRange { required: Extents(extents).to_bytes(EXTENT), limit: Bytes(0) };
        let spec = VolumeSpec {
            name: VolumeName::new("pvc-1"),
            size,
            access: vec![AccessType::Mount(None)],
            source: None,
            parameters: Parameters::default(),
            claim: None,
        };
        Request { pool, spec }
    }

    fn from(snapshot: &str, pool: Pool, extents: u64) -> Request {
        let snapshot = SnapshotId { vg: vg_uuid(), lv: LvName::new(snapshot).unwrap() };
        let mut request = request(pool, extents);
        request.spec.source = Some(Source::Snapshot(snapshot));
        request
    }

    fn from_snapshot(extents: u64) -> Request {
        from("snap-1", thin_pool(1000), extents)
    }

    fn refused(decision: Decision<Volume>) -> Error {
        match decision {
            Decision::Refuse(error) => error,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn one_command_makes_a_new_volume_with_its_tags() {
        let decision = decide(&Group::new().inventory(), &request(linear_pool(), 3), None);
        let Decision::Do(Step::Lvm(Command::CreateLinear { lv, extents, tags, .. })) = decision else { panic!("{decision:?}") };
        assert_eq!((lv.as_str(), extents), ("pvc-1", Extents(3)));
        let life = Life::Formatting(FsKind::DEFAULT);
        assert_eq!(tags, Marks { life, ..Marks::blank().named(&lv).of_driver(super::super::testing::DRIVER) }.tags());
        assert!(matches!(
            decide(&Group::new().inventory(), &request(thin_pool(100), 3), None),
            Decision::Do(Step::Lvm(Command::CreateThin { .. }))
        ));
    }

    #[test]
    fn the_same_request_is_answered_and_a_different_one_is_refused() {
        let group = || Group::new().with(lv("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4"])).inventory();
        assert!(matches!(decide(&group(), &request(linear_pool(), 3), None), Decision::AlreadyThere(_)));
        assert!(matches!(decide(&group(), &request(linear_pool(), 2), None), Decision::AlreadyThere(_)));
        assert!(matches!(refused(decide(&group(), &request(linear_pool(), 4), None)), Error::Differs { .. }));
        assert!(matches!(refused(decide(&group(), &request(thin_pool(100), 3), None)), Error::Differs { .. }));
        assert!(matches!(refused(decide(&group(), &from_snapshot(3), None)), Error::Differs { .. }));
        let mut xfs = request(linear_pool(), 3);
        xfs.spec.access = vec![AccessType::Mount(Some(FsKind::Xfs))];
        assert!(matches!(refused(decide(&group(), &xfs, None)), Error::Differs { .. }));
    }

    #[test]
    fn a_formatted_linear_volume_is_no_block_device_and_a_raw_volume_is_no_filesystem() {
        let (thick, thin) = (Placement::LINEAR, Placement::in_pool(LvName::new("pool").ok()));
        let (ext4, mount) = (Life::Formatted(FsKind::Ext4), AccessType::Mount(None));
        assert!(usable_as(ext4, &thick, AccessType::Block).is_err());
        assert!(usable_as(Life::Formatting(FsKind::Xfs), &thick, AccessType::Block).is_ok(), "nobody has seen it");
        assert!(usable_as(ext4, &thin, AccessType::Block).is_ok());
        assert!(usable_as(Life::Raw, &thin, mount).is_err() && usable_as(Life::Raw, &thick, mount).is_err());
        assert!(usable_as(ext4, &thick, AccessType::Mount(Some(FsKind::Xfs))).is_err());
        for access in [mount, AccessType::Block] {
            assert!(usable_as(Life::Blank, &thick, access).is_ok());
        }
    }

    #[test]
    fn a_volume_has_one_use_and_one_filesystem() {
        let mount = |kind| AccessType::Mount(kind);
        let (ext4, xfs) = (mount(Some(FsKind::Ext4)), mount(Some(FsKind::Xfs)));
        for good in [vec![], vec![AccessType::Block; 2], vec![mount(None), ext4, ext4]] {
            assert_eq!(usable_together(&good), Ok(()));
        }
        for bad in [[AccessType::Block, mount(None)], [ext4, AccessType::Block], [ext4, xfs]] {
            assert!(usable_together(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_foreign_or_damaged_lv_is_never_taken() {
        for tags in [&[][..], &["lvm-csi=1"], &["lvm-csi=7", "csi.fs=blank"]] {
            let inventory = Group::new().with(lv("pvc-1", 3, tags)).inventory();
            assert!(matches!(refused(decide(&inventory, &request(linear_pool(), 3), None)), Error::Differs { .. }));
        }
    }

    #[test]
    fn a_larger_restore_takes_two_steps_and_continues_after_a_crash() {
        let snap = || Group::new().with(thin("snap-1", 3, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-0"]));
        let decision = decide(&snap().inventory(), &from_snapshot(5), None);
        let Decision::Do(Step::Lvm(Command::SnapshotThin { tags, read_only: false, .. })) = decision else {
            panic!("{decision:?}")
        };
        let texts: Vec<&str> = tags.iter().map(|tag| tag.as_str()).collect();
        assert_eq!(texts[..4], ["lvm-csi=1", "csi.fs=ext4", "csi.from=s:snap-1", "csi.min=20971520"]);
        assert_eq!(texts.len(), 6);
        let begun = || snap().with(thin("pvc-1", 3, &["lvm-csi=1", "csi.fs=ext4", "csi.from=s:snap-1", "csi.min=20971520"]));
        let decision = decide(&begun().inventory(), &from_snapshot(5), None);
        assert!(matches!(decision, Decision::Do(Step::Lvm(Command::Extend { extents: Extents(5), .. }))), "{decision:?}");
        assert!(matches!(refused(decide(&begun().inventory(), &from_snapshot(6), None)), Error::Differs { .. }));
        let done = snap().with(thin("pvc-1", 5, &["lvm-csi=1", "csi.fs=ext4", "csi.from=s:snap-1", "csi.min=20971520"]));
        assert!(matches!(decide(&done.inventory(), &from_snapshot(5), None), Decision::AlreadyThere(_)));
    }

    #[test]
    fn sources_are_checked_before_anything_is_made() {
        let with = |life: &str| {
            let life = format!("csi.fs={life}");
            Group::new().with(thin("snap-1", 3, &["lvm-csi=1", &life, "csi.of=pvc-0"])).inventory()
        };
        assert!(matches!(refused(decide(&with("ext4"), &from_snapshot(2), None)), Error::OutOfRange { .. }));
        assert!(matches!(refused(decide(&with("raw"), &from_snapshot(3), None)), Error::Invalid { .. }));
        let missing = from("fake", thin_pool(100), 3);
        assert!(matches!(refused(decide(&with("ext4"), &missing, None)), Error::Missing { .. }));
        let linear = from("snap-1", linear_pool(), 3);
        let error = refused(decide(&with("ext4"), &linear, None));
        let pools = ["thin pool vg0/pool", "pool linear (volume group vg0)"];
        assert!(matches!(&error, Error::Invalid { reason, .. } if pools.iter().all(|pool| reason.contains(pool))), "{error}");
        let damaged = Group::new().with(thin("snap-1", 3, &["lvm-csi=1", "csi.of=pvc-0"])).inventory();
        assert!(matches!(refused(decide(&damaged, &from_snapshot(3), None)), Error::Precondition { .. }));
    }

    #[test]
    fn a_volume_is_born_on_its_way_to_the_filesystem_that_is_asked_for() {
        let life = |access: &[AccessType]| {
            let mut request = request(linear_pool(), 3);
            request.spec.access = access.to_vec();
            let Decision::Do(Step::Lvm(Command::CreateLinear { tags, .. })) = decide(&Group::new().inventory(), &request, None)
            else {
                panic!("not made: {access:?}")
            };
            tags[1].as_str().to_owned()
        };
        let (any, xfs) = (AccessType::Mount(None), AccessType::Mount(Some(FsKind::Xfs)));
        assert_eq!(life(&[any]), "csi.fs=formatting=ext4");
        assert_eq!(life(&[AccessType::Block]), "csi.fs=blank");
        assert_eq!(life(&[any, xfs]), "csi.fs=formatting=xfs");
    }

    #[test]
    fn a_volume_is_copied_before_mkfs_begins_and_after_it_ended() {
        let copy = |life: &str, half_made: bool| {
            let life = format!("csi.fs={life}");
            let inventory = Group::new().with(thin("pvc-0", 3, &["lvm-csi=1", &life])).inventory();
            let mut request = request(thin_pool(100), 3);
            let id = VolumeId { vg: vg_uuid(), lv: LvName::new("pvc-0").unwrap() };
            let unfit = half_made.then(|| half_made_source(&id, FsKind::Ext4));
            request.spec.source = Some(Source::Volume(id));
            super::decide(&inventory, &request.pool, &request.spec, None, unfit.as_ref())
        };
        for (life, of_copy) in [
            ("formatting=ext4", "formatting=ext4"),
            ("formatting=xfs", "formatting=ext4"),
            ("blank", "formatting=ext4"),
            ("xfs", "xfs"),
        ] {
            let Decision::Do(Step::Lvm(Command::SnapshotThin { tags, .. })) = copy(life, false) else { panic!("{life}") };
            assert_eq!(tags[1].as_str(), format!("csi.fs={of_copy}"));
        }
        assert!(matches!(refused(copy("formatting=ext4", true)), Error::Busy { .. }));
        let snapshot = Group::new().with(thin("snap-1", 3, &["lvm-csi=1", "csi.fs=formatting=ext4", "csi.of=pvc-0"]));
        assert!(
            matches!(decide(&snapshot.inventory(), &from_snapshot(3), None), Decision::Do(_)),
            "it was cut before mkfs began"
        );
    }

    #[test]
    fn without_room_or_a_usable_group_nothing_is_made() {
        assert!(matches!(
            refused(decide(&Group::new().inventory(), &request(linear_pool(), 901), None)),
            Error::Exhausted { .. }
        ));
        assert!(matches!(
            refused(decide(&Group::new().inventory(), &request(thin_pool(100), 101), None)),
            Error::Exhausted { .. }
        ));
        let away = Group::new().but(|vg| vg.pvs[0].missing = true).inventory();
        assert!(matches!(refused(decide(&away, &request(linear_pool(), 1), None)), Error::Unavailable { .. }));
        let foreign = Group::new().but(|vg| vg.system_id = Some("other".into())).inventory();
        assert!(matches!(refused(decide(&foreign, &request(linear_pool(), 1), None)), Error::Unavailable { .. }));
    }
}
