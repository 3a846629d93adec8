//! An account of the machine: what a call may have changed, taken before and after it.

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

/// Byte of a physical volume at which the header of its metadata area lies, unless made otherwise.
const HEADER: u64 = 4096;

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Disks whose LVM metadata is watched.
    pub disks: Vec<PathBuf>,
    /// Directories of which every entry counts, by content: state of the driver, staging and target paths.
    pub trees: Vec<PathBuf>,
}

/// The machine at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Per disk a digest of the header that LVM writes anew with each change of the volume group: place and checksum of the
    /// metadata text. It costs no process.
    headers: Vec<String>,
    /// Device-mapper: tables, and per device its UUID and whether it is suspended or has a second table.
    dm: BTreeSet<String>,
    /// The table of mounts, in order.
    mounts: Vec<String>,
    /// Entries of the watched directories.
    files: BTreeSet<String>,
    /// Executions of `lvm`.
    lvm: usize,
}

/// The machine as LVM sees it as well; slower, for the beginning and the end of a test.
#[derive(Clone, Debug)]
pub struct Account {
    machine: Machine,
    vgs: Vec<String>,
    lvs: BTreeSet<String>,
}

impl Machine {
    /// Looks at everything in the scope.
    ///
    /// # Errors
    /// Something cannot be looked at.
    pub fn look(scope: &Scope) -> Result<Self> {
        let mut files = BTreeSet::new();
        for tree in &scope.trees {
            walk(tree, &mut files)?;
        }
        let headers = scope.disks.iter().map(|disk| header(disk)).collect::<Result<_>>()?;
        let mounts = mounts::table()?.lines().map(str::to_owned).collect();
        Ok(Self { headers, dm: device_mapper()?, mounts, files, lvm: shim::count()? })
    }

    /// What is different in a later look, one line each; empty when nothing is.
    pub fn differences(&self, later: &Machine) -> Vec<String> {
        let mut found = Vec::new();
        if self.headers != later.headers {
            found.push("the LVM metadata was written".to_owned());
        }
        if self.lvm != later.lvm {
            let ran = shim::since(self.lvm).unwrap_or_default();
            found.push(format!("lvm was executed: {ran:?}"));
        }
        compare("device-mapper", &self.dm, &later.dm, &mut found);
        compare("mount", &self.mounts.iter().cloned().collect(), &later.mounts.iter().cloned().collect(), &mut found);
        compare("file", &self.files, &later.files, &mut found);
        found
    }

    /// Fails unless the machine is as it was at this look.
    ///
    /// # Errors
    /// What is different.
    pub fn assert_unchanged(&self, scope: &Scope, after: &str) -> Result<()> {
        let found = self.differences(&Machine::look(scope)?);
        if found.is_empty() { Ok(()) } else { Err(Trouble::wrong(format!("{after}, but:\n  {}", found.join("\n  ")))) }
    }
}

impl Account {
    /// Takes an account of the machine, logical volumes included.
    ///
    /// # Errors
    /// Something cannot be looked at.
    pub fn take(scope: &Scope) -> Result<Self> {
        tool::settle()?;
        // Whether a thin pool is open says only that it has volumes.
        let attr = |attr: &str| if attr.starts_with('t') { attr.replace('o', "-") } else { attr.to_owned() };
        // A thin pool, its data, its metadata and their spare grow when they must, and never shrink.
        let size = |lv: &vg::Lv| if lv.attr.starts_with(['t', 'T', 'e']) { 0 } else { lv.size };
        let lvs = vg::lvs()?
            .into_iter()
            .map(|lv| format!("{}/{} {} bytes [{}] {}", lv.vg, lv.name, size(&lv), attr(&lv.attr), lv.uuid));
        Ok(Self { machine: Machine::look(scope)?, vgs: vg::vgs()?, lvs: lvs.collect() })
    }

    /// What is there now and was not, or was there and is not, one line each. The number of changes to the volume group and
    /// of `lvm` executions may differ, and files that exist in both may have other contents.
    ///
    /// # Errors
    /// Something cannot be looked at.
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

/// The scope of tests on one volume group.
pub fn scope(vg: &TestVg, trees: &[PathBuf]) -> Scope {
    Scope { disks: vg.disks.clone(), trees: trees.to_vec() }
}

/// Without the devices of thin pools themselves: they grow, and LVM makes another layer of them with a pool's first volume, which
/// the pool keeps when the last one goes. One that is suspended, or has a second table, is kept.
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
        // A disk that a test took away is a state like any other.
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
    // A driver asks udevd by a device that lives for a moment.
    let tables = tool::wait("a device by which udevd is asked to be gone", Duration::from_secs(30), || {
        let tables = tool::run("dmsetup", &["table"])?;
        Ok((!tables.contains("lvm-csi:udev:")).then_some(tables))
    })?;
    let states = tool::run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,uuid,attr"])?;
    let lines = tables.lines().map(|l| format!("table {l}")).chain(states.lines().map(|l| format!("device {l}")));
    Ok(lines.filter(|line| !line.contains("No devices found")).collect())
}

/// Adds every entry at and below a path, without crossing into another filesystem; a missing tree is empty.
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
