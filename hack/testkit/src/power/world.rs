//! Calls in the life of some volumes as data, and a model of what the driver has acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::client::{Accepted, Csi, block, create, from_snapshot, from_volume, mount as mounted};
use crate::error::{Result, Trouble, ensure};
use crate::flow::{Places, Volume, delete_snapshot};
use crate::signature::{device_size, write_at};
use crate::test_vg::TestVg;
use crate::vg::{self, Lv};
use crate::{lab, tool};

/// Short name of a volume or snapshot.
type Name = &'static str;

/// The pod for which every volume is published.
const POD: &str = "pod";
/// Size in bytes of one piece of data that is written and synced.
const PIECE: usize = 192 << 10;
/// Distance in bytes between two pieces on a raw volume.
const STRIDE: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

/// How a volume is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Ext4,
    Xfs,
    Raw,
}

impl Access {
    fn word(self) -> &'static str {
        match self {
            Access::Ext4 => "ext4",
            Access::Xfs => "xfs",
            Access::Raw => "raw",
        }
    }

    fn capability(self) -> csi::VolumeCapability {
        match self {
            Access::Raw => block(Mode::SingleNodeWriter),
            other => mounted(other.word(), Mode::SingleNodeWriter),
        }
    }
}

/// A volume's content source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Nothing,
    Snapshot(Name),
    Volume(Name),
}

/// One call, or one synced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// CreateVolume in a pool, with a size in MiB.
    Create(Name, &'static str, u64, Access, From),
    /// DeleteVolume.
    Delete(Name),
    /// ControllerPublishVolume.
    Attach(Name),
    /// ControllerUnpublishVolume.
    Detach(Name),
    /// NodeStageVolume.
    Stage(Name),
    /// NodeUnstageVolume.
    Unstage(Name),
    /// NodePublishVolume.
    Publish(Name),
    /// NodeUnpublishVolume.
    Unpublish(Name),
    /// ControllerExpandVolume, to a size in MiB.
    Grow(Name, u64),
    /// NodeExpandVolume, to the volume's capacity.
    NodeGrow(Name),
    /// CreateSnapshot. The second name is the source volume's.
    Snapshot(Name, Name),
    /// DeleteSnapshot.
    DeleteSnapshot(Name),
    /// The pod writes the piece of data with this number and syncs it.
    Write(Name, u8),
}

impl Step {
    /// The volume or snapshot that the step is about.
    pub fn name(self) -> Name {
        match self {
            Step::Create(name, ..)
            | Step::Delete(name)
            | Step::Attach(name)
            | Step::Detach(name)
            | Step::Stage(name)
            | Step::Unstage(name)
            | Step::Publish(name)
            | Step::Unpublish(name)
            | Step::Grow(name, _)
            | Step::NodeGrow(name)
            | Step::Snapshot(name, _)
            | Step::DeleteSnapshot(name)
            | Step::Write(name, _) => name,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Step::Create(_, pool, mib, access, from) => {
                write!(f, "CreateVolume {name}: {mib} MiB, {pool}, {}", access.word())?;
                match from {
                    From::Nothing => Ok(()),
                    From::Snapshot(source) | From::Volume(source) => write!(f, ", from {source}"),
                }
            }
            Step::Delete(_) => write!(f, "DeleteVolume {name}"),
            Step::Attach(_) => write!(f, "ControllerPublishVolume {name}"),
            Step::Detach(_) => write!(f, "ControllerUnpublishVolume {name}"),
            Step::Stage(_) => write!(f, "NodeStageVolume {name}"),
            Step::Unstage(_) => write!(f, "NodeUnstageVolume {name}"),
            Step::Publish(_) => write!(f, "NodePublishVolume {name}"),
            Step::Unpublish(_) => write!(f, "NodeUnpublishVolume {name}"),
            Step::Grow(_, mib) => write!(f, "ControllerExpandVolume {name} to {mib} MiB"),
            Step::NodeGrow(_) => write!(f, "NodeExpandVolume {name}"),
            Step::Snapshot(_, of) => write!(f, "CreateSnapshot {name} of {of}"),
            Step::DeleteSnapshot(_) => write!(f, "DeleteSnapshot {name}"),
            Step::Write(_, piece) => write!(f, "write and fsync of piece {piece} on {name}"),
        }
    }
}

