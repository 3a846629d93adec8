//! Zeroing what a raw linear volume would show of the time before it.
//!
//! One call zeroes for a limited time and then answers how far it is; the tag `csi.z` remembers that for the next one, also when
//! the driver dies meanwhile. Extents that the live table has not yet are zeroed through a private map. Nobody may move or free
//! them while it lives, so the group's turn is held; it is given up again and again, for others wait for it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::device::{self, Zeroer};
use crate::host::{DmAccess, FORMER_DM_PREFIX, Guard, LinearMap, OWN_DM_PREFIX};
use crate::inflight::Claim;
use crate::lvm::metadata::{Lv, Vg};
use crate::lvm::{HoldError, Turn, View};
use crate::types::{Bytes, Error, Extents, Life, Object, PvUuid, Sectors, VgUuid, chain, step};
use crate::volume::inventory::Volume;
use crate::volume::tag::{self, Marks};
use crate::volume::{may_reshape, pool_zeroes};

use super::{Active, Group, Local, unknown};

/// How long it goes on before others have their turn.
const SLICE: Duration = Duration::from_secs(2);
/// How often one call records how far it is: what a driver that dies has zeroed since then is zeroed again.
const RECORDS: u32 = 8;

impl Local {
    /// Zeroes a volume from its tag on to `end`, `slice` after `slice`, and records how far that is. Each is told where to go on
    /// and when to end, and tells how far it came. Once all is zero the volume is raw.
    fn zero_on(
        &self,
        claim: &Claim,
        volume: &Volume,
        end: Bytes,
        mut slice: impl FnMut(&mut Zeroer<'_>, Bytes, Instant) -> Result<Bytes, Error>,
    ) -> Result<Volume, Error> {
        self.refuse_older_tags(volume)?;
        let mut zeroer = Zeroer::new(&*self.kernel, self.zeroing.percent);
        let limit = Instant::now() + self.zeroing.call;
        let mut volume = volume.clone();
        loop {
            let record = Instant::now() + self.zeroing.call / RECORDS;
            let mut zeroed = volume.zeroed();
            loop {
                step::progress(|| progress(&volume, zeroed));
                zeroed = slice(&mut zeroer, zeroed, record)?;
                if zeroed >= end || Instant::now() >= record {
                    break;
                }
            }
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

    /// Zeroes what the live table of an active raw linear volume does not show yet, and records it.
    ///
    /// # Errors
    /// [`Error::Busy`] with the progress where it takes longer than one call may; the next call goes on from there.
    pub(super) fn zero_hidden(&self, claim: &Claim, _guard: &Guard, group: &Group, volume: &Volume) -> Result<Volume, Error> {
        if volume.zeroed() >= volume.size {
            return Ok(volume.clone());
        }
        self.zero_on(claim, volume, volume.size, |zeroer, from, until| self.zero_privately(group, volume, zeroer, from, until))
    }

    /// Zeroes a volume from a byte on for a while through a private map, and says how far it came.
    fn zero_privately(
        &self,
        group: &Group,
        volume: &Volume,
        zeroer: &mut Zeroer<'_>,
        from: Bytes,
        until: Instant,
    ) -> Result<Bytes, Error> {
        let what = format!("zeroing the new extents of volume {}", volume.id);
        let turn = group.lvm.turn().map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        // While the map lives nobody may move or free the extents: an administrator's lvm waits, as ours do.
        let (view, _lock) = group.lvm.hold(&turn).map_err(|error| match error {
            HoldError::Read(error) => unknown(&error),
            HoldError::Lock(error) => Error::unavailable(&what, chain(&error)),
        })?;
        let until = until.min(Instant::now() + SLICE);
        self.remove_private_maps(&turn, &view.vg)?;
        may_reshape(&view.vg, view.vg.lv_by_uuid(&volume.uuid), &what)?;
        let extent = view.vg.extent_bytes();
        let first = from.to_extents_down(extent);
        let maps = hidden_maps(&view, volume, first).ok_or_else(|| {
            Error::precondition(&what, "its extents do not lie on PVs that are here, one after the other; see lvs -o+devices")
        })?;
        // The map begins at a whole extent. What lies before the tag may be shown already, and be written to.
        let start = first.to_bytes(extent);
        let (begin, length) = (Bytes(from.0 - start.0), Bytes(volume.size.0 - start.0));
        let name = format!("lvm--csi-zero-{}", volume.uuid.compact());
        let uuid = format!("{}{}", private_prefix(&view.vg.uuid), volume.uuid.compact());
        let fail = |error: std::io::Error| Error::failed(&what, error);
        let map = self.kernel.dm_create_linear(&name, &uuid, &maps, DmAccess::ReadWrite).map_err(fail)?;
        let mut step_done = |at: Bytes| step::progress(|| progress(volume, Bytes(start.0 + at.0)));
        let done = device::usable(&*self.kernel, &map).and_then(|node| zeroer.zero(&node, begin, length, until, &mut step_done));
        let removed = self.kernel.dm_remove(&name);
        let done = done.map_err(|error| Error::failed(&what, error))?;
        removed.map_err(fail)?;
        Ok(Bytes(start.0 + done.0))
    }

    /// Removes the private maps of a group, which a driver left that died. With the turn at the group nobody else uses one, apart from
    /// another driver, for its own volumes.
    pub(super) fn remove_private_maps(&self, _turn: &Turn<'_>, vg: &Vg) -> Result<(), Error> {
        let what = || format!("removing what is left of zeroing in volume group {}", vg.name);
        let is_others = |lv: &Lv| tag::driver_of(&lv.tags).is_some_and(|name| name != self.driver);
        for prefix in [private_prefix(&vg.uuid), format!("{FORMER_DM_PREFIX}ZERO-{}-", vg.uuid.compact())] {
            let others: BTreeSet<String> =
                vg.lvs.iter().filter(|lv| is_others(lv)).map(|lv| format!("{prefix}{}", lv.uuid.compact())).collect();
            let maps = self.kernel.dm_list(&prefix).map_err(|error| Error::failed(what(), error))?;
            for map in maps.iter().filter(|map| !others.contains(&map.uuid)) {
                self.kernel.dm_remove(&map.name).map_err(|error| Error::failed(what(), error))?;
            }
        }
        Ok(())
    }

    /// Makes sure that a raw volume that is shown now shows no old bytes: zeroes what nobody has been shown yet, and records it.
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
        } else if volume.zeroed() < volume.size {
            if !matches!(volume.marks.life, Life::Blank | Life::Raw) {
                return Err(Error::precondition(
                    what,
                    format!("it holds {}, and nothing of it is ever zeroed", volume.marks.life),
                ));
            }
            let node = device::usable(&*self.kernel, &device).map_err(|error| Error::failed(&what, error))?;
            let live = self.kernel.device_size(&node).map_err(|error| Error::failed(&what, error))?;
            // What an unfinished expansion did not load yet is zeroed when that goes on.
            let end = live.min(volume.size);
            volume = self.zero_on(claim, &volume, end, |zeroer, from, until| {
                let done = zeroer.zero(&node, from, end, until, &mut |at| step::progress(|| progress(&volume, at)));
                done.map_err(|error| Error::failed(&what, error))
            })?;
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

/// What the dm UUIDs of the private maps in a group begin with; the UUID of the volume follows. With the hyphens they are like those of
/// LVM's hidden layers, which no tool looks into: the old bytes there may be anything.
fn private_prefix(vg: &VgUuid) -> String {
    format!("{OWN_DM_PREFIX}-ZERO-{}-", vg.compact())
}

/// The pieces of the disks that a linear volume has from an extent on.
fn hidden_maps(view: &View, volume: &Volume, from: Extents) -> Option<Vec<LinearMap>> {
    let lv = view.vg.lv_by_uuid(&volume.uuid)?;
    let pieces = view.vg.linear_map(lv, from)?;
    let map = |(pv, offset, length): (PvUuid, Sectors, Sectors)| {
        Some(LinearMap { device: view.disks.get(&pv)?.clone(), offset: offset.0, length: length.0 })
    };
    pieces.into_iter().map(map).collect()
}
