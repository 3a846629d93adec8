//! A driver on two volume groups, of which one falls ill: what the tests `sick_*` stand on.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use lvm_csi_hack::client::{Accepted, block, create, map, refused};
use lvm_csi_hack::driver::Start;
use lvm_csi_hack::error::{Result, Trouble, ensure};
use lvm_csi_hack::vg::{self, TestVg};
use lvm_csi_hack::{lab, tool};
use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;

use crate::rig::{DRIVER, LIMIT, MIB, Rig};

/// Where the driver serves its metrics.
pub(crate) const METRICS: &str = "127.0.0.1:9808";

/// A driver with the pools `linear` and, where there is a thin pool, `thin` on a group that falls ill, and `well` on one that does not.
pub(crate) struct Ward {
    /// The group that falls ill, as of every test.
    pub(crate) rig: Rig,
    well: TestVg,
}

impl Ward {
    /// The group to fall ill lies on some disks, the other on the first one of the lab. A command, or an access to a disk, that takes more than
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

    /// Fails unless the other group and the driver as a whole go on as if nothing had happened.
    pub(crate) fn others_go_on(&self) -> Result<()> {
        ensure(self.rig.csi().serving().accepted("Check")?, || "the driver says that it does not serve".to_owned())?;
        tool::wait("the other group to be well", LIMIT, || {
            Ok(self.rig.csi().healthy("vg/wellvg").accepted("Check")?.then_some(()))
        })?;
        let quick = self.rig.csi().deadline(LIMIT);
        let name = self.rig.name();
        let request = create(&name, "well", 16 * MIB, block(Mode::SingleNodeWriter));
        let mut volume = lvm_csi_hack::flow::Volume::create(&quick, &self.rig.places, &name, request)?;
        volume.up("pod")?;
        volume.down("pod")
    }

    /// Waits until the health service says that the group is well, or that it is not.
    pub(crate) fn becomes(&self, well: bool) -> Result<()> {
        let what = format!("the group's health to become {well}");
        tool::wait(&what, LIMIT, || Ok((self.rig.csi().healthy("vg/labvg").accepted("Check")? == well).then_some(())))
    }

    /// The figure of the group that falls ill, such as `vg_present`; none where there is no such line.
    pub(crate) fn figure(&self, name: &str) -> Result<Option<i64>> {
        let line = format!("lvm_csi_{name}{{vg=\"labvg\"}} ");
        scrape()?
            .lines()
            .find_map(|l| l.strip_prefix(&line))
            .map_or(Ok(None), |value| value.parse().map(Some).map_err(|_| Trouble::wrong(format!("{name} is {value:?}"))))
    }

    /// What the log says of the group's health, a line for each change.
    pub(crate) fn told(&self) -> Result<Vec<String>> {
        let log = self.rig.driver.log()?;
        let is_told = |line: &&str| line.contains("vg=labvg") && line.contains("the volume group is");
        Ok(log.lines().filter(is_told).map(str::to_owned).collect())
    }

    /// Fails unless a creation is refused as something that passes, at once; gives the text.
    pub(crate) fn refuses_creation(&self, what: &str) -> Result<String> {
        let request = create(&self.rig.name(), "linear", 16 * MIB, block(Mode::SingleNodeWriter));
        refused(self.rig.csi().create_volume(request), &[Code::Unavailable], what)
    }

    /// Room that is told for the group.
    pub(crate) fn room(&self) -> Result<i64> {
        let request = csi::GetCapacityRequest { parameters: map(&[("pool", "linear")]), ..Default::default() };
        Ok(self.rig.csi().get_capacity(request).accepted("GetCapacity")?.available_capacity)
    }

    /// Ids of the volumes that are listed, of both groups.
    pub(crate) fn listed(&self) -> Result<Vec<String>> {
        let list = self.rig.csi().list_volumes(csi::ListVolumesRequest::default()).accepted("ListVolumes")?;
        Ok(list.entries.into_iter().filter_map(|entry| Some(entry.volume?.volume_id)).collect())
    }

    /// Fails where LVM has been made to count a PV of the group as missing, which needs a person to undo.
    pub(crate) fn no_pv_is_flagged(&self) -> Result<()> {
        let flags = vg::lvm(&["pvs", "--noheadings", "-o", "pv_missing,vg_partial", "-S", "vg_name=labvg"])?;
        ensure(!flags.contains("missing") && !flags.contains("partial"), || format!("LVM counts a PV as missing: {flags:?}"))
    }

    /// As [`Rig::finish`].
    pub(crate) fn close(self) -> Result<()> {
        self.no_pv_is_flagged()?;
        self.rig.finish()?;
        self.well.destroy()
    }
}

/// All metrics, as text.
pub(crate) fn scrape() -> Result<String> {
    let failed = || Trouble::io("asking for the metrics");
    let mut stream = TcpStream::connect(METRICS).map_err(failed())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").map_err(failed())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed())?;
    ensure(text.starts_with("HTTP/1.1 200 ") && text.trim_end().ends_with("# EOF"), || format!("the metrics are {text:?}"))?;
    Ok(text)
}

/// Waits until a process of this name is in a state (`T`: stopped), and gives its id.
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

/// Sends a signal.
pub(crate) fn signal(pid: Pid, signal: Signal) -> Result<()> {
    kill(pid, signal).map_err(Trouble::errno(format!("sending {signal} to {pid}")))
}
