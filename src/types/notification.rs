//! Notifications: what a person must know apart from the answer to a call, attached to the object that it is about.

use super::ids::NodeId;

/// The object of a notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    Node(NodeId),
    /// A claim that waits for its volume.
    Claim {
        namespace: String,
        name: String,
        /// Its UID; empty if unknown.
        uid: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub about: About,
    /// What happened, in one word such as `AgentAway`.
    pub reason: &'static str,
    /// Somebody should do something.
    pub warning: bool,
    /// The part of the object, such as a pool; the same reason may apply to several.
    pub subject: String,
    /// What happened, why, and what to do.
    pub text: String,
}
