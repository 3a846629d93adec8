//! The node service: staging (activate, format, mount), publishing (bind mount), and undoing both.
//!
//! Every function here blocks and must run on an operation's thread, whose reservation it takes as proof. Stage and expand are keyed by
//! the volume. Paths are only checked: a volume may have several, and one may belong to a pod that is gone.

mod block;
mod condition;
mod ephemeral;
mod expand;
mod filesystem;
mod publish;
mod stage;
mod stats;
mod unstage;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::attach::{Ack, AckState, LedgerError, Mode, PathSum, PublishContext, grant};
use crate::device::DeviceError;
use crate::filesystem::{FsError, MountOptions};
use crate::host::DmDevice;
use crate::inflight::Reservation;
use crate::machine::Machine;
use crate::mount::{MountError, Table, Target};
use crate::types::{AccessType, Capability, Error, FsKind, LvUuid, NodeId, Object, VolumeId};
use crate::volume::context::VolumeContext;
use crate::volume::create::usable_as;
use crate::volume::inventory::Volume;

pub use ephemeral::PublishEphemeral;
pub use stats::Stats;

/// The node service of this machine.
pub struct Node {
    machine: Arc<Machine>,
    id: NodeId,
    /// Where read-only mounts are prepared: a directory of the driver's own, emptied by a reboot.
    binds: PathBuf,
    attach_required: bool,
    /// Volumes whose filesystem could not be grown since this process began.
    ungrown: Mutex<BTreeSet<LvUuid>>,
}

/// NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub id: VolumeId,
    /// `staging_target_path`.
    pub staging: String,
    /// The requested use.
    pub capability: Capability,
    /// What ControllerPublishVolume answered; `None` if the node itself takes the right to use the volume.
    pub context: Option<PublishContext>,
    /// The checked `volume_context`.
    pub said: VolumeContext,
}

/// NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The volume and how it was staged.
    pub staged: Stage,
    /// `target_path`.
    pub target: String,
    /// `readonly`.
    pub read_only: bool,
}

impl Node {
    /// The node service over the agent of this machine. `binds` is a directory of the driver's own, emptied by a reboot.
    /// `attach_required`: the controller grants and ends the use of a volume; otherwise the node does so itself.
    pub fn new(machine: Arc<Machine>, id: NodeId, binds: PathBuf, attach_required: bool) -> Self {
        Self { machine, id, binds, attach_required, ungrown: Mutex::default() }
    }

    /// Whether the controller grants the use of volumes.
    pub fn attach_required(&self) -> bool {
        self.attach_required
    }

    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub fn id(&self) -> &NodeId {
        &self.id
    }

    /// Checks that the volume is the requested one, that the grant in force is the one that the context was made for, and that it allows
    /// the requested use.
    fn admit(&self, volume: &Volume, stage: &Stage) -> Result<PublishContext, Error> {
        self.machine.check_said(&stage.id, &stage.said)?;
        let state = self.machine.ledger().state(&volume.uuid);
        let context = grant::accepts(&state, &stage.id, &self.id, stage.context.as_ref())?;
        let what = || format!("volume {}", stage.id);
        let mode = &context.mode;
        let block = stage.capability.access == AccessType::Block;
        if mode.block != block || mode.access != stage.capability.mode {
            let reason = format!(
                "it is attached as {}, but volume_capability asks for {} {}",
                mode.to_text(),
                if block { "block" } else { "mount" },
                stage.capability.mode
            );
            return Err(Error::precondition(what(), reason));
        }
        usable_as(volume.marks.life, &volume.placement, stage.capability.access)
            .map_err(|why| Error::precondition(what(), why))?;
        Ok(context)
    }

    /// Takes the right to use a volume for this node if the controller does not grant it.
    fn take(&self, reservation: &Reservation, stage: &Stage) -> Result<(), Error> {
        if stage.context.is_some() {
            return Ok(());
        }
        let mode = Mode::new(stage.capability.access, stage.capability.mode, false);
        self.machine.take_volume(reservation, &stage.id, &mode)
    }

    /// Records where the volume is staged under the grant of this epoch.
    fn acknowledge(&self, volume: &Volume, epoch: u64, at: BTreeSet<PathSum>) -> Result<(), Error> {
        let ledger = self.machine.ledger();
        let ack = Ack { epoch, boot: ledger.boot().to_owned(), state: AckState::Staged, at };
        if ledger.state(&volume.uuid).ack.as_ref() == Some(&ack) {
            return Ok(());
        }
        ledger.acknowledge(&volume.uuid, &ack).map_err(|error| ledger_error(volume, &error))
    }

    /// The volume of a handle, for undoing what was done with it. If its LV was renamed, lost its tags or is gone, the volume as far as
    /// its grant knows it; `None` if there is nothing.
    fn to_undo(&self, id: &VolumeId) -> Result<Option<Volume>, Error> {
        let granted = self.machine.granted(id);
        match self.machine.volume(id) {
            Ok(volume) => Ok(granted.filter(|granted| granted.uuid != volume.uuid).or(Some(volume))),
            Err(Error::Missing { .. } | Error::Precondition { .. }) => Ok(granted),
            Err(error) => Err(error),
        }
    }

