//! Records which volume group a name means and which disks it is on. The driver relies on this when disks show LVM metadata.
//!
//! Anybody who can write to a block device of this node can write an LVM label with any UUID: a guest on its raw volume, a tenant
//! of another CSI driver, a person who plugs in a disk. So the first look at a group is recorded ([`Pin`]). From then on a
//! metadata text counts only on a PV that the last trusted text names. A PV becomes trusted when a trusted text names it
//! (`vgextend`), and loses that trust when one does not (`vgreduce`). If several devices carry one trusted PV, the pinned names
//! of its device tell which is the group's own ([`choose`]).
//!
//! Each group has one file, `<state dir>/groups/<vg name>.json`, replaced as a whole: a power cut leaves the old one or the new
//! one. Without the file (a new installation, a lost state directory) the next look is a first look. A damaged file is neither
//! trusted in part nor treated as missing: the driver keeps a copy and makes the pin anew from what this process or the metadata
//! copies know of the group. If they know nothing, a person must say which disks are the group's own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::host::{DeviceIdentity, FORMER_DM_PREFIX, OWN_DM_PREFIX, files};
use crate::types::{PvUuid, VgName, VgUuid};

/// The version of the file format. The driver refuses newer ones.
const FORMAT: u32 = 2;
/// The previous version, without a checksum.
const WITHOUT_SUM: u32 = 1;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);
/// The kinds of device names, most specific first.
const KINDS: [&str; 7] = ["wwid", "dm", "md", "serial", "cid", "loop", "dm-name"];
/// How many former PVs of a group are remembered.
const FORMER: usize = 64;
/// Holds the boot id of the running kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A group as last trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub vg: VgUuid,
    pub pvs: Vec<PinnedPv>,
    /// PVs that a trusted text once named and no longer does, oldest first: `vgsplit` moves volumes to them.
    pub former: Vec<PvUuid>,
}

/// A PV and what is known about its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedPv {
    pub uuid: PvUuid,
    /// See [`DeviceIdentity::names`].
    pub names: Vec<String>,
    /// The boot in which the device was last seen, and its [`DeviceIdentity::instance`] at that time.
    pub seen: Option<(String, String)>,
}

impl Pin {
    /// A pin for a group of which only the metadata are known.
    pub fn new(vg: VgUuid, pvs: impl IntoIterator<Item = PvUuid>) -> Self {
        Self { vg, pvs: pvs.into_iter().map(PinnedPv::new).collect(), former: Vec::new() }
    }

    pub fn pv(&self, uuid: &PvUuid) -> Option<&PinnedPv> {
        self.pvs.iter().find(|pv| pv.uuid == *uuid)
    }

    /// Makes `pvs` the PVs of the group. Earlier PVs that are not among them become former ones.
    pub fn replace(&mut self, pvs: Vec<PinnedPv>) {
        let left = self.pvs.iter().map(|pv| pv.uuid.clone()).filter(|uuid| !pvs.iter().any(|pv| pv.uuid == *uuid));
        self.former.extend(left.collect::<Vec<_>>());
        self.former.retain(|uuid| !pvs.iter().any(|pv| pv.uuid == *uuid));
        self.former.drain(..self.former.len().saturating_sub(FORMER));
        self.pvs = pvs;
    }
}

impl PinnedPv {
    pub fn new(uuid: PvUuid) -> Self {
        Self { uuid, names: Vec::new(), seen: None }
    }
}

/// A device that carries a PV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Carrier {
    pub(super) device: PathBuf,
    pub(super) identity: DeviceIdentity,
}

