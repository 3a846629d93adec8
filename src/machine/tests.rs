//! The verbs on a simulated LVM: which commands they run, and what they answer when one fails.

mod adopt;
mod batch;
mod figures;
mod hidden;
mod look;
mod nameless;
mod usage;

use std::io;

use super::*;
use crate::device::lv_dm_uuid;
use crate::host::fake::{Part, device};
use crate::host::{DmDevice, DmTarget, FORMER_DM_PREFIX, OWN_DM_PREFIX, Output, Tool, ToolError, Use};
use crate::lvm::command::Command;
use crate::lvm::metadata::{Vg, apply};
use crate::lvm::simulated::{Fate, Simulated, send_message};
use crate::types::{AccessType, Bytes, LayoutConfig, Life, PoolCare, ThinPoolConfig, Zeroing};
use crate::volume::create::{Source, VolumeSpec};
use crate::volume::inventory::Class;
use crate::volume::name::VolumeName;
use crate::volume::tag::Marks;

/// A group `vg` with a thin pool `pool`.
const GROUP: &str = include_str!("../../tests/fixtures/lvm/snapshots.txt");

/// A kernel in which no LV is active.
struct Idle;

impl Part for Idle {
    fn dm_find(&self, _: &str) -> io::Result<Option<DmDevice>> {
        Ok(None)
    }
    fn dm_list(&self, _: &str) -> io::Result<Vec<DmDevice>> {
        Ok(Vec::new())
    }
}

/// No tools at all.
struct Bare;

impl Tools for Bare {
    fn run(&self, tool: &Tool, _: Use<'_>) -> Result<Output, ToolError> {
        Err(ToolError::Absent { program: tool.name(), package: "none" })
    }
}

/// The identity of a machine that is named by a letter.
fn machine_id(letter: &str) -> MachineId {
    MachineId::new(NodeId::new(format!("node-{letter}").as_str()).unwrap(), [("dmi", letter)])
}

/// Records a machine in a group, in place of others.
fn record(vg: &mut Vg, letter: &str) {
    let command = owner::record(vg, &machine_id(letter)).unwrap();
    *vg = command.map_or_else(|| vg.clone(), |command| apply(vg, &command).unwrap());
}

struct World {
    machine: Arc<Machine>,
    lvm: Arc<Simulated>,
    _state: tempfile::TempDir,
}

/// An agent with the pools `linear` and `thin` of one group.
fn world() -> World {
    world_on(Arc::new(Idle))
}

/// The same on another kernel.
fn world_on(kernel: Arc<dyn Kernel>) -> World {
    world_in(tempfile::tempdir().unwrap(), kernel)
}

/// The same with an existing state directory.
fn world_in(state: tempfile::TempDir, kernel: Arc<dyn Kernel>) -> World {
    let lvm = Simulated::new(GROUP);
    lvm.edit(|vg| record(vg, "a"));
    let name = lvm.vg().name;
    let pool = |pool: &str, layout| PoolConfig {
        name: pool.to_owned(),
        vg: name.clone(),
        layout,
        default_size: Bytes(64 << 20),
        is_default: false,
        ephemeral: None,
    };
    let thin = LayoutConfig::Thin(ThinPoolConfig {
        pool: None,
        create: None,
        overprovision_percent: 10_000,
        max_snapshots: 0,
        care: PoolCare::default(),
        if_present: false,
    });
    let mut machine = Machine::new(Setup {
        node: NodeId::new("node-a").unwrap(),
        id: machine_id("a"),
        pools: vec![pool("linear", LayoutConfig::LINEAR), pool("thin", thin)],
        max_volumes: 0,
        run_dir: state.path().to_owned(),
        lvm: Err("the simulated one takes its place".to_owned()),
        wedged_after: std::time::Duration::from_secs(30),
        kernel,
        tools: Arc::new(Bare),
        trust: Default::default(),
        ledger: Ledger::open(state.path()).unwrap(),
        driver: "lvm.test".to_owned(),
        is_default: false,
        used: BTreeSet::new(),
        exposures: Exposures::open(state.path()).unwrap(),
        zeroing: Zeroing::default(),
        keeping: None,
        inflight: Inflight::default(),
    });
    machine.without_lvm = None;
    let identity = Arc::new(DriverIdentity { driver: "lvm.test".to_owned(), ..DriverIdentity::default() });
    let group = Group::new(name.clone(), Box::new(Arc::clone(&lvm)), Arc::clone(&machine.kernel), identity, &machine_id("a"));
    machine.groups.insert(name, group);
    World { machine: Arc::new(machine), lvm, _state: state }
}

