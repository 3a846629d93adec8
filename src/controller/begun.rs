//! Creations whose result is unknown, and the nodes on which they began.

use std::collections::BTreeMap;

use crate::types::NodeId;

/// Most remembered creations. A caller usually repeats the call until the result is known, and then the creation is forgotten. But a
/// caller that gives up, such as for a deleted claim, never says so.
const MOST: usize = 4096;

/// The nodes on which creations began, by CSI name.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// Number of the last try, and its node.
    nodes: BTreeMap<String, (u64, NodeId)>,
    /// Names by number of the last try.
    tries: BTreeMap<u64, String>,
    count: u64,
}

impl Begun {
    /// Remembers that a creation is tried on a node. If there are too many, the one with the oldest try is forgotten.
    pub(super) fn on(&mut self, name: &str, node: NodeId) {
        self.ended(name);
        self.count += 1;
        self.nodes.insert(name.to_owned(), (self.count, node));
        self.tries.insert(self.count, name.to_owned());
        if self.tries.len() > MOST
            && let Some((_, oldest)) = self.tries.pop_first()
        {
            self.nodes.remove(&oldest);
        }
    }

    /// Forgets a creation, since its result is known.
    pub(super) fn ended(&mut self, name: &str) {
        if let Some((number, _)) = self.nodes.remove(name) {
            self.tries.remove(&number);
        }
    }

    /// The node of the last try.
    pub(super) fn node(&self, name: &str) -> Option<&NodeId> {
        self.nodes.get(name).map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_tries_are_forgotten_when_there_are_too_many() {
        let mut begun = Begun::default();
        let node = |name: &str| NodeId::new(name).unwrap();
        begun.on("tried-on", node("a"));
        for number in 0..3 * MOST {
            begun.on(&format!("given-up-{number}"), node("b"));
            if number % (MOST / 2) == 0 {
                begun.on("tried-on", node("a"));
            }
        }
        assert_eq!((begun.nodes.len(), begun.tries.len()), (MOST, MOST));
        assert_eq!(begun.node("tried-on"), Some(&node("a")));
        assert_eq!(begun.node("given-up-0"), None);
        begun.ended("tried-on");
        assert_eq!((begun.node("tried-on"), begun.nodes.len(), begun.tries.len()), (None, MOST - 1, MOST - 1));
    }
}
