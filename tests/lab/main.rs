//! Device tests: the driver as a process on real LVM, observed through its socket, LVM and the kernel.
//!
//! They run inside the lab (`hack/lab exec` as cargo's runner), one at a time, each on its own volume group. A test ends with the
//! acceptance points it has covered (`covers!`). They fill the table in tests/README.md.

#[macro_use]
mod rig;

mod apply;
mod bad_input;
mod block;
mod block_sizes;
mod capacity;
mod confined;
mod container;
mod create_delete;
mod crowd;
mod detached;
mod ephemeral;
mod expand;
mod faults;
mod figures;
mod filesystems;
mod foreign;
mod grants;
mod half_done;
mod health;
mod hidden;
mod idempotent;
mod identity;
mod import;
mod lists;
mod logs;
mod old_bytes;
mod others;
mod others_backup;
mod others_move;
mod owner;
mod paths;
mod power;
mod publish;
mod requests;
mod restart;
mod roles;
mod sick;
mod sick_disk;
mod sick_lvm;
mod sick_superblock;
mod single_writer;
mod snapshot;
mod stage;
mod startup;
mod static_volume;
mod strangers;
mod survey;
mod survivors;
mod thin_pool;
mod tools;
mod two_drivers;
mod unattached;
mod undelivered;
mod zeroing;
