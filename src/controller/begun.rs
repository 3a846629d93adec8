//! The creations whose end is not known, and the nodes that they were begun on.

use std::collections::BTreeMap;

use crate::types::NodeId;

/// Creations that are remembered. Who asks for a volume repeats the call until its end is known, and then it is forgotten; who gives up for
/// good, such as for a claim that was deleted, never says so.
const MOST: usize = 4096;

/// Where creations were begun, by CSI name.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// With the number of the last try.
    nodes: BTreeMap<String, (u64, NodeId)>,
    /// Names by that number.
    tries: BTreeMap<u64, String>,
    count: u64,
}

impl Begun {
    /// A creation is tried on a node. Beyond what is remembered the one goes that has not been tried for longest.
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

    /// The end of a creation is known.
    pub(super) fn ended(&mut self, name: &str) {
        if let Some((number, _)) = self.nodes.remove(name) {
            self.tries.remove(&number);
        }
    }

    /// Where one was begun.
    pub(super) fn node(&self, name: &str) -> Option<&NodeId> {
        self.nodes.get(name).map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_repeats_is_forgotten_when_there_is_too_much_of_it() {
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
