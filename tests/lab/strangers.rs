//! Devices with LVM metadata that is not the driver's: what a tenant wrote, a disk of another machine, a copy. They get nobody's
//! data and disturb nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{block, create, mount, refused};
use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, text};
use testkit::sick::Sick;
use testkit::test_vg::TestVg;
use testkit::vg;
use testkit::{cleanup, lab, tool};
use tonic::Code;

use crate::old_bytes::Disk;
use crate::rig::{DRIVER, LIMIT, MIB, Rig};
use crate::survey::person;

/// Written by one tenant. No other tenant may read it.
const SECRET: &str = "THE-SECRET-OF-ANOTHER-TENANT\n";

/// LVM configuration that sees one device only, as on another machine.
fn alone(device: &Path) -> String {
    format!("devices{{filter=[\"a|^{}$|\",\"r|.*|\"]}}", text(device))
}

/// Makes udev process devices that were written to.
fn look_again(devices: &[&Path]) -> Result<()> {
    for device in devices {
        tool::run("udevadm", &["trigger", "--settle", "--name-match", &text(device)])?;
    }
    tool::settle()
}

/// A disk with a volume group of this name, as another machine would make it.
struct Stranger {
    disk: PathBuf,
}

impl Stranger {
    /// Makes a group that is none of this machine's.
    fn make(disk: PathBuf, name: &str) -> Result<Self> {
        cleanup::release(&disk)?;
        let it = Self { disk };
        let (only, path) = (alone(&it.disk), text(&it.disk));
        vg::lvm(&["pvcreate", "-qq", "-y", "--config", &only, &path])?;
        vg::lvm(&["vgcreate", "-qq", "--physicalextentsize", "4m", "--config", &only, "strangervg", &path])?;
        it.rewrite("strangervg", name, None)?;
        Ok(it)
    }

    /// Makes a group with the UUID of another one and a high sequence number: what a tenant can forge who knows a volume's handle.
    fn pretend(disk: PathBuf, name: &str, uuid: &str) -> Result<Self> {
        let it = Self::make(disk, "strangervg")?;
        it.rewrite("strangervg", name, Some(uuid))?;
        Ok(it)
    }

    /// Edits the metadata text: LVM refuses to make a group whose name has a device here.
    fn rewrite(&self, from: &str, to: &str, uuid: Option<&str>) -> Result<()> {
        let only = alone(&self.disk);
        let file = text(&Path::new(lab::ROOT).join("text-of-the-stranger"));
        vg::lvm(&["vgcfgbackup", "-qq", "--config", &only, "-f", &file, from])?;
        let own = vg::lvm(&["vgs", "--noheadings", "-o", "vg_uuid", "--config", &only, from])?.trim().to_owned();
        let failed = || Trouble::io("editing the stranger's metadata text");
        let edited = fs::read_to_string(&file).map_err(failed())?.replace(&format!("{from} {{"), &format!("{to} {{"));
        let edited = uuid.map_or(edited.clone(), |uuid| edited.replace(&own, uuid).replace("seqno = 2\n", "seqno = 999998\n"));
        fs::write(&file, edited).map_err(failed())?;
        vg::lvm(&["vgcfgrestore", "-qq", "-y", "--config", &only, "-f", &file, to])?;
        look_again(&[&self.disk])
    }

    fn wipe(&self) -> Result<()> {
        tool::run("wipefs", &["-qaf", &text(&self.disk)])?;
        look_again(&[&self.disk])
    }
}

/// Fails unless the driver serves the group as usual.
fn goes_on(rig: &Rig, kept: &mut Volume) -> Result<()> {
    kept.up("again")?;
    leave_attached(kept, "again")?;
    let mut new = rig.volume("linear", 16)?;
    new.up("pod")?;
    new.expand(32 * MIB, "pod")?;
    new.down("pod")
}

/// Takes a volume from its pod and leaves it attached.
fn leave_attached(volume: &Volume, pod: &str) -> Result<()> {
    volume.unpublish(pod)?;
    volume.unstage()
}

/// Fails unless the log of the call that the message refers to names these devices.
fn logged(rig: &Rig, message: &str, devices: &[&Path]) -> Result<()> {
    let call = message.rsplit_once("names devices: call ").map(|(_, call)| call.trim_end_matches(')'));
    let call = call.ok_or_else(|| Trouble::wrong(format!("the message does not say where devices are named: {message}")))?;
    let log = rig.driver.log()?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(call)).collect();
    let is_named = |device: &&&Path| lines.iter().any(|line| line.contains(&text(device)));
    ensure(devices.iter().filter(is_named).count() == devices.len(), || format!("the log does not name {devices:?}: {lines:?}"))
}

