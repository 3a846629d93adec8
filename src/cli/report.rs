//! `lvm-csi list`, `who`, `pools` and `doctor`: what is on this machine, for use without a cluster.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::Context;

use crate::attach::{Damage, Exposures, Grant, Ledger, Phase};
use crate::config::Config;
use crate::host::Udev;
use crate::inflight::Inflight;
use crate::lvm::{Commands, Pins, Program};
use crate::machine::{Kind, NodeReport, PoolFigures, VolumeReport};
use crate::server::ask_health;
use crate::types::{Bytes, GroupState, VgName, chain};

use super::without_server;

/// A thin pool counts as full from this share of its data or metadata on.
const FULL: f64 = 0.9;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Lists every volume and snapshot.
    List,
    /// Shows who has a volume, given the name of its LV (that of its PersistentVolume), `VG/LV`, or its handle.
    Who(String),
    /// Lists every pool.
    Pools,
    /// Lists what is wrong.
    Doctor,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Lines for people.
    pub text: String,
    /// `false` if the doctor found a fault.
    pub well: bool,
}

/// Examines the machine and answers. Works beside a running driver. Changes nothing, except that the doctor makes a device to test
/// udevd. With `calls`, the doctor also asks the driver for its health.
///
/// # Errors
/// The volume does not exist, or the ledger, the mounts or the devices cannot be read.
pub fn report(config: Config, question: &Question, calls: bool) -> anyhow::Result<Answer> {
    let lvm = Program::find().map(|program| Arc::new(program) as Arc<dyn Commands>).map_err(|error| chain(&error));
    let endpoint = config.endpoint.clone();
    let without_lvm = lvm.as_ref().err().cloned();
    let ledger = Ledger::look(&config.state_dir)?;
    let exposures = Exposures::look(&config.state_dir).context("reading what volumes were shown as")?;
    let run_dir = config.run_dir.clone();
    let pins = Pins::looked_at(&config.state_dir);
    let machine = without_server(config, ledger, exposures, pins, run_dir, lvm, Inflight::default());
    let mut report = machine.report().map_err(|error| anyhow::anyhow!(error.chain()))?;
    let text = match question {
        Question::List => list(&report.objects),
        Question::Who(name) => who(&report.objects, name)?,
        Question::Pools => pools(&report),
        Question::Doctor if !calls => return Ok(doctor(&report, without_lvm.as_deref(), None)),
        Question::Doctor => {
            report.udev = machine.ask_udev();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
            let groups = report.groups.iter().map(|(name, _)| format!("vg/{name}"));
            let services: Vec<String> = std::iter::once(String::new()).chain(groups).collect();
            let answers = runtime.block_on(ask_health(&endpoint, &services));
            return Ok(doctor(&report, without_lvm.as_deref(), Some(answers)));
        }
    };
    Ok(Answer { text, well: true })
}

fn list(objects: &[VolumeReport]) -> String {
    let mut rows =
        vec![["LV", "KIND", "POOL", "SIZE GiB", "HOLDS", "STATE", "NODE", "PLACES", "CLAIM"].map(str::to_owned).to_vec()];
    rows.extend(objects.iter().map(|volume| {
        vec![
            format!("{}/{}", volume.vg, volume.lv),
            volume.kind.as_str().to_owned(),
            volume.pool.clone().unwrap_or_else(|| "-".to_owned()),
            gib(volume.size),
            volume.holds.clone(),
            state(volume).to_owned(),
            volume.grant.as_ref().map_or_else(|| "-".to_owned(), |grant| grant.holder.to_string()),
            volume.places.len().to_string(),
            volume.claim.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }));
    table(&rows)
}

/// The phase of a volume's grant; only volumes have one.
fn state(volume: &VolumeReport) -> &'static str {
    if volume.kind == Kind::Volume { volume.phase.as_str() } else { "-" }
}

