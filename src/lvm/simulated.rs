//! For tests: an LVM without disks. A command does what [`apply`] predicts, or fails as a test wants.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::types::{Bytes, GroupQueue};

use super::backup::Backups;
use super::command::Command;
use super::engine::{ChangeError, KeepError, Lvm};
use super::metadata::{SegmentKind, Vg, apply};
use super::report::{Ended, LvmError};
use super::source::{ReadError, View};
use super::writer::{Turn, Wedged, Writer};

/// The outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Works,
    Refused,
    /// LVM reports success and does nothing, as when a guard holds.
    Nothing,
    /// The command does its work, then fails.
    Late,
    /// The driver dies before the command.
    Crash,
}

/// Gives each thin pool of a group an undelivered message.
pub(crate) fn send_message(vg: &mut Vg) {
    for segment in vg.lvs.iter_mut().flat_map(|lv| &mut lv.segments) {
        if let SegmentKind::ThinPool { pending, .. } = &mut segment.kind {
            *pending = 1;
        }
    }
}

/// A volume group in memory.
pub(crate) struct Simulated {
    vg: Mutex<Vg>,
    fates: Mutex<VecDeque<Fate>>,
    done: Mutex<Vec<String>>,
    away: Mutex<bool>,
    unflushable: Mutex<Option<PathBuf>>,
    gate: Mutex<()>,
    writer: Writer,
}

impl Simulated {
    pub(crate) fn new(text: &str) -> Arc<Self> {
        let vg = Mutex::new(Vg::parse(text).unwrap());
        Arc::new(Self {
            vg,
            fates: Mutex::default(),
            done: Mutex::default(),
            away: Mutex::new(false),
            unflushable: Mutex::default(),
            gate: Mutex::default(),
            writer: Writer::new(Duration::from_secs(30)),
        })
    }

    /// Sets the outcomes of the next commands; later ones work.
    pub(crate) fn fates(&self, fates: impl IntoIterator<Item = Fate>) {
        *self.fates.lock().unwrap() = fates.into_iter().collect();
    }

    /// Takes the disks away or brings them back.
    pub(crate) fn away(&self, away: bool) {
        *self.away.lock().unwrap() = away;
    }

    /// Blocks all reads while the guard lives.
    pub(crate) fn hang(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// Sets the disk whose flushes fail, if any.
    pub(crate) fn unflushable(&self, device: Option<&str>) {
        *self.unflushable.lock().unwrap() = device.map(PathBuf::from);
    }

    /// The LVM commands since the last call of this.
    pub(crate) fn done(&self) -> Vec<String> {
        std::mem::take(&mut self.done.lock().unwrap())
    }

    pub(crate) fn vg(&self) -> Vg {
        self.vg.lock().unwrap().clone()
    }

    /// Changes the metadata as another user of LVM, or an lvm that still runs, would.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Vg)) {
        change(&mut self.vg.lock().unwrap());
    }

    fn work(&self, command: &Command) -> Result<(), String> {
        let mut vg = self.vg.lock().unwrap();
        *vg = apply(&vg, command).map_err(|error| error.to_string())?;
        Ok(())
    }
}

impl Lvm for Arc<Simulated> {
    fn read(&self) -> Result<View, ReadError> {
        drop(self.gate.lock().unwrap());
        let vg = self.vg();
        if *self.away.lock().unwrap() {
            return Err(ReadError::Absent { vg: vg.name });
        }
        let disks: BTreeMap<_, _> = vg.pvs.iter().map(|pv| (pv.uuid.clone(), PathBuf::from(&pv.key))).collect();
        Ok(View { vg: Arc::new(vg), disks: Arc::new(disks), area: Bytes(1 << 20), trouble: None })
    }

    fn alone(&self) -> Result<(), ChangeError> {
        Ok(())
    }

    fn turn(&self) -> Result<Turn<'_>, Wedged> {
        self.writer.enter()
    }

    fn change(&self, turn: &Turn<'_>, command: &Command) -> Result<(), ChangeError> {
        let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Works);
        assert_ne!(fate, Fate::Crash, "a crash that the test wants, before: {command}");
        self.done.lock().unwrap().push(command.name().to_owned());
        let outcome = turn.run(command.name(), || match fate {
            Fate::Works => self.work(command),
            Fate::Late => self.work(command).and(Err("it failed late".to_owned())),
            Fate::Refused => Err("it was refused".to_owned()),
            Fate::Nothing | Fate::Crash => Ok(()),
        });
        outcome.map_err(|message| {
            let (command, messages) = (command.to_string(), vec![message]);
            LvmError::Failed { command, ended: Ended::Exit(5), messages }.into()
        })
    }

    fn recover(&self, _: &Turn<'_>) -> Result<(), ChangeError> {
        Ok(())
    }

    fn back_up(&self, _: &Backups) -> Result<(), KeepError> {
        Ok(())
    }

    fn make_durable(&self) -> Result<(), ChangeError> {
        match self.unflushable.lock().unwrap().clone() {
            Some(device) => Err(ChangeError::Flush { device, source: std::io::Error::from_raw_os_error(nix::libc::EIO) }),
            None => Ok(()),
        }
    }

    fn check_present(&self, _: &View) -> Result<(), String> {
        Ok(())
    }

    fn queue(&self) -> GroupQueue {
        self.writer.queue()
    }
}
