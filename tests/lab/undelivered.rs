//! Undelivered thin volumes and snapshots: LVM committed them, but the pool never heard of them, or only half, as after a power
//! cut.

use std::fs;

use testkit::client::{create, from_snapshot, from_volume};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot};
use testkit::shim::{self, Fault};
use testkit::{lab, tool, vg};

use crate::rig::Rig;

/// Kills the driver and takes the thin pool's last creation back to the moment before its message to the pool. With `half`, it goes
/// back to before the pool counted the transaction. Then removes all devices, as a power cut does.
pub(crate) fn unbear(rig: &mut Rig, handle: &str, half: bool) -> Result<()> {
    rig.driver.kill()?;
    let lv = rig.vg.of_handle(handle)?.name;
    let pool = format!("{}-pool-tpool", rig.vg.name);
    let backup = format!("{}/undelivered.txt", lab::ROOT);
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
        assert!(
            files.join("early").exists() && !files.join("late").exists(),
            "the snapshot was not cut when its call was answered"
        );
        restored.down("pod-2")?;
        delete_snapshot(rig.csi(), &cut.snapshot_id)?;
        source.down("pod")?;
    }
    rig.finish()?;
    covers!(6)
}

/// Makes something in the thin pool while lvm is killed at its message number `message`. The driver lives.
fn with_a_killed_lvm<T>(rig: &Rig, message: usize, mut make: impl FnMut() -> Result<T>) -> Result<T> {
    shim::arm(Fault::Kill(message))?;
    let made = rig.until_ok("what lvm was killed for", |_| make())?;
    ensure(!shim::armed() && shim::died_at_a_message()?, || "lvm was not killed at a message to the pool".to_owned())?;
    Ok(made)
}

#[test]
fn what_is_answered_while_an_lvm_is_killed_at_a_message_is_in_the_pool() -> Result<()> {
    let rig = Rig::thin()?;
    let mut source = rig.volume("thin", 64)?;
    let write = |source: &mut Volume, name: &str| {
        let target = source.up("pod")?;
        fs::write(target.join(name), name).map_err(Trouble::io("writing into the volume"))?;
        for call in [source.unpublish("pod"), source.unstage(), source.detach()] {
            call?;
        }
        Ok::<_, Trouble>(())
    };
    write(&mut source, "early")?;
    // Finds out which of its ioctls are messages.
    let traced = |make: &dyn Fn() -> Result<String>| {
        shim::arm(Fault::Trace)?;
        let made = make()?;
        let messages = shim::messages()?;
        ensure(messages.len() >= 2, || format!("a creation in a thin pool must send at least two messages, not {messages:?}"))?;
        Ok::<_, Trouble>((made, messages))
    };
    let (cut, messages) = traced(&|| Ok(source.snapshot("traced")?.snapshot_id))?;
    delete_snapshot(rig.csi(), &cut)?;
    for (number, message) in messages.into_iter().enumerate() {
        let cut = with_a_killed_lvm(&rig, message, || source.snapshot(&format!("cut-{number}")))?;
        let late = format!("late-{number}");
        write(&mut source, &late)?;
        let mut request = create(&rig.name(), "thin", source.size(), source.capability.clone());
        request.volume_content_source = from_snapshot(&cut.snapshot_id);
        let mut restored = rig.request(request)?;
        let files = restored.up("pod-2")?;
        assert!(
            files.join("early").exists() && !files.join(&late).exists(),
            "the snapshot was not cut when its call was answered"
        );
        restored.down("pod-2")?;
        delete_snapshot(rig.csi(), &cut.snapshot_id)?;
        // To LVM a clone is a snapshot.
        let mut request = create(&rig.name(), "thin", source.size(), source.capability.clone());
        request.volume_content_source = from_volume(&source.id);
        let mut clone = with_a_killed_lvm(&rig, message, || rig.request(request.clone()))?;
        let files = clone.up("pod-2")?;
        assert!(files.join(&late).exists(), "the clone lacks a file of its source");
        clone.down("pod-2")?;
    }
    let request = create(&rig.name(), "thin", source.size(), source.capability.clone());
    let make = || rig.request(request.clone()).map(|volume| volume.id);
    let (_, messages) = traced(&make)?;
    rig.request(request.clone())?.delete()?;
    for message in messages {
        let mut blank = with_a_killed_lvm(&rig, message, || rig.request(request.clone()))?;
        blank.up("pod-2")?;
        blank.down("pod-2")?;
    }
    source.delete()?;
    rig.finish()?;
    covers!(6)
}
