//! Ownership of a volume group. The group of another machine can be given up, but is not changed until a person adopts it. The
//! group of two nodes at once is not changed by either.

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::certs;
use testkit::client::{Accepted, Csi, create, mount, refused};
use testkit::driver::NAME;
use testkit::error::{Result, ensure};
use testkit::flow::Volume;
use testkit::{lab, tool, vg};
use tonic::{Code, Status};

use crate::rig::{LIMIT, MIB, Rig};
use crate::roles::{self, Apart, delete, list, node, tls};
use crate::survey;

/// Arguments of a driver on another machine.
const OTHER: [&str; 2] = ["--machine-id", "another-machine"];

/// Returns the machines that the group records.
fn recorded(group: &str) -> Result<Vec<String>> {
    let tags = vg::lvm(&["vgs", "--noheadings", "-o", "vg_tags", group])?;
    Ok(tags.trim().split(',').filter(|tag| tag.starts_with("csi.machine=")).map(str::to_owned).collect())
}

/// Runs a person's command on the other machine, next to its driver. Returns whether it succeeded, and its output.
fn person(rig: &Rig, arguments: &[&str]) -> Result<(bool, String)> {
    survey::person(rig, &[arguments, &OTHER].concat())
}

/// Takes a volume from its pod and its node, and keeps it.
fn give_up(volume: &Volume) -> Result<()> {
    volume.unpublish("pod")?;
    volume.unstage()?;
    volume.detach()
}

fn request(name: &str) -> csi::CreateVolumeRequest {
    create(name, "linear", 16 * MIB, mount("ext4", Mode::SingleNodeWriter))
}

#[test]
fn the_group_of_another_machine_is_given_up_and_not_changed_until_it_is_adopted() -> Result<()> {
    let mut rig = Rig::thin()?;
    let (mut used, mut idle) = (rig.volume("thin", 64)?, rig.volume("linear", 16)?);
    used.up("pod")?;
    let group = rig.vg.name.clone();
    let first = recorded(&group)?;
    ensure(first.len() == 1 && first[0].ends_with("/node-a"), || format!("the group records {first:?}"))?;

    let start = rig.driver.start().clone();
    rig.driver.stop()?;
    rig.driver = start.with(&OTHER).start()?;
    let refuses = |message: String| ensure(message.contains("lvm-csi adopt --vg labvg"), || message);
    let rejects = |what: &str, call: &dyn Fn(&Csi) -> std::result::Result<(), Status>| {
        refuses(rig.rejects(&[Code::FailedPrecondition], what, |csi| call(csi))?)
    };
    rejects("CreateVolume", &|csi| csi.create_volume(request("pvc-0f0e0d0c-0b0a-4000-8000-00000000000f")).map(drop))?;
    rejects("DeleteVolume", &|csi| csi.delete_volume(delete(&idle.id)).map(drop))?;
    let gone = format!("{}/pvc-0f0e0d0c-0b0a-4000-8000-00000000000e", rig.vg.uuid);
    rejects("DeleteVolume of a volume that is not in this copy", &|csi| csi.delete_volume(delete(&gone)).map(drop))?;
    rejects("ControllerExpandVolume", &|csi| csi.controller_expand_volume(used.expand_request(128 * MIB)).map(drop))?;
    let cut =
        csi::CreateSnapshotRequest { name: "snapshot-1".to_owned(), source_volume_id: used.id.clone(), ..Default::default() };
    rejects("CreateSnapshot", &|csi| csi.create_snapshot(cut.clone()).map(drop))?;
    rejects("ControllerPublishVolume", &|csi| csi.controller_publish_volume(idle.attach_request()).map(drop))?;
    ensure(recorded(&group)? == first, || "the tag was changed".to_owned())?;
    let (well, said) = person(&rig, &["doctor", "--vg", &group])?;
    ensure(!well && said.contains("group labvg: it is recorded as the group of node-a"), || said.clone())?;
    // The host's own LVM still works on it.
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Wn", "-Zn", "-l", "1", "-n", "by-hand", &group])?;
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{group}/by-hand")])?;
    let listed = rig.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
    assert_eq!(listed.entries.len(), 2);
    // Whoever used a volume can give it up.
    give_up(&used.through(rig.csi()))?;

    let (done, said) = person(&rig, &["adopt", "--vg", "elsewhere"])?;
    ensure(!done && said.contains("elsewhere"), || said.clone())?;
    ensure(recorded(&group)? == first, || "the tag was changed".to_owned())?;
    let (done, said) = person(&rig, &["adopt", "--vg", &group])?;
    ensure(done && said.contains("now belongs to this machine") && said.contains("it belonged to node-a"), || said.clone())?;
    let seqno = rig.vg.seqno()?;
    let (done, said) = person(&rig, &["adopt", "--vg", &group])?;
    ensure(done && said.contains("nothing was changed") && rig.vg.seqno()? == seqno, || said.clone())?;
    let second = recorded(&group)?;
    ensure(second.len() == 1 && second != first, || format!("the group records {second:?}"))?;
    idle = idle.through(rig.csi());
    idle.up("pod")?;
    idle.down("pod")?;
    used.through(rig.csi()).delete()?;
    rig.finish()
}

