//! Making a volume larger. The new extents of a linear volume hold what was on the disk before; a raw block volume is shown them
//! only after they were zeroed, through a private map that nobody else knows.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::device;
use crate::host::{DmAccess, LinearMap};
use crate::inflight::Claim;
use crate::lvm::View;
use crate::lvm::command::Command;
use crate::types::{Bytes, Error, Extents, Layout, Life, LvName, Object, Pool, PvUuid, Sectors, VolumeId};
use crate::volume::inventory::{Inventory, Volume};
use crate::volume::tag::Marks;
use crate::volume::{SizeRange, expand};

use super::change::failed;
use super::{Group, Local};

/// How long one call zeroes before it answers that it is not done: well within the orchestrator's patience.
const ZERO_LIMIT: Duration = Duration::from_secs(80);

impl Local {
    pub(super) fn expand_volume(&self, claim: &Claim, id: &VolumeId, size: SizeRange) -> Result<Volume, Error> {
        let missing = || Error::missing(Object::Volume, id.to_string());
        let Some((group, inventory)) = self.find(&id.vg)? else { return Err(missing()) };
        let volume = inventory.volume(id).ok_or_else(missing)?;
        let pool = self.pool_of(group, &inventory, volume);
        let request = expand::Request { id: id.clone(), size };
        let what = format!("volume {id}");
        let grown = self.settle(claim, group, &what, Some(&pool), |inventory, pool_use| {
            expand::decide(inventory, &pool, &request, pool_use)
        })?;
        self.expose(claim, group, &grown)
    }

    /// The pool that a volume lies in; one that the configuration does not name any more still has its group's rules.
    fn pool_of(&self, group: &Group, inventory: &Inventory, volume: &Volume) -> Pool {
        self.configured_pool(group, inventory, volume).unwrap_or_else(|| Pool {
            name: format!("of volume group {}", group.name),
            vg: group.name.clone(),
            layout: match volume.pool.as_deref().map(LvName::new) {
                Some(Ok(pool)) => Layout::Thin { pool, overprovision_percent: 100 },
                _ => Layout::Linear,
            },
            default_size: volume.size,
        })
    }

    /// The pool of the configuration that a volume lies in.
    pub(super) fn configured_pool(&self, group: &Group, inventory: &Inventory, volume: &Volume) -> Option<Pool> {
        let lies = |pool: &Pool| match &pool.layout {
            Layout::Linear => volume.pool.is_none(),
            Layout::Thin { pool, .. } => volume.pool.as_deref() == Some(pool.as_str()),
        };
        let configured = self.pools.iter().filter(|config| config.vg == group.name);
        configured.filter_map(|config| super::resolve(config, inventory).ok()).find(lies)
    }

    /// Gives an active raw linear volume its new extents, zeroed. Everything else has them already, or gets them when it is staged.
    fn expose(&self, claim: &Claim, group: &Group, volume: &Volume) -> Result<Volume, Error> {
        let Some(live) = self.device_of(volume)? else { return Ok(volume.clone()) };
        if volume.pool.is_some() || volume.marks.life != Life::Raw {
            return Ok(volume.clone());
        }
        let mut volume = volume.clone();
        if volume.marks.zeroed < volume.size {
            let zeroed = self.zero_hidden(group, &volume)?;
            volume = self.mark(claim, &volume, &Marks { zeroed, ..volume.marks.clone() })?;
            if zeroed < volume.size {
                return Err(unfinished(&volume));
            }
        }
        let what = format!("volume {}", volume.id);
        let size =
            self.kernel.device_size(&live.node()).map_err(|error| Error::failed(format!("reading the size of {what}"), error))?;
        if size < volume.size {
            let turn = group.lvm.turn().map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
            let refresh = Command::Refresh { vg: group.name.clone(), lv: volume.id.lv.clone() };
            group.lvm.change(&turn, &refresh).map_err(|error| failed(&what, group, error))?;
        }
        Ok(volume)
    }

