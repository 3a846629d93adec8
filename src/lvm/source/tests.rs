//! Runs the reader on disks in memory.

use std::collections::{BTreeSet, VecDeque};
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::host::fake::Part;
use crate::lvm::image::{self, AREA, disk, disk_with, labelled};
use crate::lvm::metadata::Pv;
use crate::lvm::metadata::header::HeaderError;
use crate::lvm::metadata::label::Area;
use crate::lvm::reader::BESIDE;

mod pins;

/// A group with the PVs [`FIRST`] and [`SECOND`].
const TEXT: &str = include_str!("../../../tests/fixtures/lvm/snapshots.txt");
const SEQNO: u64 = 36;
const FIRST: &str = "ptzxe2-oMDX-JPF0-wTHI-SOxN-RMkj-P0pBdw";
const SECOND: &str = "56z6UC-K0ee-LKSj-dQHe-X1Yz-NpY1-wBqXJz";
const GROUP: &str = "vg";
const PATIENCE: Duration = Duration::from_secs(30);
/// The fewest reads that check an area: label and header are adjacent.
const LOOK: usize = 1;

/// The images by path, and what happens during reads.
#[derive(Default)]
struct Disks {
    images: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
    /// Reading these fails.
    broken: Mutex<BTreeSet<PathBuf>>,
    /// Each replaces an image just before the next text is read.
    before_text: Mutex<VecDeque<(PathBuf, Vec<u8>)>>,
    /// Identities of devices.
    identities: Mutex<BTreeMap<PathBuf, DeviceIdentity>>,
    /// Reads of these wait until they are removed from the set.
    hanging: Mutex<BTreeSet<PathBuf>>,
    /// Each replaces an image just after the next text is read.
    after_text: Mutex<VecDeque<(PathBuf, Vec<u8>)>>,
    reads: AtomicUsize,
}

impl Part for Disks {
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        while self.hanging.lock().unwrap().contains(device) {
            std::thread::yield_now();
        }
        if self.broken.lock().unwrap().contains(device) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let next = |queue: &Mutex<VecDeque<(PathBuf, Vec<u8>)>>| {
            let is_text = offset > AREA.offset;
            if let Some((path, image)) = is_text.then(|| queue.lock().unwrap().pop_front()).flatten() {
                self.images().insert(path, image);
            }
        };
        next(&self.before_text);
        let image = self.images().get(device).cloned().ok_or(io::ErrorKind::NotFound)?;
        next(&self.after_text);
        let start = usize::try_from(offset).unwrap();
        image.get(start..start + length).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>> {
        Ok(self.images().keys().cloned().collect())
    }

    fn device_identity(&self, device: &Path) -> io::Result<DeviceIdentity> {
        let identity = self.identities.lock().unwrap().get(device).cloned();
        Ok(identity.unwrap_or_else(|| DeviceIdentity { names: Vec::new(), instance: device.display().to_string() }))
    }

    fn device_number(&self, device: &Path) -> io::Result<Option<(u32, u32)>> {
        Ok(device.to_str().and_then(|path| path.bytes().last()).map(|letter| (8, u32::from(letter))))
    }
}

impl Disks {
    fn images(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Vec<u8>>> {
        self.images.lock().unwrap()
    }

    fn put(&self, path: &str, image: Vec<u8>) {
        self.images().insert(path.into(), image);
    }

    fn take(&self, path: &str) -> Vec<u8> {
        self.images().remove(Path::new(path)).unwrap()
    }

    /// Counts the reads of `work`.
    fn count<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let before = self.reads.load(Ordering::SeqCst);
        let done = work();
        (done, self.reads.load(Ordering::SeqCst) - before)
    }
}

/// A source on these disks, and the disks to change.
fn source(images: &[(&str, Vec<u8>)]) -> (Source, Arc<Disks>) {
    let disks = Arc::new(Disks::default());
    for (path, image) in images {
        disks.put(path, image.clone());
    }
    (reader(&disks, Trust::default()), disks)
}

/// Another reader of the same disks.
fn reader(disks: &Arc<Disks>, trust: Trust) -> Source {
    Source::new(Arc::clone(disks) as Arc<dyn Kernel>, VgName::new(GROUP).unwrap(), trust)
}

/// The text of another commit.
fn text(seqno: u64) -> String {
    TEXT.replacen(&format!("seqno = {SEQNO}"), &format!("seqno = {seqno}"), 1)
}

