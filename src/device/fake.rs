//! A kernel for tests: dm devices and one disk, in memory. Calls that no test needs fail.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use crate::host::fake::Part;
pub(super) use crate::host::fake::device;
use crate::host::{DmAccess, DmDevice, DmTarget, LinearMap};
use crate::types::Bytes;

/// The size of the disk, in bytes.
pub(super) const DISK: Bytes = Bytes(200 << 20);

#[derive(Default)]
pub(super) struct Fake {
    pub(super) devices: Mutex<Vec<(DmDevice, Vec<DmTarget>)>>,
    /// The effects, one line each.
    pub(super) done: Mutex<Vec<String>>,
}

impl Fake {
    pub(super) fn with(devices: Vec<(DmDevice, Vec<DmTarget>)>) -> Self {
        Self { devices: Mutex::new(devices), ..Self::default() }
    }

    pub(super) fn effects(&self) -> Vec<String> {
        std::mem::take(&mut self.done.lock().unwrap())
    }

    fn note(&self, line: String) -> io::Result<()> {
        self.done.lock().unwrap().push(line);
        Ok(())
    }

    fn linear(maps: &[LinearMap]) -> Vec<DmTarget> {
        let line = |map: &LinearMap| {
            let minor = map.device.to_string_lossy().replace("/dev/dm-", "");
            DmTarget { start: 0, length: map.length, kind: "linear".into(), rest: format!("253:{minor} {}", map.offset) }
        };
        maps.iter().map(line).collect()
    }
}

impl Part for Fake {
    fn flush(&self, _: &Path) -> io::Result<()> {
        self.note("flush".into())
    }
    fn device_size(&self, _: &Path) -> io::Result<Bytes> {
        Ok(DISK)
    }
    fn zero(&self, _: &Path, offset: Bytes, length: Bytes) -> io::Result<()> {
        self.note(format!("zero {}+{}", offset.0, length.0))
    }
    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>> {
        let devices = self.devices.lock().unwrap();
        Ok(devices
            .iter()
            .map(|(device, _)| device)
            .find(|device| device.node() == path)
            .map(|device| (device.major, device.minor)))
    }
    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        Ok(self.dm_list(uuid)?.into_iter().find(|device| device.uuid == uuid))
    }
    fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>> {
        let devices = self.devices.lock().unwrap();
        Ok(devices.iter().map(|(device, _)| device.clone()).filter(|device| device.uuid.starts_with(uuid_prefix)).collect())
    }
    fn dm_table(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        let devices = self.devices.lock().unwrap();
        let table = devices.iter().find(|(device, _)| device.name == name).map(|(_, table)| table.clone());
        table.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn dm_status(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        self.dm_table(name)
    }
    fn dm_create_linear(&self, name: &str, uuid: &str, maps: &[LinearMap], _: DmAccess) -> io::Result<DmDevice> {
        let made = device(name, uuid, 99);
        self.devices.lock().unwrap().push((made.clone(), Self::linear(maps)));
        self.note(format!("create {name} {}", maps[0].length))?;
        Ok(made)
    }
    fn dm_reload_linear(&self, name: &str, maps: &[LinearMap], _: DmAccess) -> io::Result<()> {
        self.note(format!("reload {name} {}", maps[0].length))
    }
    fn dm_remove(&self, name: &str) -> io::Result<()> {
        self.devices.lock().unwrap().retain(|(device, _)| device.name != name);
        self.note(format!("remove {name}"))
    }
    fn dm_clear_inactive(&self, name: &str) -> io::Result<()> {
        self.note(format!("clear {name}"))
    }
    fn dm_resume(&self, name: &str) -> io::Result<()> {
        self.note(format!("resume {name}"))
    }
}
