//! What a volume group holds, from the driver's point of view. Every LV has exactly one [`Class`], whatever its tags say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::lvm::metadata::{Lv, SegmentKind, Vg};
use crate::types::{Bytes, Error, Life, LvName, LvUuid, Object, Placement, PvUuid, SnapshotId, VgUuid, VolumeId};

use super::tag::{self, Marks, NameSum, TagError};

/// What one LV is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// A volume of this driver.
    Volume(Volume),
    /// A snapshot of this driver.
    Snapshot(Snapshot),
    /// A thin pool; the driver uses it if the configuration names it.
    Pool,
    /// A volume of this driver that is smaller than requested: its creation was interrupted, and a repeated call continues it.
    Unfinished(Volume),
    /// An inline ephemeral volume, which belongs to one pod and is unknown to every controller.
    Ephemeral(Volume),
    /// A hidden part of another LV.
    Hidden,
    /// Somebody else's; never touched.
    Foreign,
    /// Owned by another driver, with this name. `None` if the owner is unknown, since an earlier version made the LV and this driver
    /// may not [adopt](DriverIdentity::adopts) it. Never touched.
    Others(Option<String>),
    /// This driver's by its owner tag, but its tags make no sense; never touched, and reported.
    Damaged(TagError),
    /// This driver's, but somebody renamed it, so no handle fits its new name. They may want to keep it from its user, or have
    /// mixed up two LVs. Never touched until it has its old name again.
    Renamed(NameSum),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub id: VolumeId,
    pub uuid: LvUuid,
    pub size: Bytes,
    pub placement: Placement,
    pub marks: Marks,
}

impl Volume {
    /// How much of its device, which has the size `device`, a pod may see as a block device: the part without old bytes.
    pub fn showable(&self, device: Bytes) -> Bytes {
        if self.placement.needs_zeroing() { device.min(self.zeroed()) } else { device }
    }

    /// Whether its growth must be zeroed before a pod sees it, since no filesystem hides old bytes.
    pub fn must_not_show_growth(&self) -> bool {
        self.placement.needs_zeroing() && self.marks.life == Life::Raw
    }

    /// Whether its zeroing began, or is due after a growth, and has not ended. While the volume is active, zeroing continues without a
    /// call.
    pub fn has_work(&self) -> bool {
        // One that is to hold a filesystem is zeroed by calls alone: it may be staged as that by now.
        let begun = self.marks.life == Life::Raw || (self.marks.life == Life::Blank && self.zeroed().0 > 0);
        self.placement.needs_zeroing() && begun && self.zeroed() < self.size
    }

    /// Offset up to which it holds no old bytes, at most its size. The tag may say more if somebody shrank the volume: extents that it
    /// gets when it grows again may have belonged to another LV meanwhile.
    pub fn zeroed(&self) -> Bytes {
        self.marks.zeroed.min(self.size)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: SnapshotId,
    pub uuid: LvUuid,
    /// A volume restored from it has at least this size.
    pub size: Bytes,
    pub placement: Placement,
    /// Creation time, in seconds since 1970.
    pub created: u64,
    /// Its source volume, which may be gone.
    pub of: VolumeId,
    pub marks: Marks,
}

impl Snapshot {
    /// Its LV as a volume, to find its device and to deactivate it.
    pub fn as_volume(&self) -> Volume {
        let id = VolumeId { vg: self.id.vg.clone(), lv: self.id.lv.clone() };
        Volume { id, uuid: self.uuid.clone(), size: self.size, placement: self.placement.clone(), marks: self.marks.clone() }
    }
}

/// The driver that reads a group: decides which LVs without a driver's name count as its own.
#[derive(Clone, Debug, Default)]
pub struct DriverIdentity {
    /// The CSI name of the driver.
    pub driver: String,
    /// Whether `driver` is the default name.
    pub is_default: bool,
    /// The LVs that it had attached or shown before it started.
    pub had: BTreeSet<LvUuid>,
    /// The LVs that it used while it wrote no names yet, recorded at the first start of a version that writes them.
    pub used: BTreeSet<LvUuid>,
}

impl DriverIdentity {
    /// Whether this driver owns the group's LVs without a driver's name, which earlier versions made. A driver with the default name
    /// does. One with another name must have used one of them before drivers wrote names, and no LV of the group may bear a third
    /// driver's name. Otherwise a driver new to the group would take another's LVs.
    pub fn adopts(&self, vg: &Vg) -> bool {
        // An LV with its name proves nothing about the others: it may have made that one yesterday, next to a driver that writes none.
        let proves = |lv: &Lv| self.used.contains(&lv.uuid) || (tag::is_nameless(&lv.tags) && self.had.contains(&lv.uuid));
        let used = || vg.lvs.iter().any(|lv| tag::is_marked(&lv.tags) && proves(lv));
        let alone = || vg.lvs.iter().filter_map(|lv| tag::driver_of(&lv.tags)).all(|name| name == self.driver);
        self.is_default || (used() && alone())
    }
}

/// Everything in one volume group.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// The CSI name of the driver that reads the group.
    pub driver: String,
    pub vg: Arc<Vg>,
    /// Size of the smallest metadata area in use; 0 if unknown.
    pub metadata_area: Bytes,
    /// The logical block size of each present PV; `None` if it is unknown.
    block_sizes: BTreeMap<PvUuid, Option<Bytes>>,
    classes: Vec<Class>,
}

