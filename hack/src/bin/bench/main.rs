//! Measures what a call costs, against the stock LVM commands that it replaces: `hack/bench` builds and starts it.
//!
//! The parts `native`, `lab` and `k8s` measure and write their rows to a file; `report` shows the rows of all files.

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

use testkit::error::{Result, Trouble};
use testkit::lab::say;

/// What the command line says.
struct Options {
    /// What to do.
    part: String,
    driver: PathBuf,
    /// A disk that may be overwritten, in place of a loop device of our own.
    disk: Option<PathBuf>,
    /// How long k8s looks on while nothing happens.
    idle: Duration,
    /// The files of rows: one to write, or all to report.
    files: Vec<PathBuf>,
    /// Report as JSON.
    json: bool,
    /// End with 1 when a figure was missed.
    check: bool,
}

fn main() -> ExitCode {
    let done = options().and_then(|options| run(&options));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            report::complain(&format!("bench: {trouble:?}"));
            ExitCode::from(2)
        }
    }
}

/// Whether all that was asked for holds.
fn run(options: &Options) -> Result<bool> {
    let rows = match options.part.as_str() {
        "native" => native::run(&options.driver, options.disk.as_deref())?,
        "lab" => lab::run(&options.driver)?,
        "k8s" => k8s::run(options.idle)?,
        "report" => {
            let rows = report::read(&options.files)?;
            say(&if options.json { report::json(&rows)? } else { report::table(&rows) });
            return Ok(!options.check || rows.iter().all(measure::Row::holds));
        }
        other => return Err(Trouble::wrong(format!("there is no part {other:?}; there are native, lab, k8s and report"))),
    };
    let [file] = options.files.as_slice() else { return Err(Trouble::wrong("name one file for the rows")) };
    report::write(file, &rows).map(|()| true)
}

fn options() -> Result<Options> {
    let own = std::env::current_exe().map_err(Trouble::io("asking for the path of this program"))?;
    let mut arguments = std::env::args().skip(1);
    let part = arguments.next().unwrap_or_default();
    let driver = own.with_file_name("lvm-csi");
    let mut options =
        Options { part, driver, disk: None, idle: Duration::from_secs(120), files: Vec::new(), json: false, check: false };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| Trouble::wrong(format!("{argument} needs a value")));
        match argument.as_str() {
            "--driver" => options.driver = value()?.into(),
            "--disk" => options.disk = Some(value()?.into()),
            "--idle-minutes" => {
                let minutes: u64 = value()?.parse().map_err(|_| Trouble::wrong("--idle-minutes: expected a number"))?;
                options.idle = Duration::from_secs(minutes * 60);
            }
            "--json" => options.json = true,
            "--check" => options.check = true,
            option if option.starts_with('-') => return Err(Trouble::wrong(format!("unknown option {option}"))),
            _ => options.files.push(argument.into()),
        }
    }
    Ok(options)
}