/// Which of the devices that carry a PV is the group's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// No device carries it.
    None,
    /// This one. `certain` if no device that may still answer can change that.
    One { carrier: &'a Carrier, certain: bool },
    /// Only devices known to be others, such as this one.
    Stranger(&'a Carrier),
    /// These two, and nothing tells which.
    Several(&'a Carrier, &'a Carrier),
}

impl PinnedPv {
    /// Whether a device is the one this PV was on, as far as that can be decided without reading it.
    pub(super) fn was_on(&self, boot: &str, identity: &DeviceIdentity) -> bool {
        let is_seen = self.seen.as_ref().is_some_and(|(then, instance)| then == boot && *instance == identity.instance);
        self.may_be_on(identity) && (is_seen || !self.names.is_empty())
    }

    /// Whether a device may be the one of this PV. The best kind of name that both have must match. A device without a name is
    /// not the one that had a name.
    fn may_be_on(&self, identity: &DeviceIdentity) -> bool {
        let of = |names: &[String], kind: &str| -> Vec<String> {
            names.iter().filter(|name| name.split(':').next() == Some(kind)).cloned().collect()
        };
        for kind in KINDS {
            let (pinned, now) = (of(&self.names, kind), of(&identity.names, kind));
            if !pinned.is_empty() && !now.is_empty() {
                return now.iter().any(|name| pinned.contains(name));
            }
        }
        self.names.is_empty()
    }
}

/// Decides which carrier of a PV is the group's own, while the `silent` devices have not answered.
pub(super) fn choose<'a>(
    pinned: &PinnedPv,
    boot: &str,
    carriers: &'a [Carrier],
    silent: impl IntoIterator<Item = &'a DeviceIdentity>,
) -> Choice<'a> {
    let is_seen = |carrier: &&Carrier| {
        pinned.seen.as_ref().is_some_and(|(then, instance)| then == boot && *instance == carrier.identity.instance)
    };
    let mut left = carriers.iter().filter(|carrier| pinned.may_be_on(&carrier.identity));
    if let Some(carrier) = left.clone().find(is_seen) {
        return Choice::One { carrier, certain: true };
    }
    // A device without a name is identified by its instance in this boot only. If that one goes and another comes, they are not
    // the same.
    let other_of_boot =
        || pinned.names.is_empty() && !boot.is_empty() && pinned.seen.as_ref().is_some_and(|(then, _)| then == boot);
    match (left.next(), left.next()) {
        (Some(first), None) if other_of_boot() => Choice::Stranger(first),
        (Some(first), Some(second)) => Choice::Several(first, second),
        // Two disks may share a name: some report "(null)" or zeroes as serial number, and a copied virtual machine has that of
        // the original.
        (Some(carrier), None) => {
            let may_be_another = silent.into_iter().any(|identity| pinned.may_be_on(identity));
            Choice::One { carrier, certain: !pinned.names.is_empty() && !may_be_another }
        }
        (None, _) => carriers.first().map_or(Choice::None, Choice::Stranger),
    }
}

/// Why a pin cannot be stored or loaded.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The filesystem refused the action.
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is not what this driver writes.
    #[error("the pin {path} is damaged ({reason})")]
    Damaged { path: PathBuf, reason: String },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    /// CRC-32C of all other fields, as JSON without spaces.
    #[serde(default)]
    sum: Option<u32>,
    vg: String,
    pvs: Vec<FilePv>,
    #[serde(default)]
    former: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePv {
    uuid: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    seen: Option<(String, String)>,
}

fn encode(pin: &Pin) -> String {
    let pv = |pv: &PinnedPv| FilePv { uuid: pv.uuid.to_string(), names: pv.names.clone(), seen: pv.seen.clone() };
    let mut file = File {
        format: FORMAT,
        sum: None,
        vg: pin.vg.to_string(),
        pvs: pin.pvs.iter().map(pv).collect(),
        former: pin.former.iter().map(ToString::to_string).collect(),
    };
    file.sum = Some(file.checksum());
    // Strings and lists of strings always serialize.
    serde_json::to_string_pretty(&file).unwrap_or_default() + "\n"
}

impl File {
    /// The checksum; `sum` must be `None`.
    fn checksum(&self) -> u32 {
        CRC.checksum(&serde_json::to_vec(self).unwrap_or_default())
    }
}

