//! The commands that a person runs, beside the driver or without it.

mod import;
mod survey;

pub use import::{Claimant, Wish, import};
pub use survey::{Question, Told, survey};
