//! Keeps copies of the metadata text of volume groups, for `vgcfgrestore` after the metadata areas of a group are lost.
//!
//! LVM's own copies in `/etc/lvm` are off for the driver's commands ([`super::conf`] says why). The text on the disks is what
//! `vgcfgrestore` takes, so copying it needs no LVM command.
//!
//! Each version has one file, `<dir>/<vg uuid>/<name>-<seconds since 1970>-<seqno>.vg`. The newest [`KEPT`] stay, and as many
//! older ones that are at least an interval apart, so that a busy minute does not push out yesterday's. The name is the one by
//! which the driver knows the group, even if the group is called otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::host::files;
use crate::types::{LvUuid, VgName, VgUuid};

use super::metadata::Vg;

/// How many of the newest versions of a group are kept, and how many older ones.
pub const KEPT: usize = 10;
/// The suffix of a copy.
const SUFFIX: &str = ".vg";
/// The suffix of a copy that is being written.
const UNFINISHED: &str = ".new";

/// Why a copy could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct BackupError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError { action, path, source }
}

/// The directory of copies.
#[derive(Clone, Debug)]
pub struct Backups {
    dir: PathBuf,
    /// The least distance between older versions, in seconds.
    apart: u64,
}

/// One copy, ordered by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    seconds: u64,
    seqno: u64,
    name: String,
}

impl Kept {
    fn file_name(&self) -> String {
        format!("{}-{}-{}{SUFFIX}", self.name, self.seconds, self.seqno)
    }

    fn parse(file_name: &str) -> Option<Self> {
        let mut parts = file_name.strip_suffix(SUFFIX)?.rsplitn(3, '-');
        let (seqno, seconds, name) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { seconds: seconds.parse().ok()?, seqno: seqno.parse().ok()?, name: name.to_owned() })
    }
}

impl Backups {
    /// Copies in `dir`, which the first copy creates. Older ones are at least `apart` apart.
    pub fn new(dir: PathBuf, apart: Duration) -> Self {
        Self { dir, apart: apart.as_secs() }
    }

    /// Keeps the text of the group that the driver knows by `name`, unless the newest copy is the same, and removes superfluous
    /// ones. A copy is written whole or not at all, even in a power cut. One caller at a time for one name.
    ///
    /// # Errors
    /// The filesystem refused; the older copies remain.
    pub fn keep(&self, name: &VgName, vg: &Vg, text: &[u8]) -> Result<(), BackupError> {
        let dir = self.dir.join(vg.uuid.as_str());
        files::make_directories(&dir).map_err(failed("make the directory", &dir))?;
        let mut kept = list(&dir).map_err(failed("list", &dir))?;
        let newest = kept.last();
        if newest.is_some_and(|newest| fs::read(dir.join(newest.file_name())).is_ok_and(|there| there == text)) {
            return Ok(());
        }
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // The clock may have been set back.
        let seconds = newest.map_or(clock, |newest| clock.max(newest.seconds + 1));
        let next = Kept { seconds, seqno: vg.seqno, name: name.to_string() };
        let path = dir.join(next.file_name());
        let new = dir.join(format!("{name}{UNFINISHED}"));
        files::write(&new, text).map_err(failed("write", &new))?;
        files::rename(&new, &path).map_err(failed("put in place", &path))?;
        kept.push(next);
        let mut old = superfluous(&kept, self.apart).map(|old| dir.join(old.file_name()));
        old.try_for_each(|old| files::remove_file(&old).map_err(failed("remove", &old)))
    }

    /// The group that the driver last knew by this name, from its newest readable copy.
    pub fn last_named(&self, name: &VgName) -> Option<Vg> {
        let dir = self.dir.join(self.group_named(name)?.as_str());
        let copies = list(&dir).ok()?;
        let of_name = copies.iter().rev().filter(|kept| kept.name == name.as_str());
        of_name.filter_map(|kept| fs::read(dir.join(kept.file_name())).ok()).find_map(|text| Vg::parse(text).ok())
    }

