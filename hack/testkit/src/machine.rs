//! Snapshots of the machine, to compare what is there before and after a call or a test.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Result, Trouble};
use crate::test_vg::TestVg;
use crate::{mounts, shim, tool, vg};

/// Offset in bytes of the metadata area's header on a physical volume, by LVM's default.
const HEADER: u64 = 4096;

/// What a snapshot covers besides device-mapper, mounts and LVM.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Disks whose LVM metadata counts.
    pub disks: Vec<PathBuf>,
    /// Directories whose entries and contents count: the driver's state, staging and target paths.
    pub trees: Vec<PathBuf>,
}

/// The machine at one moment, without running `lvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// For each disk a digest of the metadata area's header, which holds the place and checksum of the metadata text: LVM rewrites it
    /// with each change of the volume group.
    headers: Vec<String>,
    /// Device-mapper tables, and for each device its UUID and attributes (suspended, inactive table).
    dm: BTreeSet<String>,
    mounts: Vec<String>,
    files: BTreeSet<String>,
    /// Executions of `lvm` so far.
    lvm: usize,
}

/// A [`Machine`] with the volume groups and LVs that LVM reports. Slower: for the beginning and the end of a test.
#[derive(Clone, Debug)]
pub struct Account {
    machine: Machine,
    vgs: Vec<String>,
    lvs: BTreeSet<String>,
}

impl Machine {
    /// # Errors
    /// A disk, directory or table cannot be read.
    pub fn look(scope: &Scope) -> Result<Self> {
        let mut files = BTreeSet::new();
        for tree in &scope.trees {
            walk(tree, &mut files)?;
        }
        let headers = scope.disks.iter().map(|disk| header(disk)).collect::<Result<_>>()?;
        let mounts = mounts::table()?.lines().map(str::to_owned).collect();
        Ok(Self { headers, dm: device_mapper()?, mounts, files, lvm: shim::count()? })
    }

    /// The differences to a later snapshot, one line each.
    pub fn differences(&self, later: &Machine) -> Vec<String> {
        let mut found = Vec::new();
        if self.headers != later.headers {
            found.push("the LVM metadata was written".to_owned());
        }
        if self.lvm != later.lvm {
            let ran = shim::since(self.lvm).unwrap_or_default();
            found.push(format!("lvm ran: {ran:?}"));
        }
        compare("device-mapper", &self.dm, &later.dm, &mut found);
        compare("mount", &self.mounts.iter().cloned().collect(), &later.mounts.iter().cloned().collect(), &mut found);
        compare("file", &self.files, &later.files, &mut found);
        found
    }

    /// Fails if the machine is not as this snapshot shows it. `after` says in the error what should have changed nothing.
    ///
    /// # Errors
    /// The differences.
    pub fn assert_unchanged(&self, scope: &Scope, after: &str) -> Result<()> {
        let found = self.differences(&Machine::look(scope)?);
        if found.is_empty() { Ok(()) } else { Err(Trouble::wrong(format!("{after}, but:\n  {}", found.join("\n  ")))) }
    }
}

impl Account {
    /// # Errors
    /// Those of [`Machine::look`], or LVM fails.
    pub fn take(scope: &Scope) -> Result<Self> {
        tool::settle()?;
        // A thin pool is open as long as it has volumes; that is no leak.
        let attr = |attr: &str| if attr.starts_with('t') { attr.replace('o', "-") } else { attr.to_owned() };
        // A thin pool, its data, its metadata and their spare grow on demand and never shrink.
        let size = |lv: &vg::Lv| if lv.attr.starts_with(['t', 'T', 'e']) { 0 } else { lv.size };
        let lvs = vg::lvs()?
            .into_iter()
            .map(|lv| format!("{}/{} {} bytes [{}] {}", lv.vg, lv.name, size(&lv), attr(&lv.attr), lv.uuid));
        Ok(Self { machine: Machine::look(scope)?, vgs: vg::vgs()?, lvs: lvs.collect() })
    }

    /// What has appeared or disappeared since, one line each. Seqnos of volume groups, counts of `lvm` and contents of files may differ.
    ///
    /// # Errors
    /// Those of [`Account::take`].
    pub fn leaks(&self, scope: &Scope) -> Result<Vec<String>> {
        let now = Account::take(scope)?;
        let mut found = Vec::new();
        let names = |vgs: &[String]| vgs.iter().map(|line| without_last(line)).collect::<BTreeSet<_>>();
        compare("volume group", &names(&self.vgs), &names(&now.vgs), &mut found);
        compare("logical volume", &self.lvs, &now.lvs, &mut found);
        compare("device-mapper", &without_pools(&self.machine.dm), &without_pools(&now.machine.dm), &mut found);
        let points = |mounts: &[String]| mounts.iter().cloned().collect::<BTreeSet<_>>();
        compare("mount", &points(&self.machine.mounts), &points(&now.machine.mounts), &mut found);
        let paths = |files: &BTreeSet<String>| files.iter().map(|line| without_last(line)).collect::<BTreeSet<_>>();
        compare("file", &paths(&self.machine.files), &paths(&now.machine.files), &mut found);
        Ok(found)
    }
}

