//! The path of one volume as kubelet and the sidecars walk it, with what they remember between the calls.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_proto::csi;

use crate::client::{Accepted, Csi, range};
use crate::error::{Result, Trouble};

/// Directories that the orchestrator owns on a node: kubelet's layout in small.
#[derive(Clone, Debug)]
pub struct Places {
    /// Above all staging and target paths.
    pub root: PathBuf,
}

impl Places {
    /// Where a volume is staged.
    pub fn staging(&self, name: &str) -> PathBuf {
        self.root.join("plugins").join(name).join("globalmount")
    }

    /// Where a volume is published for a pod.
    pub fn target(&self, pod: &str, name: &str) -> PathBuf {
        self.root.join("pods").join(pod).join("volumes").join(name).join("mount")
    }
}

/// A volume and what the orchestrator knows of it.
#[derive(Clone)]
pub struct Volume {
    csi: Csi,
    places: Places,
    /// Short name, in paths.
    pub name: String,
    /// Handle.
    pub id: String,
    /// Size in bytes as the driver told it last.
    pub capacity: i64,
    /// Context from its creation.
    pub context: HashMap<String, String>,
    /// How it is used.
    pub capability: csi::VolumeCapability,
    /// Node it is attached to.
    pub node: String,
    /// Context from the last attach.
    pub publish: HashMap<String, String>,
}

