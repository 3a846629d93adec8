//! The driver's own LVM configuration: a directory for `LVM_SYSTEM_DIR`, and one with links to its PVs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::types::PvUuid;

/// The settings that the configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conf {
    /// The driver's own directory, absolute, on a filesystem that a reboot clears.
    pub run_dir: PathBuf,
    /// LVM's lock directory, absolute. It must be the one of the host's own LVM, or concurrent commands are not serialised.
    pub locking_dir: PathBuf,
    /// udevd manages this host's devices and reports when it is done: LVM waits for it and leaves nodes to it. If this is wrongly
    /// false nodes get lost; if wrongly true LVM waits forever.
    pub udev: bool,
    /// LVM has made nodes itself, because no udevd answered.
    pub own_nodes: bool,
}

/// Why the configuration could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A path that cannot stand in a string and in a filter of lvm.conf.
    #[error("{path:?} cannot be used in LVM's configuration: it must be absolute and contain only letters, digits and \"/_.+-\"")]
    Path { path: PathBuf },
    #[error("cannot {action} {path:?}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl Conf {
    /// The value of `LVM_SYSTEM_DIR`.
    pub fn system_dir(&self) -> PathBuf {
        self.run_dir.join("lvm")
    }

    /// The only directory that LVM scans for PVs.
    pub fn pv_dir(&self) -> PathBuf {
        self.run_dir.join("pvs")
    }

    /// The text of lvm.conf.
    ///
    /// # Errors
    /// [`ConfError::Path`].
    pub fn text(&self) -> Result<String, ConfError> {
        let pvs = self.pv_dir();
        let pvs = plain(&pvs)?;
        let locks = plain(&self.locking_dir)?;
        let udev = u8::from(self.udev);
        // Each line has its reason; times are of small groups.
        let lines = [
            // We wrote the text; checking it costs time in every command.
            "config/checks=0".to_owned(),
            // io_destroy() waits for the kernel's RCU: 40 ms of 45 in each command. Works only from this file.
            "global/use_aio=0".to_owned(),
            // No daemons: nobody runs them here.
            "global/use_lvmpolld=0".to_owned(),
            "global/notify_dbus=0".to_owned(),
            "global/use_lvmlockd=0".to_owned(),
            // Wait for other users of LVM on this host, writers before readers.
            "global/wait_for_locks=1".to_owned(),
            "global/prioritise_write_locks=1".to_owned(),
            format!("global/locking_dir=\"{locks}\""),
            // A power cut between two commits of a thin pool leaves blocks that are counted but unused. Without the last option
            // they keep the pool from being activated; the option releases them and repairs nothing else.
            "global/thin_check_options=[\"-q\",\"--clear-needs-check-flag\",\"--auto-repair\"]".to_owned(),
            // One archive file per command grows without limit, and even reads re-parse the last backup.
            "backup/backup=0".to_owned(),
            "backup/archive=0".to_owned(),
            // Our PVs and nothing else: LVM stats everything it may scan, and a dead foreign device would hang it.
            format!("devices/scan=[\"{pvs}\"]"),
            // Group names may contain a plus, which is an operator in a regular expression.
            format!("devices/filter=[\"a|^{}/|\",\"r|.*|\"]", pvs.replace('+', "[+]")),
            // Hints are shared with the host's LVM, which sees other devices.
            "devices/hints=\"none\"".to_owned(),
            // PVs inside our LVs belong to guests.
            "devices/scan_lvs=0".to_owned(),
            // udev's view of devices lags and gave random failures.
            "devices/obtain_device_list_from_udev=0".to_owned(),
            "devices/external_device_info_source=\"none\"".to_owned(),
            // Otherwise lvremove discards before it commits, with the group locked.
            "devices/issue_discards=0".to_owned(),
            // Otherwise LVM starts dmeventd inside our container.
            "activation/monitoring=0".to_owned(),
            format!("activation/udev_sync={udev}"),
            format!("activation/udev_rules={udev}"),
            // LVM makes and removes nodes itself. With a udevd it does so only if it did before: a node it made would otherwise
            // stay forever and lead to whatever device gets its number next. Without that reason it would make nodes that udevd
            // does not remove.
            format!("activation/verify_udev_operations={}", u8::from(self.own_nodes || !self.udev)),
            // Retry a device that udev still has open.
            "activation/retry_deactivation=1".to_owned(),
            // Below 100 lvcreate refuses a thin volume as soon as its pool is that full; we watch and extend pools ourselves. No
            // error_when_full here: a full pool in error mode loses data that queueing keeps.
            "activation/thin_pool_autoextend_threshold=100".to_owned(),
            "activation/snapshot_autoextend_threshold=100".to_owned(),
            // KiB that LVM touches and locks before it suspends anything, so that it never waits for memory that only the
            // suspended device could free. It reserves 8 MiB by default, needs none of it at 5000 volumes beyond what it keeps
            // anyway, and reports if it had too little.
            "activation/reserved_memory=256".to_owned(),
            // A plain `vgchange -ay` does not activate thin snapshots.
            "activation/auto_set_activation_skip=1".to_owned(),
            // New chunks never show what they held before.
            "allocation/thin_pool_zero=1".to_owned(),
            // Errors as rows, and one format for all commands: lvcreate takes no --reportformat for anything thin.
            "log/report_command_log=1".to_owned(),
            "log/syslog=0".to_owned(),
            "report/output_format=\"json_std\"".to_owned(),
        ];
        Ok(lines.join("\n") + "\n")
    }

    /// Makes both directories, for root alone, and replaces lvm.conf atomically.
    ///
    /// # Errors
    /// See [`ConfError`].
    pub fn write(&self) -> Result<(), ConfError> {
        let text = self.text()?;
        for dir in [self.system_dir(), self.pv_dir()] {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io_error("make the directory", &dir))?;
            // It may have existed with another mode.
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).map_err(io_error("protect", &dir))?;
        }
        let new = self.system_dir().join("lvm.conf.new");
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io_error("write", &new))?;
        file.write_all(text.as_bytes()).map_err(io_error("write", &new))?;
        let path = self.system_dir().join("lvm.conf");
        fs::rename(&new, &path).map_err(io_error("put in place", &path))
    }

    /// Points the links `pvs/<pv uuid>` to these devices and removes all others. Each link is replaced atomically, so a running
    /// command sees the old one or the new one. One caller at a time.
    ///
    /// # Errors
    /// [`ConfError::Io`]; links before the failing one are in place.
    pub fn link_pvs(&self, pvs: &[(PvUuid, PathBuf)]) -> Result<(), ConfError> {
        let dir = self.pv_dir();
        // Made in a directory that LVM does not scan.
        let new = self.system_dir().join("link.new");
        for (uuid, device) in pvs {
            let link = dir.join(uuid.as_str());
            if fs::read_link(&link).is_ok_and(|there| there == *device) {
                continue;
            }
            match fs::remove_file(&new) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &new)(error)),
                _ => {}
            }
            symlink(device, &new).map_err(io_error("make the link", &new))?;
            fs::rename(&new, &link).map_err(io_error("put in place", &link))?;
        }
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let entry = entry.map_err(io_error("list", &dir))?;
            if !pvs.iter().any(|(uuid, _)| uuid.as_str().as_bytes() == entry.file_name().as_bytes()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Checks that a path can stand in a quoted string without escapes, and in a filter expression if a plus is escaped.
fn plain(path: &Path) -> Result<&str, ConfError> {
    path.to_str()
        .filter(|text| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_.+-".contains(&b)))
        .ok_or_else(|| ConfError::Path { path: path.to_owned() })
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConfError {
    let path = path.to_owned();
    move |source| ConfError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::text;

    fn conf(dir: &Path) -> Conf {
        Conf { run_dir: dir.join("run"), locking_dir: "/run/lock/lvm".into(), udev: true, own_nodes: false }
    }

    fn uuid(digit: &str) -> PvUuid {
        PvUuid::from_compact(&digit.repeat(32)).unwrap()
    }

    #[test]
    fn the_text_parses_as_lvm_configuration_and_names_no_key_twice() {
        let text = conf(Path::new("/x")).text().unwrap();
        let tree = text::parse(text.as_bytes()).unwrap();
        assert_eq!(tree.value("global/use_aio"), Some(&text::Value::Int(0)));
        assert!(text.contains("devices/filter=[\"a|^/x/run/pvs/|\",\"r|.*|\"]"));
        let plus = conf(Path::new("/x+y")).text().unwrap();
        assert!(plus.contains("devices/filter=[\"a|^/x[+]y/run/pvs/|\"") && plus.contains("devices/scan=[\"/x+y/run/pvs\"]"));
        assert!(text.contains("udev_sync=1") && text.contains("udev_rules=1"));
        assert!(!text.contains("error_when_full"));
        assert!(text.contains("verify_udev_operations=0"));
        let once_without = Conf { own_nodes: true, ..conf(Path::new("/x")) }.text().unwrap();
        assert!(once_without.contains("udev_sync=1") && once_without.contains("verify_udev_operations=1"));
        let without = Conf { udev: false, ..conf(Path::new("/x")) }.text().unwrap();
        assert!(without.contains("udev_sync=0") && without.contains("verify_udev_operations=1"));
    }

    #[test]
    fn a_path_that_would_change_the_filter_is_refused() {
        for odd in ["relative", "/a|b", "/a\"b", "/a b", "/a*"] {
            let odd = Conf { run_dir: odd.into(), ..conf(Path::new("/x")) };
            assert!(matches!(odd.text(), Err(ConfError::Path { .. })));
        }
    }

    #[test]
    fn writing_twice_leaves_private_directories_and_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let conf = conf(dir.path());
        conf.write().unwrap();
        fs::set_permissions(conf.pv_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        conf.write().unwrap();
        for dir in [conf.system_dir(), conf.pv_dir()] {
            assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let names: Vec<_> = fs::read_dir(conf.system_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["lvm.conf"]);
    }

    #[test]
    fn links_follow_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let conf = conf(dir.path());
        conf.write().unwrap();
        fs::write(conf.system_dir().join("link.new"), "left by a crash").unwrap();
        conf.link_pvs(&[(uuid("a"), "/dev/x".into()), (uuid("b"), "/dev/y".into())]).unwrap();
        conf.link_pvs(&[(uuid("b"), "/dev/z".into()), (uuid("c"), "/dev/x".into())]).unwrap();
        let link = |id: &str| fs::read_link(conf.pv_dir().join(uuid(id).as_str())).ok();
        assert_eq!((link("a"), link("b"), link("c")), (None, Some("/dev/z".into()), Some("/dev/x".into())));
        let broken = Conf { run_dir: dir.path().join("none"), ..conf.clone() };
        assert!(matches!(broken.link_pvs(&[]), Err(ConfError::Io { .. })));
    }
}