/// A request for a volume in a pool.
#[derive(Clone)]
struct Asked {
    pool: String,
    spec: VolumeSpec,
}

fn wish(name: &str, pool: &str, mib: u64) -> Asked {
    let size = SizeRange { required: Bytes(mib << 20), limit: Bytes(0) };
    let spec = VolumeSpec {
        name: VolumeName::new(name),
        size,
        access: vec![AccessType::Block],
        source: None,
        parameters: crate::types::Parameters::default(),
        claim: None,
    };
    Asked { pool: pool.to_owned(), spec }
}

impl World {
    async fn create(&self, asked: &Asked) -> Result<Volume, Error> {
        self.machine.create(asked.pool.clone(), asked.spec.clone()).await.map(|made| made.object)
    }

    /// A request for a volume that is larger than the snapshot it is restored from: it takes two commands.
    async fn larger_restore(&self) -> Asked {
        let source = self.create(&wish("pvc-source", "thin", 64)).await.unwrap();
        let request = snapshot::Request { name: "snapshot-1".to_owned(), source: source.id };
        let snapshot = self.machine.snapshot(request).await.unwrap();
        assert_eq!(self.lvm.done(), ["lvcreate", "lvcreate"]);
        let mut asked = wish("pvc-restored", "thin", 128);
        asked.spec.source = Some(Source::Snapshot(snapshot.object.id));
        asked
    }

    fn class(&self, lv: &str) -> Option<Class> {
        self.inventory().class(lv).cloned()
    }

    fn inventory(&self) -> Inventory {
        let identity = DriverIdentity { driver: "lvm.test".to_owned(), ..DriverIdentity::default() };
        Inventory::from(Arc::new(self.lvm.vg()), Bytes(1 << 20), &identity)
    }
}

#[tokio::test]
async fn nothing_is_told_that_a_power_cut_could_take_back() {
    let world = world();
    let wish = wish("pvc-1", "linear", 8);
    world.lvm.unflushable(Some("/dev/sda"));
    // Created, or found by a repeat: until the disk confirms it, the volume does not exist.
    for _ in 0..2 {
        let error = world.create(&wish).await.unwrap_err();
        assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains("/dev/sda")), "{error:?}");
    }
    world.lvm.unflushable(None);
    world.create(&wish).await.unwrap();
    assert_eq!(world.lvm.done(), ["lvcreate"]);
}

#[tokio::test]
async fn what_is_there_already_takes_no_command_and_no_turn() {
    let world = world();
    for pool in ["linear", "thin"] {
        let wish = wish(&format!("pvc-{pool}"), pool, 64);
        let create = || world.machine.create(wish.pool.clone(), wish.spec.clone());
        let Changed { object: made, change } = create().await.unwrap();
        assert_eq!((world.lvm.done(), change), (vec!["lvcreate".to_owned()], Change::Made));
        // Another writer keeps the turn meanwhile.
        let turn = world.lvm.turn().unwrap();
        assert_eq!(create().await.unwrap(), Changed { object: made.clone(), change: Change::Found });
        drop(turn);
        assert_eq!(world.lvm.done(), Vec::<String>::new());
        assert_eq!(world.machine.delete(made.id.clone()).await.unwrap(), Change::Removed);
        assert_eq!(world.lvm.done(), ["lvremove"]);
        assert_eq!(world.machine.delete(made.id).await.unwrap(), Change::Absent);
        assert_eq!(world.lvm.done(), Vec::<String>::new());
    }
}

