//! What a person learns about calls from the driver's log.

use testkit::error::{Result, ensure};
use testkit::flow;

use crate::rig::{MIB, Rig};

/// Extracts the call of a log line and what it is about: `call{rpc="NodeStageVolume" id=… about="…"}`.
fn call(line: &str) -> Option<(&str, Option<&str>)> {
    let (_, span) = line.split_once("call{rpc=\"")?;
    let (rpc, rest) = span.split_once('"')?;
    let (fields, _) = rest.split_once('}')?;
    Some((rpc, fields.split_once("about=\"").and_then(|(_, about)| about.split('"').next())))
}

#[test]
fn all_lines_of_a_call_name_its_volume() -> Result<()> {
    let mut rig = Rig::thin()?;
    rig.log_everything()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.up("pod")?;
    volume.expand(128 * MIB, "pod")?;
    volume.stats("pod")?;
    let snapshot = volume.snapshot("cut")?;
    flow::delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.down("pod")?;
    let log = rig.driver.log()?;
    let lines: Vec<_> = log.lines().filter_map(|line| Some((line, call(line)?))).collect();
    let of_volume =
        ["ControllerPublishVolume", "NodeStageVolume", "NodePublishVolume", "ControllerExpandVolume", "NodeExpandVolume"];
    let undone = ["NodeGetVolumeStats", "NodeUnpublishVolume", "NodeUnstageVolume", "ControllerUnpublishVolume", "DeleteVolume"];
    let volumes = of_volume.into_iter().chain(undone).map(|rpc| (rpc, volume.id.as_str()));
    let snapshots = [("CreateSnapshot", "cut"), ("DeleteSnapshot", snapshot.snapshot_id.as_str())];
    for (rpc, about) in volumes.chain(snapshots).chain([("CreateVolume", volume.name.as_str())]) {
        let of_call: Vec<_> = lines.iter().filter(|(_, call)| call.0 == rpc).collect();
        ensure(of_call.iter().any(|(line, _)| line.contains(" OK ms=")), || {
            format!("no line of {rpc} says how it ended: {log}")
        })?;
        let silent = of_call.iter().find(|(_, call)| call.1 != Some(about));
        ensure(silent.is_none(), || format!("a line of {rpc} does not name {about}: {silent:?}"))?;
    }
    rig.finish()
}
