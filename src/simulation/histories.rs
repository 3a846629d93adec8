//! Random histories of several volumes, including inline ones, with and without an orchestrator that attaches. They mix right and
//! wrong calls, deaths at any moment, LVM commands that fail or die, power cuts, disks that go and come back, a full pool, and
//! people who use LVM beside the driver.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use crate::lvm::command::Command;
use crate::lvm::metadata::{Lv, SegmentKind};
use crate::types::{Bytes, Error, Extents, LvName, LvUuid, Tag};

use super::doom::Moment;
use super::host::{EXTENT, POOL};
use super::lvm::Fate;
use super::world::{Call, Ended, From, INLINE, Plan, Way, World};

static PLANS: [Plan; 6] = [
    Plan { name: "pvc-linear-mount", pool: "linear", block: false, from: From::Nothing },
    Plan { name: "pvc-linear-block", pool: "linear", block: true, from: From::Nothing },
    Plan { name: "pvc-thin-mount", pool: "thin", block: false, from: From::Nothing },
    Plan { name: "pvc-thin-block", pool: "thin", block: true, from: From::Nothing },
    Plan { name: "pvc-restored", pool: "thin", block: false, from: From::Snapshot(0) },
    Plan { name: "pvc-cloned", pool: "thin", block: true, from: From::Volume(3) },
];
/// Snapshot 0 is always of volume 2, snapshot 1 always of volume 3.
const SNAPSHOTS: usize = 2;
const SIZES: [u64; 4] = [16, 24, 48, 80];

/// What goes wrong during a call.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Nothing,
    Death(usize, Moment),
    Lvm(Fate),
}

/// What a person does with LVM's own tools, to a volume or with an LV of their own.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Make {
        thin: bool,
        active: bool,
    },
    Remove(usize),
    Rename(usize),
    Extend(usize),
    AddTag(usize),
    /// The LV stops being the driver's.
    Disown(usize),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The next call that brings a volume to its pods, or (`Down`) back.
    Up(usize, Trouble),
    Down(usize, Trouble),
    /// Any call at any time.
    Call(Call, Trouble),
    Restart(Option<(usize, Moment)>),
    /// These sectors of an unfinished write to the ledger have reached the disk.
    PowerCut(u8),
    /// Tools whose driver died finish.
    ToolsEnd,
    Write(usize, usize, u64),
    WriteInline(usize, u64),
    Disk {
        away: bool,
    },
    Pool {
        full: bool,
    },
    By(Edit),
}

fn moment() -> impl Strategy<Value = Moment> {
    prop_oneof![Just(Moment::Before), (1..5usize).prop_map(Moment::Within), Just(Moment::Alone), Just(Moment::After)]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    // A creation in a thin pool commits in two parts, makes the volume, counts it, and again commits in two parts.
    let fate = prop_oneof![1 => Just(Fate::Refused), 1 => Just(Fate::Late), 2 => (1..7usize).prop_map(Fate::Killed)];
    prop_oneof![
        6 => Just(Trouble::Nothing),
        3 => (0..16usize, moment()).prop_map(|(effect, moment)| Trouble::Death(effect, moment)),
        1 => fate.prop_map(Trouble::Lvm),
    ]
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![3 => Just(Way::Right), 1 => Just(Way::Odd), 1 => Just(Way::Wrong)]
}

