//! The pools, volumes and grants of this machine as metrics, from the last reads: a scrape asks neither a disk nor the kernel. The health
//! checks of the groups and the watch over the thin pools keep them fresh.

use std::fmt;
use std::sync::{Arc, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::attach::Phase;
use crate::machine::Machine;
use crate::types::{Bytes, LvUuid, Pool, ThinPoolStatus, VgName, VgUuid, VolumeId, figure::gauges};
use crate::volume::inventory::Inventory;
use crate::volume::{PoolUse, capacity, longest_metadata, owner};

/// Size and fill of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolFigures {
    /// Its name in the configuration.
    pub name: String,
    pub vg: VgName,
    /// Size of the volume group, or of the thin pool.
    pub size: Bytes,
    /// What further volumes may take.
    pub available: Bytes,
    /// What its volumes and snapshots promise.
    pub provisioned: Bytes,
    /// Used parts of a thin pool's data and metadata, 0 to 1; `None` for other layouts, and while it is inactive.
    pub used: Option<(f64, f64)>,
}

/// Fill of a group's LVM metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataFigures {
    pub vg: VgName,
    /// Length of the metadata text.
    pub used: Bytes,
    /// Longest text that fits into the smallest metadata area.
    pub limit: Bytes,
}

/// The figures of this machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The pools that exist.
    pub pools: Vec<PoolFigures>,
    /// The LVM metadata of the groups that were read.
    pub metadata: Vec<MetadataFigures>,
    /// Volumes, with the names of their pools and their sizes.
    pub volumes: Vec<(VolumeId, String, Bytes)>,
    /// The groups that were read, with their UUIDs, the machines they record, and whether this machine may change them.
    pub groups: Vec<(VgName, VgUuid, String, bool)>,
    /// Number of volumes in each state of a grant.
    pub grants: Vec<(&'static str, u64)>,
}

type Ask = dyn Fn() -> Figures + Send + Sync;

struct FiguresCollector(Box<Ask>);

impl fmt::Debug for FiguresCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FiguresCollector").finish_non_exhaustive()
    }
}

impl Collector for FiguresCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Figures { pools, metadata: texts, volumes, groups, grants } = (self.0)();
        let encoder = &mut encoder;
        let of = |pool: &PoolFigures| [("pool", pool.name.clone()), ("vg", pool.vg.to_string())];
        let bytes = |pick: fn(&PoolFigures) -> Bytes| pools.iter().map(move |pool| (of(pool), pick(pool).0)).collect::<Vec<_>>();
        gauges(encoder, "pool_size_bytes", "Size of a pool: of its volume group, or of its thin pool", bytes(|pool| pool.size))?;
        gauges(encoder, "pool_available_bytes", "What further volumes may take of a pool", bytes(|pool| pool.available))?;
        let promised = "What the volumes and snapshots of a pool may come to";
        gauges(encoder, "pool_provisioned_bytes", promised, bytes(|pool| pool.provisioned))?;
        let used = |part: fn((f64, f64)) -> f64| pools.iter().filter_map(move |pool| Some((of(pool), part(pool.used?))));
        let data = "Part of a thin pool's data that is in use, 0 to 1";
        gauges(encoder, "pool_thin_data_used_ratio", data, used(|(data, _)| data))?;
        let metadata = "Part of a thin pool's metadata that is in use, 0 to 1";
        gauges(encoder, "pool_thin_metadata_used_ratio", metadata, used(|(_, metadata)| metadata))?;
        let filled = |pick: fn(&MetadataFigures) -> Bytes| {
            texts.iter().map(move |of| ([("vg", of.vg.to_string())], pick(of).0)).collect::<Vec<_>>()
        };
        gauges(encoder, "vg_metadata_used_bytes", "Length of a group's LVM metadata", filled(|of| of.used))?;
        let limit = "How long a group's LVM metadata may be in its smallest metadata area";
        gauges(encoder, "vg_metadata_limit_bytes", limit, filled(|of| of.limit))?;
        let sizes = volumes.into_iter().map(|(id, pool, size)| ([("volume_id", id.to_string()), ("pool", pool)], size.0));
        gauges(encoder, "volume_size_bytes", "Size of a volume", sizes)?;
        let owned = groups.into_iter().map(|(vg, uuid, machine, own)| {
            ([("vg", vg.to_string()), ("vg_uuid", uuid.to_string()), ("machine", machine)], u64::from(own))
        });
        gauges(encoder, "vg_owned", "Whether the volume group is this machine's, or no machine's yet", owned)?;
        let states = grants.into_iter().map(|(state, count)| ([("state", state)], count));
        gauges(encoder, "volumes", "Volumes by the state of their grant", states)
    }
}

