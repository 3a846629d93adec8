//! What a creation left that its thin pool never heard of.

use crate::device;
use crate::lvm::command::Command;
use crate::machine::Machine;
use crate::types::{Error, LvName, chain};
use crate::volume::inventory::Inventory;
use crate::volume::undelivered;

impl Machine {
    /// The command that is due before an LV of ours is answered for, because it stands in the metadata only, or may: it cannot be activated
    /// then, and a snapshot would be cut at some later time. Nobody was told of it, and it never held a byte, so it is removed. A pool that
    /// is not active cannot be asked, and is activated first. Asks the kernel, and that only where a message to the pool is not known to be
    /// delivered.
    ///
    /// # Errors
    /// The state of the pool cannot be told.
    pub(in crate::machine) fn undo_undelivered(
        &self,
        what: &str,
        inventory: &Inventory,
        lv: &LvName,
    ) -> Result<Option<Command>, Error> {
        let vg = &inventory.vg;
        let Some(found) = undelivered::find(inventory, lv) else { return Ok(None) };
        match device::pool_transaction(&*self.kernel, &vg.uuid, &found.pool_uuid) {
            Ok(Some(heard)) if found.is_unknown_at(heard) => Ok(Some(found.remove)),
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some(Command::Activate { vg: vg.name.clone(), lvs: vec![found.pool] })),
            Err(error) => {
                let asking = format!("asking thin pool {}/{} whether it has it: {}", vg.name, found.pool, chain(&error));
                Err(Error::unavailable(what, asking))
            }
        }
    }
}