/// The acknowledged state of a volume.
#[derive(Clone)]
struct Kept {
    volume: Volume,
    /// The step that created it.
    made: Step,
    access: Access,
    linear: bool,
    attached: bool,
    /// A reboot ends this.
    staged: bool,
    /// A reboot ends this.
    published: bool,
    /// It has a filesystem, or was staged as a block device.
    used: bool,
    /// Bytes of a raw linear volume that a pod could read, and that were zeroed for this. The driver zeroes what an unstaged volume grows
    /// by only when it is staged.
    shown: u64,
    /// Numbers of the synced pieces.
    pieces: BTreeSet<u8>,
}

/// The acknowledged state of a snapshot.
#[derive(Clone)]
struct Cut {
    made: Step,
    id: String,
    bytes: u64,
    access: Access,
    /// Whether its source had a filesystem.
    used: bool,
    pieces: BTreeSet<u8>,
}

/// Everything that the driver has acknowledged so far.
#[derive(Clone, Default)]
pub struct World {
    volumes: BTreeMap<Name, Kept>,
    snapshots: BTreeMap<Name, Cut>,
}

impl World {
    /// Takes a step and records what the driver acknowledged.
    ///
    /// # Errors
    /// The driver refuses, or contradicts what it acknowledged earlier.
    pub fn take(&mut self, step: Step, csi: &Csi, places: &Places) -> Result<()> {
        match step {
            Step::Create(name, pool, mib, access, from) => self.create(step, (name, pool, mib, access, from), csi, places),
            Step::Delete(name) => {
                let kept = self.volume(name)?;
                kept.volume.through(csi).delete()?;
                self.volumes.remove(name);
                Ok(())
            }
            Step::Snapshot(name, of) => {
                let source = self.volume(of)?.clone();
                let made = source.volume.through(csi).snapshot(&format!("snapshot-{name}"))?;
                ensure(made.ready_to_use, || format!("{step} is not ready to use"))?;
                let bytes = u64::try_from(made.size_bytes).unwrap_or_default();
                let cut = Cut::new(step, made.snapshot_id, bytes, &source);
                if let Some(old) = self.snapshots.get(name) {
                    ensure((&old.id, old.bytes) == (&cut.id, bytes), || {
                        format!("{step} returned another snapshot when repeated")
                    })?;
                    return Ok(());
                }
                self.snapshots.insert(name, cut);
                Ok(())
            }
            Step::DeleteSnapshot(name) => {
                let cut = self.snapshots.get(name).ok_or_else(|| unknown(name))?;
                delete_snapshot(csi, &cut.id)?;
                self.snapshots.remove(name);
                Ok(())
            }
            other => {
                let kept = self.volumes.get_mut(other.name()).ok_or_else(|| unknown(other.name()))?;
                kept.volume = kept.volume.through(csi);
                kept.take(other)
            }
        }
    }

    fn create(
        &mut self,
        step: Step,
        (name, pool, mib, access, from): (Name, &str, u64, Access, From),
        csi: &Csi,
        places: &Places,
    ) -> Result<()> {
        let mut request = create(&lv_name(name), pool, mib * MIB, access.capability());
        let (source, pieces) = match from {
            From::Nothing => (None, BTreeSet::new()),
            From::Snapshot(source) => {
                let cut = self.snapshots.get(source).ok_or_else(|| unknown(source))?;
                (from_snapshot(&cut.id), cut.pieces.clone())
            }
            From::Volume(source) => {
                let kept = self.volume(source)?;
                (from_volume(&kept.volume.id), kept.pieces.clone())
            }
        };
        request.volume_content_source = source;
        let volume = Volume::create(csi, places, name, request)?;
        ensure(volume.size() >= mib * MIB, || format!("{step} returned {} bytes", volume.capacity))?;
        if let Some(old) = self.volumes.get_mut(name) {
            ensure((&old.volume.id, old.volume.capacity) == (&volume.id, volume.capacity), || {
                format!("{step} returned another volume when repeated")
            })?;
            return Ok(());
        }
        self.volumes.insert(name, Kept::new(volume, step, pieces));
        Ok(())
    }

