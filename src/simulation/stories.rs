//! Faults that histories and enumeration found, each as a test of its own.

use crate::lvm::command::Command;
use crate::types::{Extents, LvName, VgName};

use super::content::{Cell, Store};
use super::doom::Moment;
use super::host::{MIB, VG};
use super::lvm::Fate;
use super::world::{Call, Ended, From, Plan, Way, World};

static PLANS: [Plan; 1] = [Plan { name: "pvc-a", pool: "linear", block: true, from: From::Nothing }];

fn world() -> World {
    let mut world = World::new(&PLANS);
    world.restart().unwrap();
    world
}

fn ok(world: &mut World, calls: &[Call]) {
    for call in calls {
        let ended = world.call(*call, None);
        assert!(ended.is_ok(), "{call:?}: {ended:?}");
    }
}

/// A world whose driver died after extending the LV of a published volume, before zeroing the new part.
fn cut_off_growth() -> World {
    let mut world = world();
    let (attach, stage, publish) = (Call::Attach(0, Way::Right), Call::Stage(0, Way::Right), Call::Publish(0, 0, Way::Right));
    ok(&mut world, &[Call::Create(0, 16), attach, stage, publish, Call::Expand(0, 24)]);
    let zero = world.doom.seen().iter().position(|effect| effect.name == "zero").unwrap();
    ok(&mut world, &[Call::NodeExpand(0, 24)]);
    let ended = world.call(Call::Expand(0, 48), Some((zero, Moment::Before)));
    assert!(matches!(ended, Ended::Died(_)), "{ended:?}");
    world.doom.arm(None);
    world.restart().unwrap();
    world
}

#[test]
fn a_growth_whose_zeroes_a_death_cut_off_is_shown_to_nobody_until_they_are_there() {
    let mut world = cut_off_growth();
    // The LV is extended and not zeroed. A second pod sees the same as the first one, and staging does not zero for it.
    for call in [Call::Stage(0, Way::Right), Call::Publish(0, 1, Way::Right)] {
        ok(&mut world, &[call]);
        assert!(world.doom.seen().iter().all(|effect| effect.name != "zero"), "{call:?}");
    }
    assert_eq!((world.shown(0, 0), world.shown(0, 1), world.wrong()), (24 * MIB, 24 * MIB, Vec::new()));
    ok(&mut world, &[Call::Expand(0, 48), Call::NodeExpand(0, 48)]);
    assert_eq!((world.shown(0, 0), world.shown(0, 1), world.wrong()), (48 * MIB, 48 * MIB, Vec::new()));
}

#[test]
fn a_growth_that_nobody_repeats_is_zeroed_all_the_same_wherever_the_driver_dies() {
    let mut world = cut_off_growth();
    let begun = world.save();
    world.restore(&begun);
    ok(&mut world, &[Call::Work]);
    let (seen, after) = (world.doom.seen(), world.account());
    let names: Vec<&str> = seen.iter().map(|effect| effect.name.as_str()).collect();
    assert!(names.contains(&"zero") && names.contains(&"lvchange"), "{names:?}");
    assert_eq!(world.shown(0, 0), 24 * MIB);
    for (number, effect) in seen.iter().enumerate() {
        for moment in effect.moments() {
            let story = format!("death {moment:?} effect {number} ({} {})", effect.name, effect.subject);
            world.restore(&begun);
            let ended = world.call(Call::Work, Some((number, moment)));
            assert!(matches!(ended, Ended::Died(_)), "{story}: {ended:?}");
            world.doom.arm(None);
            world.restart().unwrap();
            assert_eq!(world.wrong_but_holders(), [""; 0], "{story}");
            ok(&mut world, &[Call::Work]);
            assert_eq!(world.account(), after, "{story}");
        }
    }
    ok(&mut world, &[Call::Work]);
    assert!(world.doom.seen().is_empty(), "what is finished is worked on");
    ok(&mut world, &[Call::Expand(0, 48), Call::NodeExpand(0, 48)]);
    assert_eq!((world.shown(0, 0), world.wrong()), (48 * MIB, Vec::new()));
}

#[test]
fn what_somebody_else_added_to_a_device_is_not_shown() {
    let mut world = world();
    let (attach, stage, publish) = (Call::Attach(0, Way::Right), Call::Stage(0, Way::Right), Call::Publish(0, 0, Way::Right));
    ok(&mut world, &[Call::Create(0, 16), attach, stage, publish]);
    assert_eq!(world.shown(0, 0), 16 * MIB);
    let (lv, mounts) = (world.volume_name(0), world.host.entries());
    let extend = Command::Extend { vg: VgName::new(VG).unwrap(), lv, extents: Extents(8) };
    assert!(world.host.state().by_hand(&extend, &mounts));
    ok(&mut world, &[Call::NodeExpand(0, 0)]);
    assert_eq!((world.shown(0, 0), world.wrong()), (16 * MIB, Vec::new()));
    ok(&mut world, &[Call::Expand(0, 24), Call::NodeExpand(0, 32), Call::Publish(0, 1, Way::Odd)]);
    assert_eq!((world.shown(0, 0), world.shown(0, 1), world.wrong()), (32 * MIB, 32 * MIB, Vec::new()));
}

