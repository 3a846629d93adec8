//! Plays the driver's main job on a real volume group inside the lab, as kubelet and the sidecars would, and shows each call.
//!
//! `hack/demo` builds and starts it. It ends with 0 only when every check held and nothing was left behind.

mod data;
mod play;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use testkit::error::{Result, Trouble, ensure};
use testkit::lab::{self, say};
use testkit::tool;

use play::{Sabotage, play};

/// What the command line says.
struct Options {
    driver: PathBuf,
    /// The shim around `lvm`.
    shim: PathBuf,
    /// What to break on purpose.
    sabotage: Option<Sabotage>,
    /// Break each thing once and expect that it is seen.
    self_check: bool,
}

fn main() -> ExitCode {
    let done = options().and_then(|options| if options.self_check { self_check() } else { play(&options) });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            say(&format!("\nFAILED: {trouble:?}"));
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options> {
    lab::require()?;
    let own = std::env::current_exe().map_err(Trouble::io("asking for the path of this program"))?;
    let mut options = Options {
        driver: own.with_file_name("lvm-csi"),
        shim: own.with_file_name("lvm-shim"),
        sabotage: None,
        self_check: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| Trouble::wrong(format!("{argument} needs a value")));
        match argument.as_str() {
            "--driver" => options.driver = value()?.into(),
            "--shim" => options.shim = value()?.into(),
            "--sabotage" => options.sabotage = Some(Sabotage::parse(&value()?)?),
            "--self-check" => options.self_check = true,
            _ => return Err(Trouble::wrong(format!("unknown argument {argument}"))),
        }
    }
    Ok(options)
}

/// Plays once with each thing broken on purpose, by starting this program again; goes well only if each play failed, and failed
/// because it saw what was broken.
fn self_check() -> Result<()> {
    let own = std::env::current_exe().map_err(Trouble::io("asking for the path of this program"))?;
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
