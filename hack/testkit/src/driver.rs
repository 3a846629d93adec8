//! The driver as a process: start, wait until it serves, stop, kill. Its log is kept in a file.

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

/// Its CSI name.
pub const NAME: &str = "lvm-csi.dev";

/// How long the driver may take until it serves, and until it is gone after SIGTERM.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a killed driver may take until it is gone.
const DOOMED: Duration = Duration::from_secs(10);

/// Lines of the log that are shown when something went wrong.
const TAIL: usize = 40;

/// What a driver runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All in one process.
    Standalone,
    /// Node service and agent.
    Node,
    /// The controller over agents.
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
    /// Directory with everything of this driver: socket, state, runtime files, log.
    pub home: PathBuf,
    /// What it runs as.
    pub role: Role,
    /// Name of the node.
    pub node: String,
    /// Further arguments of the role: what it serves from.
    pub arguments: Vec<OsString>,
    /// Minutes between copies of the metadata, 0 for none: they would show as files that a test left.
    pub copy_minutes: u32,
    /// Environment beside the caller's.
    pub environment: Vec<(String, String)>,
}

impl Start {
    /// A driver that serves from one volume group.
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

    /// A driver that serves what a configuration file says, whose text is written beside its state.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn on_config(program: &Path, home: &Path, text: &str) -> Result<Self> {
        let path = home.join("config.yaml");
        fs::write(&path, text).map_err(Trouble::io(format!("writing {}", path.display())))?;
        Ok(Self { arguments: vec!["--config".into(), path.into()], ..Self::on_vg(program, home, "") })
    }

    /// A controller over agents, each with its node's name and its address.
    pub fn controller(program: &Path, home: &Path, agents: &[(&str, &str)], files: &Files) -> Self {
        let agents = agents.iter().flat_map(|(node, address)| ["--agent".to_owned(), format!("{node}=https://{address}")]);
        let arguments = agents.map(OsString::from).chain(files.flags()).collect();
        Self { role: Role::Controller, arguments, ..Self::on_vg(program, home, "") }
    }

    /// The same as the node of this name, whose agent listens at an address.
    pub fn as_node(self, name: &str, address: &str, files: &Files) -> Self {
        let mut start = self.with(&["--agent-address", address]);
        start.arguments.extend(files.flags());
        Self { role: Role::Node, node: name.to_owned(), ..start }
    }

    /// The same with further arguments.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&a| OsString::from(a)));
        self
    }

    /// Path of its socket, alone in its directory.
    pub fn socket(&self) -> PathBuf {
        self.home.join("csi").join("csi.sock")
    }

    /// Path of its state, which outlives it.
    pub fn state(&self) -> PathBuf {
        self.home.join("state")
    }

    /// Path of its log, to which each start of the same home adds.
    pub fn log(&self) -> PathBuf {
        self.home.join("driver.log")
    }

    /// The command, ready to be started; both streams go to the log.
    ///
    /// # Errors
    /// A directory or the log cannot be made.
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

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// It cannot be started, ended, or is not ready in time; the end of its log is in the text.
    pub fn start(&self) -> Result<Driver> {
        let mut driver = self.spawn()?;
        driver.wait_ready()?;
        Ok(driver)
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self) -> Result<Driver> {
        let child = self.command()?.spawn().map_err(Trouble::io(format!("starting {}", self.program.display())))?;
        let csi = Csi::new(&self.socket())?;
        Ok(Driver { start: self.clone(), child: Some(child), csi })
    }

    /// Runs it to its end, for starts that must fail; gives its status and its whole log.
    ///
    /// # Errors
    /// It cannot be started, or does not end by itself in time (then it is killed).
    pub fn fails(&self) -> Result<(ExitStatus, String)> {
        let mut driver = self.spawn()?;
        let status = driver.wait_end("the driver to refuse its start")?;
        Ok((status, driver.log()?))
    }
}

