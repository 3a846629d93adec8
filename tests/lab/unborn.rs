//! Thin volumes and snapshots that LVM committed and that the pool never heard of, or only half, as a power cut leaves them.

use std::fs;

use lvm_csi_hack::client::{create, from_snapshot};
use lvm_csi_hack::error::{Result, Trouble, ensure};
use lvm_csi_hack::flow::delete_snapshot;
use lvm_csi_hack::{lab, tool, vg};

use crate::rig::Rig;

/// Kills the driver and takes the last creation in the thin pool back to the moment before its message to the pool, or, `half`
/// made, to the one before the pool counted it; then all devices go, as with a power cut.
pub(crate) fn unbear(rig: &mut Rig, handle: &str, half: bool) -> Result<()> {
    rig.driver.kill()?;
    let lv = rig.vg.of_handle(handle)?.name;
    let pool = format!("{}-pool-tpool", rig.vg.name);
    let backup = format!("{}/unborn.txt", lab::ROOT);
    vg::lvm(&["vgcfgbackup", "-qq", "-f", &backup, &rig.vg.name])?;
    let text = fs::read_to_string(&backup).map_err(Trouble::io("reading the metadata"))?;
    let begin = text.find(&format!("\t\t{lv} {{")).ok_or_else(|| Trouble::wrong(format!("no LV {lv} in the metadata")))?;
    let number = |key: &str| -> Result<u64> {
        let value = text[begin..].split_once(&format!("{key} = ")).and_then(|(_, rest)| rest.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).ok_or_else(|| Trouble::wrong(format!("LV {lv} has no {key}")))
    };
    let (device, transaction) = (number("device_id")?, number("transaction_id")?);
    let message = format!("zero_new_blocks = 1\nmessage1 {{\ncreate = \"{lv}\"\n}}\n");
    let edited = text.replacen("zero_new_blocks = 1\n", &message, 1);
    ensure(edited != text, || "the pool does not zero its blocks".to_owned())?;
    fs::write(&backup, edited).map_err(Trouble::io("writing the metadata"))?;
    let tell = |words: &str| tool::run("dmsetup", &["message", &pool, "0", words]);
    if !half {
        tell(&format!("delete {device}"))?;
    }
    tell(&format!("set_transaction_id {} {transaction}", transaction + 1))?;
    vg::lvm(&["vgchange", "-qq", "-an", &rig.vg.name])?;
    vg::lvm(&["vgcfgrestore", "-qq", "-y", "--force", "-f", &backup, &rig.vg.name])?;
    rig.driver.restart()
}

#[test]
fn a_volume_that_the_pool_does_not_know_is_made_again() -> Result<()> {
    let mut rig = Rig::thin()?;
    for half in [false, true] {
        let volume = rig.volume("thin", 64)?;
        unbear(&mut rig, &volume.id, half)?;
        let mut volume = rig.request(create(&volume.name, "thin", volume.size(), volume.capability.clone()))?;
        volume.up("pod")?;
        volume.down("pod")?;
        let volume = rig.volume("thin", 64)?;
        unbear(&mut rig, &volume.id, half)?;
        volume.through(rig.csi()).delete()?;
    }
    rig.finish()?;
    covers!(6)
}

#[test]
fn a_snapshot_that_the_pool_does_not_know_is_cut_when_it_is_answered() -> Result<()> {
    let mut rig = Rig::thin()?;
    for half in [false, true] {
        let source = rig.volume("thin", 64)?;
        let cut = source.snapshot("cut")?;
        unbear(&mut rig, &cut.snapshot_id, half)?;
        let mut source = source.through(rig.csi());
        let target = source.up("pod")?;
        let write = |name: &str| fs::write(target.join(name), name).map_err(Trouble::io("writing into the volume"));
        write("early")?;
        let cut = source.snapshot("cut")?;
        write("late")?;
        tool::drop_caches()?;
        let mut request = create(&rig.name(), "thin", source.size(), source.capability.clone());
        request.volume_content_source = from_snapshot(&cut.snapshot_id);
        let mut restored = rig.request(request)?;
        let files = restored.up("pod-2")?;
        assert!(files.join("early").exists() && !files.join("late").exists(), "it was not cut when it was answered");
        restored.down("pod-2")?;
        delete_snapshot(rig.csi(), &cut.snapshot_id)?;
        source.down("pod")?;
    }
    rig.finish()?;
    covers!(6)
}
