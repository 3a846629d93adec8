//! A disk with faults: a device-mapper device between a disk of the lab and LVM, whose table changes while it is in use. Dropping the
//! [`Illness`] makes the disk healthy again.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Result, Trouble};
use crate::signature::device_size;
use crate::{lab, tool};

/// In bytes.
const SECTOR: u64 = 512;

/// Sector of the disk at which the device begins. At 0, LVM would find its label on the disk too, and refuse the duplicate.
const BEGIN: u64 = 2048;

/// A fault of a range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Reads and writes fail.
    Dead,
    /// Reads fail until the sector is rewritten, as with bad sectors.
    Dust,
    /// Writes fail.
    Unwritable,
}

/// A disk that can have faults.
#[derive(Debug)]
pub struct Sick {
    name: String,
    disk: PathBuf,
    sectors: u64,
}

/// A disk has a fault as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct Illness<'a> {
    sick: &'a Sick,
}

impl Sick {
    /// Creates the device over a disk, without a fault.
    ///
    /// # Errors
    /// This is not the lab, the kernel lacks a target, or it refuses the table.
    pub fn over(name: &str, disk: &Path) -> Result<Self> {
        lab::require()?;
        tool::run("modprobe", &["-a", "dm-dust", "dm-delay", "dm-flakey"])?;
        let it = Self { name: name.to_owned(), disk: disk.to_owned(), sectors: device_size(disk)? / SECTOR - BEGIN };
        it.plug()?;
        Ok(it)
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// The range of all its bytes.
    pub fn all(&self) -> Range<u64> {
        0..self.sectors * SECTOR
    }

    /// The SHA-256 of a range of bytes whose ends are multiples of 1 MiB, read from the disk beneath, without the fault.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn checksum(&self, bytes: Range<u64>) -> Result<String> {
        tool::drop_caches()?;
        let (skip, count) = ((bytes.start + BEGIN * SECTOR) >> 20, (bytes.end - bytes.start) >> 20);
        let script = format!("dd if={} bs=1M skip={skip} count={count} status=none | sha256sum", self.disk.display());
        tool::run("sh", &["-c", &script])
    }

    /// Gives a range of bytes a fault. Its ends are multiples of 4096.
    ///
    /// # Errors
    /// The kernel refuses the table.
    pub fn ill(&self, ailment: Ailment, bytes: Range<u64>) -> Result<Illness<'_>> {
        let (from, to) = (bytes.start / SECTOR, bytes.end / SECTOR);
        let illness = Illness { sick: self };
        match ailment {
            Ailment::Dead => self.around(from, to, "error")?,
            // Up for 0 seconds, down for 60, and down only for writes.
            Ailment::Unwritable => {
                self.around(from, to, &format!("flakey {} {} 0 60 1 error_writes", self.disk.display(), BEGIN + from))?;
            }
            Ailment::Dust => {
                self.load(&format!("0 {} dust {} {BEGIN} 4096\n", self.sectors, self.disk.display()))?;
                // dm-dust counts blocks from the start of the disk beneath.
                for block in (BEGIN + from) / 8..(BEGIN + to) / 8 {
                    self.message(&["addbadblock", &block.to_string()])?;
                }
                self.message(&["enable"])?;
            }
        }
        // Reads from the page cache would not see the fault.
        tool::drop_caches()?;
        Ok(illness)
    }

    /// Delays each read and write by this time.
    ///
    /// # Errors
    /// The kernel refuses the table.
    pub fn slow(&self, by: Duration) -> Result<Illness<'_>> {
        let illness = Illness { sick: self };
        // udevd reads from the device before it confirms the change, and that is slow now too.
        let more: &[&str] = if by >= Duration::from_secs(1) { &["--noudevsync"] } else { &[] };
        self.load_with(&format!("0 {} delay {} {BEGIN} {}\n", self.sectors, self.disk.display(), by.as_millis()), more)?;
        Ok(illness)
    }

    /// Suspends the device, so that reads and writes hang.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hang(&self) -> Result<Illness<'_>> {
        let illness = Illness { sick: self };
        tool::run("dmsetup", &["suspend", "--nolockfs", "--noflush", &self.name])?;
        Ok(illness)
    }

    /// Removes the device.
    ///
    /// # Errors
    /// Somebody has it open.
    pub fn unplug(&self) -> Result<()> {
        tool::run("dmsetup", &["remove", "--retry", &self.name])?;
        tool::settle()
    }

    /// Creates the device again.
    ///
    /// # Errors
    /// The kernel refuses the table.
    pub fn plug(&self) -> Result<()> {
        let uuid = format!("hack-sick-{}", self.name);
        tool::run("dmsetup", &["create", &self.name, "--uuid", &uuid, "--table", &self.linear(0, self.sectors)])?;
        tool::settle()
    }

    fn linear(&self, from: u64, to: u64) -> String {
        format!("{from} {} linear {} {}", to - from, self.disk.display(), BEGIN + from)
    }

    /// Loads a table with this target for a range of sectors, and the disk for all others.
    fn around(&self, from: u64, to: u64, target: &str) -> Result<()> {
        let mut table = format!("{from} {} {target}\n", to - from);
        for (from, to) in [(0, from), (to, self.sectors)] {
            if from < to {
                table.push_str(&self.linear(from, to));
                table.push('\n');
            }
        }
        let mut lines: Vec<&str> = table.lines().collect();
        lines.sort_by_key(|line| line.split(' ').next().and_then(|start| start.parse::<u64>().ok()));
        self.load(&format!("{}\n", lines.join("\n")))
    }

    fn load(&self, table: &str) -> Result<()> {
        self.load_with(table, &[])
    }

    fn load_with(&self, table: &str, more: &[&str]) -> Result<()> {
        let file = Path::new(lab::ROOT).join(format!("table-{}", self.name));
        fs::write(&file, table).map_err(Trouble::io("writing a table"))?;
        tool::run("dmsetup", &["load", &self.name, &file.to_string_lossy()])?;
        // Resuming suspends the device first if it is active.
        tool::run("dmsetup", &[&["resume", "--nolockfs", "--noflush"], more, &[self.name.as_str()]].concat()).map(drop)
    }

    fn message(&self, words: &[&str]) -> Result<()> {
        tool::run("dmsetup", &[&["message", &self.name, "0"], words].concat()).map(drop)
    }
}

impl Drop for Illness<'_> {
    fn drop(&mut self) {
        // A fault that stays would fail the tests that follow.
        let _ = self.sick.load(&format!("{}\n", self.sick.linear(0, self.sick.sectors)));
    }
}

impl Drop for Sick {
    fn drop(&mut self) {
        // The test has either failed, or removed everything on the device.
        let _ = self.unplug();
    }
}