    /// What only the driver's responses tell, one line for each volume and snapshot, to be stored where a power cut cannot reach it.
    pub fn save(&self) -> String {
        let volumes = self.volumes.iter().map(|(name, kept)| {
            let context: String = kept.volume.publish.iter().map(|(key, value)| format!("\t{key}={value}")).collect();
            format!("{name}\t{}\t{}\t{}{context}\n", kept.volume.id, kept.volume.capacity, kept.shown)
        });
        volumes.chain(self.snapshots.iter().map(|(name, cut)| format!("{name}\t{}\t{}\t0\n", cut.id, cut.bytes))).collect()
    }

    /// The model after some steps, with what [`World::save`] stored of their responses.
    ///
    /// # Errors
    /// The text does not belong to these steps.
    pub fn load(text: &str, steps: &[Step], csi: &Csi, places: &Places) -> Result<Self> {
        let mut answers = BTreeMap::new();
        for line in text.lines() {
            if let [name, id, size, shown, context @ ..] = &line.split('\t').collect::<Vec<_>>()[..] {
                let (size, shown) = (size.parse::<i64>().unwrap_or_default(), shown.parse::<u64>().unwrap_or_default());
                answers.insert(*name, (*id, size, shown, context.to_vec()));
            }
        }
        let mut world = Self::default();
        for &step in steps {
            let name = step.name();
            match step {
                Step::Create(_, _, _, access, from) => {
                    let pieces = match from {
                        From::Nothing => BTreeSet::new(),
                        From::Snapshot(source) => world.snapshots.get(source).ok_or_else(|| unknown(source))?.pieces.clone(),
                        From::Volume(source) => world.volume(source)?.pieces.clone(),
                    };
                    let (id, capacity, _, context) = answers.get(name).cloned().unwrap_or_default();
                    let mut volume = Volume::known(csi, places, name, access.capability(), id, capacity);
                    let pairs = context.iter().filter_map(|pair| pair.split_once('='));
                    volume.publish = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                    world.volumes.insert(name, Kept::new(volume, step, pieces));
                }
                Step::Delete(_) => {
                    world.volumes.remove(name);
                }
                Step::Snapshot(_, of) => {
                    let (id, bytes, ..) = answers.get(name).cloned().unwrap_or_default();
                    let bytes = u64::try_from(bytes).unwrap_or_default();
                    let cut = Cut::new(step, id.to_owned(), bytes, world.volume(of)?);
                    world.snapshots.insert(name, cut);
                }
                Step::DeleteSnapshot(_) => {
                    world.snapshots.remove(name);
                }
                other => world.volumes.get_mut(name).ok_or_else(|| unknown(name))?.note(other),
            }
        }
        for (name, kept) in &mut world.volumes {
            // The steps alone do not tell this, since reboots between them end stages.
            kept.shown = answers.get(name).map_or(0, |(_, _, shown, _)| *shown);
        }
        Ok(world)
    }

    /// This model after a power cut: nothing is staged or published.
    pub fn after_reboot(&self) -> Self {
        let mut world = self.clone();
        for kept in world.volumes.values_mut() {
            (kept.staged, kept.published) = (false, false);
        }
        world
    }

    /// Repeats a step that a power cut may have interrupted, after the calls that the orchestrator makes on the node before it.
    ///
    /// # Errors
    /// Those of [`World::take`].
    pub fn repeat(&mut self, step: Step, csi: &Csi, places: &Places) -> Result<()> {
        let name = step.name();
        let before: &[Step] = match step {
            Step::Publish(_) => &[Step::Stage(name)],
            Step::NodeGrow(_) | Step::Write(..) => &[Step::Stage(name), Step::Publish(name)],
            _ => &[],
        };
        for &step in before {
            self.take(step, csi, places)?;
        }
        self.take(step, csi, places)
    }

