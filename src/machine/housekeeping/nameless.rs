//! LVs of an earlier version, which wrote no driver name on them and let the host activate them at boot.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::device;
use crate::inflight::Operation;
use crate::lvm::Turn;
use crate::lvm::command::Command;
use crate::machine::operations::failed;
use crate::machine::{Group, Machine, unknown};
use crate::types::{Error, LvName, LvUuid, VgName};
use crate::volume::inventory::Inventory;
use crate::volume::{may_change, tag};

/// How many LVs to name with one command: LVM commits once for each, and other changes of the group wait meanwhile.
const BATCH: usize = 20;

impl Machine {
    /// Writes this driver's name on its LVs of an earlier version, and turns their autoactivation off. The driver treats them as its own
    /// meanwhile.
    pub(in crate::machine) async fn adopt_nameless(self: &Arc<Self>, name: &VgName) {
        let mut tried = BTreeSet::new();
        loop {
            let mut operation = Operation::new("marking LVs of an earlier version", format!("volume group {name}"), ());
            // It waits for its turn like every writer, and excludes nobody.
            operation.writes = Vec::new();
            let (agent, group, before) = (Arc::clone(self), name.clone(), tried.clone());
            match self.inflight.run(operation, move |_| agent.adopt_some(&group, &before)).await {
                Ok(batch) if batch.is_empty() => break,
                Ok(batch) => tried.extend(batch),
                Err(error) => {
                    let error = error.chain();
                    tracing::warn!(vg = %name, error, "cannot name LVs of an earlier version and turn off their autoactivation; trying again at the next start");
                    break;
                }
            }
        }
    }

    /// Does this for all groups, one after the other.
    #[cfg(test)]
    pub(crate) fn adopt_all_nameless(&self) {
        for name in self.groups.keys() {
            let mut tried = BTreeSet::new();
            while let Ok(batch) = self.adopt_some(name, &tried) {
                if batch.is_empty() {
                    break;
                }
                tried.extend(batch);
            }
        }
    }

    /// Names a few LVs that were not tried before; once none is left, turns off the autoactivation of a few. Returns the LVs tried now;
    /// none at the end.
    fn adopt_some(&self, name: &VgName, tried: &BTreeSet<LvName>) -> Result<Vec<LvName>, Error> {
        let Some(group) = self.groups.get(name) else { return Ok(Vec::new()) };
        match group.inventory() {
            Ok(inventory) if untried(&inventory, tried).next().is_some() => may_change(&inventory.vg)?,
            _ => return Ok(Vec::new()),
        }
        let what = format!("LVs of volume group {name}");
        let turn = group.lvm.turn().map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        // Others may have changed the group meanwhile.
        let inventory = group.inventory().map_err(|error| unknown(&error))?;
        may_change(&inventory.vg)?;
        let mut left: Vec<_> = inventory.nameless().filter(|(lv, _)| !tried.contains(lv)).collect();
        // The LVs by which this driver recognizes its other LVs come last.
        left.sort_by_key(|(_, uuid)| group.identity.had.contains(uuid));
        left.truncate(BATCH);
        if left.is_empty() {
            return self.keep_from_boot(group, &turn, &inventory, tried);
        }
        let (skipped, named): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|(_, uuid)| self.may_be_staged(group, &inventory, uuid));
        for (lv, _) in &skipped {
            tracing::warn!(
                vg = %name, %lv, driver = self.driver,
                "not naming an LV of an earlier version: it is active, and this driver did not attach it; trying again at the next start"
            );
        }
        let names = |lvs: &[(LvName, LvUuid)]| lvs.iter().map(|(lv, _)| lv.clone()).collect::<Vec<_>>();
        let lvs = names(&named);
        if !lvs.is_empty() {
            tracing::info!(vg = %name, lvs = lvs.len(), driver = self.driver, "writing the driver's name on LVs of an earlier version");
            let add = vec![tag::of_driver(&self.driver)];
            let command = Command::Retag { vg: inventory.vg.name.clone(), lvs: lvs.clone(), remove: Vec::new(), add };
            group.lvm.change(&turn, &command).map_err(|error| failed(&what, group, error))?;
        }
        Ok(lvs.into_iter().chain(names(&skipped)).collect())
    }

    /// Turns off the autoactivation of a few named LVs.
    fn keep_from_boot(
        &self,
        group: &Group,
        turn: &Turn<'_>,
        inventory: &Inventory,
        tried: &BTreeSet<LvName>,
    ) -> Result<Vec<LvName>, Error> {
        let left: Vec<LvName> =
            inventory.autoactivated().map(|(lv, _)| lv).filter(|lv| !tried.contains(lv)).take(BATCH).collect();
        if !left.is_empty() {
            tracing::info!(vg = %group.name, lvs = left.len(), "turning off the autoactivation of LVs of an earlier version");
            let vg = inventory.vg.name.clone();
            let command = Command::Retag { vg, lvs: left.clone(), remove: Vec::new(), add: Vec::new() };
            let what = format!("LVs of volume group {}", group.name);
            group.lvm.change(turn, &command).map_err(|error| failed(&what, group, error))?;
        }
        Ok(left)
    }

    /// Whether another driver may have an unnamed LV staged: the driver with the default name claims all unnamed LVs.
    fn may_be_staged(&self, group: &Group, inventory: &Inventory, lv: &LvUuid) -> bool {
        group.identity.is_default
            && self.ledger.state(lv).grant.is_none()
            && !matches!(device::find_lv(&*self.kernel, &inventory.vg.uuid, lv), Ok(None))
    }
}

/// LVs that are still as an earlier version left them.
fn untried(inventory: &Inventory, tried: &BTreeSet<LvName>) -> impl Iterator<Item = LvName> {
    inventory.nameless().chain(inventory.autoactivated()).map(|(lv, _)| lv).filter(|lv| !tried.contains(lv))
}
