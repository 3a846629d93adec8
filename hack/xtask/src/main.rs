//! The program that the scripts in hack/ start.

mod bench;
mod certs;
mod demo;
mod demo_k8s;
mod points;
mod power_cut;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use testkit::lab::say;
use testkit::{Result, Trouble};

#[derive(Parser)]
#[command(name = "xtask", about = "What the scripts in hack/ start; each subcommand names its script")]
enum Task {
    /// Plays the life of some volumes on an empty disk of the lab (hack/demo)
    Demo(demo::Options),
    /// Installs the chart in a cluster of the lab and shows what people do with it (hack/demo k8s)
    DemoK8s,
    /// Measures what calls cost against LVM's own commands (hack/bench)
    #[command(subcommand)]
    Bench(bench::Part),
    /// Compares the acceptance points with the tests that ran (hack/test points)
    Points(points::Options),
    /// Makes certificates for a controller and for nodes (hack/sanity.d/run)
    Certs(certs::Options),
    /// Plays a life of volumes that power cuts interrupt, inside the lab (hack/power)
    PowerCut(power_cut::Options),
}

fn main() -> ExitCode {
    match Task::parse() {
        Task::Demo(options) => ended("\nFAILED", demo::run(&options)),
        Task::DemoK8s => ended("\nFAILED", demo_k8s::run()),
        Task::Bench(part) => bench::run(&part),
        Task::Points(options) => ended("points", points::run(&options)),
        Task::Certs(options) => ended("certs", certs::run(&options)),
        Task::PowerCut(options) => ended("power", power_cut::run(&options)),
    }
}

/// The path of this program.
fn own_path() -> Result<PathBuf> {
    std::env::current_exe().map_err(Trouble::io("asking for the path of this program"))
}

/// A program that an option names, or the one of that name in the directory of this one.
fn or_beside(given: Option<&Path>, name: &str) -> Result<PathBuf> {
    given.map_or_else(|| Ok(own_path()?.with_file_name(name)), |path| Ok(path.to_owned()))
}

/// The exit status of a task: 1 when it failed, with the reason on standard output, where its other lines are.
fn ended(prefix: &str, done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            say(&format!("{prefix}: {trouble:?}"));
            ExitCode::FAILURE
        }
    }
}
