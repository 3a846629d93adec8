//! LVM on this machine: one process for each change of one volume group, none for reading it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::host::{Invocation, Kernel, Output, RunError, Stuck, Udev, Worker, WorkerError, effect, files, run, run_holding};
use crate::types::{Error, GroupQueue, PvUuid, VgName, VgUuid, Wedge};

use super::backup::{BackupError, Backups};
use super::command::Command;
use super::conf::{Conf, ConfError};
use super::leftover::{self, LeftoverError};
use super::lock;
use super::metadata::Vg;
use super::metrics;
use super::pin::Pin;
use super::report::{self, Ended, LvmError};
use super::source::{ReadError, Source, Trust, View};
use super::survivor::{SurvivorError, SurvivorLock};
use super::targets;
use super::version::{Version, VersionError};
use super::writer::{Turn, Wedged, Writer};

/// Where `lvm` is looked for; never in `PATH`.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Where LVM keeps its locks, here and in the host's own configuration.
pub const LOCKING_DIR: &str = "/run/lock/lvm";
/// What is told of an access to the disks that does not end.
const READING: &str = "reading";
/// The same.
const FLUSHING: &str = "flushing";

/// LVM, seen from the rules: a group that can be read and changed.
pub trait Lvm: Send + Sync {
    /// The group as it is on the disks now.
    ///
    /// # Errors
    /// The group is away or unknown.
    fn read(&self) -> Result<View, ReadError>;

    /// Waits until no lvm runs that an earlier driver started: what is read before that may be undone at any moment.
    ///
    /// # Errors
    /// It still runs.
    fn alone(&self) -> Result<(), ChangeError>;

    /// Waits until nobody else of this driver changes the group.
    ///
    /// # Errors
    /// [`Wedged`] while a command of the group hangs.
    fn turn(&self) -> Result<Turn<'_>, Wedged>;