/// A running driver; killed when dropped.
pub struct Driver {
    start: Start,
    child: Option<Child>,
    csi: Csi,
}

impl Driver {
    /// Its services.
    pub fn csi(&self) -> &Csi {
        &self.csi
    }

    /// How it was started.
    pub fn start(&self) -> &Start {
        &self.start
    }

    /// Waits until Probe says ready and the health service says that it serves.
    ///
    /// # Errors
    /// It ended, or did not get there in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let quick = self.csi.deadline(Duration::from_secs(5));
        let mut said = String::from("nothing");
        let found = tool::wait("the driver to be ready", LIMIT, || {
            if let Some(status) = self.ended()? {
                return Err(Trouble::wrong(format!("the driver ended with {status}:\n{}", self.tail())));
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
            Err(Trouble::Limit { what, .. }) => {
                Err(Trouble::wrong(format!("waited in vain for {what}; Probe said {said}; its log ends:\n{}", self.tail())))
            }
            other => {
                // How often it had to be asked is nobody's business.
                self.csi.forget();
                other
            }
        }
    }

    /// Its process id.
    ///
    /// # Errors
    /// It was stopped.
    pub fn pid(&self) -> Result<u32> {
        self.child.as_ref().map(Child::id).ok_or_else(|| Trouble::wrong("the driver was stopped"))
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn resident(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Of that what the driver has made itself, in KiB: without the pages of the program, of which an unoptimised one has many.
    ///
    /// # Errors
    /// The kernel does not say.
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
    /// It was stopped before.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Sends SIGKILL and does not wait: while the driver hangs in a device, it ends only when that is taken down.
    ///
    /// # Errors
    /// It was stopped before.
    pub fn doom(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Stops it in its tracks, as a node that is stunned: its connections stay open and nobody answers.
    ///
    /// # Errors
    /// It was stopped before.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Driver::freeze`].
    ///
    /// # Errors
    /// It was stopped before.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()?).map_err(|_| Trouble::wrong("a process id beyond all bounds"))?;
        kill(Pid::from_raw(pid), signal).map_err(Trouble::errno(format!("sending {signal} to the driver")))
    }

    /// Stops it with SIGTERM and waits until it is gone.
    ///
    /// # Errors
    /// It is not gone in time, or did not exit with 0.
    pub fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        let status = self.wait_end("the driver to end after SIGTERM")?;
        ensure(status.code() == Some(0), || format!("after SIGTERM the driver ended with {status}:\n{}", self.tail()))
    }

    /// Kills it as the kernel would, without a chance to tidy up.
    ///
    /// # Errors
    /// It was stopped before, or ended in another way meanwhile.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Err(Trouble::wrong("the driver was stopped before")) };
        child.kill().map_err(Trouble::io("killing the driver"))?;
        let status = child.wait().map_err(Trouble::io("waiting for the killed driver"))?;
        ensure(status.signal() == Some(9), || format!("the driver had ended with {status}:\n{}", self.tail()))
    }

    /// Starts it again after [`Driver::kill`] or [`Driver::stop`], with the same home.
    ///
    /// # Errors
    /// As [`Start::start`].
    pub fn restart(&mut self) -> Result<()> {
        ensure(self.child.is_none(), || "the driver still runs".to_owned())?;
        *self = self.start.start()?;
        Ok(())
    }

    /// What it has written, over all its starts with this home.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let log = self.start.log();
        fs::read_to_string(&log).map_err(Trouble::io(format!("reading {}", log.display())))
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let text = self.log().unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = self.child.as_mut() else { return Err(Trouble::wrong("the driver was stopped")) };
        child.try_wait().map_err(Trouble::io("looking after the driver"))
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
            // The last defence: what started it has failed and reported already.
            let _ = child.kill();
            let _ = tool::wait("the killed driver to end", DOOMED, || Ok(child.try_wait().ok().flatten()));
        }
    }
}
