//! Devices that look like a volume group of the configuration and are not used as one.

use std::path::PathBuf;
use std::sync::PoisonError;

use crate::types::{VgName, chain};

use super::Local;

impl Local {
    /// Looks for such devices. Foreign devices are waited for, each for a limited time.
    pub(super) fn look_for_strangers(&self) {
        for group in self.groups.values() {
            let found = match group.lvm.strangers() {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(vg = %group.name, error = chain(&error), "the devices of this node cannot be looked at");
                    continue;
                }
            };
            let texts: Vec<String> = found.iter().map(|(device, what)| format!("{} {what}", device.display())).collect();
            let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            let known = strangers.insert(group.name.clone(), texts.clone()).unwrap_or_default();
            for text in texts.iter().filter(|text| !known.contains(text)) {
                tracing::warn!(vg = %group.name, "{text}; it is not used");
            }
        }
    }

    /// The same for a person who asks now.
    pub(super) fn strangers_now(&self) -> Vec<(VgName, PathBuf, String)> {
        let of_group = |group: &super::Group| {
            let found = group.lvm.strangers().unwrap_or_default();
            let name = group.name.clone();
            found.into_iter().map(move |(device, what)| (name.clone(), device, what))
        };
        self.groups.values().flat_map(of_group).collect()
    }
}