/// A kernel with a thin pool that has received this many transactions.
struct Heard(u64);

impl Part for Heard {
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        Ok(uuid.ends_with("-tpool").then(|| DmDevice { major: 254, open_count: 1, ..device("pool", uuid, 2) }))
    }

    fn dm_status(&self, _: &str) -> io::Result<Vec<DmTarget>> {
        let rest = format!("{} 10/2048 10/4096 - rw discard_passdown queue_if_no_space - 1024", self.0);
        Ok(vec![DmTarget { start: 0, length: 8192, kind: "thin-pool".to_owned(), rest }])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_takes_no_turn_while_another_creation_is_under_way_in_the_pool() {
    let world = world_on(Arc::new(Heard(100)));
    let wish = wish("pvc-1", "thin", 64);
    let made = world.create(&wish).await.unwrap();
    world.lvm.edit(send_message);
    let turn = world.lvm.turn().unwrap();
    let again = tokio::time::timeout(std::time::Duration::from_secs(20), world.create(&wish)).await;
    drop(turn);
    assert_eq!(again.expect("it waits for a turn").unwrap(), made);
}

#[tokio::test]
async fn each_step_is_one_command() {
    let world = world();
    let wish = world.larger_restore().await;
    let made = world.create(&wish).await.unwrap();
    assert_eq!((made.size, world.lvm.done()), (Bytes(128 << 20), vec!["lvcreate".to_owned(), "lvextend".to_owned()]));
    let larger = SizeRange { required: Bytes(256 << 20), limit: Bytes(0) };
    let grown = world.machine.expand(made.id.clone(), larger).await.unwrap();
    assert_eq!((grown.object.size, grown.change), (larger.required, Change::Extended));
    assert_eq!(world.lvm.done(), ["lvextend"]);
    // It never shrinks, and is large enough already.
    let smaller = SizeRange { required: Bytes(1), limit: Bytes(0) };
    let same = world.machine.expand(made.id, smaller).await.unwrap();
    assert_eq!((same.object.size, same.change), (larger.required, Change::Found));
    assert_eq!(world.lvm.done(), Vec::<String>::new());
}

#[tokio::test]
async fn a_command_that_failed_after_its_work_has_done_it() {
    let world = world();
    world.lvm.fates([Fate::Late]);
    let made = world.create(&wish("pvc-1", "linear", 64)).await.unwrap();
    world.lvm.fates([Fate::Late]);
    world.machine.delete(made.id).await.unwrap();
    assert_eq!(world.lvm.done(), ["lvcreate", "lvremove"]);
}

#[tokio::test]
async fn a_command_that_fails_is_not_repeated() {
    let world = world();
    world.lvm.fates([Fate::Refused]);
    let error = world.create(&wish("pvc-1", "linear", 64)).await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }));
    assert!(error.chain().contains("pvc-1") && error.chain().contains("it was refused"), "{}", error.chain());
    assert_eq!(world.lvm.done(), ["lvcreate"]);
    // The next call starts over.
    world.create(&wish("pvc-1", "linear", 64)).await.unwrap();
    assert_eq!(world.lvm.done(), ["lvcreate"]);
}

#[tokio::test]
async fn a_removal_that_lvms_guard_holds_back_is_an_error() {
    let world = world();
    let made = world.create(&wish("pvc-1", "thin", 64)).await.unwrap();
    world.lvm.done();
    world.lvm.fates([Fate::Nothing]);
    let error = world.machine.delete(made.id.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition { what, .. } if what.contains("pvc-1")), "{error}");
    assert_eq!(world.lvm.done(), ["lvremove"]);
    world.machine.delete(made.id).await.unwrap();
    assert_eq!(world.class("pvc-1"), None);
}

