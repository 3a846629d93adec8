//! Starts with something missing or wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, create, map, mount, refused};
use testkit::driver::{Driver, Start};
use testkit::error::{Result, Trouble};
use testkit::machine::{Machine, scope};
use testkit::test_vg::TestVg;
use testkit::vg;
use testkit::{lab, shim, tool};
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, MIB, Rig, turn};

/// Codes of calls to a pool that does not exist yet.
const ABSENT: [Code; 3] = [Code::ResourceExhausted, Code::Unavailable, Code::FailedPrecondition];

fn request(pool: &str) -> csi::CreateVolumeRequest {
    create("pvc-0f0e0d0c-0b0a-4000-8000-000000000001", pool, 16 * MIB, mount("ext4", Mode::SingleNodeWriter))
}

fn available(driver: &Driver, pool: &str) -> Result<i64> {
    let request = csi::GetCapacityRequest { parameters: map(&[("pool", pool)]), ..Default::default() };
    Ok(driver.csi().get_capacity(request).accepted("GetCapacity")?.available_capacity)
}

#[test]
fn without_its_volume_group_the_driver_serves_and_finds_it_later() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let other = TestVg::make("othervg", &[lab::disk(1)?])?;
    let mut driver = Start::on_vg(Path::new(DRIVER), &home, "labvg").with(&["--create-thin-pool", "256Mi"]).start()?;
    let scope = scope(&other, &[home.join("state")]);
    let before = Machine::look(&scope)?;
    assert_eq!(available(&driver, "linear")?, 0);
    let message = refused(driver.csi().create_volume(request("linear")), &ABSENT, "a volume without a volume group")?;
    assert!(message.contains("labvg"), "{message:?} does not name the volume group");
    let list = driver.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
    assert!(list.entries.is_empty());
    driver.csi().node_get_info(csi::NodeGetInfoRequest {}).accepted("NodeGetInfo")?;
    assert!(driver.csi().serving().accepted("Check")?);
    before.assert_unchanged(&scope, "a driver without its volume group answered calls")?;

    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    let volume = tool::wait("the volume group to be found", LIMIT, || Ok(driver.csi().create_volume(request("linear")).ok()))?;
    let id = volume.volume.unwrap_or_default().volume_id;
    vg.of_handle(&id)?;
    let delete = csi::DeleteVolumeRequest { volume_id: id, ..Default::default() };
    driver.csi().delete_volume(delete).accepted("DeleteVolume")?;
    // What the driver makes at its start, it also makes in a group that appears later.
    let is_pool = |lv: &testkit::vg::Lv| lv.attr.starts_with('t') && lv.size == 256 * MIB;
    tool::wait("the thin pool", LIMIT, || Ok(vg.lvs()?.iter().any(is_pool).then_some(())))?;
    tool::wait("capacity in it", LIMIT, || Ok((available(&driver, "thin")? > 0).then_some(())))?;
    driver.stop()?;
    vg.destroy()?;
    other.destroy()?;
    covers!(13, 81)
}

#[test]
fn a_volume_group_with_a_missing_disk_is_read_and_not_written() -> Result<()> {
    let rig = Rig::make_on(&[lab::disk(0)?, lab::disk(1)?], None, &[])?;
    let volume = rig.volume("linear", 16)?;
    let another = csi::CreateVolumeRequest { name: rig.name(), ..request("linear") };
    // The second disk is gone as far as anybody can tell: its label is.
    let label = "/run/lvm-hack/label";
    let disk = lab::disk(1)?.display().to_string();
    tool::run("dd", &[&format!("if={disk}"), &format!("of={label}"), "bs=512", "count=2048", "status=none"])?;
    tool::run("dd", &["if=/dev/zero", &format!("of={disk}"), "bs=512", "count=2048", "conv=fsync", "status=none"])?;
    tool::settle()?;
    let checked = (|| {
        let answer = rig.rejects(&[Code::Unavailable], "a creation with a disk missing", |csi| csi.create_volume(another))?;
        assert!(!answer.is_empty());
        let delete = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        rig.rejects(&[Code::Unavailable], "a deletion with a disk missing", |csi| csi.delete_volume(delete))?;
        rig.rejects(&[Code::Unavailable], "an expansion with a disk missing", |csi| {
            csi.controller_expand_volume(volume.expand_request(64 * MIB))
        })?;
        assert_ne!(rig.csi().probe(csi::ProbeRequest {}).accepted("Probe")?.ready, Some(false));
        assert!(rig.csi().serving().accepted("Check")?);
        Ok::<(), Trouble>(())
    })();
    tool::run("dd", &[&format!("if={label}"), &format!("of={disk}"), "bs=512", "count=2048", "conv=fsync", "status=none"])?;
    tool::settle()?;
    checked?;
    rig.until_ok("a deletion with the disk back", |_| volume.delete())?;
    rig.finish()?;
    covers!(24, 81)
}