    /// Zeroes what the live table does not show yet, and says how far the zeroes reach.
    fn zero_hidden(&self, group: &Group, volume: &Volume) -> Result<Bytes, Error> {
        let what = format!("zeroing the new extents of volume {}", volume.id);
        // Held while the map lives: nobody moves or frees these extents meanwhile.
        let _turn = group.lvm.turn().map_err(|wedged| Error::unavailable(&what, wedged.to_string()))?;
        let view = group.lvm.read().map_err(|error| super::unknown(&error))?;
        let extent = view.vg.extent_bytes();
        let from = volume.marks.zeroed.to_extents_down(extent);
        let maps = hidden_maps(&view, volume, from).ok_or_else(|| {
            Error::precondition(&what, "its extents do not lie on PVs that are here, one after the other; see lvs -o+devices")
        })?;
        let start = from.to_bytes(extent);
        let name = format!("lvm--csi-zero-{}", volume.uuid.compact());
        let uuid = format!("{}ZERO-{}", crate::host::OWN_DM_PREFIX, volume.uuid.compact());
        let fail = |error: std::io::Error| Error::failed(&what, error);
        if let Some(old) = self.kernel.dm_find(&uuid).map_err(fail)? {
            self.kernel.dm_remove(&old.name).map_err(fail)?;
        }
        let map = self.kernel.dm_create_linear(&name, &uuid, &maps, DmAccess::ReadWrite).map_err(fail)?;
        let length = Bytes(volume.size.0 - start.0);
        // The map begins at a whole extent. What lies before the tag may be shown already, and be written to.
        let first = Bytes(volume.marks.zeroed.0 - start.0);
        let done = device::zero(&*self.kernel, &map.node(), first, length, Instant::now() + ZERO_LIMIT, &mut |_| {
            ControlFlow::Continue(())
        });
        let removed = self.kernel.dm_remove(&name);
        let done = done.map_err(|error| Error::failed(&what, error))?;
        removed.map_err(fail)?;
        Ok(Bytes(start.0 + done.0))
    }

    /// Zeroes an active raw linear volume that nobody has been shown yet, and records it.
    ///
    /// # Errors
    /// [`Error::Busy`] with the progress where it takes longer than one call may; the next call goes on from there.
    pub fn zero_unseen(&self, claim: &Claim, volume: &Volume) -> Result<Volume, Error> {
        let mut volume = volume.clone();
        let what = format!("zeroing volume {}", volume.id);
        if volume.pool.is_none() && volume.marks.zeroed < volume.size {
            if !matches!(volume.marks.life, Life::Blank | Life::Raw) {
                return Err(Error::precondition(
                    what,
                    format!("it holds {}, and nothing of it is ever zeroed", volume.marks.life),
                ));
            }
            let device = self.activate(claim, &volume)?;
            let live = self.kernel.device_size(&device.node()).map_err(|error| Error::failed(&what, error))?;
            // What an unfinished expansion did not load yet is zeroed when that goes on.
            let end = live.min(volume.size);
            let until = Instant::now() + ZERO_LIMIT;
            let zeroed =
                device::zero(&*self.kernel, &device.node(), volume.marks.zeroed, end, until, &mut |_| ControlFlow::Continue(()))
                    .map_err(|error| Error::failed(&what, error))?;
            let done = zeroed >= end;
            let life = if done { Life::Raw } else { volume.marks.life };
            volume = self.mark(claim, &volume, &Marks { zeroed, life, ..volume.marks.clone() })?;
            if !done {
                return Err(unfinished(&volume));
            }
        }
        if volume.marks.life == Life::Blank {
            volume = self.mark(claim, &volume, &Marks { life: Life::Raw, ..volume.marks.clone() })?;
        }
        Ok(volume)
    }
}

fn unfinished(volume: &Volume) -> Error {
    let percent = volume.marks.zeroed.0.saturating_mul(100) / volume.size.0.max(1);
    Error::busy(
        format!("volume {}", volume.id),
        format!("{percent} % of it are zeroed, {} of {}; repeat the call to go on", volume.marks.zeroed, volume.size),
    )
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
