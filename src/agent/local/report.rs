//! A look at the whole machine for a person. Changes nothing, and starts no LVM command.

use std::path::PathBuf;
use std::sync::Arc;

use crate::agent::report::{Kind, NodeReport, VolumeReport};
use crate::attach::Phase;
use crate::device;
use crate::host::Udev;
use crate::mount::Table;
use crate::types::{Error, LvUuid, Placement, Pool, PoolConfig, VgName};
use crate::volume::inventory::{Class, Inventory, Snapshot, Volume};
use crate::volume::remarks;

use super::Local;

/// A pool as it is on the machine, and what is in its group; or why it is not on offer.
type ResolvedPool = Result<(Pool, Arc<Inventory>), String>;

impl Local {
    /// Looks at groups, pools, volumes, attachments, devices and mounts. Blocks as long as the disks do.
    ///
    /// # Errors
    /// The kernel cannot be asked for mounts or devices. A group that cannot be read is in the answer.
    pub fn report(&self) -> Result<NodeReport, Error> {
        let mounts = Table::read(self.kernel()).map_err(|error| Error::failed("looking at the mounts of this node", error))?;
        let resolve = |config: &PoolConfig| match self.pool(&config.name) {
            Ok((pool, _, inventory)) => Ok((pool, inventory)),
            Err(error) => Err(error.chain()),
        };
        let resolved: Vec<(&PoolConfig, ResolvedPool)> = self.pools.iter().map(|config| (config, resolve(config))).collect();
        let mut report = NodeReport {
            udev: Udev::Absent,
            groups: self.group_names().into_iter().map(|name| (name.clone(), self.group_state(&name))).collect(),
            strangers: Vec::new(),
            remarks: Vec::new(),
            pools: Vec::new(),
            objects: Vec::new(),
            odd: Vec::new(),
            stray: Vec::new(),
            beyond: Vec::new(),
            damage: self.ledger.damage().to_vec(),
        };
        let known: Vec<(&VgName, Arc<Inventory>)> =
            self.groups.values().filter_map(|group| Some((&group.name, group.inventory().ok()?))).collect();
        for (vg, inventory) in &known {
            report.remarks.extend(remarks(inventory).into_iter().map(|(reason, advice)| ((*vg).clone(), reason, advice)));
            let pool_of = |placement: &Placement| {
                let mut pools = resolved.iter().filter_map(|(_, pool)| Some(&pool.as_ref().ok()?.0));
                pools.find(|pool| pool.vg == **vg && placement.is_of(&pool.placement)).map(|pool| pool.name.clone())
            };
            for (lv, class) in inventory.all() {
                let odd = match class {
                    Class::Volume(volume) => {
                        report.objects.push(self.volume_report(Kind::Volume, vg, volume, pool_of(&volume.placement), &mounts)?);
                        continue;
                    }
                    Class::Ephemeral(volume) => {
                        report.objects.push(self.volume_report(Kind::Inline, vg, volume, pool_of(&volume.placement), &mounts)?);
                        continue;
                    }
                    Class::Snapshot(snapshot) => {
                        report.objects.push(cut(vg, snapshot, pool_of(&snapshot.placement)));
                        continue;
                    }
                    Class::Pool | Class::Hidden | Class::Foreign | Class::Others(Some(_)) => continue,
                    Class::Others(None) => (
                        "an earlier version made it, and no driver's name is on it".to_owned(),
                        "find out which driver made it, and run lvchange --addtag csi.d=DRIVER; nothing is done with it until then",
                    ),
                    Class::Unfinished(_) => (
                        "its creation was cut short, or somebody made it smaller (lvreduce)".to_owned(),
                        "it goes on when CreateVolume is repeated; one that was in use is to be made as large again as its tag csi.min says",
                    ),
                    Class::Damaged(error) => {
                        (format!("its tags cannot be understood: {error}"), "mend them with lvchange --addtag and --deltag")
                    }
                    Class::Renamed(_) => {
                        ("it was renamed, and is not its volume any more".to_owned(), "lvrename it back, or remove its tags")
                    }
                };
                report.odd.push((format!("{vg}/{}", lv.name), odd.0, odd.1));
            }
        }
        // The groups were read by now, so their own devices are known.
        report.strangers = self.strangers_now();
        for grant in self.ledger.grants() {
            match known.iter().find(|(_, inventory)| inventory.vg.uuid == grant.vg) {
                None => report.beyond.push(grant),
                Some((_, inventory)) if inventory.vg.lvs.iter().any(|lv| lv.uuid == grant.lv) => {}
                Some(_) => report.stray.push(grant),
            }
        }
        for (config, pool) in resolved {
            let figures = pool.map(|(pool, inventory)| {
                // The figures are of what was seen last, and this look is the first.
                self.pool_use(&pool, &inventory);
                self.pool_figures(&pool, &inventory)
            });
            report.pools.push((config.name.clone(), config.vg.clone(), figures));
        }
        Ok(report)
    }

    fn volume_report(
        &self,
        kind: Kind,
        vg: &VgName,
        volume: &Volume,
        pool: Option<String>,
        mounts: &Table,
    ) -> Result<VolumeReport, Error> {
        let state = self.ledger.state(&volume.uuid);
        let device = self.device_of(volume)?;
        let mut places: Vec<PathBuf> = Vec::new();
        if let Some(device) = &device {
            places.extend(mounts.of_device(device.major, device.minor).map(|entry| entry.target.clone()));
        }
        places.extend(self.shown(&volume.uuid, mounts)?);
        Ok(VolumeReport {
            kind,
            vg: vg.clone(),
            lv: volume.id.lv.to_string(),
            handle: volume.id.to_string(),
            pool,
            size: volume.size,
            holds: volume.marks.life.to_string(),
            phase: state.phase(self.ledger.boot()),
            grant: state.grant,
            device,
            places,
        })
    }

    /// Where a volume is shown as a block device.
    fn shown(&self, lv: &LvUuid, mounts: &Table) -> Result<Vec<PathBuf>, Error> {
        let holders = device::holders(self.kernel(), lv);
        let holders = holders.map_err(|error| Error::failed("looking for block devices of pods", error))?;
        let shown = holders.iter().flat_map(|(_, holder)| mounts.of_block_node(holder.minor));
        Ok(shown.map(|entry| entry.target.clone()).collect())
    }
}

fn cut(vg: &VgName, snapshot: &Snapshot, pool: Option<String>) -> VolumeReport {
    VolumeReport {
        kind: Kind::Snapshot,
        vg: vg.clone(),
        lv: snapshot.id.lv.to_string(),
        handle: snapshot.id.to_string(),
        pool,
        size: snapshot.size,
        holds: snapshot.marks.life.to_string(),
        grant: None,
        phase: Phase::Free,
        device: None,
        places: Vec::new(),
    }
}