fn call() -> impl Strategy<Value = Call> {
    let size = || prop::sample::select(SIZES.to_vec());
    let volume = || 0..PLANS.len();
    prop_oneof![
        (volume(), size()).prop_map(|(volume, size)| Call::Create(volume, size)),
        volume().prop_map(Call::Delete),
        (volume(), size()).prop_map(|(volume, size)| Call::Expand(volume, size)),
        (0..SNAPSHOTS).prop_map(|snapshot| Call::Snapshot(snapshot, snapshot + 2)),
        (0..SNAPSHOTS).prop_map(Call::DeleteSnapshot),
        (volume(), way()).prop_map(|(volume, way)| Call::Attach(volume, way)),
        volume().prop_map(Call::Detach),
        (volume(), way()).prop_map(|(volume, way)| Call::Stage(volume, way)),
        volume().prop_map(Call::Unstage),
        (volume(), 0..2usize, way()).prop_map(|(volume, pod, way)| Call::Publish(volume, pod, way)),
        (volume(), 0..2usize).prop_map(|(volume, pod)| Call::Unpublish(volume, pod)),
        (volume(), size()).prop_map(|(volume, size)| Call::NodeExpand(volume, size)),
        (0..INLINE.len(), way()).prop_map(|(inline, way)| Call::PublishInline(inline, way)),
        (0..INLINE.len()).prop_map(Call::UnpublishInline),
        Just(Call::Work),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let volume = || 0..PLANS.len();
    let edit = prop_oneof![
        2 => (any::<bool>(), any::<bool>()).prop_map(|(thin, active)| Edit::Make { thin, active }),
        1 => volume().prop_map(Edit::Remove),
        1 => volume().prop_map(Edit::Rename),
        4 => volume().prop_map(Edit::Extend),
        1 => volume().prop_map(Edit::AddTag),
        1 => volume().prop_map(Edit::Disown),
    ];
    prop_oneof![
        16 => (volume(), trouble()).prop_map(|(volume, trouble)| Step::Up(volume, trouble)),
        5 => (volume(), trouble()).prop_map(|(volume, trouble)| Step::Down(volume, trouble)),
        8 => (call(), trouble()).prop_map(|(call, trouble)| Step::Call(call, trouble)),
        3 => (0..INLINE.len(), trouble()).prop_map(|(inline, trouble)| Step::Call(Call::PublishInline(inline, Way::Right), trouble)),
        1 => (0..INLINE.len(), trouble()).prop_map(|(inline, trouble)| Step::Call(Call::UnpublishInline(inline), trouble)),
        1 => (0..INLINE.len(), 0..8u64).prop_map(|(inline, place)| Step::WriteInline(inline, place)),
        1 => prop::option::of((0..6usize, moment())).prop_map(Step::Restart),
        1 => any::<u8>().prop_map(Step::PowerCut),
        2 => Just(Step::ToolsEnd),
        4 => (volume(), 0..2usize, 0..8u64).prop_map(|(volume, pod, place)| Step::Write(volume, pod, place)),
        1 => any::<bool>().prop_map(|away| Step::Disk { away }),
        1 => any::<bool>().prop_map(|full| Step::Pool { full }),
        4 => edit.prop_map(Step::By),
    ]
}

/// What the orchestrator knows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It does not exist.
    Not,
    /// It may exist.
    Maybe,
    /// It exists, with at least this size.
    There(Bytes),
}

impl Presence {
    /// After a call that makes or grows it.
    fn made(self, ended: &Ended) -> Self {
        match (self, ended) {
            (_, Ended::Answered(Ok(size))) => Presence::There(size.unwrap_or_default()),
            (Presence::Not, Ended::Answered(Err(error))) if error.is_final() => Presence::Not,
            (Presence::Not, _) => Presence::Maybe,
            (known, _) => known,
        }
    }

    /// After a call that removes it.
    fn removed(self, ended: &Ended) -> Self {
        match (self, ended) {
            (_, Ended::Answered(Ok(_))) => Presence::Not,
            (known, Ended::Answered(Err(Error::Precondition { .. }))) | (known @ Presence::Not, _) => known,
            _ => Presence::Maybe,
        }
    }
}

struct History {
    world: World,
    /// The steps taken, for people.
    log: Vec<String>,
    volumes: [Presence; PLANS.len()],
    snapshots: [Presence; SNAPSHOTS],
    inline: [Presence; INLINE.len()],
    /// How far each volume is on its way to its pods.
    levels: [usize; PLANS.len()],
    /// LVs that are not the driver's, in the state that they must keep.
    foreign: BTreeMap<LvUuid, Lv>,
    /// LVs of the driver that somebody renamed, and the volume of each.
    renamed: BTreeMap<String, usize>,
    made: usize,
    /// The driver started with all disks present, and has not died since.
    sound: bool,
}

impl History {
    fn new(attaches: bool) -> Self {
        let mut world = World::new(&PLANS);
        world.attaches = attaches;
        world.restart().unwrap();
        Self {
            world,
            log: Vec::new(),
            volumes: [Presence::Not; PLANS.len()],
            snapshots: [Presence::Not; SNAPSHOTS],
            inline: [Presence::Not; INLINE.len()],
            levels: [0; PLANS.len()],
            foreign: BTreeMap::new(),
            renamed: BTreeMap::new(),
            made: 0,
            sound: true,
        }
    }

    fn is_away(&self) -> bool {
        self.world.host.state().disks.iter().any(|disk| disk.away)
    }

    fn restart(&mut self, last: Option<(usize, Moment)>) {
        self.world.doom.arm(last);
        if let Err(how) = self.world.restart() {
            self.log.push(format!("  died at its start: {how}"));
            self.sound = false;
            self.world.doom.arm(None);
            self.restart(None);
            return;
        }
        self.sound = !self.is_away();
    }

