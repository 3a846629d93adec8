//! ControllerPublishVolume and ControllerUnpublishVolume.

use crate::attach::{Mode, PublishContext};
use crate::types::{Capability, Error, NodeId, Object, VolumeId};

use super::Controller;

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
}

impl Controller {
    /// Gives a node the right to use a volume.
    ///
    /// # Errors
    /// Volume or node do not exist, or the volume is granted otherwise.
    pub async fn publish(&self, request: PublishRequest) -> Result<PublishContext, Error> {
        let node = NodeId::new(&request.node).filter(|node| node == self.agent.node());
        let Some(node) = node else {
            // The volume's absence is the more useful word.
            if !self.complete().await?.volumes().any(|volume| volume.id == request.id) {
                return Err(Error::missing(Object::Volume, request.id.to_string()));
            }
            let hint = format!(", or has no access to volume {}; its node is {}", request.id, self.agent.node());
            return Err(Error::Missing { object: Object::Node, id: request.node, hint });
        };
        let mode = Mode::new(request.capability.access, request.capability.mode, request.read_only);
        self.agent.grant(request.id, node, mode).await
    }

    /// Takes that right back; from every node where none is named.
    ///
    /// # Errors
    /// The node still uses the volume.
    pub async fn unpublish(&self, id: VolumeId, node: &str) -> Result<(), Error> {
        if node.is_empty() {
            return self.agent.release(id, None).await;
        }
        match NodeId::new(node) {
            // No node of that name ever had it.
            None => Ok(()),
            Some(node) => self.agent.release(id, Some(node)).await,
        }
    }
}
