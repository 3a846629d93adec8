//! One volume group, a driver in one process or in two of which one can die, and the calls about one volume and its copies.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::certs::{self, Authority};
use testkit::client::{Accepted, Csi, block, create, from_snapshot, from_volume, map, mount};
use testkit::driver::{Driver, NAME, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot, text, tidy};
use testkit::signature::write_at;
use testkit::{lab, shim, tool};

use crate::rig::{DRIVER, MIB, POOL_MIB, Rig};
use crate::state::State;

/// Size of the volume, in MiB.
const SIZE: u64 = 16;
/// Its size after an expansion and the size of a larger copy, in MiB.
const LARGER: u64 = 24;
const DATA: &str = "acknowledged";
/// ID of the inline ephemeral volume.
const INLINE: &str = "csi-0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b";
/// The pod that the volume is published to.
const POD: &str = "pod";
/// How long a caller waits for an answer that must not come.
const SHORT: Duration = Duration::from_secs(1);
/// The node when the roles are apart, and its agent's address.
const NODE: &str = "node-a";
const AGENT: &str = "127.0.0.1:9811";

/// The pool, and how the volume is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Thin or linear.
    pub(crate) thin: bool,
    /// A raw block device or a filesystem.
    pub(crate) block: bool,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [
        Kind { thin: true, block: false },
        Kind { thin: true, block: true },
        Kind { thin: false, block: false },
        Kind { thin: false, block: true },
    ];

    /// The name, such as `thin mount`.
    pub(crate) fn name(self) -> &'static str {
        match (self.thin, self.block) {
            (true, false) => "thin mount",
            (true, true) => "thin block",
            (false, false) => "linear mount",
            (false, true) => "linear block",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Delete,
    Attach,
    Detach,
    Stage,
    Unstage,
    Publish,
    PublishReadOnly,
    Unpublish,
    /// In the controller, while the volume is published.
    Expand,
    NodeExpand,
    Snapshot,
    DeleteSnapshot,
    Restore,
    RestoreLarger,
    Clone,
    /// Deletes the restored or cloned volume.
    DeleteCopy,
    /// Of an inline ephemeral volume.
    PublishInline,
    UnpublishInline,
}

/// Which of the two roles dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mortal {
    /// The node service and its agent.
    Node,
    Controller,
}

/// See the module's description.
pub(crate) struct Scene {
    /// With the driver, or with the node when the roles are apart.
    pub(crate) rig: Rig,
    controller: Option<Driver>,
    mortal: Mortal,
    /// Whether a crashed call is also followed by its inverse.
    pub(crate) inverses: bool,
    pub(crate) kind: Kind,
    name: String,
    volume: RefCell<Option<Volume>>,
    crash: PathBuf,
    /// Number of deaths.
    pub(crate) died: Cell<usize>,
    /// The caller's deadline, where it must learn soon that there is no answer yet.
    patience: Cell<Option<Duration>>,
    /// Tools that have outlived a driver.
    slow: RefCell<BTreeSet<String>>,
}