impl Volume {
    /// Creates a volume with the first capability of the request as the one it is used with.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn create(csi: &Csi, places: &Places, name: &str, request: csi::CreateVolumeRequest) -> Result<Self> {
        let capability = request.volume_capabilities.first().cloned().unwrap_or_default();
        let volume = csi.create_volume(request).accepted("CreateVolume")?.volume;
        let volume = volume.ok_or_else(|| Trouble::wrong("CreateVolume answered without a volume"))?;
        let known = Self::known(csi, places, name, capability, &volume.volume_id, volume.capacity_bytes);
        Ok(Self { context: volume.volume_context, ..known })
    }

    /// A volume that was created before, as the orchestrator remembers it.
    pub fn known(csi: &Csi, places: &Places, name: &str, capability: csi::VolumeCapability, id: &str, capacity: i64) -> Self {
        Self {
            csi: csi.clone(),
            places: places.clone(),
            name: name.to_owned(),
            id: id.to_owned(),
            capacity,
            context: HashMap::new(),
            capability,
            node: "node-a".to_owned(),
            publish: HashMap::new(),
        }
    }

    /// The same volume seen through another connection, as after a restart of the driver.
    pub fn through(&self, csi: &Csi) -> Self {
        Self { csi: csi.clone(), ..self.clone() }
    }

    /// The services it is seen through.
    pub fn csi(&self) -> &Csi {
        &self.csi
    }

    /// Staging path.
    pub fn staging(&self) -> PathBuf {
        self.places.staging(&self.name)
    }

    /// Target path for a pod.
    pub fn target(&self, pod: &str) -> PathBuf {
        self.places.target(pod, &self.name)
    }

    /// The name of its LV, as its handle tells it.
    pub fn lv(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        u64::try_from(self.capacity).unwrap_or_default()
    }

    /// Request to attach it.
    pub fn attach_request(&self) -> csi::ControllerPublishVolumeRequest {
        csi::ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: self.node.clone(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.context.clone(),
            ..Default::default()
        }
    }

    /// Attaches it and remembers the context.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn attach(&mut self) -> Result<()> {
        let answer = self.csi.controller_publish_volume(self.attach_request()).accepted("ControllerPublishVolume")?;
        self.publish = answer.publish_context;
        Ok(())
    }

    /// Request to stage it.
    pub fn stage_request(&self) -> csi::NodeStageVolumeRequest {
        csi::NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish.clone(),
            staging_target_path: text(&self.staging()),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.context.clone(),
            ..Default::default()
        }
    }

    /// Makes the staging directory, as the orchestrator has to.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_staging(&self) -> Result<()> {
        make(&self.staging())
    }

    /// Makes the staging directory and stages the volume.
    ///
    /// # Errors
    /// The directory cannot be made, or the driver refuses.
    pub fn stage(&self) -> Result<()> {
        self.make_staging()?;
        self.csi.node_stage_volume(self.stage_request()).accepted("NodeStageVolume").map(drop)
    }

    /// Request to publish it for a pod.
    pub fn publish_request(&self, pod: &str) -> csi::NodePublishVolumeRequest {
        csi::NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.publish.clone(),
            staging_target_path: text(&self.staging()),
            target_path: text(&self.target(pod)),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.context.clone(),
            ..Default::default()
        }
    }

    /// Makes the parent of a pod's target path, as the orchestrator has to.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_parent(&self, pod: &str) -> Result<()> {
        self.target(pod).parent().map_or(Ok(()), make)
    }

    /// Makes the parent of the target and publishes the volume for a pod; gives the target.
    ///
    /// # Errors
    /// The parent cannot be made, or the driver refuses.
    pub fn publish(&self, pod: &str) -> Result<PathBuf> {
        self.make_parent(pod)?;
        self.csi.node_publish_volume(self.publish_request(pod)).accepted("NodePublishVolume")?;
        Ok(self.target(pod))
    }

    /// Attaches, stages and publishes it for a pod; gives the target.
    ///
    /// # Errors
    /// As the three steps.
    pub fn up(&mut self, pod: &str) -> Result<PathBuf> {
        self.attach()?;
        self.stage()?;
        self.publish(pod)
    }

    /// Unpublishes it for a pod and removes the directory above the target, as the orchestrator does.
    ///
    /// # Errors
    /// The driver refuses, or left something in that directory.
    pub fn unpublish(&self, pod: &str) -> Result<()> {
        let target = self.target(pod);
        let request = csi::NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path: text(&target) };
        self.csi.node_unpublish_volume(request).accepted("NodeUnpublishVolume")?;
        target.parent().map_or(Ok(()), |parent| tidy(parent, &self.places.root))
    }

    /// Unstages it and removes the staging directory, as the orchestrator does.
    ///
    /// # Errors
    /// The driver refuses, or left something in that directory.
    pub fn unstage(&self) -> Result<()> {
        let request = csi::NodeUnstageVolumeRequest { volume_id: self.id.clone(), staging_target_path: text(&self.staging()) };
        self.csi.node_unstage_volume(request).accepted("NodeUnstageVolume")?;
        tidy(&self.staging(), &self.places.root)
    }

    /// Detaches it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn detach(&self) -> Result<()> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: self.node.clone(),
            ..Default::default()
        };
        self.csi.controller_unpublish_volume(request).accepted("ControllerUnpublishVolume").map(drop)
    }

    /// Deletes it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn delete(&self) -> Result<()> {
        let request = csi::DeleteVolumeRequest { volume_id: self.id.clone(), ..Default::default() };
        self.csi.delete_volume(request).accepted("DeleteVolume").map(drop)
    }

    /// Unpublishes it for a pod, unstages, detaches and deletes it.
    ///
    /// # Errors
    /// As the four steps.
    pub fn down(&self, pod: &str) -> Result<()> {
        self.unpublish(pod)?;
        self.unstage()?;
        self.detach()?;
        self.delete()
    }

    /// Request to grow it in the controller to a size in bytes.
    pub fn expand_request(&self, bytes: u64) -> csi::ControllerExpandVolumeRequest {
        csi::ControllerExpandVolumeRequest {
            volume_id: self.id.clone(),
            capacity_range: Some(range(bytes, 0)),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        }
    }

    /// Request to grow what is on it on the node, at the target of a pod.
    pub fn node_expand_request(&self, pod: &str) -> csi::NodeExpandVolumeRequest {
        csi::NodeExpandVolumeRequest {
            volume_id: self.id.clone(),
            volume_path: text(&self.target(pod)),
            capacity_range: Some(csi::CapacityRange { required_bytes: self.capacity, limit_bytes: 0 }),
            staging_target_path: text(&self.staging()),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        }
    }

    /// Grows it in the controller and then on the node, where a pod has it.
    ///
    /// # Errors
    /// The driver refuses one of the two, or says that the node need not be asked.
    pub fn expand(&mut self, bytes: u64, pod: &str) -> Result<()> {
        let answer = self.csi.controller_expand_volume(self.expand_request(bytes)).accepted("ControllerExpandVolume")?;
        if !answer.node_expansion_required {
            return Err(Trouble::wrong("ControllerExpandVolume does not ask for NodeExpandVolume"));
        }
        self.capacity = answer.capacity_bytes;
        self.csi.node_expand_volume(self.node_expand_request(pod)).accepted("NodeExpandVolume").map(drop)
    }

    /// Usage at a pod's target.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn stats(&self, pod: &str) -> Result<Vec<csi::VolumeUsage>> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: text(&self.target(pod)),
            staging_target_path: text(&self.staging()),
        };
        Ok(self.csi.node_get_volume_stats(request).accepted("NodeGetVolumeStats")?.usage)
    }

    /// Takes a snapshot of it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn snapshot(&self, name: &str) -> Result<csi::Snapshot> {
        let request =
            csi::CreateSnapshotRequest { source_volume_id: self.id.clone(), name: name.to_owned(), ..Default::default() };
        let answer = self.csi.create_snapshot(request).accepted("CreateSnapshot")?;
        answer.snapshot.ok_or_else(|| Trouble::wrong("CreateSnapshot answered without a snapshot"))
    }
}

/// Deletes a snapshot.
///
/// # Errors
/// The driver refuses.
pub fn delete_snapshot(csi: &Csi, id: &str) -> Result<()> {
    let request = csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    csi.delete_snapshot(request).accepted("DeleteSnapshot").map(drop)
}

/// A path as the text of a request.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Trouble::io(format!("making {}", path.display())))
}

/// Removes a directory and the empty ones above it up to a root; one that is not empty stays, unless it is the first.
///
/// # Errors
/// The first one is not empty.
pub fn tidy(path: &Path, root: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir(path).map_err(Trouble::io(format!("removing {}, which must be empty by now", path.display())))?;
    }
    let mut above = path.parent();
    while let Some(directory) = above.filter(|d| *d != root && d.starts_with(root)) {
        if fs::remove_dir(directory).is_err() {
            break;
        }
        above = directory.parent();
    }
    Ok(())
}