#[tokio::test]
async fn a_restore_that_a_crash_cut_short_is_completed() {
    let world = world();
    let wish = world.larger_restore().await;
    world.lvm.fates([Fate::Works, Fate::Crash]);
    world.create(&wish).await.unwrap_err();
    assert!(matches!(world.class("pvc-restored"), Some(Class::Unfinished(_))));
    assert_eq!(world.lvm.done(), ["lvcreate"]);
    // It does not count as a volume yet.
    assert!(!world.machine.holdings().await.unwrap().volumes().any(|volume| volume.id.lv.as_str() == "pvc-restored"));
    // Another request under the same name is refused and leaves it.
    let mut other = wish.clone();
    other.spec.source = None;
    assert!(matches!(world.create(&other).await, Err(Error::Differs { .. })));
    assert_eq!(world.lvm.done(), Vec::<String>::new());
    assert_eq!(world.create(&wish).await.unwrap().size, Bytes(128 << 20));
    assert_eq!(world.lvm.done(), ["lvextend"]);
}

#[tokio::test]
async fn a_restore_that_cannot_be_completed_leaves_nothing() {
    let world = world();
    let wish = world.larger_restore().await;
    world.lvm.fates([Fate::Works, Fate::Refused]);
    let error = world.create(&wish).await.unwrap_err();
    assert!(error.is_final() && error.chain().contains("it was refused"), "{}", error.chain());
    assert_eq!(world.lvm.done(), ["lvcreate", "lvextend", "lvremove"]);
    assert_eq!(world.class("pvc-restored"), None);
    // While it cannot be removed, the error must not be final.
    world.lvm.fates([Fate::Works, Fate::Refused, Fate::Refused]);
    let error = world.create(&wish).await.unwrap_err();
    assert!(!error.is_final(), "{}", error.chain());
    assert_eq!(world.lvm.done(), ["lvcreate", "lvextend", "lvremove"]);
    world.create(&wish).await.unwrap();
    assert_eq!(world.lvm.done(), ["lvextend"]);
}

#[tokio::test]
async fn a_group_that_is_away_is_neither_empty_nor_final() {
    let world = world();
    let made = world.create(&wish("pvc-1", "linear", 64)).await.unwrap();
    world.lvm.done();
    world.lvm.away(true);
    assert!(matches!(world.create(&wish("pvc-2", "linear", 64)).await, Err(Error::Unavailable { .. })));
    assert!(matches!(world.machine.delete(made.id.clone()).await, Err(Error::Unavailable { .. })));
    assert_eq!(world.lvm.done(), Vec::<String>::new());
    world.lvm.away(false);
    world.machine.delete(made.id).await.unwrap();
}

/// A kernel in which every LV is active, or none, and nothing is shown as a block device.
#[derive(Default)]
struct Activity {
    there: AtomicBool,
    open: AtomicBool,
}

impl Part for Activity {
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        let device = DmDevice { open_count: u32::from(self.open.load(Ordering::SeqCst)), ..device("vg-pvc--1", uuid, 7) };
        Ok(Some(device).filter(|_| {
            self.there.load(Ordering::SeqCst) && !uuid.starts_with(OWN_DM_PREFIX) && !uuid.starts_with(FORMER_DM_PREFIX)
        }))
    }
}

