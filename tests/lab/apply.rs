//! Compares the model of LVM with real LVM: what `metadata::apply` predicts for each command, and what the reader reads from the
//! disks. These tests run the LVM engine without a driver.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use lvm_csi::host::{Kernel, Linux};
use lvm_csi::lvm::command::{Command, PoolShape};
use lvm_csi::lvm::metadata::{SegmentKind, Vg, apply, differences};
use lvm_csi::lvm::{ChangeError, Engine, Lvm, Program, Trust, View};
use lvm_csi::types::{Bytes, Extents, LvName, LvUuid, Tag, VgName, VgUuid};
use lvm_csi::volume::tag;
use testkit::error::{Result, Trouble, ensure};
use testkit::machine::{Account, scope};
use testkit::test_vg::TestVg;
use testkit::vg::{self, lvm};
use testkit::{lab, tool};

use crate::rig::{LIMIT, MIB, turn};

/// Fixed seeds of the random histories.
const SEEDS: [u64; 3] = [0x5eed_0001, 0x5eed_0b0e, 0x5eed_cafe];
/// Commands per history.
const COMMANDS: usize = 18;
/// Number of names per history. It is small so that names collide.
const NAMES: u64 = 7;

fn wrong(error: &dyn Error) -> Trouble {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    Trouble::wrong(text)
}

fn engine(home: &Path, vg: &TestVg) -> Result<Engine> {
    let program = Program::find().map_err(|error| wrong(&error))?;
    Ok(Engine::new(Arc::new(program), Arc::new(Linux), &home.join("run"), vg_name(vg)?, LIMIT, Trust::default()))
}

fn vg_name(vg: &TestVg) -> Result<VgName> {
    VgName::new(&vg.name).map_err(|error| wrong(&error))
}

/// An engine that checks each change against the model's prediction.
struct CheckedEngine {
    engine: Engine,
    vg: VgName,
    /// Commands run so far with their results, for the failure message.
    history: Vec<String>,
    /// Commands that both sides refused.
    refused: usize,
}

impl CheckedEngine {
    fn view(&self) -> Result<View> {
        self.engine.read().map_err(|error| wrong(&error))
    }

    /// Runs one command and compares the group with the prediction.
    fn step(&mut self, command: &Command) -> Result<()> {
        let before = self.view()?;
        let predicted = apply(&before.vg, &what_activation_allows(&before.vg, command)?);
        let turn = self.engine.turn().map_err(|error| wrong(&error))?;
        let outcome = self.engine.change(&turn, command);
        drop(turn);
        let after = self.view()?;
        let said = outcome.as_ref().map_or_else(|error| wrong(error).to_string(), |()| "OK".to_owned());
        self.history.push(format!("{command}: {said}"));
        let names_are_missing = |targets: &[(LvName, LvUuid)]| targets.iter().any(|(lv, _)| before.vg.lv(lv.as_str()).is_none());
        let found = match (&predicted, &outcome, command) {
            (Ok(predicted), Ok(()), _) => differences(predicted, &after.vg),
            // LVM reports a missing name as an error, yet removes the other LVs.
            (Ok(predicted), Err(ChangeError::Lvm(_)), Command::Remove { targets, .. }) if names_are_missing(targets) => {
                differences(predicted, &after.vg)
            }
            (Err(_), Err(ChangeError::Lvm(_)), _) if before.vg == after.vg => {
                self.refused += 1;
                Vec::new()
            }
            (Err(_), Err(ChangeError::Lvm(_)), _) => vec!["LVM refused, yet changed the group".to_owned()],
            (predicted, ..) => vec![format!("the model predicted {:?}", predicted.as_ref().map(|_| ()))],
        };
        ensure(found.is_empty(), || {
            format!(
                "{}\nthe last command left something else than predicted (prediction first):\n  {}",
                self.history.join("\n"),
                found.join("\n  ")
            )
        })
    }

    fn remove(&self, names: &[&str]) -> Result<Command> {
        let vg = self.view()?.vg;
        let target = |name: &&str| Ok((lv(name)?, vg.lv(name).map_or_else(nobody, |lv| lv.uuid.clone())));
        Ok(Command::Remove { vg: self.vg.clone(), targets: names.iter().map(target).collect::<Result<_>>()? })
    }
}

