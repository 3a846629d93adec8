//! The one table from errors to gRPC codes (CSI, "Error Scheme"). The code decides whether the orchestrator retries, moves the pod
//! or gives up.

use tonic::{Code, Status};

use crate::types::{Error, cut};

/// Bytes of a message: it travels in a header, escaped to up to three times its length, and clients take 8 KiB of headers at least.
const LONGEST: usize = 2048;

/// The code of an error.
pub(super) fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        Error::Missing { .. } => Code::NotFound,
        Error::Differs { .. } => Code::AlreadyExists,
        Error::Exhausted { .. } => Code::ResourceExhausted,
        Error::OutOfRange { .. } => Code::OutOfRange,
        Error::Precondition { .. } => Code::FailedPrecondition,
        Error::Busy { .. } => Code::Aborted,
        Error::Unavailable { .. } => Code::Unavailable,
        Error::Unimplemented(_) => Code::Unimplemented,
        Error::Failed { .. } => Code::Internal,
    }
}

/// The status of an error: its code, the whole chain as text, and no details (CSI: "details MUST be empty").
pub(super) fn of(error: &Error) -> Status {
    Status::new(code(error), cut(&error.chain(), LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_whole_story_and_no_details() {
        let error = Error::failed("mounting volume v", std::io::Error::other("disk on fire"));
        let status = of(&error);
        assert_eq!((status.code(), status.message()), (Code::Internal, "mounting volume v: disk on fire"));
        assert!(status.details().is_empty());
        assert_eq!(code(&Error::busy("v", "mkfs")), Code::Aborted);
        let endless = of(&Error::precondition("ü".repeat(9000), "x"));
        assert!(endless.message().len() < 2 * LONGEST && endless.message().ends_with('…'));
    }
}
