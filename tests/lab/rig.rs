//! Common parts of every device test: a volume group, a driver that serves from it, and an account of the machine before the test.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lvm_csi_proto::csi;
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{Csi, block, create, mount, refused};
use testkit::driver::{Driver, Start};
use testkit::error::{Result, Trouble, ensure};
use testkit::flow::{Places, Volume};
use testkit::machine::{Account, Machine, Scope, scope};
use testkit::test_vg::TestVg;
use testkit::{cleanup, lab, shim, tool};
use tonic::{Code, Status};

pub(crate) const DRIVER: &str = env!("CARGO_BIN_EXE_lvm-csi");

pub(crate) const MIB: u64 = 1 << 20;

/// Size of the thin pool of a rig, in MiB.
pub(crate) const POOL_MIB: u64 = 1024;

/// Limit of every wait for a state.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// There is one kernel: its disks, mounts and the shim's log belong to one test at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Whether the last test has taken everything down itself.
static CLEAN: AtomicBool = AtomicBool::new(false);

/// Why the machine could not be cleaned up.
static LOST: OnceLock<String> = OnceLock::new();

/// Records that the enclosing test has executed these acceptance points. Stands at the end of a test.
macro_rules! covers {
    ($($point:literal),+) => {{
        fn here() {}
        crate::rig::covered(std::any::type_name_of_val(&here), &[$($point),+])
    }};
}

/// Appends lines `point<TAB>test` to the file that `LVM_CSI_COVERAGE` names, if it is set.
pub(crate) fn covered(here: &str, points: &[u32]) -> Result<()> {
    let Some(path) = std::env::var_os("LVM_CSI_COVERAGE") else { return Ok(()) };
    let test = here.trim_end_matches("::here");
    let lines: String = points.iter().map(|point| format!("{point}\t{test}\n")).collect();
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    written.map_err(Trouble::io(format!("writing {}", Path::new(&path).display())))
}

/// Takes the machine for one test, in the state after boot, and installs the shim. Once the machine cannot be cleaned up, every
/// test fails at once.
pub(crate) fn turn() -> Result<MutexGuard<'static, ()>> {
    static READY: OnceLock<Option<String>> = OnceLock::new();
    // A failed test has poisoned the lock. The next one starts afresh.
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reason) = LOST.get() {
        return Err(Trouble::wrong(format!("this machine is unusable: cleaning up after an earlier test failed: {reason}")));
    }
    let failed = READY.get_or_init(|| {
        let shim = Path::new(DRIVER).with_file_name("lvm-shim");
        let ready = shim::install(&shim);
        ready.err().map(|trouble| format!("{trouble:?} (cargo build --package xtask --bins makes the shim)"))
    });
    if let Some(text) = failed {
        return Err(Trouble::wrong(text));
    }
    if !CLEAN.swap(false, Ordering::SeqCst) {
        clear()?;
    }
    Ok(turn)
}

/// Takes down what a test left. If that fails, no further test can run.
fn clear() -> Result<()> {
    let cleared = shim::disarm().and_then(|()| cleanup::everything());
    cleared.inspect_err(|trouble| {
        // Only the first reason counts.
        let _ = LOST.set(format!("{trouble:?}"));
    })
}

/// A driver on a volume group.
pub(crate) struct Rig {
    pub(crate) vg: TestVg,
    pub(crate) driver: Driver,
    /// Staging and target paths of kubelet.
    pub(crate) places: Places,
    /// What the account of the machine covers.
    pub(crate) scope: Scope,
    before: Account,
    names: Cell<u32>,
    finished: bool,
    _turn: MutexGuard<'static, ()>,
}

impl Rig {
    /// A volume group of 4 GiB with a thin pool: it has the pools `linear` and `thin`.
    pub(crate) fn thin() -> Result<Self> {
        Self::make(Some(POOL_MIB), &[])
    }

    /// A volume group of 4 GiB with the pool `linear` only.
    pub(crate) fn linear() -> Result<Self> {
        Self::make(None, &[])
    }

    /// As asked: a thin pool of `pool` MiB, and more arguments for the driver.
    pub(crate) fn make(pool: Option<u64>, arguments: &[&str]) -> Result<Self> {
        Self::make_on(&[lab::disk(0)?], pool, arguments)
    }

    /// Like [`Rig::make`], on other disks.
    pub(crate) fn make_on(disks: &[PathBuf], pool: Option<u64>, arguments: &[&str]) -> Result<Self> {
        Self::start(disks, pool, |home, vg| Ok(Start::on_vg(Path::new(DRIVER), home, &vg.name).with(arguments)))
    }

    /// A volume group of 4 GiB without a thin pool, and a driver with this configuration file.
    pub(crate) fn configured(text: &str) -> Result<Self> {
        Self::start(&[lab::disk(0)?], None, |home, _| Start::on_config(Path::new(DRIVER), home, text))
    }