fn who(objects: &[VolumeReport], name: &str) -> anyhow::Result<String> {
    let is_it =
        |volume: &&VolumeReport| volume.lv == name || volume.handle == name || format!("{}/{}", volume.vg, volume.lv) == name;
    let found: Vec<&VolumeReport> = objects.iter().filter(is_it).collect();
    anyhow::ensure!(
        !found.is_empty(),
        "no volume {name:?} in the readable groups of this node: lvm-csi list shows all volumes, and lvm-csi doctor shows what is wrong"
    );
    let mut text = String::new();
    for volume in found {
        // Writing to a string does not fail.
        let pool = volume.pool.as_deref().unwrap_or("(none)");
        let _ = writeln!(
            text,
            "{:<9} {}, handle {}",
            volume.kind.as_str(),
            format_args!("{}/{}", volume.vg, volume.lv),
            volume.handle
        );
        let _ = writeln!(text, "size      {} in pool {pool}, holds {}", volume.size, volume.holds);
        if let Some(claim) = &volume.claim {
            let _ = writeln!(text, "made for  claim {claim}");
        }
        if volume.kind == Kind::Volume {
            let _ = match &volume.grant {
                None => writeln!(text, "attached  to no node"),
                Some(grant) => {
                    let since = since(grant.epoch);
                    writeln!(
                        text,
                        "attached  to node {} since {since}, {}, {}",
                        grant.holder,
                        grant.mode.to_text(),
                        volume.phase.as_str()
                    )
                }
            };
        }
        let _ = match &volume.device {
            None => writeln!(text, "device    none: it is not active"),
            Some(device) => {
                writeln!(text, "device    {} ({}), open {} times", device.node().display(), device.name, device.open_count)
            }
        };
        for place in &volume.places {
            let _ = writeln!(text, "used at   {}", place.display());
        }
    }
    Ok(text)
}

/// A grant's epoch is the time it was given, in milliseconds.
fn since(epoch: u64) -> String {
    let seconds = i64::try_from(epoch / 1000).unwrap_or(i64::MAX);
    prost_types::Timestamp { seconds, nanos: 0 }.to_string()
}