/// A PV without a metadata area.
fn bare(pv: &str) -> Vec<u8> {
    labelled(pv, &[])
}

fn committed(pv: &str, seqno: u64) -> Vec<u8> {
    disk(pv, seqno, &text(seqno), false)
}

fn both(seqno: u64) -> [(&'static str, Vec<u8>); 2] {
    [("/dev/a", committed(FIRST, seqno)), ("/dev/b", committed(SECOND, seqno))]
}

fn seqno(source: &Source) -> u64 {
    source.read().unwrap().vg.seqno
}

#[test]
fn a_group_is_read_from_its_disks() {
    for number in [SEQNO, SEQNO + 1] {
        let view = source(&both(number)).0.read().unwrap();
        assert_eq!((view.vg.seqno, view.vg.lvs.len() > 5, view.area), (number, true, Bytes(AREA.size)));
        let disks: Vec<_> = view.disks.iter().map(|(pv, path)| (pv.as_str(), path.to_str().unwrap())).collect();
        assert_eq!(disks, [(SECOND, "/dev/b"), (FIRST, "/dev/a")]);
        assert_eq!(view.absent().count(), 0);
    }
}

#[test]
fn what_did_not_change_is_not_read_again() {
    let (source, disks) = source(&both(SEQNO));
    let first = source.read().unwrap();
    let (second, reads) = disks.count(|| source.read().unwrap());
    assert!(Arc::ptr_eq(&first.vg, &second.vg));
    assert_eq!(reads, 2 * LOOK);
}

#[test]
fn a_commit_on_any_disk_is_seen() {
    let (source, disks) = source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    disks.put("/dev/b", committed(SECOND, SEQNO + 1));
    assert_eq!(seqno(&source), SEQNO + 1);
    disks.put("/dev/a", committed(FIRST, SEQNO + 2));
    assert_eq!(seqno(&source), SEQNO + 2);
}

#[test]
fn a_commit_is_read_from_the_groups_own_disks_only() {
    let [first, second] = both(SEQNO);
    let alone = source(&[first.clone(), second.clone()]);
    let beside = source(&[first, second, ("/dev/other", vec![0; 1 << 16])]);
    let reads = [&alone, &beside].map(|(source, disks)| {
        source.read().unwrap();
        disks.put("/dev/a", committed(FIRST, SEQNO + 2));
        disks.put("/dev/b", committed(SECOND, SEQNO + 2));
        let (read, reads) = disks.count(|| seqno(source));
        assert_eq!(read, SEQNO + 2);
        reads
    });
    assert_eq!(reads[0], reads[1]);
    // Nor is a new device, even if it is a copy of a PV with a newer text.
    let (source, disks) = beside;
    disks.put("/dev/c", committed(FIRST, SEQNO + 20));
    disks.put("/dev/a", committed(FIRST, SEQNO + 4));
    assert_eq!(seqno(&source), SEQNO + 4);
    let strangers = source.strangers().unwrap();
    assert!(
        matches!(&strangers[..], [(device, what)] if device == Path::new("/dev/c") && what.contains("copy of PV")),
        "{strangers:?}"
    );
}

#[test]
fn of_two_copies_the_newer_one_counts() {
    for (a, b) in [(SEQNO, SEQNO + 1), (SEQNO + 1, SEQNO)] {
        let (source, _) = source(&[("/dev/a", committed(FIRST, a)), ("/dev/b", committed(SECOND, b))]);
        assert_eq!(seqno(&source), SEQNO + 1);
    }
}

#[test]
fn an_area_far_from_the_label_is_watched_as_well() {
    let far = Area { offset: 2 * BESIDE, size: AREA.size };
    let at = |number| disk_with(far, FIRST, number, &text(number), false);
    let (source, disks) = source(&[("/dev/a", at(SEQNO)), ("/dev/b", committed(SECOND, SEQNO))]);
    assert_eq!(seqno(&source), SEQNO);
    let (_, reads) = disks.count(|| seqno(&source));
    assert_eq!(reads, 3 * LOOK);
    disks.put("/dev/a", at(SEQNO + 1));
    assert_eq!(seqno(&source), SEQNO + 1);
    // Wiped, but its header remains.
    let mut wiped = at(SEQNO + 1);
    wiped[..4096].fill(0);
    disks.put("/dev/a", wiped);
    assert_eq!(source.read().unwrap().disks.len(), 1);
}

#[test]
fn an_ignored_area_is_never_used() {
    let frozen = |number| disk(SECOND, number, &text(number), true);
    let (source, disks) = source(&[("/dev/a", committed(FIRST, SEQNO)), ("/dev/b", frozen(SEQNO + 7))]);
    assert_eq!(seqno(&source), SEQNO);
    disks.put("/dev/b", frozen(SEQNO + 9));
    let (now, reads) = disks.count(|| seqno(&source));
    assert_eq!((now, reads), (SEQNO, LOOK));
    // Both are in use, then the other one is ignored.
    disks.put("/dev/a", disk(FIRST, SEQNO, &text(SEQNO), true));
    disks.put("/dev/b", committed(SECOND, SEQNO + 1));
    assert_eq!(seqno(&source), SEQNO + 1);
    disks.put("/dev/b", frozen(SEQNO + 1));
    assert!(matches!(source.read(), Err(ReadError::Absent { .. })));
}

#[test]
fn no_disk_is_absent_and_one_that_cannot_be_read_is_unknown() {
    let (none, disks) = source(&[("/dev/c", vec![0; 1 << 16])]);
    assert!(matches!(none.read(), Err(ReadError::Absent { .. })));
    disks.put("/dev/d", disk(FIRST, SEQNO, &TEXT.replacen("vg {", "other {", 1), false));
    assert!(matches!(none.read(), Err(ReadError::Absent { .. })));
    let unknown = |image: Vec<u8>, broken: bool| {
        let (source, disks) = source(&[("/dev/a", image), ("/dev/c", vec![0; 1 << 16])]);
        if broken {
            disks.broken.lock().unwrap().insert("/dev/a".into());
        }
        match source.read() {
            Err(ReadError::Unreadable { device, source, .. }) if device == Path::new("/dev/a") => source,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(unknown(committed(FIRST, SEQNO), true), DiskError::Io { .. }));
    let damaged = |at: usize| {
        let mut image = committed(FIRST, SEQNO);
        image[at] ^= 1;
        image
    };
    assert!(matches!(unknown(damaged(512 + 40), false), DiskError::Label(_)));
    assert!(matches!(unknown(damaged(4096 + 40), false), DiskError::Header(_)));
    assert!(matches!(unknown(damaged(4096 + 512 + 512 * (36 % 16)), false), DiskError::Header(HeaderError::Text { .. })));
    assert!(matches!(unknown(disk(FIRST, SEQNO, "vg {", false), false), DiskError::Text(_)));
}

#[test]
fn a_group_that_was_read_and_cannot_be_now_is_not_unchanged() {
    let (source, disks) = source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    for device in ["/dev/a", "/dev/b"] {
        disks.broken.lock().unwrap().insert(device.into());
    }
    assert!(matches!(source.read(), Err(ReadError::Unreadable { .. })));
    disks.broken.lock().unwrap().clear();
    assert_eq!(seqno(&source), SEQNO);
    // Wiped, except for the header.
    for device in ["/dev/a", "/dev/b"] {
        disks.images().get_mut(Path::new(device)).unwrap()[512..1024].fill(0);
    }
    assert!(matches!(source.read(), Err(ReadError::Away { .. })));
}

#[test]
fn one_readable_disk_is_enough_to_know_a_group() {
    let (source, disks) = source(&both(SEQNO));
    disks.broken.lock().unwrap().insert("/dev/a".into());
    let view = source.read().unwrap();
    assert_eq!(view.absent().map(PvUuid::as_str).collect::<Vec<_>>(), [FIRST]);
    assert!(source.check_present(&view).unwrap_err().contains(FIRST));
    // It comes back, which changes no header that was read.
    disks.broken.lock().unwrap().clear();
    let view = source.read().unwrap();
    assert_eq!((view.absent().count(), source.check_present(&view)), (0, Ok(())));
}

#[test]
fn an_older_copy_is_read_but_allows_no_change_while_a_newer_one_may_be_unreadable() {
    // A commit reached only the first disk, whose metadata area then went bad.
    let mut bad = committed(FIRST, SEQNO + 1);
    bad[4096 + 8] ^= 1;
    let (source, disks) = source(&[("/dev/a", bad), ("/dev/b", committed(SECOND, SEQNO))]);
    let view = source.read().unwrap();
    assert_eq!((view.vg.seqno, view.absent().count()), (SEQNO, 0));
    let refusal = source.check_present(&view).unwrap_err();
    assert!(refusal.contains("/dev/a"), "{refusal}");
    // It recovers, and no header of the other disk changes.
    disks.put("/dev/a", committed(FIRST, SEQNO + 1));
    let view = source.read().unwrap();
    assert_eq!((view.vg.seqno, source.check_present(&view)), (SEQNO + 1, Ok(())));
}

#[test]
fn two_groups_of_one_name_and_two_disks_of_one_pv_are_refused() {
    let mine = Vg::parse(TEXT).unwrap().uuid;
    let other = TEXT.replace(mine.as_str(), &mine.as_str().replace(&mine.as_str()[..6], "other0"));
    let twins = [("/dev/a", committed(FIRST, SEQNO)), ("/dev/b", disk(SECOND, SEQNO, &other, false))];
    let error = source(&twins).0.read().unwrap_err();
    assert!(matches!(error, ReadError::Ambiguous { first, second, .. } if first == mine && second != mine));
    let copies = [("/dev/a", committed(FIRST, SEQNO)), ("/dev/b", committed(FIRST, SEQNO))];
    let error = source(&copies).0.read().unwrap_err();
    assert!(matches!(error, ReadError::Duplicate { pv, .. } if pv.as_str() == FIRST));
}

#[test]
fn a_text_that_moves_while_it_is_read_is_read_again() {
    // Overwritten after its header was read: the checksum shows it.
    let (one, disks) = source(&[("/dev/a", committed(FIRST, SEQNO))]);
    let mut next = committed(FIRST, SEQNO + 2);
    let old = 4096 + 512 + 512 * 4;
    next[old..old + 100].fill(b'x');
    disks.before_text.lock().unwrap().push_back(("/dev/a".into(), next));
    assert_eq!(seqno(&one), SEQNO + 2);
    // A commit after the first disk was read and before the second was.
    let (two, disks) = source(&both(SEQNO));
    disks.after_text.lock().unwrap().push_back(("/dev/a".into(), committed(FIRST, SEQNO + 2)));
    assert_eq!(seqno(&two), SEQNO + 2);
    // Changes that never stop.
    let (three, disks) = source(&[("/dev/a", committed(FIRST, SEQNO))]);
    let commits = (1..100).map(|n| (PathBuf::from("/dev/a"), committed(FIRST, SEQNO + 2 * n)));
    disks.after_text.lock().unwrap().extend(commits);
    assert!(matches!(three.read(), Err(ReadError::Moving { .. })));
}

#[test]
fn a_pv_that_is_not_where_it_was_stops_changes_and_is_looked_for() {
    let (source, disks) = source(&[("/dev/a", committed(FIRST, SEQNO)), ("/dev/b", bare(SECOND))]);
    let view = source.read().unwrap();
    assert_eq!(source.check_present(&view), Ok(()));
    disks.broken.lock().unwrap().insert("/dev/b".into());
    assert!(source.check_present(&view).unwrap_err().contains("cannot be read on /dev/b: reading 2048 bytes at byte 0: "));
    disks.broken.lock().unwrap().clear();
    assert_eq!(seqno(&source), SEQNO);
    // The kernel may rename the disk; without a metadata area only its label identifies it.
    let moved = disks.take("/dev/b");
    disks.put("/dev/b", vec![0; 1 << 16]);
    disks.put("/dev/z", moved);
    let view = source.read().unwrap();
    let error = source.check_present(&view).unwrap_err();
    assert!(error.contains("/dev/b is no longer PV"), "{error}");
    let view = source.read().unwrap();
    assert_eq!(view.disks.get(&PvUuid::new(SECOND).unwrap()).unwrap(), Path::new("/dev/z"));
    assert_eq!(source.check_present(&view), Ok(()));
}

/// The text of another group of the same name.
fn other_group(seqno: u64) -> (VgUuid, String) {
    let mine = Vg::parse(TEXT).unwrap().uuid;
    let other = mine.as_str().replace(&mine.as_str()[..6], "other0");
    (VgUuid::new(&other).unwrap(), text(seqno).replace(mine.as_str(), &other))
}

/// Forged by somebody who knows the group's UUID: a text of that group with only his own PV, and any seqno.
fn forged(seqno: u64) -> Vec<u8> {
    let real = Vg::parse(TEXT).unwrap();
    let pv = Pv { uuid: PvUuid::new(THIRD).unwrap(), ..real.pvs[0].clone() };
    disk(THIRD, seqno, &image::text(&Vg { seqno, pvs: vec![pv], lvs: Vec::new(), ..real }), false)
}

/// Forged by somebody who also knows its PVs, and names them together with his own.
fn forged_with_ours(seqno: u64) -> Vec<u8> {
    let real = Vg::parse(TEXT).unwrap();
    let own = Pv { uuid: PvUuid::new(THIRD).unwrap(), key: "pv9".to_owned(), ..real.pvs[0].clone() };
    let pvs = real.pvs.iter().cloned().chain([own]).collect();
    disk(THIRD, seqno, &image::text(&Vg { seqno, pvs, lvs: Vec::new(), ..real }), false)
}

const THIRD: &str = "thirdd-K0ee-LKSj-dQHe-X1Yz-NpY1-wBqXJz";

#[test]
fn a_group_that_was_renamed_stays_the_one_of_the_configuration() {
    let renamed = |pv: &str, seqno: u64| disk(pv, seqno, &text(seqno).replacen("vg {", "other {", 1), false);
    let (one, disks) = source(&both(SEQNO));
    let uuid = one.read().unwrap().vg.uuid.clone();
    // In the middle of the commit.
    disks.put("/dev/a", renamed(FIRST, SEQNO + 1));
    assert_eq!(one.read().unwrap().vg.name.as_str(), "other");
    disks.put("/dev/b", renamed(SECOND, SEQNO + 1));
    let view = one.read().unwrap();
    assert_eq!((view.vg.name.as_str(), &view.vg.uuid, view.absent().count()), ("other", &uuid, 0));
    // A reader that never saw the name needs `remember`.
    let (fresh, _) = source(&[("/dev/a", renamed(FIRST, SEQNO)), ("/dev/b", renamed(SECOND, SEQNO))]);
    assert!(matches!(fresh.read(), Err(ReadError::Absent { .. })));
    fresh.remember(&Vg::parse(TEXT).unwrap());
    assert_eq!(fresh.read().unwrap().vg.uuid, uuid);
    // Another group that gets the name does not take its place.
    disks.put("/dev/c", disk(THIRD, SEQNO, &other_group(SEQNO).1, false));
    disks.put("/dev/a", renamed(FIRST, SEQNO + 2));
    assert_eq!(one.read().unwrap().vg.uuid, uuid);
    let strangers = one.strangers().unwrap();
    assert!(
        matches!(&strangers[..], [(device, what)] if device == Path::new("/dev/c") && what.contains("other0")),
        "{strangers:?}"
    );
}

#[test]
fn a_forged_text_is_not_trusted() {
    // A tenant needs only the group's UUID, which is in each of his handles.
    let forged = forged(999_999);
    let (source, disks) = source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    disks.put("/dev/c", forged_with_ours(999_999));
    disks.put("/dev/a", committed(FIRST, SEQNO + 1));
    assert_eq!(seqno(&source), SEQNO + 1);
    disks.put("/dev/c", forged.clone());
    assert_eq!(seqno(&source), SEQNO + 1);
    // Nor when the devices are read again, as after a commit, a PV that went and came, and a restart of the driver.
    disks.put("/dev/a", committed(FIRST, SEQNO + 2));
    assert_eq!(seqno(&source), SEQNO + 2);
    let first = disks.take("/dev/a");
    assert_eq!(source.read().unwrap().absent().map(PvUuid::as_str).collect::<Vec<_>>(), [FIRST]);
    disks.put("/dev/a", first);
    assert_eq!(seqno(&source), SEQNO + 2);
    let state = tempfile::tempdir().unwrap();
    let trust = || Trust { pins: Pins::kept(state.path()), ..Trust::default() };
    disks.take("/dev/c");
    assert_eq!(seqno(&reader(&disks, trust())), SEQNO + 2);
    disks.put("/dev/c", forged);
    let restarted = reader(&disks, trust());
    assert_eq!(seqno(&restarted), SEQNO + 2);
    assert_eq!(restarted.strangers().unwrap().len(), 1);
    // With all its own disks away nothing takes their place.
    for device in ["/dev/a", "/dev/b"] {
        disks.take(device);
    }
    for source in [&source, &restarted, &reader(&disks, trust())] {
        assert!(matches!(source.read(), Err(ReadError::Ignored { device, .. }) if device == Path::new("/dev/c")));
    }
}

#[test]
fn on_the_first_look_a_forged_text_is_ambiguous() {
    let (source, disks) = source(&both(SEQNO));
    disks.put("/dev/c", forged(999_999));
    let error = source.read().unwrap_err();
    assert!(matches!(&error, ReadError::Ambiguous { first, second, .. } if first == second), "{error}");
    assert!(error.to_string().contains("/dev/c"), "{error}");
    disks.put("/dev/c", forged_with_ours(999_999));
    let error = source.read().unwrap_err();
    assert!(matches!(&error, ReadError::Ambiguous { .. }) && error.to_string().contains("/dev/c"), "{error}");
    // A person chooses one.
    assert!(matches!(source.adopt(None), Err(ReadError::Ambiguous { .. })));
    let own: Vec<PathBuf> = vec!["/dev/a".into(), "/dev/b".into()];
    assert_eq!(source.adopt(Some(own)).unwrap().0.vg.seqno, SEQNO);
    assert_eq!(seqno(&source), SEQNO);
    // A copy of the metadata is as good as a pin.
    let restarted = reader(&disks, Trust::default());
    restarted.remember(&Vg::parse(TEXT).unwrap());
    assert_eq!(seqno(&restarted), SEQNO);
    // And so is the list in the configuration.
    let devices = Devices { allowed: Some(vec!["/dev/a".into(), "/dev/b".into()]), files: Vec::new() };
    assert_eq!(seqno(&reader(&disks, Trust { devices, ..Trust::default() })), SEQNO);
}

#[test]
fn copies_of_pvs_of_other_groups_do_no_harm() {
    let foreign = || disk(THIRD, 3, &other_group(3).1.replacen("vg {", "guest {", 1).replace(FIRST, THIRD), false);
    let [first, second] = both(SEQNO);
    let (source, _) = source(&[first, second, ("/dev/x", foreign()), ("/dev/y", foreign())]);
    assert_eq!(seqno(&source), SEQNO);
    assert_eq!(source.strangers().unwrap(), []);
}

#[test]
fn a_device_that_hangs_delays_another_group_once_at_most() {
    let foreign = disk(THIRD, 3, &other_group(3).1.replacen("vg {", "guest {", 1).replace(FIRST, THIRD), false);
    let [first, second] = both(SEQNO);
    let (source, disks) = source(&[first, second, ("/dev/x", foreign)]);
    disks.hanging.lock().unwrap().insert("/dev/x".into());
    assert_eq!(seqno(&source), SEQNO);
    // From now on it is not even read.
    let begun = Instant::now();
    disks.put("/dev/a", committed(FIRST, SEQNO + 2));
    assert_eq!(seqno(&source), SEQNO + 2);
    assert!(begun.elapsed() < LIMIT);
    // While the own disk does not answer, its copy does not take its place.
    let state = tempfile::tempdir().unwrap();
    let trust = || Trust { pins: Pins::kept(state.path()), ..Trust::default() };
    assert_eq!(seqno(&reader(&disks, trust())), SEQNO + 2);
    disks.hanging.lock().unwrap().insert("/dev/a".into());
    disks.put("/dev/copy", committed(FIRST, SEQNO + 8));
    assert_eq!(reader(&disks, trust()).read().unwrap().absent().map(PvUuid::as_str).collect::<Vec<_>>(), [FIRST]);
    disks.take("/dev/copy");
    // An own disk that hangs at the start is reported, and does not delay the reader.
    disks.hanging.lock().unwrap().insert("/dev/a".into());
    let restarted = reader(&disks, Trust::default());
    restarted.remember(&Vg::parse(TEXT).unwrap());
    let view = restarted.read().unwrap();
    assert_eq!(view.absent().map(PvUuid::as_str).collect::<Vec<_>>(), [FIRST]);
    disks.hanging.lock().unwrap().clear();
    tests_wait(|| restarted.read().unwrap().absent().count() == 0);
}

#[test]
fn a_copy_with_the_own_disks_name_that_answers_first_does_not_take_its_place() {
    let called = |instance: &str| DeviceIdentity { names: vec!["serial:(null)".to_owned()], instance: instance.to_owned() };
    let state = tempfile::tempdir().unwrap();
    let trust = || Trust { pins: Pins::kept(state.path()), ..Trust::default() };
    let (_, disks) = source(&both(SEQNO));
    let devices = [("/dev/a", "8:0"), ("/dev/b", "8:16"), ("/dev/copy", "8:32")];
    disks.identities.lock().unwrap().extend(devices.map(|(path, number)| (path.into(), called(number))));
    assert_eq!(seqno(&reader(&disks, trust())), SEQNO);
    disks.put("/dev/copy", committed(FIRST, SEQNO - 2));
    disks.hanging.lock().unwrap().insert("/dev/a".into());
    let restarted = reader(&disks, trust());
    assert_eq!(restarted.read().unwrap().absent().map(PvUuid::as_str).collect::<Vec<_>>(), [FIRST]);
    disks.hanging.lock().unwrap().clear();
    tests_wait(|| restarted.read().unwrap().disks.get(&PvUuid::new(FIRST).unwrap()).is_some_and(|own| own.ends_with("a")));
    assert_eq!(seqno(&restarted), SEQNO);
}

fn tests_wait(mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}

#[test]
fn a_pv_is_followed_by_its_device_when_there_are_two_of_it() {
    let called =
        |wwid: &str, instance: &str| DeviceIdentity { names: vec![format!("wwid:{wwid}")], instance: instance.to_owned() };
    let state = tempfile::tempdir().unwrap();
    let trust = || Trust { pins: Pins::kept(state.path()), ..Trust::default() };
    let (_, disks) = source(&both(SEQNO));
    disks.identities.lock().unwrap().extend([("/dev/a".into(), called("1", "8:0")), ("/dev/b".into(), called("2", "8:16"))]);
    assert_eq!(seqno(&reader(&disks, trust())), SEQNO);
    // A clone with newer texts, while the kernel renames the own disk at the next boot.
    let own = disks.take("/dev/a");
    disks.put("/dev/a", committed(FIRST, SEQNO + 6));
    disks.put("/dev/z", own);
    disks.identities.lock().unwrap().extend([("/dev/a".into(), called("9", "8:0")), ("/dev/z".into(), called("1", "8:32"))]);
    let source = reader(&disks, trust());
    let view = source.read().unwrap();
    assert_eq!((view.vg.seqno, view.disks[&PvUuid::new(FIRST).unwrap()].as_path()), (SEQNO, Path::new("/dev/z")));
    // The clone alone is no PV of the group.
    disks.take("/dev/z");
    let view = source.read().unwrap();
    assert_eq!(view.absent().map(PvUuid::as_str).collect::<Vec<_>>(), [FIRST]);
    let second = disks.take("/dev/b");
    let error = source.read().unwrap_err();
    assert!(matches!(&error, ReadError::Ignored { device, .. } if device == Path::new("/dev/a")), "{error}");
    assert!(error.to_string().contains("lvm-csi adopt --vg vg"), "{error}");
    // Until a person adopts it.
    disks.put("/dev/b", second);
    let (view, before) = source.adopt(None).unwrap();
    assert_eq!((view.vg.seqno, view.absent().count(), before.unwrap().pvs.len()), (SEQNO + 6, 0, 2));
    assert_eq!(seqno(&reader(&disks, trust())), SEQNO + 6);
}

#[test]
fn a_new_pv_counts_when_the_group_names_it_and_an_old_one_no_more() {
    let (source, disks) = source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    let pv = |uuid: &str| {
        format!("pv9 {{\nid = \"{uuid}\"\nstatus = [\"ALLOCATABLE\"]\ndev_size = 4096000\npe_start = 2048\npe_count = 499\n}}\n")
    };
    let extended = |seqno: u64| text(seqno).replacen("physical_volumes {\n", &format!("physical_volumes {{\n{}", pv(THIRD)), 1);
    // vgextend writes to all of them; the newest text may be on the new one.
    disks.put("/dev/c", disk(THIRD, SEQNO + 2, &extended(SEQNO + 2), false));
    disks.put("/dev/a", disk(FIRST, SEQNO + 2, &extended(SEQNO + 2), false));
    disks.put("/dev/b", disk(SECOND, SEQNO + 2, &extended(SEQNO + 2), false));
    let view = source.read().unwrap();
    assert_eq!((view.vg.pvs.len(), view.disks.len(), view.vg.seqno), (3, 3, SEQNO + 2));
    disks.put("/dev/c", disk(THIRD, SEQNO + 4, &extended(SEQNO + 4), false));
    assert_eq!(seqno(&source), SEQNO + 4);
    // vgreduce: the disk now belongs to somebody else, who writes anything.
    disks.put("/dev/a", committed(FIRST, SEQNO + 6));
    disks.put("/dev/b", committed(SECOND, SEQNO + 6));
    disks.put("/dev/c", bare(THIRD));
    assert_eq!(source.read().unwrap().disks.len(), 2);
    disks.put("/dev/c", disk(THIRD, 9999, &extended(9999), false));
    disks.put("/dev/a", committed(FIRST, SEQNO + 8));
    assert_eq!(seqno(&source), SEQNO + 8);
}

#[test]
fn a_group_recreated_on_its_own_disks_counts_and_one_on_others_does_not() {
    let (source, disks) = source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    let (heir, renumbered) = other_group(4);
    let anew = image::text(&Vg { uuid: heir.clone(), seqno: 4, lvs: Vec::new(), ..Vg::parse(TEXT).unwrap() });
    // On one of its disks, while the other is away and may hold the group.
    disks.put("/dev/a", disk(FIRST, 4, &anew, false));
    let second = disks.take("/dev/b");
    assert!(matches!(source.read(), Err(ReadError::Ignored { .. })));
    drop(second);
    // The old group under another UUID (vgchange --uuid) still has its volumes.
    disks.put("/dev/a", disk(FIRST, 4, &renumbered, false));
    disks.put("/dev/b", disk(SECOND, 4, &renumbered, false));
    assert!(matches!(source.read(), Err(ReadError::Ignored { .. })));
    disks.put("/dev/a", disk(FIRST, 4, &anew, false));
    disks.put("/dev/b", disk(SECOND, 4, &anew, false));
    assert_eq!(source.read().unwrap().vg.uuid, heir);
    // Removed, and created on another disk.
    let (source, disks) = self::source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    disks.put("/dev/a", bare(FIRST));
    disks.put("/dev/b", bare(SECOND));
    assert!(matches!(source.read(), Err(ReadError::Absent { .. })));
    disks.put("/dev/c", disk(THIRD, 4, &anew.replace(FIRST, THIRD), false));
    assert!(matches!(source.read(), Err(ReadError::Ignored { .. })));
    assert_eq!(source.adopt(None).unwrap().0.vg.uuid, heir);
    assert_eq!(source.read().unwrap().vg.uuid, heir);
}

#[test]
fn what_was_split_off_is_found_on_the_pvs_that_left() {
    let (source, disks) = source(&both(SEQNO));
    assert_eq!(seqno(&source), SEQNO);
    assert!(source.split_off().unwrap().is_empty());
    let whole = Vg::parse(TEXT).unwrap();
    let with = |uuid: &str| whole.pvs.iter().filter(|pv| pv.uuid.as_str() == uuid).cloned().collect();
    let kept = Vg { seqno: SEQNO + 2, pvs: with(FIRST), lvs: Vec::new(), ..whole.clone() };
    let taken = Vg {
        uuid: other_group(2).0,
        name: VgName::new("split").unwrap(),
        seqno: 2,
        pvs: with(SECOND),
        lvs: Vec::new(),
        ..whole.clone()
    };
    disks.put("/dev/a", disk(FIRST, SEQNO + 2, &image::text(&kept), false));
    disks.put("/dev/b", disk(SECOND, 2, &image::text(&taken), false));
    let view = source.read().unwrap();
    assert_eq!((view.vg.seqno, view.disks.len()), (SEQNO + 2, 1));
    let split = source.split_off().unwrap();
    assert_eq!(split.iter().map(|vg| vg.name.as_str()).collect::<Vec<_>>(), ["split"]);
}

#[test]
fn the_text_is_the_newest_one() {
    let (source, disks) = source(&both(SEQNO));
    disks.put("/dev/b", committed(SECOND, SEQNO + 1));
    let (view, on_disk) = source.text().unwrap();
    assert_eq!(
        (view.vg.seqno, String::from_utf8(on_disk).unwrap()),
        (SEQNO + 1, text(SEQNO + 1).trim_end_matches('\0').to_owned())
    );
    // Back to an older state, as after vgcfgrestore.
    disks.put("/dev/a", committed(FIRST, SEQNO - 4));
    disks.put("/dev/b", committed(SECOND, SEQNO - 4));
    assert_eq!(source.text().unwrap().0.vg.seqno, SEQNO - 4);
}
