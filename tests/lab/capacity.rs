//! GetCapacity: the reported capacity can be provisioned.

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, create, map};
use testkit::error::Result;
use testkit::lab;
use tonic::Code;

use crate::rig::Rig;

fn ask(rig: &Rig, request: csi::GetCapacityRequest) -> Result<(u64, u64)> {
    let answer = rig.csi().get_capacity(request).accepted("GetCapacity")?;
    let unsigned = |bytes: i64| u64::try_from(bytes).unwrap_or(u64::MAX);
    Ok((unsigned(answer.available_capacity), answer.maximum_volume_size.map_or(u64::MAX, unsigned)))
}

fn of(pool: &str) -> csi::GetCapacityRequest {
    csi::GetCapacityRequest { parameters: map(&[("pool", pool)]), ..Default::default() }
}

#[test]
fn the_largest_volume_told_is_the_largest_that_is_made() -> Result<()> {
    let rig = Rig::make_on(&[lab::disk(0)?, lab::disk(1)?], Some(512), &[])?;
    for pool in ["linear", "thin"] {
        let (available, largest) = ask(&rig, of(pool))?;
        assert!(largest > 0 && largest <= available, "{pool}: {largest} of {available}");
        let request = |bytes: u64| create(&rig.name(), pool, bytes, block(Mode::SingleNodeWriter));
        let codes = &[Code::ResourceExhausted, Code::OutOfRange];
        rig.rejects(codes, "one extent more", |csi| csi.create_volume(request(largest + testkit::vg::EXTENT)))?;
        let volume = rig.request(request(largest))?;
        assert_eq!(volume.size(), largest);
        let (less, _) = ask(&rig, of(pool))?;
        assert!(less < available, "{pool}: {available} → {less}");
        volume.delete()?;
        assert_eq!(ask(&rig, of(pool))?, (available, largest));
    }
    rig.finish()?;
    covers!(32, 38)
}

#[test]
fn capacity_is_told_per_node_and_class_and_never_refused() -> Result<()> {
    let rig = Rig::linear()?;
    let node = |name: &str| Some(csi::Topology { segments: map(&[("topology.lvm-csi.dev/node", name)]) });
    let (here, _) = ask(&rig, csi::GetCapacityRequest { accessible_topology: node("node-a"), ..of("linear") })?;
    assert_eq!(here, rig.vg.free()?);
    let raw = csi::GetCapacityRequest {
        parameters: map(&[("pool", "linear"), ("csi.storage.k8s.io/fstype", "ext4"), ("csi.storage.k8s.io/unheard-of", "x")]),
        ..Default::default()
    };
    assert_eq!(ask(&rig, raw)?.0, here);
    let nothing = [
        ("another node", csi::GetCapacityRequest { accessible_topology: node("node-z"), ..of("linear") }),
        ("an unknown pool", of("none")),
        ("a pool that this volume group does not have", of("thin")),
    ];
    for (what, request) in nothing {
        assert_eq!(ask(&rig, request)?.0, 0, "{what}");
    }
    let unknown = csi::GetCapacityRequest { parameters: map(&[("pool", "linear"), ("colour", "red")]), ..Default::default() };
    ask(&rig, unknown)?;
    rig.finish()?;
    covers!(37, 39)
}
