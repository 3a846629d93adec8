//! The driver in a real Kubernetes: what people ask of it (`uses`), and what happens to it meanwhile (`faults`). `hack/test cluster` runs
//! these in a cluster of the lab with two nodes; each test has a namespace of its own, and leaves nothing on any node.

mod faults;
mod rig;
mod uses;
