//! CreateVolume, DeleteVolume, ValidateVolumeCapabilities.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::thread;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, create, map, mount, mount_with, range};
use testkit::error::{Result, Trouble};
use testkit::tool;
use testkit::vg;
use tonic::Code;

use crate::rig::{LIMIT, MIB, Rig};

fn ext4() -> csi::VolumeCapability {
    mount("ext4", Mode::SingleNodeWriter)
}

fn topology(nodes: &[&str]) -> Vec<csi::Topology> {
    nodes.iter().map(|node| csi::Topology { segments: map(&[("topology.lvm-csi.dev/node", node)]) }).collect()
}

#[test]
fn the_same_name_is_the_same_volume_and_a_different_one_is_refused() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let name = rig.name();
        let request = create(&name, pool, 64 * MIB, ext4());
        let first = rig.request(request.clone())?;
        assert_eq!(first.size(), 64 * MIB);
        for _ in 0..3 {
            let again = rig.unchanged("the same request again", || rig.request(request.clone()))?;
            assert_eq!((again.id, again.capacity), (first.id.clone(), first.capacity));
        }
        // The existing size lies within the new range.
        let mut compatible = request.clone();
        compatible.capacity_range = Some(range(32 * MIB, 64 * MIB));
        assert_eq!(rig.unchanged("a compatible request", || rig.request(compatible))?.id, first.id);

        let mut other = request.clone();
        other.capacity_range = Some(range(128 * MIB, 0));
        let another_pool = create(&name, if pool == "thin" { "linear" } else { "thin" }, 64 * MIB, ext4());
        let mut another_source = request.clone();
        another_source.volume_content_source = testkit::client::from_volume(&first.id);
        for (what, request) in [("a larger one", other), ("another pool", another_pool), ("a source", another_source)] {
            rig.rejects(&[Code::AlreadyExists], &format!("{what} under the same name"), |csi| csi.create_volume(request))?;
        }
        first.delete()?;
    }
    rig.finish()?;
    covers!(4, 18)
}

#[test]
fn sizes_are_rounded_only_within_the_limit() -> Result<()> {
    let rig = Rig::thin()?;
    for pool in ["linear", "thin"] {
        let sized = |required: u64, limit: u64| {
            let mut request = create(&rig.name(), pool, 0, ext4());
            request.capacity_range = Some(range(required, limit));
            request
        };
        let rounded = rig.request(sized(30 * MIB + 1, 0))?;
        assert!(rounded.size() > 30 * MIB && rounded.size().is_multiple_of(vg::EXTENT), "{}", rounded.size());
        assert_eq!(rig.vg.of_handle(&rounded.id)?.size, rounded.size());
        rounded.delete()?;
        let exact = rig.request(sized(32 * MIB, 32 * MIB))?;
        assert_eq!(exact.size(), 32 * MIB);
        exact.delete()?;
        for (what, required, limit) in [
            ("a limit below the next extent", 30 * MIB + 1, 30 * MIB + 2),
            ("a limit below the size", 64 * MIB, 32 * MIB),
            ("a limit below one extent", 0, 1),
        ] {
            rig.rejects(&[Code::OutOfRange], what, |csi| csi.create_volume(sized(required, limit)))?;
        }
        let mut negative = sized(0, 0);
        negative.capacity_range = Some(csi::CapacityRange { required_bytes: -1, limit_bytes: 0 });
        rig.rejects(&[Code::OutOfRange, Code::InvalidArgument], "a negative size", |csi| csi.create_volume(negative))?;

        let mut without = create(&rig.name(), pool, 0, ext4());
        without.capacity_range = None;
        let default = rig.request(without)?;
        assert!(default.size() > 0 && default.size() == rig.vg.of_handle(&default.id)?.size);
        default.delete()?;
    }
    rig.finish()?;
    covers!(20)
}

