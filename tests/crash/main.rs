//! The driver dies at each effect of each call, on real LVM, and must come to the end that an undisturbed run has: by the same call,
//! and in another run by the one that takes it back.
//!
//! First each call is made undisturbed; its effects are recorded by the driver itself (the feature `crash-points`), and the machine
//! afterwards is what is compared with later. No point is placed by hand. A driver keeps nothing in memory that outlives it, so "after
//! an effect" is the same state as "before the next one": it can die before each effect and after the last, and while a program or a
//! zeroing is at work, alone or with that program's process group. The ordinary run dies once at each effect, where its seed
//! (`LVM_CSI_SEED`) says, and after the last. With `LVM_CSI_LONG=1` it dies before and after each one, and at several ages of each program.
//!
//! Each tool is also held once in each combination, so that it outlives its driver; and lvm is killed at its messages to a thin pool while
//! the driver lives.
//!
//! `apart` has the controller and the node in two processes: to ask an agent is an effect of the controller.
//!
//! `list` prints the effects of every call, and is run by its name only.

#[macro_use]
#[path = "../lab/rig.rs"]
#[expect(dead_code, reason = "the device tests use more of it")]
mod rig;

mod apart;
mod found;
mod inline;
mod life;
mod scene;
mod start;
mod state;
mod unattached;
mod walk;
