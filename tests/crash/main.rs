//! Kills the driver at each effect of each call, on real LVM. The same call, and in another run the inverse call, must bring the
//! machine to the state of an undisturbed run.
//!
//! Each call first runs undisturbed. The driver records its effects (feature `crash-points`), and the resulting machine state is
//! the reference. No crash point is placed by hand. The driver keeps nothing in memory across its death, so "after an effect" is
//! the same state as "before the next one". It can die before each effect and after the last one, and while a program or a zeroing
//! is running, alone or with that program's process group. An ordinary run kills it once at each effect, where its seed
//! (`LVM_CSI_SEED`) says, and after the last one. With `LVM_CSI_LONG=1` it dies before and after each effect, and at several ages
//! of each program.
//!
//! Each tool also outlives its driver once per combination. lvm is killed at its messages to a thin pool while the driver lives.
//!
//! In `apart` the controller and the node are two processes. A request to an agent is an effect of the controller.
//!
//! `list` prints the effects of every call. It runs only by name.

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
