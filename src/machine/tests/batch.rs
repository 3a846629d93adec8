//! Changes that wait together.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::*;
use crate::lvm::command::Command;
use crate::types::{FsKind, Life};
use crate::volume::tag::Marks;

impl World {
    async fn volumes(&self, pool: &str, count: usize) -> Vec<Volume> {
        let mut made = Vec::new();
        for number in 0..count {
            made.push(self.create(&wish(&format!("pvc-{number}"), pool, 8)).await.unwrap());
        }
        self.lvm.done();
        made
    }

    /// Lets these changes wait while another writer has the turn, and returns the LVM commands that all of them took. `fates` decides the
    /// first commands.
    async fn at_once(
        &self,
        changes: impl IntoIterator<Item = impl Future<Output = Result<(), Error>> + Send + 'static>,
        fates: &[Fate],
    ) -> Vec<String> {
        let group = self.machine.groups.values().next().unwrap();
        let turn = group.lvm.turn().unwrap();
        let changes: Vec<_> = changes.into_iter().map(tokio::spawn).collect();
        let limit = Instant::now() + Duration::from_secs(30);
        while group.batches.count() < changes.len() {
            assert!(Instant::now() < limit, "{} of {} changes wait", group.batches.count(), changes.len());
            tokio::task::yield_now().await;
        }
        self.lvm.fates(fates.iter().copied());
        drop(turn);
        for change in changes {
            change.await.unwrap().unwrap();
        }
        assert_eq!(group.batches.count(), 0);
        self.lvm.done()
    }

    fn deletion(&self, volume: Volume) -> impl Future<Output = Result<(), Error>> + use<> {
        let machine = Arc::clone(&self.machine);
        async move { machine.delete(volume.id).await.map(drop) }
    }

    /// The record that a volume is about to be formatted.
    fn record(&self, volume: Volume, kind: FsKind) -> impl Future<Output = Result<(), Error>> + use<> {
        let machine = Arc::clone(&self.machine);
        let operation = machine.on_volume("NodeStageVolume", &volume.id, ());
        async move {
            let marker = Arc::clone(&machine);
            let marks = Marks { life: Life::Formatting(kind), ..volume.marks.clone() };
            machine.inflight.run(operation, move |reservation| marker.mark(reservation, &volume, &marks).map(drop)).await
        }
    }
}

fn activation(volume: &Volume) -> Command {
    Command::Activate { vg: VgName::new("vg").unwrap(), lvs: vec![volume.id.lv.clone()] }
}

async fn delete_at_once(pool: &str, count: usize, fates: &[Fate]) -> Vec<String> {
    let world = world();
    let volumes = world.volumes(pool, count).await;
    let done = world.at_once(volumes.into_iter().map(|volume| world.deletion(volume)), fates).await;
    for number in 0..count {
        assert_eq!(world.class(&format!("pvc-{number}")), None);
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_wait_go_in_one_command() {
    assert_eq!(delete_at_once("linear", 10, &[]).await, ["lvremove"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_of_thin_volumes_go_one_by_one() {
    assert_eq!(delete_at_once("thin", 3, &[]).await, ["lvremove"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_in_a_batch_is_tried_alone() {
    // The first command removes nothing. Its writer retries alone, and the next one batches the third.
    for fate in [Fate::Refused, Fate::Nothing] {
        assert_eq!(delete_at_once("linear", 3, &[fate]).await, ["lvremove"; 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_alike_go_in_one_command() {
    let world = world();
    let volumes = world.volumes("thin", 6).await;
    let kind = |number| if number < 4 { FsKind::Ext4 } else { FsKind::Xfs };
    let records = volumes.into_iter().enumerate().map(|(number, volume)| world.record(volume, kind(number)));
    assert_eq!(world.at_once(records, &[]).await, ["lvchange"; 2]);
    for number in 0..6 {
        let Some(Class::Volume(volume)) = world.class(&format!("pvc-{number}")) else { panic!("pvc-{number} is gone") };
        assert_eq!(volume.marks.life, Life::Formatting(kind(number)));
    }
}

#[tokio::test]
async fn what_was_decided_by_an_older_state_is_not_taken_along() {
    let world = world();
    let volumes = world.volumes("thin", 3).await;
    let queue = batch::BatchQueue::default();
    for volume in &volumes[1..] {
        queue.enter(&world.inventory(), &activation(volume)).unwrap();
    }
    let vg = world.lvm.vg().name;
    let changed = volumes[1].id.lv.as_str();
    world.lvm.edit(|vg| vg.lvs.iter_mut().filter(|lv| lv.name == changed).for_each(|lv| lv.tags.push("backup".to_owned())));
    let batch = queue.join(&world.inventory(), &activation(&volumes[0]));
    assert_eq!(batch.command.to_string(), format!("activate {vg}/pvc-0 {vg}/pvc-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_change_is_being_made_waits_for_its_end() {
    let world = world();
    let volumes = world.volumes("thin", 2).await;
    let queue = batch::BatchQueue::default();
    let number = queue.enter(&world.inventory(), &activation(&volumes[1])).unwrap();
    let batch = queue.join(&world.inventory(), &activation(&volumes[0]));
    assert_eq!(batch.command.to_string(), format!("activate {0}/pvc-0 {0}/pvc-1", world.lvm.vg().name));
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (begin, begun) = mpsc::channel();
        let (ended, queue) = (&ended, &queue);
        scope.spawn(move || {
            begin.send(()).unwrap();
            queue.leave(number);
            assert!(ended.load(Ordering::SeqCst), "it left while its LV was being activated");
        });
        begun.recv().unwrap();
        for _ in 0..1000 {
            std::thread::yield_now();
        }
        ended.store(true, Ordering::SeqCst);
        drop(batch);
    });
    assert!(queue.leave(number));
    assert_eq!(queue.count(), 0);
}
