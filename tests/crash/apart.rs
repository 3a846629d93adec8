//! A controller and a node, joined by mutual TLS. One of them dies, and the caller repeats the call.

use std::time::Instant;

use testkit::error::{Result, ensure};
use testkit::lab;

use crate::scene::{Call, Kind, Mortal, Scene};
use crate::walk::long;

/// Calls that the controller makes to the agent while the volume is published, each with its inverse.
const OF_BOTH: [(Call, Call); 2] = [(Call::Snapshot, Call::DeleteSnapshot), (Call::Restore, Call::DeleteCopy)];

/// Minimum deaths of each role when all points are taken. A sample has at most half of them.
const LEAST: usize = 50;

fn survives(mortal: Mortal) -> Result<()> {
    let begin = Instant::now();
    let mut scene = Scene::apart(Kind { thin: true, block: false }, mortal)?;
    // The node's own deaths are also tested in one process, where the inverse of each call follows too.
    scene.inverses = mortal == Mortal::Controller || long();
    let up = [Call::Create, Call::Attach, Call::Stage, Call::Publish];
    let down = [Call::Unpublish, Call::Unstage, Call::Detach, Call::Delete];
    if mortal == Mortal::Node {
        scene.once(&up[..2], Call::Stage, &down[1..])?;
    }
    scene.once(&up, Call::Expand, &down)?;
    if mortal == Mortal::Node && long() {
        scene.once(&[&up[..], &[Call::Expand]].concat(), Call::NodeExpand, &down)?;
    }
    scene.pair(Call::Create, Call::Delete)?;
    scene.pair(Call::Attach, Call::Detach)?;
    scene.call(Call::Stage)?;
    scene.call(Call::Publish)?;
    scene.write()?;
    if mortal == Mortal::Node {
        scene.call(Call::Unpublish)?;
        scene.call(Call::Unstage)?;
        scene.pair(Call::Stage, Call::Unstage)?;
        scene.pair(Call::Publish, Call::Unpublish)?;
    }
    for (forward, backward) in OF_BOTH {
        scene.pair(forward, backward)?;
    }
    for call in [Call::DeleteCopy, Call::DeleteSnapshot].into_iter().chain(down) {
        scene.call(call)?;
    }
    let (died, seconds) = (scene.died.get(), begin.elapsed().as_secs());
    scene.finish()?;
    ensure(died >= if long() { LEAST } else { LEAST / 3 }, || format!("{died} deaths are too few"))?;
    lab::say(&format!("two roles, {mortal:?}: it died {died} times and recovered each time; {seconds} s"));
    covers!(6)
}

#[test]
fn a_node_that_dies_beside_its_controller_leaves_nothing() -> Result<()> {
    survives(Mortal::Node)
}

#[test]
fn a_controller_that_dies_beside_its_node_leaves_nothing() -> Result<()> {
    survives(Mortal::Controller)
}
