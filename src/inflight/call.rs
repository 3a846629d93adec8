//! The id of a CSI call. One id follows the call from the controller to the command on the node, so that the logs of both show everything
//! that the call caused.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// The longest id accepted from a caller, in bytes.
const LONGEST: usize = 64;

tokio::task_local! {
    static PRESENT: CallId;
}

/// The id of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallId(Arc<str>);

impl CallId {
    /// The metadata key in which a caller gives the id of its call.
    pub const HEADER: &str = "x-request-id";

    /// A new id. It differs from those of other processes too, as far as twelve hexadecimal digits can.
    pub fn unique() -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = KEYS.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) >> 16;
        Self(format!("{number:012x}").into())
    }

    /// An id from a caller; `None` if it would make log lines hard to read.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (!text.is_empty() && text.len() <= LONGEST && text.chars().all(fits)).then(|| Self(text.into()))
    }

    /// The id of the present call; a new one outside of a call.
    pub fn present() -> Self {
        PRESENT.try_with(Self::clone).unwrap_or_else(|_| Self::unique())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a call under an id.
pub async fn called<T>(id: CallId, call: impl Future<Output = T>) -> T {
    PRESENT.scope(id, call).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_differ_and_are_short() {
        let (one, other) = (CallId::unique(), CallId::unique());
        assert_ne!(one, other);
        assert_eq!((one.as_str().len(), CallId::parse(one.as_str())), (12, Some(one)));
    }

    #[test]
    fn an_id_of_a_caller_cannot_break_a_line() {
        assert_eq!(CallId::parse("6f1e-a_b.C").unwrap().to_string(), "6f1e-a_b.C");
        for odd in ["", "a b", "a\n", "ä", "\"", &"x".repeat(65)] {
            assert_eq!(CallId::parse(odd), None, "{odd}");
        }
    }

    #[tokio::test]
    async fn a_call_keeps_its_id() {
        let id = CallId::unique();
        assert_eq!(called(id.clone(), async { CallId::present() }).await, id);
        assert_ne!(CallId::present(), id);
    }
}