    /// Makes one change. On return it is on the disks.
    ///
    /// # Errors
    /// The change failed, or its outcome is not known: the caller reads again in both cases.
    fn change(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError>;

    /// Ends the work of an lvm that died, at the start of the driver: what it left suspended stays frozen until then.
    ///
    /// # Errors
    /// The group is away, or what was left could not be brought in order; the next change tries again.
    fn recover(&self, turn: &Turn<'_>) -> Result<(), ChangeError>;

    /// Keeps a copy of the metadata, where they are not as at the last time.
    ///
    /// # Errors
    /// The group cannot be read, or the copy not be written.
    fn back_up(&self, backups: &Backups) -> Result<(), KeepError>;

    /// Makes sure that what was read is on the disks for good: flushes them, unless that was done since the last commit, whoever
    /// made it. Before this nobody may be told that something is there, or is gone.
    ///
    /// # Errors
    /// A disk did not confirm it.
    fn make_durable(&self) -> Result<(), ChangeError>;

    /// Whether every PV of what was read is there and readable; the text says which is not. No change is made before it is.
    ///
    /// # Errors
    /// The first PV that is away or cannot be read.
    fn check_present(&self, view: &View) -> Result<(), String>;

    /// Who waits for a turn, and what hangs. Asks no disk.
    fn queue(&self) -> GroupQueue;

    /// The group that this one was when it was seen last, in this life of the driver or before. Asks no disk.
    fn pinned_group(&self) -> Option<VgUuid> {
        None
    }

    /// Devices that show metadata of this group or of one of its name, and do not count: each with what it shows.
    ///
    /// # Errors
    /// The devices cannot be listed.
    fn strangers(&self) -> Result<Vec<(PathBuf, String)>, ReadError> {
        Ok(Vec::new())
    }

    /// The groups that lie now on PVs that this one once had: `vgsplit` takes LVs along.
    ///
    /// # Errors
    /// The devices cannot be listed.
    fn split_off(&self) -> Result<Vec<Vg>, ReadError> {
        Ok(Vec::new())
    }

    /// Makes the group of the name that is there now the driver's, whatever was before: a person says that it is right. Where `only`
    /// names devices, no others count. Gives what was pinned.
    ///
    /// # Errors
    /// There is none, or there are several.
    fn adopt(&self, only: Option<Vec<PathBuf>>) -> Result<(View, Option<Pin>), ReadError> {
        let _ = only;
        self.read().map(|view| (view, None))
    }
}

/// Why a change was not made, or is not known to be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The group is away or unknown; nothing was done.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A PV is away or cannot be read; nothing was done.
    #[error("nothing was changed: {0}")]
    Away(String),
    /// A rule refuses the change; nothing was done.
    #[error(transparent)]
    Refused(Box<Error>),
    /// What a dead lvm left could not be brought in order; nothing was done.
    #[error("nothing was changed, since volume group {vg} is not in order")]
    Disorder {
        vg: VgName,
        #[source]
        source: LeftoverError,
    },
    /// An lvm of an earlier driver still runs, or that cannot be told; nothing was done.
    #[error("nothing was changed: {0}")]
    Survivor(#[from] SurvivorError),
    /// LVM's configuration could not be written; nothing was done.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// `lvm` could not be run.
    #[error("to {command}")]
    Run {
        command: String,
        #[source]
        source: RunError,
    },
    /// LVM refused or failed.
    #[error(transparent)]
    Lvm(#[from] LvmError),
    /// The metadata are written, but a disk did not confirm that they are durable.
    #[error("flushing {device}")]
    Flush {
        device: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Why no copy of a group's metadata was kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The group is away or unknown.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The copy cannot be written.
    #[error(transparent)]
    Write(#[from] BackupError),
}

/// Why there is no LVM to drive.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No `lvm` on this machine.
    #[error("no lvm in {}; install the package lvm2", DIRECTORIES.join(", "))]
    NoLvm,
    /// It could not be run.
    #[error("asking lvm for its version")]
    Run(#[from] RunError),
    /// It is too old, or says nothing.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// Its locking directory cannot be made.
    #[error("making LVM's locking directory {LOCKING_DIR}")]
    Locking(#[source] std::io::Error),
}

/// Runs LVM's commands.
pub trait Commands: Send + Sync {
    /// Where LVM keeps its locks.
    fn locking_dir(&self) -> &Path;

    /// Runs one command to its end, with the configuration in this directory, and a lock that lives as long as the command does.
    /// `started` is told which process it is.
    ///
    /// # Errors
    /// It could not be started, or how it ended is not known.
    fn run(&self, command: &Command, system_dir: &Path, held: &File, started: &dyn Fn(u32)) -> Result<Output, RunError>;
}

/// The `lvm` of this machine.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    /// Its version.
    pub version: Version,
}

impl Program {
    /// Finds `lvm` in fixed directories and asks for its version.
    ///
    /// # Errors
    /// There is none, or one that is too old.
    pub fn find() -> Result<Self, SetupError> {
        let find = |name| DIRECTORIES.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
        let path = find("lvm").ok_or(SetupError::NoLvm)?;
        let mut invocation = Invocation::new(&path, ["version"]);
        invocation.envs = vec![("LVM_SUPPRESS_FD_WARNINGS".into(), "1".into())];
        let output = run(&invocation)?;
        let version = Version::parse(&output.stdout)?;
        if version < Version::RECOMMENDED {
            tracing::warn!(%version, recommended = %Version::RECOMMENDED, "this LVM is slow on large volume groups");
        }
        files::make_directories(Path::new(LOCKING_DIR)).map_err(SetupError::Locking)?;
        // Every package of LVM needs it.
        if let Some(dmsetup) = find("dmsetup") {
            targets::load(&dmsetup);
        }
        Ok(Self { path, version })
    }
}

impl Commands for Program {
    fn locking_dir(&self) -> &Path {
        Path::new(LOCKING_DIR)
    }

    fn run(&self, command: &Command, system_dir: &Path, held: &File, started: &dyn Fn(u32)) -> Result<Output, RunError> {
        let mut invocation = Invocation::new(&self.path, command.argv());
        invocation.envs =
            vec![("LVM_SYSTEM_DIR".into(), system_dir.display().to_string()), ("LVM_SUPPRESS_FD_WARNINGS".into(), "1".into())];
        invocation.apart = true;
        run_holding(&invocation, Some(held), started)
    }
}

/// What is known of the way of commits to the disks.
#[derive(Debug)]
struct Commits {
    /// A command may commit at any moment, so no flush is the last word.
    running: bool,
    /// How many commands have begun or ended: a flush from before the last of them says nothing.
    moves: u64,
    /// What the last flush made durable, which is one and the same for as long as no header on the disks moves. Others commit
    /// too, LVM never flushes, and a seqno comes again after a vgcfgrestore.
    flushed: Weak<Vg>,
}

/// The disks of a group. They may hang, so they are asked on the group's worker only.
struct Disks {
    kernel: Arc<dyn Kernel>,
    source: Source,
    commits: Mutex<Commits>,
}

/// What the configuration was written for.
#[derive(PartialEq, Eq)]
struct Written {
    pvs: Vec<(PvUuid, PathBuf)>,
    /// LVM waits for udevd.
    udev: bool,
    /// It did not, once.
    own_nodes: bool,
}

/// One volume group.
pub struct Engine {
    commands: Arc<dyn Commands>,
    kernel: Arc<dyn Kernel>,
    name: VgName,
    conf: Conf,
    survivors: SurvivorLock,
    disks: Arc<Disks>,
    worker: Worker,
    writer: Writer,
    written: Mutex<Option<Written>>,
    /// Set while a dead lvm's work is not known to be brought in order: at start, and after one died.
    disorder: AtomicBool,
    /// The model of which a copy was kept last.
    copied: Mutex<Weak<Vg>>,
    /// Told after each command that may have committed.
    on_commit: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Engine {
    /// The group of this name, there or not. Its LVM configuration lies in a directory of its own under `run_dir`, so that a
    /// group whose disks hang does not hang the others. It counts as wedged when one command, or one access to its disks, takes longer than
    /// `patience`.
    pub fn new(
        commands: Arc<dyn Commands>,
        kernel: Arc<dyn Kernel>,
        run_dir: &Path,
        name: VgName,
        patience: Duration,
        trust: Trust,
    ) -> Self {
        let conf = Conf {
            run_dir: run_dir.join(format!("vg-{name}")),
            locking_dir: commands.locking_dir().to_owned(),
            udev: false,
            own_nodes: false,
        };
        let source = Source::new(Arc::clone(&kernel), name.clone(), trust);
        // A driver may have died between a commit and its flush.
        let commits = Mutex::new(Commits { running: false, moves: 0, flushed: Weak::new() });
        Self {
            commands,
            disks: Arc::new(Disks { kernel: Arc::clone(&kernel), source, commits }),
            kernel,
            name,
            survivors: SurvivorLock::new(&conf.system_dir()),
            conf,
            worker: Worker::new(patience),
            writer: Writer::new(patience),
            written: Mutex::new(None),
            disorder: AtomicBool::new(true),
            copied: Mutex::default(),
            on_commit: None,
        }
    }

    /// Says what the group was in an earlier life of the driver; see [`Source`].
    pub fn remember(&self, vg: &Vg) {
        self.disks.source.remember(vg);
    }

    /// Has something done at the disks, and waits for it no longer than the group's patience.
    fn on_disks<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Disks) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let disks = Arc::clone(&self.disks);
        self.worker.run(what, move || work(&disks)).map_err(|error| match error {
            WorkerError::Stuck(Stuck { what, seconds }) => ReadError::Hangs { vg: self.name.clone(), what, seconds },
            WorkerError::Late { what, seconds } => ReadError::Slow { vg: self.name.clone(), what, seconds },
            WorkerError::NoThread(source) => ReadError::NoThread { vg: self.name.clone(), source },
        })
    }

    /// Has this called after each command that may have committed; it must not block.
    pub fn on_commit(&mut self, told: impl Fn() + Send + Sync + 'static) {
        self.on_commit = Some(Box::new(told));
    }

    /// Writes the configuration and the links to the PVs where they are not as they must be.
    fn prepare(&self, view: &View) -> Result<(), ConfError> {
        let pvs = view.disks.iter().map(|(uuid, path)| (uuid.clone(), path.clone())).collect();
        let udev = matches!(self.kernel.udev(), Udev::Answers { .. });
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let own_nodes = !udev || written.as_ref().is_some_and(|before| before.own_nodes);
        let wanted = Written { pvs, udev, own_nodes };
        if written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        Conf { udev, own_nodes, ..self.conf.clone() }.write()?;
        self.conf.link_pvs(&wanted.pvs)?;
        *written = Some(wanted);
        Ok(())
    }

    fn lvm(&self, turn: &Turn<'_>, command: &Command) -> Result<Output, ChangeError> {
        let held = self.survivors.hold()?;
        let started = |pid| turn.started(pid);
        effect(command.name(), command, || self.commands.run(command, &self.conf.system_dir(), &held, &started))
            .map_err(|source| ChangeError::Run { command: command.to_string(), source })
    }

    /// Runs one command, judges its end and counts it.
    fn run(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        let begin = Instant::now();
        let ended = self.run_to_end(turn, command);
        metrics::count(command.name(), ended.is_ok(), begin.elapsed());
        ended
    }

    fn run_to_end(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        let output = self.lvm(turn, command).inspect_err(|_| {
            // Whether and how it ended is not known.
            self.disorder.store(true, Ordering::SeqCst);
        })?;
        let ended = match (output.status.code(), output.died_by_signal()) {
            (Some(code), _) => Ended::Exit(code),
            (None, signal) => {
                self.disorder.store(true, Ordering::SeqCst);
                Ended::Signal(signal.unwrap_or(0))
            }
        };
        let report = report::check(command, ended, &output.stdout, &output.stderr)?;
        for said in report.errors() {
            tracing::warn!(vg = %self.name, %command, said, "LVM did what it was told, but complains");
        }
        Ok(())
    }

    /// Runs one command; where lvm dies, what it left is brought in order at once, since it may have frozen somebody's I/O.
    fn run_and_recover(&self, turn: &Turn<'_>, command: &Command, view: &View) -> Result<(), ChangeError> {
        let outcome = turn.run(told(command), || self.run(turn, command));
        if let Err(error) = self.put_in_order(turn, view) {
            tracing::error!(vg = %self.name, %error, "what a dead lvm left is not in order; the next change tries again");
        }
        outcome
    }

    /// Ends a dead lvm's work, before the first change of the group and after an lvm died.
    fn put_in_order(&self, turn: &Turn<'_>, view: &View) -> Result<(), ChangeError> {
        if !self.disorder.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut mended = leftover::settle(&*self.kernel, &self.conf.locking_dir, &view.vg.name, &view.vg.uuid, lock::LIMIT)
            .map_err(|source| ChangeError::Disorder { vg: self.name.clone(), source })?;
        // What the dead one committed is not in the view of the caller.
        let vg = self.read()?.vg;
        let undone = leftover::undo_half_made(&*self.kernel, &self.conf.locking_dir, &vg, lock::LIMIT)
            .map_err(|source| ChangeError::Disorder { vg: self.name.clone(), source })?;
        mended.extend(undone.open);
        self.disorder.store(undone.unseen, Ordering::SeqCst);
        if mended.is_empty() {
            return Ok(());
        }
        for lv in
            self.active(&vg.uuid).iter().filter_map(|uuid| vg.lvs.iter().find(|lv| lv.visible && lv.uuid.compact() == *uuid))
        {
            // A visible LV that bears a reserved name cannot be given to a command of ours; LVM made it and will refresh it.
            let Ok(name) = crate::types::LvName::new(&lv.name) else { continue };
            let refresh = Command::Refresh { vg: vg.name.clone(), lv: name };
            turn.run(told(&refresh), || self.run(turn, &refresh)).inspect_err(|_| self.disorder.store(true, Ordering::SeqCst))?;
        }
        Ok(())
    }

    /// The compact UUIDs of the LVs of this group that have a device.
    fn active(&self, vg: &VgUuid) -> BTreeSet<String> {
        let prefix = format!("LVM-{}", vg.compact());
        let devices = self.kernel.dm_list(&prefix).unwrap_or_default();
        devices.iter().filter_map(|device| device.uuid.get(prefix.len()..prefix.len() + 32).map(str::to_owned)).collect()
    }
}

impl Disks {
    /// LVM never flushes what it wrote; without this a power cut could take a volume back that was already answered for.
    fn flush(&self, view: &View) -> Result<(), ChangeError> {
        let before = {
            let commits = self.commits();
            if !commits.running && commits.flushed.upgrade().is_some_and(|flushed| Arc::ptr_eq(&flushed, &view.vg)) {
                return Ok(());
            }
            commits.moves
        };
        for device in view.disks.values() {
            self.kernel.flush(device).map_err(|source| ChangeError::Flush { device: device.clone(), source })?;
        }
        let mut commits = self.commits();
        if commits.moves == before {
            commits.flushed = Arc::downgrade(&view.vg);
        }
        Ok(())
    }

    /// A command begins that may commit, or has ended.
    fn moves(&self, running: bool) {
        let mut commits = self.commits();
        *commits = Commits { running, moves: commits.moves + 1, flushed: Weak::new() };
    }

    fn commits(&self) -> MutexGuard<'_, Commits> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command as those who wait for it are told: the program and what it is for.
fn told(command: &Command) -> String {
    format!("{} to {command}", command.name())
}

impl Lvm for Engine {
    fn read(&self) -> Result<View, ReadError> {
        self.on_disks(READING, |disks| disks.source.read())?
    }

    fn alone(&self) -> Result<(), ChangeError> {
        Ok(self.survivors.alone()?)
    }

    fn turn(&self) -> Result<Turn<'_>, Wedged> {
        self.writer.enter()
    }

    fn change(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        self.alone()?;
        let view = self.read()?;
        self.prepare(&view)?;
        self.put_in_order(turn, &view)?;
        if !command.commits() {
            return self.run_and_recover(turn, command, &view);
        }
        let looked_at = view.clone();
        self.on_disks(READING, move |disks| disks.source.check_present(&looked_at))?.map_err(ChangeError::Away)?;
        // What this change builds on must not be lost without it.
        let flushed = view.clone();
        self.on_disks(FLUSHING, move |disks| disks.flush(&flushed))??;
        self.disks.moves(true);
        let outcome = self.run_and_recover(turn, command, &view);
        // A command that failed may have committed all the same.
        self.disks.moves(false);
        let durable = self.make_durable();
        let outcome = outcome.and(durable);
        if let Some(told) = &self.on_commit {
            told();
        }
        outcome
    }

    fn recover(&self, turn: &Turn<'_>) -> Result<(), ChangeError> {
        self.alone()?;
        let view = self.read()?;
        self.prepare(&view)?;
        self.put_in_order(turn, &view)
    }

    fn back_up(&self, backups: &Backups) -> Result<(), KeepError> {
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |last: Arc<Vg>| self.read().map(|view| Arc::ptr_eq(&view.vg, &last));
        if copied.upgrade().map(same).transpose()? == Some(true) {
            return Ok(());
        }
        let (view, text) = self.on_disks(READING, |disks| disks.source.text())??;
        backups.keep(&self.name, &view.vg, &text)?;
        *copied = Arc::downgrade(&view.vg);
        Ok(())
    }

    fn make_durable(&self) -> Result<(), ChangeError> {
        self.on_disks(FLUSHING, |disks| disks.flush(&disks.source.read()?))?
    }

    fn check_present(&self, view: &View) -> Result<(), String> {
        let view = view.clone();
        self.on_disks(READING, move |disks| disks.source.check_present(&view)).map_err(|error| error.to_string())?
    }

    fn queue(&self) -> GroupQueue {
        let queue = self.writer.queue();
        let stuck = || {
            let Stuck { what, seconds } = self.worker.stuck()?;
            let text = ReadError::Hangs { vg: self.name.clone(), what, seconds }.to_string();
            Some(Wedge::running_for(seconds, None, text))
        };
        GroupQueue { wedge: queue.wedge.or_else(stuck), ..queue }
    }

    fn pinned_group(&self) -> Option<VgUuid> {
        self.disks.source.pinned_group()
    }

    fn strangers(&self) -> Result<Vec<(PathBuf, String)>, ReadError> {
        self.disks.source.strangers()
    }

    fn split_off(&self) -> Result<Vec<Vg>, ReadError> {
        self.disks.source.split_off()
    }

    fn adopt(&self, only: Option<Vec<PathBuf>>) -> Result<(View, Option<Pin>), ReadError> {
        self.on_disks(READING, |disks| disks.source.adopt(only))?
    }
}

#[cfg(test)]
mod tests;
