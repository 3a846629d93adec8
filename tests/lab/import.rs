//! `lvm-csi import` turns LVs that a person made into volumes while the driver runs.

use std::fs;
use std::path::Path;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Accepted, block, mount};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Volume, delete_snapshot, text};
use testkit::machine::Machine;
use testkit::signature::{Foreign, write_at};
use testkit::{lab, tool, vg};

use crate::rig::{DRIVER, MIB, Rig};

/// Runs `lvm-csi import`. Returns whether it succeeded, and its output.
pub(crate) fn import(rig: &Rig, lv: &str, more: &[&str]) -> Result<(bool, String)> {
    let run = lab::fresh("import")?;
    let mut command = tool::command(DRIVER);
    command.args(["import", "--vg", &rig.vg.name, "--lv", lv, "--node-id", "node-a", "--run-dir", &text(&run)]).args(more);
    let output = tool::output(&mut command)?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

/// Fails unless the work leaves the machine unchanged, apart from running lvm for its version.
fn untouched<T>(rig: &Rig, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = Machine::look(&rig.scope)?;
    let done = work()?;
    let mut changes = before.differences(&Machine::look(&rig.scope)?);
    changes.retain(|change| !change.starts_with("lvm ran"));
    ensure(changes.is_empty(), || format!("{what}, but:\n  {}", changes.join("\n  ")))?;
    Ok(done)
}

/// Fails unless the import of an LV is refused with this word and nothing changes.
fn refuses(rig: &Rig, lv: &str, more: &[&str], word: &str) -> Result<()> {
    untouched(rig, &format!("import of {lv} was refused"), || {
        let (taken, said) = import(rig, lv, &[more, &["--apply"]].concat())?;
        ensure(!taken && said.contains(word), || format!("{lv} {more:?}: {said}"))
    })
}

/// Makes an LV by hand and puts something on it.
fn by_hand(rig: &Rig, arguments: &[&str], lv: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let keep_bytes: &[&str] = if arguments.contains(&"-s") { &[] } else { &["-Wn"] };
    vg::lvm(&[&["lvcreate", "-qq", "-y", "-n", lv], keep_bytes, arguments].concat())?;
    work(&rig.vg.device(lv))
}

/// Makes a filesystem with one file in it.
fn with_file(device: &Path, filesystem: &str) -> Result<()> {
    tool::run(&format!("mkfs.{filesystem}"), &["-q", &text(device)])?;
    let at = lab::fresh("by-hand")?;
    tool::run("mount", &[text(device), text(&at)])?;
    fs::write(at.join("kept"), "kept").map_err(Trouble::io("writing by hand"))?;
    tool::run("umount", &[text(&at)]).map(drop)
}

/// Builds the volume from the handle that the command printed.
pub(crate) fn volume(rig: &Rig, said: &str, capability: csi::VolumeCapability) -> Result<Volume> {
    let value = |key: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(key));
        line.map(|value| value.trim().trim_matches('"').to_owned()).ok_or_else(|| Trouble::wrong(format!("no {key} in {said}")))
    };
    let capacity: i64 = value("storage:")?.parse().map_err(|_| Trouble::wrong("no number of bytes"))?;
    let mut volume = Volume::known(rig.csi(), &rig.places, "imported", capability, &value("volumeHandle:")?, capacity);
    for key in ["volumegroup", "volumeID"] {
        volume.context.insert(key.to_owned(), value(&format!("{key}:"))?);
    }
    Ok(volume)
}

#[test]
fn filesystems_become_volumes_with_all_that_is_in_them() -> Result<()> {
    let rig = Rig::thin()?;
    let group = rig.vg.name.clone();
    for (lv, filesystem, pool, arguments) in [
        ("Data_1", "ext4", "linear", &["-L", "64m", &group][..]),
        ("mail.old", "xfs", "linear", &["-L", "320m", &group]),
        ("thin+1", "ext4", "thin", &["-V", "64m", "--thinpool", "pool", &group]),
    ] {
        by_hand(&rig, arguments, lv, |device| with_file(device, filesystem))?;
        let (fine, said) = untouched(&rig, "a dry run", || import(&rig, lv, &["--filesystem", filesystem]))?;
        ensure(fine && said.contains("--apply"), || said.clone())?;
        let other = if filesystem == "xfs" { "ext4" } else { "xfs" };
        refuses(&rig, lv, &["--filesystem", other], "--filesystem")?;
        refuses(&rig, lv, &["--filesystem", "raw"], filesystem)?;
        refuses(&rig, lv, &["--pool", if pool == "thin" { "linear" } else { "thin" }], "pool")?;
        let at = lab::fresh("by-hand")?;
        tool::run("mount", &[text(&rig.vg.device(lv)), text(&at)])?;
        refuses(&rig, lv, &[], "open")?;
        tool::run("umount", &[text(&at)])?;

        let (fine, said) = import(&rig, lv, &["--apply", "--claim", "db/data-0"])?;
        ensure(fine && said.contains("name: \"data-0\""), || said.clone())?;
        assert!(!rig.vg.lv(lv)?.active(), "the imported LV is active although nobody staged it");
        let (fine, again) = untouched(&rig, "imported again", || import(&rig, lv, &["--apply", "--claim", "db/data-0"]))?;
        assert!(fine && again == said, "{again}");

        // Every call accepts the name that a person gave the LV.
        let mut volume = volume(&rig, &said, mount(filesystem, Mode::SingleNodeWriter))?;
        let target = volume.up("pod")?;
        assert_eq!(fs::read_to_string(target.join("kept")).unwrap_or_default(), "kept");
        volume.expand(volume.size() + 32 * MIB, "pod")?;
        let get = csi::ControllerGetVolumeRequest { volume_id: volume.id.clone() };
        rig.csi().controller_get_volume(get).accepted("ControllerGetVolume")?;
        if pool == "thin" {
            let snapshot = volume.snapshot("snapshot-1")?;
            delete_snapshot(rig.csi(), &snapshot.snapshot_id)?;
        }
        volume.down("pod")?;
    }
    rig.finish()
}