/// Fails unless the doctor names this device.
fn doctor_names(rig: &Rig, device: &Path) -> Result<()> {
    let (well, said) = person(rig, &["doctor"])?;
    ensure(!well && said.contains(&format!("device {}: ", text(device))), || format!("the doctor says: {said}"))
}

#[test]
fn a_made_up_text_of_our_group_gets_no_byte_of_anybody() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut kept = rig.volume("linear", 64)?;
    let stranger = Stranger::pretend(lab::disk(1)?, "labvg", &rig.vg.uuid)?;
    for round in 0..2 {
        // Any change of the group makes the driver read it again.
        let mut victim = rig.with("linear", 64, mount("ext4", Mode::SingleNodeWriter))?;
        let target = victim.up("pod")?;
        fs::write(target.join("file"), SECRET.repeat(100)).map_err(Trouble::io("writing into a volume"))?;
        victim.down("pod")?;
        goes_on(&rig, &mut kept)?;
        doctor_names(&rig, &stranger.disk)?;
        if round == 0 {
            rig.driver.kill()?;
            rig.driver.restart()?;
            kept = kept.through(rig.csi());
        }
    }
    tool::drop_caches()?;
    let count = format!("head -c 400M {} | grep -ac {} || true", text(&stranger.disk), SECRET.trim());
    let stolen = tool::run("sh", &["-ec", &count])?;
    ensure(stolen.trim() == "0", || format!("the stranger's disk holds data of another tenant: {stolen} lines"))?;
    // A volume in use is not deleted because somebody claims that it does not exist.
    kept.up("again")?;
    let request = csi::DeleteVolumeRequest { volume_id: kept.id.clone(), ..Default::default() };
    refused(rig.csi().delete_volume(request), &[Code::FailedPrecondition], "the deletion of a volume in use")?;
    leave_attached(&kept, "again")?;
    stranger.wipe()?;
    kept.detach()?;
    kept.delete()?;
    rig.finish()
}

#[test]
fn a_foreign_group_of_the_same_name_takes_nothing_away() -> Result<()> {
    let rig = Rig::configured("housekeepingSeconds: 1\npools:\n- name: linear\n  volumeGroup: labvg\n  layout: linear\n")?;
    let mut kept = rig.volume("linear", 64)?;
    let mut used = rig.raw("linear", 16)?;
    used.up("pod")?;
    let stranger = Stranger::make(lab::disk(1)?, "labvg")?;
    goes_on(&rig, &mut kept)?;
    doctor_names(&rig, &stranger.disk)?;
    tool::wait("the log to name the stranger", LIMIT, || Ok(rig.driver.log()?.contains("it is not used").then_some(())))?;
    used.down("pod")?;
    stranger.wipe()?;
    kept.detach()?;
    kept.delete()?;
    rig.finish()
}

#[test]
fn two_foreign_disks_of_one_pv_take_nothing_away() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut kept = rig.volume("linear", 64)?;
    let one = Stranger::make(lab::disk(1)?, "guest")?;
    let two = Stranger { disk: lab::disk(2)? };
    copy_head(&one.disk, &two.disk)?;
    look_again(&[&one.disk, &two.disk])?;
    goes_on(&rig, &mut kept)?;
    rig.driver.kill()?;
    rig.driver.restart()?;
    let mut kept = kept.through(rig.csi());
    goes_on(&rig, &mut kept)?;
    let (_, said) = person(&rig, &["doctor"])?;
    ensure(!said.contains("device "), || format!("the doctor names a device of a foreign group: {said}"))?;
    one.wipe()?;
    two.wipe()?;
    kept.detach()?;
    kept.delete()?;
    rig.finish()
}

/// Copies LVM's area at the beginning of a disk.
fn copy_head(from: &Path, to: &Path) -> Result<()> {
    let arguments =
        [format!("if={}", text(from)), format!("of={}", text(to)), "bs=1M".into(), "count=2".into(), "conv=fsync".into()];
    tool::run("dd", &arguments).map(drop)
}

