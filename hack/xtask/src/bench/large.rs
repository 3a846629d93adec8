//! A group of 5000 volumes: the cost of reading it, in one process and in two, and what its size adds to a stage.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::certs::{self, Authority};
use testkit::client::{Accepted, Csi, create, mount};
use testkit::driver::{Driver, NAME, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Places, Volume};
use testkit::{lab, tool};

use super::group::{Group, name};
use super::measure::{Bound, Pairs, Row, Times, time};

/// Number of volumes in a large group.
pub(crate) const VOLUMES: usize = 5000;
/// Time limit for a controller to learn a node's volumes.
const HEARD: Duration = Duration::from_secs(30);
/// Entries per page of a paged list.
const PAGE: i32 = 500;

/// A row without a comparison.
fn row(what: &str, samples: &[Duration], unit: &str, figure: f64, most: f64) -> Row {
    Row {
        place: "native".to_owned(),
        what: format!("{what}, {VOLUMES} volumes"),
        driver: Times::of(samples),
        against: String::new(),
        other: None,
        figure,
        unit: unit.to_owned(),
        bound: Bound::AtMost(most),
    }
}

/// Counts the volumes in all pages of a list.
fn list(csi: &Csi, page: i32) -> Result<usize> {
    let mut count = 0;
    let mut token = String::new();
    loop {
        let request = csi::ListVolumesRequest { max_entries: page, starting_token: token };
        let answer = csi.list_volumes(request).accepted("ListVolumes")?;
        count += answer.entries.len();
        if answer.next_token.is_empty() {
            return Ok(count);
        }
        token = answer.next_token;
    }
}

/// Measures start, lists and memory.
pub(crate) fn reading(group: &Group, program: &Path) -> Result<Vec<Row>> {
    let mut starts = Vec::new();
    let mut running: Option<Driver> = None;
    for _ in 0..5 {
        if let Some(mut driver) = running.take() {
            driver.stop()?;
        }
        starts.push(time(|| group.driver(program).start().map(|driver| running = Some(driver)))?);
    }
    let mut driver = running.ok_or_else(|| Trouble::wrong("no driver is running"))?;
    let csi = driver.csi();
    let mut lists = [(0, Vec::new()), (PAGE, Vec::new())];
    for _ in 0..21 {
        for (page, samples) in &mut lists {
            samples.push(time(|| all(csi, *page))?);
        }
    }
    let resident = driver.resident()?;
    driver.stop()?;
    let [(_, whole), (_, paged)] = &lists;
    let ms = |samples: &[Duration]| Times::of(samples).p50;
    let mut rows = vec![
        row("ListVolumes, one page", whole, "ms", ms(whole), 50.0),
        row("ListVolumes, pages of 500, all of them", paged, "ms", ms(paged), 50.0),
        row("start to ready", &starts, "ms", ms(&starts), 500.0),
        row("resident", &[], "MiB", mib(resident), 34.0),
    ];
    rows.extend(apart(group, program, Times::of(whole))?);
    Ok(rows)
}

