//! Host tools, with Debian's udev rules, see nothing of what tenants write to raw volumes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lvm_csi_proto::csi;
use testkit::client::refused;
use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, text};
use testkit::{lab, tool, vg};
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, MIB, Rig};

fn sh(script: &str) -> Result<String> {
    tool::run("sh", &["-c", script])
}

/// Returns the device node behind a path.
fn node(path: &Path) -> Result<PathBuf> {
    let number = fs::metadata(path).map_err(Trouble::io(format!("looking at {}", path.display())))?.rdev();
    Ok(PathBuf::from(format!("/dev/dm-{}", nix::sys::stat::minor(number))))
}

/// Fails if udev has probed a device. Everything its rules do begins with a probe.
fn unseen(device: &Path) -> Result<()> {
    let properties = tool::run("udevadm", &["info", "--query=property", "--name", &text(device)])?;
    let looked = properties.lines().any(|line| line.starts_with("ID_FS_") || line.starts_with("ID_PART_TABLE_"));
    ensure(!looked, || format!("udev has probed {}:\n{properties}", device.display()))
}

/// Checks the volume's own device and the one the pod sees, after udev has settled.
pub(crate) fn both_unseen(rig: &Rig, volume: &Volume, target: &Path) -> Result<()> {
    tool::settle()?;
    let own = rig.vg.device(volume.lv()).canonicalize().map_err(Trouble::io("following the link of the LV"))?;
    unseen(&own)?;
    unseen(&node(target)?)
}

/// Stops the guest and starts it again, so that udev has every reason to probe.
fn reboot(volume: &Volume) -> Result<PathBuf> {
    volume.unpublish("guest")?;
    volume.unstage()?;
    volume.stage()?;
    tool::settle()?;
    volume.publish("guest")
}

fn gone(mut volume: Volume) -> Result<()> {
    volume.unpublish("guest")?;
    volume.unstage()?;
    volume.detach()?;
    volume = volume.through(volume.csi());
    volume.delete()
}

#[test]
fn what_guests_write_is_not_for_the_tools_of_the_host() -> Result<()> {
    let rig = Rig::thin()?;

    // A RAID: the host would assemble it and hold the volume.
    let mut raid = rig.raw("thin", 64)?;
    let target = raid.up("guest")?;
    sh(&format!(
        "mdadm --create /dev/md77 --run --level=1 --raid-devices=1 --force --metadata=1.2 --homehost=guest --name=data {} && mdadm --stop /dev/md77",
        node(&target)?.display()
    ))?;
    let target = reboot(&raid)?;
    both_unseen(&rig, &raid, &target)?;
    let arrays = sh("cat /proc/mdstat")?;
    ensure(!arrays.contains("active"), || format!("the host has assembled the RAID of a guest:\n{arrays}"))?;
    gone(raid)?;

    // A volume group with the name of the host's group.
    let mut group = rig.raw("thin", 64)?;
    let target = group.up("guest")?;
    let disk = text(&node(&target)?);
    // The guest has its own /dev.
    let only = format!("devices{{dir=\"/run/lvm-hack/dev\" scan_lvs=1 filter=[\"a|^{disk}$|\",\"r|.*|\"]}}");
    vg::lvm(&["pvcreate", "-qq", "-y", "--config", &only, &disk])?;
    vg::lvm(&["vgcreate", "-qq", "--config", &only, &rig.vg.name, &disk])?;
    vg::lvm(&["lvcreate", "-qq", "-y", "--config", &only, "-an", "-Wn", "-Zn", "-l1", "-n", "root", &rig.vg.name])?;
    for target in [target, reboot(&group)?] {
        both_unseen(&rig, &group, &target)?;
        // With the configuration that Debian ships.
        let output = sh(&format!("lvm lvs --noheadings -o lv_name {0} && lvm vgs {0}", rig.vg.name))?;
        ensure(!output.contains("root"), || format!("the host sees the LV of a guest:\n{output}"))?;
    }
    gone(group)?;

    // Filesystems: one with the UUID of a host filesystem, and one that spans several devices.
    let host = lab::disk(1)?;
    let uuid = "11111111-2222-4333-8444-555555555555";
    sh(&format!("mkfs.ext4 -q -F -U {uuid} {0}; udevadm trigger --settle --name-match {0}", text(&host)))?;
    for make in [format!("mkfs.ext4 -q -F -U {uuid}"), "mkfs.btrfs -q -f".to_owned()] {
        let mut files = rig.raw("linear", 128)?;
        let target = files.up("guest")?;
        sh(&format!("{make} {}", text(&target)))?;
        let target = reboot(&files)?;
        both_unseen(&rig, &files, &target)?;
        sh(&format!("mkdir -p /run/lvm-hack/host; mount UUID={uuid} /run/lvm-hack/host"))?;
        let source = sh("findmnt --noheadings --output SOURCE /run/lvm-hack/host; umount /run/lvm-hack/host")?;
        ensure(source.trim() == text(&host), || format!("mount UUID= mounted {source}"))?;
        // A loop device like the one kubelet puts over a raw volume.
        let device = kubelets(&rig, &target)?;
        let looked = unseen(&device);
        let link = sh(&format!("readlink -f /dev/disk/by-uuid/{uuid}"))?;
        sh(&format!("losetup -d {0}; umount {1}", text(&device), text(&kubelets_path(&rig))))?;
        looked?;
        ensure(link.trim() == text(&host), || format!("the host's link by UUID points to {link}"))?;
        gone(files)?;
    }
    let plugins = rig.places.root.join("plugins");
    sh(&format!("wipefs -qaf {0}; udevadm trigger --settle --name-match {0}; rm -r {1}", text(&host), text(&plugins)))?;
    rig.finish()
}

