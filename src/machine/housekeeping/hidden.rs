//! What keeps the tools of the host from tenants' bytes: rules for udevd that skip our volumes, and what kubelet puts over them.
//!
//! udevd looks into each block device, and its rules act on what they find: they give it the name `/dev/disk/by-uuid/…`, assemble a RAID,
//! activate a volume group, tell btrfs. LVM activates LVs with flags of its own choice, so only a rule can say no to that.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::MissedTickBehavior;

use crate::device::{lv_dm_uuid, lvm_name};
use crate::host::{FORMER_DM_PREFIX, OWN_DM_PREFIX, RAW_VOLUMES, Udev};
use crate::inflight::Operation;
use crate::machine::Machine;
use crate::types::chain;
use crate::volume::inventory::{Class, Volume};
use crate::volume::name;

/// How long udevd may take to notice new rules. It looks for them at an event, every three seconds at most.
const NOTICE: Duration = Duration::from_secs(5);
/// How often it is looked whether a group hangs, perhaps for udevd.
const LOOK: Duration = Duration::from_secs(5);
/// Device-mapper UUIDs in one line of the rules, which has a limit of 16 KiB.
const IN_A_LINE: usize = 100;
/// What the names of the properties begin with that rules set on the devices by which udevd is asked.
const PROPERTY: &str = "LVM_CSI_RULES_";
/// What ends a line about devices that are hidden.
const HIDE: &str = ", GOTO=\"lvm_csi_hide\"";

/// What is known of the rules.
#[derive(Debug, Default)]
pub(in crate::machine) struct Hiding {
    /// The rules that udevd is to go by.
    rules: String,
    /// What was logged last.
    told: Option<RulesState>,
}

/// What there is to say of udevd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RulesState {
    Well,
    Silent,
    Unwritten,
    Unheeded,
}

impl Machine {
    /// Writes the rules where they are not as they must be. Asks udevd whether it goes by them, unless it is known to; where it does not
    /// answer, the waits of our LVM for it end. Takes some seconds, at most as long as udevd may take for an event and to notice new rules.
    pub fn hide_from_host(&self) {
        self.hide(false);
    }

    /// `is_suspect`: it is asked also where it answered before.
    pub(in crate::machine) fn hide(&self, is_suspect: bool) {
        // Another driver of this name has another run directory, which is locked.
        let file = format!("lvm-csi-{}-{}", self.driver, digest(&self.run_dir.to_string_lossy()));
        let mut hiding = self.hiding.lock().unwrap_or_else(PoisonError::into_inner);
        let (mark, rules) = self.udev_rules(self.kernel.udev_rules(&file).as_deref());
        let put = self.kernel.put_udev_rules(&file, &rules);
        let is_new = hiding.rules != rules || matches!(put, Ok(true));
        let is_known = !is_new && !is_suspect && self.kernel.udev() == Udev::Answers { hides: true };
        let patience = if is_new { NOTICE } else { Duration::ZERO };
        let answer = if is_known { self.kernel.udev() } else { self.kernel.ask_udev(&mark, patience) };
        hiding.rules = rules;
        if answer == Udev::Silent {
            match self.kernel.end_udev_waits(&self.run_dir) {
                Ok(0) => {}
                Ok(waits) => tracing::warn!(waits, "lvm waited for a udevd that does not answer; it goes on without it"),
                Err(error) => tracing::warn!(error = chain(&error), "it is not known whether an lvm waits for udevd"),
            }
        }
        let told = match (answer, &put) {
            (Udev::Absent | Udev::Answers { hides: true }, Ok(_)) => RulesState::Well,
            (Udev::Silent, _) => RulesState::Silent,
            (_, Err(_)) => RulesState::Unwritten,
            (_, Ok(_)) => RulesState::Unheeded,
        };
        if hiding.told == Some(told) {
            return;
        }
        match told {
            RulesState::Silent => tracing::warn!(
                "udevd of this host does not say when it has handled a device: it lacks the rules of device-mapper or dmsetup, or this \
                 container does not share the host's IPC namespace; nobody waits for it, and LVM makes the nodes of devices itself"
            ),
            RulesState::Unwritten => tracing::warn!(
                error = put.as_ref().err().map(|error| chain(error)),
                "the rules for udevd are not written, so tools of the host act on what tenants write to raw volumes; let the driver write \
                 to /run/udev/rules.d"
            ),
            RulesState::Unheeded => tracing::warn!(
                "udevd does not go by the rules in /run/udev/rules.d yet, so tools of the host act on what tenants write to raw volumes; \
                 see udevadm test"
            ),
            RulesState::Well if hiding.told.is_some() => tracing::info!("udevd answers, and goes by the driver's rules"),
            RulesState::Well => {}
        }
        hiding.told = Some(told);
    }

