//! Cuts the power at each flush while volumes live their lives. The driver starts on what is left, the interrupted call converges
//! when repeated and when inverted, and no acknowledged data is lost.
//!
//! One log-writes device lies under both the PV and the filesystem with the driver's state, so the log has the order between them.
//! Marks in the log say which call has begun and which was answered. Each point of the log is tried on a snapshot of a disk onto
//! which the log was replayed up to there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use testkit::driver::{Driver, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::Places;
use testkit::lab::{self, say};
use testkit::power::{Access, Disk, Event, From, Log, NextBoot, Step, World};
use testkit::test_vg::TestVg;
use testkit::vg;
use testkit::{mounts, sample, tool};

use crate::rig::{DRIVER, turn};

/// Size of the thin pool in MiB.
const POOL_MIB: u64 = 512;

/// The steps that are recorded: thin and linear, ext4, XFS and raw, copies of both kinds, online growth.
const LIFE: &[Step] = &[
    Step::Create("thin", "thin", 64, Access::Ext4, From::Nothing),
    Step::Attach("thin"),
    Step::Stage("thin"),
    Step::Publish("thin"),
    Step::Write("thin", 1),
    Step::Create("linear", "linear", 64, Access::Ext4, From::Nothing),
    Step::Attach("linear"),
    Step::Stage("linear"),
    Step::Publish("linear"),
    Step::Write("linear", 1),
    Step::Grow("linear", 96),
    Step::NodeGrow("linear"),
    Step::Write("linear", 2),
    Step::Snapshot("cut", "thin"),
    Step::Write("thin", 2),
    Step::Grow("thin", 96),
    Step::NodeGrow("thin"),
    Step::Write("thin", 3),
    Step::Create("restored", "thin", 96, Access::Ext4, From::Snapshot("cut")),
    Step::Attach("restored"),
    Step::Stage("restored"),
    Step::Publish("restored"),
    Step::Write("restored", 4),
    Step::Create("clone", "thin", 96, Access::Ext4, From::Volume("thin")),
    Step::Create("raw", "linear", 16, Access::Raw, From::Nothing),
    Step::Attach("raw"),
    Step::Stage("raw"),
    Step::Publish("raw"),
    Step::Write("raw", 3),
    Step::Grow("raw", 24),
    Step::NodeGrow("raw"),
    Step::Write("raw", 20),
    Step::Unpublish("restored"),
    Step::Unstage("restored"),
    Step::Detach("restored"),
    Step::Delete("restored"),
    Step::DeleteSnapshot("cut"),
    Step::Delete("clone"),
    Step::Unpublish("raw"),
    Step::Unstage("raw"),
    Step::Detach("raw"),
    Step::Delete("raw"),
    Step::Create("xfs", "linear", 300, Access::Xfs, From::Nothing),
    Step::Attach("xfs"),
    Step::Stage("xfs"),
    Step::Publish("xfs"),
    Step::Write("xfs", 1),
    Step::Unpublish("thin"),
    Step::Unstage("thin"),
    Step::Detach("thin"),
    Step::Delete("thin"),
];

/// A moment at which the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    /// Log entries that have happened.
    entries: usize,
    /// Answered steps of the life.
    done: usize,
    /// Whether the next step was running.
    running: bool,
}

/// Returns every point at which something new is durable on the disk, with the steps answered by then.
fn points(events: &[Event]) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    let (mut begun, mut done, mut written) = (0, 0, false);
    // Number of entries up to the last write. A mark right after it does not change the disk, so it updates the point.
    let mut last = 0;
    for (index, event) in events.iter().enumerate() {
        match event {
            Event::Mark(text) => {
                begun += usize::from(text.starts_with("begin"));
                done += usize::from(text.starts_with("done"));
                if let Some(point) = points.last_mut().filter(|point| point.entries == last && begun == done) {
                    (point.done, point.running) = (done, false);
                }
            }
            Event::Discard => {}
            Event::Write { length, durable, .. } => {
                written |= *length > 0;
                last = index + 1;
                if *durable && written && begun > 0 {
                    points.push(Point { entries: last, done, running: begun > done });
                    written = false;
                }
            }
        }
    }
    points
}

/// The disks and directories of this test.
struct Bench {
    /// Recorded at first. Later the log is replayed onto it.
    disk: PathBuf,
    log: PathBuf,
    changes: PathBuf,
    home: PathBuf,
    places: Places,
}

/// What is done after the driver has started on what the power cut left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing: everything that was answered is already there.
    Look,
    /// Repeat the interrupted call.
    Repeat,
    /// Make the inverse call.
    Invert,
}

impl Bench {
    fn new() -> Result<Self> {
        let home = lab::fresh("power")?;
        Ok(Self {
            disk: lab::disk(0)?,
            log: lab::disk(1)?,
            changes: lab::disk(2)?,
            places: Places { root: home.join("kubelet") },
            home,
        })
    }

    fn start(&self, vg: &TestVg) -> Result<Driver> {
        let mut start = Start::on_vg(Path::new(DRIVER), &self.home, &vg.name);
        start.environment.push(("LVM_CSI_LOG".to_owned(), "lvm_csi=debug,lvm_csi::rpc=info".to_owned()));
        start.start()
    }