fn kubelets_path(rig: &Rig) -> PathBuf {
    rig.places.root.join("plugins/kubernetes.io/csi/volumeDevices/pv/dev/pod")
}

/// Makes a loop device over a raw volume, as kubelet does, and waits for udev.
fn kubelets(rig: &Rig, target: &Path) -> Result<PathBuf> {
    let path = kubelets_path(rig);
    let file = text(&path);
    sh(&format!("mkdir -p $(dirname {file}); touch {file}; mount --bind {} {file}", text(target)))?;
    let device = PathBuf::from(sh(&format!("losetup --find --show {file}"))?.trim());
    tool::settle()?;
    Ok(device)
}

#[test]
fn a_boot_of_the_host_activates_no_volume() -> Result<()> {
    let mut rig = Rig::thin()?;
    let group = rig.vg.name.clone();
    vg::lvm(&["vgchange", "-qq", "--setautoactivation", "y", &group])?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "8m", "-n", "somebodys", &group])?;
    let mut volumes = vec![rig.raw("thin", 16)?, rig.volume("linear", 16)?];
    let snapshot = volumes[0].snapshot("snapshot-1")?;
    // A volume as an earlier version left it.
    let old = rig.raw("thin", 16)?;
    vg::lvm(&["lvchange", "-qq", "--setautoactivation", "y", "-kn", &format!("{group}/{}", old.lv())])?;
    rig.driver.stop()?;
    rig.driver.restart()?;
    tool::wait("the volume of an earlier version to be kept from the boot", LIMIT, || {
        let flag = vg::lvm(&["lvs", "--noheadings", "-o", "autoactivation", &format!("{group}/{}", old.lv())])?;
        Ok(flag.trim().is_empty().then_some(()))
    })?;
    volumes.push(old.through(rig.csi()));
    vg::lvm(&["vgchange", "-aay", &group])?;
    ensure(rig.vg.lv("somebodys")?.active(), || "this does not simulate a boot: nothing is active".to_owned())?;
    for volume in &volumes {
        ensure(!rig.vg.lv(volume.lv())?.active(), || format!("a boot would activate {}", volume.lv()))?;
    }
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{group}/somebodys")])?;
    testkit::flow::delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    for volume in volumes {
        volume.through(rig.csi()).delete()?;
    }
    rig.finish()
}

#[test]
fn whoever_has_a_volume_open_is_named_in_the_refusal() -> Result<()> {
    let rig = Rig::thin()?;
    let mut raw = rig.raw("thin", 64)?;
    let target = raw.up("guest")?;
    let device = text(&node(&target)?);
    let unpublish = |csi: &testkit::client::Csi| {
        csi.node_unpublish_volume(csi::NodeUnpublishVolumeRequest { volume_id: raw.id.clone(), target_path: text(&target) })
    };
    // Somebody maps the device, and somebody else holds it open.
    sh(&format!("dmsetup create somebodys --table '0 8 linear {device} 0'"))?;
    let mut reader = tool::command("sleep")
        .arg("60")
        .stdin(fs::File::open(&device).map_err(Trouble::io(format!("opening {device}")))?)
        .spawn()
        .map_err(Trouble::io("starting sleep"))?;
    let message = refused(unpublish(rig.csi()), &[Code::FailedPrecondition], "a device that is open")?;
    reader.kill().and_then(|()| reader.wait()).map_err(Trouble::io("ending sleep"))?;
    for name in ["(somebodys)", &format!("sleep (process {})", reader.id())] {
        ensure(message.contains(name), || format!("{name} is not named: {message}"))?;
    }
    tool::run("dmsetup", &["remove", "somebodys"])?;
    raw.unpublish("guest")?;
    // Somebody mounts the volume itself.
    let own = text(&rig.vg.device(raw.lv()));
    sh(&format!("mkfs.ext4 -q -F {own}; mkdir -p /run/lvm-hack/mnt; mount -t ext4 {own} /run/lvm-hack/mnt"))?;
    raw.make_parent("guest")?;
    let message =
        refused(rig.csi().node_publish_volume(raw.publish_request("guest")), &[Code::FailedPrecondition], "a mounted volume")?;
    ensure(message.contains("the mount at /run/lvm-hack/mnt"), || format!("the mount is not named: {message}"))?;
    sh("umount /run/lvm-hack/mnt")?;
    raw.publish("guest")?;
    raw.unpublish("guest")?;
    raw.unstage()?;
    raw.detach()?;
    raw.delete()?;
    rig.finish()
}

