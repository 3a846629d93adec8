//! Kills the driver at each point of a call and makes it converge.

use std::time::Duration;

use testkit::error::{Result, Trouble, ensure};
pub(crate) use testkit::sample::long;
use testkit::shim::{self, Fault, HeldTool};
use testkit::{lab, sample, tool};

use crate::scene::{Call, Effect, Scene};
use crate::state::State;

/// How long the machine may take to reach its expected state: udev must close devices, and the kernel must release what a dead
/// process had open.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// The text that arms the driver.
    pub(crate) arm: String,
    /// The text for people.
    pub(crate) text: String,
}

/// Returns the points of a call with these effects: all of them, or a sample.
pub(crate) fn points(effects: &[Effect]) -> Vec<Point> {
    let mut points = Vec::new();
    let mut add = |at: usize, moment: &str, effect: &Effect| {
        let text = format!("{moment} effect {} ({} {})", at + 1, effect.name, effect.subject);
        points.push(Point { arm: format!("{at} {moment}"), text });
    };
    for (at, effect) in effects.iter().enumerate() {
        add(at, "before", effect);
        let quarters: &[u64] = if long() { &[0, 1, 2, 3, 4] } else { &[2] };
        for quarter in quarters {
            let ms = effect.ms * quarter / 4;
            if effect.program {
                add(at, &format!("alone {ms}"), effect);
                add(at, &format!("group {ms}"), effect);
            } else if effect.name == "zero" || effect.name.starts_with("agent.") {
                add(at, &format!("into {ms}"), effect);
            }
        }
        if long() || at + 1 == effects.len() {
            add(at, "after", effect);
        }
    }
    if long() { points } else { sampled(points, effects) }
}

/// Takes one point of each effect, chosen by the run's seed, and the point where the call is done but not answered.
fn sampled(points: Vec<Point>, effects: &[Effect]) -> Vec<Point> {
    let mut chosen = Vec::new();
    for (at, effect) in effects.iter().enumerate() {
        let of_it = |point: &&Point| point.arm.split_once(' ').is_some_and(|(number, _)| number == at.to_string());
        let (done, mut others): (Vec<&Point>, Vec<&Point>) =
            points.iter().filter(of_it).partition(|point| point.arm.ends_with(" after"));
        let one = sample::choose(&format!("{at} {} of {}", effect.name, effects.len()), others.len());
        chosen.extend(others.drain(one..).take(1).chain(done).cloned());
    }
    chosen
}

pub(crate) struct Recorded {
    pub(crate) effects: Vec<Effect>,
    /// The state of the machine afterwards.
    pub(crate) after: State,
}

impl Scene {
    /// Returns the machine's state once nobody has its devices open: udev opens each device that was written to and closed.
    pub(crate) fn quiet(&self) -> Result<State> {
        tool::wait("the machine to be quiet", LIMIT, || {
            let before = self.state()?;
            tool::settle()?;
            Ok(Some(self.state()?).filter(|now| *now == before))
        })
    }

    pub(crate) fn record(&self, call: Call) -> Result<Recorded> {
        self.forget()?;
        self.call(call)?;
        let after = self.quiet()?;
        after.is_settled()?;
        Ok(Recorded { effects: self.effects()?, after })
    }

    /// Fails unless the machine reaches this state.
    pub(crate) fn expect(&self, wanted: &State, what: &str) -> Result<()> {
        let mut last = Vec::new();
        let same = tool::wait("the machine to be in the state without a crash", LIMIT, || {
            last = wanted.differences(&self.state()?);
            Ok(last.is_empty().then_some(()))
        });
        same.map_err(|trouble| Trouble::wrong(format!("{what}: {trouble}\n  {}", last.join("\n  "))))
    }

    /// Makes a call during which the driver dies at a point, and restarts the driver.
    pub(crate) fn die(&mut self, call: Call, point: &Point) -> Result<()> {
        self.arm(&point.arm)?;
        let answer = self.call(call);
        if answer.is_ok() && self.lacked_one()? {
            return Ok(());
        }
        let ran = self.effects()?;
        let dead = |trouble| {
            Trouble::wrong(format!("{call:?} should have died {}: {trouble:?}; answer: {answer:?}; effects: {ran:?}", point.text))
        };
        self.ensure_died().map_err(dead)?;
        self.mortal().restart().map_err(|trouble| Trouble::wrong(format!("after {call:?} died {}: {trouble:?}", point.text)))
    }

    /// Makes a call during which the driver dies before the first effect of this name, and restarts the driver.
    pub(crate) fn die_at(&mut self, effect: &str, call: Call) -> Result<()> {
        let arm = format!("{effect} before");
        self.die(call, &Point { text: arm.clone(), arm })
    }

    /// Dies in a call, repeats another until it returns OK, and compares the state.
    pub(crate) fn converge(&mut self, dying: Call, point: &Point, by: Call, wanted: &State) -> Result<()> {
        self.die(dying, point)?;
        let what = format!("{}: {dying:?} died {}, then {by:?}", self.kind.name(), point.text);
        self.until_ok(by).map_err(|trouble| Trouble::wrong(format!("{what}: {trouble:?}")))?;
        self.expect(wanted, &what)
    }

