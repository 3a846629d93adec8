//! What must be equal with and without a crash: volumes, devices, mounts, files, attachments and data. It leaves out numbers that
//! differ between runs: UUIDs, minors, epochs, offsets on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use testkit::error::{Result, Trouble};
use testkit::flow::Places;
use testkit::mounts::mounts;
use testkit::test_vg::TestVg;
use testkit::{lab, tool};

/// Size of a block of the attach ledger, in bytes.
const BLOCK: usize = 4096;
/// Bytes of each volume that are compared.
pub(crate) const SAMPLE: usize = 4096;

/// The state of the machine, one line per item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State(BTreeSet<String>);

impl State {
    /// Collects everything about a volume group and the paths of its volumes.
    pub(crate) fn look(vg: &TestVg, places: &Places, ledger: &Path) -> Result<Self> {
        let mut lines = BTreeSet::new();
        // LV names by UUID without hyphens.
        let mut lvs = BTreeMap::new();
        for mut lv in vg.lvs()? {
            if lv.name.ends_with("_pmspare") {
                // LVM's number depends on what a dead lvm left. A group has only one spare.
                lv.name = "spare".to_owned();
            }
            lvs.insert(lv.uuid.replace('-', ""), lv.name.clone());
            // An open thin pool only means that it has volumes.
            let attr = if lv.attr.starts_with('t') { lv.attr.replace('o', "-") } else { lv.attr };
            let mut tags = lv.tags;
            tags.sort();
            lines.insert(format!("LV {} {} {attr} pool={} origin={} {tags:?}", lv.name, lv.size, lv.pool, lv.origin));
        }
        let named = |text: &str| lvs.iter().fold(text.to_owned(), |text, (uuid, name)| text.replace(uuid, name));
        let devices = devices(&named, &mut lines)?;
        for mount in mounts()?.iter().filter(|mount| mount.point.starts_with(lab::ROOT)) {
            let shown = mount.root.to_string_lossy().into_owned();
            let shown = shown.strip_prefix("/dm-").and_then(|minor| devices.get(minor)).unwrap_or(&shown).clone();
            let source = mount.source.strip_prefix("/dev/dm-").and_then(|minor| devices.get(minor)).unwrap_or(&mount.source);
            let (point, kind) = (mount.point.display(), &mount.filesystem);
            lines.insert(format!("mount {} {kind} {source}:{shown} {}", named(&point.to_string()), mount.options));
            if let Some(data) = sample(&mount.point)? {
                lines.insert(format!("data at {point}: {data}"));
            }
        }
        walk(&places.root, &mut lines)?;
        attachments(ledger, &named, &mut lines)?;
        exposed(&ledger.with_file_name("exposed"), &lvs, &mut lines)?;
        Ok(Self(lines))
    }

    /// Returns what differs in a later state, one line per item.
    pub(crate) fn differences(&self, later: &State) -> Vec<String> {
        let new = later.0.difference(&self.0).map(|line| format!("unexpected: {line}"));
        let gone = self.0.difference(&later.0).map(|line| format!("missing: {line}"));
        new.chain(gone).collect()
    }

    /// Fails if a device is suspended, has an inactive table or is a map for zeroing. No undisturbed call leaves any of these.
    pub(crate) fn is_settled(&self) -> Result<()> {
        let odd = |line: &&String| {
            line.starts_with("device ") && (line.contains("zero") || line.contains(['s', 'I']) && odd_attr(line))
        };
        match self.0.iter().find(odd) {
            None => Ok(()),
            Some(line) => Err(Trouble::wrong(format!("not settled: {line}"))),
        }
    }
}

/// Whether the device of a line is suspended or has an inactive table.
fn odd_attr(line: &str) -> bool {
    line.split_whitespace().nth(2).is_some_and(|attr| attr.contains(['s', 'I']))
}