    /// Takes the inverse of a step that a power cut may have interrupted. `later` is the model after that step, which has the ids that only
    /// its response tells.
    ///
    /// # Errors
    /// Those of [`World::take`].
    pub fn invert(&mut self, step: Step, later: &World, csi: &Csi, places: &Places) -> Result<()> {
        let name = step.name();
        let opposite: Vec<Step> = match step {
            Step::Create(..) => {
                self.volumes.extend(later.volumes.get_key_value(name).map(|(name, kept)| (*name, kept.clone())));
                vec![Step::Delete(name)]
            }
            Step::Delete(_) => {
                // The caller got no response, so it cannot know whether this is the old volume or a new one.
                let made = self.volumes.remove(name).ok_or_else(|| unknown(name))?.made;
                vec![made]
            }
            Step::Snapshot(..) => {
                self.snapshots.extend(later.snapshots.get_key_value(name).map(|(name, cut)| (*name, cut.clone())));
                vec![Step::DeleteSnapshot(name)]
            }
            Step::DeleteSnapshot(_) => {
                let made = self.snapshots.remove(name).ok_or_else(|| unknown(name))?.made;
                vec![made]
            }
            Step::Attach(_) => vec![Step::Detach(name)],
            Step::Detach(_) => {
                // The old grant may be gone; then the new one differs.
                self.volumes.get_mut(name).ok_or_else(|| unknown(name))?.attached = false;
                vec![Step::Attach(name)]
            }
            Step::Stage(_) => vec![Step::Unstage(name)],
            Step::Unstage(_) => vec![Step::Stage(name)],
            Step::Publish(_) => vec![Step::Unpublish(name), Step::Unstage(name)],
            Step::Unpublish(_) => vec![Step::Stage(name), Step::Publish(name)],
            // These have no inverse but deleting the volume.
            Step::Grow(..) | Step::NodeGrow(_) | Step::Write(..) => {
                vec![Step::Unstage(name), Step::Detach(name), Step::Delete(name)]
            }
        };
        for step in opposite {
            self.take(step, csi, places)?;
        }
        Ok(())
    }

    /// Unstages everything, then fails unless the machine has exactly what was acknowledged.
    ///
    /// # Errors
    /// What is missing, or was not acknowledged.
    pub fn verify(&mut self, vg: &TestVg, csi: &Csi, places: &Places) -> Result<()> {
        for name in self.volumes.keys().copied().collect::<Vec<_>>() {
            if self.volume(name)?.staged {
                self.take(Step::Unpublish(name), csi, places)?;
                self.take(Step::Unstage(name), csi, places)?;
            }
        }
        let lvs = vg.lvs()?;
        self.verify_metadata(&lvs, vg)?;
        self.verify_attachments(csi)?;
        self.verify_content(&lvs, vg)
    }

    fn verify_metadata(&self, lvs: &[Lv], vg: &TestVg) -> Result<()> {
        let ours: BTreeMap<String, &Lv> = lvs
            .iter()
            .filter(|lv| lv.tags.iter().any(|tag| tag.starts_with("lvm-csi=")))
            .map(|lv| (format!("{}/{}", vg.uuid, lv.name), lv))
            .collect();
        let volumes = self.volumes.values().map(|kept| &kept.volume.id);
        let expected: BTreeSet<&String> = volumes.chain(self.snapshots.values().map(|cut| &cut.id)).collect();
        let found: BTreeSet<&String> = ours.keys().collect();
        ensure(expected == found, || format!("acknowledged: {expected:?}; found: {found:?}"))?;
        let sizes = self.volumes.values().map(|kept| (&kept.volume.id, kept.volume.size()));
        for (id, bytes) in sizes.chain(self.snapshots.values().map(|cut| (&cut.id, cut.bytes))) {
            let size = ours.get(id).map_or(0, |lv| lv.size);
            ensure(size == bytes, || format!("{id} was acknowledged with {bytes} bytes and has {size}"))?;
        }
        for kept in self.volumes.values().filter(|kept| kept.used) {
            let Some(lv) = ours.get(&kept.volume.id) else { continue };
            let wanted = format!("csi.fs={}", kept.access.word());
            ensure(lv.tags.contains(&wanted), || format!("{} lacks the tag {wanted}; it has {:?}", lv.name, lv.tags))?;
            if kept.linear && kept.access == Access::Raw {
                let zeroed = zeroed(lv);
                ensure(zeroed >= kept.shown, || {
                    format!("{} was visible up to byte {}, but zeroed only up to {zeroed}", lv.name, kept.shown)
                })?;
            }
        }
        Ok(())
    }