    fn is_staged(&self, volume: &Volume) -> bool {
        let ledger = self.machine.ledger();
        ledger.state(&volume.uuid).staged(ledger.boot())
    }

    /// Where the volume is staged. An earlier version did not record that: its stages are unknown until they are repeated.
    fn staged_at(&self, volume: &Volume) -> BTreeSet<PathSum> {
        let ledger = self.machine.ledger();
        ledger.state(&volume.uuid).staged_at(ledger.boot())
    }

    fn table(&self) -> Result<Table, Error> {
        Table::read(self.machine.kernel()).map_err(|error| Error::failed("reading the mount table", error))
    }

    /// The device node, after comparing the UUID and checking that the device serves I/O.
    fn usable(&self, volume: &Volume, device: &DmDevice) -> Result<PathBuf, Error> {
        crate::device::usable(self.machine.kernel(), device).map_err(|error| device_error(volume, "using its device", error))
    }
}

/// The filesystem to use: the requested one, else the one that the volume holds, else ext4.
fn kind_of(volume: &Volume, access: AccessType) -> Option<FsKind> {
    use crate::types::Life;
    match (access, volume.marks.life) {
        (AccessType::Block, _) => None,
        (AccessType::Mount(Some(kind)), _) | (AccessType::Mount(None), Life::Formatted(kind) | Life::Formatting(kind)) => {
            Some(kind)
        }
        (AccessType::Mount(None), _) => Some(FsKind::DEFAULT),
    }
}

fn options(volume: &Volume, kind: FsKind, flags: &[String]) -> Result<MountOptions, Error> {
    MountOptions::parse(kind, flags).map_err(|error| {
        Error::precondition(format!("volume {}", volume.id), format!("volume_capability.mount.mount_flags: {error}"))
    })
}

/// Checks the mount options of a capability without a volume, for ext4 if it names no filesystem.
///
/// # Errors
/// The refused option, and why.
pub fn check_mount_flags(capability: &Capability) -> Result<(), (String, String)> {
    let AccessType::Mount(kind) = capability.access else { return Ok(()) };
    let parsed = MountOptions::parse(kind.unwrap_or(FsKind::DEFAULT), &capability.mount_flags);
    parsed.map(drop).map_err(|error| (error.option.clone(), error.to_string()))
}

fn target(field: &'static str, path: &str) -> Result<Target, Error> {
    Target::new(path).map_err(|error| mount_error(field, path, error))
}

/// Turns a refused or failed mount into the caller's error.
fn mount_error(field: &'static str, path: &str, error: MountError) -> Error {
    let reason = error.to_string();
    match error {
        error if error.is_bad_path() => Error::invalid(field, path, reason),
        MountError::NoParent { .. } | MountError::WrongKind { .. } => Error::invalid(field, path, reason),
        MountError::Occupied { .. } | MountError::ReadOnlyDiffers { .. } => {
            Error::Differs { object: Object::Path, id: path.to_owned(), difference: reason }
        }
        MountError::NotEmpty { .. } | MountError::Covered { .. } | MountError::SourceDiffers { .. } => {
            Error::precondition(format!("{field} {path}"), reason)
        }
        other => Error::failed(format!("{field} {path}"), other),
    }
}

/// Turns a refused or failed unmount into the caller's error: what is at the path is its state, and contradicts no request.
fn unmount_error(field: &'static str, path: &str, error: MountError) -> Error {
    if error.is_conflict() {
        return Error::precondition(format!("{field} {path}"), format!("{error}; it is left alone"));
    }
    mount_error(field, path, error)
}

fn device_error(volume: &Volume, what: &str, error: DeviceError) -> Error {
    let text = format!("volume {}: {what}", volume.id);
    match error {
        DeviceError::Unusable { .. } | DeviceError::InUse { .. } | DeviceError::Claimed { .. } => {
            Error::precondition(text, error.to_string())
        }
        // The content is unknown, so nothing was written: the device may come back.
        DeviceError::Unreadable { .. } | DeviceError::Probe { .. } | DeviceError::ProbeEnded { .. } => {
            Machine::device_failed(volume, what, &error)
        }
        other => Error::failed(text, other),
    }
}

fn fs_error(volume: &Volume, what: &str, error: FsError) -> Error {
    match error {
        FsError::Unreadable { .. } | FsError::Device { .. } => Machine::device_failed(volume, what, &error),
        FsError::Superblock { .. } | FsError::Check { .. } | FsError::Unrepaired { .. } => {
            let reason = format!("{what}: {}", Error::failed("", error).chain().trim_start_matches(": "));
            Error::precondition(format!("volume {}", volume.id), reason)
        }
        other => Error::failed(format!("volume {}: {what}", volume.id), other),
    }
}

fn ledger_error(volume: &Volume, error: &LedgerError) -> Error {
    Machine::device_failed(volume, "recording its state", error)
}