#[test]
fn two_nodes_with_one_group_change_nothing_until_one_gives_it_up() -> Result<()> {
    let mut apart = Apart::make(2)?;
    let files = apart.authority.issue(&tls("node-b"), &certs::agent(NAME, "node-b"))?;
    let home = lab::fresh("node-b")?;
    let csi = apart.csi();
    let (mut used, idle) = (apart.volume(&csi, &["node-a"])?, apart.volume(&csi, &["node-a"])?);
    used.up("pod")?;
    let mut second = node(&home, &apart.rig.vg.name, 1, &files).with(&OTHER).start()?;
    let rows = apart.rig.until_ok("a list from both nodes", |_| list(&csi))?;
    tool::wait("the second node to report", LIMIT, || {
        Ok(csi.delete_volume(delete(&idle.id)).err().filter(|status| status.code() == Code::FailedPrecondition))
    })?;
    assert_eq!(
        rows.iter().filter(|(id, node, on)| *id == used.id && node == "node-a" && *on == ["node-a"]).count(),
        1,
        "{rows:?}"
    );
    assert_eq!(list(&csi)?, rows, "a volume is listed once");
    let refuses = |answer: std::result::Result<(), Status>, what: &str| {
        let said = refused(answer, &[Code::FailedPrecondition], what)?;
        ensure(["node-a", "node-b", "vgimportclone"].iter().all(|word| said.contains(word)), || format!("{what}: {said}"))
    };
    refuses(csi.delete_volume(delete(&used.id)).map(drop), "DeleteVolume of a volume in use")?;
    refuses(csi.controller_expand_volume(idle.expand_request(96 * MIB)).map(drop), "ControllerExpandVolume")?;
    refuses(csi.controller_publish_volume(idle.attach_request()).map(drop), "ControllerPublishVolume")?;
    for node in ["node-a", "node-b"] {
        refuses(csi.create_volume(roles::wish(&apart.rig.name(), "linear", &[node])).map(drop), "CreateVolume")?;
    }
    // A volume in use is given up at the node that uses it.
    refused(csi.controller_unpublish_volume(unpublish(&used.id, "node-a")), &[Code::FailedPrecondition], "a staged volume")?;
    give_up(&used)?;
    // The node's silence is not an answer.
    second.stop()?;
    tool::wait("the second node to be away", LIMIT, || {
        Ok(csi
            .delete_volume(delete(&idle.id))
            .err()
            .filter(|status| status.code() == Code::Unavailable && status.message().contains("node-b")))
    })?;
    // The node came back without the disks, and no controller knows that it had them.
    second = node(&home, "elsewhere", 1, &files).with(&OTHER).start()?;
    apart.controller.kill()?;
    apart.controller.restart()?;
    let csi = apart.csi();
    apart.rig.until_ok("a list from both nodes", |_| list(&csi))?;
    for volume in [idle, used] {
        volume.through(&csi).delete()?;
    }
    second.stop()?;
    apart.finish()
}

fn unpublish(id: &str, node: &str) -> csi::ControllerUnpublishVolumeRequest {
    csi::ControllerUnpublishVolumeRequest { volume_id: id.to_owned(), node_id: node.to_owned(), ..Default::default() }
}