/// Drops the targets whose devices the kernel has active. A model of the metadata cannot know these.
fn what_activation_allows(vg: &Vg, command: &Command) -> Result<Command> {
    let Command::Remove { vg: name, targets } = command else { return Ok(command.clone()) };
    let mut inactive = Vec::new();
    for (lv, uuid) in targets {
        let id = vg.lv(lv.as_str()).map_or(uuid, |there| &there.uuid);
        let device = Linux.dm_find(&format!("LVM-{}{}", vg.uuid.compact(), id.compact()));
        if device.map_err(Trouble::io(format!("looking for the device of {lv}")))?.is_none() {
            inactive.push((lv.clone(), uuid.clone()));
        }
    }
    Ok(Command::Remove { vg: name.clone(), targets: inactive })
}

fn lv(name: &str) -> Result<LvName> {
    LvName::new(name).map_err(|error| wrong(&error))
}

fn tags(names: &[&str]) -> Result<Vec<Tag>> {
    names.iter().map(|name| Tag::new(*name).map_err(|error| wrong(&error))).collect()
}

fn new_pool(vg: &VgName, name: &str, mib: u64) -> Result<Command> {
    let size = Bytes(mib * MIB);
    Ok(Command::CreateThinPool {
        vg: vg.clone(),
        lv: lv(name)?,
        size,
        shape: PoolShape::of(size),
        tags: tag::of_pool("lvm-csi.dev"),
    })
}

/// A UUID that no LV has.
fn nobody() -> LvUuid {
    LvUuid::from_compact(&"n".repeat(32)).expect("32 letters")
}

/// Makes a group with a thin pool on both disks. Returns it with its engine and the account of the machine.
fn begin(home: &Path) -> Result<(TestVg, CheckedEngine, Account)> {
    let group = TestVg::make("labvg", &[lab::disk(0)?, lab::disk(1)?])?;
    let mut world = CheckedEngine { engine: engine(home, &group)?, vg: vg_name(&group)?, history: Vec::new(), refused: 0 };
    let vg = world.vg.clone();
    world.step(&new_pool(&vg, "pool", 256)?)?;
    // The first volume gives the pool a device layer, which the pool then keeps.
    world.step(&Command::CreateThin { vg, pool: lv("pool")?, lv: lv("x0")?, size: Bytes(MIB), tags: vec![] })?;
    world.step(&world.remove(&["x0"])?)?;
    remove_spare(&group)?;
    let account = Account::take(&scope(&group, &[home.to_owned()]))?;
    Ok((group, world, account))
}

/// Removes the spare pool metadata. It may grow, and no history removes it.
fn remove_spare(group: &TestVg) -> Result<()> {
    match group.lvs()?.iter().find(|lv| lv.name.ends_with("_pmspare]")) {
        Some(spare) => {
            lvm(&["lvremove", "-qq", "-ff", "-y", &format!("{}/{}", group.name, spare.name.trim_matches(['[', ']']))]).map(drop)
        }
        None => Ok(()),
    }
}

/// Removes the LVs of a history. Their names begin with `x`.
fn clear(group: &TestVg) -> Result<()> {
    // First the public LVs, then the pools: `lv_role=public` does not match a pool.
    for which in ["lv_role=public", "lv_attr=~^t"] {
        lvm(&["lvremove", "-qq", "-ff", "-y", "-S", &format!("lv_name=~^x && {which}"), &group.name])?;
    }
    remove_spare(group)
}

/// Takes the group down. Fails if anything is left besides LVs named `x…`.
fn end(home: &Path, group: &TestVg, before: &Account) -> Result<()> {
    clear(group)?;
    let left = before.leaks(&scope(group, &[home.to_owned()]))?;
    ensure(left.is_empty(), || format!("left behind:\n  {}", left.join("\n  ")))?;
    group.destroy()
}

