//! A node with one group whose disk hangs, before its start and later. The other group stays as fast as before, the controller is
//! told, and everything recovers without a restart.

use std::time::Instant;

use testkit::sick::Sick;

use super::*;

/// A call that takes less never counts as slow: the machine is shared.
const FLOOR: Duration = Duration::from_secs(1);
/// Time in seconds after which a command, or an access to a disk, makes its group count as wedged.
const PATIENCE: u64 = 3;
/// Delay of a disk that answers in the end, far too late for any caller.
const LATE: Duration = Duration::from_secs(300);
/// Limit for a refusal that touches no disk.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How long each call of one volume's life took, in order.
type Times = Vec<(&'static str, Duration)>;

/// A node with the pool `linear` on a group that hangs and the pool `well` on another, and its controller.
struct Halves {
    apart: Apart,
    well: TestVg,
}

impl Halves {
    fn make(sick: &Sick) -> Result<Self> {
        tool::run("ip", &["link", "set", "lo", "up"])?;
        lab::fresh("tls")?;
        let authority = Authority::new()?;
        renew(&authority, certs::LIFE)?;
        let mut well = None;
        let (name, address) = AGENTS[0];
        let rig = Rig::start(&[sick.path()], None, |home, _| {
            well = Some(TestVg::make("wellvg", &[lab::disk(0)?])?);
            let pools =
                "- name: linear\n  volumeGroup: labvg\n  layout: linear\n- name: well\n  volumeGroup: wellvg\n  layout: linear\n";
            let text = format!("wedgedAfterSeconds: {PATIENCE}\npools:\n{pools}");
            Ok(Start::on_config(Path::new(DRIVER), home, &text)?.as_node(name, address, &Files::of(&tls(name))))
        })?;
        let well = well.ok_or_else(|| Trouble::wrong("the node was started without the other group"))?;
        let controller = controller(&lab::fresh("controller")?, 1, &Files::of(&tls("controller"))).start()?;
        Ok(Self { apart: Apart { authority, rig, controller }, well })
    }

    /// Runs a volume of the other group through its life. Fails if the list lacks it.
    fn life(&self) -> Result<Times> {
        let (rig, csi) = (&self.apart.rig, self.apart.csi().deadline(LIMIT));
        let mut times = Times::new();
        let mut timed = |what, begun: Instant| times.push((what, begun.elapsed()));
        let name = rig.name();
        let begun = Instant::now();
        let mut volume = Volume::create(&csi, &rig.places, &name, wish(&name, "well", &[]))?;
        timed("CreateVolume", begun);
        let begun = Instant::now();
        let listed = list(&csi)?;
        timed("ListVolumes", begun);
        ensure(listed.iter().any(|(id, ..)| *id == volume.id), || format!("{} is not listed: {listed:?}", volume.id))?;
        let begun = Instant::now();
        volume.attach()?;
        timed("ControllerPublishVolume", begun);
        let begun = Instant::now();
        volume.stage()?;
        timed("NodeStageVolume", begun);
        volume.publish("pod")?;
        let begun = Instant::now();
        volume.expand(96 * MIB, "pod")?;
        timed("ControllerExpandVolume and NodeExpandVolume", begun);
        volume.unpublish("pod")?;
        volume.unstage()?;
        volume.detach()?;
        let begun = Instant::now();
        volume.delete()?;
        timed("DeleteVolume", begun);
        Ok(times)
    }

    /// Fails if a call takes more than twice its usual time.
    fn goes_on_as(&self, usual: &Times) -> Result<()> {
        for ((what, took), (_, usual)) in self.life()?.into_iter().zip(usual) {
            let limit = 2 * (*usual).max(FLOOR);
            ensure(took <= limit, || format!("{what} took {took:?}; it usually takes {usual:?}"))?;
        }
        Ok(())
    }

    fn room(&self) -> Result<i64> {
        left(&self.apart.csi(), "node-a")
    }

    /// Waits until the controller has reported the group sick `more` times more often than well again.
    fn has_told(&self, more: usize) -> Result<()> {
        tool::wait("the controller to report the group's state", LIMIT, || {
            let log = self.apart.controller.log()?;
            let reports = |reason| log.matches(reason).count();
            Ok((reports("VolumeGroupSick") == reports("VolumeGroupWell") + more).then_some(()))
        })
    }

    /// Waits until the hanging group is reported sick. Its calls must then be refused at once.
    fn is_told(&self) -> Result<()> {
        self.has_told(1)?;
        tool::wait("its capacity to be withdrawn", LIMIT, || Ok((self.room()? == 0).then_some(())))?;
        for _ in 0..3 {
            let begun = Instant::now();
            let request = self.apart.csi().create_volume(wish(&self.apart.rig.name(), "linear", &[]));
            let message = refused(request, &[Code::Unavailable], "a creation in the group that hangs")?;
            ensure(message.contains("labvg"), || format!("the message does not say what hangs: {message}"))?;
            ensure(begun.elapsed() < AT_ONCE, || format!("the refusal took {:?}", begun.elapsed()))?;
        }
        Ok(())
    }

    fn heals(&self) -> Result<()> {
        let what = "a volume of the group that is well again";
        self.apart.rig.until_ok(what, |_| self.apart.volume(&self.apart.csi(), &[])?.delete())?;
        self.has_told(0)?;
        tool::wait("its capacity", LIMIT, || Ok((self.room()? > 0).then_some(())))
    }
}

#[test]
fn a_group_that_hangs_holds_up_no_other_of_its_node() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let mut halves = Halves::make(&sick)?;
    halves.heals()?;
    let kept = halves.apart.volume(&halves.apart.csi(), &[])?;
    let rounds = [halves.life()?, halves.life()?];
    let usual: Times = rounds[0].iter().zip(&rounds[1]).map(|(one, other)| (one.0, one.1.max(other.1))).collect();

    // Nobody can tell a late disk from a hanging one until it answers.
    let illness = sick.slow(LATE)?;
    // Before the driver has noticed, and after.
    halves.goes_on_as(&usual)?;
    halves.is_told()?;
    halves.goes_on_as(&usual)?;
    ensure(list(&halves.apart.csi())?.iter().any(|(id, ..)| *id == kept.id), || "its volume is no longer listed".to_owned())?;
    drop(illness);
    halves.heals()?;

    halves.apart.rig.driver.stop()?;
    let illness = sick.hang()?;
    let begun = Instant::now();
    halves.apart.rig.driver.restart()?;
    let took = begun.elapsed();
    ensure(took < LIMIT, || format!("the node was ready after {took:?}"))?;
    halves.apart.rig.until_ok("the node to report", |_| list(&halves.apart.csi()))?;
    halves.goes_on_as(&usual)?;
    halves.is_told()?;
    drop(illness);
    halves.heals()?;

    // The node's end waits for no disk either. The next process starts while the kernel still holds this one.
    let illness = sick.hang()?;
    halves.is_told()?;
    halves.apart.rig.driver.terminate()?;
    tool::wait("the node to end", LIMIT, || {
        let log = halves.apart.rig.driver.log()?;
        Ok(log.lines().rev().take(3).any(|line| line.contains("stopped")).then_some(()))
    })?;
    let mut next = halves.apart.rig.driver.start().start()?;
    drop(illness);
    halves.apart.rig.driver.stop()?;
    next.stop()?;
    halves.apart.rig.driver.restart()?;
    halves.apart.rig.until_ok("the node to report", |_| list(&halves.apart.csi()))?;
    kept.through(&halves.apart.csi()).delete()?;
    let Halves { apart, well } = halves;
    ensure(well.lvs()?.is_empty(), || format!("left behind: {:?}", well.lvs()))?;
    apart.finish()?;
    well.destroy()
}
