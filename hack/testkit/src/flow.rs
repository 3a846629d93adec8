//! The calls of one volume's life, as kubelet and the sidecars make them, and what they remember between calls.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use lvm_csi_proto::csi;

use crate::client::{Accepted, Csi, range};
use crate::error::{Result, Trouble};

/// Staging and target paths on a node, laid out as kubelet does.
#[derive(Clone, Debug)]
pub struct Places {
    pub root: PathBuf,
}

impl Places {
    pub fn staging(&self, name: &str) -> PathBuf {
        self.root.join("plugins").join(name).join("globalmount")
    }

    pub fn target(&self, pod: &str, name: &str) -> PathBuf {
        self.root.join("pods").join(pod).join("volumes").join(name).join("mount")
    }
}

/// A volume as the orchestrator knows it.
#[derive(Clone)]
pub struct Volume {
    csi: Csi,
    places: Places,
    /// Short name, used in paths.
    pub name: String,
    pub id: String,
    /// In bytes, as the driver last reported it.
    pub capacity: i64,
    /// Volume context from CreateVolume.
    pub context: HashMap<String, String>,
    pub capability: csi::VolumeCapability,
    pub node: String,
    /// Publish context from the last ControllerPublishVolume.
    pub publish: HashMap<String, String>,
}

impl Volume {
    /// Creates a volume, to be used with the first capability of the request.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn create(csi: &Csi, places: &Places, name: &str, request: csi::CreateVolumeRequest) -> Result<Self> {
        let capability = request.volume_capabilities.first().cloned().unwrap_or_default();
        let volume = csi.create_volume(request).accepted("CreateVolume")?.volume;
        let volume = volume.ok_or_else(|| Trouble::wrong("CreateVolume returned no volume"))?;
        let known = Self::known(csi, places, name, capability, &volume.volume_id, volume.capacity_bytes);
        Ok(Self { context: volume.volume_context, ..known })
    }

    /// A volume that exists already.
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

    /// This volume through another connection, such as that of a restarted driver.
    pub fn through(&self, csi: &Csi) -> Self {
        Self { csi: csi.clone(), ..self.clone() }
    }

    pub fn csi(&self) -> &Csi {
        &self.csi
    }

    pub fn staging(&self) -> PathBuf {
        self.places.staging(&self.name)
    }

    pub fn target(&self, pod: &str) -> PathBuf {
        self.places.target(pod, &self.name)
    }

    /// The name of its LV: the last part of its id.
    pub fn lv(&self) -> &str {
        self.id.rsplit('/').next().unwrap_or_default()
    }

    /// In bytes.
    pub fn size(&self) -> u64 {
        u64::try_from(self.capacity).unwrap_or_default()
    }

    pub fn attach_request(&self) -> csi::ControllerPublishVolumeRequest {
        csi::ControllerPublishVolumeRequest {
            volume_id: self.id.clone(),
            node_id: self.node.clone(),
            volume_capability: Some(self.capability.clone()),
            volume_context: self.context.clone(),
            ..Default::default()
        }
    }

    /// Calls ControllerPublishVolume and remembers its context.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn attach(&mut self) -> Result<()> {
        let answer = self.csi.controller_publish_volume(self.attach_request()).accepted("ControllerPublishVolume")?;
        self.publish = answer.publish_context;
        Ok(())
    }

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

    /// Creates the staging directory, which is the orchestrator's task.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn make_staging(&self) -> Result<()> {
        make(&self.staging())
    }

    /// Creates the staging directory and calls NodeStageVolume.
    ///
    /// # Errors
    /// The directory cannot be created, or the driver refuses.
    pub fn stage(&self) -> Result<()> {
        self.make_staging()?;
        self.csi.node_stage_volume(self.stage_request()).accepted("NodeStageVolume").map(drop)
    }

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

    /// Creates the parent of a pod's target path, which is the orchestrator's task.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn make_parent(&self, pod: &str) -> Result<()> {
        self.target(pod).parent().map_or(Ok(()), make)
    }

    /// Creates the target's parent and calls NodePublishVolume for a pod; returns the target.
    ///
    /// # Errors
    /// The parent cannot be created, or the driver refuses.
    pub fn publish(&self, pod: &str) -> Result<PathBuf> {
        self.make_parent(pod)?;
        self.csi.node_publish_volume(self.publish_request(pod)).accepted("NodePublishVolume")?;
        Ok(self.target(pod))
    }

    /// Attaches, stages and publishes it for a pod; returns the target.
    ///
    /// # Errors
    /// Those of the three steps.
    pub fn up(&mut self, pod: &str) -> Result<PathBuf> {
        self.attach()?;
        self.stage()?;
        self.publish(pod)
    }

    /// Calls NodeUnpublishVolume for a pod and removes the empty directories above the target, as kubelet does.
    ///
    /// # Errors
    /// The driver refuses, or left something in the target's parent.
    pub fn unpublish(&self, pod: &str) -> Result<()> {
        let target = self.target(pod);
        let request = csi::NodeUnpublishVolumeRequest { volume_id: self.id.clone(), target_path: text(&target) };
        self.csi.node_unpublish_volume(request).accepted("NodeUnpublishVolume")?;
        target.parent().map_or(Ok(()), |parent| tidy(parent, &self.places.root))
    }

    /// Calls NodeUnstageVolume and removes the staging directory, as kubelet does.
    ///
    /// # Errors
    /// The driver refuses, or left something in that directory.
    pub fn unstage(&self) -> Result<()> {
        let request = csi::NodeUnstageVolumeRequest { volume_id: self.id.clone(), staging_target_path: text(&self.staging()) };
        self.csi.node_unstage_volume(request).accepted("NodeUnstageVolume")?;
        tidy(&self.staging(), &self.places.root)
    }

    /// Calls ControllerUnpublishVolume.
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

    /// Calls DeleteVolume.
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
    /// Those of the four steps.
    pub fn down(&self, pod: &str) -> Result<()> {
        self.unpublish(pod)?;
        self.unstage()?;
        self.detach()?;
        self.delete()
    }

    /// A ControllerExpandVolume request for a size in bytes.
    pub fn expand_request(&self, bytes: u64) -> csi::ControllerExpandVolumeRequest {
        csi::ControllerExpandVolumeRequest {
            volume_id: self.id.clone(),
            capacity_range: Some(range(bytes, 0)),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        }
    }

    /// A NodeExpandVolume request for its current capacity, at a pod's target.
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

    /// Expands it in the controller to a size in bytes, then on the node at a pod's target.
    ///
    /// # Errors
    /// The driver refuses a call, or does not require node expansion.
    pub fn expand(&mut self, bytes: u64, pod: &str) -> Result<()> {
        let answer = self.csi.controller_expand_volume(self.expand_request(bytes)).accepted("ControllerExpandVolume")?;
        if !answer.node_expansion_required {
            return Err(Trouble::wrong("ControllerExpandVolume does not require NodeExpandVolume"));
        }
        self.capacity = answer.capacity_bytes;
        self.csi.node_expand_volume(self.node_expand_request(pod)).accepted("NodeExpandVolume").map(drop)
    }

    /// What NodeGetVolumeStats reports at a pod's target.
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

    /// Calls CreateSnapshot.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn snapshot(&self, name: &str) -> Result<csi::Snapshot> {
        let request =
            csi::CreateSnapshotRequest { source_volume_id: self.id.clone(), name: name.to_owned(), ..Default::default() };
        let answer = self.csi.create_snapshot(request).accepted("CreateSnapshot")?;
        answer.snapshot.ok_or_else(|| Trouble::wrong("CreateSnapshot returned no snapshot"))
    }
}

/// Calls DeleteSnapshot.
///
/// # Errors
/// The driver refuses.
pub fn delete_snapshot(csi: &Csi, id: &str) -> Result<()> {
    let request = csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
    csi.delete_snapshot(request).accepted("DeleteSnapshot").map(drop)
}

/// A path as requests carry it.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(Trouble::io(format!("creating {}", path.display())))
}

/// Removes a directory, then the empty directories above it, up to a root.
///
/// # Errors
/// The directory itself is not empty.
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
