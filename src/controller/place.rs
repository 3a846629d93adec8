//! Which node a new volume goes to: pure.

use crate::agent::Holdings;
use crate::types::{Error, LvName, NodeId, VgName, VgUuid};

use super::Segments;

/// A node, as far as it is known.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) node: &'a NodeId,
    /// What it has told last; the error where that is nothing yet.
    pub(super) heard: Result<&'a Holdings, &'a Error>,
    /// Why it cannot be asked now.
    pub(super) away: Option<String>,
    /// The group of the pool that is asked for; `None` where its configuration has not that pool.
    pub(super) vg: Option<VgName>,
    /// Why nothing is made in that group, where others have one of its UUID too.
    pub(super) contested: Option<Error>,
}

/// A volume that wants a node.
#[derive(Clone, Debug)]
pub(super) struct PlacementRequest<'a> {
    /// Its CSI name, for texts.
    pub(super) name: &'a str,
    /// The LV that its name leads to.
    pub(super) lv: &'a LvName,
    /// The pool, by its name.
    pub(super) pool: &'a str,
    /// The group of its content source; `None` without a source, or with one of which nothing is known.
    pub(super) source: Option<&'a VgUuid>,
    /// Whether it has a content source.
    pub(super) copied: bool,
    /// `accessibility_requirements.requisite`.
    pub(super) requisite: &'a [Segments],
    /// `accessibility_requirements.preferred`.
    pub(super) preferred: &'a [Segments],
    /// Where an earlier call of this name went, of which nothing was heard since.
    pub(super) begun: Option<&'a NodeId>,
    /// No earlier call of this name went anywhere: that is written down before a node is chosen.
    pub(super) is_first: bool,
}

impl Place<'_> {
    fn has_lv(&self, lv: &LvName) -> bool {
        self.heard.is_ok_and(|holdings| {
            holdings.volumes().any(|volume| volume.id.lv == *lv)
                || holdings.contents().any(|contents| contents.unfinished.contains(lv))
        })
    }

    fn has_group(&self, vg: &VgUuid) -> bool {
        self.heard.is_ok_and(|holdings| holdings.contents().any(|contents| contents.vg == *vg))
    }

    /// Bytes left in a pool, where it is on offer and there.
    fn left(&self, pool: &str) -> Option<u64> {
        let (_, state) = self.heard.ok()?.pools.iter().find(|(name, _)| name == pool)?;
        state.as_ref().ok().map(|left| left.available.0)
    }

    /// Whether the node has the pool in its configuration, and its group there or not known.
    fn offers(&self) -> bool {
        let Some(vg) = &self.vg else { return false };
        !self.heard.is_ok_and(|holdings| holdings.groups.iter().any(|(name, known)| name == vg && *known == Ok(None)))
    }
}

/// Whether a topology names a node, or leaves it open. Keys compare without case (CSI, `Topology`).
pub(super) fn names(segments: &Segments, key: &str, node: &NodeId) -> bool {
    segments.iter().all(|(given, value)| given.eq_ignore_ascii_case(key) && value == node.as_str())
}

/// Whether a new volume may go to a node: the first preferred one, and without any a requisite one. Never further down the list: its
/// pod is to run on the first.
pub(super) fn admits(requisite: &[Segments], preferred: &[Segments], key: &str, node: &NodeId) -> bool {
    match (preferred.first(), requisite) {
        (Some(first), _) => names(first, key, node),
        (None, []) => true,
        (None, requisite) => requisite.iter().any(|segments| names(segments, key, node)),
    }
}

/// The error where the nodes asked for are none of ours (CSI: 8 RESOURCE_EXHAUSTED, and the scheduler chooses anew).
pub(super) fn elsewhere(name: &str, key: &str, nodes: &[&NodeId]) -> Error {
    let nodes: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
    let reason = format!("its accessibility_requirements name other nodes than {} ({key})", nodes.join(", "));
    Error::Exhausted { what: format!("volume {name:?}"), reason }
}

