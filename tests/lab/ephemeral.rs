//! Inline ephemeral volumes. They belong to a pod: publication makes them, unpublication removes them.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, Csi, block, mount, refused};
use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::text;
use testkit::mounts::mount_at;
use testkit::mounts::unmount_all;
use testkit::vg::{self, Lv};
use testkit::{lab, tool};
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, MIB, POOL_MIB, Rig};
use crate::undelivered::unbear;

/// A thin pool that allows inline volumes up to 512 MiB, a linear pool that allows them, and one that does not.
const POOLS: &str = "
housekeepingSeconds: 1
pools:
- name: scratch
  volumeGroup: labvg
  layout: thin
  thinPool: pool
  defaultSize: 64Mi
  ephemeral: true
  ephemeralMaxSize: 512Mi
- name: disk
  volumeGroup: labvg
  layout: linear
  defaultSize: 64Mi
  ephemeral: true
- name: kept
  volumeGroup: labvg
  layout: linear
  default: true
";

fn rig() -> Result<Rig> {
    Rig::start(&[lab::disk(0)?], Some(POOL_MIB), |home, _| Start::on_config(Path::new(DRIVER), home, POOLS))
}

/// Call this when all pods are gone.
fn finish(rig: Rig) -> Result<()> {
    fs::remove_dir(rig.places.root.join("pods")).map_err(Trouble::io("removing the directory of all pods"))?;
    rig.finish()
}

/// An inline volume and the calls that kubelet makes for it.
struct Inline {
    uid: String,
    id: String,
    target: PathBuf,
    root: PathBuf,
}

impl Inline {
    fn new(rig: &Rig, number: u32) -> Self {
        Self::below(&rig.places.root, number)
    }

    fn below(root: &Path, number: u32) -> Self {
        let uid = format!("0e0e0d0c-0b0a-4000-8000-{number:012x}");
        let root = root.join("pods").join(&uid);
        let target = root.join("volumes/kubernetes.io~csi/scratch/mount");
        Self { id: format!("csi-{number:064x}"), uid, target, root }
    }

    fn context(&self, said: &[(&str, &str)]) -> HashMap<String, String> {
        let of_kubelet = [
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web-0"),
            ("csi.storage.k8s.io/pod.namespace", "default"),
            ("csi.storage.k8s.io/pod.uid", &self.uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/serviceAccount.tokens", r#"{"":{"token":"eyJhbGciOi-not-for-a-log"}}"#),
        ];
        of_kubelet.iter().chain(said).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn request(&self, said: &[(&str, &str)]) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: text(&self.target),
            volume_capability: Some(mount("", Mode::SingleNodeWriter)),
            volume_context: self.context(said),
            secrets: HashMap::from([("password".to_owned(), "hunter2-not-for-a-log".to_owned())]),
            ..Default::default()
        }
    }

    fn make_parent(&self) -> Result<()> {
        let parent = self.target.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).map_err(Trouble::io(format!("making {}", parent.display())))
    }

    fn publish(&self, csi: &Csi, said: &[(&str, &str)]) -> Result<()> {
        self.make_parent()?;
        csi.node_publish_volume(self.request(said)).accepted("NodePublishVolume").map(drop)
    }

    fn unpublish(&self, csi: &Csi) -> Result<()> {
        let request = csi::NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path: text(&self.target) };
        csi.node_unpublish_volume(request).accepted("NodeUnpublishVolume").map(drop)
    }

    /// Removes the pod's directory, as kubelet does when the pod is gone.
    fn forget(&self) -> Result<()> {
        fs::remove_dir_all(&self.root).map_err(Trouble::io(format!("removing {}", self.root.display())))
    }
}

/// Returns the inline volumes of a group.
fn inline(rig: &Rig) -> Result<Vec<Lv>> {
    let mut lvs = rig.vg.lvs()?;
    lvs.retain(|lv| lv.tags.iter().any(|tag| tag.starts_with("csi.e=")));
    Ok(lvs)
}

