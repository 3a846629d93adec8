//! Kernel calls on the simulated machine. Each is an effect with the same name as the real one.

use std::io;
use std::path::{Path, PathBuf};

use crate::host::fake::Part;
use crate::host::{DmAccess, DmDevice, DmTarget, FsStats, LinearMap, MountEntry, MountFlag, NewMount, effect};
use crate::mount::fake::Mounts;
use crate::types::{Bytes, SECTOR};

use super::content::{Cell, HEAD, Super};
use super::host::{DM, Host, Line, On, State, Table};

fn errno<T>(errno: nix::Error) -> io::Result<T> {
    Err(errno.into())
}

impl State {
    fn at(&self, path: &Path) -> io::Result<(u32, u32)> {
        let number = self.number(&path.to_string_lossy()).map_or_else(|| errno(nix::Error::ENXIO), Ok)?;
        if self.disks.iter().any(|disk| disk.away && Path::new(&disk.path) == path) {
            return errno(nix::Error::EIO);
        }
        Ok(number)
    }

    /// A device for I/O, which hangs if the device is suspended.
    fn open(&mut self, path: &Path) -> io::Result<(u32, u32)> {
        let number = self.at(path)?;
        if number.0 == DM && self.dm[&number.1].suspended {
            self.wrong.push(format!("I/O to {}, which is suspended", path.display()));
        }
        Ok(number)
    }

    fn named(&self, name: &str) -> io::Result<u32> {
        let found = self.dm.iter().find(|(_, dm)| dm.name == name);
        found.map_or_else(|| errno(nix::Error::ENXIO), |(minor, _)| Ok(*minor))
    }

    fn dm_device(&self, minor: u32, mounts: &[MountEntry]) -> DmDevice {
        let dm = &self.dm[&minor];
        DmDevice {
            name: dm.name.clone(),
            uuid: dm.uuid.clone(),
            major: DM,
            minor,
            open_count: u32::try_from(self.openers(minor, mounts)).unwrap(),
            suspended: dm.suspended,
            has_live_table: dm.live.is_some(),
            has_inactive_table: dm.inactive.is_some(),
        }
    }

    fn linear(&self, maps: &[LinearMap], access: DmAccess) -> io::Result<Table> {
        let line = |map: &LinearMap| {
            let device = self.at(&map.device)?;
            if (map.offset + map.length) * SECTOR > self.size(device) {
                return errno(nix::Error::EINVAL);
            }
            Ok(Line { sectors: map.length, on: On::Linear { device, offset: map.offset } })
        };
        Ok(Table { lines: maps.iter().map(line).collect::<io::Result<_>>()?, read_only: access == DmAccess::ReadOnly })
    }
}

impl Host {
    fn load(&self, name: &str, table: Table) -> io::Result<()> {
        effect("dm.load", &name, || {
            let mut state = self.state();
            let minor = state.named(name)?;
            state.dm.entry(minor).and_modify(|dm| dm.inactive = Some(table));
            Ok::<_, io::Error>(())
        })
    }
}

/// The first block of an ext4 filesystem, as the kernel and the driver read it.
fn superblock(head: Super) -> Vec<u8> {
    let mut block = vec![0; usize::try_from(HEAD).unwrap()];
    let blocks = u32::try_from(head.size / 4096).unwrap().to_le_bytes();
    let fields: [(usize, &[u8]); 7] = [
        (0x04, &blocks),
        (0x18, &[2]),
        (0x34, &[u8::from(head.mounted)]),
        (0x38, &[0x53, 0xef]),
        (0x3a, &[1]),
        (0x5c, &[4]),
        (0x68, &head.uuid),
    ];
    for (at, bytes) in fields {
        block[1024 + at..1024 + at + bytes.len()].copy_from_slice(bytes);
    }
    block
}

impl Part for Host {
    fn read_at(&self, device: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut state = self.state();
        let number = state.open(device)?;
        if let Some(disk) = state.disks.iter().find(|disk| Path::new(&disk.path) == device) {
            return disk.read(offset, length).map_or_else(|| errno(nix::Error::EIO), Ok);
        }
        let mut bytes = match state.is_zero(number, &(offset..offset + length as u64)) {
            None => return errno(nix::Error::EIO),
            Some(zero) => vec![u8::from(!zero); length],
        };
        if let (0, Some(head)) = (offset, state.head(number)) {
            let block = superblock(head);
            let read = block.len().min(length);
            bytes[..read].copy_from_slice(&block[..read]);
        }
        Ok(bytes)
    }

