//! Which machine this is, as the volume groups that it changes record it.

use std::fmt;

use sha2::{Digest, Sha256};

use super::NodeId;

/// Hexadecimal digits of a machine's id: short, since every LVM command reads and writes each byte of a tag.
const DIGITS: usize = 16;

/// What tells this machine from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineId {
    node: NodeId,
    ids: Vec<String>,
}

impl MachineId {
    /// A machine by what identifies it, the best first: pairs of a kind and a value. The name of its node comes last.
    pub fn new<'a>(node: NodeId, sources: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let name = digest("node", node.as_str());
        let ids = sources.into_iter().map(|(kind, value)| digest(kind, value)).chain([name]).collect();
        Self { node, ids }
    }

    /// A machine that a person has given this id; nothing else identifies it.
    pub fn configured(node: NodeId, id: &str) -> Self {
        Self { node, ids: vec![digest("configured", id)] }
    }

    /// How this machine is recorded: by its best id, with the present name of the node for people.
    pub fn record(&self) -> Recorded {
        Recorded { id: self.ids.first().cloned().unwrap_or_default(), node: self.node.to_string() }
    }

    /// Whether a record is of this machine. Any of its ids will do: a source may become readable, or cease to be, with an upgrade.
    pub fn is(&self, recorded: &Recorded) -> bool {
        self.ids.contains(&recorded.id)
    }
}

/// A machine as a volume group records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// A digest of what identifies it.
    pub id: String,
    /// The name of its node when that was recorded.
    pub node: String,
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, node } = self;
        if node.is_empty() { f.write_str(id) } else { write!(f, "{node} (machine id {id})") }
    }
}

/// The kind is part of it, so that one machine's serial number is never another's machine-id.
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
    fn a_machine_is_known_after_a_rename_or_an_upgrade_and_its_clone_is_another() {
        let (dmi, host) = (("dmi", "11111111-2222-3333-4444-555555555555"), ("machine-id", "0123456789abcdef0123456789abcdef"));
        let machine = MachineId::new(node("node-a"), [dmi, host]);
        let recorded = machine.record();
        assert_eq!((recorded.id.len(), recorded.node.as_str()), (DIGITS, "node-a"));
        assert!(MachineId::new(node("node-b"), [dmi, host]).is(&recorded), "the node was renamed");
        // What an earlier version could not read.
        assert!(machine.is(&MachineId::new(node("node-a"), [host]).record()));
        assert!(machine.is(&MachineId::new(node("node-a"), []).record()));
        // A clone of a virtual machine keeps the file, and gets a new UUID.
        let clone = MachineId::new(node("node-a"), [("dmi", "99999999-2222-3333-4444-555555555555"), host]);
        assert!(!clone.is(&recorded));
        // One value, of another kind.
        assert!(!MachineId::new(node("node-a"), [("machine-id", dmi.1)]).is(&recorded));
    }

    #[test]
    fn without_anything_better_a_node_is_known_by_its_name() {
        let machine = MachineId::new(node("node-a"), []);
        assert!(machine.is(&machine.record()));
        assert!(!MachineId::new(node("node-b"), []).is(&machine.record()));
        let configured = MachineId::configured(node("node-a"), "rack-7");
        assert!(configured.is(&configured.record()) && !configured.is(&machine.record()), "nothing else counts then");
    }
}