impl Scene {
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        Self::on(if kind.thin { Rig::thin()? } else { Rig::linear()? }, kind)
    }

    /// On a rig that exists already.
    pub(crate) fn on(mut rig: Rig, kind: Kind) -> Result<Self> {
        let crash = lab::fresh("crash")?;
        rig.driver.stop()?;
        rig.driver = doomed(rig.driver.start(), &crash).start()?;
        Ok(Self::of(rig, None, Mortal::Node, kind, crash))
    }

    /// On a node and a controller, joined by mutual TLS.
    pub(crate) fn apart(kind: Kind, mortal: Mortal) -> Result<Self> {
        let (crash, tls) = (lab::fresh("crash")?, lab::fresh("tls")?);
        tool::run("ip", &["link", "set", "lo", "up"])?;
        let authority = Authority::new()?;
        let node = authority.issue(&tls.join("node"), &certs::agent(NAME, NODE))?;
        let controller = authority.issue(&tls.join("controller"), &certs::controller(NAME))?;
        let can_die = |start: Start, who| if who == mortal { doomed(&start, &crash) } else { start };
        let rig = Rig::start(&[lab::disk(0)?], kind.thin.then_some(POOL_MIB), |home, vg| {
            Ok(can_die(Start::on_vg(Path::new(DRIVER), home, &vg.name).as_node(NODE, AGENT, &node), Mortal::Node))
        })?;
        let start = Start::controller(Path::new(DRIVER), &lab::fresh("controller")?, &[(NODE, AGENT)], &controller);
        let controller = can_die(start, Mortal::Controller).start()?;
        Ok(Self::of(rig, Some(controller), mortal, kind, crash))
    }

    fn of(rig: Rig, controller: Option<Driver>, mortal: Mortal, kind: Kind, crash: PathBuf) -> Self {
        let name = rig.name();
        Self {
            rig,
            controller,
            mortal,
            inverses: true,
            kind,
            name,
            volume: RefCell::new(None),
            crash,
            died: Cell::new(0),
            patience: Cell::default(),
            slow: RefCell::default(),
        }
    }

    /// The services of the driver, whichever process serves each.
    fn csi(&self) -> Csi {
        let csi = match &self.controller {
            Some(controller) => self.rig.csi().with_controller(controller.csi()),
            None => self.rig.csi().clone(),
        };
        self.patience.get().map_or_else(|| csi.clone(), |patience| csi.deadline(patience))
    }

    /// Makes a call with a short deadline.
    pub(crate) fn call_shortly(&self, call: Call) -> Result<()> {
        self.patience.set(Some(SHORT));
        let answer = self.call(call);
        self.patience.set(None);
        answer
    }

    /// Returns the call's tools that have not outlived a driver yet.
    pub(crate) fn fast_tools(&self, effects: &[Effect]) -> Vec<&'static str> {
        let tool = |effect: &Effect| {
            let name = shim::TOOLS.into_iter().find(|name| *name == effect.name)?;
            self.slow.borrow_mut().insert(effect.name.clone()).then_some(name)
        };
        effects.iter().filter_map(tool).collect()
    }

    /// The process that dies.
    pub(crate) fn mortal(&mut self) -> &mut Driver {
        match (&mut self.controller, self.mortal) {
            (Some(controller), Mortal::Controller) => controller,
            _ => &mut self.rig.driver,
        }
    }

    /// Waits until the controller can reach the node. The node answers its own calls before that.
    pub(crate) fn joined(&self) -> Result<()> {
        if self.controller.is_none() {
            return Ok(());
        }
        let nothing = csi::DeleteVolumeRequest { volume_id: self.handle("pvc-none"), ..Default::default() };
        let ask = |_: &Csi| self.csi().delete_volume(nothing.clone()).accepted("DeleteVolume");
        self.rig.until_ok("the controller to reach the node", ask).map(drop)
    }

    /// Stops the driver. Fails if anything is left.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(controller) = &mut self.controller {
            controller.stop()?;
        }
        self.rig.finish()
    }

    /// Returns the state of the machine.
    pub(crate) fn state(&self) -> Result<State> {
        State::look(&self.rig.vg, &self.rig.places, &self.rig.driver.start().state().join("attachments"))
    }

    fn handle(&self, name: &str) -> String {
        format!("{}/{name}", self.rig.vg.uuid)
    }

    fn request(&self, name: &str, mib: u64) -> csi::CreateVolumeRequest {
        let mode = Mode::SingleNodeMultiWriter;
        let capability = if self.kind.block { block(mode) } else { mount("ext4", mode) };
        create(name, if self.kind.thin { "thin" } else { "linear" }, mib * MIB, capability)
    }

    pub(crate) fn id(&self) -> String {
        self.handle(&self.name)
    }

    pub(crate) fn wish(&self) -> csi::CreateVolumeRequest {
        self.request(&self.name, SIZE)
    }

    fn copy(&self) -> String {
        self.name.replace("pvc-0", "pvc-c")
    }

    /// The handle of the snapshot. Its LV may not have a name that LVM reserves.
    fn snapshot_handle(&self) -> String {
        self.handle(&self.name.replace("pvc-", "snap-"))
    }

    fn snapshot(&self) -> String {
        self.name.replace("pvc-", "snapshot-")
    }

    /// Makes a call once.
    pub(crate) fn call(&self, call: Call) -> Result<()> {
        let csi = &self.csi();
        match call {
            Call::PublishInline => return self.publish_inline(),
            Call::UnpublishInline => return self.unpublish_inline(),
            _ => {}
        }
        let mut slot = self.volume.borrow_mut();
        if slot.is_none() || call == Call::Create {
            let context = slot.take().map(|volume| volume.publish).unwrap_or_default();
            let mut made = Volume::create(csi, &self.rig.places, &self.name, self.wish())?;
            ensure(made.id == self.id(), || format!("unexpected handle {}", made.id))?;
            made.publish = context;
            *slot = Some(made);
            if call == Call::Create {
                return Ok(());
            }
        }
        let Some(volume) = slot.as_mut() else { return Err(Trouble::wrong("there is no volume")) };
        *volume = volume.through(csi);
        let copy = |mib: u64, source| {
            let request = csi::CreateVolumeRequest { volume_content_source: source, ..self.request(&self.copy(), mib) };
            csi.create_volume(request).accepted("CreateVolume").map(drop)
        };
        let source = from_snapshot(&self.snapshot_handle());
        match call {
            Call::Create | Call::PublishInline | Call::UnpublishInline => Ok(()),
            Call::Delete => volume.delete(),
            Call::Attach => volume.attach(),
            Call::Detach => volume.detach(),
            Call::Stage => volume.stage(),
            Call::Unstage => volume.unstage(),
            Call::Publish => volume.publish(POD).map(drop),
            Call::PublishReadOnly => {
                volume.make_parent(POD)?;
                let request = csi::NodePublishVolumeRequest { readonly: true, ..volume.publish_request(POD) };
                csi.node_publish_volume(request).accepted("NodePublishVolume").map(drop)
            }
            Call::Unpublish => volume.unpublish(POD),
            Call::Expand => {
                let answer =
                    csi.controller_expand_volume(volume.expand_request(LARGER * MIB)).accepted("ControllerExpandVolume")?;
                volume.capacity = answer.capacity_bytes;
                Ok(())
            }
            Call::NodeExpand => csi.node_expand_volume(volume.node_expand_request(POD)).accepted("NodeExpandVolume").map(drop),
            Call::Snapshot => {
                let made = volume.snapshot(&self.snapshot())?;
                ensure(made.snapshot_id == self.snapshot_handle(), || format!("unexpected handle {}", made.snapshot_id))
            }
            Call::DeleteSnapshot => delete_snapshot(csi, &self.snapshot_handle()),
            Call::Restore => copy(SIZE, source),
            Call::RestoreLarger => copy(LARGER, source),
            Call::Clone => copy(SIZE, from_volume(&volume.id)),
            Call::DeleteCopy => {
                let request = csi::DeleteVolumeRequest { volume_id: self.handle(&self.copy()), ..Default::default() };
                csi.delete_volume(request).accepted("DeleteVolume").map(drop)
            }
        }
    }

    /// Where the inline volume is published. The directory above belongs to its pod.
    fn inline_target(&self) -> PathBuf {
        self.rig.places.target(POD, "inline")
    }

    fn publish_inline(&self) -> Result<()> {
        let target = self.inline_target();
        let parent = target.parent().unwrap_or(&target);
        fs::create_dir_all(parent).map_err(Trouble::io(format!("making {}", parent.display())))?;
        let request = csi::NodePublishVolumeRequest {
            volume_id: INLINE.to_owned(),
            target_path: text(&target),
            volume_capability: Some(mount("ext4", Mode::SingleNodeWriter)),
            volume_context: map(&[("csi.storage.k8s.io/ephemeral", "true")]),
            ..Default::default()
        };
        self.csi().node_publish_volume(request).accepted("NodePublishVolume").map(drop)
    }

    fn unpublish_inline(&self) -> Result<()> {
        let target = self.inline_target();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: INLINE.to_owned(), target_path: text(&target) };
        self.csi().node_unpublish_volume(request).accepted("NodeUnpublishVolume")?;
        tidy(target.parent().unwrap_or(&target), &self.rig.places.root)
    }

    /// Repeats a call until it returns OK, as the sidecars and kubelet do.
    pub(crate) fn until_ok(&self, call: Call) -> Result<()> {
        self.rig.until_ok(&format!("{call:?}"), |_| self.call(call))
    }

    /// Writes to the published volume and flushes it to the disk.
    pub(crate) fn write(&self) -> Result<()> {
        let slot = self.volume.borrow();
        let Some(volume) = slot.as_ref() else { return Err(Trouble::wrong("there is no volume")) };
        let target = volume.target(POD);
        if self.kind.block {
            return write_at(&target, 0, DATA.as_bytes());
        }
        fs::write(target.join("kept"), DATA).map_err(Trouble::io("writing into the volume"))?;
        tool::drop_caches()
    }

    /// Clears the recorded effects.
    pub(crate) fn forget(&self) -> Result<()> {
        fs::write(self.crash.join("effects"), "").map_err(Trouble::io("emptying the list of effects"))
    }

    /// Returns the effects since [`Scene::forget`].
    pub(crate) fn effects(&self) -> Result<Vec<Effect>> {
        let text = fs::read_to_string(self.crash.join("effects")).map_err(Trouble::io("reading the list of effects"))?;
        text.lines().map(Effect::parse).collect()
    }

    /// Sets where the driver dies next.
    pub(crate) fn arm(&self, text: &str) -> Result<()> {
        fs::write(self.crash.join("arm"), text).map_err(Trouble::io("arming the driver"))
    }

    /// Whether the call had one effect fewer than when recorded, and so ended before its last point: a driver that has reread the
    /// disks flushes them once more before its next change. If so, disarms the point, which now belongs to the next call.
    pub(crate) fn lacked_one(&self) -> Result<bool> {
        let arm = self.crash.join("arm");
        let lacked = fs::read_to_string(&arm).is_ok_and(|text| text.starts_with("0 "));
        if lacked {
            fs::remove_file(&arm).map_err(Trouble::io("disarming the driver"))?;
        }
        Ok(lacked)
    }

    /// Fails unless the driver died at the armed point.
    pub(crate) fn ensure_died(&mut self) -> Result<()> {
        let arm = self.crash.join("arm");
        let never = arm.exists();
        if never {
            let _ = fs::remove_file(&arm);
        }
        ensure(!never, || "the call has fewer effects than recorded".to_owned())?;
        self.mortal().kill()?;
        self.died.set(self.died.get() + 1);
        Ok(())
    }
}

/// The same start, for a driver that can die.
pub(crate) fn doomed(start: &Start, crash: &Path) -> Start {
    let mut start = start.clone();
    start.environment.push(("LVM_CSI_CRASH_DIR".to_owned(), crash.display().to_string()));
    start
}

#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) name: String,
    pub(crate) subject: String,
    /// Duration in milliseconds.
    pub(crate) ms: u64,
    /// Whether it ran a program.
    pub(crate) program: bool,
}

impl Effect {
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let [name, subject, ms, program] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(Trouble::wrong(format!("invalid effect: {line:?}")));
        };
        let ms = ms.parse().map_err(|_| Trouble::wrong(format!("invalid duration: {line:?}")))?;
        Ok(Self { name: name.to_owned(), subject: subject.to_owned(), ms, program: program == "program" })
    }
}
