//! Expands volumes. The new extents of a linear volume hold old bytes of the disk; pods see them on a raw block volume only after they
//! were zeroed.

use crate::inflight::Reservation;
use crate::machine::{Group, Machine};
use crate::types::{Change, Changed, Error, Object, Pool, ThinRules, VolumeId};
use crate::volume::inventory::{Inventory, Volume};
use crate::volume::{Decision, SizeRange, expand};

impl Machine {
    pub(in crate::machine) fn expand_volume(
        &self,
        reservation: &Reservation,
        id: &VolumeId,
        size: SizeRange,
    ) -> Result<Changed<Volume>, Error> {
        let Some((group, inventory)) = self.find_own(&id.vg)? else {
            return Err(Error::missing(Object::Volume, id.to_string()));
        };
        let volume = inventory.need_volume(id)?;
        let pool = self.pool_of(group, &inventory, volume);
        let _guard = self.guard(reservation, volume)?;
        let request = expand::Request { id: id.clone(), size };
        let what = format!("volume {id}");
        let settled = self.settle(reservation, group, &what, Some(&pool), |inventory, pool_use| {
            let facts = || {
                let Ok(volume) = inventory.need_volume(id) else { return Ok(None) };
                self.refuse_older_tags(volume)?;
                if volume.must_not_show_growth() { self.live_size(volume) } else { Ok(None) }
            };
            let decision = match facts() {
                Ok(live) => expand::decide(inventory, &pool, &request, pool_use, live),
                Err(error) => return Decision::Refuse(error),
            };
            if let (Decision::Do(_), Ok(volume)) = (&decision, inventory.need_volume(id))
                && let Err(error) = self.record_cut(volume)
            {
                return Decision::Refuse(error);
            }
            decision
        })?;
        Ok(settled.says(Change::Extended, Change::Found))
    }

    /// The pool that a volume lies in. If the configuration no longer names it, a stand-in with default rules and the group's reserve.
    pub(in crate::machine) fn pool_of(&self, group: &Group, inventory: &Inventory, volume: &Volume) -> Pool {
        self.configured_pool(group, inventory, volume).unwrap_or_else(|| Pool {
            name: format!("of volume group {}", group.name),
            vg: group.name.clone(),
            placement: volume.placement.clone(),
            rules: ThinRules::default(),
            default_size: volume.size,
            reserved: self.reserved(inventory, volume.placement.thin_pool()),
        })
    }

    /// The configured pool that a volume lies in.
    pub(in crate::machine) fn configured_pool(&self, group: &Group, inventory: &Inventory, volume: &Volume) -> Option<Pool> {
        let configured = self.pools.iter().filter(|config| config.vg == group.name);
        let mut resolved = configured.filter_map(|config| self.resolve(config, inventory).ok());
        resolved.find(|pool| volume.placement.is_of(&pool.placement))
    }
}
