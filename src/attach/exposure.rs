//! Records of what this node has shown of volumes to their users. They outlive detaching.
//!
//! The tags of a volume say whether it may be formatted or zeroed. If somebody restores an older copy of the metadata, they say "blank"
//! or "formatting" for a volume with a user's data. The driver writes the record before it first shows a volume, and the record
//! contradicts such tags.
//!
//! A record also says that mkfs has begun. Until then a volume that is to hold a filesystem is empty and can be copied.
//!
//! Each record is one empty file, `<state dir>/exposed/<vg uuid>.<lv uuid>.<life>.<bytes shown>`, since a name exists as a whole or not at
//! all. If a record is lost, the tags alone decide.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::host::files;
use crate::types::{Bytes, Life, LvUuid, VgUuid};

const DIRECTORY: &str = "exposed";

/// How a volume was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// The volume's life then: [`Life::Raw`] or [`Life::Formatted`]. [`Life::Formatting`] once mkfs has begun, before any user sees it.
    pub life: Life,
    /// For a raw linear volume, how much of it a user has seen and may have written to; else 0.
    pub shown: Bytes,
}

impl Exposure {
    /// Whether tags with these values are older than the volume's data, so that nothing may be formatted or zeroed because of them.
    pub fn contradicts(self, life: Life, zeroed: Bytes) -> bool {
        match life {
            _ if self.life.is_unused() => false,
            Life::Blank | Life::Formatting(_) => true,
            Life::Raw => self.life != Life::Raw || zeroed < self.shown,
            Life::Formatted(_) => false,
        }
    }

    fn file_name(self, vg: &VgUuid, lv: &LvUuid) -> String {
        format!("{vg}.{lv}.{}.{}", self.life, self.shown.0)
    }

    fn parse(file_name: &str) -> Option<(VgUuid, LvUuid, Self)> {
        let mut parts = file_name.splitn(4, '.');
        let (vg, lv, life, shown) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let life = Life::parse(life).filter(|life| *life != Life::Blank)?;
        Some((VgUuid::new(vg)?, LvUuid::new(lv)?, Self { life, shown: Bytes(shown.parse().ok()?) }))
    }
}

/// Why a record was not written.
#[derive(Debug, thiserror::Error)]
#[error("recording in {path} what users see of a volume")]
pub struct ExposureError {
    path: PathBuf,
    source: io::Error,
}

/// The records, held in memory and written through.
pub struct Exposures {
    dir: PathBuf,
    records: Mutex<BTreeMap<LvUuid, (VgUuid, Exposure)>>,
}