#[tokio::test]
async fn a_volume_whose_record_may_be_lost_is_not_detached_while_it_is_active() {
    for damaged in [true, false] {
        let state = tempfile::tempdir().unwrap();
        if damaged {
            std::fs::write(state.path().join("attachments"), [7; 4096]).unwrap();
        }
        let kernel = Arc::new(Activity::default());
        let world = world_in(state, Arc::<Activity>::clone(&kernel));
        let id = world.create(&wish("pvc-1", "linear", 8)).await.unwrap().id;
        kernel.there.store(true, Ordering::SeqCst);
        let released = world.machine.release(id.clone(), None).await;
        if damaged {
            let error = released.unwrap_err();
            let said = matches!(&error, Error::Precondition { reason, .. } if reason.contains("NodeUnstageVolume"));
            assert!(said, "{error:?}");
        } else {
            // The kernel is not asked about a volume that is known to be free: somebody may have activated it by hand.
            released.unwrap();
        }
        kernel.there.store(false, Ordering::SeqCst);
        world.machine.release(id, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_volume_that_is_still_mounted_is_not_deleted_although_its_grant_was_released() {
    let kernel = Arc::new(Activity { open: AtomicBool::new(true), ..Activity::default() });
    let world = world_on(Arc::<Activity>::clone(&kernel));
    let made = world.create(&wish("pvc-1", "linear", 8)).await.unwrap();
    let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
    world.machine.grant(made.id.clone(), NodeId::new("node-a").unwrap(), mode).await.unwrap();
    let epoch = world.machine.ledger.state(&made.uuid).grant.unwrap().epoch;
    let (boot, state) = (world.machine.ledger.boot().to_owned(), crate::attach::AckState::Released);
    world.machine.ledger.acknowledge(&made.uuid, &crate::attach::Ack { epoch, boot, state, at: Default::default() }).unwrap();
    kernel.there.store(true, Ordering::SeqCst);
    world.machine.release(made.id.clone(), None).await.unwrap();
    let error = world.machine.delete(made.id.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition { .. }), "{error:?}");
    assert!(world.class("pvc-1").is_some());
    // Its last user is gone, and so is the device.
    kernel.there.store(false, Ordering::SeqCst);
    world.machine.delete(made.id).await.unwrap();
    assert!(world.class("pvc-1").is_none());
}

#[tokio::test]
async fn a_tag_that_says_more_than_there_is_is_corrected() {
    let world = world();
    let made = world.create(&wish("pvc-1", "linear", 16)).await.unwrap();
    let tags = |bytes: u64| vec![crate::types::Tag::new(format!("csi.z={bytes}")).unwrap()];
    let larger =
        Command::Retag { vg: world.lvm.vg().name, lvs: vec![made.id.lv.clone()], remove: Vec::new(), add: tags(64 << 20) };
    world.lvm.change(&world.lvm.turn().unwrap(), &larger).unwrap();
    assert_eq!(world.lvm.done(), ["lvcreate", "lvchange"]);
    let wrong = world.machine.wrong_tags();
    assert_eq!(wrong.iter().map(|volume| (&volume.id, volume.zeroed())).collect::<Vec<_>>(), [(&made.id, Bytes(16 << 20))]);
    for expected in [vec!["lvchange"], vec![]] {
        let (machine, one) = (Arc::clone(&world.machine), wrong[0].clone());
        let operation = world.machine.on_volume("correcting its tags", &made.id, ());
        world.machine.inflight.run(operation, move |reservation| machine.correct_tag(reservation, &one)).await.unwrap();
        assert_eq!(world.lvm.done(), expected);
    }
    assert_eq!(world.machine.volume(&made.id).unwrap().marks.zeroed, Bytes(16 << 20));
    assert!(world.machine.wrong_tags().is_empty());
}

#[tokio::test]
async fn records_of_what_was_shown_outlive_a_volume_only_where_it_can_come_back() {
    let mut world = world();
    let deleted = world.create(&wish("pvc-1", "linear", 16)).await.unwrap();
    let gone = world.create(&wish("pvc-2", "linear", 16)).await.unwrap();
    let stays = world.create(&wish("pvc-3", "linear", 16)).await.unwrap();
    let raw = |volume: &Volume| Volume { marks: Marks { life: Life::Raw, ..volume.marks.clone() }, ..volume.clone() };
    for volume in [&deleted, &gone, &stays] {
        world.machine.record_shown(&raw(volume), volume.size).unwrap();
        assert!(world.machine.refuse_older_tags(volume).is_err());
    }
    world.machine.delete(deleted.id.clone()).await.unwrap();
    assert_eq!(world.machine.exposures.of(&deleted.uuid), None);
    // Somebody removes an LV by hand that a copy of the metadata still has.
    let copies = tempfile::tempdir().unwrap();
    let backups = crate::lvm::Backups::new(copies.path().to_owned(), std::time::Duration::ZERO);
    let text = GROUP.replacen("logical_volumes {", &format!("logical_volumes {{\n{}", lv_text(&gone)), 1);
    let vg = crate::lvm::metadata::Vg::parse(&text).unwrap();
    backups.keep(&vg.name, &vg, text.as_bytes()).unwrap();
    world.lvm.edit(|vg| vg.lvs.retain(|lv| lv.uuid != gone.uuid));
    let keeping = Keeping { backups, interval: std::time::Duration::from_secs(600) };
    Arc::get_mut(&mut world.machine).unwrap().keeping = Some(keeping);
    let recorded = |world: &World| [&gone, &stays].map(|volume| world.machine.exposures.of(&volume.uuid).is_some());
    world.machine.keep_records();
    assert_eq!(recorded(&world), [true, true]);
    std::fs::remove_dir_all(copies.path().join(vg.uuid.as_str())).unwrap();
    world.lvm.away(true);
    world.machine.keep_records();
    assert_eq!(recorded(&world), [true, true]);
    world.lvm.away(false);
    world.machine.keep_records();
    assert_eq!(recorded(&world), [false, true]);
}

/// A kernel in which every LV is active, or none, that records what it zeroes on one of 128 MiB.
#[derive(Default)]
struct Zeroes {
    active: Activity,
    zeroed: std::sync::Mutex<Vec<(u64, u64)>>,
}

impl Part for Zeroes {
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        Part::dm_find(&self.active, uuid)
    }

    fn device_number(&self, _: &std::path::Path) -> io::Result<Option<(u32, u32)>> {
        Ok(Some((253, 7)))
    }

    fn device_size(&self, _: &std::path::Path) -> io::Result<Bytes> {
        Ok(Bytes(128 << 20))
    }

    fn flush(&self, _: &std::path::Path) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: &std::path::Path, offset: Bytes, length: Bytes) -> io::Result<()> {
        self.zeroed.lock().unwrap().push((offset.0, length.0));
        Ok(())
    }
}

