//! Random requests to every call: good ones with some fields replaced. No panic, no internal error for bad input, nothing
//! half-made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use lvm_csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use testkit::client::{Csi, block, from_snapshot, from_volume, map, mount, mount_with, range};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, text};
use testkit::machine::Machine;
use testkit::sample;
use tonic::{Code, Status};

use crate::rig::{MIB, Rig};

/// Number of calls. A long run makes ten times as many.
const CALLS: u32 = 300;

/// Makes choices from random bytes. Small bytes choose the first, good value, so a failing request shrinks to what is wrong.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn number(&mut self) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        (*first).into()
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        let at = self.number();
        let bad = values.len() - 1;
        values[if at < 160 || bad == 0 { 0 } else { 1 + (at - 160) % bad }].clone()
    }

    fn any<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.number() % values.len()].clone()
    }
}

/// The values that requests are made of.
struct World {
    ids: Vec<String>,
    snapshots: Vec<String>,
    paths: Vec<String>,
    context: HashMap<String, String>,
}

impl World {
    fn id(&self, choices: &mut Choices<'_>) -> String {
        let known = choices.any(&self.ids);
        let other = known.replace("/pvc-", "/pvc-absent-");
        let long = format!("{known}{}", "x".repeat(5000));
        choices.of(&[known.clone(), String::new(), "x".to_owned(), other, known.to_lowercase(), format!("{known}/.."), long])
    }

    fn path(&self, choices: &mut Choices<'_>) -> String {
        choices.any(&self.paths)
    }

    fn context(&self, choices: &mut Choices<'_>) -> HashMap<String, String> {
        let mut changed = self.context.clone();
        if let Some(value) = changed.values_mut().next() {
            value.push('x');
        }
        choices.of(&[self.context.clone(), HashMap::new(), changed, map(&[("k", "v")])])
    }