#[test]
fn a_change_leaves_what_the_model_predicts() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let (group, mut world, before) = begin(&home)?;
    let vg = world.vg.clone();
    let linear = |name: &str, extents: u64| -> Result<Command> {
        Ok(Command::CreateLinear { vg: vg.clone(), lv: lv(name)?, extents: Extents(extents), tags: tags(&["a", "b=1", "a"])? })
    };
    let thin = |pool: &str, name: &str, size: u64| -> Result<Command> {
        Ok(Command::CreateThin { vg: vg.clone(), pool: lv(pool)?, lv: lv(name)?, size: Bytes(size), tags: tags(&["a"])? })
    };
    let snapshot = |origin: &str, name: &str, read_only: bool| -> Result<Command> {
        Ok(Command::SnapshotThin { vg: vg.clone(), origin: lv(origin)?, lv: lv(name)?, tags: tags(&["s"])?, read_only })
    };
    let extend = |name: &str, extents: u64| -> Result<Command> {
        Ok(Command::Extend { vg: vg.clone(), lv: lv(name)?, extents: Extents(extents) })
    };
    let retag = |name: &str, remove: &[&str], add: &[&str]| -> Result<Command> {
        Ok(Command::Retag { vg: vg.clone(), lvs: vec![lv(name)?], remove: tags(remove)?, add: tags(add)? })
    };
    let of_group = |uuid: &str, remove: &[&str], add: &[&str]| -> Result<Command> {
        let uuid = VgUuid::new(uuid).ok_or_else(|| Trouble::wrong(format!("{uuid} is no UUID")))?;
        Ok(Command::RetagGroup { vg: vg.clone(), uuid, remove: tags(remove)?, add: tags(add)? })
    };
    let activate = |name: &str| -> Result<Command> { Ok(Command::Activate { vg: vg.clone(), lvs: vec![lv(name)?] }) };
    let deactivate = |name: &str| -> Result<Command> { Ok(Command::Deactivate { vg: vg.clone(), lvs: vec![lv(name)?] }) };
    let metadata = |name: &str, mib: u64| -> Result<Command> {
        Ok(Command::ExtendMetadata { vg: vg.clone(), lv: lv(name)?, size: Bytes(mib * MIB) })
    };
    let when_full =
        |name: &str, error: bool| -> Result<Command> { Ok(Command::ErrorWhenFull { vg: vg.clone(), lv: lv(name)?, error }) };
    let commands = [
        linear("x1", 4)?,
        linear("x2", 3)?,
        extend("x1", 30)?,
        extend("x2", 4)?,
        activate("x1")?,
        extend("x1", 31)?,
        Command::Refresh { vg: vg.clone(), lv: lv("x1")? },
        retag("x1", &["a", "none"], &["none", "c"])?,
        retag("x1", &["none"], &["c"])?,
        deactivate("x1")?,
        deactivate("x1")?,
        of_group(&group.uuid, &[], &["g=1/a", "g=2/b"])?,
        of_group(&group.uuid, &["g=1/a", "none"], &["g=2/b", "g=3/c"])?,
        // Another group now has the name.
        of_group(nobody().as_str(), &["g=2/b"], &["g=4/d"])?,
        of_group(&group.uuid, &["g=2/b", "g=3/c"], &[])?,
        Command::Activate { vg: vg.clone(), lvs: vec![lv("x1")?, lv("x2")?] },
        Command::Retag { vg: vg.clone(), lvs: vec![lv("x1")?, lv("x2")?], remove: tags(&["c"])?, add: tags(&["d"])? },
        Command::Deactivate { vg: vg.clone(), lvs: vec![lv("x1")?, lv("x2")?] },
        activate("x1")?,
        thin("pool", "x3", 1 << 30)?,
        thin("pool", "x4", 5_000_001)?,
        snapshot("x3", "x5", true)?,
        snapshot("x5", "x6", false)?,
        extend("x6", 300)?,
        activate("x6")?,
        extend("x6", 310)?,
        snapshot("x6", "x7", true)?,
        deactivate("x6")?,
        // In an inactive pool.
        deactivate("pool")?,
        snapshot("x6", "x8", false)?,
        activate("pool")?,
        new_pool(&vg, "x9", 32)?,
        extend("x9", 9)?,
        thin("x9", "xa", MIB)?,
        extend("x9", 10)?,
        // With and without the pool's device, in both directions.
        metadata("x9", 12)?,
        metadata("x9", 12)?,
        when_full("x9", true)?,
        when_full("x9", false)?,
        deactivate("x9")?,
        when_full("x9", true)?,
        metadata("x9", 16)?,
        // So large that the spare pool metadata must grow.
        new_pool(&vg, "xb", 4400)?,
    ];
    for command in &commands {
        world.step(command)?;
    }
    assert_eq!(world.refused, 0, "{:#?}", world.history);
    let refused = [
        linear("x1", 4)?,
        linear("y", 400_000)?,
        linear("y", 0)?,
        new_pool(&vg, "pool", 32)?,
        extend("x1", 31)?,
        extend("x1", 3)?,
        extend("x1", 400_000)?,
        extend("y", 3)?,
        retag("y", &[], &["c"])?,
        activate("y")?,
        metadata("x9", 8)?,
        metadata("x9", 40_000)?,
        metadata("x1", 8)?,
        when_full("x9", true)?,
        when_full("x1", true)?,
        thin("x1", "y", MIB)?,
        thin("y", "y1", MIB)?,
        snapshot("x1", "y", true)?,
        snapshot("pool", "y", true)?,
        snapshot("y", "y1", false)?,
    ];
    for command in &refused {
        world.step(command)?;
    }
    assert_eq!(world.refused, refused.len(), "{:#?}", world.history);
    // LVM keeps or skips what is active, has dependents or does not exist. It removes the rest in one command.
    for names in [&["x2", "x1", "pool"][..], &["x3", "y", "x5"], &["x9"], &["xa"], &["y"]] {
        world.step(&world.remove(names)?)?;
    }
    let view = world.view()?;
    let there = |name: &str| view.vg.lv(name).is_some();
    assert_eq!((there("x1"), there("x2"), there("x3"), there("x5"), there("x9")), (true, false, false, false, true));
    // The UUID of another LV does not permit removing this one.
    let other = Command::Remove { vg: vg.clone(), targets: vec![(lv("x4")?, nobody())] };
    world.step(&other)?;
    end(&home, &group, &before)
}

