//! The only table from errors to gRPC codes (CSI, "Error Scheme"). The code decides whether the orchestrator retries, moves the pod or
//! gives up.

use tonic::{Code, Status};

use crate::inflight::CallId;
use crate::types::{Discreet, Error, cut, discreet};

/// Longest message in bytes: it travels in a header, escaped to up to three times its length, and clients accept at least 8 KiB of
/// headers.
const LONGEST: usize = 2048;

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

/// The status of an error: its code, its whole chain as text without the operator's details, and no details (CSI: "details MUST be
/// empty").
pub(super) fn of(error: &Error) -> Status {
    Status::new(code(error), text(&error.chain()))
}

/// A text for the orchestrator, which writes it into events. The log has what it lacks, under the id of the call.
pub(super) fn text(full: &str) -> String {
    let Discreet { text, lacks } = discreet(full);
    let text = cut(&text, LONGEST);
    if lacks { format!("{text} (the driver's log names devices: call {})", CallId::present()) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Object;

    #[test]
    fn a_status_has_the_whole_story_and_no_details() {
        let error = Error::failed("mounting volume v", std::io::Error::other("disk on fire"));
        let status = of(&error);
        assert_eq!((status.code(), status.message()), (Code::Internal, "mounting volume v: disk on fire"));
        assert!(status.details().is_empty());
        assert_eq!(code(&Error::busy("v", "mkfs")), Code::Aborted);
        // Devices and UUIDs are for the operator only, in whatever error they occur.
        const VG: &str = "AbCdEf-0123-4567-89ab-cdef-0123-456789";
        let word = || format!("{VG}/pvc-1 of PV {VG} on /dev/sdb");
        let io = || std::io::Error::other(word());
        for error in [
            Error::invalid("volume_path", word(), word()),
            Error::Missing { object: Object::Volume, id: word(), hint: format!("; {}", word()) },
            Error::Differs { object: Object::Volume, id: word(), difference: word() },
            Error::Exhausted { what: word(), reason: word() },
            Error::OutOfRange { what: word(), reason: word() },
            Error::precondition(word(), word()),
            Error::busy(word(), word()),
            Error::unavailable(word(), word()),
            Error::Unimplemented(word()),
            Error::failed(word(), Error::failed(word(), io())),
        ] {
            let status = of(&error);
            let message = status.message();
            assert!(!message.contains(VG) && !message.contains("/dev/") && message.contains("pvc-1"), "{message}");
            assert!(message.contains("the driver's log names devices: call "), "{message}");
        }
        let endless = of(&Error::precondition("ü".repeat(9000), "x"));
        assert!(endless.message().len() < 2 * LONGEST && endless.message().ends_with('…'));
    }
}
