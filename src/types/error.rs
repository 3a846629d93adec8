//! The one error type of all verbs. `rpc::status` alone maps each kind to its gRPC code.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The kind of an error's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    Volume,
    Snapshot,
    Node,
    /// A pool of the configuration.
    Pool,
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

/// Why a call is not answered with OK. People read the texts at night: what happened, to which object, why, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request is missing or has a value that this driver never accepts.
    #[error("{field} {value:?}: {reason}")]
    Invalid {
        /// The field, as the CSI message names it.
        field: String,
        /// Its value; never a secret.
        value: String,
        reason: String,
    },
    #[error("{object} {id:?} does not exist{hint}")]
    Missing {
        object: Object,
        /// Its id as given.
        id: String,
        /// More to know; empty, or begins with a separator.
        hint: String,
    },
    /// The object exists and differs from the request.
    #[error("{object} {id:?} exists, but {difference}")]
    Differs {
        object: Object,
        /// Its name or id.
        id: String,
        difference: String,
    },
    /// There is no room; the scheduler may try another node.
    #[error("no room for {what}: {reason}")]
    Exhausted {
        /// What the call was to make.
        what: String,
        /// Free and needed space.
        reason: String,
    },
    /// A size that is impossible here; the user may lower it.
    #[error("{what} cannot have this size: {reason}")]
    OutOfRange {
        /// The object that was to get the size.
        what: String,
        /// Requested and possible size.
        reason: String,
    },
    /// The state of the object forbids the call until somebody changes it.
    #[error("{what}: {reason}")]
    Precondition {
        what: String,
        /// What forbids the call, and what to do.
        reason: String,
    },
    /// Other work on the object is in progress; the same call later continues it or gets its answer.
    #[error("{what}: {running}")]
    Busy {
        what: String,
        /// What runs, since when, at which step.
        running: String,
    },
    /// Something that this driver needs is away for now.
    #[error("{what}: {reason}")]
    Unavailable {
        /// What is away.
        what: String,
        /// Why, and what brings it back.
        reason: String,
    },
    /// The driver does not offer the call or the combination.
    #[error("{0}")]
    Unimplemented(String),
    /// A step failed unexpectedly; nothing half-made is left unless the text says so.
    #[error("{what}")]
    Failed {
        /// The step and its object.
        what: String,
        #[source]
        cause: Cause,
    },
}

/// The cause of an [`Error::Failed`], shared so that all joined calls can have it.
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

/// Most bytes of a wrong value that an error shows.
const LONGEST_VALUE: usize = 256;

/// The first `bytes` bytes of a text or less, with an ellipsis if something was cut off.
pub fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

impl Error {
    /// [`Error::Invalid`], with the value shortened.
    pub fn invalid(field: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) -> Self {
        let value: String = value.into();
        Error::Invalid { field: field.into(), value: cut(&value, LONGEST_VALUE), reason: reason.into() }
    }

    /// [`Error::Missing`], without a hint.
    pub fn missing(object: Object, id: impl Into<String>) -> Self {
        Error::Missing { object, id: id.into(), hint: String::new() }
    }

    pub fn failed(what: impl Into<String>, cause: impl StdError + Send + Sync + 'static) -> Self {
        Error::Failed { what: what.into(), cause: Cause(Arc::new(cause)) }
    }

    pub fn precondition(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Precondition { what: what.into(), reason: reason.into() }
    }

    pub fn unavailable(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unavailable { what: what.into(), reason: reason.into() }
    }

    pub fn busy(what: impl Into<String>, running: impl Into<String>) -> Self {
        Error::Busy { what: what.into(), running: running.into() }
    }

    /// Whether kubelet may take this answer as final and never undo the call (design: "before a final error").
    pub fn is_final(&self) -> bool {
        !matches!(self, Error::Busy { .. } | Error::Unavailable { .. })
    }

    /// The error and its causes on one line.
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
        // In some libraries an error's text already ends with that of its cause.
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
    fn the_chain_contains_every_cause_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::failed("mounting volume v at /t", cause);
        assert_eq!(error.chain(), "mounting volume v at /t: disk on fire");
        let twice = Error::failed("calling node a: disk on fire", std::io::Error::other("disk on fire"));
        assert_eq!(twice.chain(), "calling node a: disk on fire");
    }
}
