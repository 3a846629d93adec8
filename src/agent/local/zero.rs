//! Zeroing what a raw linear volume would show of the time before it.
//!
//! One call zeroes for a limited time and then answers how far it is; the tag `csi.z` remembers that for the next one, also when
//! the driver dies meanwhile. It is zeroed through the LV's own device, which no pod is shown: a pod sees a holder, which ends where
//! the tag does.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::device::{self, DeviceError, Zeroer};
use crate::host::{DmAccess, FORMER_DM_PREFIX, Guard, OWN_DM_PREFIX};
use crate::inflight::Claim;
use crate::lvm::Turn;
use crate::lvm::metadata::{Lv, Vg};
use crate::types::{Bytes, Error, Life, Object, step};
use crate::volume::inventory::Volume;
use crate::volume::pool_zeroes;
use crate::volume::tag::{self, Marks};

use super::{Active, Local};

/// How often one call records how far it is: what a driver that dies has zeroed since then is zeroed again.
const RECORDS: u32 = 8;

impl Local {
    /// Zeroes an active volume from its tag on to `end`, and records how far that is. Once all is zero the volume is raw.
    ///
    /// # Errors
    /// [`Error::Busy`] with the progress where it takes longer than one call may; the next call goes on from there.
    fn zero_to(&self, claim: &Claim, active: &Active, end: Bytes) -> Result<Volume, Error> {
        let mut volume = active.volume.clone();
        self.refuse_older_tags(&volume)?;
        let failed = |error| Error::failed(format!("zeroing volume {}", active.volume.id), error);
        let node = device::usable(&*self.kernel, &active.device).map_err(failed)?;
        let mut zeroer = Zeroer::new(&*self.kernel, self.zeroing.percent);
        let limit = Instant::now() + self.zeroing.call;
        loop {
            let record = Instant::now() + self.zeroing.call / RECORDS;
            let from = volume.zeroed();
            step::progress(|| progress(&volume, from));
            let zeroed =
                zeroer.zero(&node, from, end, record, &mut |at| step::progress(|| progress(&volume, at))).map_err(failed)?;
            let life = if zeroed >= end { Life::Raw } else { volume.marks.life };
            volume = self.mark(claim, &volume, &Marks { zeroed, life, ..volume.marks.clone() })?;
            if zeroed >= end {
                return Ok(volume);
            }
            if Instant::now() >= limit {
                let running = format!("{}; repeat the call to go on", progress(&volume, zeroed));
                return Err(Error::busy(format!("volume {}", volume.id), running));
            }
        }
    }

    /// Zeroes what a raw volume that is in use has grown by, and records it. Its pods see that only when their holder grows.
    ///
    /// # Errors
    /// As of [`Self::zero_to`].
    pub(super) fn zero_growth(&self, claim: &Claim, _guard: &Guard, active: &Active) -> Result<Volume, Error> {
        let volume = &active.volume;
        if volume.zeroed() >= volume.size { Ok(volume.clone()) } else { self.zero_to(claim, active, volume.size) }
    }

    /// Whether pods of this node are shown the volume as a block device.
    fn is_shown(&self, volume: &Volume) -> Result<bool, Error> {
        // One without a table was cut short in the making and shows nothing.
        let shows = |access| -> Result<bool, DeviceError> {
            let holder = device::find_holder(&*self.kernel, &volume.uuid, access)?;
            Ok(holder.is_some_and(|holder| holder.has_live_table))
        };
        let found = shows(DmAccess::ReadWrite).and_then(|writer| Ok(writer || shows(DmAccess::ReadOnly)?));
        found.map_err(|error| Error::failed(format!("looking for the holders of volume {}", volume.id), error))
    }

    /// Removes the private maps of a group through which earlier versions zeroed, and which one left that died. Another driver's are for
    /// its own volumes.
    pub(super) fn remove_private_maps(&self, _turn: &Turn<'_>, vg: &Vg) -> Result<(), Error> {
        let what = || format!("removing what is left of zeroing in volume group {}", vg.name);
        let is_others = |lv: &Lv| tag::driver_of(&lv.tags).is_some_and(|name| name != self.driver);
        for prefix in
            [format!("{OWN_DM_PREFIX}-ZERO-{}-", vg.uuid.compact()), format!("{FORMER_DM_PREFIX}ZERO-{}-", vg.uuid.compact())]
        {
            let others: BTreeSet<String> =
                vg.lvs.iter().filter(|lv| is_others(lv)).map(|lv| format!("{prefix}{}", lv.uuid.compact())).collect();
            let maps = self.kernel.dm_list(&prefix).map_err(|error| Error::failed(what(), error))?;
            for map in maps.iter().filter(|map| !others.contains(&map.uuid)) {
                self.kernel.dm_remove(&map.name).map_err(|error| Error::failed(what(), error))?;
            }
        }
        Ok(())
    }

    /// Makes sure that a raw volume that is to be shown shows no old bytes: zeroes what nobody has been shown yet, and records it. What is
    /// shown already grows when it is expanded, and nobody waits for that here.
    ///
    /// # Errors
    /// [`Error::Busy`] with the progress where it takes longer than one call may; the next call goes on from there.
    /// [`Error::Precondition`] for a volume of a thin pool that does not zero its blocks, and for one whose tags are older than what
    /// it holds.
    pub fn zero_unseen(&self, claim: &Claim, _guard: &Guard, active: Active) -> Result<Active, Error> {
        let Active { mut volume, device } = active;
        // Also where nothing is to be zeroed: a pod that is shown a device from before its growth misses its end.
        self.refuse_older_tags(&volume)?;
        let what = format!("zeroing volume {}", volume.id);
        if let Some(pool) = volume.placement.thin_pool() {
            let Some((_, inventory)) = self.find(&volume.id.vg)? else {
                return Err(Error::missing(Object::Volume, volume.id.to_string()));
            };
            pool_zeroes(&inventory.vg, pool.as_str()).map_err(|why| Error::precondition(format!("volume {}", volume.id), why))?;
        } else if volume.zeroed() < volume.size && !self.is_shown(&volume)? {
            if !matches!(volume.marks.life, Life::Blank | Life::Raw) {
                return Err(Error::precondition(
                    what,
                    format!("it holds {}, and nothing of it is ever zeroed", volume.marks.life),
                ));
            }
            let live = device::usable(&*self.kernel, &device)
                .map_err(|error| Error::failed(&what, error))
                .and_then(|node| self.kernel.device_size(&node).map_err(|error| Error::failed(&what, error)))?;
            // What an unfinished expansion did not load yet is zeroed when that goes on.
            let active = Active { volume, device: device.clone() };
            volume = self.zero_to(claim, &active, live.min(active.volume.size))?;
        }
        if volume.marks.life == Life::Blank {
            volume = self.mark(claim, &volume, &Marks { life: Life::Raw, ..volume.marks.clone() })?;
        }
        Ok(Active { volume, device })
    }
}

/// How far the zeroes of a volume reach, in words.
fn progress(volume: &Volume, zeroed: Bytes) -> String {
    let percent = u128::from(zeroed.0) * 100 / u128::from(volume.size.0.max(1));
    format!("{percent} % of it are zeroed, {zeroed} of {}", volume.size)
}
