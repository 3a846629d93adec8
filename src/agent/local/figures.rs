//! What is told of this machine as figures: from what was seen last, asking neither a disk nor the kernel. The looks for the health of
//! the groups and those after the thin pools keep it fresh.

use std::sync::{Arc, PoisonError};

use crate::agent::figures::{Figures, MetadataFigures, PoolFigures};
use crate::attach::Phase;
use crate::types::{Bytes, LvUuid, Pool, ThinPoolStatus};
use crate::volume::inventory::Inventory;
use crate::volume::{PoolUse, capacity, longest_metadata, owner};

use super::Local;

impl Local {
    /// The figures of the pools, volumes and grants as they were seen last.
    pub fn figures(&self) -> Figures {
        let resolved = self.pools.iter().filter_map(|config| {
            let inventory = self.groups.get(&config.vg)?.last()?;
            // One that is not there, or not as it is configured, has no figures; the log says why.
            let pool = self.resolve(config, &inventory).ok()?;
            Some((pool, inventory))
        });
        let resolved: Vec<(Pool, Arc<Inventory>)> = resolved.collect();
        let pools = resolved.iter().map(|(pool, inventory)| self.pool_figures(pool, inventory)).collect();
        let inventories = self.groups.values().filter_map(|group| Some((group, group.last()?)));
        let (mut volumes, mut groups) = (Vec::new(), Vec::new());
        let mut grants = Phase::ALL.map(|phase| (phase.as_str(), 0));
        let mut metadata = Vec::new();
        for (group, inventory) in inventories {
            if inventory.metadata_area.0 > 0 {
                let (used, limit) = (Bytes(inventory.vg.metadata_bytes as u64), longest_metadata(inventory.metadata_area));
                metadata.push(MetadataFigures { vg: group.name.clone(), used, limit });
            }
            let vg = &inventory.vg;
            let recorded: Vec<String> = owner::recorded(vg).map(|one| one.to_string()).collect();
            groups.push((group.name.clone(), vg.uuid.clone(), recorded.join(", "), owner::check(vg, &self.machine).is_ok()));
            for volume in inventory.volumes() {
                let pool = resolved.iter().find(|(pool, _)| pool.vg == group.name && volume.placement.is_of(&pool.placement));
                let pool = pool.map(|(pool, _)| pool.name.clone()).unwrap_or_default();
                volumes.push((volume.id.clone(), pool, volume.size));
                let phase = self.ledger.state(&volume.uuid).phase(self.ledger.boot());
                grants.iter_mut().filter(|(name, _)| *name == phase.as_str()).for_each(|(_, count)| *count += 1);
            }
        }
        Figures { pools, metadata, volumes, groups, grants: grants.to_vec() }
    }

    /// Takes down how full a thin pool is; `None` while it is not active.
    pub(super) fn note_fill(&self, pool: &LvUuid, status: Option<ThinPoolStatus>) {
        let mut fills = self.fills.lock().unwrap_or_else(PoisonError::into_inner);
        match status {
            Some(status) => fills.insert(pool.clone(), status),
            None => fills.remove(pool),
        };
    }

    pub(super) fn pool_figures(&self, pool: &Pool, inventory: &Inventory) -> PoolFigures {
        let vg = &inventory.vg;
        let thin = pool.placement.thin_pool().and_then(|pool| vg.lv(pool.as_str()));
        let status = thin.and_then(|lv| self.fills.lock().unwrap_or_else(PoisonError::into_inner).get(&lv.uuid).copied());
        let all = || Bytes(vg.pvs.iter().map(|pv| pv.pe_count.to_bytes(vg.extent_bytes()).0).fold(0, u64::saturating_add));
        let sizes = inventory.volumes().filter(|volume| volume.placement.is_of(&pool.placement)).map(|volume| volume.size.0);
        PoolFigures {
            name: pool.name.clone(),
            vg: pool.vg.clone(),
            size: thin.map_or_else(all, |lv| vg.lv_size(lv)),
            available: capacity::of(inventory, pool, status.as_ref().map(PoolUse::of)).available,
            provisioned: thin.map_or_else(|| Bytes(sizes.fold(0, u64::saturating_add)), |lv| vg.provisioned(&lv.name)),
            used: status
                .map(|status| (part(status.used_data, status.total_data), part(status.used_metadata, status.total_metadata))),
        }
    }
}

/// The part of the blocks that is in use; all of none.
fn part(used: u64, total: u64) -> f64 {
    if total == 0 { 1.0 } else { used as f64 / total as f64 }
}
