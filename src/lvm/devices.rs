//! Which block devices may be read as PVs: those that the configuration names, and on a first look those that the host's own LVM
//! uses.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::{DeviceIdentity, Kernel};
use crate::types::PvUuid;

/// The host LVM's list of the devices it uses (lvmdevices(8)), the default on RHEL 9 and its relatives: the path in a container,
/// and the path on the host.
const DEVICES_FILES: [&str; 2] = ["/host/etc/lvm/devices/system.devices", "/etc/lvm/devices/system.devices"];

/// Restricts the devices.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    /// Only these devices, by paths that may be links; `None` allows all.
    pub allowed: Option<Vec<PathBuf>>,
    /// Paths of the host LVM's devices file. On a first look the first one that exists counts.
    pub files: Vec<PathBuf>,
}

impl Devices {
    /// The devices of this machine that the configuration allows, with the host's devices file.
    pub fn of_host(allowed: Option<Vec<PathBuf>>) -> Self {
        Self { allowed, files: DEVICES_FILES.map(PathBuf::from).into() }
    }

    /// The devices that may be PVs: those of the kernel that are allowed.
    ///
    /// # Errors
    /// The kernel cannot list them.
    pub(super) fn candidates(&self, kernel: &dyn Kernel) -> io::Result<Vec<PathBuf>> {
        let mut candidates = kernel.pv_candidates()?;
        if let Some(allowed) = &self.allowed {
            // Compare numbers: the same device has many names.
            let numbers: Vec<_> = allowed.iter().filter_map(|path| kernel.device_number(path).ok().flatten()).collect();
            candidates
                .retain(|device| kernel.device_number(device).ok().flatten().is_some_and(|number| numbers.contains(&number)));
        }
        Ok(candidates)
    }

    /// The devices that the host's LVM uses; `None` if it uses all.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn listed(&self) -> io::Result<Option<Listed>> {
        for path in &self.files {
            match fs::read_to_string(path) {
                Ok(text) => return Ok(Some(Listed::parse(&text))),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
        Ok(None)
    }
}

/// The entries of a devices file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Listed(Vec<Entry>);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: String,
    name: String,
    pv: String,
}

impl Listed {
    fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let field = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned);
            Some(Entry { kind: field("IDTYPE=")?, name: field("IDNAME=")?, pv: field("PVID=").unwrap_or_default() })
        };
        Self(text.lines().filter(|line| line.starts_with("IDTYPE=")).filter_map(entry).collect())
    }

    /// Whether the file lists this device for this PV. An entry with an unknown kind of id matches by its PV alone.
    pub(super) fn has(&self, pv: &PvUuid, device: &Path, identity: &DeviceIdentity) -> bool {
        let named = |kind: &str, name: &str| {
            identity.names.iter().any(|own| {
                let own = own.strip_prefix(kind).and_then(|own| own.strip_prefix(':'));
                own.is_some_and(|own| own.split(" part ").next().is_some_and(|own| own.replace(' ', "_") == name || own == name))
            })
        };
        self.0.iter().any(|entry| {
            let is_device = match entry.kind.as_str() {
                "sys_wwid" => named("wwid", &entry.name),
                "sys_serial" => named("serial", &entry.name),
                "mpath_uuid" | "crypt_uuid" | "lvmlv_uuid" => named("dm", &entry.name),
                "devname" => Path::new(&entry.name) == device,
                _ => true,
            };
            is_device && entry.pv == pv.compact()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pv(letter: &str) -> PvUuid {
        PvUuid::from_compact(&letter.repeat(32)).unwrap()
    }

    #[test]
    fn a_device_is_listed_by_its_pv_and_its_id() {
        let text = format!(
            "# LVM uses devices listed in this file.\nPRODUCT_UUID=x\nVERSION=1.1.2\n\
             IDTYPE=sys_wwid IDNAME=naa.5000 DEVNAME=/dev/sda2 PVID={} PART=2\n\
             IDTYPE=devname IDNAME=/dev/vdb DEVNAME=/dev/vdb PVID={}\nIDTYPE=loop_file IDNAME=/x DEVNAME=/dev/loop0 PVID={}\n",
            "a".repeat(32),
            "b".repeat(32),
            "c".repeat(32)
        );
        let listed = Listed::parse(&text);
        let identity = |name: &str| DeviceIdentity { names: vec![name.to_owned()], instance: String::new() };
        let has = |letter: &str, device: &str, name: &str| listed.has(&pv(letter), Path::new(device), &identity(name));
        assert!(has("a", "/dev/sdz2", "wwid:naa.5000 part 2") && !has("a", "/dev/sda2", "wwid:naa.6000 part 2"));
        assert!(has("b", "/dev/vdb", "") && !has("b", "/dev/vdc", "") && !has("x", "/dev/vdb", ""));
        assert!(has("c", "/dev/loop7", ""));
    }

    #[test]
    fn without_the_file_all_devices_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let devices = |path: PathBuf| Devices { allowed: None, files: vec!["/nonexistent/file".into(), path] };
        assert_eq!(devices(dir.path().join("none")).listed().unwrap(), None);
        assert_eq!(Devices::default().listed().unwrap(), None);
        assert!(devices(dir.path().to_owned()).listed().is_err());
        std::fs::write(dir.path().join("file"), "VERSION=1.1.1\n").unwrap();
        assert_eq!(devices(dir.path().join("file")).listed().unwrap(), Some(Listed(vec![])));
    }
}