    fn verify_attachments(&self, csi: &Csi) -> Result<()> {
        let answer = csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
        let found: BTreeSet<(String, Vec<String>)> = answer
            .entries
            .into_iter()
            .map(|entry| {
                let nodes = entry.status.map(|status| status.published_node_ids).unwrap_or_default();
                (entry.volume.map(|volume| volume.volume_id).unwrap_or_default(), nodes)
            })
            .collect();
        let nodes = |kept: &Kept| if kept.attached { vec![kept.volume.node.clone()] } else { Vec::new() };
        let expected: BTreeSet<_> = self.volumes.values().map(|kept| (kept.volume.id.clone(), nodes(kept))).collect();
        ensure(expected == found, || format!("acknowledged attachments: {expected:?}; found: {found:?}"))?;
        for kept in self.volumes.values().filter(|kept| kept.attached) {
            let mut again = kept.volume.through(csi);
            again.attach()?;
            ensure(again.publish == kept.volume.publish, || format!("the grant of {} has changed", kept.volume.id))?;
        }
        Ok(())
    }

    /// Reads every filesystem and every raw device, without the driver.
    fn verify_content(&self, lvs: &[Lv], vg: &TestVg) -> Result<()> {
        let volumes = self.volumes.iter().filter(|(_, kept)| kept.used);
        let volumes = volumes.map(|(name, kept)| (*name, &kept.volume.id, kept.access, &kept.pieces, true));
        let cuts = self.snapshots.iter().filter(|(_, cut)| cut.used);
        let cuts = cuts.map(|(name, cut)| (*name, &cut.id, cut.access, &cut.pieces, false));
        let all: Vec<_> = volumes.chain(cuts).collect();
        if all.is_empty() {
            return Ok(());
        }
        let paths: Vec<String> =
            all.iter().filter_map(|(_, id, ..)| Some(format!("{}/{}", vg.name, id.split_once('/')?.1))).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        vg::lvm(&[&["lvchange", "-qq", "-ay", "-K"], &paths[..]].concat())?;
        tool::settle()?;
        for ((name, _, access, pieces, writable), path) in all.iter().zip(&paths) {
            let device = Path::new("/dev").join(path);
            let lv = lvs.iter().find(|lv| path.ends_with(&format!("/{}", lv.name)));
            let looked = match access {
                Access::Raw => read_device(&device, lv.map_or(0, zeroed), pieces),
                filesystem if *writable => read_filesystem(&device, filesystem.word(), pieces),
                // Its journal may need a replay: after a cut within a snapshot, LVM completes it without freezing the filesystem.
                filesystem => with_overlay(&device, |over| read_filesystem(over, filesystem.word(), pieces)),
            };
            looked.map_err(|trouble| Trouble::wrong(format!("{name}: {trouble:?}")))?;
        }
        vg::lvm(&[&["lvchange", "-qq", "-an"], &paths[..]].concat()).map(drop)
    }

    fn volume(&self, name: Name) -> Result<&Kept> {
        self.volumes.get(name).ok_or_else(|| unknown(name))
    }

    /// The kind of a step: its call, with the kind of the volume for calls that depend on it.
    pub fn kind(&self, step: Step) -> String {
        let call = step.to_string();
        let call = call.split_once(' ').map_or("", |(call, _)| call);
        let made = match (step, self.volumes.get(step.name())) {
            (Step::Create(..), _) => Some(step),
            (Step::Stage(_) | Step::Grow(..) | Step::Write(..), Some(kept)) => Some(kept.made),
            _ => None,
        };
        match made {
            Some(Step::Create(_, pool, _, access, from)) => {
                let source = match from {
                    From::Nothing => "",
                    From::Snapshot(_) => " from a snapshot",
                    From::Volume(_) => " from a volume",
                };
                format!("{call}, {pool}, {}{source}", access.word())
            }
            _ => call.to_owned(),
        }
    }

