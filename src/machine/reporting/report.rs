//! What a person sees of one machine, without its driver and without a cluster. Changes nothing, and runs no LVM command.
//!
//! It reads the ledger, LVM's metadata, devices and mounts next to a running driver, so it is true without one. Only the doctor asks
//! the driver, for its health.

use std::path::PathBuf;
use std::sync::Arc;

use crate::attach::{Damage, Grant, Phase};
use crate::device;
use crate::host::{DmDevice, Udev};
use crate::machine::{Active, Attached, Machine};
use crate::mount::Table;
use crate::types::{Bytes, Error, GroupState, Life, LvUuid, Placement, Pool, PoolConfig, VgName};
use crate::volume::inventory::{Class, Inventory, Snapshot, Volume};
use crate::volume::remarks;

use super::PoolFigures;

/// The state of a machine. Lacks what only the driver knows, such as a command that hangs.
#[derive(Debug)]
pub struct NodeReport {
    /// How udevd answered, if it was asked.
    pub udev: Udev,
    /// The configured groups.
    pub groups: Vec<(VgName, GroupState)>,
    /// Unused devices that look like one of these groups, and what they show.
    pub strangers: Vec<(VgName, PathBuf, String)>,
    /// What a person should know of a group before it refuses something: its name, the fact, and what to do.
    pub remarks: Vec<(VgName, String, &'static str)>,
    /// Its pools by name, and their groups; the error says why a pool is not on offer.
    pub pools: Vec<(String, VgName, Result<PoolFigures, String>)>,
    /// The volumes and snapshots in the groups that can be read.
    pub objects: Vec<VolumeReport>,
    /// LVs with the driver's tags that are none of these: name with group, what is wrong, and what to do.
    pub odd: Vec<(String, String, &'static str)>,
    /// Grants of volumes that do not exist, in groups that can be read.
    pub stray: Vec<Grant>,
    /// Grants in groups that cannot be read or do not exist.
    pub beyond: Vec<Grant>,
    /// Damage found in the ledger.
    pub damage: Vec<Damage>,
}

/// What an LV is to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume that a controller made.
    Volume,
    /// An inline volume of one pod.
    Inline,
    Snapshot,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Volume => "volume",
            Self::Inline => "inline",
            Self::Snapshot => "snapshot",
        }
    }
}

/// A volume or snapshot, and who has it.
#[derive(Clone, Debug)]
pub struct VolumeReport {
    pub kind: Kind,
    pub vg: VgName,
    pub lv: String,
    pub handle: String,
    /// The configured pool that it lies in, if any.
    pub pool: Option<String>,
    pub size: Bytes,
    /// What it holds: a filesystem, raw data, nothing yet.
    pub holds: String,
    /// The claim that it was made for, as `NAMESPACE/NAME`, if that is recorded.
    pub claim: Option<String>,
    /// The grant in force.
    pub grant: Option<Grant>,
    pub phase: Phase,
    /// Its device, while it is active.
    pub device: Option<DmDevice>,
    /// Where it is mounted or shown as a block device.
    pub places: Vec<PathBuf>,
}

/// A resolved pool with its group's inventory, or why it is not on offer.
type ResolvedPool = Result<(Pool, Arc<Inventory>), String>;

impl Machine {
    /// Looks at groups, pools, volumes, attachments, devices and mounts. Blocks as long as the disks do.
    ///
    /// # Errors
    /// The kernel cannot list mounts or devices. A group that cannot be read is part of the answer.
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
        let readable: Vec<(&VgName, Arc<Inventory>)> =
            self.groups.values().filter_map(|group| Some((&group.name, group.inventory().ok()?))).collect();
        for (vg, inventory) in &readable {
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
                        "find out which driver made it, and run lvchange --addtag csi.d=DRIVER; the driver leaves it alone until then",
                    ),
                    Class::Unfinished(_) => (
                        "its creation was interrupted, or somebody made it smaller (lvreduce)".to_owned(),
                        "repeat CreateVolume to finish it; if it was in use, enlarge it to the size in its tag csi.min",
                    ),
                    Class::Damaged(error) => {
                        (format!("its tags cannot be understood: {error}"), "correct them with lvchange --addtag and --deltag")
                    }
                    Class::Renamed(_) => {
                        ("it was renamed, and is not its volume any more".to_owned(), "lvrename it back, or remove its tags")
                    }
                };
                report.odd.push((format!("{vg}/{}", lv.name), odd.0, odd.1));
            }
        }
        // The groups were read above, so their own devices are known.
        report.strangers = self.strangers_now();
        for grant in self.ledger.grants() {
            match readable.iter().find(|(_, inventory)| inventory.vg.uuid == grant.vg) {
                None => report.beyond.push(grant),
                Some((_, inventory)) if inventory.vg.lvs.iter().any(|lv| lv.uuid == grant.lv) => {}
                Some(_) => report.stray.push(grant),
            }
        }
        for (config, pool) in resolved {
            let figures = pool.map(|(pool, inventory)| {
                // The figures use the last known fill; this is the first check.
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
        let active = self.active(volume)?;
        let mut places: Vec<PathBuf> = Vec::new();
        if let Some(Active { attached: Attached { top, .. }, .. }) = &active {
            places.extend(mounts.of_device(top.major, top.minor).map(|entry| entry.target.clone()));
        }
        places.extend(self.shown(&volume.uuid, mounts)?);
        Ok(VolumeReport {
            kind,
            vg: vg.clone(),
            lv: volume.id.lv.to_string(),
            handle: volume.id.to_string(),
            pool,
            size: volume.size,
            holds: self.holds(volume),
            claim: volume.marks.claim.as_ref().map(|claim| claim.as_str().to_owned()),
            phase: state.phase(self.ledger.boot()),
            grant: state.grant,
            device: active.map(|active| active.attached.lv),
            places,
        })
    }

    /// What a volume holds, for people: by its tags, and by the record of its use where that contradicts them.
    fn holds(&self, volume: &Volume) -> String {
        let life = volume.marks.life;
        match (self.exposures.of(&volume.uuid), life) {
            (Some(exposure), _) if exposure.contradicts(life, volume.marks.zeroed) => {
                format!("{}, but its tags say {life}", exposure.life)
            }
            (None, Life::Blank) => "no use recorded".to_owned(),
            (None, Life::Formatting(kind)) => format!("no use recorded ({kind})"),
            _ => life.to_string(),
        }
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
        claim: None,
        grant: None,
        phase: Phase::Free,
        device: None,
        places: Vec::new(),
    }
}
