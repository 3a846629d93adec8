//! A disk that can fall ill: a device-mapper device between a disk of the lab and what LVM makes of it, whose table is changed
//! beneath whoever uses it. What is ill gets well when the [`Illness`] is dropped.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Result, Trouble};
use crate::signature::device_size;
use crate::{lab, tool};

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// Sector of the disk at which the device begins: were it 0, LVM would find its label on the disk too, and take neither.
const BEGIN: u64 = 2048;

/// What is wrong with a range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// Neither reads nor writes.
    Dead,
    /// Reads fail until the sector is written again, as on a disk with bad sectors.
    Dust,
    /// Reads, and fails to write.
    Unwritable,
}

/// A disk that can fall ill.
#[derive(Debug)]
pub struct Sick {
    name: String,
    disk: PathBuf,
    sectors: u64,
}

/// A disk is ill as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct Illness<'a> {
    sick: &'a Sick,
}

impl Sick {
    /// Lays a device over a disk, healthy at first.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn over(name: &str, disk: &Path) -> Result<Self> {
        lab::require()?;
        tool::run("modprobe", &["-a", "dm-dust", "dm-delay", "dm-flakey"])?;
        let it = Self { name: name.to_owned(), disk: disk.to_owned(), sectors: device_size(disk)? / SECTOR - BEGIN };
        it.plug()?;
        Ok(it)
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// All of its bytes.
    pub fn all(&self) -> Range<u64> {
        0..self.sectors * SECTOR
    }

    /// The SHA-256 of a range of bytes, whose ends are whole MiB, read past the illness.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn checksum(&self, bytes: Range<u64>) -> Result<String> {
        tool::drop_caches()?;
        let (skip, count) = ((bytes.start + BEGIN * SECTOR) >> 20, (bytes.end - bytes.start) >> 20);
        let script = format!("dd if={} bs=1M skip={skip} count={count} status=none | sha256sum", self.disk.display());
        tool::run("sh", &["-c", &script])
    }

    /// Makes a range of bytes ill; its ends are multiples of 4096.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ill(&self, ailment: Ailment, bytes: Range<u64>) -> Result<Illness<'_>> {
        let (from, to) = (bytes.start / SECTOR, bytes.end / SECTOR);
        let illness = Illness { sick: self };
        match ailment {
            Ailment::Dead => self.around(from, to, "error")?,
            // A device that is down all the time, for writes alone.
            Ailment::Unwritable => {
                self.around(from, to, &format!("flakey {} {} 0 60 1 error_writes", self.disk.display(), BEGIN + from))?;
            }
            Ailment::Dust => {
                self.load(&format!("0 {} dust {} {BEGIN} 4096\n", self.sectors, self.disk.display()))?;
                // They are counted on the disk beneath.
                for block in (BEGIN + from) / 8..(BEGIN + to) / 8 {
                    self.message(&["addbadblock", &block.to_string()])?;
                }
                self.message(&["enable"])?;
            }
        }
        // What the page cache holds would be read as if nothing had happened.
        tool::drop_caches()?;
        Ok(illness)
    }

    /// Lets each read and each write take so much longer.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn slow(&self, by: Duration) -> Result<Illness<'_>> {
        let illness = Illness { sick: self };
        // udevd looks into it, which takes as long as anything else now.
        let more: &[&str] = if by >= Duration::from_secs(1) { &["--noudevsync"] } else { &[] };
        self.load_with(&format!("0 {} delay {} {BEGIN} {}\n", self.sectors, self.disk.display(), by.as_millis()), more)?;
        Ok(illness)
    }

    /// Lets nothing end that is read or written.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hang(&self) -> Result<Illness<'_>> {
        let illness = Illness { sick: self };
        tool::run("dmsetup", &["suspend", "--nolockfs", "--noflush", &self.name])?;
        Ok(illness)
    }

    /// Takes the device away, which nobody may have open.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unplug(&self) -> Result<()> {
        tool::run("dmsetup", &["remove", "--retry", &self.name])?;
        tool::settle()
    }

    /// Brings it back.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn plug(&self) -> Result<()> {
        let uuid = format!("hack-sick-{}", self.name);
        tool::run("dmsetup", &["create", &self.name, "--uuid", &uuid, "--table", &self.linear(0, self.sectors)])?;
        tool::settle()
    }

    fn linear(&self, from: u64, to: u64) -> String {
        format!("{from} {} linear {} {}", to - from, self.disk.display(), BEGIN + from)
    }

    /// Puts a target in the place of a range of sectors.
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
        // Suspends it first, where it is not.
        tool::run("dmsetup", &[&["resume", "--nolockfs", "--noflush"], more, &[self.name.as_str()]].concat()).map(drop)
    }

    fn message(&self, words: &[&str]) -> Result<()> {
        tool::run("dmsetup", &[&["message", &self.name, "0"], words].concat()).map(drop)
    }
}

impl Drop for Illness<'_> {
    fn drop(&mut self) {
        // A disk that stays ill fails what follows.
        let _ = self.sick.load(&format!("{}\n", self.sick.linear(0, self.sick.sectors)));
    }
}

impl Drop for Sick {
    fn drop(&mut self) {
        // The test that made it has failed, or has taken down what stood on it.
        let _ = self.unplug();
    }
}
