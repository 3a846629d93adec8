//! Lists of many volumes.

use std::time::Instant;

use super::*;

#[tokio::test]
async fn a_list_of_many_volumes_with_a_grant_each_takes_no_time_squared() {
    const COUNT: usize = 20_000;
    let volume = |number: usize| {
        let uuid = LvUuid::from_compact(&format!("{number:032}")).unwrap();
        let id = VolumeId { vg: vg('a'), lv: name::of_volume(&format!("pvc-{number}")) };
        Volume { id, uuid, size: Bytes(1), pool: None, marks: Marks::blank() }
    };
    let volumes: Vec<Volume> = (0..COUNT).map(volume).collect();
    let mode = Mode::parse("rw,block,SINGLE_NODE_WRITER").unwrap();
    let holder = NodeId::new("a").unwrap();
    let grant = |volume: &Volume| Grant {
        vg: vg('a'),
        lv: volume.uuid.clone(),
        name: None,
        epoch: 1,
        mode: mode.clone(),
        holder: holder.clone(),
    };
    let grants = volumes.iter().map(grant).collect();
    let node = Arc::new(Fake { volumes, grants, ..node("a", Some('a')) });
    let controller = Controller::new(fleet(&[&node]), "lvm-csi.dev");
    let begin = Instant::now();
    let (mut count, mut token) = (0, String::new());
    loop {
        let page = controller.volumes(0, &token).await.unwrap();
        assert!(page.entries.iter().all(|listed| listed.published == [holder.clone()]));
        count += page.entries.len();
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(count, COUNT);
    // Each compared with each would be 400 million times.
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
}
