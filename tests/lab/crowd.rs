//! Many callers at once, through the whole life of many volumes. They make the mistakes of orchestrators: duplicates, missed
//! deadlines, and calls that contradict each other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Csi, block, create, mount};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Places, Volume, text};
use testkit::{lab, sample};
use tonic::{Code, Status};

use crate::rig::{MIB, Rig};

const CALLERS: usize = 16;
/// Volumes per ordinary run, and with `LVM_CSI_LONG`.
const VOLUMES: (usize, usize) = (24, 200);
/// A deadline that most calls miss.
const SHORT: Duration = Duration::from_millis(50);
/// Limit for repeating one call.
const PATIENCE: Duration = Duration::from_secs(120);
/// Limit for the driver's resident memory, in KiB.
const MEMORY: u64 = 64 << 10;

/// Codes of calls that conflict with another call or miss their deadline.
const PASSING: [Code; 4] = [Code::Aborted, Code::DeadlineExceeded, Code::Cancelled, Code::Unavailable];

/// Repeats a call until it succeeds: first with a short deadline, then twice at once.
fn insist<T: Send>(csi: &Csi, what: &str, call: impl Fn(&Csi) -> std::result::Result<T, Status> + Sync) -> Result<T> {
    let (begin, short) = (Instant::now(), csi.deadline(SHORT));
    let check = |status: &Status| {
        ensure(PASSING.contains(&status.code()), || format!("{what}: {:?} {}", status.code(), status.message()))
    };
    if let Err(status) = call(&short) {
        check(&status)?;
    }
    loop {
        let answers = thread::scope(|scope| {
            let twin = scope.spawn(|| call(csi));
            [call(csi), twin.join().unwrap_or_else(|_| Err(Status::unknown("a caller panicked")))]
        });
        for answer in answers {
            match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => check(&status)?,
            }
        }
        ensure(begin.elapsed() < PATIENCE, || format!("{what} did not succeed within {PATIENCE:?}"))?;
    }
}

/// Checks that a contradicting call was refused or lost the race.
fn contradict<T>(what: &str, allowed: &[Code], answer: std::result::Result<T, Status>) -> Result<()> {
    match answer {
        Ok(_) => Err(Trouble::wrong(format!("{what} succeeded"))),
        Err(status) => ensure(PASSING.contains(&status.code()) || allowed.contains(&status.code()), || {
            format!("{what}: {:?} {}", status.code(), status.message())
        }),
    }
}

