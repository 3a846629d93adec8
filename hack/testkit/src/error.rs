//! The error type of the test kit, the demo and the tests.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use tonic::Code;

pub type Result<T> = std::result::Result<T, Trouble>;

/// Why a step failed.
#[derive(thiserror::Error)]
pub enum Trouble {
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was tried, with the path.
        what: String,
        #[source]
        source: io::Error,
    },
    /// A tool failed.
    #[error("`{command}` failed with {status}: {output}")]
    Tool {
        /// With its arguments.
        command: String,
        /// Exit status or signal.
        status: String,
        /// Standard error and standard output.
        output: String,
    },
    /// The driver returned an error.
    #[error("{rpc} returned {code:?}: {message}")]
    Call { rpc: &'static str, code: Code, message: String },
    /// A state was not reached in time.
    #[error("timed out after {waited:?} waiting for {what}")]
    Limit { what: String, waited: Duration },
    /// A check failed.
    #[error("{0}")]
    Wrong(String),
}

impl Trouble {
    /// A failed check, or anything else that only a text describes.
    pub fn wrong(text: impl Into<String>) -> Self {
        Trouble::Wrong(text.into())
    }

    /// For `map_err`: adds what was tried to an I/O error.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Trouble::Io { what, source }
    }

    /// As [`Trouble::io`], for calls of the crate `nix`.
    pub fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Trouble::Io { what, source: errno.into() }
    }
}

// The test harness prints the Debug form of a returned error, so that form shows the chain of causes.
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

/// Fails unless a condition holds.
///
/// # Errors
/// [`Trouble::Wrong`] with the text.
pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Trouble::Wrong(otherwise())) }
}
