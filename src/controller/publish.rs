//! ControllerPublishVolume and ControllerUnpublishVolume.

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
    /// Compares what was said of a volume beside its handle with what its agent has told.
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
    /// Volume or node do not exist, or the volume is granted otherwise.
    pub async fn publish(&self, request: PublishRequest) -> Result<PublishContext, Error> {
        let agents = self.fleet.of_group(&request.id.vg).await?;
        let Some(agent) = agents.iter().find(|agent| agent.node().as_str() == request.node) else {
            // The volume's absence is the more useful word.
            let volume = self.volume(&request.id.to_string()).await?;
            let hint = format!(", or has no access to volume {}; its node is {}", request.id, volume.node);
            return Err(Error::Missing { object: Object::Node, id: request.node, hint });
        };
        Self::check_said(&request.said, &request.id, agent).await?;
        let mode = Mode::new(request.capability.access, request.capability.mode, request.read_only);
        agent.grant(request.id, agent.node().clone(), mode).await
    }

    /// Takes that right back; from every node where none is named. From a node that cannot be asked and will not come back it is taken
    /// without asking: a volume must not wait for it for ever. Its agent forgets the grant when it gives the next one, or the volume is
    /// deleted.
    ///
    /// # Errors
    /// The node still uses the volume, or cannot be asked.
    pub async fn unpublish(&self, id: VolumeId, node: &str) -> Result<(), Error> {
        let node = match (node, NodeId::new(node)) {
            ("", _) => None,
            // No node of that name ever had it.
            (_, None) => return Ok(()),
            (_, named) => named,
        };
        if let Some(node) = &node {
            let fate = self.fleet.fate(node).await?;
            if fate != Fate::Expected {
                tracing::warn!(volume = %id, %node, ?fate, "detached without asking the node, which cannot be asked");
                return Ok(());
            }
        }
        self.fleet.release(&id, node.as_ref()).await
    }
}