    /// Whether a volume must never be formatted again.
    pub fn is_used(&self, name: Name) -> bool {
        self.volumes.get(name).is_some_and(|kept| kept.used)
    }
}

impl Cut {
    fn new(made: Step, id: String, bytes: u64, source: &Kept) -> Self {
        Self { made, id, bytes, access: source.access, used: source.used, pieces: source.pieces.clone() }
    }
}

impl Kept {
    fn new(volume: Volume, made: Step, pieces: BTreeSet<u8>) -> Self {
        let (linear, access, used) = match made {
            Step::Create(_, pool, _, access, from) => (pool == "linear", access, from != From::Nothing),
            _ => (false, Access::Raw, false),
        };
        Self { volume, made, access, linear, attached: false, staged: false, published: false, used, shown: 0, pieces }
    }

    fn take(&mut self, step: Step) -> Result<()> {
        let csi = self.volume.csi();
        match step {
            Step::Attach(_) => {
                let before = self.attached.then(|| self.volume.publish.clone());
                self.volume.attach()?;
                ensure(before.is_none_or(|before| before == self.volume.publish), || {
                    format!("{step} returned another context when repeated")
                })?;
            }
            Step::Detach(_) => self.volume.detach()?,
            Step::Stage(_) => self.volume.stage()?,
            // Kubelet unpublishes a volume before it unstages it.
            Step::Unstage(_) => {
                self.volume.unpublish(POD)?;
                self.volume.unstage()?;
            }
            Step::Publish(_) => self.volume.publish(POD).map(drop)?,
            Step::Unpublish(_) => self.volume.unpublish(POD)?,
            Step::Grow(_, mib) => {
                let request = self.volume.expand_request(mib * MIB);
                let bytes = csi.controller_expand_volume(request).accepted("ControllerExpandVolume")?.capacity_bytes;
                ensure(u64::try_from(bytes).is_ok_and(|bytes| bytes >= mib * MIB), || format!("{step} returned {bytes} bytes"))?;
                self.volume.capacity = bytes;
            }
            Step::NodeGrow(_) => {
                csi.node_expand_volume(self.volume.node_expand_request(POD)).accepted("NodeExpandVolume")?;
            }
            Step::Write(_, number) => write_piece(&self.volume.target(POD), self.access, number)?,
            Step::Create(..) | Step::Delete(_) | Step::Snapshot(..) | Step::DeleteSnapshot(_) => {}
        }
        self.note(step);
        Ok(())
    }

    /// Records what a step acknowledged, apart from what only its response tells.
    fn note(&mut self, step: Step) {
        match step {
            Step::Attach(_) => self.attached = true,
            Step::Detach(_) => self.attached = false,
            Step::Stage(_) => (self.staged, self.used) = (true, true),
            Step::Unstage(_) => (self.staged, self.published) = (false, false),
            Step::Publish(_) => self.published = true,
            Step::Unpublish(_) => self.published = false,
            Step::Write(_, number) => {
                self.pieces.insert(number);
            }
            _ => {}
        }
        if self.staged {
            self.shown = self.volume.size();
        }
    }
}

fn unknown(name: Name) -> Trouble {
    Trouble::wrong(format!("there is no {name} at this step"))
}

/// A name as external-provisioner makes it, which the driver uses for the LV too.
fn lv_name(name: Name) -> String {
    let number: u64 = name.bytes().fold(7, |sum, byte| sum.wrapping_mul(131).wrapping_add(u64::from(byte)) & 0xffff_ffff_ffff);
    format!("pvc-0f0e0d0c-0b0a-4000-8000-{number:012x}")
}

/// The bytes of a piece. No two pieces, and no two blocks of one, are equal.
fn piece(number: u8) -> Vec<u8> {
    let mut state = u64::from(number) + 1;
    let mut bytes = Vec::with_capacity(PIECE);
    while bytes.len() < PIECE {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(state.to_be_bytes());
    }
    bytes
}

