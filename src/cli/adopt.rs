//! `lvm-csi adopt`: a volume group becomes this machine's.

use std::path::PathBuf;

use crate::config::Config;
use crate::lvm::Pins;
use crate::machine::{Adopt, Adopted, Machine};
use crate::types::VgName;

use super::run_apart;

/// Makes this machine the one that may change a group, and gives what is to be told.
///
/// # Errors
/// Why that makes no sense, or what could not be begun.
pub fn adopt(config: Config, vg: VgName, devices: Vec<PathBuf>) -> anyhow::Result<String> {
    let request = Adopt { vg: vg.clone(), devices };
    let operation = Machine::on_adopt(&request);
    let pins = Pins::kept(&config.state_dir);
    let adopted = run_apart(config, "adopt", pins, operation, move |machine, reservation| machine.adopt(reservation, &request))?;
    Ok(tell(&adopted, &vg))
}

fn tell(adopted: &Adopted, vg: &VgName) -> String {
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
        format!("volume group {vg} ({uuid}) is already that of this machine, {machine}; nothing was changed\n")
    } else if others.is_empty() {
        format!("volume group {vg} ({uuid}) is now that of this machine, {machine}; it was no machine's before\n")
    } else {
        format!(
            "volume group {vg} ({uuid}) is now that of this machine, {machine}; it was that of {before}\n{before}: where it sees these \
             disks, it changes nothing on them any more; a copy that it has stays its own, and needs another UUID (vgimportclone) to be \
             in the same cluster\n",
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
    fn both_machines_are_told() {
        let uuid = VgUuid::from_compact(&"v".repeat(32)).unwrap();
        let vg = VgName::new("vg0").unwrap();
        let recorded = |id: &str, node: &str| Recorded { id: id.to_owned(), node: node.to_owned() };
        let told = |before: &[Recorded], done| {
            let machine = recorded("bb", "node-b");
            tell(&Adopted { uuid: uuid.clone(), disks: None, before: before.to_vec(), machine, done }, &vg)
        };
        let text = told(&[recorded("aa", "node-a")], true);
        assert!(
            text.contains("is now that of this machine, node-b (machine id bb); it was that of node-a (machine id aa)"),
            "{text}"
        );
        assert!(told(&[], true).contains("no machine's before"));
        assert!(told(&[recorded("bb", "node-b")], false).contains("nothing was changed"));
        let was = VgUuid::from_compact(&"w".repeat(32)).unwrap();
        let disks = Some((Some(was.clone()), vec!["/dev/sdb".into()]));
        let moved = Adopted { uuid: uuid.clone(), disks, before: Vec::new(), machine: recorded("bb", "node-b"), done: false };
        assert_eq!(
            tell(&moved, &vg),
            format!("volume group vg0 ({uuid}) is on /dev/sdb from now on; the group of that name was {was} before\n")
        );
    }
}
