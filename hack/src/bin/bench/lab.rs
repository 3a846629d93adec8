//! Everything that touches devices, in the lab: real device-mapper, udevd, filesystems.

use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_hack::client::{Csi, create, from_snapshot, mount};
use lvm_csi_hack::driver::Start;
use lvm_csi_hack::error::{Result, Trouble};
use lvm_csi_hack::flow::{Places, Volume, delete_snapshot};
use lvm_csi_hack::vg::TestVg;
use lvm_csi_hack::{lab, tool};
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;

use crate::group::name;
use crate::large;
use crate::measure::{Bound, Pairs, Row};
use crate::stock::{self, lvm};

/// The volume group.
const VG: &str = "bench";
/// Its thin pool.
const POOL: &str = "pool";
/// Pairs of samples; the first one does not count.
const PAIRS: usize = 8;
/// Size of a volume in MiB, and after it has grown.
const SIZE: u64 = 128;
const GROWN: u64 = 192;
const MIB: u64 = 1 << 20;
/// What is promised of calls that one LVM command is most of.
const BOUND: Bound = Bound::AtMost(0.6);
/// Of an expansion: resize2fs, which is the same on both sides, is a part of it.
const EXPAND: Bound = Bound::AtMost(0.75);
/// Of a restage: LVM's activation is the same on both sides, and longer than all the rest. What the driver looks at before it mounts
/// costs no more than what it saves.
const RESTAGE: Bound = Bound::AtMost(1.2);
/// Of a first stage: two commits more, before and after mkfs, without which a crash could leave a volume that nobody dares to format.
const FIRST_STAGE: Bound = Bound::AtMost(1.8);
/// The pod that has a volume while it grows.
const POD: &str = "pod";

/// Measures.
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
        rows.extend(Layout { layout, csi: driver.csi(), places: &places, home: &home, lvm }.measure()?);
    }
    driver.stop()?;
    group.destroy()?;
    rows.extend(large::staging(program, &home)?);
    Ok(rows)
}

/// One layout of volumes.
struct Layout<'a> {
    layout: &'static str,
    csi: &'a Csi,
    places: &'a Places,
    home: &'a Path,
    /// The driver's configuration of LVM.
    lvm: PathBuf,
}

/// The calls that are compared. Before each sample udev is done with what the one before has caused: there is one processor.
struct Calls {
    create: Pairs,
    first_stage: Pairs,
    expand: Pairs,
    snapshot: Pairs,
    restore: Pairs,
    restage: Pairs,
    cut: Pairs,
    delete: Pairs,
    /// LVM alone, with the driver's configuration.
    bare_activate: Pairs,
    bare_extend: Pairs,
    bare_cut: Pairs,
}

impl Calls {
    fn new() -> Self {
        let pairs = || Pairs::after(tool::settle);
        Self {
            create: pairs(),
            first_stage: pairs(),
            expand: pairs(),
            snapshot: pairs(),
            restore: pairs(),
            restage: pairs(),
            cut: pairs(),
            delete: pairs(),
            bare_activate: pairs(),
            bare_extend: pairs(),
            bare_cut: pairs(),
        }
    }
}

