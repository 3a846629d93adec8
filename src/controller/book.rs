//! Where it is written down on which node a volume is made, beyond the life of a controller.

use crate::types::{ClaimName, Error, NodeId};

/// Keeps for each claim the node that was chosen for its volume. Needed only where the request leaves the choice to the driver: a node that
/// it names is named again by its repeat. Written before a node is asked; read only while what some node has is not known.
#[tonic::async_trait]
pub trait Book: Send + Sync {
    /// The node that is written down; `None` where none is.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where that cannot be read, and where the claim is gone.
    async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error>;

    /// Writes a node down in place of what was, or nothing.
    ///
    /// # Errors
    /// As [`Book::read`].
    async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error>;
}