/// A raw linear volume of 128 MiB, all of it shown to a pod, whose LV somebody changed after that. It is inactive.
async fn shown_and_changed(kernel: Arc<Zeroes>, size: u64, zeroed: u64) -> (World, Volume) {
    let world = world_on(kernel);
    let made = world.create(&wish("pvc-1", "linear", 128)).await.unwrap();
    let raw = |zeroed: u64| Marks { life: Life::Raw, zeroed: Bytes(zeroed << 20), ..made.marks.clone() };
    let set = |size: u64, marks: &Marks| {
        world.lvm.edit(|vg| {
            let extents = Bytes(size << 20).to_extents_down(vg.extent_bytes());
            let lv = vg.lvs.iter_mut().find(|lv| lv.uuid == made.uuid).unwrap();
            lv.tags = marks.tags().iter().map(ToString::to_string).collect();
            lv.segments.truncate(1);
            lv.segments[0].count = extents;
        });
        world.machine.volume(&made.id).unwrap()
    };
    let shown = set(128, &raw(128));
    world.machine.record_shown(&shown, shown.size).unwrap();
    let changed = set(size, &raw(zeroed));
    assert_eq!((changed.size, changed.marks.zeroed), (Bytes(size << 20), Bytes(zeroed << 20)));
    world.lvm.done();
    (world, changed)
}