    fn flush(&self, device: &Path) -> io::Result<()> {
        effect("flush", &device.display(), || {
            let mut state = self.state();
            let number = state.open(device)?;
            let size = state.size(number);
            let pieces = state.pieces(number, &(0..size)).unwrap_or_default();
            state.flush(&pieces);
            Ok(())
        })
    }

    fn device_size(&self, device: &Path) -> io::Result<Bytes> {
        let state = self.state();
        let number = state.at(device)?;
        Ok(Bytes(state.size(number)))
    }

    fn zero(&self, device: &Path, offset: Bytes, length: Bytes) -> io::Result<()> {
        effect("zero", &format_args!("{} at {} for {}", device.display(), offset.0, length.0), || {
            let mut state = self.state();
            let number = state.open(device)?;
            let half = offset.0 + length.0 / 2;
            for at in [offset.0..half, half..offset.0 + length.0] {
                let Some(pieces) = state.pieces(number, &at) else { return errno(nix::Error::EINVAL) };
                state.write(&pieces, Cell::Zero);
                self.doom.part();
            }
            Ok(())
        })
    }

    fn pv_candidates(&self) -> io::Result<Vec<PathBuf>> {
        Ok(self.state().disks.iter().filter(|disk| !disk.away).map(|disk| PathBuf::from(&disk.path)).collect())
    }

    fn device_number(&self, path: &Path) -> io::Result<Option<(u32, u32)>> {
        Ok(self.state().number(&path.to_string_lossy()))
    }

    fn dm_find(&self, uuid: &str) -> io::Result<Option<DmDevice>> {
        Ok(self.dm_list(uuid)?.into_iter().find(|device| device.uuid == uuid))
    }

    fn dm_list(&self, uuid_prefix: &str) -> io::Result<Vec<DmDevice>> {
        let (mounts, state) = (self.entries(), self.state());
        let meant = state.dm.iter().filter(|(_, dm)| dm.uuid.starts_with(uuid_prefix));
        Ok(meant.map(|(minor, _)| state.dm_device(*minor, &mounts)).collect())
    }

    fn dm_table(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        let state = self.state();
        let dm = &state.dm[&state.named(name)?];
        let mut start = 0;
        let line = |line: &Line| {
            let (kind, rest) = match &line.on {
                On::Linear { device: (major, minor), offset } => ("linear", format!("{major}:{minor} {offset}")),
                On::Thin(lv) => ("thin", lv.to_string()),
                On::Pool => ("thin-pool", String::new()),
            };
            start += line.sectors;
            DmTarget { start: start - line.sectors, length: line.sectors, kind: kind.to_owned(), rest }
        };
        Ok(dm.live.iter().flat_map(|table| &table.lines).map(line).collect())
    }

    fn dm_status(&self, name: &str) -> io::Result<Vec<DmTarget>> {
        let mut targets = Part::dm_table(self, name)?;
        let used = if self.state().pool_full { 100 } else { 1 };
        let counted = self.state().counted;
        for target in targets.iter_mut().filter(|target| target.kind == "thin-pool") {
            target.rest = format!("{counted} 1/100 {used}/100 - rw no_discard_passdown queue_if_no_space - 1024");
        }
        Ok(targets)
    }

