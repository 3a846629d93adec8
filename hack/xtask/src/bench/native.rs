//! Commands that change metadata but no device, on this machine's own kernel. For thin pools LVM has no such commands.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, Csi, create, mount};
use testkit::driver::Driver;
use testkit::error::{Result, Trouble};
use testkit::tool;

use super::group::{Group, name};
use super::large;
use super::measure::{Bound, Row, Turns, time};
use super::stock::{self, lvm};

/// Directory of all files, in memory.
const HOME: &str = "/run/bench";
/// Number of concurrent callers.
const CALLERS: usize = 16;
/// Bound of a call against the LVM command that it runs, with the same configuration.
const ALONE: Bound = Bound::AtMost(1.7);
/// Bound of a call's processor time against that of the stock command.
const PROCESSOR: Bound = Bound::AtMost(1.6);
/// Size of a volume in bytes.
const SIZE: u64 = 4 << 20;

/// A given disk, or a loop device on a sparse file that disappears with this process.
struct Disk {
    path: PathBuf,
    _held: Option<File>,
}

impl Disk {
    fn take(given: Option<&Path>) -> Result<Self> {
        if let Some(path) = given {
            return Ok(Self { path: path.to_owned(), _held: None });
        }
        let image = Path::new(HOME).join("disk");
        let file = File::create(&image).map_err(Trouble::io(format!("making {}", image.display())))?;
        file.set_len(16 << 30).map_err(Trouble::io(format!("making {}", image.display())))?;
        let path = tool::run("losetup", &["--find".as_ref(), "--show".as_ref(), image.as_os_str()])?.trim().to_owned();
        let held = File::open(&path).map_err(Trouble::io(format!("opening {path}")))?;
        // The kernel detaches it only when nobody has it open any more, however this process ends.
        tool::run("losetup", &["--detach", &path])?;
        Ok(Self { path: path.into(), _held: Some(held) })
    }
}

pub(crate) fn run(program: &Path, disk: Option<&Path>) -> Result<Vec<Row>> {
    let home = Path::new(HOME);
    fs::create_dir_all(home).map_err(Trouble::io(format!("making {HOME}")))?;
    let disk = Disk::take(disk)?;
    stock::version()?;
    stock::metadata_only(Path::new("/etc/lvm"))?;
    let mut rows = Vec::new();
    for (volumes, turns) in [(10, 41), (500, 31)] {
        let group = Group::make("bench", &disk.path, &home.join(volumes.to_string()), volumes)?;
        stock::metadata_only(&group.system_dir())?;
        let mut driver = group.driver(program).start()?;
        rows.extend(one_by_one(&group, &driver, turns)?);
        if volumes == 10 {
            rows.extend(at_once(&group, driver.csi())?);
        }
        driver.stop()?;
    }
    let group = Group::make("bench", &disk.path, &home.join("5000"), large::VOLUMES)?;
    stock::metadata_only(&group.system_dir())?;
    rows.extend(large::reading(&group, program)?);
    Ok(rows)
}

fn make(csi: &Csi, name: &str) -> Result<String> {
    let request = create(name, "linear", SIZE, mount("ext4", Mode::SingleNodeWriter));
    let volume = csi.create_volume(request).accepted("CreateVolume")?.volume;
    volume.map(|volume| volume.volume_id).ok_or_else(|| Trouble::wrong("CreateVolume returned no volume"))
}

fn delete(csi: &Csi, id: &str) -> Result<()> {
    let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
    csi.delete_volume(request).accepted("DeleteVolume").map(drop)
}

/// What CreateVolume does, as one command: an inactive LV of the same size with the same tags.
fn bare_make(run: impl Fn(&[&str]) -> Result<()>, group: &Group, name: &str) -> Result<()> {
    let tags = ["--addtag", "lvm-csi=1", "--addtag", "csi.fs=blank"];
    run(&[&["lvcreate", "-y", "-an", "-Wn", "-Zn", "-L", "4m", "-n", name], &tags[..], &[&group.name]].concat())
}

