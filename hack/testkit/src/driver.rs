//! The driver as a process, with its log in a file.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use lvm_csi_proto::csi;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::certs::Files;
use crate::client::Csi;
use crate::error::{Result, Trouble, ensure};
use crate::tool;

/// The driver's default CSI name.
pub const NAME: &str = "lvm-csi.dev";

/// Time limit for the driver to become ready, and to exit after SIGTERM.
const LIMIT: Duration = Duration::from_secs(60);

/// Time limit for a killed driver to disappear.
const KILLED: Duration = Duration::from_secs(10);

/// Lines of the log that an error shows.
const TAIL: usize = 40;

/// The driver's subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All services in one process.
    Standalone,
    /// Node service and agent.
    Node,
    /// The controller, which asks agents.
    Controller,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Standalone => "standalone",
            Role::Node => "node",
            Role::Controller => "controller",
        }
    }
}

/// How to start a driver.
#[derive(Clone, Debug)]
pub struct Start {
    pub program: PathBuf,
    /// Directory of this driver's socket, state, runtime files and log.
    pub home: PathBuf,
    pub role: Role,
    pub node: String,
    /// More arguments of the role: what it serves from.
    pub arguments: Vec<OsString>,
    /// Minutes between copies of the metadata. The default is 0, for none: a test's check for leftovers would find the copies.
    pub copy_minutes: u32,
    /// Variables in addition to the caller's.
    pub environment: Vec<(String, String)>,
}

impl Start {
    /// A standalone driver with one volume group.
    pub fn on_vg(program: &Path, home: &Path, vg: &str) -> Self {
        Self {
            program: program.to_owned(),
            home: home.to_owned(),
            role: Role::Standalone,
            node: "node-a".to_owned(),
            arguments: vec!["--vg".into(), vg.into()],
            copy_minutes: 0,
            environment: Vec::new(),
        }
    }

    /// A standalone driver with a configuration file of this text, which this writes into `home`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn on_config(program: &Path, home: &Path, text: &str) -> Result<Self> {
        let path = home.join("config.yaml");
        fs::write(&path, text).map_err(Trouble::io(format!("writing {}", path.display())))?;
        Ok(Self { arguments: vec!["--config".into(), path.into()], ..Self::on_vg(program, home, "") })
    }

    /// A controller that asks agents, given as pairs of node name and address.
    pub fn controller(program: &Path, home: &Path, agents: &[(&str, &str)], files: &Files) -> Self {
        let agents = agents.iter().flat_map(|(node, address)| ["--agent".to_owned(), format!("{node}=https://{address}")]);
        let arguments = agents.map(OsString::from).chain(files.flags()).collect();
        Self { role: Role::Controller, arguments, ..Self::on_vg(program, home, "") }
    }

    /// This driver as the node of that name, with an agent that listens at an address.
    pub fn as_node(self, name: &str, address: &str, files: &Files) -> Self {
        let mut start = self.with(&["--agent-address", address]);
        start.arguments.extend(files.flags());
        Self { role: Role::Node, node: name.to_owned(), ..start }
    }

    /// This driver with more arguments.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&a| OsString::from(a)));
        self
    }

    /// The socket, in a directory of its own.
    pub fn socket(&self) -> PathBuf {
        self.home.join("csi").join("csi.sock")
    }

    /// The state directory, which outlives the process.
    pub fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    /// The log, to which each start with this `home` appends.
    pub fn log(&self) -> PathBuf {
        self.home.join("driver.log")
    }

    /// The command, with both output streams in the log.
    ///
    /// # Errors
    /// A directory or the log cannot be created.
    pub fn command(&self) -> Result<Command> {
        let run = self.home.join("run");
        for directory in [self.home.join("csi"), self.state(), run.clone()] {
            fs::create_dir_all(&directory).map_err(Trouble::io(format!("making {}", directory.display())))?;
        }
        let opened = File::options().create(true).append(true).open(self.log());
        let log = opened.map_err(Trouble::io(format!("opening {}", self.log().display())))?;
        let other = log.try_clone().map_err(Trouble::io("duplicating the log's descriptor"))?;
        let mut command = tool::command(&self.program);
        command.arg(self.role.name()).args(&self.arguments);
        if self.role != Role::Controller {
            command.arg("--node-id").arg(&self.node).arg("--state-dir").arg(self.state()).arg("--run-dir").arg(run);
            command.arg("--metadata-copy-minutes").arg(self.copy_minutes.to_string());
        }
        command.env("CSI_ENDPOINT", format!("unix://{}", self.socket().display()));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(log).stderr(other);
        Ok(command)
    }

    /// Starts the driver and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, exits, or is not ready in time. The text has the end of its log.
    pub fn start(&self) -> Result<Driver> {
        let mut driver = self.spawn()?;
        driver.wait_ready()?;
        Ok(driver)
    }

    /// Starts the driver without waiting.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self) -> Result<Driver> {
        let child = self.command()?.spawn().map_err(Trouble::io(format!("starting {}", self.program.display())))?;
        let csi = Csi::new(&self.socket())?;
        Ok(Driver { start: self.clone(), child: Some(child), csi })
    }

    /// Runs a driver whose start must fail; returns its status and its whole log.
    ///
    /// # Errors
    /// It cannot be started, or does not exit in time (then it is killed).
    pub fn fails(&self) -> Result<(ExitStatus, String)> {
        let mut driver = self.spawn()?;
        let status = driver.wait_end("the driver to exit by itself")?;
        Ok((status, driver.log()?))
    }
}

