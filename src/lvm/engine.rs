//! Drives LVM on this machine: one process for each change of a volume group, none for reading it.

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

/// The directories searched for `lvm`; `PATH` is never used.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// LVM's lock directory, for our commands and for the host's own.
pub const LOCKING_DIR: &str = "/run/lock/lvm";
/// The accesses to the disks that may hang, as error texts name them.
const READING: &str = "reading";
const FLUSHING: &str = "flushing";

/// The volume group as the rules see it: they read it and change it.
pub trait Lvm: Send + Sync {
    /// Reads the group's current state from its disks.
    ///
    /// # Errors
    /// The group is away or unknown.
    fn read(&self) -> Result<View, ReadError>;

    /// Waits until no lvm of an earlier driver runs. Such an lvm may undo at any moment what was read before.
    ///
    /// # Errors
    /// One still runs.
    fn alone(&self) -> Result<(), ChangeError>;

    /// Waits for this caller's turn to change the group. One caller of this driver has the turn at a time.
    ///
    /// # Errors
    /// [`Wedged`] while a command of the group hangs.
    fn turn(&self) -> Result<Turn<'_>, Wedged>;

    /// Makes one change. On return it is on the disks.
    ///
    /// # Errors
    /// The change failed, or its outcome is unknown. Read again in both cases.
    fn change(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError>;

    /// Finishes the work of an lvm that died, when the driver starts. Devices that it suspended stay frozen until then.
    ///
    /// # Errors
    /// The group is away, or the leftovers could not be repaired. The next change tries again.
    fn recover(&self, turn: &Turn<'_>) -> Result<(), ChangeError>;

    /// Copies the metadata, unless they are unchanged since the last copy.
    ///
    /// # Errors
    /// The group cannot be read, or the copy cannot be written.
    fn back_up(&self, backups: &Backups) -> Result<(), KeepError>;

    /// Flushes the disks, so that what was read survives a power cut. Does nothing if that happened since the last commit,
    /// whoever made it. Until this returns, tell nobody that something exists or is gone.
    ///
    /// # Errors
    /// A disk did not confirm the flush.
    fn make_durable(&self) -> Result<(), ChangeError>;

    /// Checks that every PV of `view` is there and readable; the text names the one that is not. No change is made before this
    /// passes.
    ///
    /// # Errors
    /// The first PV that is away or cannot be read.
    fn check_present(&self, view: &View) -> Result<(), String>;

    /// The length of the queue, and the command that hangs. Does not access the disks.
    fn queue(&self) -> GroupQueue;

    /// The UUID of the group when it was last read, by this driver or an earlier one. Does not access the disks.
    fn pinned_group(&self) -> Option<VgUuid> {
        None
    }

    /// Devices that show metadata of this group or of another one with its name, but do not count. Each comes with what it shows.
    ///
    /// # Errors
    /// The devices cannot be listed.
    fn strangers(&self) -> Result<Vec<(PathBuf, String)>, ReadError> {
        Ok(Vec::new())
    }

    /// The groups on PVs that this group once had: `vgsplit` moves LVs there.
    ///
    /// # Errors
    /// The devices cannot be listed.
    fn split_off(&self) -> Result<Vec<Vg>, ReadError> {
        Ok(Vec::new())
    }

    /// Pins the group that has the name now, whatever was pinned before; a person decided that it is the right one. If `only`
    /// names devices, no others count. Returns the previous pin.
    ///
    /// # Errors
    /// No group has the name, or several do.
    fn adopt(&self, only: Option<Vec<PathBuf>>) -> Result<(View, Option<Pin>), ReadError> {
        let _ = only;
        self.read().map(|view| (view, None))
    }
}

/// Why a change was not made, or may not have been made.
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
    /// A dead lvm's leftovers could not be repaired; nothing was done.
    #[error("nothing was changed: the devices of volume group {vg} could not be repaired after an lvm died")]
    Disorder {
        vg: VgName,
        #[source]
        source: LeftoverError,
    },
    /// An lvm of an earlier driver still runs, or may still run; nothing was done.
    #[error("nothing was changed: {0}")]
    Survivor(#[from] SurvivorError),
    /// LVM's configuration could not be written; nothing was done.
    #[error(transparent)]
    Conf(#[from] ConfError),
    /// `lvm` could not be started, or how it ended is unknown.
    #[error("cannot run lvm to {command}")]
    Run {
        command: String,
        #[source]
        source: RunError,
    },
    /// LVM refused or failed.
    #[error(transparent)]
    Lvm(#[from] LvmError),
    /// The metadata are written, but a disk did not confirm the flush.
    #[error("cannot flush {device}")]
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
    #[error(transparent)]
    Write(#[from] BackupError),
}

/// Why there is no LVM to drive.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("no lvm in {}; install the package lvm2", DIRECTORIES.join(", "))]
    NoLvm,
    #[error("cannot ask lvm for its version")]
    Run(#[from] RunError),
    /// lvm is too old, or its output has no version.
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("cannot make LVM's locking directory {LOCKING_DIR}")]
    Locking(#[source] std::io::Error),
}

/// Runs LVM's commands.
pub trait Commands: Send + Sync {
    /// LVM's lock directory.
    fn locking_dir(&self) -> &Path;

    /// Runs one command to its end with the configuration in `system_dir`. The process keeps `held`, and so the lock on it, for
    /// as long as it lives. Calls `started` with its process id.
    ///
    /// # Errors
    /// The command could not be started, or how it ended is unknown.
    fn run(&self, command: &Command, system_dir: &Path, held: &File, started: &dyn Fn(u32)) -> Result<Output, RunError>;
}

/// The `lvm` of this machine.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    pub version: Version,
}

impl Program {
    /// Finds `lvm` in fixed directories and asks for its version.
    ///
    /// # Errors
    /// There is no `lvm`, or it is too old.
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
        // Every distribution's LVM package depends on dmsetup.
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

/// Which commits are known to be durable.
#[derive(Debug)]
struct Commits {
    /// A command is running and may commit at any moment, so a flush now does not cover it.
    running: bool,
    /// The number of commands that have begun or ended. A flush from before the last of them proves nothing.
    moves: u64,
    /// The model that the last flush made durable; it stays the same `Arc` until a header on the disks changes. A flag or a seqno
    /// is not enough: others commit too, LVM never flushes, and a seqno repeats after vgcfgrestore.
    flushed: Weak<Vg>,
}

/// The disks of a group. An access may hang, so only the group's worker makes it.
struct Disks {
    kernel: Arc<dyn Kernel>,
    source: Source,
    commits: Mutex<Commits>,
}

/// What the LVM configuration was last written for.
#[derive(PartialEq, Eq)]
struct Written {
    pvs: Vec<(PvUuid, PathBuf)>,
    /// LVM waits for udevd.
    udev: bool,
    /// At some time it did not, so LVM makes the device nodes itself.
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
    /// Set while a dead lvm may have left something to repair: at start, and after an lvm died.
    disorder: AtomicBool,
    /// The model that was copied last.
    copied: Mutex<Weak<Vg>>,
    /// Called after each command that may have committed.
    on_commit: Option<Box<dyn Fn() + Send + Sync>>,
}

impl Engine {
    /// An engine for the group of this name, present or not. Its LVM configuration has a directory of its own under `run_dir`, so
    /// a group whose disks hang does not hang the others. The group counts as wedged when a command, or an access to its disks,
    /// takes longer than `patience`.
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
        // Nothing counts as flushed: an earlier driver may have died between a commit and its flush.
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

    /// Records the group that an earlier run of the driver saw; see [`Source`].
    pub fn remember(&self, vg: &Vg) {
        self.disks.source.remember(vg);
    }

    /// Runs `work` on the group's worker and waits no longer than the group's patience.
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

    /// Sets the function to call after each command that may have committed. It must not block.
    pub fn on_commit(&mut self, notify: impl Fn() + Send + Sync + 'static) {
        self.on_commit = Some(Box::new(notify));
    }

    /// Writes the LVM configuration and the links to the PVs, unless they are current.
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

    /// Runs one command, checks its result and counts it in the metrics.
    fn run(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        let begin = Instant::now();
        let ended = self.run_to_end(turn, command);
        metrics::count(command.name(), ended.is_ok(), begin.elapsed());
        ended
    }

    fn run_to_end(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        let output = self.lvm(turn, command).inspect_err(|_| {
            // It may have died, or may still run.
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
        for complaint in report.errors() {
            tracing::warn!(vg = %self.name, %command, said = complaint, "LVM made the change but complains");
        }
        Ok(())
    }

    /// Runs one command. If lvm dies, repairs at once what it left, since that may block somebody's I/O.
    fn run_and_recover(&self, turn: &Turn<'_>, command: &Command, view: &View) -> Result<(), ChangeError> {
        let outcome = turn.run(described(command), || self.run(turn, command));
        if let Err(error) = self.repair(turn, view) {
            tracing::error!(vg = %self.name, %error, "cannot repair what a dead lvm left; the next change tries again");
        }
        outcome
    }

    /// Repairs what a dead lvm left, before the first change of the group and after an lvm died.
    fn repair(&self, turn: &Turn<'_>, view: &View) -> Result<(), ChangeError> {
        if !self.disorder.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut mended = leftover::settle(&*self.kernel, &self.conf.locking_dir, &view.vg.name, &view.vg.uuid, lock::LIMIT)
            .map_err(|source| ChangeError::Disorder { vg: self.name.clone(), source })?;
        // The caller's view lacks what the dead lvm committed.
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
            // No command of ours takes a visible LV with a reserved name; LVM made that LV and will refresh it.
            let Ok(name) = crate::types::LvName::new(&lv.name) else { continue };
            let refresh = Command::Refresh { vg: vg.name.clone(), lv: name };
            turn.run(described(&refresh), || self.run(turn, &refresh))
                .inspect_err(|_| self.disorder.store(true, Ordering::SeqCst))?;
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
    /// Flushes the PVs of `view`. LVM never flushes: a power cut could take back a volume that a caller was already told exists.
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

    /// Records that a command which may commit begins (`running`) or has ended.
    fn moves(&self, running: bool) {
        let mut commits = self.commits();
        *commits = Commits { running, moves: commits.moves + 1, flushed: Weak::new() };
    }

    fn commits(&self) -> MutexGuard<'_, Commits> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command as error texts name it to waiting callers: the program and its purpose.
fn described(command: &Command) -> String {
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
        self.repair(turn, &view)?;
        if !command.commits() {
            return self.run_and_recover(turn, command, &view);
        }
        let checked = view.clone();
        self.on_disks(READING, move |disks| disks.source.check_present(&checked))?.map_err(ChangeError::Away)?;
        // The change builds on what was read, so that must not be lost without it.
        let flushed = view.clone();
        self.on_disks(FLUSHING, move |disks| disks.flush(&flushed))??;
        self.disks.moves(true);
        let outcome = self.run_and_recover(turn, command, &view);
        // A failed command may have committed all the same.
        self.disks.moves(false);
        let durable = self.make_durable();
        let outcome = outcome.and(durable);
        if let Some(notify) = &self.on_commit {
            notify();
        }
        outcome
    }

    fn recover(&self, turn: &Turn<'_>) -> Result<(), ChangeError> {
        self.alone()?;
        let view = self.read()?;
        self.prepare(&view)?;
        self.repair(turn, &view)
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