#[test]
fn what_is_zeroed_is_on_all_disks_before_anybody_writes() {
    let mut world = world();
    // The volume is on the second disk, and a user's flush reaches only that disk.
    let vg = world.host.state().vg();
    let extents = vg.gaps(&vg.pvs[0])[0].1;
    let (vg, lv) = (vg.name.clone(), LvName::new("root").unwrap());
    assert!(world.host.state().by_hand(&Command::CreateLinear { vg, lv, extents, tags: Vec::new() }, &[]));
    ok(&mut world, &[Call::Create(0, 16), Call::Attach(0, Way::Right)]);
    let saved = world.save();
    world.restore(&saved);
    ok(&mut world, &[Call::Stage(0, Way::Right)]);
    let mark = world.doom.seen().iter().rposition(|effect| effect.name == "lvchange").unwrap();
    world.restore(&saved);
    // The lvm that records the zeroing dies after writing the first disk.
    let ended = world.call(Call::Stage(0, Way::Right), Some((mark, Moment::Within(1))));
    assert!(matches!(ended, Ended::Died(_)), "{ended:?}");
    world.doom.arm(None);
    world.restart().unwrap();
    ok(&mut world, &[Call::Stage(0, Way::Right), Call::Publish(0, 0, Way::Right)]);
    world.write(0, 0, 1);
    world.power_cut();
    world.doom.arm(None);
    world.restart().unwrap();
    ok(&mut world, &[Call::Stage(0, Way::Right)]);
    assert_eq!(world.wrong(), [""; 0]);
}

#[test]
fn what_somebody_else_removed_is_told_to_be_gone_when_no_power_cut_brings_it_back() {
    let mut world = world();
    ok(&mut world, &[Call::Create(0, 16)]);
    let vg = world.host.state().vg();
    let lv = world.volume_name(0);
    let uuid = vg.lv(lv.as_str()).unwrap().uuid.clone();
    let removal = Command::Remove { vg: VgName::new(VG).unwrap(), targets: vec![(lv.clone(), uuid)] };
    assert!(world.host.state().by_hand(&removal, &[]));
    ok(&mut world, &[Call::Delete(0)]);
    world.power_cut();
    assert!(world.host.state().vg().lv(lv.as_str()).is_none());
}

#[test]
fn a_power_cut_amid_a_write_to_the_ledger_leaves_the_old_record_or_the_new_one() {
    let mut world = world();
    let life = [Call::Create(0, 16), Call::Attach(0, Way::Right), Call::Stage(0, Way::Right), Call::Unstage(0), Call::Detach(0)];
    let mut torn = 0;
    for (at, call) in life.iter().enumerate() {
        let saved = world.save();
        world.restore(&saved);
        ok(&mut world, &[*call]);
        let is_write = |effect: &super::doom::Effect| effect.name.starts_with("ledger.");
        let writes: Vec<usize> = (0..).zip(world.doom.seen()).filter(|(_, effect)| is_write(effect)).map(|(at, _)| at).collect();
        let after = world.save();
        for (write, sectors) in
            writes.iter().flat_map(|write| [0, 1, 0x80, 0x7f, 0xfe, 0x55, 0xff].map(|sectors| (*write, sectors)))
        {
            world.restore(&saved);
            let before = world.ledger().grants();
            let ended = world.call(*call, Some((write, Moment::After)));
            assert!(matches!(ended, Ended::Died(_)), "{ended:?}");
            let now = world.ledger().grants();
            world.power_cut_amid(sectors);
            let ledger = world.ledger();
            assert!(ledger.damage().is_empty() && !ledger.is_unsure(), "{call:?} {write} {sectors:08b}");
            let grants = ledger.grants();
            assert!(grants == now || (grants == before && sectors != 0xff), "{call:?} {write} {sectors:08b}: {grants:?}");
            world.doom.arm(None);
            world.restart().unwrap();
            // Nobody got an answer, so the call is repeated. Uses of the volume ended with the boot.
            let again = if at <= 2 { &life[1..=at.max(1)] } else { &life[at..=at] };
            ok(&mut world, again);
            torn += 1;
        }
        world.restore(&after);
    }
    assert!(torn >= 35, "{torn}");
    assert_eq!(world.wrong(), [""; 0]);
}