/// The zeroing before a volume is shown.
async fn zero_unseen(world: &World, volume: &Volume) -> Result<(), Error> {
    let (machine, one) = (Arc::clone(&world.machine), volume.clone());
    let operation = world.machine.on_volume("staging", &volume.id, ());
    let zero = move |reservation: &crate::inflight::Reservation| {
        let (guard, device) = (machine.guard(reservation, &one)?, device("vg-pvc--1", &one.uuid.to_string(), 7));
        let attached = super::Attached { top: device.clone(), lv: device };
        machine.zero_unseen(reservation, &guard, super::Active { volume: one, attached }).map(drop)
    };
    world.machine.inflight.run(operation, zero).await
}

#[tokio::test]
async fn a_raw_volume_with_metadata_from_before_its_growth_is_neither_shown_nor_grown() {
    // From before the growth, and from between its two steps.
    for (size, zeroed) in [(64, 64), (128, 64)] {
        let kernel = Arc::new(Zeroes::default());
        let (world, old) = shown_and_changed(Arc::clone(&kernel), size, zeroed).await;
        let larger = |mib: u64| SizeRange { required: Bytes(mib << 20), limit: Bytes(0) };
        // Twice each: a refusal leaves its cause.
        for _ in 0..2 {
            for refused in [
                zero_unseen(&world, &old).await,
                world.machine.expand(old.id.clone(), larger(128)).await.map(drop),
                world.machine.expand(old.id.clone(), larger(256)).await.map(drop),
            ] {
                let error = refused.unwrap_err();
                let told =
                    |reason: &str| reason.contains("a pod was shown 134217728 (128MiB) of it") && reason.contains("vgcfgrestore");
                assert!(matches!(&error, Error::Precondition { reason, .. } if told(reason)), "{error:?}");
            }
        }
        assert_eq!(world.machine.exposures.of(&old.uuid).unwrap().shown, Bytes(128 << 20));
        assert_eq!((world.lvm.done(), kernel.zeroed.lock().unwrap().as_slice()), (vec![], &[][..]));
    }
}

#[tokio::test]
async fn a_raw_volume_that_was_cut_off_by_hand_is_shown_and_grows_over_zeroes() {
    for corrected in [false, true] {
        let kernel = Arc::new(Zeroes::default());
        let (world, cut) = shown_and_changed(Arc::clone(&kernel), 64, 128).await;
        zero_unseen(&world, &cut).await.unwrap();
        if corrected {
            let (machine, one) = (Arc::clone(&world.machine), cut.clone());
            let operation = world.machine.on_volume("correcting its tags", &cut.id, ());
            world.machine.inflight.run(operation, move |reservation| machine.correct_tag(reservation, &one)).await.unwrap();
            assert_eq!(world.machine.exposures.of(&cut.uuid).unwrap().shown, Bytes(64 << 20));
            zero_unseen(&world, &world.machine.volume(&cut.id).unwrap()).await.unwrap();
        }
        let larger = SizeRange { required: Bytes(128 << 20), limit: Bytes(0) };
        let grown = world.machine.expand(cut.id.clone(), larger).await.unwrap().object;
        assert_eq!((grown.size, grown.zeroed()), (Bytes(128 << 20), Bytes(64 << 20)));
        assert_eq!(world.lvm.done(), ["lvchange", "lvextend"]);
        assert_eq!(world.machine.exposures.of(&cut.uuid).unwrap().shown, Bytes(64 << 20));
        kernel.active.there.store(true, Ordering::SeqCst);
        zero_unseen(&world, &grown).await.unwrap();
        let zeroed = kernel.zeroed.lock().unwrap();
        assert_eq!(zeroed.first().map(|area| area.0), Some(64 << 20));
        assert_eq!(zeroed.iter().map(|area| area.1).sum::<u64>(), 64 << 20);
    }
}