impl Inventory {
    pub fn from(vg: Arc<Vg>, metadata_area: Bytes, identity: &DriverIdentity) -> Self {
        let adopts = identity.adopts(&vg);
        let classes = vg.lvs.iter().map(|lv| classify(&vg, lv, &identity.driver, adopts)).collect();
        Self { driver: identity.driver.clone(), vg, metadata_area, block_sizes: BTreeMap::new(), classes }
    }

    /// Adds the logical block sizes of the group's PVs.
    pub fn on_disks(self, block_sizes: BTreeMap<PvUuid, Option<Bytes>>) -> Self {
        Self { block_sizes, ..self }
    }

    /// The logical block size of a PV, `Some(None)` if it is unknown; `None` for a PV that is not present.
    pub(super) fn block_size(&self, pv: &PvUuid) -> Option<Option<Bytes>> {
        self.block_sizes.get(pv).copied()
    }

    /// The marks of a new volume that this driver makes under this name.
    pub fn new_marks(&self, lv: &LvName) -> Marks {
        Marks::blank().named(lv).of_driver(&self.driver)
    }

    /// This driver's LVs that bear no driver's name yet.
    pub fn nameless(&self) -> impl Iterator<Item = (LvName, LvUuid)> {
        let ours = self.all().filter(|(_, class)| !matches!(class, Class::Others(_) | Class::Pool));
        ours.filter(|(lv, _)| tag::is_marked(&lv.tags) && tag::is_nameless(&lv.tags))
            .filter_map(|(lv, _)| Some((LvName::new(&lv.name).ok()?, lv.uuid.clone())))
    }

    /// This driver's LVs that a boot of the host would activate; earlier versions and `vgcfgrestore` leave such LVs.
    pub fn autoactivated(&self) -> impl Iterator<Item = (LvName, LvUuid)> {
        let ours = self.all().filter(|(lv, class)| {
            self.vg.autoactivation
                && lv.autoactivation
                && !lv.activation_skip
                && matches!(class, Class::Volume(_) | Class::Ephemeral(_) | Class::Snapshot(_))
        });
        ours.filter_map(|(lv, _)| Some((LvName::new(&lv.name).ok()?, lv.uuid.clone())))
    }

    /// Why this driver does not touch the LV with this name: who owns it. `None` if no other driver owns it.
    pub fn others(&self, lv: &LvName) -> Option<String> {
        let Some(Class::Others(of)) = self.class(lv.as_str()) else { return None };
        let group = &self.vg.name;
        Some(match of {
            Some(name) => {
                format!("LV {group}/{lv} belongs to driver {name}, and this is driver {}, which leaves it alone", self.driver)
            }
            None => format!(
                "LV {group}/{lv} bears no driver's name, as in earlier versions, so another driver than {} may own it; if {} owns it, \
                 run lvchange --addtag csi.d={} {group}/{lv}",
                self.driver, self.driver, self.driver
            ),
        })
    }

    /// Every LV with its class, in the order of the metadata.
    pub fn all(&self) -> impl Iterator<Item = (&Lv, &Class)> {
        self.vg.lvs.iter().zip(&self.classes)
    }

