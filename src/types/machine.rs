//! Identity of this machine, as volume groups record it.

use std::fmt;

use sha2::{Digest, Sha256};

use super::NodeId;

/// Hexadecimal digits of a machine's id: short, since every LVM command reads and writes each byte of a tag.
const DIGITS: usize = 16;

/// Identifies this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineId {
    node: NodeId,
    ids: Vec<String>,
}

impl MachineId {
    /// A machine by pairs of a kind and a value that identify it, the best first. The name of its node is added as the last.
    pub fn new<'a>(node: NodeId, sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let name = digest("node", node.as_str());
        let ids = sources.into_iter().map(|(kind, value)| digest(kind, value)).chain([name]).collect();
        Self { node, ids }
    }

    /// A machine with a configured id; nothing else identifies it.
    pub fn configured(node: NodeId, id: &str) -> Self {
        Self { node, ids: vec![digest("configured", id)] }
    }

    /// The record of this machine: its best id, and the present name of the node for people.
    pub fn record(&self) -> Recorded {
        Recorded { id: self.ids.first().cloned().unwrap_or_default(), node: self.node.to_string() }
    }

    /// Whether a record is of this machine. Any of its ids suffices, since an upgrade may make a source readable or unreadable.
    pub fn is(&self, recorded: &Recorded) -> bool {
        self.ids.contains(&recorded.id)
    }
}

/// A machine as a volume group records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// A digest of what identifies it.
    pub id: String,
    /// The name of its node at the time of the record.
    pub node: String,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, node } = self;
        if node.is_empty() { f.write_str(id) } else { write!(f, "{node} (machine id {id})") }
    }
}

/// The digest covers the kind, so that one machine's serial number never equals another's machine-id.
fn digest(kind: &str, value: &str) -> String {
    let sum = Sha256::digest(format!("{kind}:{value}"));
    sum.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn a_machine_is_recognized_after_a_rename_or_an_upgrade_and_its_clone_is_not() {
        let (dmi, host) = (("dmi", "11111111-2222-3333-4444-555555555555"), ("machine-id", "0123456789abcdef0123456789abcdef"));
        let machine = MachineId::new(node("node-a"), [dmi, host]);
        let recorded = machine.record();
        assert_eq!((recorded.id.len(), recorded.node.as_str()), (DIGITS, "node-a"));
        assert!(MachineId::new(node("node-b"), [dmi, host]).is(&recorded), "the node was renamed");
        // Recorded by an earlier version that could not read the other sources.
        assert!(machine.is(&MachineId::new(node("node-a"), [host]).record()));
        assert!(machine.is(&MachineId::new(node("node-a"), []).record()));
        // A clone of a virtual machine keeps the machine-id file and gets a new DMI UUID.
        let clone = MachineId::new(node("node-a"), [("dmi", "99999999-2222-3333-4444-555555555555"), host]);
        assert!(!clone.is(&recorded));
        // The same value with another kind.
        assert!(!MachineId::new(node("node-a"), [("machine-id", dmi.1)]).is(&recorded));
    }

    #[test]
    fn without_any_source_the_name_of_the_node_identifies_a_machine() {
        let machine = MachineId::new(node("node-a"), []);
        assert!(machine.is(&machine.record()));
        assert!(!MachineId::new(node("node-b"), []).is(&machine.record()));
        let configured = MachineId::configured(node("node-a"), "rack-7");
        assert!(configured.is(&configured.record()) && !configured.is(&machine.record()), "nothing else counts then");
    }
}