/// Chooses the place for a volume, by its number.
///
/// - Where it is already, finished or not, or where an earlier call for it went.
/// - A copy: where its source is.
/// - Else the node that the request names; without one that with the most room in the pool, of those that were heard.
///
/// # Errors
/// [`Error::Unavailable`] while it may be on a node that has not been heard, or the node that it must go to is away;
/// [`Error::Exhausted`] where the node asked for has not the pool; [`Error::Precondition`] where other nodes have its group too.
pub(super) fn choose(places: &[Place<'_>], request: &PlacementRequest<'_>, key: &str) -> Result<usize, Error> {
    let at = best(places, request, key)?;
    places.get(at).and_then(|place| place.contested.clone()).map_or(Ok(at), Err)
}

fn best(places: &[Place<'_>], request: &PlacementRequest<'_>, key: &str) -> Result<usize, Error> {
    let all = || places.iter().enumerate();
    if let Some((at, _)) = all().find(|(_, place)| place.has_lv(request.lv)) {
        return Ok(at);
    }
    if let Some((at, _)) = request.begun.and_then(|node| all().find(|(_, place)| place.node == node)) {
        return Ok(at);
    }
    if request.copied {
        if let Some((at, _)) = request.source.and_then(|vg| all().find(|(_, place)| place.has_group(vg))) {
            return Ok(at);
        }
        // The source may be on a node that cannot be asked. Where all have told, any of them says that it does not exist.
        if let Some(error) = all().find_map(|(_, place)| silence(place)) {
            return Err(error);
        }
    }
    let wanted: Vec<_> = all().filter(|(_, place)| admits(request.requisite, request.preferred, key, place.node)).collect();
    if wanted.is_empty() {
        let nodes: Vec<&NodeId> = places.iter().map(|place| place.node).collect();
        return Err(elsewhere(request.name, key, &nodes));
    }
    // It may have been made there before the controller was started.
    if let Some(error) = wanted.iter().find_map(|(_, place)| place.heard.err())
        && (!request.is_first || wanted.iter().all(|(_, place)| place.heard.is_err()))
    {
        return Err(error.clone());
    }
    let wanted: Vec<_> = wanted.into_iter().filter(|(_, place)| place.heard.is_ok()).collect();
    let offering: Vec<_> = wanted.iter().filter(|(_, place)| place.offers()).collect();
    let present = offering.iter().filter(|(_, place)| place.away.is_none());
    // The first of those with the most room.
    let best = present.rev().max_by_key(|(_, place)| (place.contested.is_none(), place.left(request.pool)));
    match (best, offering.first()) {
        (Some((at, _)), _) => Ok(*at),
        (None, Some((_, place))) => Err(silence(place).unwrap_or_else(super::fleet::none)),
        (None, None) => {
            let nodes: Vec<&str> = wanted.iter().map(|(_, place)| place.node.as_str()).collect();
            let reason = format!("pool {} is not on node {}", request.pool, nodes.join(", "));
            Err(Error::Exhausted { what: format!("volume {:?}", request.name), reason })
        }
    }
}

/// Whether there are several nodes to choose from.
pub(super) fn is_open(places: &[Place<'_>], request: &PlacementRequest<'_>, key: &str) -> bool {
    places.iter().filter(|place| admits(request.requisite, request.preferred, key, place.node)).nth(1).is_some()
}

/// Whether a volume may have been begun on a node, were the driver to choose: the request admits it, and as far as the node is known it
/// has the pool and the source.
pub(super) fn may_have_begun(place: &Place<'_>, request: &PlacementRequest<'_>, key: &str) -> bool {
    let has = || place.offers() && request.source.is_none_or(|vg| place.has_group(vg));
    admits(request.requisite, request.preferred, key, place.node) && (place.heard.is_err() || has())
}

/// Whether what a node has is not known, wholly or in the group of the pool.
pub(super) fn is_unsure(place: &Place<'_>) -> bool {
    let in_group =
        |holdings: &Holdings| holdings.groups.iter().any(|(name, known)| place.vg.as_ref() == Some(name) && known.is_err());
    place.heard.map_or(true, in_group)
}

/// Why nothing new can be learnt of a node.
fn silence(place: &Place<'_>) -> Option<Error> {
    super::fleet::silence(place.node, place.heard.err(), place.away.as_deref())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::Contents;
    use crate::types::Bytes;
    use crate::volume::capacity::Capacity;

    const KEY: &str = "topology.lvm-csi.dev/node";

    struct Node {
        id: NodeId,
        heard: Result<Holdings, Error>,
        away: Option<String>,
        vg: Option<VgName>,
        contested: Option<Error>,
    }

    fn uuid(letter: char) -> VgUuid {
        VgUuid::from_compact(&letter.to_string().repeat(32)).unwrap()
    }

    fn lv(name: &str) -> LvName {
        LvName::new(name).unwrap()
    }

    /// A node with the group `vg0`, which has begun these volumes, and room for so many bytes.
    fn node(name: &str, letter: char, unfinished: &[&str], room: u64) -> Node {
        let contents = Contents {
            vg: uuid(letter),
            volumes: vec![],
            snapshots: vec![],
            unfinished: unfinished.iter().map(|name| lv(name)).collect(),
        };
        let vg = VgName::new("vg0").unwrap();
        let left = Capacity { available: Bytes(room), ..Capacity::default() };
        let heard = Holdings {
            groups: vec![(vg.clone(), Ok(Some(Arc::new(contents))))],
            pools: vec![("fast".to_owned(), Ok(left))],
            ..Holdings::default()
        };
        Node { id: NodeId::new(name).unwrap(), heard: Ok(heard), away: None, vg: Some(vg), contested: None }
    }

    fn unheard(name: &str) -> Node {
        Node { heard: Err(Error::unavailable(format!("node {name}"), "not yet")), ..node(name, 'x', &[], 0) }
    }

    fn away(name: &str, letter: char, unfinished: &[&str]) -> Node {
        Node { away: Some("it is off".to_owned()), ..node(name, letter, unfinished, 1000) }
    }

    fn on(names: &[&str]) -> Vec<Segments> {
        names.iter().map(|name| Segments::from([(KEY.to_owned(), (*name).to_owned())])).collect()
    }

    fn fresh<'a>(lv: &'a LvName, requisite: &'a [Segments], preferred: &'a [Segments]) -> PlacementRequest<'a> {
        PlacementRequest {
            name: "pvc-1",
            lv,
            pool: "fast",
            source: None,
            copied: false,
            requisite,
            preferred,
            begun: None,
            is_first: false,
        }
    }

    /// The name of the node that is chosen, or the error.
    fn chosen(nodes: &[Node], request: &PlacementRequest<'_>) -> Result<String, Error> {
        let places: Vec<Place<'_>> = nodes
            .iter()
            .map(|node| Place {
                node: &node.id,
                heard: node.heard.as_ref(),
                away: node.away.clone(),
                vg: node.vg.clone(),
                contested: node.contested.clone(),
            })
            .collect();
        choose(&places, request, KEY).map(|at| nodes[at].id.to_string())
    }

    #[track_caller]
    fn unavailable(found: Result<String, Error>, node: &str) {
        assert!(matches!(&found, Err(Error::Unavailable { what, .. }) if what.contains(node)), "{found:?}");
    }

    #[track_caller]
    fn exhausted(found: Result<String, Error>) {
        assert!(matches!(&found, Err(Error::Exhausted { .. })), "{found:?}");
    }

    #[test]
    fn what_exists_or_was_begun_is_found_where_it_is() {
        let name = lv("pvc-1");
        let (b, none) = (on(&["b"]), []);
        let nodes = || vec![node("a", 'a', &["pvc-1"], 1), node("b", 'b', &[], 9)];
        assert_eq!(chosen(&nodes(), &fresh(&name, &b, &b)).unwrap(), "a");
        // Also on a node that is away: its agent finishes it when it is back.
        let nodes = [away("a", 'a', &["pvc-1"]), node("b", 'b', &[], 9)];
        assert_eq!(chosen(&nodes, &fresh(&name, &none, &none)).unwrap(), "a");
        let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9)];
        let a = NodeId::new("a").unwrap();
        assert_eq!(chosen(&nodes, &PlacementRequest { begun: Some(&a), ..fresh(&name, &none, &none) }).unwrap(), "a");
    }

    #[test]
    fn a_new_volume_goes_to_the_first_preferred_node_or_nowhere() {
        let name = lv("pvc-1");
        let both = on(&["a", "b"]);
        let nodes = || vec![node("a", 'a', &[], 1), node("b", 'b', &[], 9)];
        assert_eq!(chosen(&nodes(), &fresh(&name, &both, &on(&["a", "b"]))).unwrap(), "a");
        exhausted(chosen(&nodes(), &fresh(&name, &both, &on(&["z", "b"]))));
        let mut without = nodes();
        without[0].vg = None;
        exhausted(chosen(&without, &fresh(&name, &both, &on(&["a", "b"]))));
        let mut absent = nodes();
        absent[0].heard.as_mut().unwrap().groups[0].1 = Ok(None);
        exhausted(chosen(&absent, &fresh(&name, &both, &on(&["a", "b"]))));
        // Keys compare without case.
        let odd = [Segments::from([(KEY.to_uppercase(), "a".to_owned())])];
        assert_eq!(chosen(&nodes(), &fresh(&name, &[], &odd)).unwrap(), "a");
    }

    #[test]
    fn without_a_preference_the_node_with_most_room_has_it() {
        let name = lv("pvc-1");
        let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9), node("c", 'c', &[], 9)];
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &[])).unwrap(), "b");
        assert_eq!(chosen(&nodes, &fresh(&name, &on(&["a", "c"]), &[])).unwrap(), "c");
        let mut sick = nodes;
        sick[1].heard.as_mut().unwrap().pools[0].1 = Err("a disk is away".to_owned());
        assert_eq!(chosen(&sick, &fresh(&name, &[], &[])).unwrap(), "c");
    }

    #[test]
    fn a_group_that_others_have_too_takes_nothing_new() {
        let (name, a) = (lv("pvc-1"), on(&["a"]));
        let twin = || Some(Error::precondition("volume group vg0", "nodes a and c have it"));
        let nodes = [Node { contested: twin(), ..node("a", 'a', &["pvc-2"], 9) }, node("b", 'b', &[], 1)];
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &[])).unwrap(), "b");
        let made = lv("pvc-2");
        for request in [fresh(&name, &a, &a), fresh(&made, &[], &[])] {
            let found = chosen(&nodes, &request);
            assert!(matches!(&found, Err(Error::Precondition { .. })), "{found:?}");
        }
    }

    #[test]
    fn a_copy_goes_to_its_source_whatever_is_asked() {
        let name = lv("pvc-1");
        let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9)];
        let (a, b, elsewhere) = (uuid('a'), on(&["b"]), uuid('z'));
        let copy = PlacementRequest { source: Some(&a), copied: true, ..fresh(&name, &b, &b) };
        assert_eq!(chosen(&nodes, &copy).unwrap(), "a");
        // Nobody has it, and all have told: whoever is asked says so.
        let gone = PlacementRequest { source: Some(&elsewhere), ..copy.clone() };
        assert_eq!(chosen(&nodes, &gone).unwrap(), "b");
        for silent in [unheard("c"), away("c", 'c', &[])] {
            let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9), silent];
            assert_eq!(chosen(&nodes, &copy).unwrap(), "a");
            unavailable(chosen(&nodes, &gone), "node c");
        }
    }

    #[test]
    fn where_it_may_be_already_is_waited_for_and_no_other_node() {
        let name = lv("pvc-1");
        let (a, c) = (on(&["a"]), on(&["c"]));
        let nodes = [node("a", 'a', &[], 1), unheard("c")];
        unavailable(chosen(&nodes, &fresh(&name, &[], &[])), "node c");
        unavailable(chosen(&nodes, &fresh(&name, &[], &c)), "node c");
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &a)).unwrap(), "a");
        // One that has told and is away: only what must go there waits.
        let nodes = [node("a", 'a', &[], 1), away("c", 'c', &[])];
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &[])).unwrap(), "a");
        unavailable(chosen(&nodes, &fresh(&name, &[], &c)), "node c");
    }
}