/// Adds the device-mapper devices. Returns their names by minor.
fn devices(named: &impl Fn(&str) -> String, lines: &mut BTreeSet<String>) -> Result<BTreeMap<String, String>> {
    let columns = "name,attr,open,major,minor";
    let text = tool::run("dmsetup", &["info", "-c", "--noheadings", "--separator", " ", "-o", columns])?;
    let (mut by_minor, mut by_number) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        // Without devices dmsetup prints a single message, which has fewer words.
        let [name, attr, open, major, minor] = line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
        let name = named(name);
        lines.insert(format!("device {name} {attr} open {open}"));
        by_minor.insert(minor.to_owned(), name.clone());
        by_number.insert(format!("{major}:{minor}"), name);
    }
    for line in tool::run("dmsetup", &["table"])?.lines() {
        let Some((name, table)) = line.split_once(": ") else { continue };
        let words: Vec<&str> = table.split_whitespace().collect();
        let word = |(at, word): (usize, &&str)| match (words.get(2), at) {
            // The offset on the disk, or the number of a thin volume in its pool.
            (Some(&"linear" | &"thin"), 4) => "_".to_owned(),
            _ => by_number.get(*word).cloned().unwrap_or_else(|| (*word).to_owned()),
        };
        let table: Vec<String> = words.iter().enumerate().map(word).collect();
        lines.insert(format!("table {}: {}", named(name), table.join(" ")));
    }
    Ok(by_minor)
}

/// Returns what was written to a mounted volume, if there is anything to read.
fn sample(point: &Path) -> Result<Option<String>> {
    let failed = |error| Trouble::io(format!("reading {}", point.display()))(error);
    let file = if point.is_dir() { point.join("kept") } else { point.to_owned() };
    let mut bytes = vec![0; SAMPLE];
    match File::open(&file).and_then(|mut file| file.read(&mut bytes)) {
        Ok(length) => Ok(Some(format!("{:?}", String::from_utf8_lossy(&bytes[..length]).trim_end_matches('\0')))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Adds every entry at and below a directory without crossing mounts.
fn walk(path: &Path, lines: &mut BTreeSet<String>) -> Result<()> {
    let failed = || format!("looking at {}", path.display());
    let entry = fs::symlink_metadata(path).map_err(Trouble::io(failed()))?;
    lines.insert(format!("file {} {:o}", path.display(), entry.mode()));
    if entry.is_dir() {
        for child in fs::read_dir(path).map_err(Trouble::io(failed()))? {
            let child = child.map_err(Trouble::io(failed()))?.path();
            let below = fs::symlink_metadata(&child).map_err(Trouble::io(failed()))?;
            if below.dev() == entry.dev() {
                walk(&child, lines)?;
            }
        }
    }
    Ok(())
}

/// Adds the records of how existing volumes were shown.
fn exposed(dir: &Path, lvs: &BTreeMap<String, String>, lines: &mut BTreeSet<String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Trouble::io("listing the records of shown volumes")(error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let mut parts = name.splitn(3, '.').skip(1);
        let lv = parts.next().and_then(|uuid| lvs.get(&uuid.replace('-', "")));
        if let (Some(lv), Some(shown)) = (lv, parts.next()) {
            lines.insert(format!("shown {lv} {shown}"));
        }
    }
    Ok(())
}

/// Adds the attachments in the ledger: each grant and its acknowledgement.
fn attachments(ledger: &Path, named: &impl Fn(&str) -> String, lines: &mut BTreeSet<String>) -> Result<()> {
    let bytes = match fs::read(ledger) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Trouble::io("reading the ledger")(error)),
    };
    for slot in bytes.chunks_exact(2 * BLOCK) {
        let text = |block: &[u8]| {
            let length =
                block.get(8..12).map_or(0, |length| length.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)));
            let text = String::from_utf8_lossy(block.get(12..12 + length).unwrap_or_default()).into_owned();
            let steady = |line: &&str| !["epoch=", "boot=", "vg="].iter().any(|changing| line.starts_with(changing));
            named(&text.replace('-', "").lines().filter(steady).collect::<Vec<_>>().join(" "))
        };
        let (grant, ack) = slot.split_at(BLOCK);
        // An acknowledgement without a grant means nothing.
        if grant.iter().any(|byte| *byte != 0) {
            lines.insert(format!("attachment {}; {}", text(grant), text(ack)));
        }
    }
    Ok(())
}
