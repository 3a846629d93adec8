//! The commands that a person runs, beside the driver or without it.

mod import;

pub use import::{Claimant, Wish, import};