fn decode(text: &[u8]) -> Result<Pin, String> {
    let mut file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match (file.format, file.sum.take()) {
        (WITHOUT_SUM, None) => {}
        (FORMAT, sum) if sum == Some(file.checksum()) => {}
        (FORMAT | WITHOUT_SUM, _) => return Err("its checksum is wrong".to_owned()),
        (other, _) => return Err(format!("its format is {other}, but this version of the driver knows {FORMAT}")),
    }
    let pv = |text: &str| PvUuid::new(text).ok_or_else(|| format!("{text:?} is not a PV UUID"));
    let pvs = file.pvs.into_iter().map(|one| Ok(PinnedPv { uuid: pv(&one.uuid)?, names: one.names, seen: one.seen }));
    Ok(Pin {
        vg: VgUuid::new(&file.vg).ok_or_else(|| format!("{:?} is not a volume group UUID", file.vg))?,
        pvs: pvs.collect::<Result<_, String>>()?,
        former: file.former.iter().map(|text| pv(text)).collect::<Result<_, String>>()?,
    })
}

/// The pins of all groups of a driver.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// `None` keeps them in memory only.
    dir: Option<PathBuf>,
    writable: bool,
    boot: String,
    /// The groups that are pinned now. Data on one of their volumes is never a PV.
    groups: Arc<Mutex<BTreeSet<VgUuid>>>,
}

impl Pins {
    /// The pins in a driver's state directory.
    pub fn kept(state_dir: &Path) -> Self {
        Self { writable: true, ..Self::looked_at(state_dir) }
    }

    /// The same, read-only, for a process beside a driver that may be running.
    pub fn looked_at(state_dir: &Path) -> Self {
        let boot = fs::read_to_string(BOOT_ID).map(|boot| boot.trim().to_owned()).unwrap_or_default();
        Self { dir: Some(state_dir.join("groups")), writable: false, boot, groups: Arc::default() }
    }

    /// The boot id of the running kernel, as [`PinnedPv::seen`] records it.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// Whether a dm UUID belongs to a volume of a pinned group, or to a device of ours over one.
    pub(super) fn is_volume(&self, dm_uuid: &str) -> bool {
        if [OWN_DM_PREFIX, FORMER_DM_PREFIX].iter().any(|prefix| dm_uuid.starts_with(prefix)) {
            return true;
        }
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().any(|vg| dm_uuid.strip_prefix("LVM-").is_some_and(|ids| ids.starts_with(&vg.compact())))
    }