#[test]
fn any_name_becomes_a_safe_and_distinct_lv_name() -> Result<()> {
    let rig = Rig::linear()?;
    let names = [
        "a/b".to_owned(),
        "..".to_owned(),
        "-rf".to_owned(),
        "--force".to_owned(),
        "$(reboot)".to_owned(),
        "a b\tc\nd".to_owned(),
        "größe·大小·🦀".to_owned(),
        "pvc-AbC".to_owned(),
        "pvc-abc".to_owned(),
        "snapshot-1".to_owned(),
        "x_tdata".to_owned(),
        "é".repeat(64),
        "n".repeat(128),
        format!("{}m", "n".repeat(127)),
        "pvc-0b6c6a0e-1111-4222-8333-444455556666".to_owned(),
    ];
    let mut ids = BTreeSet::new();
    for name in &names {
        let request = create(name, "linear", 4 * MIB, ext4());
        let volume = rig.request(request.clone())?;
        assert!(volume.id.len() <= 128 && volume.id.is_ascii(), "{:?}", volume.id);
        assert_eq!(rig.request(request)?.id, volume.id);
        rig.vg.of_handle(&volume.id)?;
        assert!(ids.insert(volume.id.clone()), "{name:?} got the ID of another volume");
    }
    let last = format!("{}/pvc-0b6c6a0e-1111-4222-8333-444455556666", rig.vg.uuid);
    assert!(ids.contains(&last), "a name in the provisioner's form must be kept");
    for id in ids {
        rig.csi().delete_volume(csi::DeleteVolumeRequest { volume_id: id, ..Default::default() }).accepted("DeleteVolume")?;
    }
    for (what, name) in
        [("129 bytes", "n".repeat(129)), ("a control character", "a\u{7}b".to_owned()), ("DEL", "a\u{7f}".to_owned())]
    {
        rig.rejects(&[Code::InvalidArgument], &format!("a name with {what}"), |csi| {
            csi.create_volume(create(&name, "linear", 4 * MIB, ext4()))
        })?;
    }
    rig.finish()?;
    covers!(10)
}

#[test]
fn several_capabilities_are_taken_only_when_all_can_be_met() -> Result<()> {
    let rig = Rig::linear()?;
    let with = |capabilities: Vec<csi::VolumeCapability>| csi::CreateVolumeRequest {
        volume_capabilities: capabilities,
        ..create(&rig.name(), "linear", 16 * MIB, ext4())
    };
    let volume = rig.request(with(vec![ext4(), mount("ext4", Mode::SingleNodeReaderOnly)]))?;
    volume.delete()?;
    rig.rejects(&[Code::InvalidArgument], "no capability", |csi| csi.create_volume(with(vec![])))?;
    rig.rejects(&[Code::InvalidArgument], "one that cannot be met among two", |csi| {
        csi.create_volume(with(vec![ext4(), mount("ext4", Mode::MultiNodeMultiWriter)]))
    })?;
    rig.rejects(&[Code::InvalidArgument], "filesystem and block in one", |csi| {
        csi.create_volume(with(vec![ext4(), block(Mode::SingleNodeWriter)]))
    })?;
    rig.finish()?;
    covers!(21)
}

#[test]
fn what_cannot_be_mounted_is_refused_at_creation() -> Result<()> {
    let rig = Rig::linear()?;
    let cases = [
        ("an unknown filesystem", mount("ntfs", Mode::SingleNodeWriter)),
        ("a filesystem that is a path", mount("../ext4", Mode::SingleNodeWriter)),
        ("an unknown access mode", mount("ext4", Mode::Unknown)),
        ("writers on many nodes", mount("ext4", Mode::MultiNodeMultiWriter)),
        ("readers on many nodes", mount("ext4", Mode::MultiNodeReaderOnly)),
        ("one writer on many nodes", mount("ext4", Mode::MultiNodeSingleWriter)),
        ("an unknown mount option", mount_with("ext4", Mode::SingleNodeWriter, &["frobnicate"])),
        ("an option that makes a bind mount", mount_with("ext4", Mode::SingleNodeWriter, &["bind"])),
        ("an option with a blank", mount_with("ext4", Mode::SingleNodeWriter, &["noatime nodev"])),
        ("no access type", csi::VolumeCapability { access_type: None, ..ext4() }),
        ("no access mode", csi::VolumeCapability { access_mode: None, ..ext4() }),
    ];
    for (what, capability) in cases {
        rig.rejects(&[Code::InvalidArgument], what, |csi| {
            csi.create_volume(create(&rig.name(), "linear", 16 * MIB, capability))
        })?;
    }
    rig.finish()?;
    covers!(22)
}

