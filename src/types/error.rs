//! The one error that verbs answer with. Each kind has one gRPC code, given in `rpc::status` and nowhere else.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The kind of object an error speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A node.
    Node,
    /// A pool of the configuration.
    Pool,
    /// A path.
    Path,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Object::Volume => "volume",
            Object::Snapshot => "snapshot",
            Object::Node => "node",
            Object::Pool => "pool",
            Object::Path => "path",
        })
    }
}

/// Why a call is not answered with OK. The texts are read by people at night: what happened, to which object, what is waited
/// for, what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is missing or holds what this driver never takes.
    #[error("{field} {value:?}: {reason}")]
    Invalid {
        /// The field, as the CSI message names it.
        field: String,
        /// Its value; never a secret.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The object does not exist.
    #[error("{object} {id:?} does not exist{hint}")]
    Missing {
        /// What kind of object.
        object: Object,
        /// Its id as given.
        id: String,
        /// What to know beside that; empty or beginning with a separator.
        hint: String,
    },
    /// The object exists and is not what was asked for.
    #[error("{object} {id:?} exists, but {difference}")]
    Differs {
        /// What kind of object.
        object: Object,
        /// Its name or id.
        id: String,
        /// In what it differs from the request.
        difference: String,
    },
    /// There is no room; the scheduler may try another node.
    #[error("no room for {what}: {reason}")]
    Exhausted {
        /// What was to be made.
        what: String,
        /// What is free and what is needed.
        reason: String,
    },
    /// A size that can never be had here; the user may lower it.
    #[error("{what} cannot have this size: {reason}")]
    OutOfRange {
        /// What was to get the size.
        what: String,
        /// Asked and possible size.
        reason: String,
    },
    /// The state of the object forbids the call until somebody changes it.
    #[error("{what}: {reason}")]
    Precondition {
        what: String,
        /// What forbids the call and what to do.
        reason: String,
    },
    /// Other work on the object is going on; the same call later goes on or is answered.
    #[error("{what}: {running}")]
    Busy {
        what: String,
        /// What runs, since when, at which step.
        running: String,
    },
    /// Something this driver needs is away for now.
    #[error("{what}: {reason}")]
    Unavailable {
        /// What is away.
        what: String,
        /// Why, and what brings it back.
        reason: String,
    },
    /// The call or the combination is not offered.
    #[error("{0}")]
    Unimplemented(String),
    /// A step failed in a way that nobody foresaw; nothing half-made is left unless the text says so.
    #[error("{what}")]
    Failed {
        /// What was done to which object.
        what: String,
        #[source]
        cause: Cause,
    },
}

/// The cause beneath an [`Error::Failed`], shared so that joined calls can all have it.
#[derive(Clone, Debug)]
pub struct Cause(Arc<dyn StdError + Send + Sync>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Bytes of a wrong value that an error shows.
const LONGEST_VALUE: usize = 256;

/// The beginning of a text, of at most so many bytes and an ellipsis.
pub fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

impl Error {
    /// A field that is missing or wrong.
    pub fn invalid(field: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) -> Self {
        let value: String = value.into();
        Error::Invalid { field: field.into(), value: cut(&value, LONGEST_VALUE), reason: reason.into() }
    }

    /// An object that does not exist.
    pub fn missing(object: Object, id: impl Into<String>) -> Self {
        Error::Missing { object, id: id.into(), hint: String::new() }
    }

    /// A failed step with its cause.
    pub fn failed(what: impl Into<String>, cause: impl StdError + Send + Sync + 'static) -> Self {
        Error::Failed { what: what.into(), cause: Cause(Arc::new(cause)) }
    }

    /// A state that forbids the call.
    pub fn precondition(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Precondition { what: what.into(), reason: reason.into() }
    }

    /// Something away for now.
    pub fn unavailable(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unavailable { what: what.into(), reason: reason.into() }
    }

    /// Other work going on.
    pub fn busy(what: impl Into<String>, running: impl Into<String>) -> Self {
        Error::Busy { what: what.into(), running: running.into() }
    }

    /// Whether kubelet may take this answer as the last word on the call and never undo it (design: "before a final error").
    pub fn is_final(&self) -> bool {
        !matches!(self, Error::Busy { .. } | Error::Unavailable { .. })
    }

    /// The whole chain on one line.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// An error and its causes on one line, each after a colon.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        // Some libraries have a cause say what it is the cause of.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_tells_every_cause_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::failed("mounting volume v at /t", cause);
        assert_eq!(error.chain(), "mounting volume v at /t: disk on fire");
        let twice = Error::failed("calling node a: disk on fire", std::io::Error::other("disk on fire"));
        assert_eq!(twice.chain(), "calling node a: disk on fire");
    }
}
