//! Work that takes longer than a call. What a group's inventory shows as unfinished continues without a call, also after a restart. The
//! verb itself runs in the background: it gives way to calls, and a repeated call joins it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::inflight::Reservation;
use crate::machine::Machine;
use crate::types::{Error, Life, LvUuid, VgName};
use crate::volume::SizeRange;
use crate::volume::inventory::Volume;
use crate::volume::owner;

/// How often to look for unfinished work that no call of this driver began. Kubelet and the resizer mostly repeat their calls sooner.
const PAUSE: Duration = Duration::from_secs(30);
/// How long work that gave way, or used up its share of time, leaves the group to others.
const REST: Duration = Duration::from_secs(1);

impl Machine {
    /// Continues unfinished work, one volume of a group at a time.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn keep_working(self: &Arc<Self>) {
        for name in self.groups.keys() {
            let (machine, name) = (Arc::clone(self), name.clone());
            tokio::spawn(async move {
                let Some(group) = machine.groups.get(&name) else { return };
                let mut logged = BTreeMap::new();
                loop {
                    // Until a call could not finish, or the pause is over.
                    let _ = tokio::time::timeout(PAUSE, group.unfinished.notified()).await;
                    while machine.work(&name, &mut logged).await {
                        tokio::time::sleep(REST).await;
                    }
                }
            });
        }
    }

    /// Works on each unfinished volume of a group for a while, and returns whether any is still unfinished. Logs a failure when its
    /// reason changes.
    pub(crate) async fn work(self: &Arc<Self>, name: &VgName, logged: &mut BTreeMap<LvUuid, String>) -> bool {
        let (machine, group) = (Arc::clone(self), name.clone());
        let unfinished = tokio::task::spawn_blocking(move || machine.unfinished(&group)).await.unwrap_or_default();
        logged.retain(|lv, _| unfinished.iter().any(|volume| volume.uuid == *lv));
        let mut is_left = false;
        for volume in unfinished {
            let operation = self.on_volume("zeroing", &volume.id, volume.uuid.clone()).in_background();
            let (machine, lv) = (Arc::clone(self), volume.uuid.clone());
            match self.inflight.run(operation, move |reservation| machine.go_on(reservation, &volume)).await {
                Ok(()) => {}
                Err(Error::Busy { .. }) => is_left = true,
                Err(error) => {
                    let text = error.chain();
                    if logged.insert(lv, text.clone()).is_none_or(|before| before != text) {
                        tracing::warn!(vg = %name, error = text, "cannot continue unfinished work; trying again later");
                    }
                }
            }
        }
        is_left
    }

    /// The unfinished volumes of a group that have a device; others finish when they are staged.
    fn unfinished(&self, name: &VgName) -> Vec<Volume> {
        let Some(Ok(inventory)) = self.groups.get(name).map(|group| group.inventory()) else { return Vec::new() };
        if owner::check(&inventory.vg, &self.id).is_err() {
            return Vec::new();
        }
        let unfinished = inventory.volumes().filter(|volume| volume.has_work());
        unfinished.filter(|volume| self.lv_device(volume).is_ok_and(|device| device.is_some())).cloned().collect()
    }

    fn go_on(&self, reservation: &Reservation, volume: &Volume) -> Result<(), Error> {
        if volume.marks.life == Life::Raw {
            return self.expand_volume(reservation, &volume.id, SizeRange::default()).map(drop);
        }
        let volume = self.volume(&volume.id)?;
        let guard = self.guard(reservation, &volume)?;
        match self.active(&volume)? {
            Some(active) => self.zero_unseen(reservation, &guard, active).map(drop),
            None => Ok(()),
        }
    }
}
