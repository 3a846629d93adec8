//! Reads a volume group from its disks, without LVM: the only way the driver learns what is in a group.
//!
//! A device's label says which PV it is and where its metadata areas lie; an area's header points to the current text. A parsed
//! model stays valid until a header of an area in use changes: LVM commits by rewriting headers, and every commit changes them.
//! An area flagged ignored is not kept up to date and is never read. If nothing can be read the group is unknown, never
//! "unchanged" and never "empty".
//!
//! Not every text on a device is trusted: see [`super::pin`]. The group's own disks are read directly. Other devices are read on
//! the first look and when a PV is missing, each for a limited time ([`super::census`]), so one that hangs or lies delays nobody
//! for long. A read of the group itself may hang: [`super::engine`] runs it on a thread that nobody waits for without a limit.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::host::{DeviceIdentity, Kernel};
use crate::types::{Bytes, PvUuid, VgName, VgUuid, chain};

use super::census::{Census, Heard};
use super::devices::Devices;
use super::metadata::Vg;
use super::metadata::header::Header;
use super::metadata::label::Label;
use super::pin::{Carrier, Choice, Pin, PinError, PinnedPv, Pins, choose};
pub use super::reader::DiskError;
use super::reader::{LIMIT, Reader, TRIES, Watched};

/// What the readers of a driver use to choose disks.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Which groups are on which disks.
    pub pins: Pins,
    /// Which devices may be read.
    pub devices: Devices,
    /// Reads of other devices that are in flight.
    pub census: Arc<Census>,
}

/// A group as it was read.
#[derive(Clone, Debug)]
pub struct View {
    pub vg: Arc<Vg>,
    /// The device of each PV that is present.
    pub disks: Arc<BTreeMap<PvUuid, PathBuf>>,
    /// The size of the smallest metadata area in use.
    pub area: Bytes,
    /// Why the metadata on one of these disks cannot be read; that disk may hold a newer text.
    pub trouble: Option<String>,
}

impl View {
    /// The PVs of the group that no device carries now.
    pub fn absent(&self) -> impl Iterator<Item = &PvUuid> {
        self.vg.pvs.iter().map(|pv| &pv.uuid).filter(|uuid| !self.disks.contains_key(uuid))
    }
}

/// Why the state of a group is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No device carries it, and all devices could be read.
    #[error("no disk of this node carries volume group {vg}")]
    Absent { vg: VgName },
    /// The group was there once, and no device carries it now.
    #[error(
        "no disk of volume group {vg} is present; bring them back (\"Which disks count as a volume group?\" in docs/troubleshooting.md)"
    )]
    Away { vg: VgName },
    /// A device looks like the group but does not count.
    #[error(
        "{device} is not used as volume group {vg}: {why}. Bring back the disks of {vg}; if this device is right, as after a \
         replacement, run lvm-csi adopt --vg {vg} on this node"
    )]
    Ignored { vg: VgName, device: PathBuf, why: String },
    /// No readable device carries the group, but one device could not be read.
    #[error("the state of volume group {vg} is unknown: cannot read {device}")]
    Unreadable {
        vg: VgName,
        device: PathBuf,
        #[source]
        source: DiskError,
    },
    /// The devices that may be PVs cannot be listed.
    #[error("cannot list the block devices of this node")]
    Devices(#[source] io::Error),
    /// On the first look two groups have the name, or two texts of one group contradict each other.
    #[error(
        "volume group {vg} is seen for the first time, and there are two: {first} on {first_on} and {second} on {second_on}. Remove \
         one, rename it (vgrename UUID NAME), or choose one (lvm-csi adopt --vg {vg} --device DEVICE, or `devices` in the \
         configuration)"
    )]
    Ambiguous { vg: VgName, first: VgUuid, first_on: PathBuf, second: VgUuid, second_on: PathBuf },
    /// The pin of the group is lost, and nothing else tells which disks are its own.
    #[error(
        "the disks of volume group {vg} are unknown. Find out which they are, then run lvm-csi adopt --vg {vg} on this node (with \
         --device if others look like it)"
    )]
    Unpinned {
        vg: VgName,
        #[source]
        source: PinError,
    },
    /// Two devices carry the same PV of the group, and nothing tells which of them is the group's own.
    #[error(
        "PV {pv} of volume group {vg} is on {first} and on {second}: one is a copy or a path of the other. Remove the copy, or list \
         the right one in `devices` of the configuration"
    )]
    Duplicate { vg: VgName, pv: PvUuid, first: PathBuf, second: PathBuf },
    /// A read or flush of its disks does not end.
    #[error("{what} the disks of volume group {vg} has taken {seconds} s and has not ended: one of them hangs, see dmesg")]
    Hangs {
        vg: VgName,
        /// What does not end: "reading" or "flushing".
        what: &'static str,
        /// For how many seconds.
        seconds: u64,
    },
    /// Earlier work on its disks takes too long.
    #[error(
        "{what} the disks of volume group {vg} did not begin within {seconds} s, since earlier work on them takes too long: one of them is \
         slow, see dmesg and iostat"
    )]
    Slow {
        vg: VgName,
        /// What was requested: "reading" or "flushing".
        what: &'static str,
        /// How many seconds it waited.
        seconds: u64,
    },
    /// No thread could be started to read it.
    #[error("cannot start a thread to read the disks of volume group {vg}")]
    NoThread {
        vg: VgName,
        #[source]
        source: io::Error,
    },
    /// The group changed during every attempt to read it.
    #[error("volume group {vg} changed during each of {TRIES} attempts to read it; try again")]
    Moving { vg: VgName },
}