    pub fn class(&self, name: &str) -> Option<&Class> {
        self.all().find(|(lv, _)| lv.name == name).map(|(_, class)| class)
    }

    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.classes.iter().filter_map(|class| if let Class::Volume(volume) = class { Some(volume) } else { None })
    }

    /// The placement of the LV with this name, if it is this driver's.
    pub fn placement(&self, lv: &LvName) -> Option<&Placement> {
        match self.class(lv.as_str())? {
            Class::Volume(volume) | Class::Unfinished(volume) | Class::Ephemeral(volume) => Some(&volume.placement),
            Class::Snapshot(snapshot) => Some(&snapshot.placement),
            _ => None,
        }
    }

    pub fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        self.classes.iter().filter_map(|class| if let Class::Snapshot(snapshot) = class { Some(snapshot) } else { None })
    }

    pub fn volume(&self, id: &VolumeId) -> Option<&Volume> {
        if id.vg != self.vg.uuid {
            return None;
        }
        match self.class(id.lv.as_str()) {
            Some(Class::Volume(volume)) => Some(volume),
            _ => None,
        }
    }

    /// The volume with this handle, for a call that needs it.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is none, [`Error::Precondition`] if its LV was renamed, belongs to another driver, is damaged, or is
    /// smaller than requested.
    pub fn need_volume(&self, id: &VolumeId) -> Result<&Volume, Error> {
        self.check_name(Object::Volume, &id.vg, &id.lv)?;
        self.check_owner(Object::Volume, &id.vg, &id.lv)?;
        self.check_whole(Object::Volume, &id.vg, &id.lv)?;
        self.volume(id).ok_or_else(|| Error::missing(Object::Volume, id.to_string()))
    }

    pub fn ephemeral(&self, lv: &LvName) -> Option<&Volume> {
        match self.class(lv.as_str()) {
            Some(Class::Ephemeral(volume)) => Some(volume),
            _ => None,
        }
    }

    pub fn ephemerals(&self) -> impl Iterator<Item = &Volume> {
        self.classes.iter().filter_map(|class| if let Class::Ephemeral(volume) = class { Some(volume) } else { None })
    }

    pub fn snapshot(&self, id: &SnapshotId) -> Option<&Snapshot> {
        if id.vg != self.vg.uuid {
            return None;
        }
        match self.class(id.lv.as_str()) {
            Some(Class::Snapshot(snapshot)) => Some(snapshot),
            _ => None,
        }
    }

    /// Refuses a handle whose LV belongs to another driver.
    ///
    /// # Errors
    /// [`Error::Precondition`] with the owner.
    pub fn check_owner(&self, object: Object, vg: &VgUuid, lv: &LvName) -> Result<(), Error> {
        match self.others(lv).filter(|_| *vg == self.vg.uuid) {
            Some(reason) => Err(Error::precondition(format!("{object} {vg}/{lv}"), reason)),
            None => Ok(()),
        }
    }

    /// Refuses a handle whose LV is smaller than its tags say, or has tags that make no sense.
    ///
    /// # Errors
    /// [`Error::Precondition`] with what is wrong and what to do.
    pub fn check_whole(&self, object: Object, vg: &VgUuid, lv: &LvName) -> Result<(), Error> {
        let group = &self.vg.name;
        let reason = match self.class(lv.as_str()).filter(|_| *vg == self.vg.uuid) {
            Some(Class::Damaged(why)) => format!(
                "the tags of its LV {group}/{lv} cannot be understood: {why}; the driver does not touch it until you mend them \
                 (lvs -o+lv_tags, lvchange --addtag and --deltag)"
            ),
            Some(Class::Unfinished(volume)) => {
                let min = volume.marks.min.unwrap_or_default();
                format!(
                    "its LV {group}/{lv} has {} instead of {min}: somebody made it smaller (lvreduce), or its creation has not ended. \
                     Make it larger again (lvextend -L {}b {group}/{lv}); or, if nobody needs the data behind its end, run lvchange \
                     --deltag csi.min={} {group}/{lv}",
                    volume.size, min.0, min.0
                )
            }
            _ => return Ok(()),
        };
        Err(Error::precondition(format!("{object} {vg}/{lv}"), reason))
    }

    /// Refuses a handle whose LV was renamed since it was made.
    ///
    /// # Errors
    /// [`Error::Precondition`] with both names and what to do.
    pub fn check_name(&self, object: Object, vg: &VgUuid, lv: &LvName) -> Result<(), Error> {
        let sum = NameSum::of(lv);
        let renamed = self.all().find(|(_, class)| **class == Class::Renamed(sum));
        let Some((now, _)) = renamed.filter(|_| *vg == self.vg.uuid) else { return Ok(()) };
        let (group, now) = (&self.vg.name, &now.name);
        let reason = format!(
            "its LV {lv} was renamed and is now {group}/{now}; rename it back (lvrename {group} {now} {lv}), or take it from this \
             driver for good (lvchange --deltag lvm-csi=1 {group}/{now})"
        );
        Err(Error::precondition(format!("{object} {vg}/{lv}"), reason))
    }
}