#[test]
fn the_bytes_of_a_raw_device_are_kept_when_somebody_says_that_they_are_that() -> Result<()> {
    let rig = Rig::linear()?;
    let group = rig.vg.name.clone();
    let data = b"of a user of the raw device";
    by_hand(&rig, &["-L", "64m", &group], "disk", |device| write_at(device, 48 * MIB, data))?;
    by_hand(&rig, &["-L", "16m", &group], "image", |device| Foreign::Gpt.write(device))?;
    for lv in ["disk", "image"] {
        refuses(&rig, lv, &[], "--filesystem raw")?;
        refuses(&rig, lv, &["--filesystem", "ext4"], "ext4")?;
    }
    let sum = tool::checksum(&rig.vg.device("image"))?;
    for lv in ["disk", "image"] {
        let (fine, said) = import(&rig, lv, &["--apply", "--filesystem", "raw"])?;
        ensure(fine && said.contains("volumeMode: Block"), || said.clone())?;
        let mut volume = volume(&rig, &said, block(Mode::SingleNodeWriter))?;
        let target = volume.up("pod")?;
        if lv == "disk" {
            let bytes = fs::read(&target).map_err(Trouble::io("reading the device"))?;
            assert_eq!(bytes.len() as u64, 64 * MIB);
            assert_eq!(&bytes[48 << 20..][..data.len()], data);
        } else {
            assert_eq!(tool::checksum(&target)?, sum);
            // The host does not probe it either, although its name is not one of the driver's.
            crate::hidden::both_unseen(&rig, &volume, &target)?;
        }
        volume.down("pod")?;
    }
    rig.finish()
}

#[test]
fn what_is_no_volume_is_left_alone() -> Result<()> {
    let rig = Rig::make_on(&[lab::disk(0)?, lab::disk(1)?], Some(crate::rig::POOL_MIB), &[])?;
    let group = rig.vg.name.clone();
    let nothing = |_: &Path| Ok(());
    by_hand(&rig, &["-L", "16m", &group], "origin", nothing)?;
    by_hand(&rig, &["-s", "-L", "16m", &format!("{group}/origin")], "cow", nothing)?;
    by_hand(&rig, &["--type", "raid1", "-m1", "--nosync", "-L", "16m", &group], "mirror", nothing)?;
    by_hand(&rig, &["-i", "2", "-L", "16m", &group], "striped", nothing)?;
    by_hand(&rig, &["-L", "16m", "--addtag", "csi.fs=raw", &group], "tagged", nothing)?;
    by_hand(&rig, &["-L", "16m", &group], "keys", |device| Foreign::Luks.write(device))?;
    // An inactive LV is activated only to be probed.
    vg::lvm(&["lvchange", "-qq", "-an", &format!("{group}/keys")])?;
    let raw = ["--filesystem", "raw"];
    for (lv, more, word) in [
        ("origin", &raw[..], "depend"),
        ("cow", &raw, "snapshot"),
        ("mirror", &raw, "raid1"),
        ("mirror_rimage_0", &raw, "reserved"),
        ("striped", &raw, "striped"),
        ("tagged", &raw, "csi.fs=raw"),
        ("keys", &[], "crypto_LUKS"),
        ("pool", &raw, "thin pool"),
        ("none", &raw, "does not exist"),
    ] {
        refuses(&rig, lv, more, word)?;
    }
    vg::lvm(&["lvremove", "-qq", "-y", "-S", "lv_name!=pool", &group])?;
    let (fine, said) = import(&rig, "pool", &["--claim", "nonsense"])?;
    assert!(!fine && said.contains("NAMESPACE/NAME"), "{said}");
    rig.finish()
}
