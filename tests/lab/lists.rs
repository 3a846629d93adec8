//! ListVolumes, ListSnapshots, ControllerGetVolume, GetSnapshot.

use std::collections::BTreeSet;

use lvm_csi_proto::csi;
use testkit::client::Accepted;
use testkit::error::{Result, ensure};
use testkit::flow::delete_snapshot;
use testkit::vg;
use tonic::Code;

use crate::rig::Rig;

/// Returns all IDs of ListVolumes, in pages of this size.
fn volumes(rig: &Rig, page: i32) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    let mut token = String::new();
    for _ in 0..100 {
        let request = csi::ListVolumesRequest { max_entries: page, starting_token: token };
        let answer = rig.csi().list_volumes(request).accepted("ListVolumes")?;
        ensure(page == 0 || answer.entries.len() <= usize::try_from(page).unwrap_or(0), || "a page is too long".to_owned())?;
        ids.extend(answer.entries.into_iter().filter_map(|entry| entry.volume).map(|volume| volume.volume_id));
        if answer.next_token.is_empty() {
            return Ok(ids);
        }
        token = answer.next_token;
    }
    Err(testkit::Trouble::wrong("the list never ends"))
}

#[test]
fn volumes_are_listed_once_in_a_stable_order_in_pages_of_any_size() -> Result<()> {
    let rig = Rig::linear()?;
    assert!(volumes(&rig, 0)?.is_empty());
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "somebodys", &rig.vg.name])?;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(rig.volume("linear", 4)?);
    }
    let expected: BTreeSet<String> = made.iter().map(|volume| volume.id.clone()).collect();
    let all = volumes(&rig, 0)?;
    assert_eq!(all.iter().cloned().collect::<BTreeSet<_>>(), expected);
    for page in [1, 2, 5, 100] {
        assert_eq!(volumes(&rig, page)?, all, "in pages of {page}");
    }
    for token in ["invalid-token", "999", "-1", "é"] {
        let request = csi::ListVolumesRequest { max_entries: 0, starting_token: token.to_owned() };
        rig.rejects(&[Code::Aborted], &format!("the token {token:?}"), |csi| csi.list_volumes(request))?;
    }
    let negative = csi::ListVolumesRequest { max_entries: -1, ..Default::default() };
    rig.rejects(&[Code::InvalidArgument], "a negative number of entries", |csi| csi.list_volumes(negative))?;
    // The volume at which the next page begins is deleted in between.
    let first = csi::ListVolumesRequest { max_entries: 2, ..Default::default() };
    let token = rig.csi().list_volumes(first).accepted("ListVolumes")?.next_token;
    for volume in &made {
        volume.delete()?;
    }
    let rest = csi::ListVolumesRequest { max_entries: 2, starting_token: token };
    match rig.csi().list_volumes(rest) {
        Ok(answer) => assert!(answer.entries.is_empty()),
        Err(status) => assert_eq!(status.code(), Code::Aborted),
    }
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{}/somebodys", rig.vg.name)])?;
    rig.finish()?;
    covers!(35, 36)
}

#[test]
fn the_list_tells_where_volumes_are_published() -> Result<()> {
    let mut rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 16)?;
    let nodes = |rig: &Rig| -> Result<Vec<String>> {
        let answer = rig.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
        Ok(answer.entries.into_iter().filter_map(|entry| entry.status).flat_map(|status| status.published_node_ids).collect())
    };
    assert!(nodes(&rig)?.is_empty());
    volume.attach()?;
    assert_eq!(nodes(&rig)?, ["node-a"]);
    rig.driver.kill()?;
    rig.driver.restart()?;
    assert_eq!(nodes(&rig)?, ["node-a"]);
    let volume = volume.through(rig.csi());
    volume.detach()?;
    assert!(nodes(&rig)?.is_empty());
    volume.delete()?;
    rig.finish()
}

#[test]
fn snapshots_are_found_by_id_and_by_source() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("thin", 16)?;
    let other = rig.volume("thin", 16)?;
    let mut made = Vec::new();
    for name in ["s1", "s2", "s3"] {
        made.push(volume.snapshot(name)?);
    }
    made.push(other.snapshot("s4")?);
    let ask = |request: csi::ListSnapshotsRequest| -> Result<Vec<csi::Snapshot>> {
        let answer = rig.csi().list_snapshots(request).accepted("ListSnapshots")?;
        Ok(answer.entries.into_iter().filter_map(|entry| entry.snapshot).collect())
    };
    let by_id = |id: &str| csi::ListSnapshotsRequest { snapshot_id: id.to_owned(), ..Default::default() };
    let by_source = |id: &str| csi::ListSnapshotsRequest { source_volume_id: id.to_owned(), ..Default::default() };
    for snapshot in &made {
        assert_eq!(ask(by_id(&snapshot.snapshot_id))?, std::slice::from_ref(snapshot));
    }
    assert_eq!(ask(by_source(&volume.id))?.len(), 3);
    assert_eq!(ask(by_source(&other.id))?, [made[3].clone()]);
    assert!(ask(by_id("reallyfakesnapshotid"))?.is_empty());
    assert!(ask(by_source("fake-vol-id"))?.is_empty());
    assert!(ask(by_id(&volume.id))?.is_empty(), "a volume is no snapshot");
    assert_eq!(ask(csi::ListSnapshotsRequest::default())?.len(), 4);
    let page =
        rig.csi().list_snapshots(csi::ListSnapshotsRequest { max_entries: 3, ..Default::default() }).accepted("ListSnapshots")?;
    assert_eq!(page.entries.len(), 3);
    let next = csi::ListSnapshotsRequest { starting_token: page.next_token, ..Default::default() };
    assert_eq!(ask(next)?.len(), 1);
    let bad = csi::ListSnapshotsRequest { starting_token: "invalid-token".to_owned(), ..Default::default() };
    rig.rejects(&[Code::Aborted], "a bad token", |csi| csi.list_snapshots(bad))?;
    for snapshot in &made {
        delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    }
    assert!(ask(csi::ListSnapshotsRequest::default())?.is_empty());
    volume.delete()?;
    other.delete()?;
    rig.finish()?;
    covers!(35, 36)
}

#[test]
fn one_volume_and_one_snapshot_are_found_or_missing() -> Result<()> {
    let rig = Rig::thin()?;
    let volume = rig.volume("thin", 16)?;
    let snapshot = volume.snapshot("s")?;
    let answer = rig.csi().controller_get_volume(csi::ControllerGetVolumeRequest { volume_id: volume.id.clone() });
    let found = answer.accepted("ControllerGetVolume")?.volume.unwrap_or_default();
    assert_eq!((found.volume_id.as_str(), found.capacity_bytes), (volume.id.as_str(), volume.capacity));
    for id in ["fake-vol-id", "a/b", &snapshot.snapshot_id, &format!("{}/none", rig.vg.uuid)] {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        rig.rejects(&[Code::NotFound], &format!("the volume {id:?}"), |csi| csi.controller_get_volume(request))?;
    }
    for id in ["reallyfakesnapshotid", &volume.id] {
        let request = csi::GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        rig.rejects(&[Code::NotFound], &format!("the snapshot {id:?}"), |csi| csi.get_snapshot(request))?;
    }
    let nothing = csi::ControllerGetVolumeRequest::default();
    rig.rejects(&[Code::InvalidArgument], "no volume", |csi| csi.controller_get_volume(nothing))?;
    rig.rejects(&[Code::InvalidArgument], "no snapshot", |csi| csi.get_snapshot(csi::GetSnapshotRequest::default()))?;
    delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
    volume.delete()?;
    rig.finish()?;
    covers!(41)
}