/// The reader of one group: the one that had the name on the first look. It follows that group, whatever it or another group is
/// called later, so a `vgrename` takes no volumes away from their users.
pub struct Source {
    reader: Reader,
    name: VgName,
    trust: Trust,
    last: Mutex<Option<ReadGroup>>,
    /// The group's devices at the last read, for callers that do not wait for a read.
    own: Mutex<Option<Arc<BTreeMap<PvUuid, PathBuf>>>>,
    pinned: Mutex<Pinned>,
}

/// The pin, as far as this reader knows it.
#[derive(Default)]
struct Pinned {
    /// The pin as last made or stored.
    now: Option<Pin>,
    /// Storing `now` failed, so it is newer than the file.
    unsaved: bool,
    /// [`Pins::stamp`] of the file that holds `now`.
    stamp: Option<(u64, i64, i64)>,
    /// What an earlier run or another source says about the group, for a first look.
    seed: Option<Pin>,
}

/// A group that was read without trouble.
struct ReadGroup {
    /// Its metadata areas in use.
    watched: Vec<Watched>,
    /// [`DeviceIdentity::instance`] of each PV's device.
    instances: BTreeMap<PvUuid, String>,
    view: View,
}

impl ReadGroup {
    /// Whether unchanged headers prove that the group is unchanged.
    fn is_whole(&self) -> bool {
        // An empty list would be vacuously unchanged, and a PV that comes back changes none of the others.
        !self.watched.is_empty() && self.view.absent().next().is_none()
    }
}

/// A device's label, or why it cannot be read.
type Labelled = Result<Option<Label>, DiskError>;

/// What the trusted PVs of a group contain.
#[derive(Default)]
struct FoundDisks {
    /// The device of each PV that is present.
    disks: BTreeMap<PvUuid, Carrier>,
    watched: Vec<Watched>,
    newest: Option<Vg>,
    area: u64,
    /// Devices of the group that cannot be read, or only in part.
    trouble: Vec<(PathBuf, DiskError)>,
    /// A device that carries one of the PVs but is known to be another device.
    stranger: Option<(PvUuid, PathBuf)>,
    /// Groups that lie on the PVs instead of this one.
    others: Vec<(PathBuf, Vg)>,
}

impl FoundDisks {
    fn take(&mut self, device: &Path, pv: &PvUuid, of: &VgUuid, (header, vg): (Header, Vg)) {
        if vg.uuid != *of {
            self.others.push((device.to_owned(), vg));
            return;
        }
        let size = header.area.size;
        self.area = if self.watched.is_empty() { size } else { self.area.min(size) };
        self.watched.push(Watched { device: device.to_owned(), pv: pv.clone(), header, seqno: vg.seqno });
        if self.newest.as_ref().is_none_or(|newest| newest.seqno < vg.seqno) {
            self.newest = Some(vg);
        }
    }
}

