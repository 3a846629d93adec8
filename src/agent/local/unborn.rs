//! Taking away what a creation left that its thin pool never heard of, before the creation is repeated.

use crate::device;
use crate::inflight::Claim;
use crate::lvm::command::Command;
use crate::lvm::metadata::Vg;
use crate::types::{Error, LvName};
use crate::volume::unborn::{self, Unborn};

use super::change::failed;
use super::{Group, Local, unknown};

impl Local {
    /// Removes an LV of ours that stands in the metadata only: nobody was told of it, and it never held a byte. To find it there
    /// must not be an answer: it cannot be activated, and a snapshot would be cut at some later time.
    ///
    /// # Errors
    /// The state of the pool cannot be told, or LVM failed.
    pub(super) fn remove_unborn(&self, _claim: &Claim, group: &Group, what: &str, lv: &LvName) -> Result<(), Error> {
        let find = || {
            let inventory = group.inventory().map_err(|error| unknown(&error))?;
            Ok::<_, Error>(unborn::find(&inventory, lv).map(|found| (found, inventory)))
        };
        let heard = |found: &Unborn, vg: &Vg| {
            let asked = device::pool_transaction(&*self.kernel, &vg.uuid, &found.pool_uuid);
            asked.map_err(|error| Error::failed(format!("asking thin pool {}/{} how far it is", vg.name, found.pool), error))
        };
        let Some((found, inventory)) = find()? else { return Ok(()) };
        // The message that is under way may be of another writer, who has many before us: a pool does not forget what it has heard, so
        // that needs no turn.
        if heard(&found, &inventory.vg)?.is_some_and(|at| !found.is_unknown_at(at)) {
            return Ok(());
        }
        let turn =
            group.lvm.turn().map_err(|wedged| Error::unavailable(format!("volume group {}", group.name), wedged.to_string()))?;
        let Some((found, inventory)) = find()? else { return Ok(()) };
        let vg = &inventory.vg;
        let change = |command: &Command| group.lvm.change(&turn, command).map_err(|error| failed(what, group, error));
        let at = match heard(&found, vg)? {
            Some(at) => Some(at),
            None => {
                change(&Command::Activate { vg: vg.name.clone(), lvs: vec![found.pool.clone()] })?;
                heard(&found, vg)?
            }
        };
        let at = at.ok_or_else(|| Error::unavailable(what, format!("thin pool {}/{} is not active", vg.name, found.pool)))?;
        if !found.is_unknown_at(at) {
            return Ok(());
        }
        tracing::warn!(vg = %vg.name, %lv, pool = %found.pool, "its creation was cut off before the pool heard of it; making it anew");
        change(&found.remove)
    }
}