#[test]
fn a_copy_of_a_pv_stops_nothing_while_the_own_one_is_known() -> Result<()> {
    let rig = Rig::linear()?;
    let mut kept = rig.volume("linear", 64)?;
    let copy = Stranger { disk: lab::disk(1)? };
    cleanup::release(&copy.disk)?;
    copy_head(&rig.vg.disks[0], &copy.disk)?;
    look_again(&[&copy.disk])?;
    // This also holds when the driver starts next to the copy: it has seen its own disk in this boot.
    let mut rig = rig;
    for restart in [false, true] {
        if restart {
            rig.driver.kill()?;
            rig.driver.restart()?;
            kept = kept.through(rig.csi());
        }
        kept.up("again")?;
        leave_attached(&kept, "again")?;
        let mut new = rig.volume("linear", 16)?;
        new.up("pod")?;
        new.down("pod")?;
        doctor_names(&rig, &copy.disk)?;
    }
    // On a first look nothing tells them apart, so both are named.
    rig.driver.kill()?;
    fs::remove_dir_all(rig.driver.start().state().join("groups")).map_err(Trouble::io("removing the pins"))?;
    rig.driver.restart()?;
    let request = create(&rig.name(), "linear", 16 * MIB, block(Mode::SingleNodeWriter));
    let message = refused(rig.csi().create_volume(request), &[Code::Unavailable], "a creation on a PV that is there twice")?;
    logged(&rig, &message, &[&rig.vg.disks[0], &copy.disk])?;
    copy.wipe()?;
    let mut kept = kept.through(rig.csi());
    rig.until_ok("the group without the copy", |_| kept.up("again").map(drop))?;
    leave_attached(&kept, "again")?;
    kept.detach()?;
    kept.delete()?;
    rig.finish()
}

#[test]
fn a_foreign_disk_that_hangs_delays_nobody() -> Result<()> {
    const SOON: Duration = Duration::from_secs(20);
    let sick = Sick::over("foreign", &lab::disk(1)?)?;
    let mut rig = Rig::linear()?;
    let mut kept = rig.volume("linear", 64)?;
    let stranger = Stranger::make(sick.path(), "guest")?;
    let illness = sick.hang()?;
    let begun = Instant::now();
    goes_on(&rig, &mut kept)?;
    rig.driver.kill()?;
    rig.driver.restart()?;
    let mut kept = kept.through(rig.csi());
    goes_on(&rig, &mut kept)?;
    rig.csi().list_volumes(csi::ListVolumesRequest::default()).map_err(|status| Trouble::wrong(format!("{status:?}")))?;
    // Nothing here waits for the disk, which would take forever. The limit allows for a busy machine.
    ensure(begun.elapsed() < 3 * SOON, || format!("it took {:?}", begun.elapsed()))?;
    drop(illness);
    stranger.wipe()?;
    kept.detach()?;
    kept.delete()?;
    rig.finish()
}

#[test]
fn what_a_guest_has_on_its_volume_is_no_group_of_the_host() -> Result<()> {
    let mut rig = Rig::thin()?;
    let mut kept = rig.volume("linear", 64)?;
    let mut raw = rig.raw("thin", 64)?;
    let target = raw.up("guest")?;
    // The guest sees only its own disk, so any name is possible, even the host's. The group is made elsewhere and written as a
    // guest would write it.
    let guest = Disk::of_table("guestdisk", &format!("0 {} linear {} 8192", 64 << 11, lab::disk(1)?.display()))?;
    let stranger = Stranger::pretend(guest.path(), "labvg", &rig.vg.uuid)?;
    tool::run(
        "dd",
        &[format!("if={}", text(&guest.path())), format!("of={}", text(&target)), "bs=1M".into(), "conv=fsync".into()],
    )?;
    stranger.wipe()?;
    drop(guest);
    // kubelet puts a loop device over each raw volume.
    tool::run("modprobe", &["loop"])?;
    let device = tool::run("losetup", &["--find", "--show", &text(&target)])?.trim().to_owned();
    look_again(&[Path::new(&device)])?;
    let checked = (|| {
        goes_on(&rig, &mut kept)?;
        // The same holds on a first look.
        rig.driver.kill()?;
        fs::remove_dir_all(rig.driver.start().state().join("groups")).map_err(Trouble::io("removing the pins"))?;
        rig.driver.restart()?;
        kept = kept.through(rig.csi());
        goes_on(&rig, &mut kept)?;
        let (well, said) = person(&rig, &["doctor"])?;
        ensure(well, || format!("the doctor says: {said}"))
    })();
    tool::run("losetup", &["--detach", &device])?;
    tool::settle()?;
    checked?;
    raw.through(rig.csi()).down("guest")?;
    kept.detach()?;
    kept.delete()?;
    rig.finish()
}