/// Masks udev's device-mapper rules while it lives, as on hosts without LVM.
struct Deaf;

const RULES: [&str; 4] = ["55-dm.rules", "56-lvm.rules", "60-persistent-storage-dm.rules", "95-dm-notify.rules"];

impl Deaf {
    fn new() -> Result<Self> {
        let masks: Vec<String> = RULES.iter().map(|rule| format!("ln -sf /dev/null /run/udev/rules.d/{rule}")).collect();
        sh(&format!("{}; udevadm control --reload", masks.join("; ")))?;
        Ok(Self)
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        let masks: Vec<String> = RULES.iter().map(|rule| format!("/run/udev/rules.d/{rule}")).collect();
        let _ = sh(&format!("rm -f {}; udevadm control --reload; dmsetup udevcomplete_all -y", masks.join(" ")));
    }
}

/// Runs a volume through its whole life.
fn live(rig: &Rig, pool: &str, is_raw: bool) -> Result<()> {
    let begin = Instant::now();
    let mut volume = if is_raw { rig.raw(pool, 64)? } else { rig.volume(pool, 64)? };
    volume.up("pod")?;
    volume.expand(96 * MIB, "pod")?;
    volume.down("pod")?;
    volume.detach()?;
    volume.delete()?;
    let took = begin.elapsed();
    ensure(took < LIMIT, || format!("a volume's life took {took:?} while udevd did not answer"))
}

#[test]
fn a_udevd_that_does_not_answer_holds_nothing_up() -> Result<()> {
    let text = "wedgedAfterSeconds: 3\nhousekeepingSeconds: 5\npools:\n- name: thin\n  volumeGroup: labvg\n  layout: thin\n- name: linear\n  volumeGroup: labvg\n  layout: linear\n";
    let mut rig = Rig::start(&[lab::disk(0)?], Some(1024), |home, _| Start::on_config(Path::new(DRIVER), home, text))?;
    let mut raw = rig.raw("thin", 64)?;
    raw.up("guest")?;
    let mut files = rig.volume("thin", 64)?;
    files.attach()?;
    // udevd stops answering while a driver runs. At first one lvm waits for it.
    let deaf = Deaf::new()?;
    let begin = Instant::now();
    rig.until_ok("a volume to be staged without udevd", |_| files.stage())?;
    let took = begin.elapsed();
    ensure(took > Duration::from_secs(5) && took < LIMIT, || format!("the first stage without udevd took {took:?}"))?;
    raw.unpublish("guest")?;
    raw.unstage()?;
    files.unstage()?;
    live(&rig, "thin", true)?;
    files.stage()?;
    // udevd answers again. Nodes that LVM made itself go away with the device.
    drop(deaf);
    tool::wait("the driver to notice that udevd answers", LIMIT, || {
        Ok(rig.driver.log()?.contains("udevd answers").then_some(()))
    })?;
    let node = PathBuf::from(format!("/dev/mapper/labvg-{}", files.lv().replace('-', "--")));
    ensure(node.exists(), || format!("LVM did not make {}", node.display()))?;
    files.unstage()?;
    tool::settle()?;
    ensure(fs::symlink_metadata(&node).is_err(), || {
        format!("{} is left and would point to whichever device comes next", node.display())
    })?;
    files.detach()?;
    files.delete()?;
    let deaf = Deaf::new()?;
    // Start a driver on such a host.
    rig.driver.stop()?;
    rig.driver.restart()?;
    let log = rig.driver.log()?;
    ensure(log.contains("nobody waits for it"), || format!("the driver does not log that udevd is silent:\n{log}"))?;
    for (pool, is_raw) in [("linear", true), ("thin", false)] {
        live(&rig, pool, is_raw)?;
    }
    drop(deaf);
    let raw = raw.through(rig.csi());
    raw.detach()?;
    raw.delete()?;
    rig.finish()
}