#[test]
fn an_absent_thin_pool_is_an_absent_pool() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    let config = "pools:\n  - name: fast\n    volumeGroup: labvg\n    layout: thin\n    thinPool: tp\n  - name: plain\n    volumeGroup: labvg\n    layout: linear\n    default: true\n";
    let mut driver = Start::on_config(Path::new(DRIVER), &home, config)?.start()?;
    let scope = scope(&vg, &[home.join("state")]);
    let before = Machine::look(&scope)?;
    assert_eq!(available(&driver, "fast")?, 0);
    let message = refused(driver.csi().create_volume(request("fast")), &ABSENT, "a volume without a thin pool")?;
    assert!(message.contains("tp"), "{message:?} does not name the thin pool");
    before.assert_unchanged(&scope, "a driver without its thin pool answered a call")?;
    // The other pool, which is the default, works.
    let mut plain = request("plain");
    plain.parameters.clear();
    let id = driver.csi().create_volume(plain).accepted("CreateVolume")?.volume.unwrap_or_default().volume_id;
    let delete =
        |id: &str| driver.csi().delete_volume(csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() });
    delete(&id).accepted("DeleteVolume")?;
    vg.thin_pool("tp", 256)?;
    let made = tool::wait("the thin pool to be found", LIMIT, || Ok(driver.csi().create_volume(request("fast")).ok()))?;
    delete(&made.volume.unwrap_or_default().volume_id).accepted("DeleteVolume")?;
    driver.stop()?;
    vg.destroy()?;
    covers!(13)
}

/// Replaces `lvm` with a script while `work` runs, or removes it.
fn with_lvm<T>(script: Option<&str>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let aside = format!("{}.aside", shim::LVM);
    fs::rename(shim::LVM, &aside).map_err(Trouble::io("moving the shim aside"))?;
    let done = (|| {
        if let Some(text) = script {
            fs::write(shim::LVM, text).map_err(Trouble::io("writing a false lvm"))?;
            fs::set_permissions(shim::LVM, fs::Permissions::from_mode(0o755)).map_err(Trouble::io("making it executable"))?;
        }
        work()
    })();
    fs::rename(&aside, shim::LVM).map_err(Trouble::io("moving the shim back"))?;
    done
}

#[test]
fn no_lvm_or_too_old_a_one_is_a_missing_dependency() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    let old = "#!/bin/sh\necho '  LVM version:     2.02.98(2) (2012-10-15)'\n";
    let start = Start::on_vg(Path::new(DRIVER), &home, "labvg");
    for (what, script) in [("no lvm", None), ("too old an lvm", Some(old))] {
        let message = with_lvm(script, || {
            let mut driver = start.spawn()?;
            let message = tool::wait("Probe to report what is missing", LIMIT, || {
                let answer = driver.csi().probe(csi::ProbeRequest {});
                match answer {
                    Err(status) if status.code() == Code::FailedPrecondition => Ok(Some(status.message().to_owned())),
                    Ok(answer) if answer.ready != Some(false) => Err(Trouble::wrong(format!("{what}: Probe says ready"))),
                    _ => Ok(None),
                }
            })?;
            let codes = &[Code::FailedPrecondition, Code::Unavailable];
            refused(driver.csi().create_volume(request("linear")), codes, what)?;
            driver.stop()?;
            Ok(message)
        })?;
        assert!(message.to_lowercase().contains("lvm"), "{what}: {message}");
    }
    assert_eq!(vg.lvs()?.len(), 0);
    vg.destroy()?;
    covers!(13)
}