    fn up(&self, volume: usize) -> Call {
        let size = SIZES[volume % 3];
        match self.levels[volume] {
            0 => Call::Create(volume, size),
            1 => Call::Attach(volume, Way::Right),
            2 => Call::Stage(volume, Way::Right),
            3 => Call::Publish(volume, 0, Way::Right),
            4 => Call::Publish(volume, 1, Way::Odd),
            5 => Call::Expand(volume, SIZES[3]),
            _ => Call::NodeExpand(volume, SIZES[3]),
        }
    }

    fn down(&self, volume: usize) -> Call {
        match self.levels[volume] {
            0 | 1 => Call::Delete(volume),
            2 => Call::Detach(volume),
            3 => Call::Unstage(volume),
            4 => Call::Unpublish(volume, 0),
            _ => Call::Unpublish(volume, 1),
        }
    }

    fn take(&mut self, step: Step) {
        self.log.push(format!("{step:?}"));
        match step {
            Step::Up(volume, trouble) => {
                if self.call(self.up(volume), trouble) {
                    self.levels[volume] = (self.levels[volume] + 1).min(6);
                }
            }
            Step::Down(volume, trouble) => {
                if self.call(self.down(volume), trouble) {
                    self.levels[volume] = self.levels[volume].min(5).saturating_sub(1);
                }
            }
            Step::Call(call, trouble) => drop(self.call(call, trouble)),
            Step::Restart(last) => self.restart(last),
            Step::PowerCut(sectors) => {
                self.world.power_cut_amid(sectors);
                for level in &mut self.levels {
                    *level = (*level).min(2);
                }
                self.restart(None);
            }
            Step::ToolsEnd => self.world.host.let_tools_end(),
            Step::Write(volume, pod, place) => self.world.write(volume, pod, place),
            Step::WriteInline(inline, place) => self.world.write_at(&self.world.inline_target(inline), place),
            Step::Disk { away } => self.world.host.state().disks[1].away = away,
            Step::Pool { full } => self.world.host.state().pool_full = full,
            Step::By(edit) => self.edit(edit),
        }
        self.check();
    }

    /// Makes a call; returns whether it succeeded.
    fn call(&mut self, call: Call, trouble: Trouble) -> bool {
        if !self.world.is_up() {
            self.restart(None);
        }
        let last = match trouble {
            Trouble::Death(effect, moment) => Some((effect, moment)),
            Trouble::Lvm(fate) => {
                self.world.host.state().fates.push_back(fate);
                None
            }
            Trouble::Nothing => None,
        };
        let ended = self.world.call(call, last);
        self.world.host.state().fates.clear();
        self.log.push(match &ended {
            Ended::Answered(answer) => format!("  {call:?}: {answer:?}"),
            Ended::Died(how) => format!("  {call:?}: died {how}"),
        });
        self.sound &= !matches!(ended, Ended::Died(_));
        match call {
            Call::Create(volume, _) => self.volumes[volume] = self.volumes[volume].made(&ended),
            Call::Expand(volume, _) if ended.is_ok() => self.volumes[volume] = self.volumes[volume].made(&ended),
            Call::Delete(volume) => self.volumes[volume] = self.volumes[volume].removed(&ended),
            Call::Snapshot(snapshot, _) => self.snapshots[snapshot] = self.snapshots[snapshot].made(&ended),
            Call::DeleteSnapshot(snapshot) => self.snapshots[snapshot] = self.snapshots[snapshot].removed(&ended),
            Call::PublishInline(inline, _) => self.inline[inline] = self.inline[inline].made(&ended),
            Call::UnpublishInline(inline) => self.inline[inline] = self.inline[inline].removed(&ended),
            Call::Attach(..) | Call::Detach(_) if !self.world.attaches => {}
            Call::Attach(volume, _) if ended.is_ok() => assert!(self.world.is_granted(volume), "{call:?} left no grant"),
            Call::Detach(volume) if ended.is_ok() => {
                assert!(!self.world.is_granted(volume), "{call:?} left a grant");
                assert!(!self.world.is_mounted(volume), "{call:?} left a mount");
            }
            _ => {}
        }
        if call.lasts() && ended.is_ok() {
            assert!(!self.world.host.state().unflushed(), "{call:?} was answered before it is durable");
        }
        ended.is_ok()
    }

    /// The LV of a volume, if LVM's own tools can work on it.
    fn lv(&self, volume: usize) -> Option<(LvName, Lv, bool)> {
        let state = self.world.host.state();
        let (vg, name) = (state.vg(), self.world.volume_name(volume));
        let lv = vg.lv(name.as_str()).filter(|lv| lv.tags.iter().any(|tag| tag == "lvm-csi=1"))?;
        let active = state.device(&vg, name.as_str(), "").is_some();
        (!state.disks.iter().any(|disk| disk.away)).then(|| (name, lv.clone(), active))
    }

