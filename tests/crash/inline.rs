//! Inline ephemeral volumes: publication and unpublication.

use std::path::Path;

use testkit::driver::Start;
use testkit::error::Result;
use testkit::lab;

use crate::rig::{DRIVER, POOL_MIB, Rig};
use crate::scene::{Call, Kind, Scene};
use crate::walk::long;

fn survives(kind: Kind, layout: &str) -> Result<()> {
    let text =
        format!("pools:\n- name: scratch\n  volumeGroup: labvg\n  layout: {layout}\n  defaultSize: 16Mi\n  ephemeral: true\n");
    let pool = kind.thin.then_some(POOL_MIB);
    let rig = Rig::start(&[lab::disk(0)?], pool, |home, _| Start::on_config(Path::new(DRIVER), home, &text))?;
    let mut scene = Scene::on(rig, kind)?;
    scene.pair(Call::PublishInline, Call::UnpublishInline)?;
    scene.call(Call::UnpublishInline)?;
    let died = scene.died.get();
    scene.finish()?;
    lab::say(&format!("inline, {layout}: the driver died {died} times and recovered each time"));
    covers!(6, 75)
}

/// Its effects are those of the thin volume plus the clearing of old bytes, as for every linear volume.
#[test]
fn a_linear_inline_volume_survives_every_crash() -> Result<()> {
    if !long() {
        return Ok(());
    }
    survives(Kind { thin: false, block: false }, "linear")
}

#[test]
fn a_thin_inline_volume_survives_every_crash() -> Result<()> {
    survives(Kind { thin: true, block: false }, "thin")
}
