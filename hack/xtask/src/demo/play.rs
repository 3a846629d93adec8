//! The play: the life of a few volumes from their creation to their deletion.

use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{self, Accepted, Csi, create, from_snapshot, from_volume};
use testkit::driver::{Driver, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Places, Volume, delete_snapshot};
use testkit::lab::{self, say};
use testkit::machine::{Account, Scope, scope};
use testkit::signature::device_size;
use testkit::test_vg::TestVg;
use testkit::vg;
use testkit::{shim, tool};

use super::Options;
use super::data::{self, Writer};
use super::show::Show;
use crate::or_beside;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Something broken on purpose, to check that the demo detects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// Flips a bit of the restored file
    Data,
    /// Leaves an LV that the driver does not know
    Leak,
    /// Leaves a mount in a pod's directory
    Mount,
}

impl Sabotage {
    pub(crate) const ALL: [Sabotage; 3] = [Sabotage::Data, Sabotage::Leak, Sabotage::Mount];

    /// Its name on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Sabotage::Data => "data",
            Sabotage::Leak => "leak",
            Sabotage::Mount => "mount",
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Sabotage::Data => "flip one bit of the restored file before the demo compares it",
            Sabotage::Leak => "create an LV that nobody deletes",
            Sabotage::Mount => "leave a mount behind in a pod's directory",
        }
    }

    /// What a play that detects it reports.
    pub(crate) fn finding(self) -> &'static str {
        match self {
            Sabotage::Data => "the restored file differs",
            Sabotage::Leak => "logical volume, new",
            Sabotage::Mount => "mount, new",
        }
    }
}

struct Play {
    show: Show,
    csi: Csi,
    places: Places,
    sabotage: Option<Sabotage>,
}

/// Plays everything, from an empty disk until the machine is as before.
pub(crate) fn play(options: &Options) -> Result<()> {
    let home = lab::fresh("demo")?;
    shim::install(&or_beside(options.shim.as_deref(), "lvm-shim")?)?;
    let group = TestVg::make("demo", &[lab::disk(0)?])?;
    let kernel = tool::run("uname", &["-r"])?;
    let version = vg::lvm(&["version"])?;
    let lvm = version.lines().find_map(|line| line.trim().strip_prefix("LVM version:")).unwrap_or_default().trim();
    say(&format!("Volume group \"demo\" on {}; kernel {}, LVM {lvm}", lab::disk(0)?.display(), kernel.trim()));

    let start =
        Start::on_vg(&or_beside(options.driver.as_deref(), "lvm-csi")?, &home, "demo").with(&["--create-thin-pool", "7Gi"]);
    let mut driver = start.start()?;
    let places = Places { root: home.join("kubelet") };
    let scope = scope(&group, &[places.root.clone(), start.state()]);
    std::fs::create_dir_all(&places.root).map_err(Trouble::io("making the pods' directory"))?;
    let before = Account::take(&scope)?;
    let mut play = Play { show: Show::new(driver.csi()), csi: driver.csi().clone(), places, sabotage: options.sabotage };
    let played = play.acts();
    if played.is_err() {
        say(&format!("\nThe end of the driver's log:\n{}", driver.tail()));
    }
    played?;
    play.break_something(&group)?;
    play.show.summary();
    finish(&mut driver, &before, &scope, &group)
}

fn finish(driver: &mut Driver, before: &Account, scope: &Scope, group: &TestVg) -> Result<()> {
    let resident = driver.resident()?;
    driver.stop()?;
    let left = before.leaks(scope)?;
    let report = if left.is_empty() { "nothing".to_owned() } else { format!("\n  {}", left.join("\n  ")) };
    say(&format!("  the driver used {:.1} MiB of memory and ended with 0 after SIGTERM", resident as f64 / 1024.0));
    say(&format!("  left behind (volumes, device-mapper, mounts, files): {report}"));
    group.destroy()?;
    ensure(left.is_empty(), || format!("something is left behind: {}", left.join("; ")))
}

impl Play {
    fn acts(&mut self) -> Result<()> {
        self.hello()?;
        let mut data = self.provision()?;
        let snapshot = self.snapshot_and_restore(&mut data)?;
        if self.sabotage.is_none() {
            self.clone_of(&data)?;
            self.grow(&mut data)?;
            self.raw_block()?;
        }
        self.move_on(&data, &snapshot)
    }