/// A running driver, killed on drop.
pub struct Driver {
    start: Start,
    child: Option<Child>,
    csi: Csi,
}

impl Driver {
    pub fn csi(&self) -> &Csi {
        &self.csi
    }

    pub fn start(&self) -> &Start {
        &self.start
    }

    /// Waits until Probe reports ready and the health service reports serving.
    ///
    /// # Errors
    /// The driver exits, or is not ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let quick = self.csi.deadline(Duration::from_secs(5));
        let mut said = String::from("nothing");
        let found = tool::wait("the driver to be ready", LIMIT, || {
            if let Some(status) = self.ended()? {
                return Err(Trouble::wrong(format!("the driver exited with {status}:\n{}", self.tail())));
            }
            match quick.probe(csi::ProbeRequest {}) {
                Ok(answer) if answer.ready != Some(false) => Ok(quick.serving().unwrap_or(false).then_some(())),
                Ok(_) => {
                    "not ready".clone_into(&mut said);
                    Ok(None)
                }
                Err(status) => {
                    said = format!("{:?}: {}", status.code(), status.message());
                    Ok(None)
                }
            }
        });
        match found {
            Err(Trouble::Limit { what, .. }) => Err(Trouble::wrong(format!(
                "timed out waiting for {what}; Probe last returned {said}; the end of its log:\n{}",
                self.tail()
            ))),
            other => {
                // The polling above is no part of what a caller counts.
                self.csi.forget();
                other
            }
        }
    }

    /// # Errors
    /// The driver was stopped.
    pub fn pid(&self) -> Result<u32> {
        self.child.as_ref().map(Child::id).ok_or_else(|| Trouble::wrong("the driver was stopped"))
    }

    /// Resident memory in KiB (`VmRSS`).
    ///
    /// # Errors
    /// `/proc` has no such line.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Anonymous resident memory in KiB (`RssAnon`): without the pages of the program, of which a debug build has many.
    ///
    /// # Errors
    /// `/proc` has no such line.
    pub fn anonymous(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, key: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid()?);
        let text = fs::read_to_string(&path).map_err(Trouble::io(format!("reading {path}")))?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| Trouble::wrong(format!("{path} has no {key}")))
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// The driver was stopped.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends SIGKILL without waiting: a driver that hangs in a device exits only when the device goes.
    ///
    /// # Errors
    /// The driver was stopped.
    pub fn doom(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Sends SIGSTOP, as if the node hung: connections stay open and nothing responds.
    ///
    /// # Errors
    /// The driver was stopped.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Sends SIGCONT after [`Driver::freeze`].
    ///
    /// # Errors
    /// The driver was stopped.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?).map_err(|_| Trouble::wrong("the process id does not fit into 32 bits"))?;
        kill(Pid::from_raw(pid), signal).map_err(Trouble::errno(format!("sending {signal} to the driver")))
    }

    /// Sends SIGTERM and waits for the exit.
    ///
    /// # Errors
    /// The driver does not exit in time, or not with 0.
    pub fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        let status = self.wait_end("the driver to exit after SIGTERM")?;
        ensure(status.code() == Some(0), || format!("after SIGTERM the driver exited with {status}:\n{}", self.tail()))
    }

    /// Sends SIGKILL and waits for the exit.
    ///
    /// # Errors
    /// The driver was stopped, or exited in another way before.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Err(Trouble::wrong("the driver was stopped before")) };
        child.kill().map_err(Trouble::io("killing the driver"))?;
        let status = child.wait().map_err(Trouble::io("waiting for the killed driver"))?;
        ensure(status.signal() == Some(9), || format!("the driver had exited with {status}:\n{}", self.tail()))
    }

    /// Starts the driver again after [`Driver::kill`] or [`Driver::stop`], with the same home.
    ///
    /// # Errors
    /// As [`Start::start`].
    pub fn restart(&mut self) -> Result<()> {
        ensure(self.child.is_none(), || "the driver is still running".to_owned())?;
        *self = self.start.start()?;
        Ok(())
    }

    /// The log of all starts with this home.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let log = self.start.log();
        fs::read_to_string(&log).map_err(Trouble::io(format!("reading {}", log.display())))
    }

    /// The last lines of the log.
    pub fn tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = self.child.as_mut() else { return Err(Trouble::wrong("the driver was stopped")) };
        child.try_wait().map_err(Trouble::io("asking for the driver's status"))
    }

    fn wait_end(&mut self, what: &str) -> Result<ExitStatus> {
        let status = tool::wait(what, LIMIT, || self.ended())?;
        self.child = None;
        Ok(status)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Only after a failure, which has been reported already.
            let _ = child.kill();
            let _ = tool::wait("the killed driver to exit", KILLED, || Ok(child.try_wait().ok().flatten()));
        }
    }
}