/// Runs one volume through its whole life. Returns it as the caller last knew it.
fn live(csi: &Csi, places: &Places, group: &str, number: usize) -> Result<Volume> {
    let pool = if number.is_multiple_of(4) { "thin" } else { "linear" };
    let raw = number % 4 == 1;
    let capability = if raw { block(Mode::SingleNodeWriter) } else { mount("ext4", Mode::SingleNodeWriter) };
    let name = format!("pvc-0c0b0a09-0807-4000-8000-{number:012x}");
    let request = create(&name, pool, 16 * MIB, capability.clone());
    let delete = csi::DeleteVolumeRequest { volume_id: format!("{group}/{name}"), ..Default::default() };
    thread::scope(|scope| {
        // The order does not matter: the creation below comes last.
        let early = scope.spawn(|| csi.delete_volume(delete.clone()));
        let _ = csi.deadline(SHORT).create_volume(request.clone());
        match early.join() {
            Ok(Err(status)) => contradict("deleting it while it is made", &[], Err::<(), _>(status)),
            Ok(Ok(_)) => Ok(()),
            Err(_) => Err(Trouble::wrong("a caller panicked")),
        }
    })?;
    let made = insist(csi, "CreateVolume", |csi| csi.create_volume(request.clone()))?.volume.unwrap_or_default();
    ensure(made.volume_id == delete.volume_id, || format!("{name} became {}", made.volume_id))?;
    contradict(
        "the same name with another size",
        &[Code::AlreadyExists],
        csi.create_volume(create(&name, pool, 64 * MIB, capability)),
    )?;
    // Repeat the creation, then continue.
    let mut volume = Volume::create(csi, places, &name, request)?;
    ensure(volume.id == made.volume_id, || format!("{} and {} for one name", volume.id, made.volume_id))?;
    let attach = volume.attach_request();
    volume.publish = insist(csi, "ControllerPublishVolume", |csi| csi.controller_publish_volume(attach.clone()))?.publish_context;
    let elsewhere = csi::ControllerPublishVolumeRequest { node_id: "node-b".to_owned(), ..attach };
    let codes = [Code::FailedPrecondition, Code::NotFound];
    contradict("attaching it to another node", &codes, csi.controller_publish_volume(elsewhere))?;
    volume.make_staging()?;
    insist(csi, "NodeStageVolume", |csi| csi.node_stage_volume(volume.stage_request()))?;
    contradict("deleting it while staged", &[Code::FailedPrecondition], csi.delete_volume(delete.clone()))?;
    volume.make_parent("pod")?;
    insist(csi, "NodePublishVolume", |csi| csi.node_publish_volume(volume.publish_request("pod")))?;
    let target = volume.target("pod");
    if !raw {
        std::fs::write(target.join("number"), name.as_str()).map_err(Trouble::io("writing into the volume"))?;
    }
    let mut snapshot = None;
    if pool == "thin" {
        let cut = csi::CreateSnapshotRequest {
            source_volume_id: volume.id.clone(),
            name: format!("cut-{number}"),
            ..Default::default()
        };
        snapshot = insist(csi, "CreateSnapshot", |csi| csi.create_snapshot(cut.clone()))?.snapshot;
    }
    let grown = insist(csi, "ControllerExpandVolume", |csi| csi.controller_expand_volume(volume.expand_request(32 * MIB)))?;
    volume.capacity = grown.capacity_bytes;
    insist(csi, "NodeExpandVolume", |csi| csi.node_expand_volume(volume.node_expand_request("pod")))?;
    if !raw {
        let kept = std::fs::read_to_string(target.join("number")).map_err(Trouble::io("reading from the volume"))?;
        ensure(kept == name, || format!("{name} contains the data of {kept}"))?;
    }
    let unpublish = csi::NodeUnpublishVolumeRequest { volume_id: volume.id.clone(), target_path: text(&target) };
    insist(csi, "NodeUnpublishVolume", |csi| csi.node_unpublish_volume(unpublish.clone()))?;
    let staging_target_path = text(&volume.staging());
    let unstage = csi::NodeUnstageVolumeRequest { volume_id: volume.id.clone(), staging_target_path };
    insist(csi, "NodeUnstageVolume", |csi| csi.node_unstage_volume(unstage.clone()))?;
    let detach = csi::ControllerUnpublishVolumeRequest {
        volume_id: volume.id.clone(),
        node_id: volume.node.clone(),
        ..Default::default()
    };
    insist(csi, "ControllerUnpublishVolume", |csi| csi.controller_unpublish_volume(detach.clone()))?;
    if let Some(snapshot) = snapshot {
        let request = csi::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id, ..Default::default() };
        insist(csi, "DeleteSnapshot", |csi| csi.delete_snapshot(request.clone()))?;
    }
    insist(csi, "DeleteVolume", |csi| csi.delete_volume(delete.clone()))?;
    Ok(volume)
}

#[test]
fn many_callers_and_their_mistakes_leave_one_volume_a_name_and_no_trace() -> Result<()> {
    let rig = Rig::thin()?;
    let count = if sample::long() { VOLUMES.1 } else { VOLUMES.0 };
    let (csi, places, group, next) = (rig.csi().clone(), rig.places.clone(), rig.vg.uuid.clone(), AtomicUsize::new(0));
    let begin = Instant::now();
    let ends: Vec<Result<Vec<Volume>>> = thread::scope(|scope| {
        let work = || -> Result<Vec<Volume>> {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= count {
                    return Ok(done);
                }
                done.push(live(&csi, &places, &group, number)?);
            }
        };
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(work)).collect();
        callers.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(Trouble::wrong("a caller panicked")))).collect()
    });
    let mut volumes = Vec::new();
    for end in ends {
        volumes.extend(end?);
    }
    let names: BTreeSet<&str> = volumes.iter().map(|volume| volume.id.as_str()).collect();
    assert_eq!(names.len(), count);
    let resident = rig.driver.resident()?;
    lab::say(&format!(
        "{count} volumes by {CALLERS} callers: {:.0} s, {} MiB resident",
        begin.elapsed().as_secs_f64(),
        resident >> 10
    ));
    ensure(resident < MEMORY, || format!("the driver holds {resident} KiB"))?;
    for volume in &volumes {
        volume.unpublish("pod")?;
        volume.unstage()?;
    }
    assert!(rig.vg.lvs()?.iter().all(|lv| lv.tags.is_empty()), "{:?}", rig.vg.lvs()?);
    rig.finish()?;
    covers!(3, 5, 90)
}
