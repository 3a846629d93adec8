//! The driver in a real Kubernetes: what its documents and examples promise (`documents`, `examples`), what its users need (`uses`,
//! `grow`), what its operators do (`operate`), what happens to it meanwhile (`faults`), what is reported about that (`doctor`), and what
//! must be true at the end of a run (`after`). `hack/test cluster` runs these in a lab cluster with two nodes. Each test has its own
//! namespace and leaves nothing on any node; those of `documents` have the cluster for themselves, before the driver is installed.

mod after;
mod doctor;
mod documents;
mod examples;
mod faults;
mod grow;
mod operate;
mod rig;
mod uses;