impl Layout<'_> {
    fn measure(&self) -> Result<Vec<Row>> {
        let mut calls = Calls::new();
        for number in 0..PAIRS {
            self.life(&mut calls, number)?;
        }
        let row = |pairs: &Pairs, what: &str, against: &str, bound| {
            pairs.ratio("lab", &format!("{what}, {}", self.layout), against, bound)
        };
        let mut rows = vec![
            row(&calls.create, "create", "lvcreate", BOUND),
            row(&calls.first_stage, "first stage", "lvchange -ay + mkfs.ext4 + mount", FIRST_STAGE),
            row(&calls.restage, "restage", "lvchange -ay + mount", RESTAGE),
            row(&calls.bare_activate, "  LVM alone, the driver's lvm.conf", "lvchange -ay", Bound::None),
            row(&calls.expand, "expand, mounted", "lvextend + resize2fs", EXPAND),
            row(&calls.bare_extend, "  LVM alone, the driver's lvm.conf", "lvextend", Bound::None),
            row(&calls.delete, "delete", "lvremove", Bound::None),
        ];
        if self.is_thin() {
            rows.extend([
                row(&calls.snapshot, "snapshot, mounted", "lvcreate -s", BOUND),
                row(&calls.restore, "restore", "lvcreate -s -kn", BOUND),
                row(&calls.cut, "snapshot, inactive", "lvcreate -s -an", BOUND),
                row(&calls.bare_cut, "  LVM alone, the driver's lvm.conf", "lvcreate -s -an", Bound::None),
            ]);
        }
        Ok(rows)
    }

    fn is_thin(&self) -> bool {
        self.layout == "thin"
    }

    /// The life of a pair of volumes, each step on both sides.
    fn life(&self, calls: &mut Calls, number: usize) -> Result<()> {
        let theirs = Theirs::new(&format!("stock{number}"), self.home)?;
        let name = name(number);
        let mut made = None;
        calls.create.take(
            || {
                let request = create(&name, self.layout, SIZE * MIB, mount("ext4", Mode::SingleNodeWriter));
                Volume::create(self.csi, self.places, &name, request).map(|volume| made = Some(volume))
            },
            || theirs.create(self.is_thin()),
        )?;
        let mut volume = made.ok_or_else(|| Trouble::wrong("no volume"))?;
        // Both begin without a device; the grant is Kubernetes' business, and costs no command.
        theirs.deactivate()?;
        volume.attach()?;
        calls
            .first_stage
            .take(|| volume.stage(), || theirs.activate().and_then(|()| theirs.format()).and_then(|()| theirs.mount()))?;
        volume.publish(POD)?;
        calls.expand.take(|| volume.expand(GROWN * MIB, POD), || theirs.grow())?;
        if self.is_thin() {
            self.copies(calls, &volume, &theirs, number)?;
        }
        volume.unpublish(POD)?;
        volume.unstage()?;
        theirs.unmount()?;
        calls.restage.take(|| volume.stage(), || theirs.activate().and_then(|()| theirs.mount()))?;
        volume.unstage()?;
        theirs.unmount()?;
        if self.is_thin() {
            let mut cut = String::new();
            calls.cut.take(
                || volume.snapshot(&format!("snapshot-{number}-inactive")).map(|made| cut = made.snapshot_id),
                || lvm(&["lvcreate", "-s", "-an", "-n", &theirs.other("cut"), &theirs.full]),
            )?;
            delete_snapshot(self.csi, &cut)?;
            lvm(&["lvremove", "-y", &theirs.full_other("cut")])?;
        }
        volume.detach()?;
        calls.delete.take(|| volume.delete(), || lvm(&["lvremove", "-y", &theirs.full]))?;
        self.alone(calls, number)
    }

    /// LVM's commands with the driver's configuration and with the stock one, on volumes of the same kind.
    fn alone(&self, calls: &mut Calls, number: usize) -> Result<()> {
        let configured = |arguments: &[&str]| stock::lvm_configured(&self.lvm, arguments);
        let ours = Theirs::new(&format!("ours{number}"), self.home)?;
        let theirs = Theirs::new(&format!("bare{number}"), self.home)?;
        for volume in [&ours, &theirs] {
            volume.create(self.is_thin())?;
            volume.deactivate()?;
        }
        let larger = format!("{GROWN}m");
        calls.bare_activate.take(|| configured(&["lvchange", "-ay", &ours.full]), || theirs.activate())?;
        calls
            .bare_extend
            .take(|| configured(&["lvextend", "-L", &larger, &ours.full]), || lvm(&["lvextend", "-L", &larger, &theirs.full]))?;
        for volume in [&ours, &theirs] {
            volume.deactivate()?;
        }
        if self.is_thin() {
            calls.bare_cut.take(
                || configured(&["lvcreate", "-s", "-an", "-n", &ours.other("cut"), &ours.full]),
                || lvm(&["lvcreate", "-s", "-an", "-n", &theirs.other("cut"), &theirs.full]),
            )?;
            lvm(&["lvremove", "-y", &ours.full_other("cut"), &theirs.full_other("cut")])?;
        }
        lvm(&["lvremove", "-y", &ours.full, &theirs.full])
    }

    /// A snapshot of the volume in use, and a volume from it.
    fn copies(&self, calls: &mut Calls, volume: &Volume, theirs: &Theirs, number: usize) -> Result<()> {
        let mut cut = None;
        calls.snapshot.take(
            || volume.snapshot(&format!("snapshot-{number}")).map(|made| cut = Some(made)),
            || lvm(&["lvcreate", "-s", "-n", &theirs.other("snap"), &theirs.full]),
        )?;
        let cut = cut.ok_or_else(|| Trouble::wrong("no snapshot"))?;
        let name = name(0x1000 + number);
        let mut request = create(&name, self.layout, GROWN * MIB, mount("ext4", Mode::SingleNodeWriter));
        request.volume_content_source = from_snapshot(&cut.snapshot_id);
        let mut restored = None;
        calls.restore.take(
            || Volume::create(self.csi, self.places, &name, request).map(|volume| restored = Some(volume)),
            || lvm(&["lvcreate", "-s", "-kn", "-n", &theirs.other("restored"), &theirs.full_other("snap")]),
        )?;
        restored.ok_or_else(|| Trouble::wrong("no restored volume"))?.delete()?;
        delete_snapshot(self.csi, &cut.snapshot_id)?;
        lvm(&["lvremove", "-y", &theirs.full_other("restored"), &theirs.full_other("snap")])
    }
}

/// A volume that is handled with bare commands.
struct Theirs {
    name: String,
    full: String,
    device: String,
    target: PathBuf,
}

impl Theirs {
    fn new(name: &str, home: &Path) -> Result<Self> {
        let target = home.join("stock").join(name);
        fs::create_dir_all(&target).map_err(Trouble::io(format!("making {}", target.display())))?;
        Ok(Self { name: name.to_owned(), full: format!("{VG}/{name}"), device: format!("/dev/{VG}/{name}"), target })
    }

    fn other(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }

    fn full_other(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.full)
    }

    fn create(&self, thin: bool) -> Result<()> {
        let size = format!("{SIZE}m");
        if thin {
            lvm(&["lvcreate", "-y", "-V", &size, "--thinpool", POOL, "-n", &self.name, VG])
        } else {
            lvm(&["lvcreate", "-y", "-L", &size, "-n", &self.name, VG])
        }
    }

    fn activate(&self) -> Result<()> {
        lvm(&["lvchange", "-ay", &self.full])
    }

    fn deactivate(&self) -> Result<()> {
        lvm(&["lvchange", "-an", &self.full])
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
        lvm(&["lvextend", "-L", &format!("{GROWN}m"), &self.full])?;
        stock::run("resize2fs", &[&self.device])
    }
}