#[test]
fn one_lives_from_its_publication_to_its_unpublication() -> Result<()> {
    let rig = rig()?;
    for (pool, filesystem, size) in [("scratch", "", 64), ("disk", "ext4", 64), ("disk", "xfs", 300)] {
        let pod = Inline::new(&rig, 1);
        let said = [("pool", pool)];
        let capability = Some(mount(filesystem, Mode::SingleNodeWriter));
        let request = || csi::NodePublishVolumeRequest { volume_capability: capability.clone(), ..pod.request(&said) };
        pod.make_parent()?;
        rig.csi().node_publish_volume(request()).accepted("NodePublishVolume")?;
        let mounted = mount_at(&pod.target)?.ok_or_else(|| Trouble::wrong("nothing is mounted"))?;
        let wanted = if filesystem.is_empty() { "ext4" } else { filesystem };
        assert_eq!(mounted.filesystem, wanted);
        let all = inline(&rig)?;
        assert_eq!(all.iter().map(|lv| lv.size / MIB).collect::<Vec<_>>(), [size]);
        assert!(all[0].tags.contains(&format!("csi.e={}", pod.root.display())), "{:?}", all[0].tags);
        fs::write(pod.target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
        rig.unchanged("published again", || rig.csi().node_publish_volume(request()).accepted("NodePublishVolume"))?;

        // Only its pod can see it.
        let list = rig.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
        assert!(list.entries.is_empty(), "{list:?}");
        let handle = format!("{}/{}", rig.vg.uuid, all[0].name);
        let delete = csi::DeleteVolumeRequest { volume_id: handle.clone(), ..Default::default() };
        rig.unchanged("deleted by a handle", || rig.csi().delete_volume(delete).accepted("DeleteVolume"))?;
        let get = csi::ControllerGetVolumeRequest { volume_id: handle };
        rig.rejects(&[Code::NotFound], "asked for by a handle", |csi| csi.controller_get_volume(get))?;
        let stats =
            csi::NodeGetVolumeStatsRequest { volume_id: pod.id.clone(), volume_path: text(&pod.target), ..Default::default() };
        let usage = rig.csi().node_get_volume_stats(stats).accepted("NodeGetVolumeStats")?.usage;
        assert!(usage.iter().all(|usage| usage.total > 0) && usage.len() == 2, "{usage:?}");

        pod.unpublish(rig.csi())?;
        assert!(!pod.target.exists() && inline(&rig)?.is_empty(), "something is left");
        rig.unchanged("unpublished again", || pod.unpublish(rig.csi()))?;
        pod.forget()?;
    }
    let log = rig.driver.log()?;
    assert!(!log.contains("eyJ") && !log.contains("hunter2"), "a secret of the pod is in the log");
    finish(rig)?;
    covers!(75)
}

#[test]
fn what_is_not_allowed_is_refused_by_its_name_and_leaves_nothing() -> Result<()> {
    let rig = rig()?;
    let pod = Inline::new(&rig, 1);
    pod.make_parent()?;
    for (code, said, word) in [
        (Code::InvalidArgument, &[("pool", "kept")][..], "volume_context[pool]"),
        (Code::InvalidArgument, &[("pool", "nowhere")], "volume_context[pool]"),
        (Code::InvalidArgument, &[], "volume_context[pool]"),
        (Code::InvalidArgument, &[("pool", "scratch"), ("size", "big")], "volume_context[size]"),
        (Code::OutOfRange, &[("pool", "scratch"), ("size", "513Mi")], "ephemeralMaxSize"),
        (Code::OutOfRange, &[("pool", "disk"), ("size", "11Gi")], "ephemeralMaxSize"),
        (Code::ResourceExhausted, &[("pool", "disk"), ("size", "8Gi")], "left"),
        (Code::InvalidArgument, &[("pool", "scratch"), ("volumegroup", "labvg")], "volume_context[volumegroup]"),
        (Code::InvalidArgument, &[("pool", "scratch"), ("Size", "64Mi")], "volume_context[Size]"),
    ] {
        let message = rig.rejects(&[code], &format!("{said:?}"), |csi| csi.node_publish_volume(pod.request(said)))?;
        assert!(message.contains(word), "{message}");
    }
    let said = [("pool", "scratch")];
    let with = |capability| csi::NodePublishVolumeRequest { volume_capability: Some(capability), ..pod.request(&said) };
    let raw = with(block(Mode::SingleNodeWriter));
    rig.rejects(&[Code::FailedPrecondition], "a block device", |csi| csi.node_publish_volume(raw))?;
    let other = csi::NodePublishVolumeRequest { volume_id: "some-id".to_owned(), ..pod.request(&said) };
    rig.rejects(&[Code::InvalidArgument], "an ID that kubelet does not make", |csi| csi.node_publish_volume(other))?;
    // A failure after the volume was made leaves no volume either.
    let flags = testkit::client::mount_with("ext4", Mode::SingleNodeWriter, &["context=\"nonsense\""]);
    refused(rig.csi().node_publish_volume(with(flags)), &[Code::InvalidArgument], "an invalid SELinux label")?;
    ensure(inline(&rig)?.is_empty() && !pod.target.exists(), || "the refused publication left a volume or a target".to_owned())?;
    pod.forget()?;
    finish(rig)
}

#[test]
fn a_reboot_keeps_it_and_a_readonly_one_takes_no_writes() -> Result<()> {
    let mut rig = rig()?;
    let (pod, reader) = (Inline::new(&rig, 1), Inline::new(&rig, 2));
    let said = [("pool", "scratch")];
    pod.publish(rig.csi(), &said)?;
    fs::write(pod.target.join("kept"), "kept").map_err(Trouble::io("writing into the volume"))?;
    tool::drop_caches()?;
    let before = inline(&rig)?[0].uuid.clone();
    rig.driver.kill()?;
    unmount_all(&rig.places.root)?;
    vg::lvm(&["vgchange", "-qq", "-an", &rig.vg.name])?;
    rig.driver.restart()?;
    pod.publish(rig.csi(), &said)?;
    assert_eq!(fs::read_to_string(pod.target.join("kept")).unwrap_or_default(), "kept");
    assert_eq!(inline(&rig)?[0].uuid, before);
    reader.make_parent()?;
    let request = csi::NodePublishVolumeRequest { readonly: true, ..reader.request(&said) };
    rig.csi().node_publish_volume(request).accepted("NodePublishVolume")?;
    assert!(fs::write(reader.target.join("x"), "x").is_err(), "a read-only volume takes writes");
    for pod in [&pod, &reader] {
        pod.unpublish(rig.csi())?;
        pod.forget()?;
    }
    finish(rig)
}

#[test]
fn one_that_its_thin_pool_does_not_know_is_made_again() -> Result<()> {
    let mut rig = rig()?;
    let pod = Inline::new(&rig, 1);
    let said = [("pool", "scratch")];
    for again in [true, false] {
        for half in [false, true] {
            pod.publish(rig.csi(), &said)?;
            // Take it back to the state just after its creation.
            unmount_all(&pod.root)?;
            let lv = inline(&rig)?[0].name.clone();
            let full = format!("{}/{lv}", rig.vg.name);
            vg::lvm(&["lvchange", "-qq", "-an", &full])?;
            vg::lvm(&["lvchange", "-qq", "--deltag", "csi.fs=ext4", "--addtag", "csi.fs=blank", &full])?;
            let handle = format!("{}/{lv}", rig.vg.uuid);
            unbear(&mut rig, &handle, half)?;
            if again {
                pod.publish(rig.csi(), &said)?;
            }
            pod.unpublish(rig.csi())?;
            assert!(inline(&rig)?.is_empty(), "the volume is left");
        }
    }
    pod.forget()?;
    finish(rig)?;
    covers!(6)
}

/// Waits until the driver has finished a collection. Each collection ends before the next begins.
fn looked(rig: &Rig) -> Result<()> {
    for number in [0xa, 0xb] {
        let sentinel = Inline::below(&rig.places.root.join("sentinel"), number);
        sentinel.publish(rig.csi(), &[("pool", "disk")])?;
        unmount_all(&sentinel.root)?;
        sentinel.forget()?;
        let mark = format!("csi.e={}", sentinel.root.display());
        let gone = || Ok((!inline(rig)?.iter().any(|lv| lv.tags.contains(&mark))).then_some(()));
        tool::wait("the volume of a pod that is gone to be collected", LIMIT, gone)?;
    }
    fs::remove_dir_all(rig.places.root.join("sentinel")).map_err(Trouble::io("removing the sentinel's directory"))
}

/// Returns the UIDs of the pods that have inline volumes.
fn pods(rig: &Rig) -> Result<Vec<String>> {
    let mark = format!("csi.e={}/", rig.places.root.join("pods").display());
    let of = |lv: Lv| lv.tags.iter().find_map(|tag| tag.strip_prefix(&mark).map(str::to_owned));
    let mut all: Vec<_> = inline(rig)?.into_iter().filter_map(of).collect();
    all.sort();
    Ok(all)
}

#[test]
fn only_what_no_pod_can_ask_for_is_collected() -> Result<()> {
    let mut rig = rig()?;
    let said = [("pool", "scratch")];
    let [mounted, waiting, held, gone] = [1, 2, 3, 4].map(|number| Inline::new(&rig, number));
    for pod in [&mounted, &waiting, &held, &gone] {
        pod.publish(rig.csi(), &said)?;
    }
    // A mount outside the pod's directory keeps its volume, as does a mount in another namespace.
    let elsewhere = rig.places.root.join("elsewhere");
    fs::create_dir(&elsewhere).map_err(Trouble::io("making a directory"))?;
    tool::run("mount", &["--bind", &text(&held.target), &text(&elsewhere)])?;
    rig.driver.kill()?;
    for pod in [&waiting, &held, &gone] {
        unmount_all(&pod.root)?;
    }
    held.forget()?;
    let (here, away) = (rig.places.root.join("pods"), rig.places.root.join("away"));
    unmount_all(&here)?;
    gone.forget()?;
    // While the pods' filesystem is not mounted, nobody can tell which pods are gone.
    fs::rename(&here, &away).map_err(Trouble::io("moving the pods away"))?;
    rig.driver.restart()?;
    looked(&rig)?;
    assert_eq!(pods(&rig)?.len(), 4, "the driver collected volumes while it could not see the pods");
    fs::rename(&away, &here).map_err(Trouble::io("moving the pods back"))?;
    mounted.publish(rig.csi(), &said)?;
    looked(&rig)?;
    assert_eq!(pods(&rig)?, [&mounted, &waiting, &held].map(|pod| pod.uid.clone()));
    tool::run("umount", &[text(&elsewhere)])?;
    looked(&rig)?;
    assert_eq!(pods(&rig)?, [&mounted, &waiting].map(|pod| pod.uid.clone()));
    for pod in [&mounted, &waiting] {
        pod.unpublish(rig.csi())?;
        pod.forget()?;
    }
    fs::remove_dir(&elsewhere).map_err(Trouble::io("removing a directory"))?;
    finish(rig)
}