fn pools(report: &NodeReport) -> String {
    let heads = ["POOL", "GROUP", "SIZE GiB", "ROOM GiB", "PROMISED GiB", "DATA %", "METADATA %"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut absent = String::new();
    for (name, _, pool) in &report.pools {
        match pool {
            Ok(PoolFigures { name, vg, size, available, provisioned, used }) => {
                let part = |part: Option<f64>| part.map_or_else(|| "-".to_owned(), percent);
                let (data, metadata) = (part(used.map(|used| used.0)), part(used.map(|used| used.1)));
                rows.push(vec![name.clone(), vg.to_string(), gib(*size), gib(*available), gib(*provisioned), data, metadata]);
            }
            Err(why) => {
                let _ = writeln!(absent, "{name} is not available: {why}");
            }
        }
    }
    table(&rows) + &absent
}

/// One line for each fault. `driver` is the driver's own health and that of each group, if the driver was asked.
fn doctor(report: &NodeReport, without_lvm: Option<&str>, driver: Option<Result<Vec<bool>, String>>) -> Answer {
    let mut found: Vec<String> = Vec::new();
    let mut say = |object: &str, reason: &str, advice: &str| found.push(finding(object, reason, advice));
    if let Some(why) = without_lvm {
        say("lvm", why, "install lvm2");
    }
    match report.udev {
        Udev::Absent | Udev::Answers { hides: true } => {}
        Udev::Silent => say(
            "udevd",
            "it does not report when it has handled a device, so the driver does not wait for it, and links in /dev may be missing",
            "give the host LVM's udev rules and dmsetup, and give the driver's container the host's IPC namespace",
        ),
        Udev::Answers { hides: false } => say(
            "udevd",
            "it does not follow the driver's rules, so tools of the host act on what tenants write to raw volumes",
            "check the driver's log for the reason; the driver must run, and may need write access to /run/udev/rules.d",
        ),
    }
    let unasked = driver.is_none().then_some("the driver was not asked: name its socket by --endpoint or CSI_ENDPOINT\n");
    let mut said = match driver {
        None => Vec::new().into_iter(),
        Some(Ok(said)) => said.into_iter(),
        Some(Err(why)) => {
            say("driver", &format!("it does not answer at {why}"), "see whether it runs, and check its log");
            Vec::new().into_iter()
        }
    };
    if said.next() == Some(false) {
        say("driver", "it has not finished its first look at the machine", "check its log");
    }
    for (name, state) in &report.groups {
        let (object, said) = (format!("group {name}"), said.next());
        match state {
            GroupState::Complete if said == Some(false) => {
                say(
                    &object,
                    "its disks are well, but the driver reports that the group is not",
                    "an lvm may hang: check the driver's log, dmesg, and /proc/PID/stack of lvm",
                );
            }
            // A node need not have every configured group.
            GroupState::Complete | GroupState::Absent(_) => {}
            GroupState::Away(why) => {
                say(&object, why, "bring its disks back, or make the group again and run lvm-csi adopt --vg VG");
            }
            GroupState::Incomplete(why) => {
                say(&object, why, "bring the disk back; the driver changes nothing in the group until then");
            }
            GroupState::Foreign(why) => {
                say(&object, why, &format!("check both machines first; lvm-csi adopt --vg {name} gives it to this one"));
            }
            GroupState::Unreadable(why) if without_lvm.is_none() => say(&object, why, "check its disks: dmesg, pvs"),
            GroupState::Unreadable(_) => {}
        }
    }
    for (vg, device, what) in &report.strangers {
        let advice = "the driver does not use it; find out whose it is: another machine's disk, a guest's, a copy";
        say(&format!("device {}", device.display()), &format!("it {what}, besides volume group {vg}"), advice);
    }
    for (vg, reason, advice) in &report.remarks {
        say(&format!("group {vg}"), reason, advice);
    }
    let complete = |vg: &VgName| report.groups.iter().any(|(name, state)| name == vg && *state == GroupState::Complete);
    for (name, vg, pool) in &report.pools {
        let object = format!("pool {name}");
        match pool {
            Ok(figures) => {
                let Some((data, metadata)) = figures.used else { continue };
                for (what, part) in [("data", data), ("metadata", metadata)].into_iter().filter(|(_, part)| *part >= FULL) {
                    let advice = format!("vgextend {}, or delete volumes and snapshots", figures.vg);
                    say(&object, &format!("its {what} are {} % full", percent(part)), &advice);
                }
            }
            Err(why) if complete(vg) => say(&object, why, "the driver makes nothing in it until then"),
            // Reported for its group.
            Err(_) => {}
        }
    }
    for volume in &report.objects {
        let object = format!("{} {}/{}", volume.kind.as_str(), volume.vg, volume.lv);
        if volume.device.as_ref().is_some_and(|device| device.suspended) {
            say(
                &object,
                "its device is suspended, and all its I/O waits",
                "a command died in the middle of a change: restart the driver, or run dmsetup resume",
            );
        }
        if volume.phase == Phase::Staged && volume.device.is_none() {
            say(&object, "it counts as staged, but has no device", "delete its pod; a new pod stages it again");
        }
    }
    for (lv, reason, advice) in &report.odd {
        say(&format!("LV {lv}"), reason, advice);
    }
    let subject = |grant: &Grant| {
        let name = grant.name.as_ref().map_or_else(|| grant.lv.to_string(), ToString::to_string);
        (format!("volume {name}"), format!("node {} has it since {}", grant.holder, since(grant.epoch)))
    };
    for Damage { block, reason, .. } in &report.damage {
        say(
            "attachments",
            &format!("block {block} of the ledger is damaged ({reason}) and counts as free"),
            "the driver keeps a copy and repairs it at its next start; check the disk for errors: dmesg",
        );
    }
    for (object, had) in report.stray.iter().map(subject) {
        let advice = "the driver drops this by itself after a while; run vgcfgrestore if the LV was lost";
        say(&object, &format!("{had}, but there is no such LV"), advice);
    }
    for (grant, (object, had)) in report.beyond.iter().map(|grant| (grant, subject(grant))) {
        say(&object, &format!("{had}, but volume group {} is unreadable or missing", grant.vg), "check its disks: lsblk, dmesg");
    }
    if found.is_empty() {
        let text = format!("nothing is wrong: {} volumes and snapshots, {} pools\n", report.objects.len(), report.pools.len());
        return Answer { text: text + unasked.unwrap_or_default(), well: true };
    }
    Answer { text: found.concat() + unasked.unwrap_or_default(), well: false }
}

fn finding(object: &str, reason: &str, advice: &str) -> String {
    format!("{object}: {reason}; {advice}\n")
}

fn gib(bytes: Bytes) -> String {
    format!("{:.1}", bytes.0 as f64 / f64::from(1 << 30))
}

fn percent(part: f64) -> String {
    format!("{:.0}", part * 100.0)
}

/// Aligns columns to the width of their contents.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::Mode;
    use crate::host::DmDevice;
    use crate::types::{AccessMode, AccessType, LvUuid, NodeId, VgUuid};

    fn vg(name: &str) -> VgName {
        VgName::new(name).unwrap()
    }

    fn volume() -> VolumeReport {
        VolumeReport {
            kind: Kind::Volume,
            vg: vg("vg0"),
            lv: "pvc-1".to_owned(),
            handle: "handle/pvc-1".to_owned(),
            pool: Some("thin".to_owned()),
            size: Bytes(3 << 29),
            holds: "ext4".to_owned(),
            claim: Some("shop/data".to_owned()),
            grant: Some(Grant {
                vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(),
                lv: LvUuid::from_compact(&"l".repeat(32)).unwrap(),
                name: None,
                epoch: 1_795_000_000_123,
                mode: Mode::new(AccessType::Mount(None), AccessMode::SingleNodeWriter, false),
                holder: NodeId::new("n1").unwrap(),
            }),
            phase: Phase::Staged,
            device: Some(DmDevice {
                name: "vg0-pvc--1".to_owned(),
                uuid: String::new(),
                major: 253,
                minor: 7,
                open_count: 1,
                suspended: false,
                has_live_table: true,
                has_inactive_table: false,
            }),
            places: vec!["/kubelet/globalmount".into()],
        }
    }

    fn well() -> NodeReport {
        let pool = PoolFigures {
            name: "thin".to_owned(),
            vg: vg("vg0"),
            size: Bytes(10 << 30),
            available: Bytes(8 << 30),
            provisioned: Bytes(2 << 30),
            used: Some((0.125, 0.01)),
        };
        NodeReport {
            udev: Udev::Answers { hides: true },
            groups: vec![(vg("vg0"), GroupState::Complete), (vg("vg1"), GroupState::Absent("no disk of it".to_owned()))],
            strangers: Vec::new(),
            pools: vec![
                ("thin".to_owned(), vg("vg0"), Ok(pool)),
                ("other".to_owned(), vg("vg1"), Err("no disk of it".to_owned())),
            ],
            remarks: Vec::new(),
            objects: vec![volume()],
            odd: Vec::new(),
            stray: Vec::new(),
            beyond: Vec::new(),
            damage: Vec::new(),
        }
    }

    #[test]
    fn a_well_machine_is_reported_in_lines() {
        let report = well();
        let lines: Vec<String> = list(&report.objects).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["vg0/pvc-1", "volume", "thin", "1.5", "ext4", "staged", "n1", "1", "shop/data"]
        );
        let text = who(&report.objects, "pvc-1").unwrap();
        assert_eq!(
            (who(&report.objects, "vg0/pvc-1").unwrap(), who(&report.objects, "handle/pvc-1").unwrap()),
            (text.clone(), text.clone())
        );
        for line in [
            "attached  to node n1 since 2026-11-18T11:06:40Z, rw,mount,SINGLE_NODE_WRITER, staged",
            "device    /dev/dm-7 (vg0-pvc--1), open 1 times",
            "used at   /kubelet/globalmount",
        ] {
            assert!(text.lines().any(|there| there == line), "{line:?} is not in\n{text}");
        }
        assert!(who(&report.objects, "pvc-2").is_err());
        let text = pools(&report);
        assert!(text.ends_with("other is not available: no disk of it\n"), "{text}");
        assert!(text.lines().any(|line| line.split_whitespace().eq(["thin", "vg0", "10.0", "8.0", "2.0", "12", "1"])), "{text}");
        let answer = doctor(&report, None, Some(Ok(vec![true, true, false])));
        assert_eq!(answer, Answer { text: "nothing is wrong: 1 volumes and snapshots, 2 pools\n".to_owned(), well: true });
        let answer = doctor(&report, None, None);
        assert!(answer.well && answer.text.contains("CSI_ENDPOINT"), "{answer:?}");
    }

    /// A change that breaks a healthy machine, what its driver reports, and the resulting line.
    type Fault = (fn(&mut NodeReport), Result<Vec<bool>, String>, &'static str);

    #[test]
    fn each_fault_has_its_line() {
        let driver = || Ok(vec![true, true, false]);
        let faults: [Fault; 17] = [
            (|s| s.udev = Udev::Silent, driver(), "udevd: it does not report when it has handled a device,"),
            (|s| s.udev = Udev::Answers { hides: false }, driver(), "udevd: it does not follow the driver's rules,"),
            (|_| {}, Err("/csi.sock: refused".to_owned()), "driver: it does not answer at /csi.sock: refused;"),
            (|_| {}, Ok(vec![false, true, false]), "driver: it has not finished its first look"),
            (
                |_| {},
                Ok(vec![true, false, false]),
                "group vg0: its disks are well, but the driver reports that the group is not;",
            ),
            (|s| s.groups[0].1 = GroupState::Incomplete("a PV is away".to_owned()), driver(), "group vg0: a PV is away;"),
            (|s| s.groups[0].1 = GroupState::Away("no disk is there".to_owned()), driver(), "group vg0: no disk is there; bring"),
            (|s| s.groups[0].1 = GroupState::Unreadable("no text".to_owned()), driver(), "group vg0: no text;"),
            (
                |s| s.strangers.push((vg("vg0"), "/dev/sdx".into(), "shows a volume group vg0".to_owned())),
                driver(),
                "device /dev/sdx: it shows a volume group vg0, besides volume group vg0; the driver does not use it;",
            ),
            (|s| s.pools[0].2 = Err("it is not thin".to_owned()), driver(), "pool thin: it is not thin;"),
            (
                |s| s.pools[0].2.as_mut().unwrap().used = Some((0.91, 0.2)),
                driver(),
                "pool thin: its data are 91 % full; vgextend vg0",
            ),
            (|s| s.pools[0].2.as_mut().unwrap().used = Some((0.1, 1.0)), driver(), "pool thin: its metadata are 100 % full;"),
            (|s| s.objects[0].device = None, driver(), "volume vg0/pvc-1: it counts as staged, but has no device;"),
            (
                |s| s.odd.push(("vg0/x".to_owned(), "it was renamed".to_owned(), "rename it")),
                driver(),
                "LV vg0/x: it was renamed;",
            ),
            (|s| s.remarks.push((vg("vg0"), "it is mixed".to_owned(), "part it")), driver(), "group vg0: it is mixed; part it"),
            (|s| s.stray.extend(volume().grant), driver(), "volume llllll-"),
            (|s| s.beyond.extend(volume().grant), driver(), "volume llllll-"),
        ];
        for (spoil, driver, line) in faults {
            let mut report = well();
            spoil(&mut report);
            let answer = doctor(&report, None, Some(driver));
            assert!(!answer.well && answer.text.starts_with(line) && answer.text.lines().count() == 1, "{line:?}: {answer:?}");
        }
        let mut report = well();
        report.objects[0].device.as_mut().unwrap().suspended = true;
        assert!(doctor(&report, None, Some(driver())).text.contains("suspended, and all its I/O waits"));
        report.groups[0].1 = GroupState::Unreadable("there is no lvm".to_owned());
        let answer = doctor(&report, Some("there is no lvm"), Some(driver()));
        assert_eq!(answer.text.matches("there is no lvm").count(), 1, "{answer:?}");
    }
}
