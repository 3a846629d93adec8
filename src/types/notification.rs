//! What a person must know, beside an answer: told to whoever looks at the object, as far as anybody can be told.

use super::ids::NodeId;

/// Whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// A node.
    Node(NodeId),
    /// A claim that waits for its volume.
    Claim {
        namespace: String,
        name: String,
        /// Its UID, where it is known.
        uid: String,
    },
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Whom it concerns.
    pub about: About,
    /// What happened, in one word such as `AgentAway`.
    pub reason: &'static str,
    /// Somebody should do something.
    pub warning: bool,
    /// Of what of the object it speaks, such as a pool; the same reason may hold for several.
    pub subject: String,
    /// What happened, why, and what to do.
    pub text: String,
}
