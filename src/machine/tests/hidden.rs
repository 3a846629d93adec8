//! What is hidden from the host.

use super::*;
use crate::host::Udev;

/// A host with a udevd that learns rules and can be asked for them.
struct Host {
    udev: Mutex<Udev>,
    rules: Mutex<Option<String>>,
    is_writable: AtomicBool,
    asked: Mutex<Vec<&'static str>>,
    maps: Mutex<Vec<String>>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            udev: Mutex::new(Udev::Answers { hides: true }),
            rules: Mutex::default(),
            is_writable: AtomicBool::new(true),
            asked: Mutex::default(),
            maps: Mutex::default(),
        }
    }
}

impl Host {
    fn set(&self, udev: Udev) {
        *self.udev.lock().unwrap() = udev;
    }

    fn rules(&self) -> String {
        self.rules.lock().unwrap().clone().unwrap()
    }

    /// What was asked since the last call.
    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Part for Host {
    fn dm_find(&self, _: &str) -> io::Result<Option<DmDevice>> {
        Ok(None)
    }
    fn dm_list(&self, prefix: &str) -> io::Result<Vec<DmDevice>> {
        let maps = self.maps.lock().unwrap();
        Ok(maps.iter().filter(|uuid| uuid.starts_with(prefix)).map(|uuid| device(uuid, uuid, 7)).collect())
    }
    fn dm_remove(&self, name: &str) -> io::Result<()> {
        self.maps.lock().unwrap().retain(|map| map != name);
        Ok(())
    }
    fn udev(&self) -> Udev {
        *self.udev.lock().unwrap()
    }
    fn ask_udev(&self, mark: &str, _: std::time::Duration) -> Udev {
        self.asked.lock().unwrap().push("answer");
        assert!(mark.contains('='));
        Part::udev(self)
    }
    fn udev_rules(&self, _: &str) -> Option<String> {
        self.rules.lock().unwrap().clone()
    }
    fn put_udev_rules(&self, name: &str, text: &str) -> io::Result<bool> {
        assert!(name.starts_with("lvm-csi-lvm.test-"), "{name}");
        if !self.is_writable.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(self.rules.lock().unwrap().replace(text.to_owned()).as_deref() != Some(text))
    }
    fn end_udev_waits(&self, _: &std::path::Path) -> io::Result<usize> {
        self.asked.lock().unwrap().push("end");
        Ok(0)
    }
}

fn world_with(host: &Arc<Host>) -> World {
    world_on(Arc::<Host>::clone(host) as Arc<dyn Kernel>)
}

#[test]
fn udevd_is_asked_until_it_goes_by_the_rules_and_again_when_they_are_gone() {
    let host = Arc::new(Host::default());
    let world = world_with(&host);
    let hide = || {
        world.machine.hide_from_host();
        host.asked()
    };
    assert_eq!(hide(), ["answer"]);
    assert_eq!(hide(), [""; 0]);
    let rules = host.rules.lock().unwrap().take();
    assert_eq!((hide(), Some(host.rules())), (vec!["answer"], rules));
    for (udev, asked) in [
        (Udev::Answers { hides: false }, vec!["answer"]),
        (Udev::Absent, vec!["answer"]),
        // Those who wait for it in vain go on.
        (Udev::Silent, vec!["answer", "end"]),
    ] {
        host.set(udev);
        assert_eq!((hide(), hide()), (asked.clone(), asked), "{udev:?}");
    }
    host.set(Udev::Answers { hides: true });
    host.is_writable.store(false, Ordering::SeqCst);
    assert_eq!(hide(), [""; 0]);
    // It stops answering, and nobody has noticed yet.
    world.machine.hide(true);
    assert_eq!(host.asked(), ["answer"]);
}

#[tokio::test]
async fn volumes_of_other_names_are_hidden_by_their_uuids_and_others_lvs_of_our_names_are_not() {
    let host = Arc::new(Host::default());
    let world = world_with(&host);
    let made = world.create(&wish("pvc-1", "linear", 4)).await.unwrap();
    let somebodys = world.create(&wish("pvc-2", "linear", 4)).await.unwrap();
    let vg = world.lvm.vg();
    let (ours, others) = (lv_dm_uuid(&vg.uuid, &made.uuid), lv_dm_uuid(&vg.uuid, &somebodys.uuid));
    world.machine.hide_from_host();
    let line = |uuid: &str| host.rules().lines().find(|line| line.contains(uuid)).map(str::to_owned);
    assert_eq!((line(&ours), line(&others)), (None, None), "their names say it");
    world.lvm.edit(|vg| {
        vg.lvs.iter_mut().find(|lv| lv.uuid == made.uuid).unwrap().name = "imported".to_owned();
        vg.lvs.iter_mut().find(|lv| lv.uuid == somebodys.uuid).unwrap().tags.clear();
    });
    let read = |world: &World| world.machine.groups.values().for_each(|group| drop(group.inventory()));
    read(&world);
    world.machine.hide_from_host();
    assert!(line(&ours).unwrap().ends_with("GOTO=\"lvm_csi_hide\""));
    assert!(line(&others).unwrap().ends_with("GOTO=\"lvm_csi_end\""));
    // The next driver keeps the UUIDs until it has read the group itself.
    let next = world_with(&host);
    next.machine.hide_from_host();
    assert!(line(&ours).unwrap().ends_with("GOTO=\"lvm_csi_hide\""));
    read(&next);
    next.machine.hide_from_host();
    assert_eq!(line(&ours), None, "that group has no such volume");
}

#[tokio::test]
async fn only_the_own_maps_for_zeroing_are_removed_those_of_earlier_versions_too() {
    let host = Arc::new(Host::default());
    let world = world_with(&host);
    let own = world.create(&wish("pvc-1", "linear", 4)).await.unwrap();
    let others = world.create(&wish("pvc-2", "linear", 4)).await.unwrap();
    world.lvm.edit(|vg| {
        let lv = vg.lvs.iter_mut().find(|lv| lv.uuid == others.uuid).unwrap();
        lv.tags.retain(|tag| !tag.starts_with("csi.d="));
        lv.tags.push("csi.d=other.example".to_owned());
    });
    let vg = world.lvm.vg();
    let former = |volume: &Volume| format!("LVMCSI-ZERO-{}-{}", vg.uuid.compact(), volume.uuid.compact());
    *host.maps.lock().unwrap() = vec![former(&own), former(&others)];
    let group = world.machine.groups.values().next().unwrap();
    world.machine.remove_private_maps(&group.lvm.turn().unwrap(), &vg).unwrap();
    assert_eq!(*host.maps.lock().unwrap(), [former(&others)]);
}
