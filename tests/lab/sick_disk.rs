//! Disks of a volume group that fail, hang, are slow, vanish and come back: the codes are right, other groups are unaffected, and
//! recovery needs nobody.

use std::fs;
use std::io::Write;
use std::time::Duration;

use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, mount, refused};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::Volume;
use testkit::sick::{Ailment, Sick};
use testkit::{lab, tool};
use tonic::Code;

use crate::rig::{LIMIT, MIB};
use crate::sick::{Ward, scrape};

/// The sectors of a PV's label, in bytes.
const LABEL: std::ops::Range<u64> = 0..4096;
/// The header and the text of its metadata area, in bytes.
const METADATA: std::ops::Range<u64> = 4096..1 << 20;

/// Fails unless a group whose only PV cannot be read refuses changes, keeps its volumes listed, and reports no capacity.
fn is_unavailable(ward: &Ward, volume: &Volume, what: &str) -> Result<()> {
    ward.becomes(false)?;
    let message = ward.refuses_creation(what)?;
    assert!(message.contains("labvg"), "{what}: {message}");
    let expand = ward.rig.csi().controller_expand_volume(volume.expand_request(64 * MIB));
    refused(expand, &[Code::Unavailable], &format!("an expansion with {what}"))?;
    let delete = lvm_csi_proto::csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    refused(ward.rig.csi().delete_volume(delete), &[Code::Unavailable], &format!("a deletion with {what}"))?;
    assert_eq!(ward.room()?, 0, "{what}: the reported capacity cannot be used");
    assert!(ward.listed()?.contains(&volume.id), "{what}: the volume is no longer listed");
    ward.others_go_on()
}

#[test]
fn a_group_whose_label_or_metadata_cannot_be_read_is_unavailable_until_they_can() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], None)?;
    let volume = ward.rig.volume("linear", 16)?;
    ward.becomes(true)?;
    for (what, ailment, place) in [("the label", Ailment::Dust, LABEL), ("the metadata", Ailment::Dead, METADATA)] {
        let illness = sick.ill(ailment, place)?;
        is_unavailable(&ward, &volume, &format!("{ailment:?} at {what}"))?;
        assert_eq!((ward.figure("vg_readable")?, ward.figure("vg_complete")?), (Some(0), Some(0)));
        drop(illness);
        ward.becomes(true)?;
        assert_eq!(ward.figure("vg_readable")?, Some(1));
    }
    // Unreadable at first, then absent once udev has looked again and found no label.
    let health = ward.told()?;
    let (sick, well): (Vec<&String>, Vec<&String>) = health.iter().partition(|line| line.contains("sick"));
    assert!((2..=4).contains(&sick.len()) && well.len() == 2, "each change is logged once: {health:#?}");
    volume.delete()?;
    ward.close()
}

#[test]
fn metadata_that_cannot_be_written_fail_the_call_and_leave_nothing() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], None)?;
    let volume = ward.rig.volume("linear", 16)?;
    let before = ward.rig.vg.lvs()?;
    let illness = sick.ill(Ailment::Unwritable, METADATA)?;
    let codes = &[Code::Internal, Code::Unavailable];
    let expand = ward.rig.csi().controller_expand_volume(volume.expand_request(64 * MIB));
    refused(expand, codes, "an expansion that cannot be written")?;
    let delete = lvm_csi_proto::csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    refused(ward.rig.csi().delete_volume(delete), codes, "a deletion that cannot be written")?;
    ward.others_go_on()?;
    drop(illness);
    assert_eq!(ward.rig.vg.lvs()?, before);
    ward.rig.until_ok("a deletion that can be written", |_| volume.delete())?;
    ward.close()
}

#[test]
fn bad_sectors_beneath_a_filesystem_are_the_pods_matter() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], None)?;
    let mut volume = ward.rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    let file = target.join("file");
    fs::write(&file, vec![7; 4 << 20]).map_err(Trouble::io("writing into the volume"))?;
    tool::drop_caches()?;
    let begin = ward.rig.vg.begin(&ward.rig.vg.of_handle(&volume.id)?.name)?;
    // Everything except the superblock and what follows it.
    let illness = sick.ill(Ailment::Dead, begin + (1 << 20)..begin + 64 * MIB)?;
    let read = fs::read(&file).err().and_then(|error| error.raw_os_error());
    assert_eq!(read, Some(5), "the pod must get an I/O error");
    volume.stats("pod")?;
    ward.rig.until_ok("another volume of the group", |_| ward.rig.volume("linear", 16)?.delete())?;
    ward.others_go_on()?;
    ward.becomes(true)?;
    drop(illness);
    tool::drop_caches()?;
    assert_eq!(fs::read(&file).map_err(Trouble::io("reading from the volume"))?.len(), 4 << 20);
    volume.down("pod")?;
    ward.close()
}

