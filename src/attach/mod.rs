//! Attachments: the right of a node to use a volume. [`grant`] decides, [`ledger`] remembers, [`hold`] keeps other drivers away.

pub mod grant;
pub mod hold;
pub mod ledger;
mod slot;

pub use grant::{Ack, AckState, Grant, GrantRequest, Mode, Phase, PublishContext, State};
pub use hold::{Hold, HoldError, Holder};
pub use ledger::{Damage, Ledger, LedgerError};
#[cfg(any(test, fuzzing))]
pub(crate) use slot::fuzz as fuzz_block;
