//! How many LVM commands each call costs, counted by the shim, and how much memory an idle driver uses.

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, create, from_snapshot, from_volume, map, mount};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, delete_snapshot};
use testkit::shim;

use crate::rig::{MIB, Rig};

/// Memory limit of an idle driver without its program pages, in KiB.
const OWN: u64 = 6 << 10;

/// Fails unless some work costs between `least` and `most` commands.
fn costs<T>(what: &str, least: usize, most: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mark = shim::count()?;
    let done = work()?;
    let ran = shim::since(mark)?;
    assert!((least..=most).contains(&ran.len()), "{what} cost {} commands instead of {least} to {most}: {ran:#?}", ran.len());
    Ok(done)
}

fn restore(rig: &Rig, source: Option<csi::VolumeContentSource>, mib: u64) -> Result<Volume> {
    let mut request = create(&rig.name(), "thin", mib * MIB, mount("ext4", Mode::SingleNodeWriter));
    request.volume_content_source = source;
    rig.request(request)
}

#[test]
fn calls_cost_as_many_lvm_commands_as_promised() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let what = |call: &str| format!("{call} in the pool {pool}");
        let mut volume = costs(&what("create"), 1, 1, || rig.volume(pool, 64))?;
        costs(&what("attach"), 0, 0, || volume.attach())?;
        costs(&what("the first stage"), 2, 2, || volume.stage())?;
        costs(&what("publish"), 0, 0, || volume.publish("pod"))?;
        costs(&what("stats"), 0, 0, || volume.stats("pod"))?;
        costs(&what("an online expansion"), 1, 1, || volume.expand(128 * MIB, "pod"))?;
        costs(&what("unpublish"), 0, 0, || volume.unpublish("pod"))?;
        costs(&what("unstage"), 1, 1, || volume.unstage())?;
        costs(&what("a later stage"), 1, 1, || volume.stage())?;
        costs(&what("unstage"), 1, 1, || volume.unstage())?;
        costs(&what("detach"), 0, 0, || volume.detach())?;
        costs(&what("an offline expansion"), 1, 1, || {
            rig.csi().controller_expand_volume(volume.expand_request(192 * MIB)).accepted("ControllerExpandVolume")
        })?;
        costs(&what("delete"), 1, 1, || volume.delete())?;

        let mut raw = costs(&what("create, raw"), 1, 1, || rig.raw(pool, 32))?;
        raw.attach()?;
        costs(&what("the first stage, raw"), 1, 3, || raw.stage())?;
        costs(&what("publish, raw"), 0, 0, || raw.publish("pod"))?;
        let most = if pool == "linear" { 3 } else { 1 };
        costs(&what("an online expansion, raw"), 1, most, || raw.expand(64 * MIB, "pod"))?;
        costs(&what("unpublish, raw"), 0, 0, || raw.unpublish("pod"))?;
        costs(&what("unstage, raw"), 1, 1, || raw.unstage())?;
        raw.detach()?;
        costs(&what("delete, raw"), 1, 1, || raw.delete())?;
    }
    rig.finish()
}

#[test]
fn snapshots_cost_as_many_lvm_commands_as_promised() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.up("pod")?;
    let snapshot = costs("a snapshot", 1, 1, || volume.snapshot("cut"))?;
    let same = costs("a restore", 1, 1, || restore(&rig, from_snapshot(&snapshot.snapshot_id), 64))?;
    let larger = costs("a larger restore", 1, 2, || restore(&rig, from_snapshot(&snapshot.snapshot_id), 128))?;
    let clone = costs("a clone", 1, 1, || restore(&rig, from_volume(&volume.id), 64))?;
    let big = costs("a larger clone", 1, 2, || restore(&rig, from_volume(&volume.id), 128))?;
    for made in [same, larger, clone, big] {
        costs("delete", 1, 1, || made.delete())?;
    }
    volume.expand(128 * MIB, "pod")?;
    costs("deleting a snapshot", 1, 1, || delete_snapshot(rig.csi(), &snapshot.snapshot_id))?;
    volume.down("pod")?;
    // Among others, LVM complains when a command used more memory than reserved while devices were suspended.
    let log = rig.driver.log()?;
    let complaints: Vec<_> = log.lines().filter(|line| line.contains("but complains")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    rig.finish()
}

/// Makes the same call for all volumes at once.
fn at_once(volumes: &mut [Volume], call: impl Fn(&mut Volume) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let call = &call;
        let calls: Vec<_> = volumes.iter_mut().map(|volume| scope.spawn(move || call(volume))).collect();
        calls.into_iter().try_for_each(|call| call.join().map_err(|_| Trouble::wrong("a caller panicked"))?)
    })
}

#[test]
fn calls_at_once_cost_fewer_commands_than_one_by_one() -> Result<()> {
    const COUNT: usize = 10;
    let rig = Rig::thin()?;
    let mut volumes: Vec<Volume> = (0..COUNT).map(|_| rig.volume("thin", 64)).collect::<Result<_>>()?;
    at_once(&mut volumes, |volume| volume.attach())?;
    costs("first stages at once", 2, COUNT, || at_once(&mut volumes, |volume| volume.stage()))?;
    at_once(&mut volumes, |volume| volume.publish("pod").map(drop))?;
    at_once(&mut volumes, |volume| volume.unpublish("pod"))?;
    costs("unstages at once", 1, COUNT - 1, || at_once(&mut volumes, |volume| volume.unstage()))?;
    costs("later stages at once", 1, COUNT - 1, || at_once(&mut volumes, |volume| volume.stage()))?;
    at_once(&mut volumes, |volume| volume.unstage())?;
    at_once(&mut volumes, |volume| volume.detach())?;
    at_once(&mut volumes, |volume| volume.delete())?;

    let mut volumes: Vec<Volume> = (0..COUNT).map(|_| rig.volume("linear", 16)).collect::<Result<_>>()?;
    costs("deletions at once", 1, COUNT - 1, || at_once(&mut volumes, |volume| volume.delete()))?;
    rig.finish()
}

#[test]
fn reading_costs_no_lvm_command() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("thin", 64)?;
    let snapshot = volume.snapshot("cut")?;
    let csi = rig.csi();
    costs("reading", 0, 0, || {
        csi.list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
        csi.list_snapshots(csi::ListSnapshotsRequest::default()).accepted("ListSnapshots")?;
        let request = csi::ControllerGetVolumeRequest { volume_id: volume.id.clone() };
        csi.controller_get_volume(request).accepted("ControllerGetVolume")?;
        let request = csi::GetSnapshotRequest { snapshot_id: snapshot.snapshot_id.clone(), ..Default::default() };
        csi.get_snapshot(request).accepted("GetSnapshot")?;
        for pool in ["linear", "thin"] {
            let request = csi::GetCapacityRequest { parameters: map(&[("pool", pool)]), ..Default::default() };
            csi.get_capacity(request).accepted("GetCapacity")?;
        }
        csi.probe(csi::ProbeRequest {}).accepted("Probe")?;
        csi.node_get_info(csi::NodeGetInfoRequest {}).accepted("NodeGetInfo").map(drop)
    })?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn an_idle_driver_is_small() -> Result<()> {
    let rig = Rig::thin()?;
    let fresh = rig.driver.anonymous()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.up("pod")?;
    volume.down("pod")?;
    let used = rig.driver.anonymous()?;
    assert!(fresh <= OWN && used <= OWN, "{fresh} KiB after the start, {used} KiB after a volume's life");
    rig.finish()
}