fn bare_remove(run: impl Fn(&[&str]) -> Result<()>, group: &Group, name: &str) -> Result<()> {
    run(&["lvremove", "-y", &format!("{}/{name}", group.name)])
}

fn stock_make(group: &Group, name: &str) -> Result<()> {
    bare_make(lvm, group, name)
}

fn stock_remove(group: &Group, name: &str) -> Result<()> {
    bare_remove(lvm, group, name)
}

/// Measures one caller.
fn one_by_one(group: &Group, driver: &Driver, turns: usize) -> Result<Vec<Row>> {
    let (mut creates, mut deletes) = (Turns::default(), Turns::default());
    let (directory, csi, pid) = (group.system_dir(), driver.csi(), driver.pid()?);
    let configured = |arguments: &[&str]| stock::lvm_configured(&directory, arguments);
    for number in 0..turns {
        let [ours, bare, theirs] = [0x10_0000, 0x20_0000, 0x30_0000].map(|first| name(first + number));
        let mut id = String::new();
        creates.take(
            pid,
            || make(csi, &ours).map(|made| id = made),
            || bare_make(configured, group, &bare),
            || stock_make(group, &theirs),
        )?;
        deletes.take(pid, || delete(csi, &id), || bare_remove(configured, group, &bare), || stock_remove(group, &theirs))?;
    }
    let volumes = group.home.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let what = |call: &str| format!("{call}, {volumes} volumes");
    let mut rows = creates.rows("native", &what("CreateVolume"), "lvcreate -an", ALONE);
    rows.push(creates.processor("native", "lvcreate -an", PROCESSOR));
    rows.extend(deletes.rows("native", &what("DeleteVolume"), "lvremove", ALONE));
    rows.push(deletes.processor("native", "lvremove", PROCESSOR));
    Ok(rows)
}

/// Measures concurrent callers against sequential commands. Times are per volume.
fn at_once(group: &Group, csi: &Csi) -> Result<Vec<Row>> {
    const ROUNDS: usize = 7;
    const EACH: usize = 3;
    const STOCK: usize = 4;
    let (mut creates, mut deletes) = (Turns::default(), Turns::default());
    let directory = group.system_dir();
    let configured = |arguments: &[&str]| stock::lvm_configured(&directory, arguments);
    let per = |whole: std::time::Duration, count: usize| whole / u32::try_from(count).unwrap_or(1);
    for round in 0..ROUNDS {
        let number = |caller: usize, each: usize| 0x50_0000 + (round * CALLERS + caller) * EACH + each;
        let names = |first: usize| -> Vec<String> { (0..STOCK).map(|each| name(first + round * STOCK + each)).collect() };
        let (bare, theirs) = (names(0x60_0000), names(0x70_0000));
        let start = Instant::now();
        let ids = callers(|caller| (0..EACH).map(|each| make(csi, &name(number(caller, each)))).collect::<Result<Vec<_>>>())?;
        let ours = start.elapsed();
        let alone = time(|| bare.iter().try_for_each(|name| bare_make(configured, group, name)))?;
        let stock = time(|| theirs.iter().try_for_each(|name| stock_make(group, name)))?;
        creates.add(per(ours, CALLERS * EACH), per(alone, STOCK), per(stock, STOCK));

        let start = Instant::now();
        callers(|caller| ids[caller].iter().try_for_each(|id| delete(csi, id)))?;
        let ours = start.elapsed();
        let alone = time(|| bare.iter().try_for_each(|name| bare_remove(configured, group, name)))?;
        let stock = time(|| theirs.iter().try_for_each(|name| stock_remove(group, name)))?;
        deletes.add(per(ours, CALLERS * EACH), per(alone, STOCK), per(stock, STOCK));
    }
    let mut rows = creates.rows("native", "CreateVolume by 16 callers, each", "lvcreate -an, one by one", ALONE);
    rows.extend(deletes.rows("native", "DeleteVolume by 16 callers, each", "lvremove, one by one", ALONE));
    Ok(rows)
}

/// Runs work on one thread for each caller; returns what each created.
fn callers<T: Send>(work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn({
                    let work = &work;
                    move || work(caller)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| Trouble::wrong("a caller panicked"))?).collect()
    })
}