    fn by_hand(&mut self, command: &Command) -> bool {
        let mounts = self.world.host.entries();
        self.world.host.state().by_hand(command, &mounts)
    }

    fn edit(&mut self, edit: Edit) {
        if self.is_away() {
            return;
        }
        let vg = self.world.host.state().vg().name.clone();
        match edit {
            Edit::Make { thin, active } => {
                self.made += 1;
                let lv = LvName::new(format!("root{}", self.made)).unwrap();
                let made = if thin {
                    let pool = LvName::new(POOL).unwrap();
                    Command::CreateThin { vg: vg.clone(), pool, lv: lv.clone(), size: Bytes(2 * EXTENT), tags: Vec::new() }
                } else {
                    Command::CreateLinear { vg: vg.clone(), lv: lv.clone(), extents: Extents(2), tags: Vec::new() }
                };
                if !self.by_hand(&made) {
                    return;
                }
                if active {
                    self.by_hand(&Command::Activate { vg, lvs: vec![lv.clone()] });
                }
                let mut state = self.world.host.state();
                state.fill(lv.as_str());
                state.flush_all();
                let vg = state.vg();
                let made = vg.lv(lv.as_str()).unwrap();
                self.foreign.insert(made.uuid.clone(), without_origin(made.clone()));
            }
            Edit::Remove(volume) => {
                let Some((lv, Lv { uuid, .. }, false)) = self.lv(volume) else { return };
                if self.by_hand(&Command::Remove { vg, targets: vec![(lv, uuid)] }) {
                    self.volumes[volume] = Presence::Not;
                    self.world.host.state().flush_all();
                }
            }
            // A volume's handle contains its LV's name, so a person detaches it first.
            Edit::Rename(volume) | Edit::Disown(volume) if !self.world.is_up() || self.world.is_granted(volume) => {}
            Edit::Rename(volume) => {
                let Some((lv, _, false)) = self.lv(volume) else { return };
                self.made += 1;
                let name = format!("kept{}", self.made);
                let mut state = self.world.host.state();
                state.rename(lv.as_str(), &name);
                state.flush_all();
                drop(state);
                self.renamed.insert(name, volume);
                self.volumes[volume] = Presence::Not;
            }
            Edit::Extend(volume) => {
                let Some((name, lv, _)) = self.lv(volume) else { return };
                let extents = Extents(lv.extents().0 + 1);
                self.by_hand(&Command::Extend { vg, lv: name, extents });
            }
            Edit::AddTag(volume) => {
                let Some((lv, ..)) = self.lv(volume) else { return };
                self.by_hand(&Command::Retag { vg, lvs: vec![lv], remove: Vec::new(), add: vec![Tag::new("backup").unwrap()] });
            }
            Edit::Disown(volume) => {
                let Some((lv, Lv { uuid, .. }, false)) = self.lv(volume) else { return };
                let remove = vec![Tag::new("lvm-csi=1").unwrap()];
                if self.by_hand(&Command::Retag { vg, lvs: vec![lv], remove, add: Vec::new() }) {
                    let mut state = self.world.host.state();
                    state.flush_all();
                    let disowned = state.vg().lv_by_uuid(&uuid).unwrap().clone();
                    self.foreign.insert(uuid, without_origin(disowned));
                    self.volumes[volume] = Presence::Not;
                }
            }
        }
    }

    fn check(&self) {
        let wrong = if self.sound && !self.is_away() { self.world.wrong_but_holders() } else { self.world.wrong_at_once() };
        assert_eq!(wrong, [""; 0]);
        let state = self.world.host.state();
        let vg = state.vg();
        for (uuid, lv) in &self.foreign {
            let now = vg.lv_by_uuid(uuid).cloned().map(without_origin);
            assert_eq!(now.as_ref(), Some(lv), "an LV that is not the driver's was changed");
        }
        let pending = state.alone.is_some();
        drop(state);
        let volumes = (0..PLANS.len()).map(|n| (self.world.volume_name(n), self.volumes[n]));
        let snapshots = (0..SNAPSHOTS).map(|n| (self.world.snapshot_name(n), self.snapshots[n]));
        let inline = (0..INLINE.len()).map(|n| (World::inline_name(n), self.inline[n]));
        let known: BTreeMap<String, Presence> =
            volumes.chain(snapshots).chain(inline).map(|(name, known)| (name.to_string(), known)).collect();
        for (name, presence) in &known {
            if let Presence::There(size) = presence {
                let now = vg.lv(name).map(|lv| vg.lv_size(lv));
                assert!(now.is_some_and(|now| now >= *size), "{name} must have {size}, but has {now:?}");
            }
        }
        for lv in vg.lvs.iter().filter(|lv| lv.tags.iter().any(|tag| tag == "lvm-csi=1")) {
            let expected =
                known.get(&lv.name).is_some_and(|known| *known != Presence::Not) || self.renamed.contains_key(&lv.name);
            assert!(expected || pending, "{} exists, but nobody wants it", lv.name);
        }
    }

