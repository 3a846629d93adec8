//! Which filesystems are measured, and what is reported.

use std::path::Path;

use super::*;
use crate::host::{FsStats, MountEntry};
use crate::mount::fake::Mounts;

/// A kernel in which every LV is active and has number 253:3.
struct Mounted {
    mounts: Arc<Mounts>,
    /// What happens while a filesystem is measured.
    meanwhile: fn(&Mounts),
}

impl Part for Mounted {
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        Ok(Some(DmDevice { open_count: 1, ..device("labvg-x", uuid, 3) }))
    }

    fn mounts(&self) -> io::Result<Vec<MountEntry>> {
        Part::mounts(&*self.mounts)
    }

    fn stats(&self, path: &Path) -> io::Result<FsStats> {
        (self.meanwhile)(&self.mounts);
        let used = Bytes(if path == Path::new("/pod") { 30 } else { 7 });
        Ok(FsStats { total: Bytes(100), available: Bytes(60), used, inodes: 1, inodes_free: 1 })
    }
}

/// What an agent with such a kernel reports of a volume; `mount` sets up the mounts.
async fn reported(mount: impl Fn(&Mounts), meanwhile: fn(&Mounts)) -> Option<Usage> {
    let mounts = Arc::new(Mounts::new());
    mount(&mounts);
    let world = world_on(Arc::new(Mounted { mounts, meanwhile }));
    let made = world.create(&wish("pvc-1", "linear", 64)).await.unwrap();
    let other = VolumeId { lv: LvName::new("pvc-none").unwrap(), ..made.id.clone() };
    let reported = world.machine.usage(vec![other, made.id.clone()]).await.unwrap();
    assert!(reported.iter().all(|(id, _)| *id == made.id));
    reported.first().map(|(_, usage)| *usage)
}

const VOLUME: (u32, u32) = (253, 3);

#[tokio::test]
async fn only_the_filesystem_of_the_volume_is_measured_and_only_where_it_can_be_written() {
    let (pod, staged) = (Path::new("/pod"), Path::new("/staged"));
    let on = |path, options| move |mounts: &Mounts| mounts.push(VOLUME, "/", path, options, "ext4");
    let usage = Usage { used: Bytes(30), available: Bytes(60) };
    assert_eq!(reported(|_| (), |_| ()).await, None);
    assert_eq!(reported(on(pod, "rw"), |_| ()).await, Some(usage));
    assert_eq!(reported(on(pod, "ro"), |_| ()).await, None);
    // Errors made it read-only.
    let sick = |mounts: &Mounts| {
        on(pod, "rw")(mounts);
        mounts.change(|entries| entries.last_mut().unwrap().super_options = vec!["ro".to_owned()]);
    };
    assert_eq!(reported(sick, |_| ()).await, None);
    // Another filesystem covers it, at one path or at both.
    let cover = |mounts: &Mounts, path| mounts.push((0, 40), "/", path, "rw", "tmpfs");
    let covered = |mounts: &Mounts| {
        on(staged, "rw")(mounts);
        cover(mounts, staged);
        on(pod, "rw")(mounts);
    };
    assert_eq!(reported(covered, |_| ()).await, Some(usage));
    let both = |mounts: &Mounts| {
        covered(mounts);
        cover(mounts, pod);
    };
    assert_eq!(reported(both, |_| ()).await, None);
    // It goes, or is covered, before it is measured: that would be another filesystem.
    assert_eq!(reported(on(pod, "rw"), |mounts| drop(Part::unmount(mounts, Path::new("/pod")))).await, None);
    assert_eq!(reported(on(pod, "rw"), |mounts| mounts.push((0, 40), "/", Path::new("/pod"), "rw", "tmpfs")).await, None);
}

#[tokio::test]
async fn one_measurement_waits_for_no_other() {
    let world = world();
    let one = world.machine.measuring.try_lock().unwrap();
    assert!(matches!(world.machine.usage(vec![]).await, Err(Error::Busy { .. })));
    drop(one);
    assert!(matches!(world.machine.usage(vec![]).await, Err(Error::Failed { .. })));
}
