//! A controller and a node, joined by mutual TLS: one of them dies, and the caller repeats the call.

use std::time::Instant;

use lvm_csi_hack::error::{Result, ensure};
use lvm_csi_hack::lab;

use crate::scene::{Call, Kind, Mortal, Scene};
use crate::walk::long;

/// What the controller asks of the agent while the volume is published, each with what takes it back.
const OF_BOTH: [(Call, Call); 2] = [(Call::Snapshot, Call::DeleteSnapshot), (Call::Restore, Call::DeleteCopy)];

/// How often each of the two dies at least, where all points are taken; a sample is at most half of them.
const LEAST: usize = 50;

fn survives(mortal: Mortal) -> Result<()> {
    let begin = Instant::now();
    let mut scene = Scene::apart(Kind { thin: true, block: false }, mortal)?;
    // What the node makes of each death it makes in one process as well, where the inverse of each call follows too.
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
    ensure(died >= if long() { LEAST } else { LEAST / 3 }, || format!("{died} deaths are too few to mean anything"))?;
    lab::say(&format!("two roles, {mortal:?}: it died {died} times and all came to its end each time; {seconds} s"));
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
