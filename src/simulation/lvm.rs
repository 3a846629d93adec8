//! LVM on the simulated machine: what each command does to metadata and devices, part by part. It may die after any part.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use crate::device;
use crate::host::{MountEntry, Output, RunError};
use crate::lvm::Commands;
use crate::lvm::command::Command;
use crate::lvm::metadata::{Lv, SegmentKind, Vg, apply};
use crate::lvm::simulated::send_message;
use crate::types::LvName;

use super::doom::Moment;
use super::host::{Host, Line, On, State, Table};

/// What happens to a command whose driver lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It works.
    Works,
    /// LVM refuses it.
    Refused,
    /// It does its work, then fails.
    Late,
    /// It is killed after this many parts.
    Killed(usize),
}

/// Why a command did not finish.
pub(super) enum Stop {
    Refused(String),
    Killed,
}

type Part<'a> = &'a mut dyn FnMut() -> Result<(), Stop>;

impl Commands for Host {
    fn locking_dir(&self) -> &Path {
        &self.locking_dir
    }

    fn run(&self, command: &Command, _: &Path, _: &File, _: &dyn Fn(u32)) -> Result<Output, RunError> {
        let mounts = self.entries();
        let mut state = self.state();
        // The command that goes on alone has held LVM's lock until now.
        state.finish(&mounts);
        if self.doom.leaves_alone() {
            state.alone = Some(command.clone());
            drop(state);
            self.doom.at(Moment::Alone);
            unreachable!("the driver is dead");
        }
        let fate = state.fates.pop_front();
        let mut parts = 0;
        let mut part = || {
            self.doom.part();
            parts += 1;
            if fate == Some(Fate::Killed(parts)) { Err(Stop::Killed) } else { Ok(()) }
        };
        let done = match fate {
            Some(Fate::Refused) => Err(Stop::Refused("the test wants a refusal".to_owned())),
            _ => state.execute(command, &mounts, &mut part),
        };
        let (status, message) = match done {
            Ok(()) if fate == Some(Fate::Late) => (5 << 8, "it failed late".to_owned()),
            Ok(()) => (0, String::new()),
            Err(Stop::Refused(why)) => (5 << 8, why),
            Err(Stop::Killed) => (9, String::new()),
        };
        let (status, stderr) = (ExitStatus::from_raw(status), message.into_bytes());
        Ok(Output { status, stdout: Vec::new(), stderr, cut: false, took: Duration::ZERO })
    }
}

impl State {
    /// Lets the command whose driver died finish.
    pub(super) fn finish(&mut self, mounts: &[MountEntry]) {
        if let Some(command) = self.alone.take() {
            let _ = self.execute(&command, mounts, &mut || Ok(()));
        }
    }

    /// Runs a command without a driver.
    pub(super) fn by_hand(&mut self, command: &Command, mounts: &[MountEntry]) -> bool {
        self.finish(mounts);
        self.execute(command, mounts, &mut || Ok(())).is_ok()
    }

    fn execute(&mut self, command: &Command, mounts: &[MountEntry], part: Part<'_>) -> Result<(), Stop> {
        let refuse = |why: &str| Err(Stop::Refused(why.to_owned()));
        if self.disks.iter().any(|disk| disk.away) {
            return refuse("a PV is missing");
        }
        let before = match command {
            Command::CreateThin { .. } | Command::SnapshotThin { .. } | Command::Remove { .. } => self.delivered(part)?,
            // LVM does not refresh a volume without a device of its own, such as a pool that is active only beneath its volumes.
            Command::Refresh { lv, .. } if self.device(&self.vg(), lv.as_str(), "").is_some() => self.delivered(part)?,
            _ => (*self.vg()).clone(),
        };
        let mut command = command.clone();
        if let Command::Remove { targets, .. } = &mut command {
            targets.retain(|(lv, _)| self.device(&before, lv.as_str(), "").is_none());
        }
        let after = apply(&before, &command).map_err(|error| Stop::Refused(error.to_string()))?;
        match &command {
            Command::Activate { lvs, .. } => lvs.iter().try_for_each(|lv| self.activate(&before, lv, part)),
            Command::CreateThinPool { lv, .. } => {
                self.commit(after.clone(), part)?;
                self.activate_pool(&after, lv.as_str());
                Ok(())
            }
            Command::Deactivate { lvs, .. } => lvs.iter().try_for_each(|lv| match self.device(&before, lv.as_str(), "") {
                Some(minor) if self.openers(minor, mounts) > 0 => refuse("logical volume is in use"),
                Some(minor) => {
                    self.dm.remove(&minor);
                    Ok(())
                }
                None => Ok(()),
            }),
            Command::Refresh { lv, .. } => {
                let Some(minor) = self.device(&before, lv.as_str(), "") else { return Ok(()) };
                self.load(&before, lv.as_str(), minor);
                part()?;
                self.suspend(&before, lv.as_str(), minor, true);
                part()?;
                self.suspend(&before, lv.as_str(), minor, false);
                Ok(())
            }
            Command::Extend { lv: name, .. } | Command::SnapshotThin { origin: name, .. } => {
                let Some(minor) = self.device(&before, name.as_str(), "") else { return self.commit_thin(&before, after, part) };
                self.load(&after, name.as_str(), minor);
                part()?;
                self.suspend(&before, name.as_str(), minor, true);
                part()?;
                self.commit_thin(&before, after.clone(), part)?;
                self.suspend(&after, name.as_str(), minor, false);
                Ok(())
            }
            Command::CreateThin { .. } => self.commit_thin(&before, after, part),
            _ if after.seqno == before.seqno => Ok(()),
            _ => self.commit(after, part),
        }
    }