#[test]
fn a_slow_disk_makes_calls_slow_and_nothing_else() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], None)?;
    let illness = sick.slow(Duration::from_millis(5))?;
    let mut volume = ward.rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    fs::write(target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    ward.others_go_on()?;
    volume.expand(96 * MIB, "pod")?;
    volume.down("pod")?;
    drop(illness);
    ward.close()
}

#[test]
fn a_disk_that_hangs_stops_its_own_group_only() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let ward = Ward::open(&[sick.path()], None)?;
    let volume = ward.rig.volume("linear", 16)?;
    ward.becomes(true)?;
    let illness = sick.hang()?;
    // Nobody has noticed the state yet. A call now waits, but not forever.
    let expand = volume.expand_request(32 * MIB);
    let message = refused(ward.rig.csi().controller_expand_volume(expand.clone()), &[Code::Unavailable], "an expansion")?;
    assert!(message.contains("hangs"), "{message}");
    ward.becomes(false)?;
    // Further calls do not queue up behind it.
    let quick = ward.rig.csi().deadline(Duration::from_secs(2));
    let delete = lvm_csi_proto::csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
    let message = refused(quick.delete_volume(delete), &[Code::Unavailable], "a deletion meanwhile")?;
    assert!(message.contains("hangs"), "{message}");
    let message = ward.refuses_creation("a creation on a disk that hangs")?;
    assert!(message.contains("hangs"), "{message}");
    assert!(ward.listed()?.contains(&volume.id));
    assert_eq!((ward.room()?, ward.figure("vg_readable")?, ward.figure("vg_wedged")?), (0, Some(0), Some(1)));
    ward.others_go_on()?;
    drop(illness);
    ward.rig.until_ok("the expansion", |csi| csi.controller_expand_volume(expand.clone()).accepted("ControllerExpandVolume"))?;
    ward.becomes(true)?;
    assert_eq!(ward.rig.vg.of_handle(&volume.id)?.size, 32 * MIB);
    volume.delete()?;
    ward.close()
}

#[test]
fn a_disk_that_vanishes_and_returns_takes_its_volumes_along() -> Result<()> {
    let (first, second) = (Sick::over("first", &lab::disk(1)?)?, Sick::over("second", &lab::disk(2)?)?);
    let ward = Ward::open(&[first.path(), second.path()], None)?;
    let mut volume = ward.rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    let kept = target.join("kept");
    let mut file = fs::File::create(&kept).map_err(Trouble::io("writing into the volume"))?;
    file.write_all(b"kept").and_then(|()| file.sync_all()).map_err(Trouble::io("writing into the volume"))?;
    drop(file);
    ward.becomes(true)?;

    // The disk without the volume fails: the group is read, but nothing is written around the gap.
    let illness = second.ill(Ailment::Dead, second.all())?;
    ward.becomes(false)?;
    assert_eq!((ward.figure("vg_readable")?, ward.figure("vg_complete")?), (Some(1), Some(0)));
    let message = ward.refuses_creation("a creation with a disk away")?;
    assert!(message.contains("PV "), "{message}");
    assert_eq!(ward.room()?, 0);
    assert_eq!(fs::read_to_string(&kept).map_err(Trouble::io("reading from the volume"))?, "kept");
    volume.stats("pod")?;
    volume.publish("pod-2")?;
    volume.unpublish("pod-2")?;
    ward.others_go_on()?;
    drop(illness);
    ward.becomes(true)?;
    ward.no_pv_is_flagged()?;
    ward.rig.until_ok("a volume with the disk back", |_| ward.rig.volume("linear", 16)?.delete())?;

    // Both disks fail beneath a filesystem in use.
    let illnesses = (first.ill(Ailment::Dead, first.all())?, second.ill(Ailment::Dead, second.all())?);
    is_unavailable_while_staged(&ward, &volume)?;
    drop(illnesses);
    ward.becomes(true)?;
    // A filesystem that lost its disk is unusable for the pod. The next mount finds what was durable.
    ward.rig.until_ok("the unstaged volume", |_| volume.unpublish("pod").and_then(|()| volume.unstage()))?;
    volume.stage()?;
    volume.publish("pod")?;
    assert_eq!(fs::read_to_string(&kept).map_err(Trouble::io("reading from the volume"))?, "kept");
    volume.down("pod")?;

    // Unplugged for good, as far as the kernel can tell, and plugged in again.
    let volume = ward.rig.with("linear", 16, mount("ext4", Mode::SingleNodeWriter))?;
    first.unplug()?;
    second.unplug()?;
    // Without the first disk the group is incomplete. It is absent once the driver has seen both go.
    tool::wait("the group to be absent", LIMIT, || Ok((ward.figure("vg_present")? == Some(0)).then_some(())))?;
    ward.becomes(false)?;
    ward.refuses_creation("a creation without a disk")?;
    assert!(ward.listed()?.contains(&volume.id), "the volume is no longer listed");
    ward.others_go_on()?;
    first.plug()?;
    second.plug()?;
    ward.becomes(true)?;
    ward.rig.until_ok("a deletion with the disks back", |_| volume.delete())?;
    ward.close()
}

