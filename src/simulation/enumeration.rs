//! Dies at every moment of every effect of every call of a volume's life, then goes on with the same call and with its inverse.

use crate::types::Error;

use super::doom::Effect;
use super::lvm::Fate;
use super::world::{Account, Call, Ended, From, INLINE, Plan, Saved, Way, World};

/// A volume, and one restored from its snapshot.
const fn plans(pool: &'static str, block: bool) -> [Plan; 2] {
    [
        Plan { name: "pvc-a", pool, block, from: From::Nothing },
        Plan { name: "pvc-restored", pool, block, from: From::Snapshot(0) },
    ]
}

static THIN_MOUNT: [Plan; 2] = plans("thin", false);
static THIN_BLOCK: [Plan; 2] = plans("thin", true);
static LINEAR_MOUNT: [Plan; 2] = plans("linear", false);
static LINEAR_BLOCK: [Plan; 2] = plans("linear", true);

/// The calls of a life, each with its inverse if one restores the former state.
fn life(plans: &[Plan]) -> Vec<(Call, Option<Call>)> {
    use Call::*;
    let (right, odd) = (Way::Right, Way::Odd);
    let mut calls = vec![
        (Create(0, 32), Some(Delete(0))),
        (Attach(0, right), Some(Detach(0))),
        (Stage(0, right), Some(Unstage(0))),
        (Publish(0, 0, right), Some(Unpublish(0, 0))),
        (Publish(0, 1, odd), Some(Unpublish(0, 1))),
        (Expand(0, 48), None),
        (NodeExpand(0, 48), None),
    ];
    let inline = usize::from(plans[0].pool == INLINE[1]);
    if plans[0].pool == "thin" {
        calls.extend([
            (Snapshot(0, 0), Some(DeleteSnapshot(0))),
            (Create(1, 64), Some(Delete(1))),
            (Attach(1, right), Some(Detach(1))),
            (Stage(1, right), Some(Unstage(1))),
            (Unstage(1), None),
            (Detach(1), None),
            (Delete(1), None),
            (DeleteSnapshot(0), Some(Snapshot(0, 0))),
        ]);
    }
    if !plans[0].block {
        calls.extend([
            (PublishInline(inline, right), Some(UnpublishInline(inline))),
            (UnpublishInline(inline), Some(PublishInline(inline, right))),
        ]);
    }
    calls.extend([
        (Unpublish(0, 1), Some(Publish(0, 1, odd))),
        (Unpublish(0, 0), Some(Publish(0, 0, right))),
        (Unstage(0), Some(Stage(0, right))),
        (Detach(0), Some(Attach(0, right))),
        (Delete(0), None),
    ]);
    calls
}

/// How to go on after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// With the same call.
    Same,
    /// With the inverse call.
    Inverse,
    /// Nobody repeats the call, and everything is taken down.
    Down,
}

impl Next {
    /// The call to make, if any; the outer `None` if this way is impossible.
    fn call(self, call: Call, inverse: Option<Call>) -> Option<Option<Call>> {
        match self {
            Next::Same => Some(Some(call)),
            Next::Inverse => inverse.map(Some),
            Next::Down => Some(None),
        }
    }
}

/// Takes everything down with ordinary calls.
fn take_down(world: &mut World, empty: &Account, story: &str) {
    for volume in 0..world.plans.len() {
        let calls = [
            Call::Unpublish(volume, 0),
            Call::Unpublish(volume, 1),
            Call::Unstage(volume),
            Call::Detach(volume),
            Call::Delete(volume),
        ];
        for call in calls {
            let ended = world.call(call, None);
            assert!(ended.is_ok(), "{story}: taking down by {call:?}: {ended:?}");
        }
    }
    for call in [Call::DeleteSnapshot(0), Call::UnpublishInline(0), Call::UnpublishInline(1)] {
        let ended = world.call(call, None);
        assert!(ended.is_ok(), "{story}: taking down by {call:?}: {ended:?}");
    }
    assert_eq!(world.account(), *empty, "{story}: taken down");
    assert_eq!(world.wrong(), [""; 0], "{story}: taken down");
}

