//! Chooses the node of a new volume; pure.

use crate::agent::Holdings;
use crate::types::{Error, LvName, NodeId, VgName, VgUuid};

use super::Segments;

/// A candidate node.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) node: &'a NodeId,
    /// Its last report; an error if there is none yet.
    pub(super) heard: Result<&'a Holdings, &'a Error>,
    /// Why it cannot be reached now; `None` if it can.
    pub(super) away: Option<String>,
    /// The group of the requested pool; `None` if the node's configuration does not have that pool.
    pub(super) vg: Option<VgName>,
    /// Why nothing may be made in that group, if other nodes have a group with the same UUID.
    pub(super) contested: Option<Error>,
}

/// A volume that needs a node.
#[derive(Clone, Debug)]
pub(super) struct PlacementRequest<'a> {
    /// Its CSI name, for errors.
    pub(super) name: &'a str,
    /// The LV name derived from its name.
    pub(super) lv: &'a LvName,
    /// The name of the pool.
    pub(super) pool: &'a str,
    /// The group of its content source; `None` without a source.
    pub(super) source: Option<&'a VgUuid>,
    /// Whether it has a content source.
    pub(super) copied: bool,
    /// `accessibility_requirements.requisite`.
    pub(super) requisite: &'a [Segments],
    /// `accessibility_requirements.preferred`.
    pub(super) preferred: &'a [Segments],
    /// The node of an earlier call with this name whose result is unknown.
    pub(super) begun: Option<&'a NodeId>,
    /// The book, which would contain the node of an earlier call, has none.
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

    /// Bytes left in a pool, if the node offers it and it is available.
    fn left(&self, pool: &str) -> Option<u64> {
        let (_, state) = self.heard.ok()?.pools.iter().find(|(name, _)| name == pool)?;
        state.as_ref().ok().map(|left| left.available.0)
    }

    /// Whether the node's configuration has the pool, and its group is present or unknown.
    fn offers(&self) -> bool {
        let Some(vg) = &self.vg else { return false };
        !self.heard.is_ok_and(|holdings| holdings.groups.iter().any(|(name, reading)| name == vg && *reading == Ok(None)))
    }
}

/// Whether a topology names a node, or names none. Keys are case-insensitive (CSI, `Topology`).
pub(super) fn names(segments: &Segments, key: &str, node: &NodeId) -> bool {
    segments.iter().all(|(given, value)| given.eq_ignore_ascii_case(key) && value == node.as_str())
}

/// Whether a new volume may go to a node: to the first preferred one or, without preferences, to a requisite one. Never to a later
/// preferred node, since the pod is to run on the first.
pub(super) fn admits(requisite: &[Segments], preferred: &[Segments], key: &str, node: &NodeId) -> bool {
    match (preferred.first(), requisite) {
        (Some(first), _) => names(first, key, node),
        (None, []) => true,
        (None, requisite) => requisite.iter().any(|segments| names(segments, key, node)),
    }
}

/// The error if none of our nodes is among the requested ones (CSI: 8 RESOURCE_EXHAUSTED, and the scheduler chooses again).
pub(super) fn elsewhere(name: &str, key: &str, nodes: &[&NodeId]) -> Error {
    let nodes: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
    let reason = format!("its accessibility_requirements name other nodes than {} ({key})", nodes.join(", "));
    Error::Exhausted { what: format!("volume {name:?}"), reason }
}

/// Chooses the place for a volume; returns its index.
///
/// - A volume that exists, finished or not, or that an earlier call may have begun: its node.
/// - A copy: the node of its source.
/// - Else the requested node, or the reported node with the most room in the pool.
///
/// # Errors
/// [`Error::Unavailable`] while the volume may be on a node that has not reported, or the only possible node is away;
/// [`Error::Exhausted`] if no requested node has the pool; [`Error::Precondition`] if other nodes have its group, too.
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
        // The source may be on a node that cannot be reached. If all nodes have reported, any of them answers that it does not exist.
        if let Some(error) = all().find_map(|(_, place)| silence(place)) {
            return Err(error);
        }
    }
    let wanted: Vec<_> = all().filter(|(_, place)| admits(request.requisite, request.preferred, key, place.node)).collect();
    if wanted.is_empty() {
        let nodes: Vec<&NodeId> = places.iter().map(|place| place.node).collect();
        return Err(elsewhere(request.name, key, &nodes));
    }
    // It may have been made on a silent node before the controller started.
    if let Some(error) = wanted.iter().find_map(|(_, place)| place.heard.err())
        && (!request.is_first || wanted.iter().all(|(_, place)| place.heard.is_err()))
    {
        return Err(error.clone());
    }
    let wanted: Vec<_> = wanted.into_iter().filter(|(_, place)| place.heard.is_ok()).collect();
    let offering: Vec<_> = wanted.iter().filter(|(_, place)| place.offers()).collect();
    let present = offering.iter().filter(|(_, place)| place.away.is_none());
    // The first one with the most room.
    let best = present.rev().max_by_key(|(_, place)| (place.contested.is_none(), place.left(request.pool)));
    match (best, offering.first()) {
        (Some((at, _)), _) => Ok(*at),
        (None, Some((_, place))) => Err(silence(place).unwrap_or_else(super::fleet::none)),
        (None, None) => {
            let nodes: Vec<&str> = wanted.iter().map(|(_, place)| place.node.as_str()).collect();
            let reason = format!("there is no pool {} on node {}", request.pool, nodes.join(", "));
            Err(Error::Exhausted { what: format!("volume {:?}", request.name), reason })
        }
    }
}