fn write_piece(target: &Path, access: Access, number: u8) -> Result<()> {
    if access == Access::Raw {
        return write_at(target, u64::from(number) * STRIDE, &piece(number));
    }
    let path = target.join(format!("piece-{number}"));
    let failed = || format!("writing {}", path.display());
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path).map_err(Trouble::io(failed()))?;
    file.write_all(&piece(number)).map_err(Trouble::io(failed()))?;
    file.sync_all().map_err(Trouble::io(failed()))?;
    // The directory entry must be durable too.
    File::open(target).and_then(|directory| directory.sync_all()).map_err(Trouble::io(failed()))
}

/// Up to which byte a raw volume must be zero where nothing was written. For a linear volume its tag tells.
fn zeroed(lv: &Lv) -> u64 {
    let tag = lv.tags.iter().find_map(|tag| tag.strip_prefix("csi.z=")?.parse().ok());
    if lv.pool.is_empty() { tag.unwrap_or(0) } else { lv.size }
}

/// Fails unless a raw device holds the pieces, and zeros everywhere else up to this byte.
fn read_device(device: &Path, bytes: u64, pieces: &BTreeSet<u8>) -> Result<()> {
    let failed = || format!("reading {}", device.display());
    let file = File::open(device).map_err(Trouble::io(failed()))?;
    let mut found = vec![0; usize::try_from(STRIDE).unwrap_or_default()];
    for number in 0..bytes / STRIDE {
        file.read_exact_at(&mut found, number * STRIDE).map_err(Trouble::io(failed()))?;
        let mut expected = match u8::try_from(number) {
            Ok(number) if pieces.contains(&number) => piece(number),
            _ => Vec::new(),
        };
        expected.resize(found.len(), 0);
        ensure(found == expected, || format!("MiB {number} is not what was synced, or not zero"))?;
    }
    Ok(())
}

/// Mounts a filesystem, which replays its journal, compares the pieces, and checks the filesystem.
fn read_filesystem(device: &Path, kind: &str, pieces: &BTreeSet<u8>) -> Result<()> {
    let at = Path::new(lab::ROOT).join("look");
    fs::create_dir_all(&at).map_err(Trouble::io(format!("making {}", at.display())))?;
    let options = if kind == "xfs" { "nouuid" } else { "" };
    let mounted = mount(Some(device), &at, Some(kind), MsFlags::empty(), Some(options));
    mounted.map_err(Trouble::errno(format!("mounting {}", device.display())))?;
    let read = pieces.iter().try_for_each(|&number| {
        let path = at.join(format!("piece-{number}"));
        let bytes = fs::read(&path).map_err(Trouble::io(format!("reading {}", path.display())))?;
        ensure(bytes == piece(number), || format!("piece {number} is not what was synced"))
    });
    umount2(&at, MntFlags::empty()).map_err(Trouble::errno(format!("unmounting {}", device.display())))?;
    read?;
    match kind {
        "xfs" => tool::run("xfs_repair", &["-n".as_ref(), device.as_os_str()]),
        _ => tool::run("e2fsck", &["-fn".as_ref(), device.as_os_str()]),
    }
    .map(drop)
}

/// Does some work with a writable snapshot of a device that must not change.
fn with_overlay(device: &Path, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let file = Path::new(lab::ROOT).join("overlay");
    let made = File::create(&file).and_then(|made| made.set_len(256 << 20));
    made.map_err(Trouble::io(format!("making {}", file.display())))?;
    let changes = tool::run("losetup", &["--find".as_ref(), "--show".as_ref(), file.as_os_str()])?;
    let changes = changes.trim();
    let sectors = device_size(device)? / 512;
    let table = format!("0 {sectors} snapshot {} {changes} N 8", device.display());
    tool::run("dmsetup", &["create", "overlay", "--table", &table])?;
    let done = tool::settle().and_then(|()| work(Path::new("/dev/mapper/overlay")));
    tool::settle()?;
    tool::run("dmsetup", &["remove", "--retry", "overlay"])?;
    tool::run("losetup", &["--detach", changes])?;
    done
}