    /// Takes everything down with ordinary calls; nothing may be left.
    fn end(&mut self) {
        self.log.push("the end".to_owned());
        self.world.host.let_tools_end();
        let mut state = self.world.host.state();
        state.disks[1].away = false;
        state.pool_full = false;
        drop(state);
        self.restart(None);
        // A renamed volume is neither removed nor made again until it has its name back.
        for (name, volume) in std::mem::take(&mut self.renamed) {
            for call in [Call::Create(volume, SIZES[0]), Call::Delete(volume)] {
                assert!(!self.call(call, Trouble::Nothing), "{call:?} of a renamed volume");
            }
            let mut state = self.world.host.state();
            state.rename(&name, self.world.volume_name(volume).as_str());
            state.flush_all();
        }
        for volume in 0..PLANS.len() {
            let down = [
                Call::Unpublish(volume, 0),
                Call::Unpublish(volume, 1),
                Call::Unstage(volume),
                Call::Detach(volume),
                Call::Delete(volume),
            ];
            for call in down {
                assert!(self.call(call, Trouble::Nothing), "{call:?} at the end");
            }
        }
        for snapshot in 0..SNAPSHOTS {
            assert!(self.call(Call::DeleteSnapshot(snapshot), Trouble::Nothing), "snapshot {snapshot} at the end");
        }
        for inline in 0..INLINE.len() {
            assert!(self.call(Call::UnpublishInline(inline), Trouble::Nothing), "inline volume {inline} at the end");
        }
        self.check();
        for name in self.foreign.values().map(|lv| lv.name.clone()).collect::<Vec<_>>() {
            let vg = self.world.host.state().vg();
            let (lv, uuid) = (LvName::new(&name).unwrap(), vg.lv(&name).unwrap().uuid.clone());
            assert!(self.by_hand(&Command::Deactivate { vg: vg.name.clone(), lvs: vec![lv.clone()] }));
            assert!(self.by_hand(&Command::Remove { vg: vg.name.clone(), targets: vec![(lv, uuid)] }));
        }
        let left = self.world.account();
        assert!(left.lvs.keys().all(|name| name.contains(POOL) || name.ends_with("_pmspare")), "LVs are left: {:?}", left.lvs);
        assert!(left.devices.is_empty(), "devices are left: {:?}", left.devices);
        assert!(left.mounts.is_empty(), "mounts are left: {:?}", left.mounts);
        assert!(left.grants.is_empty(), "grants are left: {:?}", left.grants);
        assert!(left.targets.is_empty(), "paths are left: {:?}", left.targets);
    }
}

/// In a thin snapshot, LVM itself drops an origin that was removed.
fn without_origin(mut lv: Lv) -> Lv {
    if let SegmentKind::Thin { origin, .. } = &mut lv.segments[0].kind {
        *origin = None;
    }
    lv
}

/// Runs one history. A failure shows all its steps.
fn run(attaches: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut history = History::new(attaches);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        steps.iter().for_each(|step| history.take(*step));
        history.end();
    }));
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        TestCaseError::fail(format!("{text}\n{}", history.log.join("\n")))
    })
}

#[test]
fn whatever_happens_nothing_is_lost_or_left() {
    let long = std::env::var_os("LVM_CSI_LONG").is_some_and(|value| value == "1");
    let default = Config { failure_persistence: None, max_shrink_iters: 4000, ..Config::default() };
    let config = if long { Config { cases: 4_000, ..default } } else { default };
    let cases = config.cases;
    // Most orchestrators attach.
    let histories = (prop::bool::weighted(0.75), prop::collection::vec(step(), 1..60));
    let ended = TestRunner::new(config).run(&histories, |(attaches, steps)| run(attaches, &steps));
    match ended {
        Ok(()) => println!("{cases} histories"),
        Err(TestError::Fail(why, steps)) => panic!("{why}\nof the steps {steps:#?}"),
        Err(other) => panic!("{other}"),
    }
}
