//! Attachments: the right of a node to use a volume. [`grant`] decides, [`ledger`] stores grants, [`hold`] keeps other drivers away,
//! [`exposure`] records what pods were shown.

pub mod exposure;
pub mod grant;
pub mod hold;
pub mod ledger;
mod slot;

pub use exposure::{Exposure, Exposures};
pub use grant::{Ack, AckState, Grant, GrantRequest, Mode, PathSum, Phase, PublishContext, State};
pub use hold::{Hold, HoldError, Holder};
pub use ledger::{Damage, Ledger, LedgerError};
#[cfg(any(test, fuzzing))]
pub(crate) use slot::fuzz as fuzz_block;