#[tokio::test]
async fn a_cut_of_metadata_that_are_older_leaves_the_record() {
    let (world, cut) = shown_and_changed(Arc::default(), 32, 64).await;
    let (machine, one) = (Arc::clone(&world.machine), cut.clone());
    let operation = world.machine.on_volume("correcting its tags", &cut.id, ());
    world.machine.inflight.run(operation, move |reservation| machine.correct_tag(reservation, &one)).await.unwrap();
    assert_eq!(world.machine.exposures.of(&cut.uuid).unwrap().shown, Bytes(128 << 20));
    assert!(zero_unseen(&world, &world.machine.volume(&cut.id).unwrap()).await.is_err());
}

/// An LV in a metadata text.
fn lv_text(volume: &Volume) -> String {
    format!(
        "{} {{\nid = \"{}\"\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nsegment_count = 1\nsegment1 {{\nstart_extent = 0\n\
         extent_count = 1\ntype = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", 490\n]\n}}\n}}\n",
        volume.id.lv, volume.uuid
    )
}

#[tokio::test]
async fn an_unfinished_volume_that_is_attached_is_not_deleted() {
    let world = world();
    let made = world.create(&wish("pvc-1", "linear", 16)).await.unwrap();
    let node = NodeId::new("node-a").unwrap();
    let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
    world.machine.grant(made.id.clone(), node.clone(), mode).await.unwrap();
    let epoch = world.machine.ledger.state(&made.uuid).grant.unwrap().epoch;
    let (boot, state) = (world.machine.ledger.boot().to_owned(), crate::attach::AckState::Staged);
    world.machine.ledger.acknowledge(&made.uuid, &crate::attach::Ack { epoch, boot, state, at: Default::default() }).unwrap();
    // Somebody made it smaller.
    world.lvm.edit(|vg| {
        let lv = vg.lvs.iter_mut().find(|lv| lv.uuid == made.uuid).unwrap();
        lv.tags.retain(|tag| !tag.starts_with("csi.min="));
        lv.tags.push(format!("csi.min={}", 64 << 20));
    });
    assert!(matches!(world.class("pvc-1"), Some(Class::Unfinished(_))));
    let error = world.machine.delete(made.id.clone()).await.unwrap_err();
    assert!(matches!(&error, Error::Precondition { reason, .. } if reason.contains("attached to node node-a")), "{error:?}");
    assert!(world.class("pvc-1").is_some());
}

#[tokio::test]
async fn what_this_driver_activated_is_deactivated_whoever_has_it_now() {
    for granted in [true, false] {
        let kernel = Arc::new(Activity::default());
        let world = world_on(Arc::<Activity>::clone(&kernel) as Arc<dyn Kernel>);
        let made = world.create(&wish("pvc-1", "linear", 16)).await.unwrap();
        if granted {
            let mode = Mode::new(AccessType::Block, crate::types::AccessMode::SingleNodeWriter, false);
            world.machine.grant(made.id.clone(), NodeId::new("node-a").unwrap(), mode).await.unwrap();
        }
        world.lvm.edit(|vg| {
            let lv = vg.lvs.iter_mut().find(|lv| lv.uuid == made.uuid).unwrap();
            lv.tags.retain(|tag| !tag.starts_with("csi.d="));
            lv.tags.push("csi.d=b.example".to_owned());
        });
        assert!(matches!(world.class("pvc-1"), Some(Class::Others(Some(_)))));
        world.lvm.done();
        kernel.there.store(true, Ordering::SeqCst);
        let (machine, volume) = (Arc::clone(&world.machine), made.clone());
        let operation = world.machine.on_volume("NodeUnstageVolume", &made.id, ());
        let away = world.machine.inflight.run(operation, move |reservation| {
            let guard = machine.guard(reservation, &volume)?;
            machine.deactivate(reservation, &guard, &volume)
        });
        // The device of this kernel stays, whatever LVM does.
        assert_eq!(away.await.is_err(), granted);
        assert_eq!(world.lvm.done(), if granted { vec!["lvchange"] } else { vec![] });
    }
}
