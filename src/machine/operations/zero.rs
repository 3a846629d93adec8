//! Zeroes the parts of a raw linear volume that would show old bytes.
//!
//! One call zeroes for a limited time, then answers with its progress. The tag `csi.z` records the progress for whoever continues, even
//! after the driver died. Zeroing writes through the LV's own device, which no pod sees: a pod sees a holder, which ends where the tag
//! does.
//!
//! The tag never says more than there is: it counts up to the LV's size only. It is corrected before the LV grows, and by housekeeping.
//! One case stays unseen: a person's `lvreduce` and `lvextend` between two looks, over extents that another LV had in between.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Instant;

use crate::device::{self, Zeroer};
use crate::host::{DmDevice, FORMER_DM_PREFIX, Guard, OWN_DM_PREFIX};
use crate::inflight::Reservation;
use crate::lvm::Turn;
use crate::lvm::metadata::{Lv, Vg};
use crate::machine::{Active, Machine};
use crate::types::{Bytes, Error, Life, Object, step};
use crate::volume::inventory::{Inventory, Volume};
use crate::volume::tag::{self, Marks};
use crate::volume::zero::{self, Live};
use crate::volume::{Decision, Zero};

/// Least number of slices per call. Each records its progress; a crash repeats what was zeroed since the last record.
const RECORDS: u32 = 8;

impl Machine {
    /// Zeroes part of an active volume for a while, starting at its tag, and records the progress. Once all of it is zero the volume is
    /// raw.
    pub(in crate::machine) fn take_slice(&self, reservation: &Reservation, zero: &Zero) -> Result<(), Error> {
        let volume = &zero.volume;
        let failed = |error| Error::failed(format!("zeroing volume {}", volume.id), error);
        let device = self.lv_device(volume)?.ok_or_else(|| {
            Error::precondition(
                format!("zeroing volume {}", volume.id),
                "it has no device on this node; stage it, or repeat the call",
            )
        })?;
        let node = device::usable(&*self.kernel, &device).map_err(failed)?;
        let mut zeroer = Zeroer::new(&*self.kernel, self.zeroing.percent);
        let until = Instant::now() + self.zeroing.call / RECORDS;
        let note = |at| step::progress(|| zero.progress(at));
        note(volume.zeroed());
        let mut step_done = |at| {
            note(at);
            if reservation.must_give_way() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let zeroed = zeroer.zero(&node, volume.zeroed(), zero.to, until, &mut step_done).map_err(failed)?;
        let life = if zeroed >= zero.to { Life::Raw } else { volume.marks.life };
        self.mark(reservation, volume, &Marks { zeroed, life, ..volume.marks.clone() }).map(drop)
    }

    /// The size of a volume's device; `None` while the volume is not active.
    pub(in crate::machine) fn live_size(&self, volume: &Volume) -> Result<Option<Bytes>, Error> {
        self.lv_device(volume)?.map(|device| self.size_of(volume, &device)).transpose()
    }

    fn size_of(&self, volume: &Volume, device: &DmDevice) -> Result<Bytes, Error> {
        let what = || format!("reading the size of volume {}", volume.id);
        let node = device::usable(&*self.kernel, device).map_err(|error| Error::failed(what(), error))?;
        self.kernel.device_size(&node).map_err(|error| Error::failed(what(), error))
    }

    /// Whether pods of this node see the volume as a block device.
    fn is_shown(&self, volume: &Volume) -> Result<bool, Error> {
        let holders = device::holders(&*self.kernel, &volume.uuid)
            .map_err(|error| Error::failed(format!("looking for the holders of volume {}", volume.id), error))?;
        // A holder without a table is an interrupted creation and shows nothing.
        Ok(holders.iter().any(|(_, holder)| holder.has_live_table))
    }

    /// Removes the private maps of a group through which earlier versions zeroed, and which a dead one left. Those for another driver's
    /// volumes stay.
    pub(in crate::machine) fn remove_private_maps(&self, _turn: &Turn<'_>, vg: &Vg) -> Result<(), Error> {
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

    /// Ensures that a raw volume about to be shown shows no old bytes: zeroes what nobody has seen yet, and records it. A volume that is
    /// shown already grows when it is expanded, and nobody waits for that here.
    ///
    /// # Errors
    /// [`Error::Busy`] with the progress if it takes longer than one call may; the next call continues. [`Error::Precondition`] for a
    /// volume of a thin pool that does not zero its blocks, and for one whose tags are older than its data.
    pub fn zero_unseen(&self, reservation: &Reservation, _guard: &Guard, active: Active) -> Result<Active, Error> {
        let Active { volume, attached } = active;
        let missing = || Error::missing(Object::Volume, volume.id.to_string());
        let Some((group, inventory)) = self.find(&volume.id.vg)? else { return Err(missing()) };
        let decide = |inventory: &Inventory| {
            // Check even if nothing needs zeroing: a pod that is shown a device from before its growth misses its end.
            let now = inventory.volume(&volume.id).unwrap_or(&volume);
            let live = self
                .refuse_older_tags(now)
                .and_then(|()| Ok(Live { size: self.size_of(now, &attached.lv)?, is_shown: self.is_shown(now)? }));
            match live {
                Ok(live) => zero::before_shown(inventory, &volume.id, &volume.uuid, live),
                Err(error) => Decision::Refuse(error),
            }
        };
        // Most publications follow a complete stage, and have nothing to do or to flush.
        let volume = match decide(&inventory) {
            Decision::AlreadyThere(volume) => volume,
            _ => {
                self.settle(reservation, group, &format!("volume {}", volume.id), None, |inventory, _| decide(inventory))?.answer
            }
        };
        Ok(Active { volume, attached })
    }
}
