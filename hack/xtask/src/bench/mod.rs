//! Measures what calls cost against the stock LVM commands that they replace. `hack/bench` starts it.
//!
//! The parts `native`, `lab` and `k8s` measure, and write rows to a file. `report` prints the rows of all files.

mod calls;
mod group;
mod k8s;
mod lab;
mod large;
mod measure;
mod native;
mod report;
mod stock;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use testkit::error::Result;
use testkit::lab::{complain, say};

use crate::or_beside;

#[derive(clap::Subcommand)]
pub(crate) enum Part {
    /// Measures commands that change only metadata, on this machine's own kernel
    Native {
        #[command(flatten)]
        driver: Driver,
        /// A disk that may be overwritten; without it a loop device on a file in memory
        #[arg(long, value_name = "DEVICE")]
        disk: Option<PathBuf>,
        /// Receives the rows
        file: PathBuf,
    },
    /// Measures what activates, formats, mounts, copies and grows, in the lab
    Lab {
        #[command(flatten)]
        driver: Driver,
        /// Receives the rows
        file: PathBuf,
    },
    /// Measures pods with volumes against pods without, in a cluster of one node
    K8s {
        /// How long it watches the driver while nothing happens
        #[arg(long, value_name = "MINUTES", default_value_t = 2)]
        idle_minutes: u64,
        /// Receives the rows
        file: PathBuf,
    },
    /// Prints the rows of some files as a table
    Report {
        /// Prints them as JSON instead
        #[arg(long)]
        json: bool,
        /// Exits with 1 when a figure misses its bound
        #[arg(long)]
        check: bool,
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(clap::Args)]
pub(crate) struct Driver {
    /// The driver; without it lvm-csi beside this program
    #[arg(long = "driver", value_name = "PROGRAM")]
    program: Option<PathBuf>,
}

impl Driver {
    fn path(&self) -> Result<PathBuf> {
        or_beside(self.program.as_deref(), "lvm-csi")
    }
}

/// Exits with 1 when a figure misses its bound, and with 2 when it cannot be measured.
pub(crate) fn run(part: &Part) -> ExitCode {
    match measure(part) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            complain(&format!("bench: {trouble:?}"));
            ExitCode::from(2)
        }
    }
}

/// Whether all figures keep their bounds, where that was asked for.
fn measure(part: &Part) -> Result<bool> {
    let (file, rows) = match part {
        Part::Native { driver, disk, file } => (file, native::run(&driver.path()?, disk.as_deref())?),
        Part::Lab { driver, file } => (file, lab::run(&driver.path()?)?),
        Part::K8s { idle_minutes, file } => (file, k8s::run(Duration::from_secs(idle_minutes * 60))?),
        Part::Report { json, check, files } => {
            let rows = report::read(files)?;
            say(&if *json { report::json(&rows)? } else { report::table(&rows) });
            return Ok(!check || rows.iter().all(measure::Row::holds));
        }
    };
    report::write(file, &rows).map(|()| true)
}