#[test]
fn unknown_parameters_are_named_and_refused() -> Result<()> {
    let rig = Rig::linear()?;
    let with = |key: &str, value: &str| {
        let mut request = create(&rig.name(), "linear", 16 * MIB, ext4());
        request.parameters.insert(key.to_owned(), value.to_owned());
        request
    };
    let message =
        rig.rejects(&[Code::InvalidArgument], "an unknown parameter", |csi| csi.create_volume(with("colour", "red")))?;
    assert!(message.contains("colour"), "{message}");
    rig.rejects(&[Code::InvalidArgument], "an unknown pool", |csi| csi.create_volume(with("pool", "none")))?;
    let mut mutable = create(&rig.name(), "linear", 16 * MIB, ext4());
    mutable.mutable_parameters = map(&[("speed", "high")]);
    let message = rig.rejects(&[Code::InvalidArgument], "an unknown mutable parameter", |csi| csi.create_volume(mutable))?;
    assert!(message.contains("speed"), "{message}");
    // Metadata that the provisioner adds with --extra-create-metadata does not count as class parameters.
    let volume = rig.request(with("csi.storage.k8s.io/pvc/name", "claim"))?;
    volume.delete()?;
    rig.finish()?;
    covers!(19)
}

#[test]
fn a_full_pool_leaves_nothing_behind_and_a_deletion_frees_space_at_once() -> Result<()> {
    let rig = Rig::linear()?;
    let capacity = || -> Result<i64> {
        let request = csi::GetCapacityRequest { parameters: map(&[("pool", "linear")]), ..Default::default() };
        Ok(rig.csi().get_capacity(request).accepted("GetCapacity")?.available_capacity)
    };
    let free = capacity()?;
    rig.rejects(&[Code::ResourceExhausted, Code::OutOfRange], "more than the disk holds", |csi| {
        csi.create_volume(create(&rig.name(), "linear", 64 << 30, ext4()))
    })?;
    let most = rig.volume("linear", 3 << 10)?;
    let left = capacity()?;
    assert_eq!(free - left, most.capacity);
    rig.rejects(&[Code::ResourceExhausted], "more than is left", |csi| {
        csi.create_volume(create(&rig.name(), "linear", 2 << 30, ext4()))
    })?;
    most.delete()?;
    assert_eq!(capacity()?, free);
    rig.finish()?;
    covers!(23, 32)
}

#[test]
fn the_topology_that_is_asked_for_is_kept() -> Result<()> {
    let rig = Rig::linear()?;
    let on = |requisite: &[&str], preferred: &[&str]| csi::CreateVolumeRequest {
        accessibility_requirements: Some(csi::TopologyRequirement {
            requisite: topology(requisite),
            preferred: topology(preferred),
        }),
        ..create(&rig.name(), "linear", 16 * MIB, ext4())
    };
    for request in
        [create(&rig.name(), "linear", 16 * MIB, ext4()), on(&["node-a"], &["node-a"]), on(&["node-a", "node-b"], &["node-a"])]
    {
        let answer = rig.csi().create_volume(request).accepted("CreateVolume")?;
        let volume = answer.volume.ok_or_else(|| Trouble::wrong("no volume in the answer"))?;
        assert_eq!(volume.accessible_topology, topology(&["node-a"]));
        let request = csi::DeleteVolumeRequest { volume_id: volume.volume_id, ..Default::default() };
        rig.csi().delete_volume(request).accepted("DeleteVolume")?;
    }
    rig.rejects(&[Code::ResourceExhausted], "another node", |csi| csi.create_volume(on(&["node-b"], &[])))?;
    rig.finish()?;
    covers!(25)
}