    fn source(&self, choices: &mut Choices<'_>) -> Option<csi::VolumeContentSource> {
        let snapshot = choices.any(&self.snapshots);
        let volume = self.id(choices);
        let none = Some(csi::VolumeContentSource { r#type: None });
        choices.of(&[None, from_snapshot(&snapshot), from_volume(&volume), from_snapshot("x"), none])
    }
}

fn capability(choices: &mut Choices<'_>) -> Option<csi::VolumeCapability> {
    let mode = |mode| Some(AccessMode { mode });
    let access = |access_type| csi::VolumeCapability { access_mode: mode(1), access_type };
    let group = MountVolume { volume_mount_group: "1000".to_owned(), ..Default::default() };
    let good = choices.any(&[mount("ext4", Mode::SingleNodeWriter), block(Mode::SingleNodeWriter)]);
    choices.of(&[
        Some(good.clone()),
        None,
        Some(access(None)),
        Some(access(Some(AccessType::Mount(group)))),
        Some(csi::VolumeCapability { access_mode: None, ..good.clone() }),
        Some(csi::VolumeCapability { access_mode: mode(99), ..good }),
        Some(mount("ntfs", Mode::SingleNodeWriter)),
        Some(mount("xfs", Mode::MultiNodeMultiWriter)),
        Some(mount("ext4", Mode::SingleNodeReaderOnly)),
        Some(mount_with("ext4", Mode::SingleNodeWriter, &["noatime", "bind", "loop=/dev/loop0"])),
        Some(mount_with("ext4", Mode::SingleNodeWriter, &["noatime"])),
    ])
}

fn size(choices: &mut Choices<'_>) -> Option<csi::CapacityRange> {
    let raw = |required_bytes, limit_bytes| Some(csi::CapacityRange { required_bytes, limit_bytes });
    choices.of(&[
        Some(range(32 * MIB, 0)),
        None,
        raw(-1, 0),
        raw(0, i64::MIN),
        raw(i64::MAX, i64::MAX),
        raw(i64::MAX, 0),
        raw(0, 1),
        raw(1, 1),
        raw(2, 1),
        raw(33 << 20, 33 << 20),
        raw(0, 0),
    ])
}

fn name(choices: &mut Choices<'_>) -> String {
    let good = choices.any(&["pvc-1", "pvc-2", "käse / .. -x"]);
    choices.of(&[good.to_owned(), String::new(), "a\0b".to_owned(), "x".repeat(129), "snapshot-1".to_owned(), "..".to_owned()])
}

fn parameters(choices: &mut Choices<'_>) -> HashMap<String, String> {
    let pool = choices.any(&["linear", "thin"]);
    let large = "x".repeat(5000);
    choices.of(&[
        map(&[("pool", pool)]),
        HashMap::new(),
        map(&[("pool", "absent")]),
        map(&[("pool", pool), ("colour", "red")]),
        map(&[("csi.storage.k8s.io/fstype", "ntfs")]),
        map(&[("pool", &large)]),
    ])
}

fn done<T>(answer: std::result::Result<T, Status>) -> std::result::Result<(), Status> {
    answer.map(drop)
}

/// Makes the call that the choices select. Returns its text and its answer.
fn call(csi: &Csi, world: &World, bytes: &[u8]) -> (String, std::result::Result<(), Status>) {
    let choices = &mut Choices(bytes);
    macro_rules! send {
        ($method:ident, $request:ident { $($field:ident: $value:expr),* $(,)? }) => {{
            let mut request = csi::$request::default();
            $(request.$field = $value;)*
            (format!("{request:?}"), done(csi.$method(request)))
        }};
    }
    match choices.number() % 17 {
        0 | 1 => send!(
            create_volume,
            CreateVolumeRequest {
                name: name(choices),
                capacity_range: size(choices),
                volume_capabilities: capability(choices).into_iter().collect(),
                parameters: parameters(choices),
                volume_content_source: world.source(choices),
                mutable_parameters: choices.of(&[HashMap::new(), map(&[("iops", "1")])]),
            }
        ),
        2 => send!(delete_volume, DeleteVolumeRequest { volume_id: world.id(choices) }),
        3 => send!(
            controller_publish_volume,
            ControllerPublishVolumeRequest {
                volume_id: world.id(choices),
                node_id: choices.of(&["node-a".to_owned(), String::new(), "node-b".to_owned(), "x".repeat(300)]),
                volume_capability: capability(choices),
                readonly: choices.of(&[false, true]),
            }
        ),
        4 => send!(
            controller_unpublish_volume,
            ControllerUnpublishVolumeRequest {
                volume_id: world.id(choices),
                node_id: choices.of(&["node-a".to_owned(), String::new(), "node-b".to_owned()]),
            }
        ),
        5 => send!(
            validate_volume_capabilities,
            ValidateVolumeCapabilitiesRequest {
                volume_id: world.id(choices),
                volume_capabilities: capability(choices).into_iter().collect(),
                parameters: parameters(choices),
            }
        ),
        6 => send!(
            list_volumes,
            ListVolumesRequest {
                max_entries: choices.of(&[0, -1, 1, i32::MAX]),
                starting_token: choices.of(&[String::new(), "x".to_owned(), "-1".to_owned()]),
            }
        ),
        7 => send!(
            get_capacity,
            GetCapacityRequest {
                volume_capabilities: capability(choices).into_iter().collect(),
                parameters: parameters(choices),
            }
        ),
        8 => send!(
            create_snapshot,
            CreateSnapshotRequest {
                name: name(choices),
                source_volume_id: world.id(choices),
                parameters: choices.of(&[HashMap::new(), map(&[("colour", "red")])]),
            }
        ),
        9 => {
            let snapshot = choices.any(&world.snapshots);
            send!(
                delete_snapshot,
                DeleteSnapshotRequest {
                    snapshot_id: choices.of(&[snapshot, String::new(), "x".to_owned(), world.ids[0].clone()]),
                }
            )
        }
        10 => send!(
            list_snapshots,
            ListSnapshotsRequest {
                max_entries: choices.of(&[0, -1, 1]),
                snapshot_id: choices.of(&[String::new(), world.snapshots[0].clone(), "x".to_owned()]),
                source_volume_id: choices.of(&[String::new(), world.ids[0].clone(), "x".to_owned()]),
                starting_token: choices.of(&[String::new(), "x".to_owned()]),
            }
        ),
        11 => send!(
            controller_expand_volume,
            ControllerExpandVolumeRequest {
                volume_id: world.id(choices),
                capacity_range: size(choices),
                volume_capability: choices.of(&[None, Some(block(Mode::MultiNodeMultiWriter))]),
            }
        ),
        12 => send!(
            node_stage_volume,
            NodeStageVolumeRequest {
                volume_id: world.id(choices),
                publish_context: world.context(choices),
                staging_target_path: world.path(choices),
                volume_capability: capability(choices),
            }
        ),
        13 => send!(
            node_unstage_volume,
            NodeUnstageVolumeRequest { volume_id: world.id(choices), staging_target_path: world.path(choices) }
        ),
        14 => send!(
            node_publish_volume,
            NodePublishVolumeRequest {
                volume_id: world.id(choices),
                publish_context: world.context(choices),
                staging_target_path: world.path(choices),
                target_path: world.path(choices),
                volume_capability: capability(choices),
                readonly: choices.of(&[false, true]),
            }
        ),
        15 => send!(
            node_unpublish_volume,
            NodeUnpublishVolumeRequest { volume_id: world.id(choices), target_path: world.path(choices) }
        ),
        _ => {
            let request = csi::NodeExpandVolumeRequest {
                volume_id: world.id(choices),
                volume_path: world.path(choices),
                capacity_range: size(choices),
                ..Default::default()
            };
            let stats = csi::NodeGetVolumeStatsRequest {
                volume_id: request.volume_id.clone(),
                volume_path: request.volume_path.clone(),
                ..Default::default()
            };
            if choices.number() % 2 == 0 {
                (format!("{stats:?}"), done(csi.node_get_volume_stats(stats)))
            } else {
                (format!("{request:?}"), done(csi.node_expand_volume(request)))
            }
        }
    }
}

/// Judges one answer. Returns the current state of the machine.
fn judge(rig: &Rig, before: Machine, what: &str, answer: std::result::Result<(), Status>) -> Result<Machine> {
    // A driver that does not answer has died from the call.
    rig.csi().probe(csi::ProbeRequest {}).map_err(|status| Trouble::wrong(format!("after {what}: Probe said {status}")))?;
    let now = Machine::look(&rig.scope)?;
    let Err(status) = answer else { return Ok(now) };
    let said = format!("{what}\nwas answered with {:?}: {}", status.code(), status.message());
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        // CSI's code for an invalid token. Nothing else runs here that could collide.
        | Code::Aborted => {
            ensure(status.code() != Code::Aborted || status.message().contains("starting_token"), || said.clone())?;
            ensure(!status.message().is_empty() && status.message().len() < 4096, || format!("{said}: wrong length of message"))?;
            let found = before.differences(&now);
            ensure(found.is_empty(), || format!("{said}, but:\n  {}", found.join("\n  ")))?;
            Ok(now)
        }
        _ => Err(Trouble::wrong(said)),
    }
}

/// Takes down everything the calls have made.
fn take_down(rig: &Rig, paths: &[String], first: &[Volume]) -> Result<()> {
    let csi = rig.csi();
    let ids = || -> Result<Vec<String>> {
        let listed = csi.list_volumes(csi::ListVolumesRequest::default());
        let entries = listed.map_err(|status| Trouble::wrong(format!("ListVolumes: {status}")))?.entries;
        Ok(entries.into_iter().filter_map(|entry| Some(entry.volume?.volume_id)).collect())
    };
    // Calls that expect another volume at a path are rightly refused. What counts is that nothing is left.
    for id in ids()? {
        for path in paths.iter().filter(|path| path.starts_with('/')) {
            let request = csi::NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path: path.clone() };
            let _ = csi.node_unpublish_volume(request);
        }
        for path in paths.iter().filter(|path| path.starts_with('/')) {
            let request = csi::NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path: path.clone() };
            let _ = csi.node_unstage_volume(request);
        }
        let request = csi::ControllerUnpublishVolumeRequest { volume_id: id.clone(), ..Default::default() };
        let _ = csi.controller_unpublish_volume(request);
    }
    let snapshots = csi.list_snapshots(csi::ListSnapshotsRequest::default());
    let snapshots = snapshots.map_err(|status| Trouble::wrong(format!("ListSnapshots: {status}")))?;
    for snapshot in snapshots.entries.into_iter().filter_map(|entry| entry.snapshot) {
        testkit::flow::delete_snapshot(csi, &snapshot.snapshot_id)?;
    }
    for id in ids()? {
        let answer = csi.delete_volume(csi::DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() });
        answer.map_err(|status| Trouble::wrong(format!("deleting {id} in the end: {status}")))?;
    }
    // Empty directories of the orchestrator. A directory that is not empty stays and is reported.
    for path in first.iter().flat_map(|volume| [volume.staging(), volume.target("pod")]) {
        for above in path.ancestors().take_while(|above| *above != rig.places.root) {
            let _ = fs::remove_dir(above);
        }
    }
    Ok(())
}