    fn hello(&mut self) -> Result<()> {
        self.show.title("What the sidecars and kubelet ask first");
        let csi = self.csi.clone();
        let info = self.show.call("", || csi.get_plugin_info(csi::GetPluginInfoRequest {}).accepted("GetPluginInfo"))?;
        say(&format!("    {} {}", info.name, info.vendor_version));
        self.show
            .call("", || csi.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).accepted("GetPluginCapabilities"))?;
        self.show.call("", || {
            csi.controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).accepted("ControllerGetCapabilities")
        })?;
        self.show.call("", || csi.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).accepted("NodeGetCapabilities"))?;
        let node = self.show.call("", || csi.node_get_info(csi::NodeGetInfoRequest {}).accepted("NodeGetInfo"))?;
        let segments = node.accessible_topology.map(|topology| topology.segments).unwrap_or_default();
        say(&format!("    node {}, topology {segments:?}", node.node_id));
        for pool in ["thin", "linear"] {
            let request = csi::GetCapacityRequest { parameters: client::map(&[("pool", pool)]), ..Default::default() };
            let answer = self.show.call(&format!("pool {pool}"), || csi.get_capacity(request).accepted("GetCapacity"))?;
            say(&format!("    {} MiB available", answer.available_capacity / (1 << 20)));
        }
        Ok(())
    }

    fn provision(&mut self) -> Result<Volume> {
        self.show.title("A pod gets a volume");
        let (csi, places) = (self.csi.clone(), self.places.clone());
        let request =
            create("pvc-11111111-2222-4333-8444-555555555501", "thin", GIB, client::mount("ext4", Mode::SingleNodeWriter));
        let mut data = self.show.call("data: 1 GiB, thin, ext4", || Volume::create(&csi, &places, "data", request))?;
        self.show.call("to node-a", || data.attach())?;
        self.show.call("activate, make the filesystem, mount", || data.stage())?;
        let target = self.show.call("into the pod's directory", || data.publish("pod-1"))?;
        let mib = self.mib();
        self.show.own(&format!("the pod writes {mib} MiB"), || data::fill(&target.join("file"), mib))?;
        let usage = self.show.call("usage", || data.stats("pod-1"))?;
        ensure(usage.iter().any(|u| u.used > 0 && u.total > 0), || format!("NodeGetVolumeStats reports the usage {usage:?}"))?;
        Ok(data)
    }

    fn snapshot_and_restore(&mut self, data: &mut Volume) -> Result<csi::Snapshot> {
        self.show.title("Snapshot, and a larger volume from it");
        let file = data.target("pod-1").join("file");
        let sum = self.show.own("checksum of the file, read from the device", || tool::checksum(&file))?;
        let snapshot = self.show.call("of data, while the pod has it", || data.snapshot("snapshot-of-data"))?;
        ensure(snapshot.ready_to_use, || "the snapshot is not ready to use".to_owned())?;
        self.show.own("the pod changes the file", || data::flip(&file, 4096))?;

        let (csi, places) = (self.csi.clone(), self.places.clone());
        let capability = client::mount("ext4", Mode::SingleNodeWriter);
        let mut request = create("pvc-11111111-2222-4333-8444-555555555502", "thin", 2 * GIB, capability);
        request.volume_content_source = from_snapshot(&snapshot.snapshot_id);
        let mut restored =
            self.show.call("restored: 2 GiB from the snapshot", || Volume::create(&csi, &places, "restored", request))?;
        let target = self.show.call("beside the original", || restored.up("pod-2"))?;
        let copy = target.join("file");
        if self.sabotage == Some(Sabotage::Data) {
            data::flip(&copy, 5000)?;
        }
        let again = self.show.own("checksum of the restored file", || tool::checksum(&copy))?;
        ensure(sum == again, || format!("the restored file differs: sha256 {again} instead of {sum}"))?;
        let changed = self.show.own("checksum of the file that the pod changed", || tool::checksum(&file))?;
        ensure(sum != changed, || "the pod's change is lost".to_owned())?;
        let size = data::filesystem_size(&target)?;
        ensure(size > 2 * GIB * 9 / 10, || format!("the restored filesystem has {size} bytes and did not grow to 2 GiB"))?;
        say(&format!("    the same sha256, {}…, on a filesystem of {} MiB", &sum[..16], size / MIB));
        self.show.call("restored goes", || restored.down("pod-2"))?;
        Ok(snapshot)
    }

    fn clone_of(&mut self, data: &Volume) -> Result<()> {
        self.show.title("A clone of the volume in use");
        let (csi, places) = (self.csi.clone(), self.places.clone());
        let sum = tool::checksum(&data.target("pod-1").join("file"))?;
        let capability = client::mount("ext4", Mode::SingleNodeWriter);
        let mut request = create("pvc-11111111-2222-4333-8444-555555555503", "thin", GIB, capability);
        request.volume_content_source = from_volume(&data.id);
        let mut clone = self.show.call("clone: 1 GiB from data", || Volume::create(&csi, &places, "clone", request))?;
        let target = self.show.call("beside the original", || clone.up("pod-3"))?;
        let again = self.show.own("checksum of the clone's file", || tool::checksum(&target.join("file")))?;
        ensure(sum == again, || format!("the clone's file differs: sha256 {again} instead of {sum}"))?;
        self.show.call("clone goes", || clone.down("pod-3"))
    }

    fn grow(&mut self, data: &mut Volume) -> Result<()> {
        self.show.title("It grows while the pod writes");
        let target = data.target("pod-1");
        let before = data::filesystem_size(&target)?;
        let writer = Writer::start(&target.join("journal"));
        let grown = self.show.call("to 1.5 GiB", || data.expand(GIB + GIB / 2, "pod-1"));
        let written = writer.stop()?;
        grown?;
        let after = data::filesystem_size(&target)?;
        ensure(after > before + GIB * 2 / 5, || format!("the filesystem had {before} bytes and now has {after}"))?;
        let text = format!("{} records of 64 KiB, each synced, read back", written.records);
        self.show.own(&text, || data::verify(&target.join("journal"), written))?;
        let (from, to) = (before / MIB, after / MIB);
        say(&format!("    filesystem {from} → {to} MiB; the longest write took {} ms", written.longest.as_millis()));
        Ok(())
    }

    fn raw_block(&mut self) -> Result<()> {
        self.show.title("A raw block volume");
        let (csi, places) = (self.csi.clone(), self.places.clone());
        let request =
            create("pvc-11111111-2222-4333-8444-555555555504", "linear", 128 * MIB, client::block(Mode::SingleNodeWriter));
        let mut raw = self.show.call("raw: 128 MiB, linear, block", || Volume::create(&csi, &places, "raw", request))?;
        let target = self.show.call("no byte of an earlier owner is ever shown", || raw.up("pod-4"))?;
        self.show.own("nothing but zeros on it", || data::all_zero(&target, 0, 128 * MIB))?;
        self.show.own("the pod writes 32 MiB", || data::fill(&target, 32))?;
        self.show.call("to 192 MiB, in use", || raw.expand(192 * MIB, "pod-4"))?;
        let size = device_size(&target)?;
        ensure(size == 192 * MIB, || format!("the device at {} has {size} bytes", target.display()))?;
        self.show.own("nothing but zeros in what was added", || data::all_zero(&target, 128 * MIB, size))?;
        self.show.call("raw goes", || raw.down("pod-4"))
    }

    fn move_on(&mut self, data: &Volume, snapshot: &csi::Snapshot) -> Result<()> {
        self.show.title("The pod moves on");
        let csi = self.csi.clone();
        self.show.call("the pod ends", || data.unpublish("pod-1"))?;
        self.show.call("no pod on this node has it any more", || data.unstage())?;
        self.show.call("from node-a", || data.detach())?;
        self.show.call("the snapshot", || delete_snapshot(&csi, &snapshot.snapshot_id))?;
        self.show.call("data", || data.delete())?;
        let list = self.show.call("", || csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes"))?;
        ensure(list.entries.is_empty(), || format!("ListVolumes still lists {} volumes", list.entries.len()))
    }

    fn break_something(&self, group: &TestVg) -> Result<()> {
        match self.sabotage {
            Some(Sabotage::Leak) => {
                let name = &group.name;
                vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "leaked", name]).map(drop)
            }
            Some(Sabotage::Mount) => {
                let point = self.places.root.join("pods").join("forgotten");
                std::fs::create_dir_all(&point).map_err(Trouble::io(format!("making {}", point.display())))?;
                tool::run("mount", &[Path::new("-t"), Path::new("tmpfs"), Path::new("forgotten"), &point]).map(drop)
            }
            Some(Sabotage::Data) | None => Ok(()),
        }
    }

    fn mib(&self) -> u64 {
        if self.sabotage.is_some() { 16 } else { 100 }
    }
}
