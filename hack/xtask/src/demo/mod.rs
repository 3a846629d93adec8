//! Plays the life of some volumes on a real volume group in the lab, as kubelet and the sidecars would, and shows each call.
//!
//! `hack/demo` starts it. It succeeds only if every check held and nothing was left behind.

mod data;
mod play;
mod show;

use std::path::PathBuf;

use testkit::error::{Result, ensure};
use testkit::lab::{self, say};
use testkit::tool;

use self::play::{Sabotage, play};
use crate::own_path;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The driver; without it lvm-csi beside this program
    #[arg(long, value_name = "PROGRAM")]
    driver: Option<PathBuf>,
    /// The shim around lvm; without it lvm-shim beside this program
    #[arg(long, value_name = "PROGRAM")]
    shim: Option<PathBuf>,
    /// Breaks something on purpose
    #[arg(long)]
    sabotage: Option<Sabotage>,
    /// Plays once with each sabotage, and fails unless each play detects it
    #[arg(long, conflicts_with = "sabotage")]
    self_check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    lab::require()?;
    if options.self_check { self_check() } else { play(options) }
}

/// Plays once with each sabotage, in a process of its own. Succeeds only if each play fails for the right reason.
fn self_check() -> Result<()> {
    let own = own_path()?;
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--self-check").collect();
    let mut undetected = Vec::new();
    for sabotage in Sabotage::ALL {
        say(&format!("\n### Sabotage: {}", sabotage.describe()));
        let output = tool::output(tool::command(&own).args(&arguments).args(["--sabotage", sabotage.word()]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            say(&format!("    | {line}"));
        }
        let failed = text.lines().skip_while(|line| !line.starts_with("FAILED:")).collect::<Vec<_>>().join(" ");
        if output.status.code() == Some(1) && failed.contains(sabotage.finding()) {
            say(&format!("detected: {}", sabotage.describe()));
        } else {
            say(&format!("NOT DETECTED: {} (the play exited with {})", sabotage.describe(), output.status));
            undetected.push(sabotage.word());
        }
    }
    ensure(undetected.is_empty(), || format!("the demo does not detect these: {undetected:?}"))?;
    say(&format!("\nself-check passed: {} of {} sabotages were detected", Sabotage::ALL.len(), Sabotage::ALL.len()));
    Ok(())
}
