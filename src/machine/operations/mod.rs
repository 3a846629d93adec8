//! What calls do on this machine: each operation decides, takes one step, reads, and decides again.

mod activate;
mod adopt;
mod batch;
mod change;
mod ephemeral;
mod expand;
mod exposed;
mod guard;
mod import;
mod owned;
mod verbs;
mod zero;

pub use activate::{Active, Attached};
pub use adopt::{Adopt, Adopted};
pub use import::{Import, Imported};

pub(super) use batch::BatchQueue;
pub(super) use change::failed;
pub(super) use guard::Guards;
pub(super) use owned::Owned;
