//! Making a volume larger. The new extents of a linear volume hold what was on the disk before; a raw block volume is shown them
//! only after they were zeroed, through a private map that nobody else knows.

use crate::host::Guard;
use crate::inflight::Claim;
use crate::lvm::command::Command;
use crate::types::{Error, Extents, Object, Pool, ThinRules, VolumeId};
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
                && let Err(error) = self.refuse_unmappable(inventory, volume).and_then(|()| self.record_cut(volume))
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

    /// Refuses to grow a raw volume in use whose new extents could not be zeroed before it shows them: somebody made it a RAID or
    /// striped. Later, when it is grown already, that would be too late.
    fn refuse_unmappable(&self, inventory: &Inventory, volume: &Volume) -> Result<(), Error> {
        let vg = &inventory.vg;
        let is_mapped = || vg.lv_by_uuid(&volume.uuid).is_none_or(|lv| vg.linear_map(lv, Extents(0)).is_some());
        if !volume.must_not_show_growth() || is_mapped() || self.device_of(volume)?.is_none() {
            return Ok(());
        }
        let reason = format!(
            "it is in use, and its LV is not linear any more (lvs -o+segtype {vg}/{lv}), so its new extents cannot be zeroed before they are \
             shown. Nothing was changed. It grows once no pod of this node has it; or make it linear again (lvconvert -m0 {vg}/{lv})",
            vg = vg.name,
            lv = volume.id.lv
        );
        Err(Error::precondition(format!("volume {}", volume.id), reason))
    }

    /// Gives an active raw linear volume its new extents, zeroed. Everything else has them already, or gets them when it is staged.
    fn expose(&self, claim: &Claim, guard: &Guard, group: &Group, volume: &Volume) -> Result<Volume, Error> {
        let Some(live) = self.device_of(volume)? else { return Ok(volume.clone()) };
        if !volume.must_not_show_growth() {
            return Ok(volume.clone());
        }
        let volume = self.zero_hidden(claim, guard, group, volume)?;
        let what = format!("volume {}", volume.id);
        let (node, missing) = (live.node(), || Error::missing(Object::Volume, volume.id.to_string()));
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
        Ok(volume)
    }
}