#[test]
fn two_groups_of_one_name_at_the_very_first_start_wait_for_a_person() -> Result<()> {
    let stranger = Stranger { disk: lab::disk(1)? };
    let mut rig = Rig::start(&[lab::disk(0)?], None, |home, group| {
        // The driver has never been started before.
        Stranger::pretend(stranger.disk.clone(), "labvg", &group.uuid)?;
        Ok(Start::on_vg(Path::new(DRIVER), home, &group.name))
    })?;
    let name = rig.name();
    let request = || create(&name, "linear", 16 * MIB, block(Mode::SingleNodeWriter));
    let message = refused(rig.csi().create_volume(request()), &[Code::Unavailable], "a creation in one of two groups")?;
    ensure(message.contains("adopt"), || message.clone())?;
    logged(&rig, &message, &[&rig.vg.disks[0], &stranger.disk])?;
    // The configuration's list of devices decides.
    rig.driver.kill()?;
    let own = text(&rig.vg.disks[0]);
    let config = format!("devices: [{own}]\npools:\n- name: linear\n  volumeGroup: labvg\n  layout: linear\n");
    let home = rig.driver.start().state();
    let home = home.parent().ok_or_else(|| Trouble::wrong("no home"))?.to_owned();
    rig.driver = Start::on_config(Path::new(DRIVER), &home, &config)?.start()?;
    rig.request(request())?.delete()?;
    // The group is pinned from then on.
    rig.driver.kill()?;
    rig.driver = Start::on_vg(Path::new(DRIVER), &home, "labvg").start()?;
    rig.request(request())?.delete()?;
    doctor_names(&rig, &stranger.disk)?;
    stranger.wipe()?;
    // The pins were made after the rig took its account of the machine.
    fs::remove_dir_all(rig.driver.start().state().join("groups")).map_err(Trouble::io("removing the pins"))?;
    rig.finish()
}

#[test]
fn a_group_on_other_disks_waits_for_a_person_who_adopts_it() -> Result<()> {
    let sick = Sick::over("own", &lab::disk(0)?)?;
    let rig = Rig::make_on(&[sick.path()], None, &[])?;
    let request = create(&rig.name(), "linear", 16 * MIB, block(Mode::SingleNodeWriter));
    // The group's disk is gone, and somebody, maybe a tenant, makes a group of that name on another disk.
    sick.unplug()?;
    let anew = TestVg::make("labvg", &[lab::disk(1)?])?;
    let message =
        refused(rig.csi().create_volume(request.clone()), &[Code::Unavailable], "a creation in a group on other disks")?;
    ensure(message.contains("lvm-csi adopt --vg labvg"), || message.clone())?;
    logged(&rig, &message, &[&lab::disk(1)?])?;
    let adopts = |uuid: &str| {
        let (well, said) = person(&rig, &["adopt"])?;
        ensure(well && said.contains(uuid), || format!("adopt said: {said}"))
    };
    adopts(&anew.uuid)?;
    // A running driver notices at once.
    rig.request(request.clone())?.delete()?;
    // And in the other direction.
    anew.destroy()?;
    sick.plug()?;
    refused(rig.csi().create_volume(request.clone()), &[Code::Unavailable], "a creation in the former group")?;
    adopts(&rig.vg.uuid)?;
    rig.request(request)?.delete()?;
    rig.finish()
}

#[test]
fn a_volume_that_vgsplit_took_along_is_not_deleted_unseen() -> Result<()> {
    let disks = [lab::disk(0)?, lab::disk(1)?];
    let rig = Rig::make_on(&disks, None, &[])?;
    let mut taken = rig.volume("linear", 64)?;
    let mut stays = rig.volume("linear", 64)?;
    // Put one volume on each disk.
    let full = |volume: &Volume| format!("labvg/{}", volume.lv());
    vg::lvm(&["pvmove", "-qq", "-i", "1", "-n", &full(&taken), &text(&disks[0]), &text(&disks[1])])?;
    taken.attach()?;
    vg::lvm(&["vgchange", "-qq", "-an", "labvg"])?;
    vg::lvm(&["vgsplit", "-qq", "labvg", "splitvg", &text(&disks[1])])?;
    look_again(&[&disks[1]])?;
    stays.up("pod")?;
    stays.down("pod")?;
    let request = csi::DeleteVolumeRequest { volume_id: taken.id.clone(), ..Default::default() };
    let message =
        refused(rig.csi().delete_volume(request), &[Code::FailedPrecondition], "the deletion of a volume that is elsewhere")?;
    ensure(message.contains("splitvg") && message.contains("vgmerge labvg splitvg"), || message.clone())?;
    let lvs = vg::lvm(&["lvs", "--noheadings", "-o", "lv_name", "splitvg"])?;
    ensure(lvs.contains(taken.lv()), || format!("the LV is gone: {lvs}"))?;
    vg::lvm(&["vgmerge", "-qq", "labvg", "splitvg"])?;
    look_again(&[&disks[1]])?;
    rig.until_ok("the volume after the merge", |_| taken.up("pod").map(drop))?;
    taken.down("pod")?;
    rig.finish()
}
