//! What identifies the machine across reboots, upgrades, a rename and a lost state directory.

use std::fs;
use std::path::Path;

use crate::types::{MachineId, NodeId};

/// Kind, file, and whether a text identifies nothing.
type Source = (&'static str, &'static str, fn(&str) -> bool);

/// Best source first: hypervisors and clouds give each virtual machine, clones included, a UUID of its own. Cloned templates often
/// share systemd's machine-id. A privileged container sees the sysfs of the host.
const SOURCES: [Source; 3] = [
    ("dmi", "sys/class/dmi/id/product_uuid", is_no_uuid),
    ("serial", "sys/firmware/devicetree/base/serial-number", is_one_digit),
    ("machine-id", "etc/machine-id", is_no_machine_id),
];

/// UUIDs that vendors left in whole series.
const SHARED_UUIDS: [&str; 3] =
    ["03000200-0400-0500-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc", "00020003-0004-0005-0006-000700080009"];

/// The identity of this machine: the one in the configuration, else what firmware and system report.
pub fn machine_id(node: NodeId, configured: Option<&str>) -> MachineId {
    match configured {
        Some(id) => MachineId::configured(node, id),
        None => detected(node, Path::new("/")),
    }
}

fn detected(node: NodeId, root: &Path) -> MachineId {
    let read = |(kind, file, says_nothing): &Source| {
        let text = String::from_utf8(fs::read(root.join(file)).ok()?).ok()?;
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_ascii_lowercase();
        (!text.is_empty() && !says_nothing(&text)).then_some((*kind, text))
    };
    let sources: Vec<(&str, String)> = SOURCES.iter().filter_map(read).collect();
    if sources.is_empty() {
        tracing::warn!(%node, "only its name identifies this machine: set machineId before you rename the node");
    }
    MachineId::new(node, sources.iter().map(|(kind, value)| (*kind, value.as_str())))
}

fn is_no_uuid(text: &str) -> bool {
    text.len() != 36 || is_one_digit(text) || SHARED_UUIDS.contains(&text)
}

fn is_no_machine_id(text: &str) -> bool {
    text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) || is_one_digit(text)
}

/// One character repeated, such as zeros.
fn is_one_digit(text: &str) -> bool {
    let mut characters = text.chars().filter(|c| c.is_alphanumeric());
    characters.next().is_none_or(|first| characters.all(|c| c == first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "4c4c4544-0051-3010-8057-b7c04f4e3633";
    const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

    /// A machine with these files, by the index of their source.
    fn with(files: &[(usize, &str)]) -> MachineId {
        let root = tempfile::tempdir().unwrap();
        for (source, text) in files {
            let path = root.path().join(SOURCES[*source].1);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        detected(node(), root.path())
    }

    fn node() -> NodeId {
        NodeId::new("node-a").unwrap()
    }

    #[test]
    fn the_best_source_that_says_something_counts() {
        let dmi = MachineId::new(node(), [("dmi", UUID)]).record();
        let host = MachineId::new(node(), [("machine-id", MACHINE_ID)]).record();
        assert_eq!(with(&[(0, &format!("{}\n", UUID.to_uppercase())), (2, MACHINE_ID)]).record(), dmi);
        assert_eq!(with(&[(2, &format!("{MACHINE_ID}\n"))]).record(), host);
        assert_eq!(
            with(&[(1, "10000000a0b1c2d3\0")]).record(),
            MachineId::new(node(), [("serial", "10000000a0b1c2d3")]).record()
        );
        for nothing in [
            "",
            "Not Settable",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
        ] {
            assert_eq!(with(&[(0, nothing), (2, MACHINE_ID)]).record(), host, "{nothing:?}");
        }
        let name = MachineId::new(node(), []).record();
        for nothing in ["uninitialized\n", "", "00000000000000000000000000000000"] {
            assert_eq!(with(&[(1, "0000"), (2, nothing)]).record(), name, "{nothing:?}");
        }
    }
}
