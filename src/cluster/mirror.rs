//! A copy of watched objects that keeps only the needed facts of each, to save memory.

use std::collections::BTreeMap;

use kube::runtime::watcher::Event;

/// The facts of all watched objects, by object name.
pub(super) struct Mirror<T> {
    facts: BTreeMap<String, T>,
    /// A list in progress. It replaces the facts when it is complete.
    listing: Option<BTreeMap<String, T>>,
    complete: bool,
}

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self { facts: BTreeMap::new(), listing: None, complete: false }
    }
}

impl<T> Mirror<T> {
    /// Applies an event. `facts` returns the name of an object and its facts.
    pub(super) fn take<K>(&mut self, event: Event<K>, facts: impl Fn(&K) -> (String, Option<T>)) {
        match event {
            Event::Apply(object) => match facts(&object) {
                (name, Some(now)) => drop(self.facts.insert(name, now)),
                (name, None) => drop(self.facts.remove(&name)),
            },
            Event::Delete(object) => drop(self.facts.remove(&facts(&object).0)),
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let (name, Some(now)) = facts(&object) {
                    self.listing.get_or_insert_default().insert(name, now);
                }
            }
            Event::InitDone => {
                self.facts = self.listing.take().unwrap_or_default();
                self.complete = true;
            }
        }
    }

    /// The facts; `None` until the first list is complete.
    pub(super) fn known(&self) -> Option<&BTreeMap<String, T>> {
        self.complete.then_some(&self.facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_replaces_what_was_known_when_it_is_complete() {
        let mut mirror = Mirror::default();
        let mut take = |event: Event<(&str, Option<u8>)>| {
            mirror.take(event, |(name, fact)| ((*name).to_owned(), *fact));
            mirror.known().map(|known| known.iter().map(|(name, fact)| format!("{name}{fact}")).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(take(Event::Init), None);
        assert_eq!(take(Event::InitApply(("a", Some(1)))), None);
        assert_eq!(take(Event::InitApply(("x", None))), None);
        assert_eq!(take(Event::InitDone).unwrap(), "a1");
        assert_eq!(take(Event::Apply(("b", Some(1)))).unwrap(), "a1 b1");
        assert_eq!(take(Event::Apply(("a", Some(2)))).unwrap(), "a2 b1");
        // The watch was lost: the old facts stay until a new list is complete.
        assert_eq!(take(Event::Init).unwrap(), "a2 b1");
        assert_eq!(take(Event::InitApply(("a", Some(3)))).unwrap(), "a2 b1");
        assert_eq!(take(Event::InitDone).unwrap(), "a3");
        assert_eq!(take(Event::Apply(("a", None))).unwrap(), "");
        assert_eq!(take(Event::Apply(("c", Some(1)))).unwrap(), "c1");
        assert_eq!(take(Event::Delete(("c", Some(1)))).unwrap(), "");
    }
}