    /// The group after delivering messages to thin pools that a dead lvm did not deliver. LVM sends them again with its next
    /// creation or removal in the pool, and when it refreshes a volume of the pool.
    fn delivered(&mut self, part: Part<'_>) -> Result<Vg, Stop> {
        let mut vg = (*self.vg()).clone();
        self.deliver(&vg, part)?;
        let mut late = 0;
        for segment in vg.lvs.iter_mut().flat_map(|lv| &mut lv.segments) {
            if let SegmentKind::ThinPool { pending, .. } = &mut segment.kind {
                late += std::mem::take(pending);
            }
        }
        if late > 0 {
            vg.seqno += 1;
            self.commit(vg.clone(), part)?;
        }
        Ok(vg)
    }

    /// Sends the messages that give the thin pool a volume: make it, and count the transaction.
    fn deliver(&mut self, vg: &Vg, part: Part<'_>) -> Result<(), Stop> {
        for pool in &vg.lvs {
            let SegmentKind::ThinPool { transaction_id, pending: 1.., .. } = pool.segments[0].kind else { continue };
            if self.counted >= transaction_id {
                continue;
            }
            let is_last = |lv: &&Lv| matches!(lv.segments[0].kind, SegmentKind::Thin { transaction_id: made, .. } if made + 1 == transaction_id);
            if let Some(lv) = vg.thins(&pool.name).find(is_last) {
                if self.is_in_pool(&lv.uuid) {
                    return Err(Stop::Refused("the pool has this device already; manual intervention is required".to_owned()));
                }
                self.begin_thin(vg, lv);
                part()?;
            }
            self.counted = transaction_id;
            part()?;
        }
        Ok(())
    }

    /// Commits a group. With a new thin volume, it first commits the message that makes the volume.
    fn commit_thin(&mut self, before: &Vg, after: Vg, part: Part<'_>) -> Result<(), Stop> {
        if after.seqno == before.seqno + 2 {
            let mut message = after.clone();
            message.seqno -= 1;
            send_message(&mut message);
            self.commit(message.clone(), part)?;
            self.deliver(&message, part)?;
        }
        self.commit(after, part)
    }

    fn activate(&mut self, vg: &Vg, lv: &LvName, part: Part<'_>) -> Result<(), Stop> {
        let Some(here) = vg.lv(lv.as_str()) else { return Ok(()) };
        match &here.segments[0].kind {
            SegmentKind::ThinPool { .. } => {
                self.activate_pool(vg, lv.as_str());
                return Ok(());
            }
            SegmentKind::Thin { .. } if !self.is_in_pool(&here.uuid) => {
                return Err(Stop::Refused("No data available".to_owned()));
            }
            SegmentKind::Thin { pool, .. } => self.activate_pool(vg, pool),
            _ => {}
        }
        if self.device(vg, lv.as_str(), "").is_some() {
            return Ok(());
        }
        let (name, uuid) = (device::lv_dm_name(&vg.name, lv), device::lv_dm_uuid(&vg.uuid, &here.uuid));
        let minor = self.add(&name, &uuid).ok_or_else(|| Stop::Refused(format!("{name} exists already")))?;
        part()?;
        self.load(vg, lv.as_str(), minor);
        part()?;
        self.suspend(vg, lv.as_str(), minor, false);
        Ok(())
    }

    /// Makes only the two devices of a pool that a driver may look at.
    fn activate_pool(&mut self, vg: &Vg, pool: &str) {
        let Some(lv) = vg.lv(pool) else { return };
        for suffix in ["-tpool", "-pool"] {
            let (name, uuid) =
                (format!("{}-{pool}{suffix}", vg.name), format!("{}{suffix}", device::lv_dm_uuid(&vg.uuid, &lv.uuid)));
            if let Some(minor) = self.add(&name, &uuid) {
                let sectors = vg.lv_size(lv).0 / crate::types::SECTOR;
                let table = Table { lines: vec![Line { sectors, on: On::Pool }], read_only: false };
                self.dm.entry(minor).and_modify(|dm| dm.live = Some(table));
            }
        }
    }

    fn load(&mut self, vg: &Vg, lv: &str, minor: u32) {
        if let Some(lv) = vg.lv(lv) {
            let table = self.table(vg, lv);
            self.dm.entry(minor).and_modify(|dm| dm.inactive = Some(table));
        }
    }

    /// Suspends a device and its pool, or resumes both with their new tables.
    fn suspend(&mut self, vg: &Vg, lv: &str, minor: u32, suspended: bool) {
        let pool = match vg.lv(lv).map(|lv| &lv.segments[0].kind) {
            Some(SegmentKind::Thin { pool, .. }) => self.device(vg, pool, "-tpool"),
            _ => None,
        };
        for minor in pool.into_iter().chain([minor]) {
            if let Some(dm) = self.dm.get_mut(&minor) {
                dm.suspended = suspended;
                if !suspended {
                    dm.live = dm.inactive.take().or(dm.live.take());
                }
            }
        }
    }
}