/// Pseudorandom numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn name(&mut self) -> Result<LvName> {
        lv(&format!("x{}", self.below(NAMES)))
    }

    fn command(&mut self, world: &CheckedEngine) -> Result<Command> {
        let vg = world.vg.clone();
        let lv_name = self.name()?;
        Ok(match self.below(16) {
            0 | 1 => Command::CreateLinear { vg, lv: lv_name, extents: Extents(self.below(350)), tags: tags(&["t=1"])? },
            2 | 3 => {
                let pool = if self.below(4) == 0 { self.name()? } else { lv("pool")? };
                Command::CreateThin { vg, pool, lv: lv_name, size: Bytes(self.below(1 << 30)), tags: tags(&["t=1"])? }
            }
            4..=6 => {
                let read_only = self.below(2) == 0;
                Command::SnapshotThin { vg, origin: self.name()?, lv: lv_name, tags: tags(&["t=2"])?, read_only }
            }
            7 => Command::Extend { vg, lv: lv_name, extents: Extents(self.below(400)) },
            8 => Command::Retag { vg, lvs: vec![lv_name], remove: tags(&["t=1"])?, add: tags(&["t=3"])? },
            9 => Command::Activate { vg, lvs: vec![lv_name] },
            10 => Command::Retag { vg, lvs: vec![lv_name], remove: tags(&["t=3"])?, add: tags(&["t=1", "t=4"])? },
            11 => Command::Deactivate { vg, lvs: vec![lv_name] },
            12 => new_pool(&vg, lv_name.as_str(), self.below(16) * 4)?,
            13 => Command::ExtendMetadata { vg, lv: lv("pool")?, size: Bytes(self.below(6) * 4 * MIB) },
            14 => Command::ErrorWhenFull { vg, lv: lv("pool")?, error: self.below(2) == 0 },
            _ => world.remove(&[lv_name.as_str(), self.name()?.as_str()])?,
        })
    }
}

#[test]
fn the_model_predicts_a_random_history() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let (group, mut world, before) = begin(&home)?;
    for seed in SEEDS {
        clear(&group)?;
        world.history.clear();
        let mut random = Random(seed);
        for _ in 0..COMMANDS {
            let command = random.command(&world)?;
            world.step(&command).map_err(|trouble| Trouble::wrong(format!("seed {seed:#x}:\n{trouble}")))?;
        }
    }
    end(&home, &group, &before)
}

/// Fails unless the reader and stock LVM report the same group.
fn agree(engine: &Engine, group: &TestVg, after: &str) -> Result<()> {
    let view = engine.read().map_err(|error| wrong(&error))?;
    let read = &view.vg;
    let set = |texts: &[String]| texts.iter().cloned().collect::<BTreeSet<_>>();
    let reported = lvm(&["vgs", "--noheadings", "--separator", "|", "-o", "name,uuid,seqno,free_count,vg_tags", &group.name])?;
    let ours = format!("{}|{}|{}|{}|{}", read.name, read.uuid, read.seqno, read.free_extents().0, read.tags.join(","));
    ensure(reported.trim() == ours, || format!("after {after} vgs reports {reported:?}, but the reader read {ours:?}"))?;
    let reported = lvm(&["pvs", "--noheadings", "-o", "pv_uuid,pv_name", "-S", &format!("vg_name={}", group.name)])?;
    let reported: BTreeMap<&str, &str> = reported.lines().filter_map(|line| line.trim().split_once(' ')).collect();
    let ours: BTreeMap<&str, &str> =
        view.disks.iter().map(|(uuid, path)| (uuid.as_str(), path.to_str().unwrap_or_default())).collect();
    ensure(reported == ours, || format!("after {after} pvs reports {reported:?}, but the reader read {ours:?}"))?;
    let links: Vec<(&str, &str)> = read
        .lvs
        .iter()
        .filter_map(|lv| match &lv.segments.first()?.kind {
            SegmentKind::Snapshot { cow, .. } => Some((lv.name.as_str(), cow.as_str())),
            _ => None,
        })
        .collect();
    let reported: BTreeSet<_> =
        group.lvs()?.into_iter().map(|lv| (lv.name.clone(), lv.uuid.clone(), lv.size, set(&lv.tags))).collect();
    let ours: BTreeSet<_> = read
        .lvs
        .iter()
        // `lvs` shows the link of a COW snapshot as a property of the snapshot.
        .filter(|lv| !links.iter().any(|(link, _)| *link == lv.name))
        .map(|lv| {
            let shown = lv.visible || links.iter().any(|(_, cow)| *cow == lv.name);
            let name = if shown { lv.name.clone() } else { format!("[{}]", lv.name) };
            (name, lv.uuid.to_string(), read.lv_size(lv).0, set(&lv.tags))
        })
        .collect();
    ensure(reported == ours, || format!("after {after} lvs reports\n  {reported:?}\nbut the reader read\n  {ours:?}"))
}

