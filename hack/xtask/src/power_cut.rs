//! The guest's side of `hack/power`. It plays the life of some volumes on disks that outlive the machine, until a crash point holds the
//! driver within an effect and the host cuts the power. After the next boot it continues with what is on the disks.
//!
//! The host keeps the directory DIR: `cuts` has the number of cuts so far, `answers` what the driver had acknowledged before the last one.
//! `hold`, `held` and `arm` belong to the driver's crash points (src/host/crash.rs), and `done` marks the end of the life.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use testkit::driver::{Driver, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::Places;
use testkit::lab::{self, say};
use testkit::power::{Access, From, Step, World};
use testkit::sample;
use testkit::test_vg::TestVg;
use testkit::tool;
use testkit::vg;

const VG: &str = "powervg";

/// Where the power is cut: an effect, and a moment as the crash points name it.
type Cut = Option<(&'static str, &'static str)>;

/// The life and its power cuts. The number in a moment is the age of the program, such as lvm or mkfs, in milliseconds.
const LIFE: &[(Step, Cut)] = &[
    (Step::Create("thin", "thin", 32, Access::Ext4, From::Nothing), Some(("lvcreate", "alone 60"))),
    (Step::Attach("thin"), Some(("ledger.grant", "after"))),
    (Step::Stage("thin"), Some(("mkfs.ext4", "alone 20"))),
    (Step::Publish("thin"), None),
    (Step::Write("thin", 1), None),
    (Step::Snapshot("cut", "thin"), Some(("lvcreate", "alone 100"))),
    (Step::Grow("thin", 64), Some(("lvextend", "alone 60"))),
    (Step::NodeGrow("thin"), Some(("grow-ext4", "alone 10"))),
    (Step::Create("linear", "linear", 32, Access::Ext4, From::Nothing), Some(("lvcreate", "after"))),
    (Step::Attach("linear"), None),
    (Step::Stage("linear"), Some(("mkfs.ext4", "after"))),
    (Step::Write("linear", 1), None),
    (Step::Grow("linear", 64), Some(("lvextend", "after"))),
    (Step::Create("raw", "linear", 8, Access::Raw, From::Nothing), None),
    (Step::Attach("raw"), None),
    (Step::Stage("raw"), Some(("zero", "after"))),
    (Step::Write("raw", 2), None),
    (Step::Grow("raw", 16), Some(("lvextend", "alone 40"))),
    (Step::DeleteSnapshot("cut"), Some(("lvremove", "alone 60"))),
    (Step::Unstage("raw"), None),
    (Step::Detach("raw"), Some(("ledger.free", "after"))),
    (Step::Delete("raw"), Some(("lvremove", "after"))),
    (Step::Unstage("thin"), None),
    (Step::Detach("thin"), None),
    (Step::Delete("thin"), Some(("lvremove", "alone 80"))),
    (Step::Unstage("linear"), None),
    (Step::Detach("linear"), None),
    (Step::Delete("linear"), Some(("lvremove", "alone 20"))),
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The program lvm-csi, built with its crash points
    driver: PathBuf,
    /// The directory that the host keeps
    #[arg(value_name = "DIR")]
    shared: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let Options { driver: program, shared } = options;
    lab::require()?;
    let cuts: usize = read(&shared.join("cuts")).trim().parse().unwrap_or(0);
    let home = lab::fresh("power")?;
    let (pv, state) = (lab::disk(0)?, lab::disk(1)?);
    if cuts == 0 {
        tool::run("mkfs.ext4", &["-q".as_ref(), state.as_os_str()])?;
        TestVg::make(VG, std::slice::from_ref(&pv))?.thin_pool("pool", 128)?;
    }
    let state_dir = home.join("state");
    fs::create_dir_all(&state_dir).map_err(Trouble::io(format!("making {}", state_dir.display())))?;
    let mounted = mount(Some(&state), &state_dir, Some("ext4"), MsFlags::empty(), None::<&str>);
    mounted.map_err(Trouble::errno(format!("mounting {}", state.display())))?;
    let uuid = vg::lvm(&["vgs", "--noheadings", "-o", "vg_uuid", VG])?.trim().to_owned();
    let vg = TestVg { name: VG.to_owned(), uuid, disks: vec![pv] };
    let mut start = Start::on_vg(program, &home, VG);
    start.environment = vec![
        ("LVM_CSI_CRASH_DIR".to_owned(), shared.display().to_string()),
        ("LVM_CSI_LOG".to_owned(), "lvm_csi=debug,lvm_csi::rpc=info".to_owned()),
    ];
    let mut driver = start.start()?;
    let played = play(&driver, shared, &vg, &home, cuts);
    played.map_err(|trouble| Trouble::wrong(format!("{trouble:?}; the end of the driver's log:\n{}", driver.tail())))?;
    driver.stop()
}

/// The indices of the steps with a cut: one for each effect, which the seed chooses, or all in a long run.
fn points() -> Vec<usize> {
    let mut of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, (_, cut)) in LIFE.iter().enumerate() {
        if let Some((effect, _)) = cut {
            of.entry(effect).or_default().push(number);
        }
    }
    let chosen =
        of.into_iter().flat_map(|(effect, all)| if sample::long() { all } else { vec![all[sample::choose(effect, all.len())]] });
    let mut points: Vec<usize> = chosen.collect();
    points.sort_unstable();
    points
}

/// Continues the life after this many cuts, until the end, or until the next cut, from which it does not return.
fn play(driver: &Driver, shared: &Path, vg: &TestVg, home: &Path, cuts: usize) -> Result<()> {
    let csi = driver.csi();
    let places = Places { root: home.join("kubelet") };
    let steps: Vec<Step> = LIFE.iter().map(|(step, _)| *step).collect();
    let points = points();
    let (mut world, mut number) = (World::default(), 0);
    if let Some(last) = cuts.checked_sub(1) {
        number = points[last];
        let step = steps[number];
        world = World::load(&read(&shared.join("answers")), &steps[..number], csi, &places)?.after_reboot();
        let formats = matches!(step, Step::Stage(name) if !world.is_used(name));
        // Take steps back where they have an inverse. Repeating the step then continues the life.
        if matches!(step, Step::Attach(_) | Step::Detach(_) | Step::Stage(_)) {
            world.invert(step, &world.clone(), csi, &places)?;
            world.verify(vg, csi, &places)?;
        }
        world.repeat(step, csi, &places)?;
        world.verify(vg, csi, &places)?;
        ensure(formats || !driver.log()?.contains(" effect=\"mkfs."), || {
            "the driver formatted a volume with an acknowledged filesystem".to_owned()
        })?;
        number += 1;
    }
    while let Some((step, cut)) = LIFE.get(number) {
        if let Some((effect, moment)) = cut.filter(|_| points.contains(&number)) {
            say(&format!("cut {:2}: {step}, {effect} {moment}", cuts + 1));
            write(&shared.join("answers"), &world.save())?;
            write(&shared.join("cuts"), &(cuts + 1).to_string())?;
            // No sync here: what was acknowledged must be on the disks without it.
            write(&shared.join("hold"), "")?;
            write(&shared.join("arm"), &format!("{effect} {moment}"))?;
            let ended = world.repeat(*step, csi, &places);
            return Err(Trouble::wrong(format!("{step} finished before the power was cut: {ended:?}")));
        }
        world.repeat(*step, csi, &places)?;
        number += 1;
    }
    world.verify(vg, csi, &places)?;
    write(&shared.join("done"), "")
}

/// The text of a file, or an empty one if there is none.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(Trouble::io(format!("writing {}", path.display())))
}
