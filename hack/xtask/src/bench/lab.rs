//! Calls that touch devices, in the lab, with real device-mapper, udevd and filesystems.

use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{create, from_snapshot, mount};
use testkit::driver::{Driver, Start};
use testkit::error::{Result, Trouble};
use testkit::flow::{Places, Volume, delete_snapshot};
use testkit::test_vg::TestVg;
use testkit::{lab, tool};

use super::group::name;
use super::large;
use super::measure::{Bound, Row, Turns};
use super::stock::{self, lvm};

const VG: &str = "bench";
const POOL: &str = "pool";
/// Samples of each side. The first of each does not count.
const TURNS: usize = 12;
/// Size of a volume in MiB, before and after it is expanded.
const SIZE: u64 = 128;
const GROWN: u64 = 192;
const MIB: u64 = 1 << 20;
/// Bound of calls that spend most time in one LVM command, against that command with the driver's configuration.
const ALONE: Bound = Bound::AtMost(2.2);
/// Bound of calls that spend most time in LVM's activation or in resize2fs, which both sides run. The driver's checks before a mount cost
/// no more than it saves elsewhere.
const WITH_DEVICES: Bound = Bound::AtMost(2.2);
/// Bound of a first stage. It has one metadata commit more than the bare commands, after mkfs. A second one,
/// before mkfs, would take it beyond.
const FIRST_STAGE: Bound = Bound::AtMost(1.3);
/// The pod that uses a volume while it is expanded.
const POD: &str = "pod";

pub(crate) fn run(program: &Path) -> Result<Vec<Row>> {
    lab::require()?;
    stock::version()?;
    let home = lab::fresh("bench")?;
    let group = TestVg::make(VG, &[lab::disk(0)?])?;
    group.thin_pool(POOL, 4096)?;
    let mut driver = Start::on_vg(program, &home, VG).start()?;
    let places = Places { root: home.join("kubelet") };
    let mut rows = Vec::new();
    for layout in ["linear", "thin"] {
        let lvm = home.join("run").join(format!("vg-{VG}")).join("lvm");
        rows.extend(Layout { layout, driver: &driver, places: &places, home: &home, lvm }.measure()?);
    }
    driver.stop()?;
    group.destroy()?;
    rows.extend(large::staging(program, &home)?);
    Ok(rows)
}

/// Measures one layout of volumes.
struct Layout<'a> {
    layout: &'static str,
    driver: &'a Driver,
    places: &'a Places,
    home: &'a Path,
    /// The driver's `LVM_SYSTEM_DIR`.
    lvm: PathBuf,
}

/// The compared calls. Each sample first waits for udevd, which would otherwise use the lab's only processor for the sample before.
struct Calls {
    create: Turns,
    first_stage: Turns,
    expand: Turns,
    snapshot: Turns,
    restore: Turns,
    restage: Turns,
    cut: Turns,
    delete: Turns,
}

impl Calls {
    fn new() -> Self {
        let turns = || Turns::after(tool::settle);
        Self {
            create: turns(),
            first_stage: turns(),
            expand: turns(),
            snapshot: turns(),
            restore: turns(),
            restage: turns(),
            cut: turns(),
            delete: turns(),
        }
    }
}