#[test]
fn the_reader_sees_what_stock_lvm_says() -> Result<()> {
    let _turn = turn()?;
    let home = lab::fresh("test")?;
    let (first, second) = (lab::disk(0)?, lab::disk(1)?);
    let (one, two) = (first.to_string_lossy(), second.to_string_lossy());
    let group = TestVg::make("labvg", std::slice::from_ref(&first))?;
    // Remove what an earlier test left on the second disk.
    TestVg::make("othervg", std::slice::from_ref(&second))?.destroy()?;
    let before = Account::take(&scope(&group, std::slice::from_ref(&home)))?;
    let engine = engine(&home, &group)?;
    let steps: [&[&str]; 16] = [
        &["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-L", "16m", "-n", "linear", "--addtag", "a", "--addtag", "b=1", "labvg"],
        &["vgchange", "-qq", "--addtag", "rack=7", "labvg"],
        &["pvcreate", "-qq", "-y", "--metadatasize", "2m", &two],
        &["vgextend", "-qq", "labvg", &two],
        &["lvcreate", "-qq", "-y", "-an", "-Zn", "-Wn", "-i", "2", "-L", "24m", "-n", "striped", "labvg"],
        &["lvcreate", "-qq", "-y", "--type", "raid1", "-m", "1", "-L", "12m", "-n", "mirrored", "labvg"],
        &["lvcreate", "-qq", "-y", "--type", "thin-pool", "-L", "64m", "-n", "pool", "labvg"],
        &["lvcreate", "-qq", "-y", "-V", "100m", "-n", "thin", "--thinpool", "labvg/pool"],
        &["lvcreate", "-qq", "-y", "-s", "-n", "thinsnap", "labvg/thin"],
        &["lvcreate", "-qq", "-y", "-s", "-L", "8m", "-n", "cow", "labvg/linear"],
        // From here on the metadata text on the second disk goes stale, and later the text on the first.
        &["pvchange", "-qq", "--metadataignore", "y", &two],
        &["lvrename", "-qq", "labvg", "striped", "renamed"],
        &["pvmove", "-qq", "-i", "1", "-n", "linear", &one, &two],
        &["pvchange", "-qq", "--metadataignore", "n", &two],
        &["pvchange", "-qq", "--metadataignore", "y", &one],
        &["lvextend", "-qq", "-y", "-L", "20m", "labvg/mirrored"],
    ];
    for step in steps {
        lvm(step)?;
        agree(&engine, &group, &step.join(" "))?;
    }
    // A reader that watched from the beginning agrees with one that starts now.
    agree(&self::engine(&home, &group)?, &group, "all")?;
    tool::settle()?;
    lvm(&["lvremove", "-qq", "-ff", "-y", "labvg"])?;
    agree(&engine, &group, "lvremove")?;
    lvm(&["pvchange", "-qq", "--metadataignore", "n", &one])?;
    lvm(&["vgreduce", "-qq", "labvg", &two])?;
    lvm(&["pvremove", "-qq", &two])?;
    agree(&engine, &group, "vgreduce")?;
    let left = before.leaks(&scope(&group, std::slice::from_ref(&home)))?;
    ensure(left.is_empty(), || format!("left behind:\n  {}", left.join("\n  ")))?;
    group.destroy()?;
    ensure(engine.read().is_err(), || "the reader still reads a removed group".to_owned())?;
    assert!(vg::vgs()?.is_empty());
    Ok(())
}