    /// Restarts the driver so that it logs each call and each effect.
    pub(crate) fn log_everything(&mut self) -> Result<()> {
        let mut start = self.driver.start().clone();
        start.environment.push(("LVM_CSI_LOG".to_owned(), "debug".to_owned()));
        self.driver.stop()?;
        self.driver = start.start()?;
        Ok(())
    }

    /// Like [`Rig::make_on`]. `how` makes the driver's start from a home directory once the group exists.
    pub(crate) fn start(disks: &[PathBuf], pool: Option<u64>, how: impl FnOnce(&Path, &TestVg) -> Result<Start>) -> Result<Self> {
        let turn = turn()?;
        let home = lab::fresh("test")?;
        let vg = TestVg::make("labvg", disks)?;
        if let Some(mib) = pool {
            vg.thin_pool("pool", mib)?;
        }
        let places = Places { root: home.join("kubelet") };
        fs::create_dir_all(&places.root).map_err(Trouble::io(format!("making {}", places.root.display())))?;
        let start = how(&home, &vg)?;
        let driver = start.start()?;
        let scope = scope(&vg, &[places.root.clone(), start.state()]);
        let before = Account::take(&scope)?;
        Ok(Self { vg, driver, places, scope, before, names: Cell::new(0), finished: false, _turn: turn })
    }

    pub(crate) fn csi(&self) -> &Csi {
        self.driver.csi()
    }

    /// A new volume name in the provisioner's form.
    pub(crate) fn name(&self) -> String {
        self.names.set(self.names.get() + 1);
        format!("pvc-0f0e0d0c-0b0a-4000-8000-{:012x}", self.names.get())
    }

    /// Creates a volume of `mib` MiB, to be mounted with ext4.
    pub(crate) fn volume(&self, pool: &str, mib: u64) -> Result<Volume> {
        self.with(pool, mib, mount("ext4", Mode::SingleNodeWriter))
    }

    /// Creates a raw block volume of `mib` MiB.
    pub(crate) fn raw(&self, pool: &str, mib: u64) -> Result<Volume> {
        self.with(pool, mib, block(Mode::SingleNodeWriter))
    }

    /// Creates a volume of `mib` MiB with this capability.
    pub(crate) fn with(&self, pool: &str, mib: u64, capability: csi::VolumeCapability) -> Result<Volume> {
        let name = self.name();
        Volume::create(self.csi(), &self.places, &name, create(&name, pool, mib * MIB, capability))
    }

    /// Creates a volume from a complete request.
    pub(crate) fn request(&self, request: csi::CreateVolumeRequest) -> Result<Volume> {
        let name = request.name.clone();
        Volume::create(self.csi(), &self.places, &name, request)
    }

    /// Fails unless a call is refused with one of the codes and changes nothing on the machine. Returns the message.
    pub(crate) fn rejects<T>(
        &self,
        codes: &[Code],
        what: &str,
        call: impl FnOnce(&Csi) -> std::result::Result<T, Status>,
    ) -> Result<String> {
        let before = Machine::look(&self.scope)?;
        let message = refused(call(self.csi()), codes, what)?;
        before.assert_unchanged(&self.scope, &format!("{what} was refused ({message})"))?;
        Ok(message)
    }

    /// Fails unless the work leaves the machine unchanged.
    pub(crate) fn unchanged<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let before = Machine::look(&self.scope)?;
        let done = work()?;
        before.assert_unchanged(&self.scope, what)?;
        Ok(done)
    }

    /// Repeats a call until it returns OK, as the sidecars and kubelet do.
    pub(crate) fn until_ok<T>(&self, what: &str, mut call: impl FnMut(&Csi) -> Result<T>) -> Result<T> {
        let mut last = String::new();
        let done = tool::wait(what, LIMIT, || match call(self.csi()) {
            Ok(answer) => Ok(Some(answer)),
            Err(trouble) => {
                last = format!("{trouble:?}");
                Ok(None)
            }
        });
        done.map_err(|trouble| Trouble::wrong(format!("{trouble}; the last answer: {last}")))
    }

    /// Stops the driver, fails if anything of the test is left, and takes everything down.
    pub(crate) fn finish(mut self) -> Result<()> {
        ensure(!shim::armed(), || "a fault that the test armed never happened".to_owned())?;
        self.driver.stop()?;
        let left = self.before.leaks(&self.scope)?;
        ensure(left.is_empty(), || format!("left behind:\n  {}", left.join("\n  ")))?;
        self.vg.destroy()?;
        self.finished = true;
        CLEAN.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // The test has failed and reported why. What follows helps the reader, and the next test.
        lab::say(&format!("--- end of the driver's log ---\n{}\n---", self.driver.tail()));
        let _ = self.driver.doom();
        if let Err(trouble) = clear() {
            lab::say(&format!("cleaning up after the failed test: {trouble:?}"));
        }
    }
}
