//! A record of the nodes on which volumes are made, which outlives a controller.
//!
//! Without it, a node and a controller that are lost together could leave a volume that no other controller knows of, and it would be
//! made twice.

use crate::types::{ClaimName, Error, NodeId};

/// Records for each claim the node chosen for its volume. It is needed only if the request leaves the choice to the driver: if a request
/// names a node, its repeat names it again. The controller writes before it calls the node, and reads only while some node's volumes are
/// unknown.
#[tonic::async_trait]
pub trait Book: Send + Sync {
    /// The recorded node, if any.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it cannot be read, or the claim is gone.
    async fn read(&self, claim: &ClaimName) -> Result<Option<NodeId>, Error>;

    /// Replaces the recorded node; `None` removes it.
    ///
    /// # Errors
    /// As [`Book::read`].
    async fn write(&self, claim: &ClaimName, node: Option<&NodeId>) -> Result<(), Error>;
}