#[test]
fn deleting_what_is_unknown_is_ok_and_what_is_in_use_is_untouched() -> Result<()> {
    let rig = Rig::thin()?;
    let delete = |id: &str| csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
    for id in ["fake-vol-id", "a/b", "../../etc", &format!("{}/none", rig.vg.uuid), "é", &"x".repeat(128)] {
        rig.unchanged("an unknown volume was deleted", || rig.csi().delete_volume(delete(id)).accepted("DeleteVolume"))?;
    }
    for pool in ["linear", "thin"] {
        let mut volume = rig.volume(pool, 64)?;
        volume.up("pod")?;
        rig.rejects(&[Code::FailedPrecondition], "a mounted volume", |csi| csi.delete_volume(delete(&volume.id)))?;
        volume.unpublish("pod")?;
        rig.rejects(&[Code::FailedPrecondition], "a staged volume", |csi| csi.delete_volume(delete(&volume.id)))?;
        volume.unstage()?;
        volume.detach()?;
        // A person inspects it with stock LVM, so it is open.
        let name = rig.vg.of_handle(&volume.id)?.name;
        rig.vg.with_active(&name, |device| {
            let held = File::open(device).map_err(Trouble::io("holding the device open"))?;
            rig.rejects(&[Code::FailedPrecondition], "an open volume", |csi| csi.delete_volume(delete(&volume.id)))?;
            drop(held);
            Ok(())
        })?;
        volume.delete()?;
        rig.unchanged("it was deleted again", || volume.delete())?;
    }
    rig.finish()?;
    covers!(31)
}

#[test]
fn an_lv_without_our_tags_is_never_touched() -> Result<()> {
    let rig = Rig::linear()?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "8m", "-n", "somebodys", &rig.vg.name])?;
    let id = format!("{}/somebodys", rig.vg.uuid);
    let request = csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
    rig.unchanged("a foreign LV was deleted", || rig.csi().delete_volume(request).accepted("DeleteVolume"))?;
    rig.vg.lv("somebodys")?;
    let request = csi::ControllerGetVolumeRequest { volume_id: id };
    rig.rejects(&[Code::NotFound], "a foreign LV", |csi| csi.controller_get_volume(request))?;
    vg::lvm(&["lvremove", "-qq", "-y", &format!("{}/somebodys", rig.vg.name)])?;
    rig.finish()?;
    covers!(36)
}

#[test]
fn validation_confirms_all_or_nothing() -> Result<()> {
    let rig = Rig::linear()?;
    let volume = rig.volume("linear", 16)?;
    let request = |capabilities: Vec<csi::VolumeCapability>| csi::ValidateVolumeCapabilitiesRequest {
        volume_id: volume.id.clone(),
        volume_context: volume.context.clone(),
        volume_capabilities: capabilities,
        parameters: map(&[("pool", "linear")]),
        ..Default::default()
    };
    let ask = |request| rig.csi().validate_volume_capabilities(request).accepted("ValidateVolumeCapabilities");
    let good = request(vec![ext4()]);
    let confirmed = ask(good.clone())?.confirmed.ok_or_else(|| Trouble::wrong("what is supported is not confirmed"))?;
    assert_eq!(confirmed.volume_capabilities, good.volume_capabilities);
    assert_eq!(confirmed.volume_context, good.volume_context);
    assert_eq!(confirmed.parameters, good.parameters);
    let bad = ask(request(vec![ext4(), mount("ext4", Mode::MultiNodeMultiWriter)]))?;
    assert!(bad.confirmed.is_none() && !bad.message.is_empty());
    rig.rejects(&[Code::InvalidArgument], "no capability", |csi| csi.validate_volume_capabilities(request(vec![])))?;
    let missing = csi::ValidateVolumeCapabilitiesRequest { volume_id: "fake-vol-id".to_owned(), ..request(vec![ext4()]) };
    rig.rejects(&[Code::NotFound], "an unknown volume", |csi| csi.validate_volume_capabilities(missing))?;
    volume.delete()?;
    rig.finish()?;
    covers!(33)
}