impl Source {
    pub fn new(kernel: Arc<dyn Kernel>, name: VgName, trust: Trust) -> Self {
        let reader = Reader { kernel, pins: trust.pins.clone() };
        Self { reader, name, trust, last: Mutex::default(), own: Mutex::default(), pinned: Mutex::default() }
    }

    /// Records the group that an earlier run of the driver saw, in case it left no pin.
    pub fn remember(&self, vg: &Vg) {
        let seed = Pin::new(vg.uuid.clone(), vg.pvs.iter().map(|pv| pv.uuid.clone()));
        self.pinned().seed = Some(seed);
    }

    /// Reads the group's current state from its disks. A renamed group has another name than this reader.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self) -> Result<View, ReadError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.read_on(&mut last);
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = last.as_ref().map(|group| Arc::clone(&group.view.disks));
        read
    }

    fn read_on(&self, last: &mut Option<ReadGroup>) -> Result<View, ReadError> {
        // A person may have adopted other disks meanwhile.
        let is_pinned = |_: &ReadGroup| {
            let pinned = self.pinned();
            pinned.unsaved || pinned.stamp == self.trust.pins.stamp(&self.name)
        };
        let whole = last.take().filter(ReadGroup::is_whole).filter(is_pinned);
        if let Some(group) = whole.as_ref().filter(|group| self.is_unmoved(group)) {
            let view = group.view.clone();
            *last = whole;
            return Ok(view);
        }
        if let Some(group) = whole.and_then(|group| self.read_again(&group)) {
            let view = group.view.clone();
            *last = Some(group);
            return Ok(view);
        }
        let group = self.find(&self.trust.devices, self.pin()?)?;
        let view = group.view.clone();
        // A disk that cannot be read may hold a newer text, and may recover without any header changing.
        *last = view.trouble.is_none().then_some(group);
        Ok(view)
    }

    /// Searches for the group as on the first look, ignoring the pin, and pins what it finds. If `only` names devices, no others
    /// count. Returns the previous pin.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn adopt(&self, only: Option<Vec<PathBuf>>) -> Result<(View, Option<Pin>), ReadError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // A damaged pin does not stop a person's decision.
        let before = self.pin().unwrap_or_default();
        *last = None;
        let devices = match only {
            Some(paths) => Devices { allowed: Some(paths), files: Vec::new() },
            None => self.trust.devices.clone(),
        };
        let group = self.find(&devices, None)?;
        Ok((group.view, before))
    }

    /// Reads the group from its own disks after a commit, without reading any other device; `None` if that does not suffice.
    fn read_again(&self, group: &ReadGroup) -> Option<ReadGroup> {
        let uuid = &group.view.vg.uuid;
        for _ in 0..TRIES {
            let mut found = FoundDisks::default();
            for (pv, device) in group.view.disks.iter() {
                let identity = self.identity(device)?;
                let label = self.reader.label(device).ok()?.filter(|label| label.pv == *pv)?;
                if group.instances.get(pv) != Some(&identity.instance) {
                    return None;
                }
                found.disks.insert(pv.clone(), Carrier { device: device.clone(), identity });
                for area in label.metadata_areas {
                    if let Some(text) = self.reader.group_in(device, area).ok()? {
                        found.take(device, pv, uuid, text);
                    }
                }
            }
            if found.watched.iter().all(|one| self.reader.still(one)) {
                let is_whole = |vg: &Vg| vg.pvs.iter().all(|pv| found.disks.contains_key(&pv.uuid));
                found.newest.as_ref().filter(|vg| is_whole(vg))?;
                return self.keep(found);
            }
        }
        None
    }

    /// Searches the devices for the pinned group, or on a first look for a group of the name.
    fn find(&self, devices: &Devices, mut pin: Option<Pin>) -> Result<ReadGroup, ReadError> {
        for _ in 0..TRIES {
            let candidates = devices.candidates(&*self.reader.kernel).map_err(ReadError::Devices)?;
            let wanted = match &pin {
                Some(pin) => pin.clone(),
                None => self.first_look(devices, &candidates)?,
            };
            let found = self.on_trusted(&wanted, &candidates)?;
            if !found.watched.iter().all(|one| self.reader.still(one)) {
                continue;
            }
            if found.newest.is_none() {
                // All its own disks carry another group: it was recreated on them.
                let mut heirs = found.others.iter().filter(|(_, vg)| vg.name == self.name).map(|(_, vg)| vg);
                if let Some(heir) = heirs.next()
                    && heirs.all(|other| other.uuid == heir.uuid)
                    // If its LVs have tags it is the old group with another UUID (vgchange --uuid, vgmerge), where the volumes
                    // live on.
                    && heir.lvs.iter().all(|lv| lv.tags.is_empty())
                    && found.trouble.is_empty()
                    && wanted.pvs.iter().all(|pv| found.disks.contains_key(&pv.uuid))
                {
                    tracing::warn!(vg = %self.name, was = %wanted.vg, now = %heir.uuid, "the group was recreated on its own disks");
                    pin = Some(Pin::new(heir.uuid.clone(), heir.pvs.iter().map(|pv| pv.uuid.clone())));
                    continue;
                }
                return Err(self.not_found(&wanted, found, &candidates));
            }
            if let Some(group) = self.keep(found) {
                return Ok(group);
            }
        }
        Err(ReadError::Moving { vg: self.name.clone() })
    }

    /// Stores the pin and makes the [`ReadGroup`] to keep. `None` only if there is no text.
    fn keep(&self, found: FoundDisks) -> Option<ReadGroup> {
        let FoundDisks { mut disks, mut watched, newest, area, trouble, .. } = found;
        let vg = newest?;
        disks.retain(|uuid, _| vg.pvs.iter().any(|pv| pv.uuid == *uuid));
        watched.retain(|one| disks.contains_key(&one.pv));
        self.repin(&vg, &disks);
        let on_ours = |(device, _): &&(PathBuf, DiskError)| disks.values().any(|ours| ours.device == *device);
        let trouble = trouble.iter().find(on_ours).map(|(device, error)| describe(device, error));
        let instances = disks.iter().map(|(uuid, carrier)| (uuid.clone(), carrier.identity.instance.clone())).collect();
        let disks = disks.into_iter().map(|(uuid, carrier)| (uuid, carrier.device)).collect();
        Some(ReadGroup {
            watched,
            instances,
            view: View { vg: Arc::new(vg), disks: Arc::new(disks), area: Bytes(area), trouble },
        })
    }

    /// Searches all allowed devices for the group of the name, and makes a pin for it.
    fn first_look(&self, devices: &Devices, candidates: &[PathBuf]) -> Result<Pin, ReadError> {
        let listed = devices.listed().map_err(ReadError::Devices)?;
        let mut refused = None;
        let (groups, mut trouble) = self.texts(candidates);
        let mut newest: BTreeMap<VgUuid, (Vg, PathBuf)> = BTreeMap::new();
        let mut bearers: Vec<(VgUuid, PvUuid, PathBuf)> = Vec::new();
        let mut texts: Vec<(VgUuid, Vec<PvUuid>, PathBuf)> = Vec::new();
        for (device, label, vgs) in groups {
            let named = vgs.into_iter().filter(|vg| vg.name == self.name);
            for vg in named {
                if self.reader.kernel.is_raw_volume(&device).unwrap_or(false) {
                    refused = Some((device.clone(), "a pod uses it as a raw volume and can write anything there"));
                    continue;
                }
                let identity = self.identity(&device).unwrap_or_default();
                if listed.as_ref().is_some_and(|listed| !listed.has(&label.pv, &device, &identity)) {
                    refused =
                        Some((device.clone(), "the devices file of this node's LVM does not list it (lvmdevices --adddev)"));
                    continue;
                }
                bearers.push((vg.uuid.clone(), label.pv.clone(), device.clone()));
                texts.push((vg.uuid.clone(), vg.pvs.iter().map(|pv| pv.uuid.clone()).collect(), device.clone()));
                let before = newest.get(&vg.uuid);
                if before.is_none_or(|(before, _)| before.seqno < vg.seqno) {
                    newest.insert(vg.uuid.clone(), (vg, device.clone()));
                }
            }
        }
        let ambiguous = |first: (&VgUuid, &Path), second: (&VgUuid, &Path)| ReadError::Ambiguous {
            vg: self.name.clone(),
            first: first.0.clone(),
            first_on: first.1.to_owned(),
            second: second.0.clone(),
            second_on: second.1.to_owned(),
        };
        let mut groups = newest.iter();
        let (uuid, (vg, device)) = match (groups.next(), groups.next()) {
            (Some((first, (_, on))), Some((second, (_, also)))) => return Err(ambiguous((first, on), (second, also))),
            (Some(only), None) => only,
            (None, _) => {
                return Err(match (trouble.pop(), refused) {
                    (_, Some((device, why))) => ReadError::Ignored { vg: self.name.clone(), device, why: why.to_owned() },
                    (Some((device, source)), None) => ReadError::Unreadable { vg: self.name.clone(), device, source },
                    (None, None) => ReadError::Absent { vg: self.name.clone() },
                });
            }
        };
        // One PV of the group is missing from the text of another: an old disk of the group, or a forged text.
        for (of, members, on) in &texts {
            if let Some((_, _, other)) = bearers.iter().find(|(_, pv, _)| !members.contains(pv)) {
                return Err(ambiguous((of, on), (uuid, if other == on { device } else { other })));
            }
        }
        Ok(Pin::new(uuid.clone(), vg.pvs.iter().map(|pv| pv.uuid.clone())))
    }

    /// Reads the labels of the candidates. Stops once each PV of the pin is found for certain, or at the limit.
    fn labels(&self, candidates: &[PathBuf], pin: &Pin) -> Heard<(Labelled, DeviceIdentity)> {
        let reader = self.reader.clone();
        let of = |device: &PathBuf| (device.clone(), self.identity(device).unwrap_or_default());
        let identities: Arc<BTreeMap<PathBuf, DeviceIdentity>> = Arc::new(candidates.iter().map(of).collect());
        let of_devices = Arc::clone(&identities);
        let job = move |device: &Path| (reader.foreign_label(device), of_devices.get(device).cloned().unwrap_or_default());
        let certain = |answers: &BTreeMap<PathBuf, (Labelled, DeviceIdentity)>, pv: &PinnedPv| {
            let silent = identities.iter().filter(|(device, _)| !answers.contains_key(*device)).map(|(_, identity)| identity);
            matches!(choose(pv, self.trust.pins.boot(), &carriers(answers, &pv.uuid), silent), Choice::One { certain: true, .. })
        };
        self.trust.census.ask(candidates, LIMIT, job, |answers| pin.pvs.iter().all(|pv| certain(answers, pv)))
    }

    /// The labels and groups of all devices with a label, and why others could not be read.
    #[expect(clippy::type_complexity, reason = "used here only")]
    fn texts(&self, devices: &[PathBuf]) -> (Vec<(PathBuf, Label, Vec<Vg>)>, Vec<(PathBuf, DiskError)>) {
        let reader = self.reader.clone();
        let heard = self.trust.census.ask(devices, LIMIT, move |device: &Path| reader.groups_on(device), |_| false);
        let mut groups = Vec::new();
        let mut trouble: Vec<(PathBuf, DiskError)> = heard.silent.into_iter().map(|device| (device, DiskError::Silent)).collect();
        for (device, answer) in heard.answers {
            match answer {
                Ok(Some((label, vgs, error))) => {
                    trouble.extend(error.map(|error| (device.clone(), error)));
                    groups.push((device, label, vgs));
                }
                Ok(None) => {}
                Err(error) => trouble.push((device, error)),
            }
        }
        for (device, error) in &trouble {
            tracing::debug!(device = %device.display(), error = chain(error), "not a readable PV");
        }
        (groups, trouble)
    }

    /// Reads the trusted PVs: those of the pin, and those that the newest text on them names.
    fn on_trusted(&self, pin: &Pin, candidates: &[PathBuf]) -> Result<FoundDisks, ReadError> {
        let mut trusted = pin.clone();
        loop {
            let found = self.on(&trusted, self.labels(candidates, &trusted))?;
            let named = found.newest.iter().flat_map(|vg| &vg.pvs).map(|pv| &pv.uuid);
            let new: Vec<PvUuid> = named.filter(|uuid| trusted.pv(uuid).is_none()).cloned().collect();
            if new.is_empty() {
                return Ok(found);
            }
            trusted.pvs.extend(new.into_iter().map(PinnedPv::new));
        }
    }

    /// Reads the PVs of a pin.
    fn on(&self, pin: &Pin, heard: Heard<(Labelled, DeviceIdentity)>) -> Result<FoundDisks, ReadError> {
        let boot = self.trust.pins.boot();
        let mut found = FoundDisks::default();
        let silent = heard.silent.into_iter().filter_map(|device| Some((self.identity(&device)?, device)));
        let silent: Vec<(DeviceIdentity, PathBuf)> = silent.collect();
        for pv in &pin.pvs {
            let carriers = carriers(&heard.answers, &pv.uuid);
            let choice = choose(pv, boot, &carriers, silent.iter().map(|(identity, _)| identity));
            // While the PV's own device has not answered, no other takes its place.
            if !matches!(choice, Choice::One { certain: true, .. })
                && let Some((_, device)) = silent.iter().find(|(identity, _)| pv.was_on(boot, identity))
            {
                found.trouble.push((device.clone(), DiskError::Silent));
                continue;
            }
            let carrier = match choice {
                Choice::One { carrier, .. } => carrier,
                Choice::None => continue,
                Choice::Stranger(carrier) => {
                    found.stranger = Some((pv.uuid.clone(), carrier.device.clone()));
                    continue;
                }
                Choice::Several(first, second) => {
                    let (first, second) = (first.device.clone(), second.device.clone());
                    return Err(ReadError::Duplicate { vg: self.name.clone(), pv: pv.uuid.clone(), first, second });
                }
            };
            let device = &carrier.device;
            let label = heard.answers.get(device).and_then(|(label, _)| label.as_ref().ok()?.as_ref());
            for area in label.into_iter().flat_map(|label| &label.metadata_areas) {
                match self.reader.group_in(device, *area) {
                    Ok(text) => text.into_iter().for_each(|text| found.take(device, &pv.uuid, &pin.vg, text)),
                    Err(error) => found.trouble.push((device.clone(), error)),
                }
            }
            found.disks.insert(pv.uuid.clone(), carrier.clone());
        }
        // Devices that carried a PV and now cannot be read at all.
        let was =
            |identity: &DeviceIdentity| pin.pvs.iter().any(|pv| !found.disks.contains_key(&pv.uuid) && pv.was_on(boot, identity));
        let unread = heard.answers.into_iter().filter(|(_, (_, identity))| was(identity));
        let unread: Vec<_> = unread.filter_map(|(device, (label, _))| Some((device, label.err()?))).collect();
        found.trouble.extend(unread);
        Ok(found)
    }

    /// Why the pinned group was not found.
    fn not_found(&self, pin: &Pin, found: FoundDisks, candidates: &[PathBuf]) -> ReadError {
        let vg = self.name.clone();
        if let Some((device, source)) = found.trouble.into_iter().next() {
            return ReadError::Unreadable { vg, device, source };
        }
        if let Some((pv, device)) = found.stranger {
            let why = format!("it carries PV {pv} of the group, but the pinned device of that PV is another one");
            return ReadError::Ignored { vg, device, why };
        }
        if let Some((device, other)) = found.others.first() {
            let why = format!("its PV now belongs to volume group {} ({})", other.name, other.uuid);
            return ReadError::Ignored { vg, device: device.clone(), why };
        }
        let own: Vec<&Path> = found.disks.values().map(|carrier| carrier.device.as_path()).collect();
        let others: Vec<PathBuf> = candidates.iter().filter(|device| !own.contains(&device.as_path())).cloned().collect();
        let newcomer = self.texts(&others).0.into_iter().find_map(|(device, _, vgs)| {
            let other = vgs.into_iter().find(|other| other.name == self.name || other.uuid == pin.vg)?;
            Some((device, other))
        });
        if let Some((device, other)) = newcomer {
            let why = format!("it carries a group of that name with UUID {}, but the driver's group is {}", other.uuid, pin.vg);
            return ReadError::Ignored { vg, device, why };
        }
        // If all its disks are present, they prove that the group is gone.
        let is_here = pin.pvs.iter().all(|pv| found.disks.contains_key(&pv.uuid));
        if is_here { ReadError::Absent { vg } } else { ReadError::Away { vg } }
    }

    /// Devices that show metadata of the group, or of another one with its name, but do not count. Each comes with what it shows.
    /// Reads all devices, each for a limited time.
    ///
    /// # Errors
    /// The devices cannot be listed.
    pub fn strangers(&self) -> Result<Vec<(PathBuf, String)>, ReadError> {
        let Some(pin) = self.pin()? else { return Ok(Vec::new()) };
        // Not `last`, which a read that hangs may have locked.
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(own) = own.map(|own| own.values().cloned().collect::<Vec<PathBuf>>()) else { return Ok(Vec::new()) };
        let mut candidates = self.trust.devices.candidates(&*self.reader.kernel).map_err(ReadError::Devices)?;
        candidates.retain(|device| !own.contains(device));
        let found = self.texts(&candidates).0.into_iter().filter_map(|(device, label, vgs)| {
            if pin.pv(&label.pv).is_some() {
                return Some((device, format!("carries a copy of PV {} of volume group {}", label.pv, self.name)));
            }
            let other = vgs.iter().find(|other| other.name == self.name || other.uuid == pin.vg)?;
            Some((
                device,
                format!("shows a volume group {} ({}), which is not the driver's ({})", other.name, other.uuid, pin.vg),
            ))
        });
        Ok(found.collect())
    }

    /// The groups on PVs that this group once had: `vgsplit` moves LVs there.
    ///
    /// # Errors
    /// The devices cannot be listed.
    pub fn split_off(&self) -> Result<Vec<Vg>, ReadError> {
        let Some(pin) = self.pin()?.filter(|pin| !pin.former.is_empty()) else { return Ok(Vec::new()) };
        let candidates = self.trust.devices.candidates(&*self.reader.kernel).map_err(ReadError::Devices)?;
        let mut groups: BTreeMap<VgUuid, Vg> = BTreeMap::new();
        for (_, label, vgs) in self.texts(&candidates).0 {
            if !pin.former.contains(&label.pv) {
                continue;
            }
            for vg in vgs.into_iter().filter(|vg| vg.uuid != pin.vg) {
                let newest = groups.entry(vg.uuid.clone()).or_insert_with(|| vg.clone());
                if newest.seqno < vg.seqno {
                    *newest = vg;
                }
            }
        }
        Ok(groups.into_values().collect())
    }

    /// The group's current metadata text, as `vgcfgrestore` takes it, with its model.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn text(&self) -> Result<(View, Vec<u8>), ReadError> {
        for _ in 0..TRIES {
            let view = self.read()?;
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let watched = last.as_ref().map(|group| group.watched.clone()).unwrap_or_default();
            drop(last);
            let newest = watched.iter().filter(|one| one.seqno == view.vg.seqno);
            // A text that cannot be read was overwritten meanwhile; otherwise the next read reports it.
            let mut texts = newest.filter_map(|one| self.reader.text_of(&one.device, &one.header).ok());
            if let Some(text) = texts.next() {
                return Ok((view, text));
            }
        }
        Err(ReadError::Moving { vg: self.name.clone() })
    }

    /// Checks that every PV of the group is there and that its label can be read; the text names the one that is not.
    ///
    /// # Errors
    /// The first PV that is away or cannot be read. LVM itself would still change tags and flag the PV missing. The next read
    /// then searches all devices: a PV without a metadata area may have moved to another one.
    pub fn check_present(&self, view: &View) -> Result<(), String> {
        self.all_present(view).inspect_err(|_| *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None)
    }

    fn all_present(&self, view: &View) -> Result<(), String> {
        if let Some(absent) = view.absent().next() {
            return Err(format!("PV {absent} of volume group {} is on no device of this node", self.name));
        }
        if let Some(trouble) = &view.trouble {
            return Err(format!("the metadata of volume group {} cannot be read on {trouble}", self.name));
        }
        let pinned = self.pinned().now.clone();
        for (uuid, device) in view.disks.iter() {
            let seen = pinned.as_ref().and_then(|pin| pin.pv(uuid)?.seen.as_ref().map(|(_, instance)| instance.clone()));
            let now = self.reader.kernel.device_instance(device).ok();
            match self.reader.label(device) {
                // For a PV without a metadata area, nothing else tells whether another disk took its place.
                Ok(Some(label)) if label.pv == *uuid && (seen.is_none() || seen == now) => {}
                Ok(_) => return Err(format!("{} is no longer PV {uuid} of volume group {}", device.display(), self.name)),
                Err(error) => return Err(format!("PV {uuid} cannot be read on {}", describe(device, &error))),
            }
        }
        Ok(())
    }

    /// The UUID of the pinned group.
    pub fn pinned_group(&self) -> Option<VgUuid> {
        let pinned = self.pinned();
        pinned.now.as_ref().or(pinned.seed.as_ref()).map(|pin| pin.vg.clone())
    }

    /// The current pin: from the file, which another process may have replaced, unless this reader's own could not be stored.
    ///
    /// # Errors
    /// The file is damaged, and nothing else says which group it was: a first look might accept a stranger.
    fn pin(&self) -> Result<Option<Pin>, ReadError> {
        let mut pinned = self.pinned();
        if !pinned.unsaved {
            let stamp = self.trust.pins.stamp(&self.name);
            match self.trust.pins.load(&self.name) {
                Ok(Some(pin)) => (pinned.now, pinned.stamp) = (Some(pin), stamp),
                Ok(None) => {}
                Err(source) if pinned.now.is_none() && pinned.seed.is_none() => {
                    return Err(ReadError::Unpinned { vg: self.name.clone(), source });
                }
                Err(error) => {
                    tracing::error!(vg = %self.name, error = chain(&error), "cannot read the group's pin; making it anew from other records");
                    pinned.unsaved = true;
                }
            }
        }
        Ok(pinned.now.clone().or_else(|| pinned.seed.clone()))
    }

    /// Pins the group on these devices, unless it is already pinned so.
    fn repin(&self, vg: &Vg, disks: &BTreeMap<PvUuid, Carrier>) {
        let mut pinned = self.pinned();
        let boot = self.trust.pins.boot();
        let before = pinned.now.as_ref().filter(|pin| pin.vg == vg.uuid);
        let pv = |uuid: &PvUuid| match (disks.get(uuid), before.and_then(|pin| pin.pv(uuid))) {
            (Some(carrier), _) => PinnedPv {
                uuid: uuid.clone(),
                names: carrier.identity.names.clone(),
                seen: Some((boot.to_owned(), carrier.identity.instance.clone())),
            },
            (None, Some(pinned_pv)) => pinned_pv.clone(),
            (None, None) => PinnedPv::new(uuid.clone()),
        };
        let pvs = vg.pvs.iter().map(|one| pv(&one.uuid)).collect();
        let mut pin = before.cloned().unwrap_or_else(|| Pin::new(vg.uuid.clone(), []));
        pin.replace(pvs);
        if pinned.now.as_ref() == Some(&pin) && !pinned.unsaved {
            return;
        }
        let stored = self.trust.pins.store(&self.name, &pin);
        if let Err(error) = &stored {
            tracing::error!(vg = %self.name, error = chain(error), "cannot store the group's pin; only this process knows it");
        }
        (pinned.now, pinned.unsaved, pinned.stamp) = (Some(pin), stored.is_err(), self.trust.pins.stamp(&self.name));
    }

    fn pinned(&self) -> MutexGuard<'_, Pinned> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn identity(&self, device: &Path) -> Option<DeviceIdentity> {
        self.reader.kernel.device_identity(device).ok()
    }

    /// Whether the group's devices and headers are unchanged.
    fn is_unmoved(&self, group: &ReadGroup) -> bool {
        let same = |one: &Watched| {
            let instance = self.reader.kernel.device_instance(&one.device).ok();
            instance.as_ref() == group.instances.get(&one.pv) && self.reader.is_unmoved(one)
        };
        group.watched.iter().all(same)
    }
}

/// The devices that carry a PV.
fn carriers(answers: &BTreeMap<PathBuf, (Labelled, DeviceIdentity)>, pv: &PvUuid) -> Vec<Carrier> {
    let carries = |label: &Labelled| label.as_ref().is_ok_and(|label| label.as_ref().is_some_and(|label| label.pv == *pv));
    let carrier = |(device, (_, identity)): (&PathBuf, &(Labelled, DeviceIdentity))| Carrier {
        device: device.clone(),
        identity: identity.clone(),
    };
    answers.iter().filter(|(_, (label, _))| carries(label)).map(carrier).collect()
}

/// A device and why it cannot be read, on one line.
fn describe(device: &Path, error: &DiskError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{}: {error}{cause}", device.display())
}

#[cfg(test)]
mod tests;
