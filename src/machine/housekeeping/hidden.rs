//! Keeps the host's tools away from tenants' bytes: udev rules skip our volumes and the loop devices that kubelet puts over them.
//!
//! udevd probes each block device, and its rules act on what they find: they create `/dev/disk/by-uuid/…`, assemble a RAID, activate a
//! volume group, or tell btrfs. LVM itself chooses the flags with which it activates LVs, so only a rule can prevent that.
//!
//! Devices of our own carry the flags in their events instead. LVs are matched by name, so that a new one is hidden before udevd hears
//! of it; those with other names, such as imported ones, by UUID.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

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
/// How often to check whether a group hangs, perhaps waiting for udevd.
const LOOK: Duration = Duration::from_secs(5);
/// How long after a question udevd is asked again while the same command hangs.
const ASK_AGAIN: Duration = Duration::from_secs(20);
/// Device-mapper UUIDs per line of the rules; a line is limited to 16 KiB.
const IN_A_LINE: usize = 100;
/// Prefix of the properties that rules set on the devices used to ask udevd.
const PROPERTY: &str = "LVM_CSI_RULES_";
/// End of a rule that hides devices.
const HIDE: &str = ", GOTO=\"lvm_csi_hide\"";

/// The state of the udev rules.
#[derive(Debug, Default)]
pub(in crate::machine) struct Hiding {
    /// The rules that udevd should follow.
    rules: String,
    /// The state logged last.
    logged: Option<RulesState>,
}

/// What to log about udevd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RulesState {
    Well,
    Silent,
    Unwritten,
    Unheeded,
}

impl Machine {
    /// Writes the rules if they changed. Asks udevd whether it follows them, unless that is known; if it does not answer, ends the waits
    /// of our LVM for it. Takes some seconds: at most as long as udevd may take for an event and to notice new rules.
    pub fn hide_from_host(&self) {
        self.hide(false);
    }

    /// `is_suspect`: ask udevd even if it answered before.
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
                Ok(waits) => tracing::warn!(waits, "udevd does not answer; ended LVM's waits for it"),
                Err(error) => tracing::warn!(error = chain(&error), "cannot tell whether an lvm waits for udevd"),
            }
        }
        let state = match (answer, &put) {
            (Udev::Absent | Udev::Answers { hides: true }, Ok(_)) => RulesState::Well,
            (Udev::Silent, _) => RulesState::Silent,
            (_, Err(_)) => RulesState::Unwritten,
            (_, Ok(_)) => RulesState::Unheeded,
        };
        if hiding.logged == Some(state) {
            return;
        }
        match state {
            RulesState::Silent => tracing::warn!(
                "udevd on this host does not confirm that it handled a device: it lacks the rules of device-mapper or dmsetup, or this \
                 container does not share the host's IPC namespace; nobody waits for it, and LVM creates device nodes itself"
            ),
            RulesState::Unwritten => tracing::warn!(
                error = put.as_ref().err().map(|error| chain(error)),
                "cannot write the rules for udevd, so the host's tools act on what tenants write to raw volumes; let the driver write \
                 to /run/udev/rules.d"
            ),
            RulesState::Unheeded => tracing::warn!(
                "udevd does not follow the rules in /run/udev/rules.d yet, so the host's tools act on what tenants write to raw \
                 volumes; see udevadm test"
            ),
            RulesState::Well if hiding.logged.is_some() => tracing::info!("udevd answers, and follows the driver's rules"),
            RulesState::Well => {}
        }
        hiding.logged = Some(state);
    }

    /// Asks udevd whether it follows the rules of any driver. Safe while a driver runs.
    pub fn ask_udev(&self) -> Udev {
        self.kernel.ask_udev(PROPERTY, Duration::ZERO)
    }

    /// Hides a volume before its activation if the name patterns do not match it: it was imported or renamed.
    pub(in crate::machine) fn hide_before_activation(&self, volume: &Volume, dm_uuid: &str) {
        let is_hidden = || self.hiding.lock().unwrap_or_else(PoisonError::into_inner).rules.contains(dm_uuid);
        if !name::is_of_ours(volume.id.lv.as_str()) && !is_hidden() {
            self.hide_from_host();
        }
    }

    /// Asks udevd whenever a command of a group hangs, since it may be waiting for udevd, and again while it does: a udevd that is about to
    /// stop may still answer the first question.
    pub fn watch_udev(self: &Arc<Self>) {
        let machine = Arc::clone(self);
        tokio::spawn(async move {
            let (mut looks, mut handled, mut asked) = (tokio::time::interval(LOOK), BTreeSet::new(), Instant::now());
            looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                looks.tick().await;
                let wedges = machine.groups.values().filter_map(|group| group.lvm.queue().wedge);
                let hanging: BTreeSet<u32> = wedges.filter_map(|wedge| wedge.pid).collect();
                if !hanging.is_subset(&handled) || (!hanging.is_empty() && asked.elapsed() >= ASK_AGAIN) {
                    asked = Instant::now();
                    machine.keep_hidden(true).await;
                }
                handled = hanging;
            }
        });
    }

    /// Like [`Self::hide_from_host`], as an operation: shutdown waits for it, so it leaves no device behind.
    pub(in crate::machine) async fn keep_hidden(self: &Arc<Self>, is_suspect: bool) {
        let machine = Arc::clone(self);
        let operation = Operation::new("hiding volumes from the host", "udevd", is_suspect);
        let hidden = self.inflight.run(operation, move |_| {
            machine.hide(is_suspect);
            Ok(())
        });
        // Either another one runs, or it panicked, which the panic hook logs.
        drop(hidden.await);
    }

    /// The property that the rules set on the devices used to ask udevd, and the rules. They match our LVs in the configured groups by
    /// name, and others of ours, such as imported ones, by UUID. Reads nothing, since a disk may hang: a group that was not read yet
    /// keeps its lines of the rules `before`.
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

/// The UUIDs that the rules hide.
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
            // Writing to a `String` cannot fail.
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

/// The property that is set by the rules of the driver with this run directory, without its value.
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
        // Every GOTO leads to a later label.
        let mut labels = 0;
        for (number, line) in text.lines().enumerate() {
            labels += usize::from(line.starts_with("LABEL="));
            if let Some((_, label)) = line.split_once("GOTO=\"") {
                let label = format!("LABEL=\"{label}");
                assert!(at(&label) > number, "{line}");
            }
        }
        assert_eq!(labels, 2);
        // UUIDs stay hidden while their group was not read yet.
        assert_eq!(by_uuid(&text).collect::<BTreeSet<_>>(), ours);
        assert!(mark.starts_with(&super::mark(Path::new("/run/a"))) && !mark.starts_with(&super::mark(Path::new("/run/b"))));
        assert_ne!(rules("a.example", Path::new("/run/a"), &patterns, &ours, &ours).0, mark);
    }
}
