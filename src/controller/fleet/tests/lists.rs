//! Lists of many volumes.

use std::time::Instant;

use super::*;

/// A controller of a node with `count` volumes, each granted to it.
fn controller(count: usize) -> Controller {
    let volume = |number: usize| {
        let uuid = LvUuid::from_compact(&format!("{number:032}")).unwrap();
        let id = VolumeId { vg: vg('a'), lv: name::of_volume(&format!("pvc-{number}")) };
        Volume { id, uuid, size: Bytes(1), placement: crate::types::Placement::LINEAR, marks: Marks::blank() }
    };
    let volumes: Vec<Volume> = (0..count).map(volume).collect();
    let mode = Mode::parse("rw,block,SINGLE_NODE_WRITER").unwrap();
    let grant = |volume: &Volume| Grant {
        vg: vg('a'),
        lv: volume.uuid.clone(),
        name: None,
        epoch: 1,
        mode: mode.clone(),
        holder: NodeId::new("a").unwrap(),
    };
    let grants = volumes.iter().map(grant).collect();
    Controller::new(fleet(&[&Arc::new(Fake { volumes, grants, ..node("a", Some('a')) })]), "lvm-csi.dev")
}

#[tokio::test]
async fn every_page_of_a_list_has_its_volumes_with_their_nodes() {
    const COUNT: usize = 12_000;
    let controller = controller(COUNT);
    let (mut count, mut token) = (0, String::new());
    loop {
        let page = controller.volumes(0, &token).await.unwrap();
        assert!(page.entries.iter().all(|listed| listed.published == [NodeId::new("a").unwrap()]));
        count += page.entries.len();
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(count, COUNT);
}

#[tokio::test]
async fn a_list_of_volumes_with_grants_takes_linear_time() {
    // One page each.
    let (few, many) = (controller(1250), controller(5000));
    let took = async |controller: &Controller, count: usize| {
        let begin = Instant::now();
        assert_eq!(controller.volumes(0, "").await.unwrap().entries.len(), count);
        begin.elapsed()
    };
    let mut times = Vec::new();
    // Four times as many take four times as long, or sixteen times if each is compared with each. The machine may be busy with something
    // else in some of the tries, but not in all.
    for _ in 0..20 {
        let (few, many) = (took(&few, 1250).await, took(&many, 5000).await);
        if many < few * 9 {
            return;
        }
        times.push((few, many));
    }
    panic!("{times:?}");
}