/// Whether there are several nodes to choose from.
pub(super) fn is_open(places: &[Place<'_>], request: &PlacementRequest<'_>, key: &str) -> bool {
    places.iter().filter(|place| admits(request.requisite, request.preferred, key, place.node)).nth(1).is_some()
}

/// Whether the driver may have chosen a node in an earlier call: the request admits it, and it has the pool and the source or has not
/// reported.
pub(super) fn may_have_begun(place: &Place<'_>, request: &PlacementRequest<'_>, key: &str) -> bool {
    let has = || place.offers() && request.source.is_none_or(|vg| place.has_group(vg));
    admits(request.requisite, request.preferred, key, place.node) && (place.heard.is_err() || has())
}

/// Whether a node's volumes are unknown, at least in the group of the pool.
pub(super) fn is_unsure(place: &Place<'_>) -> bool {
    let in_group =
        |holdings: &Holdings| holdings.groups.iter().any(|(name, reading)| place.vg.as_ref() == Some(name) && reading.is_err());
    place.heard.map_or(true, in_group)
}

/// Why a node's present state is unknown; `None` if it has reported and can be reached.
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

    /// A node with the group `vg0`, these unfinished volumes, and `room` bytes left.
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

    /// The name of the chosen node.
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
    fn unavailable(choice: Result<String, Error>, node: &str) {
        assert!(matches!(&choice, Err(Error::Unavailable { what, .. }) if what.contains(node)), "{choice:?}");
    }

    #[track_caller]
    fn exhausted(choice: Result<String, Error>) {
        assert!(matches!(&choice, Err(Error::Exhausted { .. })), "{choice:?}");
    }

    #[test]
    fn a_volume_that_exists_or_was_begun_stays_on_its_node() {
        let name = lv("pvc-1");
        let (b, none) = (on(&["b"]), []);
        let nodes = || vec![node("a", 'a', &["pvc-1"], 1), node("b", 'b', &[], 9)];
        assert_eq!(chosen(&nodes(), &fresh(&name, &b, &b)).unwrap(), "a");
        // Even on a node that is away: its agent finishes it when it is back.
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
        // Keys are case-insensitive.
        let odd = [Segments::from([(KEY.to_uppercase(), "a".to_owned())])];
        assert_eq!(chosen(&nodes(), &fresh(&name, &[], &odd)).unwrap(), "a");
    }

    #[test]
    fn without_a_preference_the_node_with_the_most_room_is_chosen() {
        let name = lv("pvc-1");
        let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9), node("c", 'c', &[], 9)];
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &[])).unwrap(), "b");
        assert_eq!(chosen(&nodes, &fresh(&name, &on(&["a", "c"]), &[])).unwrap(), "c");
        let mut sick = nodes;
        sick[1].heard.as_mut().unwrap().pools[0].1 = Err("a disk is away".to_owned());
        assert_eq!(chosen(&sick, &fresh(&name, &[], &[])).unwrap(), "c");
    }

    #[test]
    fn a_contested_group_takes_no_new_volume() {
        let (name, a) = (lv("pvc-1"), on(&["a"]));
        let twin = || Some(Error::precondition("volume group vg0", "nodes a and c have it"));
        let nodes = [Node { contested: twin(), ..node("a", 'a', &["pvc-2"], 9) }, node("b", 'b', &[], 1)];
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &[])).unwrap(), "b");
        let made = lv("pvc-2");
        for request in [fresh(&name, &a, &a), fresh(&made, &[], &[])] {
            let choice = chosen(&nodes, &request);
            assert!(matches!(&choice, Err(Error::Precondition { .. })), "{choice:?}");
        }
    }

    #[test]
    fn a_copy_goes_to_the_node_of_its_source_whatever_is_requested() {
        let name = lv("pvc-1");
        let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9)];
        let (a, b, elsewhere) = (uuid('a'), on(&["b"]), uuid('z'));
        let copy = PlacementRequest { source: Some(&a), copied: true, ..fresh(&name, &b, &b) };
        assert_eq!(chosen(&nodes, &copy).unwrap(), "a");
        // No node has the source, and all have reported: any node may say so.
        let gone = PlacementRequest { source: Some(&elsewhere), ..copy.clone() };
        assert_eq!(chosen(&nodes, &gone).unwrap(), "b");
        for silent in [unheard("c"), away("c", 'c', &[])] {
            let nodes = [node("a", 'a', &[], 1), node("b", 'b', &[], 9), silent];
            assert_eq!(chosen(&nodes, &copy).unwrap(), "a");
            unavailable(chosen(&nodes, &gone), "node c");
        }
    }

    #[test]
    fn a_volume_waits_for_the_nodes_that_may_already_have_it_and_for_no_other() {
        let name = lv("pvc-1");
        let (a, c) = (on(&["a"]), on(&["c"]));
        let nodes = [node("a", 'a', &[], 1), unheard("c")];
        unavailable(chosen(&nodes, &fresh(&name, &[], &[])), "node c");
        unavailable(chosen(&nodes, &fresh(&name, &[], &c)), "node c");
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &a)).unwrap(), "a");
        // A node that has reported and is away: only a volume that must go there waits.
        let nodes = [node("a", 'a', &[], 1), away("c", 'c', &[])];
        assert_eq!(chosen(&nodes, &fresh(&name, &[], &[])).unwrap(), "a");
        unavailable(chosen(&nodes, &fresh(&name, &[], &c)), "node c");
    }
}
