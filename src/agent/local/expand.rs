//! Making a volume larger. The new extents of a linear volume hold what was on the disk before; the pods of a raw block volume are shown
//! them only after they were zeroed.

use crate::host::Guard;
use crate::inflight::Claim;
use crate::lvm::command::Command;
use crate::types::{Error, Object, Pool, ThinRules, VolumeId};
use crate::volume::inventory::{Inventory, Volume};
use crate::volume::{Decision, SizeRange, expand};

use super::{Group, Local};

impl Local {
    pub(super) fn expand_volume(&self, claim: &Claim, id: &VolumeId, size: SizeRange) -> Result<Volume, Error> {
        let Some((group, inventory)) = self.find_own(&id.vg)? else {
            return Err(Error::missing(Object::Volume, id.to_string()));
        };
        let volume = inventory.need_volume(id)?;
        let pool = self.pool_of(group, &inventory, volume);
        let guard = self.guard(claim, volume)?;
        let request = expand::Request { id: id.clone(), size };
        let what = format!("volume {id}");
        let grown = self.settle(claim, group, &what, Some(&pool), |inventory, pool_use| {
            if let Ok(volume) = inventory.need_volume(id)
                && let Err(error) = self.refuse_older_tags(volume)
            {
                return Decision::Refuse(error);
            }
            let decision = expand::decide(inventory, &pool, &request, pool_use);
            if let (Decision::Do(_), Ok(volume)) = (&decision, inventory.need_volume(id))
                && let Err(error) = self.record_cut(volume)
            {
                return Decision::Refuse(error);
            }
            decision
        })?;
        self.expose(claim, &guard, group, &grown)
    }

    /// The pool that a volume lies in; one that the configuration does not name any more still has its group's rules.
    pub(super) fn pool_of(&self, group: &Group, inventory: &Inventory, volume: &Volume) -> Pool {
        self.configured_pool(group, inventory, volume).unwrap_or_else(|| Pool {
            name: format!("of volume group {}", group.name),
            vg: group.name.clone(),
            placement: volume.placement.clone(),
            rules: ThinRules::default(),
            default_size: volume.size,
            reserved: self.reserved(inventory, volume.placement.thin_pool()),
        })
    }

    /// The pool of the configuration that a volume lies in.
    pub(super) fn configured_pool(&self, group: &Group, inventory: &Inventory, volume: &Volume) -> Option<Pool> {
        let configured = self.pools.iter().filter(|config| config.vg == group.name);
        let mut resolved = configured.filter_map(|config| self.resolve(config, inventory).ok());
        resolved.find(|pool| volume.placement.is_of(&pool.placement))
    }

    /// Makes an active raw volume's new extents fit to be shown. Everything else has them already, or gets them when it is staged.
    fn expose(&self, claim: &Claim, guard: &Guard, group: &Group, volume: &Volume) -> Result<Volume, Error> {
        let Some(active) = self.active(volume)?.filter(|_| volume.must_not_show_growth()) else { return Ok(volume.clone()) };
        let what = format!("volume {}", volume.id);
        let (node, missing) = (active.device.node(), || Error::missing(Object::Volume, volume.id.to_string()));
        // An lvextend that died between its commit and the new table leaves a device of the old size.
        self.settle(claim, group, &what, None, |inventory, _| {
            match (self.kernel.device_size(&node), inventory.vg.lv(volume.id.lv.as_str())) {
                (Err(error), _) => Decision::Refuse(Error::failed(format!("reading the size of {what}"), error)),
                (Ok(size), _) if size >= volume.size => Decision::AlreadyThere(()),
                // The command names the LV only, and its name may be another's by now.
                (_, Some(lv)) if lv.uuid == volume.uuid => {
                    Decision::Do(Command::Refresh { vg: inventory.vg.name.clone(), lv: volume.id.lv.clone() })
                }
                _ => Decision::Refuse(missing()),
            }
        })?;
        self.zero_growth(claim, guard, &active)
    }
}