#[test]
fn the_socket_is_one_file_and_belongs_to_one_driver() -> Result<()> {
    let mut rig = Rig::linear()?;
    let start = rig.driver.start().clone();
    let directory = start.socket().parent().map(Path::to_owned).unwrap_or_default();
    let entries = || -> Result<Vec<String>> {
        let read = fs::read_dir(&directory).map_err(Trouble::io("listing the socket's directory"))?;
        Ok(read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    };
    assert_eq!(entries()?, ["csi.sock"]);
    let second = Start { home: lab::fresh("second")?, ..start.clone() }
        .with(&["--endpoint", &format!("unix://{}", start.socket().display())]);
    let (status, log) = second.fails()?;
    assert!(!status.success() && log.contains("csi.sock"), "{status}: {log}");
    rig.csi().probe(csi::ProbeRequest {}).accepted("Probe")?;
    // A killed driver leaves its socket, and the next one replaces it.
    rig.driver.kill()?;
    assert_eq!(entries()?, ["csi.sock"]);
    rig.driver.restart()?;
    assert_eq!(entries()?, ["csi.sock"]);
    // A silent connection does not keep the driver from ending.
    let silent = UnixStream::connect(start.socket()).map_err(Trouble::io("connecting"))?;
    rig.csi().probe(csi::ProbeRequest {}).accepted("Probe")?;
    rig.driver.stop()?;
    drop(silent);
    // Another file in this place is not removed.
    let _ = fs::remove_file(start.socket());
    fs::write(start.socket(), "precious").map_err(Trouble::io("writing a file"))?;
    let (status, log) = start.fails()?;
    assert!(!status.success() && log.contains("csi.sock"), "{status}: {log}");
    assert_eq!(fs::read_to_string(start.socket()).unwrap_or_default(), "precious");
    fs::remove_file(start.socket()).map_err(Trouble::io("removing the file"))?;
    rig.driver.restart()?;
    rig.finish()?;
    covers!(11)
}

#[test]
fn a_wrong_configuration_is_refused_with_its_place() -> Result<()> {
    let _turn = turn()?;
    let good = "pools:\n  - name: plain\n    volumeGroup: labvg\n    layout: linear\n";
    let cases = [
        (
            "an unknown key",
            "pools:\n  - name: plain\n    volumegroup: labvg\n    layout: linear\n".to_owned(),
            "volumegroup",
            "3",
        ),
        ("an unknown key at the top", format!("{good}colour: red\n"), "colour", "5"),
        ("a key twice", format!("{good}    layout: thin\n"), "layout", "5"),
        ("an unknown layout", "pools:\n  - name: plain\n    volumeGroup: labvg\n    layout: round\n".to_owned(), "round", "4"),
    ];
    for (what, text, word, line) in cases {
        let home = lab::fresh("test")?;
        let (status, log) = Start::on_config(Path::new(DRIVER), &home, &text)?.fails()?;
        assert!(!status.success(), "{what} was accepted");
        assert!(log.contains(word) && log.contains("line") && log.contains(line) && log.contains("column"), "{what}: {log}");
    }
    let home = lab::fresh("test")?;
    let (status, log) = Start::on_config(Path::new(DRIVER), &home, "pools: []\n")?.fails()?;
    assert!(!status.success() && log.contains("pool"), "{log}");
    let missing = Start::on_vg(Path::new(DRIVER), &home, "labvg").with(&["--config", "/nowhere.yaml"]);
    let (status, log) = missing.fails()?;
    assert!(!status.success() && log.contains("/nowhere.yaml"), "{log}");
    Ok(())
}

#[test]
fn the_thin_pool_can_be_made_at_the_start() -> Result<()> {
    let rig = Rig::make(None, &["--create-thin-pool", "256Mi"])?;
    let pools: Vec<_> = rig.vg.lvs()?.into_iter().filter(|lv| lv.attr.starts_with('t')).collect();
    assert_eq!(pools.len(), 1, "{pools:?}");
    assert_eq!(pools[0].size, 256 * MIB);
    let volume = rig.volume("thin", 16)?;
    volume.delete()?;
    rig.finish()
}

#[test]
fn stock_lvm_beside_the_driver_is_seen_by_the_next_call() -> Result<()> {
    let rig = Rig::linear()?;
    let volume = rig.volume("linear", 16)?;
    let lv = rig.vg.of_handle(&volume.id)?.name;
    vg::lvm(&["lvextend", "-qq", "-L", "64m", &format!("{}/{lv}", rig.vg.name)])?;
    let answer = rig.csi().controller_expand_volume(volume.expand_request(32 * MIB)).accepted("ControllerExpandVolume")?;
    assert_eq!(answer.capacity_bytes, 64 << 20);
    assert_eq!(available(&rig.driver, "linear")?, i64::try_from(rig.vg.free()?).unwrap_or(0));
    volume.delete()?;
    rig.finish()
}
