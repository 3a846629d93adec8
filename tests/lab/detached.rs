//! Callers that go away: the work continues, and the repeated call joins it.

use std::thread;
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, create, mount};
use testkit::error::{Result, Trouble};
use testkit::shim::{self, Fault};
use testkit::tool;
use tonic::Code;

use crate::rig::{LIMIT, MIB, Rig};

const SHORT: Duration = Duration::from_millis(50);

/// Waits until the held command runs.
fn held() -> Result<()> {
    tool::wait("lvm to be held", LIMIT, || Ok((!shim::armed()).then_some(())))
}

#[test]
fn a_creation_whose_caller_went_away_is_finished_and_found() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let request = create(&rig.name(), pool, 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
        let mark = shim::count()?;
        shim::arm(Fault::Hold)?;
        let gone = rig.csi().deadline(SHORT).create_volume(request.clone());
        let code = gone.err().map(|status| status.code());
        assert!(matches!(code, Some(Code::DeadlineExceeded | Code::Cancelled | Code::Aborted)), "{code:?}");
        held()?;
        // Repeated calls do not start the work again.
        for _ in 0..3 {
            let again = rig.csi().deadline(SHORT).create_volume(request.clone());
            let code = again.err().map(|status| status.code());
            assert!(matches!(code, Some(Code::DeadlineExceeded | Code::Cancelled | Code::Aborted)), "{code:?}");
        }
        shim::disarm()?;
        let volume = rig.until_ok("the volume", |csi| csi.create_volume(request.clone()).accepted("CreateVolume"))?;
        let volume = volume.volume.ok_or_else(|| Trouble::wrong("no volume in the answer"))?;
        rig.vg.of_handle(&volume.volume_id)?;
        assert_eq!(shim::since(mark)?.len(), 1, "{:?}", shim::since(mark)?);
        let request = csi::DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() };
        rig.csi().delete_volume(request).accepted("DeleteVolume")?;
    }
    rig.finish()?;
    covers!(5, 76)
}

#[test]
fn equal_calls_join_and_a_conflicting_one_is_aborted_with_what_runs() -> Result<()> {
    let rig = Rig::linear()?;
    let volume = rig.volume("linear", 64)?;
    let mark = shim::count()?;
    shim::arm(Fault::Hold)?;
    let csi = rig.csi().clone();
    let answers = thread::scope(|scope| -> Result<Vec<_>> {
        let equal: Vec<_> =
            (0..3).map(|_| scope.spawn(|| csi.controller_expand_volume(volume.expand_request(128 * MIB)))).collect();
        held()?;
        let delete = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        let message = testkit::client::refused(rig.csi().delete_volume(delete), &[Code::Aborted], "a deletion meanwhile");
        let other = rig.csi().controller_expand_volume(volume.expand_request(256 * MIB));
        let other = testkit::client::refused(other, &[Code::Aborted], "another expansion meanwhile");
        // Calls about other volumes are answered.
        let list = rig.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes");
        shim::disarm()?;
        let answers = equal.into_iter().map(|one| one.join().map_err(|_| Trouble::wrong("a caller panicked"))).collect();
        message.and(other)?;
        list?;
        answers
    })?;
    for answer in answers {
        // A call that comes too late to join decides anew and finds the size it asked for.
        match answer {
            Ok(answer) => assert_eq!(answer.capacity_bytes, 128 << 20),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    assert_eq!(shim::since(mark)?.len(), 1, "{:?}", shim::since(mark)?);
    assert_eq!(rig.vg.of_handle(&volume.id)?.size, 128 * MIB);
    volume.delete()?;
    rig.finish()?;
    covers!(3, 5)
}

#[test]
fn a_stage_whose_caller_went_away_is_finished_and_found() -> Result<()> {
    let rig = Rig::linear()?;
    let mut volume = rig.volume("linear", 64)?;
    volume.attach()?;
    volume.make_staging()?;
    shim::arm(Fault::Hold)?;
    let gone = rig.csi().deadline(SHORT).node_stage_volume(volume.stage_request());
    assert!(gone.is_err());
    held()?;
    shim::disarm()?;
    rig.until_ok("the staged volume", |_| volume.stage())?;
    let unstage = rig.csi().deadline(SHORT);
    let _ = volume.through(&unstage).unstage();
    rig.until_ok("the unstaged volume", |_| volume.unstage())?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(5)
}

#[test]
fn sigterm_waits_for_what_runs() -> Result<()> {
    let mut rig = Rig::linear()?;
    let request = create(&rig.name(), "linear", 64 * MIB, mount("ext4", Mode::SingleNodeWriter));
    shim::arm(Fault::Hold)?;
    let csi = rig.csi().clone();
    let sent = request.clone();
    let caller = thread::spawn(move || csi.create_volume(sent));
    held()?;
    rig.driver.terminate()?;
    // The driver takes no more calls but has not exited.
    tool::wait("the driver to refuse calls", LIMIT, || {
        Ok(rig.csi().deadline(Duration::from_secs(2)).probe(csi::ProbeRequest {}).is_err().then_some(()))
    })?;
    assert!(std::path::Path::new(&format!("/proc/{}", rig.driver.pid()?)).exists());
    shim::disarm()?;
    rig.driver.stop()?;
    let answer = caller.join().map_err(|_| Trouble::wrong("the caller panicked"))?;
    if let Err(status) = &answer {
        assert!(matches!(status.code(), Code::Unavailable | Code::Aborted | Code::Cancelled | Code::Unknown), "{status:?}");
    }
    rig.driver.restart()?;
    let volume = rig.unchanged("the same creation after the restart", || rig.request(request.clone()))?;
    volume.delete()?;
    rig.finish()?;
    covers!(14)
}
