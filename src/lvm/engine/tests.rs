//! Runs the engine on disks in memory that hang.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Condvar;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::host::DmDevice;
use crate::host::fake::Part;
use crate::lvm::image::disk;
use crate::types::LvName;

/// The group `vg`, of which only the first PV is present.
const TEXT: &str = include_str!("../../../tests/fixtures/lvm/snapshots.txt");
const PV: &str = "ptzxe2-oMDX-JPF0-wTHI-SOxN-RMkj-P0pBdw";
const OTHER: &str = "56z6UC-K0ee-LKSj-dQHe-X1Yz-NpY1-wBqXJz";
const LONG: Duration = Duration::from_secs(30);

/// A kind of access to the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Flush,
}

/// Two disks, on which one kind of access hangs.
#[derive(Default)]
struct Memory {
    hangs: Mutex<Option<Access>>,
    moved: Condvar,
    waiting: AtomicUsize,
}

impl Memory {
    fn hang(&self, access: Option<Access>) {
        *self.hangs.lock().unwrap() = access;
        self.moved.notify_all();
    }

    fn wait(&self, access: Access) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.moved.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs == Some(access)).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Part for Memory {
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.wait(Access::Read);
        let pv = if device == Path::new("/dev/a") { PV } else { OTHER };
        let start = usize::try_from(offset).unwrap();
        disk(pv, 36, TEXT, false)
            .get(start..start + length)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn flush(&self, _: &Path) -> io::Result<()> {
        self.wait(Access::Flush);
        Ok(())
    }

    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>> {
        Ok(["/dev/a", "/dev/b"].map(PathBuf::from).to_vec())
    }

    fn dm_list(&self, _: &str) -> io::Result<Vec<DmDevice>> {
        Ok(Vec::new())
    }
}

/// Commands that do nothing and are counted.
struct Counted {
    directory: tempfile::TempDir,
    runs: AtomicUsize,
}

impl Commands for Counted {
    fn locking_dir(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, _: &Command, _: &Path, _: &File, _: &dyn Fn(u32)) -> Result<Output, RunError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let status = ExitStatus::from_raw(0);
        Ok(Output { status, stdout: Vec::new(), stderr: Vec::new(), cut: false, took: Duration::ZERO })
    }
}

fn engine(patience: Duration) -> (Engine, Arc<Memory>, Arc<Counted>) {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().join("run");
    let counted = Arc::new(Counted { directory, runs: AtomicUsize::new(0) });
    let (memory, name) = (Arc::new(Memory::default()), VgName::new("vg").unwrap());
    let (commands, kernel) = (Arc::clone(&counted) as Arc<dyn Commands>, Arc::clone(&memory) as Arc<dyn Kernel>);
    (Engine::new(commands, kernel, &run_dir, name, patience, Trust::default()), memory, counted)
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn nobody_waits_without_limit_for_a_disk_that_hangs_and_all_get_the_same_error() {
    let (engine, memory, counted) = engine(Duration::from_secs(1));
    let remove = Command::Deactivate { vg: VgName::new("vg").unwrap(), lvs: vec![LvName::new("lin").unwrap()] };
    let commit = Command::Retag {
        vg: VgName::new("vg").unwrap(),
        lvs: vec![LvName::new("lin").unwrap()],
        remove: Vec::new(),
        add: Vec::new(),
    };
    let mut view = None;
    wait("the first read", || {
        view = engine.read().ok();
        view.is_some()
    });
    let view = view.unwrap();
    // Flushed once, it needs no second flush.
    for access in [Access::Flush, Access::Read] {
        memory.hang(Some(access));
        let hangs = |text: &str| assert!(text.contains("hangs") && text.contains("volume group vg"), "{access:?}: {text}");
        std::thread::scope(|scope| {
            // Two callers change it: one has the turn, the other waits for it.
            let change = || {
                let turn = engine.turn().map_err(|wedged| wedged.to_string())?;
                engine.change(&turn, &commit).map_err(|error| error.to_string())
            };
            for one in [scope.spawn(change), scope.spawn(change)] {
                hangs(&one.join().unwrap().unwrap_err());
            }
        });
        // From now on every caller fails at once, and no second access begins.
        hangs(&engine.read().unwrap_err().to_string());
        hangs(&engine.check_present(&view).unwrap_err());
        hangs(&engine.make_durable().unwrap_err().to_string());
        let turn = engine.turn().unwrap();
        hangs(&engine.change(&turn, &remove).unwrap_err().to_string());
        drop(turn);
        hangs(&engine.queue().wedge.unwrap().text);
        assert!(engine.strangers().is_ok());
        assert_eq!((memory.waiting.load(Ordering::SeqCst), counted.runs.load(Ordering::SeqCst)), (1, 0));
        memory.hang(None);
        wait("the group to heal", || engine.queue().wedge.is_none() && engine.make_durable().is_ok());
    }
    let turn = engine.turn().unwrap();
    wait("a change", || engine.change(&turn, &commit).is_ok());
    assert!(counted.runs.load(Ordering::SeqCst) >= 1);
}
