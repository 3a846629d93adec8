//! The agent across a connection: messages, the service on its machine, and the client in a controller.

mod convert;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod remote;
mod serve;

#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::message as fuzz_message;
pub use remote::Remote;
pub use serve::AgentService;