/// The scope of a test on one volume group.
pub fn scope(vg: &TestVg, trees: &[PathBuf]) -> Scope {
    Scope { disks: vg.disks.clone(), trees: trees.to_vec() }
}

/// Leaves out the devices of thin pools: they grow, and LVM adds a layer with a pool's first volume that stays when the last one goes. A
/// device that is suspended or has an inactive table is not left out, since that is a fault.
fn without_pools(dm: &BTreeSet<String>) -> BTreeSet<String> {
    let is_pool = |uuid: &str| ["-tpool", "-pool", "-tdata", "-tmeta"].iter().any(|layer| uuid.ends_with(layer));
    let named = |line: &str| Some(line.strip_prefix("device ")?.split_once(':')?.0.to_owned());
    let uuid = |line: &str| line.split(':').nth(1).unwrap_or_default().to_owned();
    let pools: BTreeSet<String> = dm.iter().filter(|line| is_pool(&uuid(line))).filter_map(|line| named(line)).collect();
    let of_pool = |line: &&String| {
        let rest = line.split_once(' ').map_or("", |(_, rest)| rest);
        rest.split_once(':').is_some_and(|(name, _)| pools.contains(name) || pools.contains(&format!("{name}-tpool")))
    };
    let in_order =
        |line: &str| line.starts_with("table ") || line.rsplit(':').next().is_some_and(|attr| !attr.contains(['s', 'I']));
    dm.iter().filter(|line| !of_pool(line) || !in_order(line)).cloned().collect()
}

fn without_last(line: &str) -> String {
    line.rsplit_once(' ').map_or_else(|| line.to_owned(), |(rest, _)| rest.to_owned())
}

fn compare(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>, found: &mut Vec<String>) {
    found.extend(after.difference(before).map(|line| format!("{what}, new: {line}")));
    found.extend(before.difference(after).map(|line| format!("{what}, gone: {line}")));
}

fn header(disk: &Path) -> Result<String> {
    let failed = || format!("reading the metadata header on {}", disk.display());
    let mut block = [0u8; 512];
    let mut file = match File::open(disk) {
        Ok(file) => file,
        // A test may have removed the disk.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok("absent".to_owned()),
        Err(error) => return Err(Trouble::io(failed())(error)),
    };
    file.seek(SeekFrom::Start(HEADER)).map_err(Trouble::io(failed()))?;
    file.read_exact(&mut block).map_err(Trouble::io(failed()))?;
    Ok(digest(&block))
}

fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn device_mapper() -> Result<BTreeSet<String>> {
    // To see whether udevd responds, the driver creates a device for a moment.
    let tables = tool::wait("the driver's device that probes udevd to be gone", Duration::from_secs(30), || {
        let tables = tool::run("dmsetup", &["table"])?;
        Ok((!tables.contains("lvm-csi:udev:")).then_some(tables))
    })?;
    let states = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,uuid,attr"])?;
    let lines = tables.lines().map(|l| format!("table {l}")).chain(states.lines().map(|l| format!("device {l}")));
    Ok(lines.filter(|line| !line.contains("No devices found")).collect())
}

/// Adds every entry at and below a path, without crossing into another filesystem. Accepts a path that does not exist.
fn walk(path: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    let top = match fs::symlink_metadata(path) {
        Ok(top) => top,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Trouble::io(format!("looking at {}", path.display()))(error)),
    };
    walk_on(path, top.dev(), found)
}

fn walk_on(path: &Path, device: u64, found: &mut BTreeSet<String>) -> Result<()> {
    let failed = || format!("looking at {}", path.display());
    let entry = fs::symlink_metadata(path).map_err(Trouble::io(failed()))?;
    if entry.dev() != device {
        found.insert(format!("{} (mounted) -", path.display()));
        return Ok(());
    }
    let content = if entry.is_file() { digest(&fs::read(path).map_err(Trouble::io(failed()))?) } else { "-".to_owned() };
    found.insert(format!("{} {:o} {content}", path.display(), entry.mode()));
    if entry.is_dir() {
        for child in fs::read_dir(path).map_err(Trouble::io(failed()))? {
            walk_on(&child.map_err(Trouble::io(failed()))?.path(), device, found)?;
        }
    }
    Ok(())
}