#[test]
fn random_requests_make_no_panic_no_error_of_ours_and_nothing_by_halves() -> Result<()> {
    let rig = Rig::thin()?;
    let mut used = rig.volume("thin", 32)?;
    let mut raw = rig.raw("linear", 8)?;
    let idle = rig.volume("linear", 32)?;
    used.up("pod")?;
    raw.up("pod")?;
    let snapshot = used.snapshot("cut")?.snapshot_id;
    let fresh = rig.places.root.join("fresh");
    let mut paths: Vec<String> = [&used, &raw].iter().flat_map(|v| [text(&v.staging()), text(&v.target("pod"))]).collect();
    paths.extend([text(&fresh), "relative".to_owned(), String::new(), format!("{}/../x", text(&fresh)), "/".to_owned()]);
    paths.extend(["/proc/1/root".to_owned(), "/dev/null".to_owned(), format!("/{}", "x".repeat(5000)), "/a\0b".to_owned()]);
    let world = World {
        ids: [&used, &raw, &idle].map(|volume| volume.id.clone()).to_vec(),
        snapshots: vec![snapshot],
        paths,
        context: used.publish.clone(),
    };
    let cases = if sample::long() { CALLS * 10 } else { CALLS };
    let rng_seed = RngSeed::Fixed(sample::seed());
    let config = Config { cases, rng_seed, failure_persistence: None, max_shrink_iters: 64, ..Config::default() };
    let last = RefCell::new(Some(Machine::look(&rig.scope)?));
    let ran = TestRunner::new(config).run(&vec(any::<u8>(), 16), |bytes| {
        let before = last.take().map_or_else(|| Machine::look(&rig.scope), Ok);
        let (what, answer) = call(rig.csi(), &world, &bytes);
        let now = before.and_then(|before| judge(&rig, before, &what, answer));
        last.replace(Some(now.map_err(|trouble| TestCaseError::fail(format!("{trouble:?}")))?));
        Ok(())
    });
    ran.map_err(|failed| Trouble::wrong(failed.to_string()))?;
    let log = rig.driver.log()?;
    ensure(!log.contains("panicked"), || format!("a thread of the driver panicked:\n{}", rig.driver.tail()))?;
    take_down(&rig, &world.paths, &[used, raw])?;
    let _ = fs::remove_dir(&fresh);
    rig.finish()
}