/// Adds the figures of a machine to the metrics.
pub fn register_metrics(registry: &mut Registry, machine: &Arc<Machine>) {
    let machine = Arc::clone(machine);
    register(registry, move || machine.figures());
}

fn register(registry: &mut Registry, ask: impl Fn() -> Figures + Send + Sync + 'static) {
    registry.register_collector(Box::new(FiguresCollector(Box::new(ask))));
}

impl Machine {
    /// The figures of the pools, volumes and grants, from the last reads.
    pub fn figures(&self) -> Figures {
        let resolved = self.pools.iter().filter_map(|config| {
            let inventory = self.groups.get(&config.vg)?.last()?;
            // A pool that is missing, or not as configured, has no figures; the log says why.
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
            groups.push((group.name.clone(), vg.uuid.clone(), recorded.join(", "), owner::check(vg, &self.id).is_ok()));
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

    /// Notes the fill of a thin pool; `None` while it is inactive.
    pub(in crate::machine) fn note_fill(&self, pool: &LvUuid, status: Option<ThinPoolStatus>) {
        let mut fills = self.fills.lock().unwrap_or_else(PoisonError::into_inner);
        match status {
            Some(status) => fills.insert(pool.clone(), status),
            None => fills.remove(pool),
        };
    }

    pub(in crate::machine) fn pool_figures(&self, pool: &Pool, inventory: &Inventory) -> PoolFigures {
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

/// The used part of the blocks, 0 to 1; 1 if there are none.
fn part(used: u64, total: u64) -> f64 {
    if total == 0 { 1.0 } else { used as f64 / total as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LvName;

    #[test]
    fn every_object_has_its_own_line() {
        let vg = VgName::new("vg0").unwrap();
        let pool = |name: &str, used| PoolFigures {
            name: name.to_owned(),
            vg: vg.clone(),
            size: Bytes(1000),
            available: Bytes(600),
            provisioned: Bytes(400),
            used,
        };
        let id = VolumeId { vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(), lv: LvName::new("pvc-1").unwrap() };
        let figures = Figures {
            pools: vec![pool("linear", None), pool("thin", Some((0.25, 0.5)))],
            metadata: vec![MetadataFigures { vg: vg.clone(), used: Bytes(9000), limit: Bytes(1 << 19) }],
            groups: vec![(vg.clone(), id.vg.clone(), "node-b (machine id aa)".to_owned(), false)],
            volumes: vec![(id.clone(), "thin".to_owned(), Bytes(400))],
            grants: vec![("free", 1), ("staged", 0)],
        };
        let mut registry = Registry::with_prefix("lvm_csi");
        register(&mut registry, move || figures.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let of_group = format!("lvm_csi_vg_owned{{vg=\"vg0\",vg_uuid=\"{}\",machine=\"node-b (machine id aa)\"}} 0", id.vg);
        let of_volume = format!("lvm_csi_volume_size_bytes{{volume_id=\"{id}\",pool=\"thin\"}} 400");
        assert_eq!(
            lines,
            [
                "lvm_csi_pool_size_bytes{pool=\"linear\",vg=\"vg0\"} 1000",
                "lvm_csi_pool_size_bytes{pool=\"thin\",vg=\"vg0\"} 1000",
                "lvm_csi_pool_available_bytes{pool=\"linear\",vg=\"vg0\"} 600",
                "lvm_csi_pool_available_bytes{pool=\"thin\",vg=\"vg0\"} 600",
                "lvm_csi_pool_provisioned_bytes{pool=\"linear\",vg=\"vg0\"} 400",
                "lvm_csi_pool_provisioned_bytes{pool=\"thin\",vg=\"vg0\"} 400",
                "lvm_csi_pool_thin_data_used_ratio{pool=\"thin\",vg=\"vg0\"} 0.25",
                "lvm_csi_pool_thin_metadata_used_ratio{pool=\"thin\",vg=\"vg0\"} 0.5",
                "lvm_csi_vg_metadata_used_bytes{vg=\"vg0\"} 9000",
                "lvm_csi_vg_metadata_limit_bytes{vg=\"vg0\"} 524288",
                &of_volume,
                &of_group,
                "lvm_csi_volumes{state=\"free\"} 1",
                "lvm_csi_volumes{state=\"staged\"} 0",
            ]
        );
    }
}