fn is_unavailable_while_staged(ward: &Ward, volume: &Volume) -> Result<()> {
    ward.becomes(false)?;
    ward.refuses_creation("a creation without a disk")?;
    let stage = ward.rig.csi().node_stage_volume(volume.stage_request());
    refused(stage, &[Code::Unavailable], "a stage without a disk")?;
    assert!(ward.listed()?.contains(&volume.id), "the volume is no longer listed");
    ward.others_go_on()
}

#[test]
fn the_metrics_count_calls_and_effects() -> Result<()> {
    let ward = Ward::open(&[lab::disk(1)?], None)?;
    let mut volume = ward.rig.volume("linear", 16)?;
    volume.up("pod")?;
    let text = scrape()?;
    let has = |line: &str| ensure(text.lines().any(|metric| metric == line), || format!("no line {line:?} in\n{text}"));
    has(&format!("lvm_csi_volume_size_bytes{{volume_id=\"{}\",pool=\"linear\"}} {}", volume.id, 16 * MIB))?;
    has(&format!("lvm_csi_pool_provisioned_bytes{{pool=\"linear\",vg=\"labvg\"}} {}", 16 * MIB))?;
    has("lvm_csi_volumes{state=\"staged\"} 1")?;
    volume.down("pod")?;
    let text = scrape()?;
    let count = |line: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' ')).unwrap_or_default();
        value.parse::<u64>().map_err(|_| Trouble::wrong(format!("no line {line:?} in\n{text}")))
    };
    for effect in ["lvcreate", "lvremove", "mkfs.ext4", "mount", "unmount", "flush"] {
        let counted = count(&format!("lvm_csi_effect_seconds_count{{effect=\"{effect}\",outcome=\"ok\"}}"))?;
        assert!(counted >= 1, "{effect}: {counted}");
    }
    for method in ["CreateVolume", "NodeStageVolume", "DeleteVolume"] {
        assert_eq!(count(&format!("lvm_csi_rpc_seconds_count{{method=\"{method}\",code=\"Ok\"}}"))?, 1, "{method}");
    }
    for command in ["lvcreate", "lvremove"] {
        assert_eq!(count(&format!("lvm_csi_lvm_command_seconds_count{{command=\"{command}\",outcome=\"ok\"}}"))?, 1, "{command}");
    }
    assert_eq!(count("lvm_csi_rpcs_in_flight{method=\"CreateVolume\"}")?, 0);
    assert_eq!(count("lvm_csi_operations")?, 0);
    assert_eq!((ward.figure("vg_wedged")?, ward.figure("vg_queue_length")?), (Some(0), Some(0)));
    assert!(!text.contains(&volume.id), "the metrics name a deleted volume");
    tool::wait("the health of the group", LIMIT, || Ok(ward.figure("vg_complete")?.filter(|complete| *complete == 1)))?;
    ward.close()
}
