//! Devices that look like a configured volume group and are not used as one.

use std::path::PathBuf;
use std::sync::PoisonError;

use crate::lvm::ReadError;
use crate::machine::Machine;
use crate::types::{VgName, chain};

impl Machine {
    /// Looks for such devices, and remembers them for each group. Waits for foreign devices, each for a limited time.
    pub(in crate::machine) fn look_for_strangers(&self) {
        for (vg, devices) in self.find_strangers() {
            let texts: Vec<String> = devices.iter().map(|(device, what)| format!("{} {what}", device.display())).collect();
            let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            let before = strangers.insert(vg.clone(), texts.clone()).unwrap_or_default();
            for text in texts.iter().filter(|text| !before.contains(text)) {
                tracing::warn!(%vg, "{text}; it is not used");
            }
        }
    }

    /// Looks for them now, for a person who asks.
    pub(in crate::machine) fn strangers_now(&self) -> Vec<(VgName, PathBuf, String)> {
        let of_group =
            |(vg, devices): (&VgName, Vec<_>)| devices.into_iter().map(|(device, what)| (vg.clone(), device, what)).collect();
        self.find_strangers().flat_map::<Vec<_>, _>(of_group).collect()
    }

    fn find_strangers(&self) -> impl Iterator<Item = (&VgName, Vec<(PathBuf, String)>)> {
        self.groups.values().filter_map(|group| {
            let warn =
                |error: &ReadError| tracing::warn!(vg = %group.name, error = chain(error), "cannot examine the devices of this node");
            Some((&group.name, group.lvm.strangers().inspect_err(warn).ok()?))
        })
    }
}
