//! Devices with something on them that is not the driver's, and devices that cannot be read: nothing is ever formatted there.

use std::fs;
use std::path::PathBuf;

use lvm_csi_hack::client::{mount, refused};
use lvm_csi_hack::error::Result;
use lvm_csi_hack::flow::{Volume, text};
use lvm_csi_hack::machine::mount_at;
use lvm_csi_hack::signature::{Foreign, device_size};
use lvm_csi_hack::{lab, tool};
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::rig::Rig;

/// Fails unless staging is refused, nothing on the device changes and nothing stays behind.
fn refuses_to_stage(rig: &Rig, volume: &Volume, what: &str) -> Result<()> {
    let name = rig.vg.of_handle(&volume.id)?.name;
    let sum = || rig.vg.with_active(&name, tool_checksum);
    let (before, tags) = (sum()?, rig.vg.lv(&name)?.tags);
    volume.make_staging()?;
    let codes = &[Code::FailedPrecondition, Code::Internal];
    refused(rig.csi().node_stage_volume(volume.stage_request()), codes, what)?;
    assert_eq!(rig.vg.lv(&name)?.tags, tags, "{what}: the tags changed");
    assert!(!rig.vg.lv(&name)?.active(), "{what}: the refused stage left a device");
    assert!(mount_at(&volume.staging())?.is_none(), "{what}: the refused stage left a mount");
    assert_eq!(sum()?, before, "{what}: the device was written");
    volume.unstage()
}

fn tool_checksum(device: &std::path::Path) -> Result<String> {
    tool::checksum(device)
}

#[test]
fn a_device_with_a_foreign_signature_is_not_formatted() -> Result<()> {
    let rig = Rig::thin()?;
    for foreign in Foreign::ALL {
        // Thin and blank: what is found on it was put there by somebody else.
        let mut volume = rig.volume("thin", 64)?;
        volume.attach()?;
        let name = rig.vg.of_handle(&volume.id)?.name;
        rig.vg.with_active(&name, |device| foreign.write(device))?;
        refuses_to_stage(&rig, &volume, &format!("a device with {}", foreign.word()))?;
        volume.detach()?;
        volume.delete()?;
    }
    for (made, asked, mib) in [("ext4", "xfs", 320), ("xfs", "ext4", 320), ("ext4", "ext4", 64)] {
        let mut volume = rig.with("thin", mib, mount(asked, Mode::SingleNodeWriter))?;
        volume.attach()?;
        let name = rig.vg.of_handle(&volume.id)?.name;
        rig.vg.with_active(&name, |device| tool::run(&format!("mkfs.{made}"), &["-q", &text(device)]).map(drop))?;
        refuses_to_stage(&rig, &volume, &format!("a blank volume on which somebody made {made}"))?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()?;
    covers!(59)
}

#[test]
fn a_volume_that_lost_its_filesystem_is_not_formatted_again() -> Result<()> {
    let rig = Rig::thin()?;
    let mut volume = rig.volume("thin", 64)?;
    volume.attach()?;
    volume.stage()?;
    volume.unstage()?;
    let name = rig.vg.of_handle(&volume.id)?.name;
    rig.vg.with_active(&name, |device| tool::run("wipefs", &["-q", "-a", "-f", &text(device)]).map(drop))?;
    refuses_to_stage(&rig, &volume, "a volume whose filesystem is gone")?;
    rig.vg.with_active(&name, |device| Foreign::Luks.write(device))?;
    refuses_to_stage(&rig, &volume, "a volume whose filesystem became something else")?;
    volume.detach()?;
    volume.delete()?;
    rig.finish()?;
    covers!(59)
}

/// A device-mapper device over a disk, of which a part can be made unreadable.
struct Breakable {
    disk: PathBuf,
    sectors: u64,
}

impl Breakable {
    const NAME: &str = "breakable";

    /// Sector of the disk at which it begins: were it 0, LVM would find its label on the disk too, and take neither.
    const BEGIN: u64 = 2048;

    fn make(disk: PathBuf) -> Result<Self> {
        let sectors = device_size(&disk)? / 512 - Self::BEGIN;
        let it = Self { disk, sectors };
        tool::run("dmsetup", &["create", Self::NAME, "--uuid", "hack-breakable", "--table", &it.linear(0, sectors)])?;
        tool::settle()?;
        Ok(it)
    }

    fn path() -> PathBuf {
        PathBuf::from("/dev/mapper").join(Self::NAME)
    }

    fn linear(&self, from: u64, to: u64) -> String {
        format!("{from} {} linear {} {}", to - from, self.disk.display(), Self::BEGIN + from)
    }

    fn load(&self, table: &str) -> Result<()> {
        let file = PathBuf::from(lab::ROOT).join("table");
        fs::write(&file, table).map_err(lvm_csi_hack::Trouble::io("writing a table"))?;
        tool::run("dmsetup", &["load", Self::NAME, &text(&file)])?;
        tool::run("dmsetup", &["suspend", "--nolockfs", "--noflush", Self::NAME])?;
        tool::run("dmsetup", &["resume", Self::NAME]).map(drop)
    }

    /// Makes some sectors unreadable and unwritable.
    fn break_at(&self, sector: u64, count: u64) -> Result<()> {
        let end = sector + count;
        let table = format!("{}\n{sector} {count} error\n{}\n", self.linear(0, sector), self.linear(end, self.sectors));
        self.load(&table)
    }

    fn mend(&self) -> Result<()> {
        self.load(&format!("{}\n", self.linear(0, self.sectors)))
    }
}

impl Drop for Breakable {
    fn drop(&mut self) {
        let _ = self.mend();
        let _ = tool::run("dmsetup", &["remove", "--retry", Self::NAME]);
    }
}

#[test]
fn a_device_that_cannot_be_read_at_a_superblock_is_not_formatted() -> Result<()> {
    let disk = Breakable::make(lab::disk(1)?)?;
    let rig = Rig::make_on(&[Breakable::path()], None, &[])?;
    for (what, offset) in [("the superblock of ext4", 1024 / 512), ("the superblock of btrfs", (64 << 10) / 512)] {
        let mut volume = rig.volume("linear", 64)?;
        volume.attach()?;
        volume.make_staging()?;
        let lv = rig.vg.of_handle(&volume.id)?;
        let begin = rig.vg.begin(&lv.name)? / 512;
        disk.break_at(begin + offset / 8 * 8, 8)?;
        let codes = &[Code::Internal, Code::Unavailable, Code::FailedPrecondition, Code::Aborted];
        let answer = refused(rig.csi().node_stage_volume(volume.stage_request()), codes, what);
        disk.mend()?;
        answer?;
        let now = rig.vg.of_handle(&volume.id)?;
        assert!(now.tags.iter().any(|tag| tag == "csi.fs=blank"), "{what}: the life of the filesystem went on: {:?}", now.tags);
        assert!(!now.active(), "{what}: the refused stage left a device");
        // Readable again, it is formatted and mounted.
        rig.until_ok("staging a device that can be read again", |_| volume.stage())?;
        volume.unstage()?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()?;
    drop(disk);
    covers!(59)
}