    /// Records that a group is pinned.
    pub(super) fn hold(&self, vg: &VgUuid) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(vg.clone());
    }

    fn path(&self, name: &VgName) -> Option<PathBuf> {
        Some(self.dir.as_ref()?.join(format!("{name}.json")))
    }

    /// Loads the pin of the group with this name; `None` before its first look. Keeps a copy of a damaged file beside it.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn load(&self, name: &VgName) -> Result<Option<Pin>, PinError> {
        let Some(path) = self.path(name) else { return Ok(None) };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(PinError::Io { action: "read", path, source }),
        };
        match decode(&text) {
            Ok(pin) => {
                self.hold(&pin.vg);
                Ok(Some(pin))
            }
            Err(reason) => {
                self.keep(&path, &text);
                Err(PinError::Damaged { path, reason })
            }
        }
    }

    /// Keeps a copy of a damaged pin.
    fn keep(&self, path: &Path, text: &[u8]) {
        let copy = path.with_extension("damaged");
        if !self.writable || fs::read(&copy).is_ok_and(|kept| kept == text) {
            return;
        }
        match files::write(&copy, text) {
            Ok(()) => tracing::warn!(pin = %path.display(), copy = %copy.display(), "a pin is damaged; kept a copy of it"),
            Err(error) => {
                tracing::warn!(pin = %path.display(), copy = %copy.display(), %error, "a pin is damaged, and its copy cannot be written");
            }
        }
    }

    /// Writes a pin, whole or not at all, even in a power cut.
    ///
    /// # Errors
    /// The filesystem refused; the old pin stays.
    pub fn store(&self, name: &VgName, pin: &Pin) -> Result<(), PinError> {
        self.hold(&pin.vg);
        let (Some(path), true) = (self.path(name), self.writable) else { return Ok(()) };
        let failed = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| PinError::Io { action, path, source }
        };
        let dir = path.parent().unwrap_or(&path);
        files::make_directories(dir).map_err(failed("make the directory", dir))?;
        let new = path.with_extension("new");
        files::write(&new, encode(pin).as_bytes()).map_err(failed("write", &new))?;
        files::rename(&new, &path).map_err(failed("put in place", &path))
    }

    /// Changes when another process replaces the group's pin; costs one stat.
    pub(super) fn stamp(&self, name: &VgName) -> Option<(u64, i64, i64)> {
        let status = fs::metadata(self.path(name)?).ok()?;
        Some((status.ino(), status.mtime(), status.mtime_nsec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pv(letter: &str) -> PvUuid {
        PvUuid::from_compact(&letter.repeat(32)).unwrap()
    }

    fn vg(letter: &str) -> VgUuid {
        VgUuid::from_compact(&letter.repeat(32)).unwrap()
    }

    fn name() -> VgName {
        VgName::new("vg0").unwrap()
    }

    fn pinned(names: &[&str], seen: Option<(&str, &str)>) -> PinnedPv {
        let seen = seen.map(|(boot, instance)| (boot.to_owned(), instance.to_owned()));
        PinnedPv { uuid: pv("a"), names: names.iter().map(|name| (*name).to_owned()).collect(), seen }
    }

    fn carrier(device: &str, names: &[&str], instance: &str) -> Carrier {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Carrier { device: device.into(), identity: DeviceIdentity { names, instance: instance.to_owned() } }
    }

    #[test]
    fn a_pin_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::kept(dir.path());
        assert_eq!(pins.load(&name()).unwrap(), None);
        let mut pin = Pin::new(vg("g"), [pv("a"), pv("b")]);
        pin.pvs[0].names = vec!["wwid:x".to_owned()];
        pin.pvs[0].seen = Some(("boot".to_owned(), "8:0 disk 1".to_owned()));
        pins.store(&name(), &pin).unwrap();
        assert_eq!(Pins::looked_at(dir.path()).load(&name()).unwrap(), Some(pin.clone()));
        // A read-only user writes nothing.
        Pins::looked_at(dir.path()).store(&name(), &Pin::new(vg("h"), [])).unwrap();
        assert_eq!(pins.load(&name()).unwrap(), Some(pin));
        let stamp = pins.stamp(&name());
        pins.store(&name(), &Pin::new(vg("h"), [])).unwrap();
        assert_ne!(pins.stamp(&name()), stamp);
    }

    #[test]
    fn a_damaged_pin_is_refused_and_copied() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins::kept(dir.path());
        pins.store(&name(), &Pin::new(vg("g"), [pv("a")])).unwrap();
        let path = dir.path().join("groups/vg0.json");
        let good = fs::read_to_string(&path).unwrap();
        for bad in
            ["", "{", &good[..good.len() / 2], &good.replace("\"format\": 2", "\"format\": 3"), &good.replace("aaaaaa-", "")]
        {
            fs::write(&path, bad).unwrap();
            assert!(matches!(pins.load(&name()), Err(PinError::Damaged { .. })), "{bad:?}");
            assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), bad.as_bytes());
        }
        // Another group's UUID, a missing sum, and the wrong format.
        let other = good.replace("gggggg-", "hhhhhh-");
        for bad in [&other, &good.replace("\"sum\"", "\"summe\""), &good.replace("\"format\": 2", "\"format\": 1")] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(pins.load(&name()), Err(PinError::Damaged { .. })), "{bad}");
        }
        // A read-only user keeps no copy.
        fs::remove_file(path.with_extension("damaged")).unwrap();
        assert!(Pins::looked_at(dir.path()).load(&name()).is_err());
        assert!(!path.with_extension("damaged").exists());
        // A file of the previous version.
        let sum = good.lines().find(|line| line.contains("\"sum\"")).unwrap();
        let former = good.replace(&format!("{sum}\n"), "").replace("\"format\": 2", "\"format\": 1");
        fs::write(&path, former).unwrap();
        assert_eq!(pins.load(&name()).unwrap(), Some(Pin::new(vg("g"), [pv("a")])));
    }

    /// A pin with disk names as on a real machine, seen in a boot.
    fn as_on_a_machine(group: &str, disks: &[&str], boot: &str) -> Pin {
        let mut pin = Pin::new(vg(group), disks.iter().map(|letter| pv(letter)));
        for (pv, letter) in pin.pvs.iter_mut().zip(disks) {
            let long = letter.repeat(40);
            pv.names = vec![format!("wwid:naa.{long}"), format!("serial:QEMU_{long}"), format!("dm-name:mpath-{long}")];
            pv.seen = Some((boot.repeat(36), format!("8:{letter} disk {boot}")));
        }
        pin
    }

    #[test]
    fn whichever_sectors_reached_the_disk_a_pin_is_old_or_new_or_refused() {
        const SECTOR: usize = 512;
        let before = as_on_a_machine("g", &["a", "b", "c"], "1");
        let mut reduced = before.clone();
        reduced.replace(before.pvs[..2].to_vec());
        let pins = [
            before,
            as_on_a_machine("g", &["a", "b", "c"], "2"),
            as_on_a_machine("g", &["a", "b", "c", "d"], "1"),
            as_on_a_machine("h", &["a", "b", "c"], "1"),
            reduced,
        ];
        let mut refused = 0;
        for (old, new) in pins.iter().flat_map(|old| pins.iter().map(move |new| (old, new))).filter(|(old, new)| old != new) {
            let texts = [encode(old), encode(new)];
            let sectors = texts.iter().map(|text| text.len().div_ceil(SECTOR)).max().unwrap();
            assert!((3..=8).contains(&sectors), "{sectors}");
            for (subset, length) in (0..1_u32 << sectors).flat_map(|subset| texts.iter().map(move |text| (subset, text.len()))) {
                let byte = |at: usize| {
                    let from = &texts[usize::from(subset & 1 << (at / SECTOR) != 0)];
                    // The filesystem shows zeroes where nothing was written.
                    from.as_bytes().get(at).copied().unwrap_or(0)
                };
                match decode(&(0..length).map(byte).collect::<Vec<u8>>()) {
                    Ok(pin) => assert!(pin == *old || pin == *new, "{subset:b} of {sectors} sectors: {pin:?}"),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn volumes_of_a_pinned_group_are_recognised() {
        let pins = Pins::default();
        let volume = format!("LVM-{}{}", "g".repeat(32), "v".repeat(32));
        assert!(!pins.is_volume(&volume) && pins.is_volume("LVMCSI-x") && pins.is_volume("LVM-lvmcsiRw00x"));
        pins.store(&name(), &Pin::new(vg("g"), [])).unwrap();
        assert!(pins.is_volume(&volume) && !pins.is_volume(&volume.replace('g', "h")) && !pins.is_volume("CRYPT-x"));
    }

    #[test]
    fn pvs_that_left_are_remembered_and_come_back() {
        let mut pin = Pin::new(vg("g"), [pv("a"), pv("b")]);
        let (a, b) = (pin.pvs[0].clone(), pin.pvs[1].clone());
        pin.replace(vec![a.clone()]);
        assert_eq!(pin.former, [pv("b")]);
        pin.replace(vec![a, b]);
        assert_eq!(pin.former, []);
        for n in 0..100 {
            pin.replace(vec![PinnedPv { uuid: PvUuid::from_compact(&format!("{n:0>32}")).unwrap(), names: vec![], seen: None }]);
        }
        assert_eq!(pin.former.len(), FORMER);
    }

    #[test]
    fn the_device_that_was_seen_in_this_boot_beats_every_copy() {
        let pinned = pinned(&[], Some(("boot", "1")));
        let carriers = [carrier("/dev/copy", &[], "2"), carrier("/dev/own", &[], "1")];
        assert_eq!(choose(&pinned, "boot", &carriers, []), Choice::One { carrier: &carriers[1], certain: true });
        // When it goes, no other device takes its place before the next boot.
        assert_eq!(choose(&pinned, "boot", &carriers[..1], []), Choice::Stranger(&carriers[0]));
        // After a reboot instances mean nothing, and nothing else distinguishes the carriers.
        assert_eq!(choose(&pinned, "next", &carriers, []), Choice::Several(&carriers[0], &carriers[1]));
        assert_eq!(choose(&pinned, "next", &carriers[..1], []), Choice::One { carrier: &carriers[0], certain: false });
        assert_eq!(choose(&pinned, "boot", &[], []), Choice::None);
    }

    #[test]
    fn of_devices_with_one_name_the_first_to_answer_is_not_yet_the_own_one() {
        let pinned = pinned(&["serial:(null)"], Some(("boot", "1")));
        let (own, copy) = (carrier("/dev/own", &["serial:(null)"], "1"), carrier("/dev/copy", &["serial:(null)"], "2"));
        let other = carrier("/dev/other", &["serial:3"], "3");
        for boot in ["boot", "next"] {
            let first = choose(&pinned, boot, std::slice::from_ref(&copy), [&own.identity]);
            assert_eq!(first, Choice::One { carrier: &copy, certain: false });
            // All devices with that name have answered.
            let alone = choose(&pinned, boot, std::slice::from_ref(&copy), [&other.identity]);
            assert_eq!(alone, Choice::One { carrier: &copy, certain: true });
        }
        assert_eq!(
            choose(&pinned, "boot", std::slice::from_ref(&own), [&copy.identity]),
            Choice::One { carrier: &own, certain: true }
        );
    }

    #[test]
    fn a_device_with_other_names_is_a_stranger_also_where_it_is_alone() {
        let pinned = pinned(&["wwid:own", "serial:1"], Some(("boot", "1")));
        let copy = carrier("/dev/copy", &["wwid:other", "serial:2"], "2");
        let nameless = carrier("/dev/loop0", &[], "3");
        // The kernel now reports one name fewer for it.
        let own = carrier("/dev/own", &["serial:1"], "4");
        // All disks of one controller may have its serial number.
        let sibling = carrier("/dev/sibling", &["wwid:sibling", "serial:1"], "6");
        assert_eq!(choose(&pinned, "next", std::slice::from_ref(&sibling), []), Choice::Stranger(&sibling));
        let path = carrier("/dev/path", &["wwid:own"], "5");
        assert_eq!(choose(&pinned, "next", std::slice::from_ref(&copy), []), Choice::Stranger(&copy));
        assert_eq!(choose(&pinned, "next", std::slice::from_ref(&nameless), []), Choice::Stranger(&nameless));
        let carriers = [copy.clone(), nameless, own.clone()];
        assert_eq!(choose(&pinned, "next", &carriers, []), Choice::One { carrier: &own, certain: true });
        assert_eq!(choose(&pinned, "next", &[own.clone(), path.clone()], []), Choice::Several(&own, &path));
        // An instance that another disk has by now.
        let recycled = Carrier { identity: DeviceIdentity { instance: "1".to_owned(), ..copy.identity.clone() }, ..copy };
        assert_eq!(choose(&pinned, "boot", std::slice::from_ref(&recycled), []), Choice::Stranger(&recycled));
    }
}