    /// Plays the life on a recorded disk. Returns the volume group, and what was acknowledged after each step.
    fn record(&self) -> Result<(TestVg, Vec<World>)> {
        let disk = Disk::recorded(&self.disk, &self.log)?;
        let state = self.home.join("state");
        disk.format_state()?;
        disk.mount_state(&state)?;
        let vg = TestVg::make("powervg", &[disk.pv()])?;
        vg.thin_pool("pool", POOL_MIB)?;
        let mut driver = self.start(&vg)?;
        let mut worlds = vec![World::default()];
        let mut world = World::default();
        for (number, step) in LIFE.iter().enumerate() {
            disk.mark(&format!("begin-{number}"))?;
            world.take(*step, driver.csi(), &self.places).inspect_err(|_| say(&format!("{step}\n{}", driver.tail())))?;
            disk.mark(&format!("done-{number}"))?;
            worlds.push(world.clone());
        }
        driver.kill()?;
        self.close(disk, &vg)?;
        Ok((vg, worlds))
    }

    /// Takes down everything on a disk, and the disk.
    fn close(&self, disk: Disk, vg: &TestVg) -> Result<()> {
        mounts::unmount_all(&self.places.root)?;
        vg::lvm(&["vgchange", "-qq", "-an", &vg.name])?;
        disk.remove(&self.home.join("state"))
    }

    /// Simulates a boot on what a power cut at `point` leaves, and continues in one way.
    fn try_point(&self, point: Point, way: Way, vg: &TestVg, worlds: &[World]) -> Result<()> {
        let home = lab::fresh("power")?;
        let disk = Disk::on_trial(&self.disk, &self.changes)?;
        disk.mount_state(&home.join("state"))?;
        let _boot = NextBoot::begin(&home)?;
        let mut driver = self.start(vg)?;
        let (step, mut world) = (LIFE[point.done.min(LIFE.len() - 1)], worlds[point.done].after_reboot());
        let formats = matches!(step, Step::Stage(name) if point.running && !world.is_used(name));
        let gone = match way {
            Way::Look => Ok(()),
            Way::Repeat => world.repeat(step, driver.csi(), &self.places),
            Way::Invert => world.invert(step, &worlds[point.done + 1], driver.csi(), &self.places),
        };
        let log = |trouble| Trouble::wrong(format!("{trouble:?}; the driver's log ends:\n{}", driver.tail()));
        gone.and_then(|()| world.verify(vg, driver.csi(), &self.places)).map_err(log)?;
        let log = driver.log()?;
        ensure(formats || !log.contains(" effect=\"mkfs."), || {
            "the driver made a filesystem over an acknowledged one".to_owned()
        })?;
        driver.stop()?;
        self.close(disk, vg)
    }
}

/// Chooses points and ways. An ordinary run takes one point for the first step of each kind, chosen by the run's seed: the moment
/// at which it was answered, or one while it ran, repeated or inverted. With `LVM_CSI_LONG` it takes all points, both ways.
fn choose(points: &[Point], worlds: &[World]) -> Vec<(Point, Way)> {
    if sample::long() {
        let ways = |point: &Point| if point.running { vec![Way::Repeat, Way::Invert] } else { vec![Way::Look] };
        return points.iter().flat_map(|point| ways(point).into_iter().map(|way| (*point, way))).collect();
    }
    let (mut kinds, mut chosen) = (BTreeSet::new(), Vec::new());
    for (number, step) in LIFE.iter().enumerate() {
        if !kinds.insert(worlds[number].kind(*step)) {
            continue;
        }
        let running: Vec<Point> = points.iter().copied().filter(|point| point.running && point.done == number).collect();
        let answered = points.iter().find(|point| !point.running && point.done == number + 1);
        let of = |about: &str, count| sample::choose(&format!("{about} {number}"), count);
        let cut = running.get(of("flush", running.len())).filter(|_| answered.is_none() || of("running", 3) > 0);
        chosen.extend(match cut {
            Some(point) => Some((*point, if of("way", 2) == 0 { Way::Repeat } else { Way::Invert })),
            None => answered.map(|point| (*point, Way::Look)),
        });
    }
    chosen
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_flush() -> Result<()> {
    let _turn = turn()?;
    let bench = Bench::new()?;
    // The replay must begin with the same disk content as the recording.
    let empty = || tool::run("blkdiscard", &[bench.disk.as_os_str()]);
    empty()?;
    let begin = Instant::now();
    let (vg, worlds) = bench.record()?;
    let log = Log::read(&bench.log)?;
    let points = points(log.events());
    let chosen = choose(&points, &worlds);
    say(&format!(
        "{} steps, recorded in {} s: {} flushes, of which {} are tried",
        LIFE.len(),
        begin.elapsed().as_secs(),
        points.len(),
        chosen.len()
    ));
    empty()?;
    let mut replayed = 0;
    for (point, way) in chosen {
        log.replay(&log.events()[replayed..point.entries], &bench.disk)?;
        replayed = point.entries;
        bench.try_point(point, way, &vg, &worlds).map_err(|trouble| {
            let at = match LIFE.get(point.done).filter(|_| point.running) {
                Some(step) => format!("during {step}, {way:?}"),
                None => {
                    format!("after {}", point.done.checked_sub(1).map_or("nothing".to_owned(), |last| LIFE[last].to_string()))
                }
            };
            Trouble::wrong(format!("power cut at log entry {}, {at}: {trouble:?}", point.entries))
        })?;
    }
    say(&format!("the whole test took {} s", begin.elapsed().as_secs()));
    Ok(())
}
