//! The id of a call of CSI: one from the door of the controller to the command on the node, so that everything that a call caused can be
//! found in the logs of both.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

/// Bytes of the longest id that is taken from a caller.
const LONGEST: usize = 64;

tokio::task_local! {
    /// Which call this is.
    static PRESENT: CallId;
}

/// The id of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallId(Arc<str>);

impl CallId {
    /// Where a caller gives the id of its call, if it has one.
    pub const HEADER: &str = "x-request-id";

    /// A new one. It differs from those of other processes too, as far as twelve digits can.
    pub fn unique() -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = KEYS.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) >> 16;
        Self(format!("{number:012x}").into())
    }

    /// What a caller gave; `None` where it would make log lines hard to read.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (!text.is_empty() && text.len() <= LONGEST && text.chars().all(fits)).then(|| Self(text.into()))
    }

    /// That of the present call; a new one where there is none.
    pub fn present() -> Self {
        PRESENT.try_with(Self::clone).unwrap_or_else(|_| Self::unique())
    }

    /// The id as text.
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
