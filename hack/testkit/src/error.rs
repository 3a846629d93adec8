//! The one error of the demo and the tests: what was tried, on what, and what came of it.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tonic::Code;

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Trouble>;

/// Why a step of the demo or of a test did not go as it should.
#[derive(thiserror::Error)]
pub enum Trouble {
    /// The operating system refused something.
    #[error("{what}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// A tool ended with another status than 0.
    #[error("`{command}` ended with {status}: {output}")]
    Tool {
        /// The command with its arguments.
        command: String,
        /// Exit status or signal.
        status: String,
        /// What it wrote to both streams.
        output: String,
    },
    /// A call of the driver was answered with an error.
    #[error("{rpc} answered {code:?}: {message}")]
    Call {
        /// Name of the call.
        rpc: &'static str,
        /// The gRPC code.
        code: Code,
        /// The message of the status.
        message: String,
    },
    /// A state did not come about in time.
    #[error("waited {waited:?} in vain for {what}")]
    Limit {
        /// The state.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// Something is not as it must be.
    #[error("{0}")]
    Wrong(String),
}

impl Trouble {
    /// Something is not as it must be.
    pub fn wrong(text: impl Into<String>) -> Self {
        Trouble::Wrong(text.into())
    }

    /// For `map_err`: names what was tried when the operating system refuses.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Trouble::Io { what, source }
    }

    /// For `map_err` on calls of the crate `nix`.
    pub fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Trouble::Io { what, source: errno.into() }
    }
}

// A test that returns an error is reported by its Debug form; the chain of causes is what a person wants to read there.
impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut next = self.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

/// Fails with a text unless a condition holds.
///
/// # Errors
/// [`Trouble::Wrong`] with the text.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Trouble::Wrong(otherwise())) }
}