fn classify(vg: &Vg, lv: &Lv, driver: &str, adopts: bool) -> Class {
    let first = lv.segments.first().map(|segment| &segment.kind);
    if matches!(first, Some(SegmentKind::ThinPool { .. })) {
        return Class::Pool;
    }
    if tag::is_marked(&lv.tags) {
        match tag::driver_of(&lv.tags) {
            Some(name) if name != driver => return Class::Others(Some(name.to_owned())),
            None if !adopts && tag::is_nameless(&lv.tags) => return Class::Others(None),
            _ => {}
        }
    }
    let marks = match Marks::read(&lv.tags) {
        Ok(Some(marks)) => marks,
        Ok(None) if lv.visible => return Class::Foreign,
        Ok(None) => return Class::Hidden,
        Err(error) => return Class::Damaged(error),
    };
    let Ok(name) = LvName::new(&lv.name) else { return Class::Hidden };
    if let Some(sum) = marks.named.filter(|sum| *sum != NameSum::of(&name)) {
        return Class::Renamed(sum);
    }
    let Some(placement) = Placement::of(lv) else { return Class::Hidden };
    let size = vg.lv_size(lv);
    if let Some(of) = marks.of.clone() {
        return Class::Snapshot(Snapshot {
            id: SnapshotId { vg: vg.uuid.clone(), lv: name },
            uuid: lv.uuid.clone(),
            size,
            placement,
            created: lv.created.unwrap_or(1),
            of: VolumeId { vg: vg.uuid.clone(), lv: of },
            marks,
        });
    }
    let ephemeral = marks.ephemeral.is_some();
    let unfinished = marks.min.is_some_and(|min| size < min);
    let volume = Volume { id: VolumeId { vg: vg.uuid.clone(), lv: name }, uuid: lv.uuid.clone(), size, placement, marks };
    if ephemeral {
        return Class::Ephemeral(volume);
    }
    if unfinished { Class::Unfinished(volume) } else { Class::Volume(volume) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Group, lv, thin};
    use super::*;
    use crate::types::Life;

    #[test]
    fn every_lv_is_exactly_one_thing() {
        let inventory = Group::new()
            .with(lv("pvc-1", 4, &["lvm-csi=1", "csi.fs=blank"]))
            .with(lv("root", 4, &[]))
            .with(lv("odd", 4, &["lvm-csi=1"]))
            .with(thin("pvc-2", 8, &["lvm-csi=1", "csi.fs=ext4", "csi.min=16777216"]))
            .with(thin("pvc-3", 2, &["lvm-csi=1", "csi.fs=ext4", "csi.min=16777216"]))
            .with(thin("snap-1", 8, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-2"]))
            .with(lv("eh-1", 4, &["lvm-csi=1", "csi.fs=ext4", "csi.e=/pods/u"]))
            .inventory();
        let class = |name: &str| inventory.class(name).unwrap();
        assert!(matches!(class("pvc-1"), Class::Volume(v) if v.placement == Placement::LINEAR && v.marks.life == Life::Blank));
        assert_eq!(class("root"), &Class::Foreign);
        assert!(matches!(class("odd"), Class::Damaged(_)));
        assert!(
            matches!(class("pvc-2"), Class::Volume(v) if v.placement.thin_pool().is_some_and(|pool| pool.as_str() == "pool"))
        );
        assert!(matches!(class("pvc-3"), Class::Unfinished(_)));
        for (name, word) in [("odd", "csi.fs="), ("pvc-3", "lvextend -L 16777216b vg0/pvc-3")] {
            let id = VolumeId { vg: inventory.vg.uuid.clone(), lv: LvName::new(name).unwrap() };
            let error = inventory.need_volume(&id).unwrap_err();
            assert!(matches!(&error, Error::Precondition { reason, .. } if reason.contains(word)), "{error}");
        }
        assert!(matches!(class("snap-1"), Class::Snapshot(s) if s.of.lv.as_str() == "pvc-2"));
        assert_eq!(class("pool"), &Class::Pool);
        assert_eq!(class("pool_tdata"), &Class::Hidden);
        assert!(
            matches!(class("eh-1"), Class::Ephemeral(v) if v.marks.ephemeral.as_ref().is_some_and(|of| of.as_str() == "/pods/u"))
        );
        assert_eq!((inventory.volumes().count(), inventory.ephemerals().count()), (2, 1));
        assert_eq!(inventory.snapshots().count(), 1);
    }

    #[test]
    fn an_lv_belongs_to_the_driver_whose_name_it_bears() {
        let tags = |driver: &'static str| ["lvm-csi=1", "csi.fs=ext4", driver];
        let group = || {
            Group::new()
                .with(lv("pvc-1", 4, &tags("csi.d=a.example")))
                .with(lv("pvc-2", 4, &tags("csi.d=b.example")))
                .with(lv("pvc-3", 4, &["lvm-csi=1", "csi.fs=ext4"]))
                .with(lv("eh-1", 4, &["lvm-csi=1", "csi.fs=ext4", "csi.e=/pods/u", "csi.d=b.example"]))
                .with(thin("snap-1", 4, &["lvm-csi=1", "csi.fs=ext4", "csi.of=pvc-2", "csi.d=b.example"]))
        };
        let inventory_of = |driver: &str, is_default: bool| {
            let identity = DriverIdentity { driver: driver.to_owned(), is_default, ..DriverIdentity::default() };
            Inventory::from(group().inventory().vg, Bytes(1 << 20), &identity)
        };
        let names = |inventory: &Inventory| inventory.volumes().map(|volume| volume.id.lv.to_string()).collect::<Vec<_>>();
        let a = inventory_of("a.example", false);
        assert_eq!(names(&a), ["pvc-1"]);
        assert_eq!(a.class("pvc-2"), Some(&Class::Others(Some("b.example".to_owned()))));
        assert_eq!(a.class("pvc-3"), Some(&Class::Others(None)));
        assert_eq!((a.ephemerals().count(), a.snapshots().count(), a.nameless().count()), (0, 0, 0));
        // An LV without a name is the default driver's and gets its name.
        let default = inventory_of("lvm-csi.dev", true);
        assert_eq!(names(&default), ["pvc-3"]);
        assert_eq!(default.nameless().map(|(lv, _)| lv.to_string()).collect::<Vec<_>>(), ["pvc-3"]);
        for (inventory, lv, words) in [
            (&a, "pvc-2", ["driver b.example", "driver a.example"]),
            (&a, "pvc-3", ["no driver's name", "--addtag csi.d=a.example"]),
            (&default, "pvc-1", ["driver a.example", "driver lvm-csi.dev"]),
        ] {
            let id = VolumeId { vg: super::super::testing::vg_uuid(), lv: LvName::new(lv).unwrap() };
            let error = inventory.need_volume(&id).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::Precondition { .. }) && words.iter().all(|word| text.contains(word)), "{text}");
            let deleted = super::super::delete::volume(inventory, &id);
            assert!(matches!(deleted, super::super::Decision::Refuse(Error::Precondition { .. })), "{deleted:?}");
        }
    }

    #[test]
    fn a_driver_without_the_default_name_adopts_what_it_used_if_it_is_alone() {
        let vg = |tags: &[&str]| {
            Group::new().with(lv("pvc-1", 4, &["lvm-csi=1", "csi.fs=raw"])).with(lv("pvc-2", 4, tags)).inventory().vg
        };
        let used = |vg: &Vg| vg.lv("pvc-1").map(|lv| lv.uuid.clone()).into_iter().collect();
        let adopts = |tags: &[&str], had: bool, is_default: bool| {
            let vg = vg(tags);
            let had = if had { used(&vg) } else { BTreeSet::new() };
            DriverIdentity { driver: "a".to_owned(), is_default, had, ..DriverIdentity::default() }.adopts(&vg)
        };
        let (ours, theirs) = (["lvm-csi=1", "csi.fs=raw", "csi.d=a"], ["lvm-csi=1", "csi.fs=raw", "csi.d=b"]);
        assert!(!adopts(&[], false, false), "it is new here");
        assert!(adopts(&[], true, false) && adopts(&ours, true, false));
        assert!(!adopts(&theirs, true, false) && adopts(&theirs, false, true));
    }

    #[test]
    fn an_lv_that_a_driver_used_before_names_still_counts_once_it_bears_its_name() {
        let vg = |name: &str| {
            let tagged = ["lvm-csi=1", "csi.fs=raw", name];
            Group::new().with(lv("pvc-1", 4, &tagged)).with(lv("pvc-2", 4, &["lvm-csi=1", "csi.fs=raw"])).inventory().vg
        };
        let first = |vg: &Vg| vg.lv("pvc-1").map(|lv| lv.uuid.clone()).into_iter().collect::<BTreeSet<_>>();
        let identity = DriverIdentity { driver: "a".to_owned(), ..DriverIdentity::default() };
        for (name, used, had) in [("csi.d=a", true, false), ("csi.d=b", false, false)] {
            let vg = vg(name);
            assert_eq!(DriverIdentity { used: first(&vg), ..identity.clone() }.adopts(&vg), used, "{name}");
            // A volume that it made with its name and attached proves nothing about the LV that another driver made without a name.
            assert_eq!(DriverIdentity { had: first(&vg), ..identity.clone() }.adopts(&vg), had, "{name}");
        }
    }

    #[test]
    fn only_the_zeroed_part_of_a_linear_volume_may_be_shown() {
        let inventory = Group::new()
            .with(lv("pvc-1", 4, &["lvm-csi=1", "csi.fs=raw", "csi.z=4194304"]))
            .with(thin("pvc-2", 4, &["lvm-csi=1", "csi.fs=raw"]))
            .inventory();
        let showable: Vec<_> = inventory.volumes().map(|volume| volume.showable(volume.size).0 >> 20).collect();
        assert_eq!(showable, [4, 16]);
        assert!(inventory.volumes().all(|volume| volume.showable(Bytes(1)) == Bytes(1)));
    }

    #[test]
    fn a_renamed_volume_is_refused_by_its_old_name_and_unknown_by_its_new_one() {
        let sum = Marks::blank().named(&LvName::new("pvc-1").unwrap()).tags().pop().unwrap();
        let tags = ["lvm-csi=1", "csi.fs=raw", sum.as_str()];
        let id = |name: &str| VolumeId { vg: super::super::testing::vg_uuid(), lv: LvName::new(name).unwrap() };
        let in_order = Group::new().with(lv("pvc-1", 1, &tags)).inventory();
        assert_eq!(in_order.need_volume(&id("pvc-1")).unwrap().id, id("pvc-1"));
        let renamed = Group::new().with(lv("kept", 1, &tags)).inventory();
        let error = renamed.need_volume(&id("pvc-1")).unwrap_err();
        assert!(matches!(&error, Error::Precondition { reason, .. } if reason.contains("vg0/kept")), "{error}");
        assert!(matches!(renamed.need_volume(&id("kept")), Err(Error::Missing { .. })));
        assert!(matches!(renamed.need_volume(&id("pvc-2")), Err(Error::Missing { .. })));
        assert_eq!(renamed.volumes().count(), 0);
        // Two LVs that swapped names are not taken for one another.
        let other = Marks::blank().named(&LvName::new("pvc-2").unwrap()).tags().pop().unwrap();
        let group = Group::new().with(lv("pvc-2", 1, &tags)).with(lv("pvc-1", 1, &["lvm-csi=1", "csi.fs=raw", other.as_str()]));
        let swapped = group.inventory();
        for name in ["pvc-1", "pvc-2"] {
            assert!(matches!(swapped.need_volume(&id(name)), Err(Error::Precondition { .. })));
        }
    }
}