#[test]
fn a_new_volume_never_shows_old_bytes() -> Result<()> {
    let rig = Rig::thin()?;
    // Fill the free space of the volume group and of the thin pool: every byte is set.
    let group = rig.vg.name.as_str();
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "128m", "-n", "former", group])?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Wn", "-V", "128m", "-n", "former-thin", "--thinpool", "pool", group])?;
    for former in ["former", "former-thin"] {
        rig.vg.with_active(former, |device| set_every_byte(device, 128))?;
        vg::lvm(&["lvremove", "-qq", "-y", &format!("{group}/{former}")])?;
    }
    for pool in ["linear", "thin"] {
        let mut raw = rig.raw(pool, 64)?;
        let target = raw.up("pod")?;
        assert_zero(&target, raw.size(), &format!("a raw volume in the pool {pool}"))?;
        raw.expand(96 * MIB, "pod")?;
        assert_zero(&target, 96 * MIB, &format!("the added space in the pool {pool}"))?;
        raw.down("pod")?;
    }
    // Under a filesystem: signatures in old bytes must not matter, and the requested filesystem is made.
    let mut volume = rig.volume("linear", 64)?;
    let target = volume.up("pod")?;
    assert_eq!(testkit::mounts::mount_at(&target)?.map(|mount| mount.filesystem).as_deref(), Some("ext4"));
    volume.down("pod")?;
    rig.finish()?;
    covers!(30)
}

/// Sets every byte in the first `mib` MiB of a device, down to the disk.
fn set_every_byte(device: &Path, mib: usize) -> Result<()> {
    let failed = || Trouble::io(format!("writing to {}", device.display()));
    let mut file = File::options().write(true).open(device).map_err(failed())?;
    let pattern = vec![0xa5; 1 << 20];
    for _ in 0..mib {
        file.write_all(&pattern).map_err(failed())?;
    }
    file.sync_all().map_err(failed())
}

/// Fails unless the first `bytes` bytes of a device are zero on the disk.
fn assert_zero(device: &Path, bytes: u64, what: &str) -> Result<()> {
    tool::drop_caches()?;
    let same = tool::run("cmp", &[&format!("--bytes={bytes}"), &device.display().to_string(), "/dev/zero"]);
    same.map(drop).map_err(|trouble| Trouble::wrong(format!("old bytes in {what}: {trouble:?}")))
}

#[test]
fn many_creations_and_deletions_at_once_all_come_true() -> Result<()> {
    const MANY: usize = 100;
    let rig = Rig::linear()?;
    let requests: Vec<_> = (0..MANY).map(|_| create(&rig.name(), "linear", 4 * MIB, ext4())).collect();
    let csi = rig.csi().clone();
    let answers: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = requests.iter().map(|request| scope.spawn(|| csi.create_volume(request.clone()))).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    let mut ids = BTreeSet::new();
    for answer in answers {
        let answer = answer.map_err(|_| Trouble::wrong("a caller panicked"))?.accepted("CreateVolume")?;
        ids.insert(answer.volume.unwrap_or_default().volume_id);
    }
    assert_eq!(ids.len(), MANY);
    assert_eq!(rig.vg.lvs()?.len(), MANY);
    // Delete each volume twice at once: the calls serialize or abort, and in the end it is gone.
    let busy: usize = thread::scope(|scope| {
        let delete = |id: &String| csi.delete_volume(csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() });
        let running: Vec<_> = ids.iter().chain(&ids).map(|id| scope.spawn(move || delete(id))).collect();
        let codes = running.into_iter().filter_map(|call| call.join().ok()).filter_map(std::result::Result::err);
        codes.inspect(|status| assert_eq!(status.code(), Code::Aborted, "{status:?}")).count()
    });
    let gone = tool::wait("all volumes to be gone", LIMIT, || Ok(rig.vg.lvs()?.is_empty().then_some(())));
    gone.map_err(|trouble| Trouble::wrong(format!("{trouble} ({busy} calls were aborted)")))?;
    rig.finish()?;
    covers!(3, 90)
}