    fn dm_create_linear(&self, name: &str, uuid: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<DmDevice> {
        let table = self.state().linear(maps, access)?;
        effect("dm.create", &name, || self.state().add(name, uuid).map_or_else(|| errno(nix::Error::EBUSY), Ok))?;
        self.load(name, table)?;
        Part::dm_resume(self, name)?;
        let (mounts, state) = (self.entries(), self.state());
        Ok(state.dm_device(state.named(name)?, &mounts))
    }

    fn dm_reload_linear(&self, name: &str, maps: &[LinearMap], access: DmAccess) -> io::Result<()> {
        let table = self.state().linear(maps, access)?;
        self.load(name, table)?;
        Part::dm_resume(self, name)
    }

    fn dm_remove(&self, name: &str) -> io::Result<()> {
        effect("dm.remove", &name, || {
            let mounts = self.entries();
            let mut state = self.state();
            let minor = state.named(name)?;
            if state.openers(minor, &mounts) > 0 {
                return errno(nix::Error::EBUSY);
            }
            state.dm.remove(&minor);
            self.mounts.change(|entries| {
                let node = PathBuf::from(format!("/dm-{minor}"));
                for entry in entries.iter_mut().filter(|entry| entry.root == node) {
                    entry.root = format!("/dm-{minor}//deleted").into();
                }
            });
            Ok(())
        })
    }

    fn dm_clear_inactive(&self, name: &str) -> io::Result<()> {
        effect("dm.clear", &name, || {
            let mut state = self.state();
            let minor = state.named(name)?;
            state.dm.entry(minor).and_modify(|dm| dm.inactive = None);
            Ok(())
        })
    }

    fn dm_message(&self, name: &str, message: &str) -> io::Result<()> {
        effect("dm.message", &format_args!("{name} {message}"), || {
            let device = message.strip_prefix("delete ").and_then(|device| device.parse().ok());
            let was_there = device.is_some_and(|device| self.state().unmake(device));
            if was_there { Ok(()) } else { errno(nix::Error::ENODATA) }
        })
    }

    fn dm_resume(&self, name: &str) -> io::Result<()> {
        effect("dm.resume", &name, || {
            let mut state = self.state();
            let minor = state.named(name)?;
            state.dm.entry(minor).and_modify(|dm| {
                dm.suspended = false;
                dm.live = dm.inactive.take().or(dm.live.take());
            });
            Ok(())
        })
    }

    fn mounts(&self) -> io::Result<Vec<MountEntry>> {
        Ok(self.entries())
    }

    fn mount(&self, mount: &NewMount) -> io::Result<()> {
        match mount {
            NewMount::Filesystem { device, target, fstype, flags, .. } => {
                effect("mount", &format_args!("{} ({fstype}) at {}", device.display(), target.display()), || {
                    let mut state = self.state();
                    let number = state.open(device)?;
                    let Some(head) = state.head(number) else { return errno(nix::Error::EINVAL) };
                    if !head.whole {
                        state.wrong.push(format!("{} is mounted, but its mkfs did not finish", device.display()));
                    }
                    let read_only = flags.contains(&MountFlag::ReadOnly);
                    if !read_only {
                        state.put_head(number, Super { mounted: true, ..head });
                    }
                    let lv = state.dm.get(&number.1).and_then(|dm| dm.lv());
                    if let Some(truth) = lv.and_then(|lv| state.truth.get_mut(&lv)) {
                        truth.filesystem = Some(head.serial);
                    }
                    self.mounts.push(number, "/", target, if read_only { "ro,relatime" } else { "rw,relatime" }, fstype);
                    Ok(())
                })
            }
            NewMount::Bind { source, target } => {
                effect("mount", &format_args!("{} at {}", source.display(), target.display()), || {
                    let table = crate::mount::Table::read(self).map_err(io::Error::other)?;
                    let Some(identity) = table.identity_of(source) else { return errno(nix::Error::ENOENT) };
                    // A bind of a mount point is as writable as the mount there.
                    let (fstype, options) = match table.at(source) {
                        Some(there) => (there.fstype.clone(), there.options.join(",")),
                        None => ("devtmpfs".to_owned(), "rw,relatime".to_owned()),
                    };
                    let root = identity.root.to_string_lossy();
                    self.mounts.push((identity.major, identity.minor), &root, target, &options, &fstype);
                    Ok(())
                })
            }
        }
    }

    fn remount_read_only(&self, target: &Path) -> io::Result<()> {
        effect("remount", &format_args!("{} (read-only)", target.display()), || {
            self.mounts.change(|entries| match entries.iter_mut().rfind(|entry| entry.target == target) {
                Some(entry) => {
                    entry.options[0] = "ro".to_owned();
                    Ok(())
                }
                None => errno(nix::Error::EINVAL),
            })
        })
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        effect("unmount", &target.display(), || <Mounts as Part>::unmount(&self.mounts, target))
    }

    fn stats(&self, _: &Path) -> io::Result<FsStats> {
        Ok(FsStats { total: Bytes(1), available: Bytes(1), used: Bytes(0), inodes: 1, inodes_free: 1 })
    }
}
