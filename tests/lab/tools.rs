//! The tests' own tools, without a driver. What they miss, every other test misses.

use std::fs;

use testkit::error::{Result, Trouble};
use testkit::machine::{Account, Machine, scope};
use testkit::mounts::mount_at;
use testkit::shim::{self, Fault};
use testkit::signature::Foreign;
use testkit::test_vg::TestVg;
use testkit::vg;
use testkit::{cleanup, lab, tool};

use crate::rig::turn;

/// Runs `lvm` through the shim, as the driver would. Returns whether it succeeded.
fn counted(args: &[&str]) -> bool {
    tool::run(shim::LVM, args).is_ok()
}

#[test]
fn the_shim_counts_and_obeys() -> Result<()> {
    let _turn = turn()?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    let create = |name: &str| counted(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "4m", "-n", name, "labvg"]);
    let mark = shim::count()?;
    vg::lvm(&["vgs"])?;
    assert_eq!(shim::count()?, mark, "the shim counted the real lvm");
    assert!(create("one"));
    let ran = shim::since(mark)?;
    assert_eq!(ran.len(), 1, "{ran:?}");
    assert!(ran[0].arguments.starts_with("lvcreate ") && ran[0].arguments.ends_with(" one labvg"), "{ran:?}");
    for (fault, made) in [(Fault::Refuse, false), (Fault::Die, false), (Fault::LateRefuse, true), (Fault::LateDie, true)] {
        shim::arm(fault)?;
        assert!(counted(&["lvs"]) && shim::armed(), "the fault hit a read-only command");
        assert!(!create(fault.word()), "{fault:?} did not happen");
        assert!(!shim::armed());
        assert_eq!(vg.lv(fault.word()).is_ok(), made, "{fault:?}");
        assert!(create("after"), "{fault:?} happened twice");
        vg::lvm(&["lvremove", "-qq", "-y", "labvg/after"])?;
    }
    vg.destroy()?;
    assert!(vg::vgs()?.is_empty());
    Ok(())
}

#[test]
fn every_change_of_the_machine_is_seen() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    vg.thin_pool("pool", 64)?;
    let scope = scope(&vg, std::slice::from_ref(&home));
    let account = Account::take(&scope)?;
    assert!(account.leaks(&scope)?.is_empty());
    let sees = |what: &str, change: &dyn Fn() -> Result<()>, back: &dyn Fn() -> Result<()>, leak: bool| -> Result<()> {
        let before = Machine::look(&scope)?;
        change()?;
        let found = before.differences(&Machine::look(&scope)?);
        let leaks = account.leaks(&scope)?;
        back()?;
        assert!(!found.is_empty(), "{what} is not noticed");
        assert_eq!(!leaks.is_empty(), leak, "{what}: {leaks:?}");
        assert!(account.leaks(&scope)?.is_empty(), "{what} is still noticed when it is gone");
        Ok(())
    };
    let lvm = |args: &[&str]| vg::lvm(args).map(drop);
    let file = home.join("file");
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    sees(
        "a new LV",
        &|| lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "leak", "labvg"]),
        &|| lvm(&["lvremove", "-qq", "-y", "labvg/leak"]),
        true,
    )?;
    sees(
        "a tag",
        &|| lvm(&["lvchange", "-qq", "--addtag", "t", "labvg/pool"]),
        &|| lvm(&["lvchange", "-qq", "--deltag", "t", "labvg/pool"]),
        false,
    )?;
    sees("a counted command", &|| tool::run(shim::LVM, &["version"]).map(drop), &|| Ok(()), false)?;
    sees(
        "a mount",
        &|| tool::run("mount", &["--bind", &text(&home), &text(&home)]).map(drop),
        &|| tool::run("umount", &[&text(&home)]).map(drop),
        true,
    )?;
    sees(
        "a dm device",
        &|| tool::run("dmsetup", &["create", "leak", "--table", "0 8 zero"]).map(drop),
        &|| tool::run("dmsetup", &["remove", "--retry", "leak"]).map(drop),
        true,
    )?;
    sees(
        "a suspended device",
        &|| tool::run("dmsetup", &["suspend", "labvg-pool"]).map(drop),
        &|| tool::run("dmsetup", &["resume", "labvg-pool"]).map(drop),
        true,
    )?;
    sees(
        "a file",
        &|| fs::write(&file, "x").map_err(Trouble::io("writing a file")),
        &|| fs::remove_file(&file).map_err(Trouble::io("removing a file")),
        true,
    )?;
    vg.destroy()
}

#[test]
fn a_machine_that_a_failed_test_left_is_cleaned() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    vg.thin_pool("pool", 64)?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-V", "32m", "-n", "mounted", "--thinpool", "labvg/pool"])?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-Zn", "-Wn", "-L", "8m", "-n", "held", "labvg"])?;
    tool::settle()?;
    tool::run("mkfs.ext4", &["-q", "-F", "/dev/labvg/mounted"])?;
    tool::run("mount", &[vg.device("mounted"), home.clone()])?;
    let held = "0 8 linear /dev/labvg/held 0";
    tool::run("dmsetup", &["create", "lvm--csi-held", "--uuid", "LVM-lvmcsiHeld", "--table", held])?;
    tool::run("dmsetup", &["suspend", "labvg-pool-tpool"])?;
    tool::run("dmsetup", &["suspend", "labvg-held"])?;
    tool::run("dmsetup", &["load", "labvg-held", "--table", "0 8 error"])?;
    // The process hangs in the suspended pool, in a write that cannot be interrupted.
    let file = format!("of={}", home.join("file").display());
    let mut hangs = tool::command("dd")
        .args(["if=/dev/zero", &file, "bs=4k", "count=1", "conv=fsync", "status=none"])
        .spawn()
        .map_err(Trouble::io("starting dd"))?;
    cleanup::everything()?;
    hangs.wait().map_err(Trouble::io("waiting for dd"))?;
    assert!(vg::vgs()?.is_empty() && mount_at(&home)?.is_none());
    assert!(!tool::run("dmsetup", &["ls"])?.contains('-'), "devices are left");
    Ok(())
}

#[test]
fn signatures_are_recognised_on_a_volume_and_taken_down_with_it() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let vg = TestVg::make("labvg", &[lab::disk(0)?])?;
    vg::lvm(&["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "64m", "-n", "one", "labvg"])?;
    for foreign in Foreign::ALL {
        vg.with_active("one", |device| {
            tool::run("wipefs", &["-q", "-a", "-f", &device.to_string_lossy()])?;
            foreign.write(device)?;
            // It does not belong to a driver, so the host has assembled whatever it recognises.
            tool::settle()?;
            let _ = tool::run("mdadm", &["--stop", "--scan"]);
            Ok(())
        })?;
    }
    assert!(vg.begin("one")? >= 4 << 20);
    // A failed test leaves things mounted. The next one takes them down.
    vg.with_active("one", |device| tool::run("mkfs.ext4", &["-q", "-F", &device.to_string_lossy()]).map(drop))?;
    vg::lvm(&["lvchange", "-qq", "-ay", "labvg/one"])?;
    tool::settle()?;
    tool::run("mount", &[vg.device("one"), home.clone()])?;
    assert_eq!(mount_at(&home)?.map(|mount| mount.filesystem).as_deref(), Some("ext4"));
    TestVg::make("labvg", &[lab::disk(0)?])?.destroy()?;
    assert!(mount_at(&home)?.is_none());
    assert!(vg::vgs()?.is_empty());
    Ok(())
}
