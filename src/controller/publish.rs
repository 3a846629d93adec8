//! ControllerPublishVolume and ControllerUnpublishVolume.
//!
//! A node that is gone for good is never called: its Node object is deleted, or a person has set the out-of-service taint. Its ledger
//! may keep the grant. The next grant replaces it, since nothing can be staged under it after a reboot.

use std::sync::Arc;

use crate::agent::Agent;
use crate::attach::{Mode, PublishContext};
use crate::types::{Capability, Error, NodeId, Object, VolumeId};
use crate::volume::context::VolumeContext;

use super::Controller;
use super::fleet::Fate;

/// ControllerPublishVolume, checked for form.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// `volume_id`.
    pub id: VolumeId,
    /// `node_id`, as given.
    pub node: String,
    /// `volume_capability`.
    pub capability: Capability,
    /// `readonly`.
    pub read_only: bool,
    /// `volume_context`.
    pub said: VolumeContext,
}

impl Controller {
    /// Compares `volume_context` with the handle and the group names that the agent has reported.
    pub(super) async fn check_said(said: &VolumeContext, id: &VolumeId, agent: &Arc<dyn Agent>) -> Result<(), Error> {
        if *said == VolumeContext::default() {
            return Ok(());
        }
        let holdings = agent.holdings().await?;
        said.check(id, &holdings.group_names(&id.vg))
    }

    /// Gives a node the right to use a volume.
    ///
    /// # Errors
    /// The volume or the node does not exist, or the volume has another grant.
    pub async fn publish(&self, request: PublishRequest) -> Result<PublishContext, Error> {
        let agents = self.fleet.of_group(&request.id.vg).await?;
        let Some(agent) = agents.iter().find(|agent| agent.node().as_str() == request.node) else {
            // If the volume does not exist either, that error is more useful.
            let volume = self.volume(&request.id.to_string()).await?;
            let hint = format!(", or has no access to volume {}; its node is {}", request.id, volume.node);
            return Err(Error::Missing { object: Object::Node, id: request.node, hint });
        };
        Self::check_said(&request.said, &request.id, agent).await?;
        let mode = Mode::new(request.capability.access, request.capability.mode, request.read_only);
        agent.grant(request.id, agent.node().clone(), mode).await
    }

    /// Takes that right back, from every node if none is named. A node that cannot be reached and will not come back is not called, since
    /// a volume must not wait for it for ever. Its agent drops the grant when it gives the next one, or when the volume is deleted.
    ///
    /// # Errors
    /// The node still uses the volume, or cannot be reached.
    pub async fn unpublish(&self, id: VolumeId, node: &str) -> Result<(), Error> {
        let node = match (node, NodeId::new(node)) {
            ("", _) => None,
            // No node can have that name.
            (_, None) => return Ok(()),
            (_, named) => named,
        };
        if let Some(node) = &node {
            let fate = self.fleet.fate(node).await?;
            if fate != Fate::Expected {
                tracing::warn!(volume = %id, %node, ?fate, "detached without calling the node, which is gone or out of service");
                return Ok(());
            }
        }
        self.fleet.release(&id, node.as_ref()).await
    }
}
