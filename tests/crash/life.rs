//! The life of a volume in each combination.

use std::time::Instant;

use testkit::error::Result;
use testkit::lab;

use crate::scene::{Call, Kind, Scene};
use crate::walk::long;

/// Every call, in an order that works. Snapshot to DeleteSnapshot are for thin volumes only.
const LIFE: [Call; 20] = [
    Call::Create,
    Call::Attach,
    Call::Stage,
    Call::Unstage,
    Call::Stage,
    Call::PublishReadOnly,
    Call::Unpublish,
    Call::Publish,
    Call::Snapshot,
    Call::Restore,
    Call::DeleteCopy,
    Call::RestoreLarger,
    Call::DeleteCopy,
    Call::Clone,
    Call::DeleteCopy,
    Call::DeleteSnapshot,
    Call::Expand,
    Call::NodeExpand,
    Call::Unpublish,
    Call::Unstage,
];

fn whole(kind: Kind) -> Result<()> {
    let begin = Instant::now();
    let mut scene = Scene::new(kind)?;
    let stage = [Call::Create, Call::Attach];
    let unstage = [Call::Unstage, Call::Detach, Call::Delete];
    scene.once(&stage, Call::Stage, &unstage)?;
    let publish = [Call::Create, Call::Attach, Call::Stage, Call::Publish];
    let unpublish = [Call::Unpublish, Call::Unstage, Call::Detach, Call::Delete];
    scene.once(&publish, Call::Expand, &unpublish)?;
    let expand = [Call::Create, Call::Attach, Call::Stage, Call::Publish, Call::Expand];
    scene.once(&expand, Call::NodeExpand, &unpublish)?;
    // Calls whose effects do not depend on how the volume is used die in one combination per pool.
    let once_for_both = !kind.block || long();
    if kind.thin && once_for_both {
        scene.kill_lvm(Call::Create, Call::Delete)?;
    }
    if once_for_both {
        scene.pair(Call::Create, Call::Delete)?;
        scene.pair(Call::Attach, Call::Detach)?;
    } else {
        scene.call(Call::Create)?;
        scene.call(Call::Attach)?;
    }
    scene.call(Call::Stage)?;
    scene.call(Call::Publish)?;
    scene.write()?;
    scene.call(Call::Unpublish)?;
    scene.call(Call::Unstage)?;
    scene.pair(Call::Stage, Call::Unstage)?;
    scene.pair(Call::PublishReadOnly, Call::Unpublish)?;
    scene.call(Call::Unpublish)?;
    scene.pair(Call::Publish, Call::Unpublish)?;
    if kind.thin {
        if once_for_both {
            scene.kill_lvm(Call::Snapshot, Call::DeleteSnapshot)?;
        }
        scene.pair(Call::Snapshot, Call::DeleteSnapshot)?;
        if once_for_both {
            scene.kill_lvm(Call::Clone, Call::DeleteCopy)?;
        }
        for copy in [Call::Restore, Call::RestoreLarger, Call::Clone].into_iter().filter(|_| once_for_both) {
            scene.pair(copy, Call::DeleteCopy)?;
            scene.call(Call::DeleteCopy)?;
        }
        scene.call(Call::DeleteSnapshot)?;
    }
    for call in unpublish {
        scene.call(call)?;
    }
    let (died, seconds) = (scene.died.get(), begin.elapsed().as_secs());
    scene.finish()?;
    lab::say(&format!("{}: the driver died {died} times and recovered each time; {seconds} s", kind.name()));
    covers!(6)
}

#[test]
fn a_thin_volume_with_a_filesystem_survives_every_crash() -> Result<()> {
    whole(Kind::ALL[0])
}

#[test]
fn a_thin_raw_volume_survives_every_crash() -> Result<()> {
    whole(Kind::ALL[1])
}

#[test]
fn a_linear_volume_with_a_filesystem_survives_every_crash() -> Result<()> {
    whole(Kind::ALL[2])
}

#[test]
fn a_linear_raw_volume_survives_every_crash() -> Result<()> {
    whole(Kind::ALL[3])
}

/// Prints what each call does in each combination, one line per effect. These are the points of the suite.
#[test]
#[ignore = "prints the effects of every call; run it by name"]
fn list() -> Result<()> {
    lab::say("combination   call               effect                 ms  of");
    for kind in Kind::ALL {
        let scene = Scene::new(kind)?;
        let of_thin = |call: &Call| LIFE[8..16].contains(call);
        let calls = LIFE.into_iter().filter(|call| kind.thin || !of_thin(call)).chain([Call::Detach, Call::Delete]);
        for call in calls {
            for effect in scene.record(call)?.effects {
                let (call, program) = (format!("{call:?}"), if effect.program { "*" } else { " " });
                let (name, ms, subject) = (effect.name, effect.ms, effect.subject);
                lab::say(&format!("{:13} {call:17} {program} {name:18} {ms:>6}  {subject}", kind.name()));
            }
        }
        scene.finish()?;
    }
    lab::say("* runs a program");
    Ok(())
}
