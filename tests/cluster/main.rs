//! The driver in a real Kubernetes: what people ask of it (`uses`, `grow`), what those do who run it (`operate`), what happens to it
//! meanwhile (`faults`), what is said about that (`doctor`), and what must be so at the end of a run (`after`). `hack/test cluster` runs
//! these in a cluster of the lab with two nodes; each test has a namespace of its own, and leaves nothing on any node.

mod after;
mod doctor;
mod faults;
mod grow;
mod operate;
mod rig;
mod uses;
