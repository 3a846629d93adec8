//! Plays the driver's main job on a real volume group inside the lab, as kubelet and the sidecars would, and shows each call.
//!
//! `hack/demo` builds and starts it. It ends with 0 only when every check held and nothing was left behind.

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
    /// Breaks each of these once, and fails unless each play sees it
    #[arg(long, conflicts_with = "sabotage")]
    self_check: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    lab::require()?;
    if options.self_check { self_check() } else { play(options) }
}

/// Plays once with each thing broken on purpose, by starting this program again; goes well only if each play failed, and failed
/// because it saw what was broken.
fn self_check() -> Result<()> {
    let own = own_path()?;
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--self-check").collect();
    let mut unseen = Vec::new();
    for sabotage in Sabotage::ALL {
        say(&format!("\n### On purpose: {}", sabotage.describe()));
        let output = tool::output(tool::command(&own).args(&arguments).args(["--sabotage", sabotage.word()]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            say(&format!("    | {line}"));
        }
        let failed = text.lines().skip_while(|line| !line.starts_with("FAILED:")).collect::<Vec<_>>().join(" ");
        if output.status.code() == Some(1) && failed.contains(sabotage.finding()) {
            say(&format!("seen: {}", sabotage.describe()));
        } else {
            say(&format!("NOT SEEN: {} (the play ended with {})", sabotage.describe(), output.status));
            unseen.push(sabotage.word());
        }
    }
    ensure(unseen.is_empty(), || format!("the demo does not see these: {unseen:?}"))?;
    say(&format!("\nself-check passed: {} of {} sabotages were seen", Sabotage::ALL.len(), Sabotage::ALL.len()));
    Ok(())
}