#[test]
fn a_tool_that_outlives_its_driver_formats_no_other_volume() {
    static PLANS: [Plan; 2] = [
        Plan { name: "pvc-a", pool: "linear", block: false, from: From::Nothing },
        Plan { name: "pvc-b", pool: "linear", block: true, from: From::Nothing },
    ];
    let mut world = World::new(&PLANS);
    world.restart().unwrap();
    ok(&mut world, &[Call::Create(0, 16), Call::Create(1, 16), Call::Attach(0, Way::Right), Call::Attach(1, Way::Right)]);
    let saved = world.save();
    world.restore(&saved);
    ok(&mut world, &[Call::Stage(0, Way::Right)]);
    let mkfs = world.doom.seen().iter().position(|effect| effect.name == "mkfs.ext4").unwrap();
    world.restore(&saved);
    let ended = world.call(Call::Stage(0, Way::Right), Some((mkfs, Moment::Alone)));
    assert!(matches!(ended, Ended::Died(_)), "{ended:?}");
    world.doom.arm(None);
    world.restart().unwrap();
    for call in [Call::Unstage(0), Call::Stage(0, Way::Right), Call::Expand(0, 24)] {
        let ended = world.call(call, None);
        let Ended::Answered(Err(error)) = &ended else { panic!("{call:?}: {ended:?}") };
        assert!(error.to_string().contains("of an earlier run of the driver still works on it"), "{call:?}: {error}");
    }
    // No other volume waits for it.
    ok(&mut world, &[Call::Stage(1, Way::Right), Call::Publish(1, 0, Way::Right)]);
    for place in 0..8 {
        world.write(1, 0, place);
    }
    world.host.let_tools_end();
    ok(&mut world, &[Call::Unstage(0), Call::Stage(0, Way::Right)]);
    assert_eq!(world.wrong(), [""; 0]);
}

/// The content of a thin volume.
fn content(world: &World, lv: &LvName) -> Vec<(std::ops::Range<u64>, Cell)> {
    let state = world.host.state();
    let vg = state.vg();
    let lv = vg.lv(lv.as_str()).unwrap();
    state.stores.get(&Store::Thin(lv.uuid.clone())).get(&(0..vg.lv_size(lv).0))
}

#[test]
fn what_is_answered_while_an_lvm_dies_at_a_message_is_in_the_pool_as_of_the_answer() {
    static PLANS: [Plan; 3] = [
        Plan { name: "pvc-a", pool: "thin", block: true, from: From::Nothing },
        Plan { name: "pvc-restored", pool: "thin", block: true, from: From::Snapshot(0) },
        Plan { name: "pvc-cloned", pool: "thin", block: true, from: From::Volume(0) },
    ];
    let mut world = World::new(&PLANS);
    world.restart().unwrap();
    let up = |volume| [Call::Attach(volume, Way::Right), Call::Stage(volume, Way::Right), Call::Publish(volume, 0, Way::Right)];
    let write = |world: &mut World, place| {
        ok(world, &up(0));
        world.write(0, 0, place);
        // While the source is in use, its refresh delivers the message.
        ok(world, &[Call::Unpublish(0, 0), Call::Unstage(0), Call::Detach(0)]);
    };
    let mut deaths = 0;
    for call in [Call::Create(0, 16), Call::Snapshot(0, 0), Call::Create(1, 16), Call::Create(2, 16)] {
        let saved = world.save();
        world.restore(&saved);
        ok(&mut world, &[call]);
        let (seen, after) = (world.doom.seen(), world.save());
        let lvms = seen.iter().filter(|effect| effect.name.starts_with("lv")).enumerate();
        let moments = lvms
            .filter(|(_, effect)| effect.name == "lvcreate")
            .flat_map(|(n, effect)| (1..=effect.parts).map(move |part| (n, part)));
        for (number, part) in moments {
            world.restore(&saved);
            world.host.state().fates = std::iter::repeat_n(Fate::Works, number).chain([Fate::Killed(part)]).collect();
            let ended = world.call(call, None);
            if !ended.is_ok() {
                ok(&mut world, &[call]);
            }
            assert_eq!(world.wrong(), [""; 0], "{call:?}, killed after part {part}");
            let (source, made) = match call {
                Call::Snapshot(snapshot, of) => (of, world.snapshot_name(snapshot)),
                Call::Create(volume, _) => (0, world.volume_name(volume)),
                _ => unreachable!("nothing is made"),
            };
            let shown = content(&world, &made);
            assert_eq!(shown, content(&world, &world.volume_name(source)), "{call:?}, killed after part {part}");
            write(&mut world, 2);
            if call == Call::Create(0, 16) {
                assert_ne!(content(&world, &made), shown);
            } else {
                assert_eq!(content(&world, &made), shown, "{call:?}, killed after part {part}: it shows what was written later");
            }
            if let Call::Create(volume @ 1.., _) = call {
                ok(&mut world, &up(volume));
            }
            assert_eq!(world.wrong(), [""; 0], "{call:?}, killed after part {part}");
            deaths += 1;
        }
        world.restore(&after);
        if call == Call::Create(0, 16) {
            write(&mut world, 1);
        }
    }
    assert!(deaths >= 24, "{deaths}");
}
