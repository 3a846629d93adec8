//! `lvm-csi adopt`: makes a volume group this machine's.

use std::path::PathBuf;

use crate::config::Config;
use crate::lvm::Pins;
use crate::machine::{Adopt, Adopted, Machine};
use crate::types::VgName;

use super::run_apart;

/// Makes this machine the one that may change a group, and returns the text to print.
///
/// # Errors
/// Adopting makes no sense here, or could not start.
pub fn adopt(config: Config, vg: VgName, devices: Vec<PathBuf>) -> anyhow::Result<String> {
    let request = Adopt { vg: vg.clone(), devices };
    let operation = Machine::on_adopt(&request);
    let pins = Pins::kept(&config.state_dir);
    let adopted = run_apart(config, "adopt", pins, operation, move |machine, reservation| machine.adopt(reservation, &request))?;
    Ok(summary(&adopted, &vg))
}

fn summary(adopted: &Adopted, vg: &VgName) -> String {
    let Adopted { uuid, disks, before, machine, done } = adopted;
    let mut text = String::new();
    if let Some((was, devices)) = disks {
        let devices: Vec<String> = devices.iter().map(|device| device.display().to_string()).collect();
        let was = match was {
            Some(was) if was != uuid => format!("; the group of that name was {was} before"),
            _ => String::new(),
        };
        text = format!("volume group {vg} ({uuid}) is on {} from now on{was}\n", devices.join(", "));
    }
    let others: Vec<String> = before.iter().filter(|one| *one != machine).map(ToString::to_string).collect();
    text += &if !done && disks.is_some() {
        String::new()
    } else if !done {
        format!("volume group {vg} ({uuid}) already belongs to this machine, {machine}; nothing was changed\n")
    } else if others.is_empty() {
        format!("volume group {vg} ({uuid}) now belongs to this machine, {machine}; it belonged to no machine before\n")
    } else {
        format!(
            "volume group {vg} ({uuid}) now belongs to this machine, {machine}; it belonged to {before}\n{before}: it no longer changes \
             these disks, if it sees them; a copy that it has remains its own, and needs another UUID (vgimportclone) to be in the same \
             cluster\n",
            before = others.join(" and of ")
        )
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Recorded, VgUuid};

    #[test]
    fn both_machines_are_named() {
        let uuid = VgUuid::from_compact(&"v".repeat(32)).unwrap();
        let vg = VgName::new("vg0").unwrap();
        let recorded = |id: &str, node: &str| Recorded { id: id.to_owned(), node: node.to_owned() };
        let text_of = |before: &[Recorded], done| {
            let machine = recorded("bb", "node-b");
            summary(&Adopted { uuid: uuid.clone(), disks: None, before: before.to_vec(), machine, done }, &vg)
        };
        let text = text_of(&[recorded("aa", "node-a")], true);
        assert!(
            text.contains("now belongs to this machine, node-b (machine id bb); it belonged to node-a (machine id aa)"),
            "{text}"
        );
        assert!(text_of(&[], true).contains("belonged to no machine before"));
        assert!(text_of(&[recorded("bb", "node-b")], false).contains("nothing was changed"));
        let was = VgUuid::from_compact(&"w".repeat(32)).unwrap();
        let disks = Some((Some(was.clone()), vec!["/dev/sdb".into()]));
        let moved = Adopted { uuid: uuid.clone(), disks, before: Vec::new(), machine: recorded("bb", "node-b"), done: false };
        assert_eq!(
            summary(&moved, &vg),
            format!("volume group vg0 ({uuid}) is on /dev/sdb from now on; the group of that name was {was} before\n")
        );
    }
}
