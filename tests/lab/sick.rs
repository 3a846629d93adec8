//! A driver on two volume groups, one of which fails. Common parts of the tests `sick_*`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::client::{Accepted, block, create, map, refused};
use testkit::driver::Start;
use testkit::error::{Result, Trouble, ensure};
use testkit::test_vg::TestVg;
use testkit::vg;
use testkit::{lab, tool};
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, MIB, Rig};

/// Address of the driver's metrics.
pub(crate) const METRICS: &str = "127.0.0.1:9808";

/// A driver with the pool `linear`, and `thin` if there is a thin pool, on a group that fails, and the pool `well` on a healthy
/// group.
pub(crate) struct Ward {
    /// The group that fails, as in every other test.
    pub(crate) rig: Rig,
    well: TestVg,
}

impl Ward {
    /// The failing group lies on `disks`, the healthy one on the lab's first disk. A command, or an access to a disk, of more than
    /// three seconds wedges a group.
    pub(crate) fn open(disks: &[PathBuf], pool: Option<u64>) -> Result<Self> {
        let mut well = None;
        let rig = Rig::start(disks, pool, |home, _| {
            well = Some(TestVg::make("wellvg", &[lab::disk(0)?])?);
            let offer = |name: &str, vg: &str, more: &str| format!("- name: {name}\n  volumeGroup: {vg}\n  layout: {more}\n");
            let thin = pool.map_or_else(String::new, |_| offer("thin", "labvg", "thin"));
            let linear = offer("linear", "labvg", "linear\n  default: true");
            let well = offer("well", "wellvg", "linear");
            let text = format!("wedgedAfterSeconds: 3\nmetricsAddress: {METRICS}\npools:\n{linear}{thin}{well}");
            Start::on_config(Path::new(DRIVER), home, &text)
        })?;
        let well = well.ok_or_else(|| Trouble::wrong("the driver was started without the other group"))?;
        Ok(Self { rig, well })
    }

    /// Fails unless the other group and the driver as a whole work as if nothing had happened.
    pub(crate) fn others_go_on(&self) -> Result<()> {
        ensure(self.rig.csi().serving().accepted("Check")?, || "the driver's health service does not report SERVING".to_owned())?;
        tool::wait("the other group to be well", LIMIT, || {
            Ok(self.rig.csi().healthy("vg/wellvg").accepted("Check")?.then_some(()))
        })?;
        let quick = self.rig.csi().deadline(LIMIT);
        let name = self.rig.name();
        let request = create(&name, "well", 16 * MIB, block(Mode::SingleNodeWriter));
        let mut volume = testkit::flow::Volume::create(&quick, &self.rig.places, &name, request)?;
        volume.up("pod")?;
        volume.down("pod")
    }

    /// Waits until the health service reports the group healthy, or unhealthy.
    pub(crate) fn becomes(&self, well: bool) -> Result<()> {
        let what = format!("the group's health to become {well}");
        tool::wait(&what, LIMIT, || Ok((self.rig.csi().healthy("vg/labvg").accepted("Check")? == well).then_some(())))
    }

    /// Returns a metric of the failing group, such as `vg_present`, or `None` if it is not there.
    pub(crate) fn figure(&self, name: &str) -> Result<Option<i64>> {
        let line = format!("lvm_csi_{name}{{vg=\"labvg\"}} ");
        scrape()?
            .lines()
            .find_map(|l| l.strip_prefix(&line))
            .map_or(Ok(None), |value| value.parse().map(Some).map_err(|_| Trouble::wrong(format!("{name} is {value:?}"))))
    }

    /// Returns the log lines about the group's health, one for each change.
    pub(crate) fn told(&self) -> Result<Vec<String>> {
        let log = self.rig.driver.log()?;
        let is_health = |line: &&str| line.contains("vg=labvg") && line.contains("the volume group is");
        Ok(log.lines().filter(is_health).map(str::to_owned).collect())
    }

    /// Fails unless a creation is refused with UNAVAILABLE at once. Returns the message.
    pub(crate) fn refuses_creation(&self, what: &str) -> Result<String> {
        let request = create(&self.rig.name(), "linear", 16 * MIB, block(Mode::SingleNodeWriter));
        refused(self.rig.csi().create_volume(request), &[Code::Unavailable], what)
    }

    /// Returns the capacity reported for the group, in bytes.
    pub(crate) fn room(&self) -> Result<i64> {
        let request = csi::GetCapacityRequest { parameters: map(&[("pool", "linear")]), ..Default::default() };
        Ok(self.rig.csi().get_capacity(request).accepted("GetCapacity")?.available_capacity)
    }

    /// Returns the IDs of all listed volumes, of both groups.
    pub(crate) fn listed(&self) -> Result<Vec<String>> {
        let list = self.rig.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
        Ok(list.entries.into_iter().filter_map(|entry| Some(entry.volume?.volume_id)).collect())
    }

    /// Fails if LVM marks a PV of the group as missing, which only a person can undo.
    pub(crate) fn no_pv_is_flagged(&self) -> Result<()> {
        let flags = vg::lvm(&["pvs", "--noheadings", "-o", "pv_missing,vg_partial", "-S", "vg_name=labvg"])?;
        ensure(!flags.contains("missing") && !flags.contains("partial"), || format!("LVM marks a PV as missing: {flags:?}"))
    }

    /// Like [`Rig::finish`].
    pub(crate) fn close(self) -> Result<()> {
        self.no_pv_is_flagged()?;
        self.rig.finish()?;
        self.well.destroy()
    }
}

/// Returns all metrics as text.
pub(crate) fn scrape() -> Result<String> {
    let failed = || Trouble::io("asking for the metrics");
    let mut stream = TcpStream::connect(METRICS).map_err(failed())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").map_err(failed())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed())?;
    ensure(text.starts_with("HTTP/1.1 200 ") && text.trim_end().ends_with("# EOF"), || format!("the metrics are {text:?}"))?;
    Ok(text)
}

/// Waits until a process of this name is in one of the states (`T`: stopped). Returns its ID.
pub(crate) fn process(name: &str, states: &[char]) -> Result<Pid> {
    tool::wait(&format!("a process {name} in one of the states {states:?}"), LIMIT, || {
        let processes = fs::read_dir("/proc").map_err(Trouble::io("listing processes"))?;
        Ok(processes.flatten().find_map(|entry| {
            // pid (comm) state …
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, tail) = stat.rsplit_once(')')?;
            let (pid, comm) = head.split_once(" (")?;
            let found = comm == name && tail.trim_start().starts_with(states);
            found.then(|| pid.parse().ok().map(Pid::from_raw)).flatten()
        }))
    })
}

pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).map_err(Trouble::errno(format!("sending {signal} to {pid}")))
}