impl Exposures {
    /// Reads the records of a state directory, and makes their directory in it. If that cannot be made, there are no records, and until
    /// one can be written no volume is shown that was not shown before.
    ///
    /// # Errors
    /// The records cannot be read, which does not mean that there are none.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join(DIRECTORY);
        if let Err(error) = files::make_directories(&dir) {
            tracing::warn!(dir = %dir.display(), %error, "the directory for exposure records cannot be made; no new volume is shown");
            return Ok(Self { dir, records: Mutex::default() });
        }
        Ok(Self { records: Mutex::new(read(&dir)?), dir })
    }

    /// The records of a state directory as they are now, for a process that writes none; empty where there is no such directory.
    ///
    /// # Errors
    /// The records cannot be read.
    pub fn look(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join(DIRECTORY);
        match read(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::none()),
            records => Ok(Self { records: Mutex::new(records?), dir }),
        }
    }

    /// Whether a state directory has records.
    pub fn are_in(state_dir: &Path) -> bool {
        let records = |mut files: std::fs::ReadDir| {
            files.any(|file| file.is_ok_and(|file| file.file_name().to_str().and_then(Exposure::parse).is_some()))
        };
        std::fs::read_dir(state_dir.join(DIRECTORY)).is_ok_and(records)
    }

    /// No records, for a process that shows no volumes.
    pub fn none() -> Self {
        Self { dir: PathBuf::new(), records: Mutex::default() }
    }

    pub fn of(&self, lv: &LvUuid) -> Option<Exposure> {
        self.lock().get(lv).map(|(_, exposure)| *exposure)
    }

    /// The file with the record of a volume.
    pub fn path_of(&self, lv: &LvUuid) -> Option<PathBuf> {
        self.lock().get(lv).map(|(vg, exposure)| self.dir.join(exposure.file_name(vg, lv)))
    }

    /// The volumes with a record.
    pub fn all(&self) -> Vec<LvUuid> {
        self.lock().keys().cloned().collect()
    }

    /// The volumes of a group with a record.
    pub fn of_group(&self, vg: &VgUuid) -> Vec<LvUuid> {
        self.lock().iter().filter(|(_, (of, _))| of == vg).map(|(lv, _)| lv.clone()).collect()
    }

    /// Records that a volume is about to be shown. A record with more bytes shown stays.
    ///
    /// # Errors
    /// The record cannot be written; the volume must not be shown then.
    pub fn record(&self, vg: &VgUuid, lv: &LvUuid, next: Exposure) -> Result<(), ExposureError> {
        let mut records = self.lock();
        let before = records.get(lv).map(|(_, exposure)| *exposure);
        if before.is_some_and(|before| before.life == next.life && before.shown >= next.shown) {
            return Ok(());
        }
        self.put(&mut records, vg, lv, before, next)
    }

    /// Lowers the recorded bytes to `size`, for a volume that somebody shrank, before it grows again onto other extents.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn lower(&self, vg: &VgUuid, lv: &LvUuid, size: Bytes) -> Result<(), ExposureError> {
        let mut records = self.lock();
        match records.get(lv).map(|(_, exposure)| *exposure) {
            Some(before) if before.shown > size => {
                self.put(&mut records, vg, lv, Some(before), Exposure { shown: size, ..before })
            }
            _ => Ok(()),
        }
    }

    /// Removes the record of a volume that is gone for good.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self, lv: &LvUuid) -> Result<(), ExposureError> {
        let mut records = self.lock();
        let Some((vg, exposure)) = records.get(lv) else { return Ok(()) };
        let path = self.dir.join(exposure.file_name(vg, lv));
        match files::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(ExposureError { path, source }),
            _ => {
                records.remove(lv);
                Ok(())
            }
        }
    }

    fn put(
        &self,
        records: &mut BTreeMap<LvUuid, (VgUuid, Exposure)>,
        vg: &VgUuid,
        lv: &LvUuid,
        before: Option<Exposure>,
        next: Exposure,
    ) -> Result<(), ExposureError> {
        let path = self.dir.join(next.file_name(vg, lv));
        let written = match before {
            // A rename, so that a record exists at every moment.
            Some(before) => match files::rename(&self.dir.join(before.file_name(vg, lv)), &path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => files::make_name(&path),
                other => other,
            },
            // The directory may be missing, if it could not be made at the start.
            None => files::make_directories(&self.dir).and_then(|()| files::make_name(&path)),
        };
        written.map_err(|source| ExposureError { path, source })?;
        records.insert(lv.clone(), (vg.clone(), next));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LvUuid, (VgUuid, Exposure)>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(dir: &Path) -> io::Result<BTreeMap<LvUuid, (VgUuid, Exposure)>> {
    let mut records: BTreeMap<LvUuid, (VgUuid, Exposure)> = BTreeMap::new();
    for file in std::fs::read_dir(dir)? {
        let Some((vg, lv, exposure)) = file?.file_name().to_str().and_then(Exposure::parse) else { continue };
        // A volume has two records only if somebody copied files, or went back to a version that does not know one of them. The one
        // that protects more counts.
        let protects = |exposure: &Exposure| (!exposure.life.is_unused(), exposure.shown);
        if records.get(&lv).is_none_or(|(_, other)| protects(other) < protects(&exposure)) {
            records.insert(lv, (vg, exposure));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::FsKind;

    fn ids(number: usize) -> (VgUuid, LvUuid) {
        (VgUuid::from_compact(&"V".repeat(32)).unwrap(), LvUuid::from_compact(&format!("{number:032}")).unwrap())
    }

    fn raw(shown: u64) -> Exposure {
        Exposure { life: Life::Raw, shown: Bytes(shown) }
    }

    fn mkfs_began() -> Exposure {
        Exposure { life: Life::Formatting(FsKind::Ext4), shown: Bytes(0) }
    }

    fn ext4() -> Exposure {
        Exposure { life: Life::Formatted(FsKind::Ext4), shown: Bytes(0) }
    }

    #[test]
    fn records_survive_a_restart_and_only_grow_until_they_are_lowered() {
        let state = tempfile::tempdir().unwrap();
        let (vg, lv) = ids(1);
        let other = ids(2).1;
        let records = Exposures::open(state.path()).unwrap();
        assert_eq!(records.of(&lv), None);
        for (next, then) in [(raw(8), raw(8)), (raw(4), raw(8)), (raw(16), raw(16))] {
            records.record(&vg, &lv, next).unwrap();
            assert_eq!(records.of(&lv), Some(then));
            assert_eq!(Exposures::open(state.path()).unwrap().of(&lv), Some(then));
        }
        for next in [mkfs_began(), ext4()] {
            records.record(&vg, &other, next).unwrap();
            assert_eq!(Exposures::open(state.path()).unwrap().of(&other), Some(next));
        }
        records.lower(&vg, &lv, Bytes(32)).unwrap();
        assert_eq!(records.of(&lv), Some(raw(16)));
        records.lower(&vg, &lv, Bytes(12)).unwrap();
        let again = Exposures::open(state.path()).unwrap();
        assert_eq!((again.of(&lv), again.of(&other)), (Some(raw(12)), Some(ext4())));
        assert!(again.path_of(&lv).unwrap().is_file());
        assert_eq!(again.of_group(&vg), [lv.clone(), other.clone()]);
        again.forget(&lv).unwrap();
        again.forget(&lv).unwrap();
        assert_eq!(Exposures::open(state.path()).unwrap().of_group(&vg), [other]);
        assert_eq!(std::fs::read_dir(state.path().join("exposed")).unwrap().count(), 1);
    }

    #[test]
    fn a_removed_record_is_written_again_and_other_files_are_ignored() {
        let state = tempfile::tempdir().unwrap();
        let (vg, lv) = ids(1);
        let records = Exposures::open(state.path()).unwrap();
        records.record(&vg, &lv, raw(8)).unwrap();
        std::fs::remove_file(records.path_of(&lv).unwrap()).unwrap();
        records.record(&vg, &lv, raw(16)).unwrap();
        let dir = state.path().join("exposed");
        let strange = [".blank.0", ".raw", ".raw.x", ""].map(|end| format!("{vg}.{lv}{end}"));
        for strange in strange.iter().map(String::as_str).chain(["notes", "x.y.raw.1"]) {
            std::fs::write(dir.join(strange), "").unwrap();
        }
        let again = Exposures::open(state.path()).unwrap();
        assert_eq!((again.of(&lv), again.of_group(&vg).len()), (Some(raw(16)), 1));
    }

    #[test]
    fn nothing_is_recorded_until_the_directory_can_be_made() {
        let state = tempfile::tempdir().unwrap();
        let (vg, lv) = ids(1);
        let in_the_way = state.path().join("exposed");
        std::fs::write(&in_the_way, "").unwrap();
        let records = Exposures::open(state.path()).unwrap();
        records.record(&vg, &lv, raw(8)).unwrap_err();
        assert_eq!(records.of(&lv), None);
        std::fs::remove_file(&in_the_way).unwrap();
        records.record(&vg, &lv, raw(8)).unwrap();
        assert_eq!(Exposures::open(state.path()).unwrap().of(&lv), Some(raw(8)));
    }

    #[test]
    fn of_two_records_the_one_of_use_counts_and_a_look_writes_nothing() {
        let state = tempfile::tempdir().unwrap();
        let (vg, lv) = ids(1);
        assert_eq!(Exposures::look(state.path()).unwrap().of(&lv), None);
        assert!(!state.path().join("exposed").exists());
        drop(Exposures::open(state.path()).unwrap());
        for record in [mkfs_began(), ext4()] {
            std::fs::write(state.path().join("exposed").join(record.file_name(&vg, &lv)), "").unwrap();
        }
        for records in [Exposures::open(state.path()).unwrap(), Exposures::look(state.path()).unwrap()] {
            assert_eq!(records.of(&lv), Some(ext4()));
        }
    }

    #[test]
    fn older_tags_are_contradicted_and_present_ones_are_not() {
        let formatting = Life::Formatting(FsKind::Ext4);
        let formatted = Life::Formatted(FsKind::Ext4);
        for (record, life, zeroed, contradicts) in [
            (mkfs_began(), Life::Blank, 0, false),
            (mkfs_began(), formatting, 0, false),
            (mkfs_began(), Life::Raw, 64, false),
            (ext4(), Life::Blank, 0, true),
            (ext4(), formatting, 0, true),
            (ext4(), formatted, 0, false),
            (ext4(), Life::Raw, 64, true),
            (raw(16), Life::Blank, 16, true),
            (raw(16), Life::Raw, 16, false),
            (raw(16), Life::Raw, 32, false),
            (raw(16), Life::Raw, 15, true),
            (raw(0), Life::Raw, 0, false),
        ] {
            assert_eq!(record.contradicts(life, Bytes(zeroed)), contradicts, "{record:?} {life} {zeroed}");
        }
    }
}