    /// Asks udevd, beside a driver, whether it goes by any driver's rules.
    pub fn ask_udev(&self) -> Udev {
        self.kernel.ask_udev(PROPERTY, Duration::ZERO)
    }

    /// Hides a volume that is about to be activated, where the rules for names do not: one that was imported, or renamed.
    pub(in crate::machine) fn hide_before_activation(&self, volume: &Volume, dm_uuid: &str) {
        let is_hidden = || self.hiding.lock().unwrap_or_else(PoisonError::into_inner).rules.contains(dm_uuid);
        if !name::is_of_ours(volume.id.lv.as_str()) && !is_hidden() {
            self.hide_from_host();
        }
    }

    /// Asks udevd whenever a command of a group hangs: it may wait for it.
    pub fn watch_udev(self: &Arc<Self>) {
        let machine = Arc::clone(self);
        tokio::spawn(async move {
            let (mut looks, mut known) = (tokio::time::interval(LOOK), BTreeSet::new());
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let wedges = machine.groups.values().filter_map(|group| group.lvm.queue().wedge);
                let hanging: BTreeSet<u32> = wedges.filter_map(|wedge| wedge.pid).collect();
                if !hanging.is_subset(&known) {
                    machine.keep_hidden(true).await;
                }
                known = hanging;
            }
        });
    }

    /// The same as [`Self::hide_from_host`], as an operation: the end of the driver waits for it, so that it leaves no device.
    pub(in crate::machine) async fn keep_hidden(self: &Arc<Self>, is_suspect: bool) {
        let machine = Arc::clone(self);
        let operation = Operation::new("hiding volumes from the host", "udevd", is_suspect);
        let hidden = self.inflight.run(operation, move |_| {
            machine.hide(is_suspect);
            Ok(())
        });
        // Another one runs, or it panicked, which the panic hook logs.
        drop(hidden.await);
    }

    /// The property that the rules set on the devices by which udevd is asked, and the rules. LVs are told by the names that we give, in the
    /// groups of the configuration; others of ours, such as imported ones, by UUID. Nothing is read here, where a disk may hang: for a
    /// group that was not read yet what the rules of before say goes on.
    fn udev_rules(&self, before: Option<&str>) -> (String, String) {
        let (mut ours, mut others) = (BTreeSet::new(), BTreeSet::new());
        let mut patterns = Vec::new();
        for (name, group) in &self.groups {
            patterns.extend(name::globs().map(|glob| format!("{}-{}", lvm_name(name.as_str()), lvm_name(&glob))));
            let Some(inventory) = group.last() else {
                ours.extend(before.into_iter().flat_map(by_uuid));
                continue;
            };
            for (lv, class) in inventory.all() {
                let uuid = lv_dm_uuid(&inventory.vg.uuid, &lv.uuid);
                match (class, name::is_of_ours(&lv.name)) {
                    (Class::Foreign, true) => others.insert(uuid),
                    (Class::Foreign | Class::Others(_) | Class::Pool | Class::Hidden, false) | (_, true) => false,
                    (_, false) => ours.insert(uuid),
                };
            }
        }
        rules(&self.driver, &self.run_dir, &patterns, &ours, &others)
    }
}

/// The UUIDs that rules hide.
fn by_uuid(rules: &str) -> impl Iterator<Item = String> {
    let lines = rules.lines().filter_map(|line| line.strip_prefix("ATTR{dm/uuid}==\"")?.strip_suffix(HIDE)?.strip_suffix('"'));
    let uuids = lines.flat_map(|line| line.split('|')).filter_map(|uuid| uuid.strip_suffix('*'));
    uuids.filter(|uuid| uuid.len() == "LVM-".len() + 64 && uuid.starts_with("LVM-")).map(str::to_owned)
}

fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn rules(
    driver: &str,
    run_dir: &Path,
    patterns: &[String],
    ours: &BTreeSet<String>,
    others: &BTreeSet<String>,
) -> (String, String) {
    let mut lines = String::new();
    let mut each = |uuids: &BTreeSet<String>, then: &str| {
        for some in uuids.iter().collect::<Vec<_>>().chunks(IN_A_LINE) {
            let some: Vec<String> = some.iter().map(|uuid| format!("{uuid}*")).collect();
            // Writing to a text does not fail.
            let _ = writeln!(lines, "ATTR{{dm/uuid}}==\"{}\"{then}", some.join("|"));
        }
    };
    each(&[OWN_DM_PREFIX, FORMER_DM_PREFIX].map(str::to_owned).into(), HIDE);
    each(others, ", GOTO=\"lvm_csi_end\"");
    each(ours, HIDE);
    for pattern in patterns {
        let _ = writeln!(lines, "ATTR{{dm/uuid}}==\"LVM-*\", ATTR{{dm/name}}==\"{pattern}\"{HIDE}");
    }
    let (mark, value) = (mark(run_dir), digest(&lines));
    let property = mark.trim_end_matches('=');
    let text = format!(
        "# Made by lvm-csi, driver {driver}. What tenants write is not for this host to look at: no links by UUID or label, no RAID, no\n\
         # volume group, no btrfs.\n\
         SUBSYSTEM!=\"block\", GOTO=\"lvm_csi_end\"\n\
         ACTION==\"remove\", GOTO=\"lvm_csi_end\"\n\
         # The loop devices that kubelet puts over raw volumes, and their partitions.\n\
         KERNEL==\"loop*\", ATTRS{{loop/backing_file}}==\"*{RAW_VOLUMES}*\", ENV{{UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}}=\"1\", \
         ENV{{DM_UDEV_DISABLE_OTHER_RULES_FLAG}}=\"1\"\n\
         KERNEL!=\"dm-*\", GOTO=\"lvm_csi_end\"\n\
         ATTR{{dm/uuid}}==\"{OWN_DM_PREFIX}*\", ENV{{{property}}}=\"{value}\"\n\
         {lines}\
         GOTO=\"lvm_csi_end\"\n\
         LABEL=\"lvm_csi_hide\"\n\
         ENV{{DM_UDEV_DISABLE_DISK_RULES_FLAG}}=\"1\", ENV{{DM_UDEV_DISABLE_OTHER_RULES_FLAG}}=\"1\"\n\
         OPTIONS:=\"nowatch\"\n\
         LABEL=\"lvm_csi_end\"\n"
    );
    (format!("{mark}{value}"), text)
}

/// The property that the rules of the driver with this run directory set, with whatever value.
fn mark(run_dir: &Path) -> String {
    format!("{PROPERTY}{}=", digest(&run_dir.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VgName;

    fn set(uuids: &[&str]) -> BTreeSet<String> {
        uuids.iter().map(|uuid| (*uuid).to_owned()).collect()
    }

    #[test]
    fn the_rules_name_our_volumes_as_device_mapper_does() {
        let vg = VgName::new("lvm-csi").unwrap();
        let patterns: Vec<String> = name::globs().map(|glob| format!("{}-{}", lvm_name(vg.as_str()), lvm_name(&glob))).collect();
        let uuid = |sign: &str| format!("LVM-{}", sign.repeat(64));
        let (ours, others) = (set(&[&uuid("a"), &uuid("b")]), set(&[&uuid("c")]));
        let (mark, text) = rules("a.example", Path::new("/run/a"), &patterns, &ours, &others);
        let (property, value) = mark.split_once('=').unwrap();
        let at = |line: &str| text.lines().position(|there| there == line).unwrap_or_else(|| panic!("{line}\n{text}"));
        at(&format!("ATTR{{dm/uuid}}==\"LVM-lvmcsi*\", ENV{{{property}}}=\"{value}\""));
        at("ATTR{dm/uuid}==\"LVM-lvmcsi*|LVMCSI-*\", GOTO=\"lvm_csi_hide\"");
        at(&format!("ATTR{{dm/uuid}}==\"{}*|{}*\", GOTO=\"lvm_csi_hide\"", uuid("a"), uuid("b")));
        let name = at("ATTR{dm/uuid}==\"LVM-*\", ATTR{dm/name}==\"lvm--csi-pvc--*\", GOTO=\"lvm_csi_hide\"");
        assert!(at(&format!("ATTR{{dm/uuid}}==\"{}*\", GOTO=\"lvm_csi_end\"", uuid("c"))) < name, "others' come first");
        // Each way leads on.
        let mut labels = 0;
        for (number, line) in text.lines().enumerate() {
            labels += usize::from(line.starts_with("LABEL="));
            if let Some((_, label)) = line.split_once("GOTO=\"") {
                let label = format!("LABEL=\"{label}");
                assert!(at(&label) > number, "{line}");
            }
        }
        assert_eq!(labels, 2);
        // What is known of a group that was not read yet is kept.
        assert_eq!(by_uuid(&text).collect::<BTreeSet<_>>(), ours);
        assert!(mark.starts_with(&super::mark(Path::new("/run/a"))) && !mark.starts_with(&super::mark(Path::new("/run/b"))));
        assert_ne!(rules("a.example", Path::new("/run/a"), &patterns, &ours, &ours).0, mark);
    }
}
