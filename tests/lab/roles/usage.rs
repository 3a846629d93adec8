//! How full filesystems are, as a node reports it to its controller over mutual TLS.

use std::fs;
use std::sync::Arc;

use lvm_csi::agent::{Agent, Remote};
use lvm_csi::tls::{self, Credentials};
use lvm_csi::types::{Bytes, NodeId, Usage, VolumeId};
use testkit::client::{block, mount_with};
use testkit::flow::text;
use tokio::runtime::Runtime;

use super::*;

/// A controller's connection to the first node.
struct Asking {
    runtime: Runtime,
    remote: Remote,
}

impl Asking {
    fn new() -> Result<Self> {
        let runtime = Runtime::new().map_err(Trouble::io("starting a runtime"))?;
        let files = Files::of(&super::tls("controller"));
        let files = tls::Files { ca: files.ca, cert: files.cert, key: files.key };
        let wrong = |error: tls::TlsError| Trouble::wrong(error.to_string());
        let credentials = Arc::new(Credentials::load(files, NAME).map_err(wrong)?);
        let node = NodeId::new(AGENTS[0].0).ok_or_else(|| Trouble::wrong("invalid node name"))?;
        let remote = runtime.block_on(async { Remote::new(node, Some(AGENTS[0].1), credentials) }).map_err(wrong)?;
        Ok(Self { runtime, remote })
    }

    /// Asks for the usage of all volumes at once.
    fn usage(&self, volumes: &[&Volume]) -> Result<Vec<Option<Usage>>> {
        let ids: Vec<VolumeId> = volumes.iter().filter_map(|volume| VolumeId::parse(&volume.id)).collect();
        assert_eq!(ids.len(), volumes.len());
        let usages = self.runtime.block_on(self.remote.usage(ids.clone()));
        let usages = usages.map_err(|error| Trouble::wrong(error.chain()))?;
        Ok(ids.iter().map(|id| usages.iter().find(|(of, _)| of == id).map(|(_, usage)| *usage)).collect())
    }
}

/// Returns the usage that kubelet gets for a pod's volume.
fn by_kubelet(volume: &Volume) -> Result<Option<Usage>> {
    let stats = volume.stats("pod")?;
    let bytes = |figure: i64| Bytes(u64::try_from(figure).unwrap_or_default());
    let of_bytes = stats.iter().find(|usage| usage.unit == csi::volume_usage::Unit::Bytes as i32);
    Ok(of_bytes.map(|usage| Usage { used: bytes(usage.used), available: bytes(usage.available) }))
}

#[test]
fn a_controller_is_told_how_full_the_filesystems_are_that_a_node_can_write() -> Result<()> {
    let apart = Apart::make(1)?;
    let asking = Asking::new()?;
    let csi = apart.csi();
    let made = |pool: &str, mib: u64, capability| {
        let name = apart.rig.name();
        let request = csi::CreateVolumeRequest { volume_capabilities: vec![capability], ..wish(&name, pool, &[]) };
        let capacity_range = Some(testkit::client::range(mib * MIB, 0));
        Volume::create(&csi, &apart.rig.places, &name, csi::CreateVolumeRequest { capacity_range, ..request })
    };
    let writer = Mode::SingleNodeWriter;
    let mut ext4 = made("thin", 64, mount("ext4", writer))?;
    let mut xfs = made("linear", 320, mount("xfs", writer))?;
    let mut read = made("linear", 64, mount_with("ext4", writer, &["ro"]))?;
    let mut raw = made("thin", 64, block(writer))?;
    let idle = made("linear", 64, mount("ext4", writer))?;
    assert_eq!(asking.usage(&[&ext4, &idle])?, [None, None]);
    for volume in [&mut ext4, &mut xfs, &mut read, &mut raw] {
        volume.up("pod")?;
    }
    let before = asking.usage(&[&ext4, &xfs])?;
    assert_eq!(before, [by_kubelet(&ext4)?, by_kubelet(&xfs)?]);
    fs::write(ext4.target("pod").join("bytes"), vec![1; 40 << 20]).map_err(Trouble::io("writing into the volume"))?;
    tool::run("sync", &["--file-system", &text(&ext4.target("pod"))])?;
    let all = asking.usage(&[&ext4, &xfs, &read, &raw, &idle])?;
    assert_eq!(all, [by_kubelet(&ext4)?, by_kubelet(&xfs)?, None, None, None]);
    let percent = |usage: Option<Usage>| usage.map_or(0, Usage::percent);
    assert!(percent(before[0]) < 10 && percent(all[0]) > 60, "{before:?}, {all:?}");

    // A filesystem mounted over it does not count. Shared mounts would propagate that mount.
    let (staging, target) = (text(&ext4.staging()), text(&ext4.target("pod")));
    tool::run("mount", &["--make-private", &staging])?;
    tool::run("mount", &["--types", "tmpfs", "none", &staging])?;
    assert_eq!(asking.usage(&[&ext4])?, [all[0]]);
    tool::run("mount", &["--types", "tmpfs", "none", &target])?;
    assert_eq!(asking.usage(&[&ext4, &xfs])?, [None, all[1]]);
    tool::run("umount", &[&target])?;
    tool::run("umount", &[&staging])?;

    for volume in [&ext4, &xfs, &read, &raw] {
        volume.down("pod")?;
    }
    assert_eq!(asking.usage(&[&ext4, &xfs])?, [None, None]);
    idle.delete()?;
    drop(asking);
    apart.finish()
}