    /// Dies in a call just before one of its tools starts its work, and makes another call while the tool runs. That call must not
    /// succeed before the tool has ended.
    fn outlive(&mut self, dying: Call, name: &'static str, by: Call) -> Result<()> {
        let held = HeldTool::next(name)?;
        // Armed by name: there may be one flush fewer before it than when recorded, and at any other effect the call would wait.
        let arm = format!("{name} alone 0");
        self.arm(&arm)?;
        let answer = self.call(dying);
        self.ensure_died()
            .map_err(|trouble| Trouble::wrong(format!("{dying:?} should have died {arm}: {trouble:?}; answer: {answer:?}")))?;
        held.wait(LIMIT)?;
        self.mortal().restart()?;
        self.joined()?;
        let what = format!("{}: {dying:?} died {arm}, {name} still runs, {by:?}", self.kind.name());
        ensure(self.call_shortly(by).is_err(), || format!("{what} is OK"))?;
        drop(held);
        self.until_ok(by).map_err(|trouble| Trouble::wrong(format!("{what}: {trouble:?}")))
    }

    /// Makes something in a thin pool and undoes it, while lvm is killed at each message to the pool, or with `LVM_CSI_LONG=1` at
    /// each change of a device. The driver lives. Begins and ends without the made thing.
    pub(crate) fn kill_lvm(&self, forward: Call, backward: Call) -> Result<()> {
        shim::arm(Fault::Trace)?;
        let there = self.record(forward)?;
        let places = if long() { shim::changes()? } else { shim::messages()? };
        ensure(!places.is_empty(), || format!("{forward:?} sends no message to the pool"))?;
        self.until_ok(backward)?;
        for place in &places {
            shim::arm(Fault::Kill(*place))?;
            let what = format!("{}: lvm of {forward:?}, killed at its ioctl {place}", self.kind.name());
            self.until_ok(forward).map_err(|trouble| Trouble::wrong(format!("{what}: {trouble:?}")))?;
            ensure(!shim::armed(), || format!("{what}: lvm did not run"))?;
            self.expect(&there.after, &what)?;
            self.until_ok(backward)?;
        }
        lab::say(&format!("{}: {forward:?}: lvm alone was killed {} times", self.kind.name(), places.len()));
        Ok(())
    }

    /// Dies at each point of a call and of its inverse, and converges by both. Ends after the forward call.
    pub(crate) fn pair(&mut self, forward: Call, backward: Call) -> Result<()> {
        self.joined()?;
        // A driver that has just started flushes before its first change, so the recorded calls must not be its first.
        self.call(forward)?;
        self.call(backward)?;
        let before = self.quiet()?;
        let there = self.record(forward)?;
        let back = self.record(backward)?;
        self.expect(&before, &format!("{backward:?} after {forward:?}"))?;
        let (forth_points, back_points) = (points(&there.effects), points(&back.effects));
        for at in 0..forth_points.len().max(back_points.len()) {
            match forth_points.get(at) {
                Some(point) => self.converge(forward, point, forward, &there.after)?,
                None => self.call(forward)?,
            }
            match back_points.get(at) {
                Some(point) => self.converge(backward, point, backward, &before)?,
                None => self.call(backward)?,
            }
        }
        let (forth_points, back_points) = if self.inverses { (forth_points, back_points) } else { Default::default() };
        for point in &forth_points {
            self.converge(forward, point, backward, &before)?;
        }
        self.call(forward)?;
        for point in &back_points {
            self.converge(backward, point, forward, &there.after)?;
        }
        for tool in self.fast_tools(&there.effects) {
            self.call(backward)?;
            self.outlive(forward, tool, forward)?;
            self.expect(&there.after, &format!("{forward:?} after {tool} has outlived a driver"))?;
        }
        self.tell(&format!("{forward:?}"), &there.effects);
        self.tell(&format!("{backward:?}"), &back.effects);
        Ok(())
    }

    /// Handles a call that a volume can have only once in its life: each point has its own volume. `back` undoes everything and is
    /// also the other way to converge. Begins and ends in the state before `forth`.
    pub(crate) fn once(&mut self, forth: &[Call], call: Call, back: &[Call]) -> Result<()> {
        let empty = self.quiet()?;
        let all = |scene: &Scene, calls: &[Call]| calls.iter().try_for_each(|call| scene.until_ok(*call));
        all(self, forth)?;
        let there = self.record(call)?;
        all(self, back)?;
        self.expect(&empty, &format!("{back:?} after {call:?}"))?;
        for point in points(&there.effects) {
            all(self, forth)?;
            self.converge(call, &point, call, &there.after)?;
            all(self, back)?;
            if !self.inverses {
                continue;
            }
            all(self, forth)?;
            self.die(call, &point)?;
            let what = format!("{}: {call:?} died {}, then {back:?}", self.kind.name(), point.text);
            all(self, back).map_err(|trouble| Trouble::wrong(format!("{what}: {trouble:?}")))?;
            self.expect(&empty, &what)?;
        }
        for tool in self.fast_tools(&there.effects) {
            all(self, forth)?;
            self.outlive(call, tool, call)?;
            self.expect(&there.after, &format!("{call:?} after {tool} has outlived a driver"))?;
            all(self, back)?;
            // If a pod still has the volume, the first inverse takes it from the pod and does not wait for the tool.
            if let Some(down) = back.first().filter(|down| self.inverses && **down != Call::Unpublish) {
                all(self, forth)?;
                self.outlive(call, tool, *down)?;
                all(self, back)?;
                self.expect(&empty, &format!("{back:?} after {tool} has outlived a driver"))?;
            }
        }
        self.tell(&format!("{call:?}"), &there.effects);
        Ok(())
    }

    /// Prints how many effects and points a call has.
    pub(crate) fn tell(&self, call: &str, effects: &[Effect]) {
        let points = points(effects).len();
        lab::say(&format!("{}: {call}: {} effects, {points} points", self.kind.name(), effects.len()));
    }
}