impl Layout<'_> {
    fn measure(&self) -> Result<Vec<Row>> {
        let mut calls = Calls::new();
        for number in 0..TURNS {
            self.life(&mut calls, number)?;
        }
        let mut rows = Vec::new();
        let mut add = |turns: &Turns, what: &str, command: &str, bound| {
            rows.extend(turns.rows("lab", &format!("{what}, {}", self.layout), command, bound));
        };
        add(&calls.create, "create", "lvcreate", ALONE);
        add(&calls.first_stage, "first stage", "lvchange -ay + mkfs + mount", FIRST_STAGE);
        add(&calls.restage, "restage", "lvchange -ay + mount", WITH_DEVICES);
        add(&calls.expand, "expand, mounted", "lvextend + resize2fs", WITH_DEVICES);
        add(&calls.delete, "delete", "lvremove", ALONE);
        if self.is_thin() {
            add(&calls.snapshot, "snapshot, mounted", "lvcreate -s", ALONE);
            add(&calls.restore, "restore", "lvcreate -s -kn", ALONE);
            add(&calls.cut, "snapshot, inactive", "lvcreate -s -an", ALONE);
        }
        Ok(rows)
    }

    fn is_thin(&self) -> bool {
        self.layout == "thin"
    }

    /// The life of three volumes, one for each side, with each step timed on all sides.
    fn life(&self, calls: &mut Calls, number: usize) -> Result<()> {
        let alone = Theirs::new(&format!("alone{number}"), self.home, Some(&self.lvm))?;
        let theirs = Theirs::new(&format!("stock{number}"), self.home, None)?;
        let (name, csi, pid) = (name(number), self.driver.csi(), self.driver.pid()?);
        let mut made = None;
        calls.create.take(
            pid,
            || {
                let request = create(&name, self.layout, SIZE * MIB, mount("ext4", Mode::SingleNodeWriter));
                Volume::create(csi, self.places, &name, request).map(|volume| made = Some(volume))
            },
            || alone.create(self.is_thin()),
            || theirs.create(self.is_thin()),
        )?;
        let mut volume = made.ok_or_else(|| Trouble::wrong("CreateVolume returned no volume"))?;
        // All sides start without a device. The attach runs no command, so it is not compared.
        theirs.deactivate()?;
        volume.attach()?;
        calls.first_stage.take(pid, || volume.stage(), || alone.first_stage(), || theirs.first_stage())?;
        volume.publish(POD)?;
        calls.expand.take(pid, || volume.expand(GROWN * MIB, POD), || alone.grow(), || theirs.grow())?;
        if self.is_thin() {
            self.copies(calls, &volume, [&alone, &theirs], number)?;
        }
        volume.unpublish(POD)?;
        volume.unstage()?;
        alone.unmount()?;
        theirs.unmount()?;
        calls.restage.take(pid, || volume.stage(), || alone.restage(), || theirs.restage())?;
        volume.unstage()?;
        alone.unmount()?;
        theirs.unmount()?;
        if self.is_thin() {
            let mut cut = String::new();
            calls.cut.take(
                pid,
                || volume.snapshot(&format!("snapshot-{number}-inactive")).map(|made| cut = made.snapshot_id),
                || alone.cut("cut"),
                || theirs.cut("cut"),
            )?;
            delete_snapshot(csi, &cut)?;
            lvm(&["lvremove", "-y", &alone.full_other("cut"), &theirs.full_other("cut")])?;
        }
        volume.detach()?;
        calls.delete.take(pid, || volume.delete(), || alone.remove(), || theirs.remove())
    }

    /// A snapshot of the volume in use, and a restore from it.
    fn copies(&self, calls: &mut Calls, volume: &Volume, [alone, theirs]: [&Theirs; 2], number: usize) -> Result<()> {
        let (csi, pid) = (self.driver.csi(), self.driver.pid()?);
        let mut cut = None;
        calls.snapshot.take(
            pid,
            || volume.snapshot(&format!("snapshot-{number}")).map(|made| cut = Some(made)),
            || alone.cut("snap"),
            || theirs.lvm(&["lvcreate", "-s", "-n", &theirs.other("snap"), &theirs.full]),
        )?;
        let cut = cut.ok_or_else(|| Trouble::wrong("CreateSnapshot returned no snapshot"))?;
        let name = name(0x1000 + number);
        let mut request = create(&name, self.layout, GROWN * MIB, mount("ext4", Mode::SingleNodeWriter));
        request.volume_content_source = from_snapshot(&cut.snapshot_id);
        let mut restored = None;
        calls.restore.take(
            pid,
            || Volume::create(csi, self.places, &name, request).map(|volume| restored = Some(volume)),
            || alone.lvm(&["lvcreate", "-s", "-an", "-kn", "-n", &alone.other("restored"), &alone.full_other("snap")]),
            || theirs.lvm(&["lvcreate", "-s", "-kn", "-n", &theirs.other("restored"), &theirs.full_other("snap")]),
        )?;
        restored.ok_or_else(|| Trouble::wrong("the restore returned no volume"))?.delete()?;
        delete_snapshot(csi, &cut.snapshot_id)?;
        let both = [alone, theirs].map(|side| [side.full_other("restored"), side.full_other("snap")]).concat();
        both.iter().try_for_each(|copy| lvm(&["lvremove", "-y", copy]))
    }
}

/// A volume that bare commands handle.
struct Theirs {
    /// The driver's `LVM_SYSTEM_DIR`, or none for Debian's own configuration.
    configured: Option<PathBuf>,
    name: String,
    full: String,
    device: String,
    target: PathBuf,
}

impl Theirs {
    fn new(name: &str, home: &Path, configured: Option<&Path>) -> Result<Self> {
        let target = home.join("stock").join(name);
        fs::create_dir_all(&target).map_err(Trouble::io(format!("making {}", target.display())))?;
        let configured = configured.map(Path::to_owned);
        Ok(Self { configured, name: name.to_owned(), full: format!("{VG}/{name}"), device: format!("/dev/{VG}/{name}"), target })
    }

    fn lvm(&self, arguments: &[&str]) -> Result<()> {
        match &self.configured {
            Some(directory) => stock::lvm_configured(directory, arguments),
            None => lvm(arguments),
        }
    }

    fn other(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }

    fn full_other(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.full)
    }

    /// With the driver's configuration also with its options: no device, and no wiping.
    fn create(&self, thin: bool) -> Result<()> {
        let size = format!("{SIZE}m");
        let kind: &[&str] = if thin { &["-V", &size, "--thinpool", POOL] } else { &["-L", &size] };
        let way: &[&str] = match (self.configured.is_some(), thin) {
            (false, _) => &[],
            (true, true) => &["-an", "-Wn"],
            (true, false) => &["-an", "-Wn", "-Zn"],
        };
        self.lvm(&[&["lvcreate", "-y"], way, kind, &["-n", &self.name, VG]].concat())
    }

    fn first_stage(&self) -> Result<()> {
        self.activate()?;
        self.format()?;
        self.mount()
    }

    fn restage(&self) -> Result<()> {
        self.activate()?;
        self.mount()
    }

    /// Takes a snapshot without a device.
    fn cut(&self, suffix: &str) -> Result<()> {
        self.lvm(&["lvcreate", "-s", "-an", "-n", &self.other(suffix), &self.full])
    }

    fn remove(&self) -> Result<()> {
        self.lvm(&["lvremove", "-y", &self.full])
    }

    fn activate(&self) -> Result<()> {
        self.lvm(&["lvchange", "-ay", &self.full])
    }

    fn deactivate(&self) -> Result<()> {
        self.lvm(&["lvchange", "-an", &self.full])
    }

    fn format(&self) -> Result<()> {
        stock::run("mkfs.ext4", &["-q", &self.device])
    }

    fn mount(&self) -> Result<()> {
        stock::run("mount", &[&self.device, &self.target.to_string_lossy()])
    }

    fn unmount(&self) -> Result<()> {
        stock::run("umount", &[&*self.target.to_string_lossy()])?;
        self.deactivate()
    }

    fn grow(&self) -> Result<()> {
        self.lvm(&["lvextend", "-L", &format!("{GROWN}m"), &self.full])?;
        stock::run("resize2fs", &[&self.device])
    }
}