    /// The LVs in all copies of a group: those that `vgcfgrestore` can bring back.
    ///
    /// # Errors
    /// A copy cannot be read. One that does not parse brings nothing back.
    pub fn lvs_of(&self, vg: &VgUuid) -> Result<BTreeSet<LvUuid>, BackupError> {
        let dir = self.dir.join(vg.as_str());
        let kept = match list(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            listed => listed.map_err(failed("list", &dir))?,
        };
        let mut lvs = BTreeSet::new();
        for copy in kept {
            let path = dir.join(copy.file_name());
            match fs::read(&path) {
                Ok(text) => lvs.extend(Vg::parse(&text).into_iter().flat_map(|vg| vg.lvs).map(|lv| lv.uuid)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
        Ok(lvs)
    }

    fn group_named(&self, name: &VgName) -> Option<VgUuid> {
        let groups = fs::read_dir(&self.dir).ok()?.flatten();
        let named = groups.filter_map(|entry| {
            let uuid = VgUuid::new(entry.file_name().to_str()?)?;
            let newest = list(&entry.path()).ok()?.into_iter().rfind(|kept| kept.name == name.as_str())?;
            Some((newest, uuid))
        });
        named.max().map(|(_, uuid)| uuid)
    }
}

/// Selects the copies of one group to remove; `kept` is sorted, oldest first. Beyond the newest these are copies too close to an
/// older one, and the oldest ones above the limit.
fn superfluous(kept: &[Kept], apart: u64) -> impl Iterator<Item = &Kept> {
    let older = &kept[..kept.len().saturating_sub(KEPT)];
    let mut last: Option<u64> = None;
    let (spaced, mut drop): (Vec<&Kept>, Vec<&Kept>) = older.iter().partition(|copy| {
        let far = last.is_none_or(|last| copy.seconds >= last.saturating_add(apart));
        if far {
            last = Some(copy.seconds);
        }
        far
    });
    drop.extend(&spaced[..spaced.len().saturating_sub(KEPT)]);
    drop.into_iter()
}

/// The copies of one group, oldest first.
fn list(dir: &Path) -> io::Result<Vec<Kept>> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(dir)? {
        kept.extend(entry?.file_name().to_str().and_then(Kept::parse));
    }
    kept.sort();
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TEXT: &str = include_str!("../../tests/fixtures/lvm/snapshots.txt");

    fn vg(seqno: u64) -> Vg {
        Vg { seqno, ..Vg::parse(TEXT).unwrap() }
    }

    fn name(name: &str) -> VgName {
        VgName::new(name).unwrap()
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = list(dir).unwrap().iter().map(Kept::file_name).collect();
        let count = fs::read_dir(dir).unwrap().count();
        assert_eq!(count, names.len(), "something else is there");
        names.iter_mut().for_each(|name| *name = name.rsplit('-').next().unwrap().to_owned());
        names
    }

    #[test]
    fn the_newest_versions_are_kept_and_a_repeat_is_none() {
        let home = tempfile::tempdir().unwrap();
        let backups = Backups::new(home.path().join("backup"), Duration::from_secs(600));
        let dir = home.path().join("backup").join(vg(1).uuid.as_str());
        for seqno in 1..=13 {
            for _ in 0..2 {
                backups.keep(&name("vg"), &vg(seqno), format!("text {seqno}").as_bytes()).unwrap();
            }
        }
        // They are seconds apart: beyond the newest ones only the first is kept.
        assert_eq!(files(&dir), std::iter::once(1).chain(4..=13).map(|n| format!("{n}.vg")).collect::<Vec<_>>());
        // A restored older state is the newest copy, although its seqno is lower.
        files::write(&dir.join("vg.new"), b"left by a crash, and longer than the next text").unwrap();
        backups.keep(&name("vg"), &vg(3), b"text 3 again").unwrap();
        assert_eq!(files(&dir).last().unwrap(), "3.vg");
        let newest = dir.join(list(&dir).unwrap().pop().unwrap().file_name());
        assert_eq!(fs::read(&newest).unwrap(), b"text 3 again");
        assert_eq!(fs::metadata(&newest).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_busy_minute_pushes_no_older_version_out() {
        let copy = |seconds: u64| Kept { seconds, seqno: seconds, name: "vg".to_owned() };
        let mut kept: Vec<Kept> = Vec::new();
        let mut add = |seconds: u64| {
            kept.push(copy(seconds));
            let drop: Vec<Kept> = superfluous(&kept, 600).cloned().collect();
            kept.retain(|copy| !drop.contains(copy));
            assert!(kept.len() <= 2 * KEPT);
            kept.iter().map(|copy| copy.seconds).collect::<Vec<_>>()
        };
        // A commit a minute for a day, then one a second.
        let day = (0..1440).map(|minute| add(minute * 60)).last().unwrap();
        let busy = (1..=300).map(|second| add(1439 * 60 + second)).last().unwrap();
        assert_eq!(day.last(), Some(&(1439 * 60)));
        assert!(day[0] <= 1439 * 60 - 6000, "{day:?}");
        assert_eq!(busy[KEPT..], (1439 * 60 + 291..=1439 * 60 + 300).collect::<Vec<_>>());
        assert!(busy[..KEPT].windows(2).all(|two| two[1] - two[0] >= 600) && busy[0] <= 1439 * 60 - 5000, "{busy:?}");
    }

    #[test]
    fn the_lvs_of_all_copies_are_listed() {
        let home = tempfile::tempdir().unwrap();
        let backups = Backups::new(home.path().join("backup"), Duration::ZERO);
        let group = vg(1);
        assert_eq!(backups.lvs_of(&group.uuid).unwrap(), BTreeSet::new());
        backups.keep(&name("vg"), &group, TEXT.as_bytes()).unwrap();
        backups.keep(&name("vg"), &group, b"no metadata").unwrap();
        assert_eq!(backups.lvs_of(&group.uuid).unwrap(), group.lvs.into_iter().map(|lv| lv.uuid).collect());
    }

    #[test]
    fn the_group_of_a_name_is_remembered() {
        let home = tempfile::tempdir().unwrap();
        let backups = Backups::new(home.path().join("backup"), Duration::ZERO);
        let first = vg(1);
        let second = Vg { uuid: VgUuid::from_compact(&"2".repeat(32)).unwrap(), ..first.clone() };
        let last_named = |of: &str| backups.group_named(&name(of));
        assert_eq!(last_named("vg-1"), None);
        backups.keep(&name("vg-1"), &first, b"1").unwrap();
        fs::write(home.path().join("backup/notes"), "somebody's").unwrap();
        assert_eq!((last_named("vg-1"), last_named("vg")), (Some(first.uuid.clone()), None));
        // The configuration got the group's new name; then another group got the old one.
        backups.keep(&name("vg-2"), &first, b"2").unwrap();
        assert_eq!((last_named("vg-1"), last_named("vg-2")), (Some(first.uuid.clone()), Some(first.uuid)));
        backups.keep(&name("vg-1"), &Vg { seqno: 9, ..second.clone() }, b"1").unwrap();
        assert_eq!(last_named("vg-1"), Some(second.uuid));
    }
}
