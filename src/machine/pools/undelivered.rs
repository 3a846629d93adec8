//! LVs that a creation left in the metadata, unknown to their thin pool.

use crate::device;
use crate::lvm::command::Command;
use crate::machine::Machine;
use crate::types::{Error, LvName, chain};
use crate::volume::inventory::Inventory;
use crate::volume::undelivered;

impl Machine {
    /// The command to run before answering for an LV of ours that exists in the metadata only, or may. It cannot be activated, and a
    /// snapshot would be taken at some later time. Nobody was told of it, and it never held a byte, so it is removed. An inactive pool
    /// cannot be asked, and is activated first. Asks the kernel only if a message to the pool may be undelivered.
    ///
    /// # Errors
    /// The state of the pool cannot be read.
    pub(in crate::machine) fn undo_undelivered(
        &self,
        what: &str,
        inventory: &Inventory,
        lv: &LvName,
    ) -> Result<Option<Command>, Error> {
        let vg = &inventory.vg;
        let Some(left) = undelivered::find(inventory, lv) else { return Ok(None) };
        match device::pool_transaction(&*self.kernel, &vg.uuid, &left.pool_uuid) {
            Ok(Some(transaction)) if left.is_unknown_at(transaction) => Ok(Some(left.remove)),
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some(Command::Activate { vg: vg.name.clone(), lvs: vec![left.pool] })),
            Err(error) => {
                let asking = format!("cannot ask thin pool {}/{} whether it has the LV: {}", vg.name, left.pool, chain(&error));
                Err(Error::unavailable(what, asking))
            }
        }
    }
}