/// Lives one life and dies at every possible point. Returns the numbers of effects and deaths.
fn enumerate(plans: &'static [Plan], attaches: bool) -> (usize, usize) {
    let mut world = World::new(plans);
    world.attaches = attaches;
    world.restart().unwrap();
    let empty = world.account();
    let (mut effects, mut deaths) = (0, 0);
    for (call, inverse) in life(plans) {
        let (before, saved) = (world.account(), world.save());
        // Starts from a driver as new as the ones that die.
        world.restore(&saved);
        let ended = world.call(call, None);
        assert!(ended.is_ok(), "{call:?}: {ended:?}");
        assert_eq!(world.wrong(), [""; 0], "{call:?}");
        if call == Call::Publish(0, 0, Way::Right) {
            world.write(0, 0, 3);
        }
        let (after, onward, seen) = (world.account(), world.save(), world.doom.seen());
        effects += seen.len();
        for (number, effect) in seen.iter().enumerate() {
            for moment in effect.moments() {
                for next in [Next::Same, Next::Inverse, Next::Down] {
                    let Some(goes_on) = next.call(call, inverse) else { continue };
                    let story =
                        format!("{call:?}, death {moment:?} effect {number} ({} {}), then {next:?}", effect.name, effect.subject);
                    world.restore(&saved);
                    let ended = world.call(call, Some((number, moment)));
                    assert!(matches!(ended, Ended::Died(_)), "{story}: {ended:?}");
                    deaths += 1;
                    world.doom.arm(None);
                    world.restart().unwrap();
                    assert_eq!(world.wrong_but_holders(), [""; 0], "{story}: after the restart");
                    if let Some(goes_on) = goes_on {
                        let mut ended = world.call(goes_on, None);
                        if world.host.survives() {
                            assert!(matches!(ended, Ended::Answered(Err(Error::Unavailable { .. }))), "{story}: {ended:?}");
                            world.host.let_tools_end();
                            ended = world.call(goes_on, None);
                        }
                        assert!(ended.is_ok(), "{story}: {ended:?}");
                        assert_eq!(world.wrong(), [""; 0], "{story}");
                        if goes_on.lasts() || matches!(goes_on, Call::Stage(..)) {
                            assert!(!world.host.state().unflushed(), "{story}: answered before it is durable");
                        }
                    }
                    world.host.let_tools_end();
                    let now = world.account();
                    match next {
                        Next::Same => assert_eq!(now, after, "{story}"),
                        // A volume keeps the state that its tags record.
                        Next::Inverse => assert_eq!(now, Account { tags: now.tags.clone(), ..before.clone() }, "{story}"),
                        Next::Down => take_down(&mut world, &empty, &story),
                    }
                }
            }
        }
        deaths += let_lvm_die(&mut world, call, &saved, &after, &seen);
        world.restore(&onward);
    }
    assert_eq!(world.account(), empty);
    (effects, deaths)
}

/// Kills each lvm of a call at each of its parts, while the driver lives. Repeats the call until it succeeds.
fn let_lvm_die(world: &mut World, call: Call, saved: &Saved, after: &Account, seen: &[Effect]) -> usize {
    let mut deaths = 0;
    for (number, effect) in seen.iter().filter(|effect| effect.name.starts_with("lv")).enumerate() {
        for part in 1..=effect.parts {
            world.restore(saved);
            let mut state = world.host.state();
            state.fates = std::iter::repeat_n(Fate::Works, number).chain([Fate::Killed(part)]).collect();
            drop(state);
            let story = format!("{call:?}, its lvm {number} ({} {}) killed after part {part}", effect.name, effect.subject);
            let mut ended = world.call(call, None);
            for _ in 0..2 {
                if !ended.is_ok() {
                    ended = world.call(call, None);
                }
            }
            assert!(ended.is_ok(), "{story}: {ended:?}");
            assert_eq!(world.wrong(), [""; 0], "{story}");
            assert_eq!(world.account(), *after, "{story}");
            assert!(!call.lasts() || !world.host.state().unflushed(), "{story}: answered before it is durable");
            deaths += 1;
        }
    }
    deaths
}

fn prove(plans: &'static [Plan], attaches: bool, least: usize) {
    let (effects, deaths) = enumerate(plans, attaches);
    let kind = if plans[0].block { "block" } else { "mount" };
    println!("{}, {kind}: {effects} effects, died {deaths} times", plans[0].pool);
    assert!(deaths >= least, "{deaths} deaths are too few to mean anything");
}

#[test]
fn a_death_anywhere_in_the_life_of_a_thin_filesystem_is_survived() {
    prove(&THIN_MOUNT, true, 100);
}

#[test]
fn a_death_anywhere_in_the_life_of_a_thin_device_is_survived() {
    prove(&THIN_BLOCK, true, 100);
}

#[test]
fn a_death_anywhere_in_the_life_of_a_linear_filesystem_is_survived() {
    prove(&LINEAR_MOUNT, true, 100);
}

#[test]
fn a_death_anywhere_in_the_life_of_a_linear_device_is_survived() {
    prove(&LINEAR_BLOCK, true, 100);
}

#[test]
fn a_death_anywhere_in_the_life_of_a_volume_that_nobody_attaches_is_survived() {
    prove(&LINEAR_MOUNT, false, 100);
    prove(&LINEAR_BLOCK, false, 100);
}