/// Lists all volumes in pages, and fails if one is missing.
fn all(csi: &Csi, page: i32) -> Result<()> {
    let count = list(csi, page)?;
    ensure(count == VOLUMES, || format!("ListVolumes lists {count} of {VOLUMES} volumes"))
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Measures the list and the memory of a node and a controller that are connected by mutual TLS.
fn apart(group: &Group, program: &Path, in_one: Times) -> Result<Vec<Row>> {
    const NODE: &str = "node-a";
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let address = free.map_err(Trouble::io("finding a free port"))?.to_string();
    let (authority, tls) = (Authority::new()?, group.home.join("tls"));
    let files = authority.issue(&tls.join("node"), &certs::agent(NAME, NODE))?;
    let mut node = group.driver(program).as_node(NODE, &address, &files).start()?;
    let files = authority.issue(&tls.join("controller"), &certs::controller(NAME))?;
    let mut controller = Start::controller(program, &group.home.join("controller"), &[(NODE, &address)], &files).start()?;
    tool::wait("the controller to learn its node's volumes", HEARD, || Ok(all(controller.csi(), 0).ok()))?;
    let mut lists = Vec::new();
    for _ in 0..21 {
        lists.push(time(|| all(controller.csi(), 0))?);
    }
    let resident = (mib(controller.resident()?), mib(node.resident()?));
    controller.stop()?;
    node.stop()?;
    let listed = row("ListVolumes of a controller, one page", &lists, "ms", Times::of(&lists).p50, 50.0);
    // The controller stores only what agents report. The node also has LVM's metadata text and a model of it, as the single process does.
    Ok(vec![
        Row { against: "in one process".to_owned(), other: Some(in_one), ..listed },
        row("resident, controller", &[], "MiB", resident.0, 28.0),
        row("resident, node", &[], "MiB", resident.1, 35.0),
    ])
}

/// Measures stages in the large group and in one of 10 volumes, without the time of LVM's commands.
pub(crate) fn staging(program: &Path, home: &Path) -> Result<Vec<Row>> {
    const PAIRS: usize = 7;
    let mut large = Stager::new(program, "large", &lab::disk(1)?, home, VOLUMES)?;
    let mut small = Stager::new(program, "small", &lab::disk(2)?, home, 10)?;
    let (mut first, mut again) = (Pairs::default(), Pairs::default());
    for number in 0..PAIRS {
        let (mut one, mut other) = (large.volume(number)?, small.volume(number)?);
        first.add(large.stage(&one)?, small.stage(&other)?);
        for (stager, volume) in [(&mut large, &mut one), (&mut small, &mut other)] {
            volume.unstage()?;
            stager.skip()?;
        }
        again.add(large.stage(&one)?, small.stage(&other)?);
        for volume in [one, other] {
            volume.unstage()?;
            volume.detach()?;
            volume.delete()?;
        }
    }
    large.driver.stop()?;
    small.driver.stop()?;
    let row = |pairs: &Pairs, what: &str| {
        let what = format!("{what} beyond lvm, {VOLUMES} volumes");
        pairs.ratio("lab", &what, "the same with 10 volumes", Bound::AtMost(2.0))
    };
    Ok(vec![row(&first, "first stage"), row(&again, "restage")])
}

/// A driver on a group of its own, whose log has the time of each command.
struct Stager {
    driver: Driver,
    places: Places,
    /// Bytes of the log that were read.
    read: usize,
}

impl Stager {
    fn new(program: &Path, vg: &str, disk: &Path, home: &Path, volumes: usize) -> Result<Self> {
        let group = Group::make(vg, disk, &home.join(vg), volumes)?;
        let mut start = group.driver(program);
        start.environment.push(("LVM_CSI_LOG".to_owned(), "debug".to_owned()));
        Ok(Self { driver: start.start()?, places: Places { root: home.join(vg).join("kubelet") }, read: 0 })
    }

    fn volume(&self, number: usize) -> Result<Volume> {
        let name = name(0x10_0000 + number);
        let request = create(&name, "linear", 64 << 20, mount("ext4", Mode::SingleNodeWriter));
        let mut volume = Volume::create(self.driver.csi(), &self.places, &name, request)?;
        volume.attach()?;
        Ok(volume)
    }

    /// Stages; returns the time without that of LVM's commands.
    fn stage(&mut self, volume: &Volume) -> Result<Duration> {
        self.skip()?;
        let whole = time(|| volume.stage())?;
        Ok(whole.saturating_sub(self.skip()?))
    }

    /// The time of LVM's commands in the log since the last call.
    fn skip(&mut self) -> Result<Duration> {
        let log = self.driver.log()?;
        let ms: u64 = log.get(self.read..).unwrap_or_default().lines().filter_map(lvm_ms).sum();
        self.read = log.len();
        Ok(Duration::from_millis(ms))
    }
}

/// The milliseconds of an LVM command, if a line of the log reports one.
fn lvm_ms(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(" effect=\"lv")?;
    rest.split_whitespace().find_map(|word| word.strip_prefix("ms=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_the_time_of_lvms_commands_only() {
        let line = |effect: &str| format!("2026-01-01T00:00:00Z DEBUG lvm_csi::host: done effect=\"{effect}\" subject=a b ms=12");
        assert_eq!(lvm_ms(&line("lvchange")), Some(12));
        assert_eq!(lvm_ms(&line("mount")), None);
    }
}
