//! Without attachments, the node's own calls take and release the grant of a volume.

use testkit::error::Result;
use testkit::lab;

use crate::rig::Rig;
use crate::scene::{Call, Kind, Scene};

fn survives(kind: Kind) -> Result<()> {
    let rig = Rig::make(None, &["--attach-required", "false"])?;
    let mut scene = Scene::on(rig, kind)?;
    for call in [Call::Create, Call::Stage, Call::Publish] {
        scene.call(call)?;
    }
    scene.write()?;
    scene.call(Call::Unpublish)?;
    scene.call(Call::Unstage)?;
    scene.pair(Call::Stage, Call::Unstage)?;
    scene.pair(Call::Publish, Call::Unpublish)?;
    // A stage that died has taken the grant, which does not block the volume's deletion.
    scene.call(Call::Unpublish)?;
    scene.call(Call::Unstage)?;
    scene.die_at("lvchange", Call::Stage)?;
    scene.call(Call::Delete)?;
    scene.call(Call::Unstage)?;
    let died = scene.died.get();
    scene.finish()?;
    lab::say(&format!("{}, not attached: the driver died {died} times and recovered each time", kind.name()));
    covers!(6)
}

#[test]
fn a_filesystem_that_nobody_attaches_survives_every_crash() -> Result<()> {
    survives(Kind { thin: false, block: false })
}

#[test]
fn a_raw_volume_that_nobody_attaches_survives_every_crash() -> Result<()> {
    survives(Kind { thin: false, block: true })
}
