//! Disks that fail at a volume's superblocks: nothing is formatted, and the data comes back with the disk.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use lvm_csi_proto::csi::volume_capability::access_mode::Mode;
use testkit::client::{mount, refused};
use testkit::error::{Result, Trouble};
use testkit::flow::{Volume, text};
use testkit::mounts::mount_at;
use testkit::sick::{Ailment, Sick};
use testkit::{lab, tool, vg};
use tonic::Code;

use crate::rig::{MIB, Rig};

/// A volume on a disk that can fail.
struct Patient<'a> {
    sick: &'a Sick,
    volume: Volume,
    lv: String,
    /// Byte range of the volume on the disk.
    place: Range<u64>,
}

impl<'a> Patient<'a> {
    fn new(sick: &'a Sick, rig: &Rig, filesystem: &str, mib: u64) -> Result<Self> {
        let mut volume = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        volume.attach()?;
        volume.make_staging()?;
        let lv = rig.vg.of_handle(&volume.id)?.name;
        let begin = rig.vg.begin(&lv)?;
        Ok(Self { sick, volume, lv, place: begin..begin + mib * MIB })
    }

    fn life(&self, rig: &Rig) -> Result<String> {
        let tags = rig.vg.lv(&self.lv)?.tags;
        Ok(tags.into_iter().find_map(|tag| tag.strip_prefix("csi.fs=").map(str::to_owned)).unwrap_or_default())
    }

    /// One block in each area that may hold a signature: ext4 and XFS; LUKS2's second header; btrfs; RAID and GPT at the end.
    fn areas(&self) -> Vec<(&'static str, Range<u64>)> {
        let block = |offset: u64| self.place.start + offset..self.place.start + offset + 4096;
        let end = self.place.end - self.place.start;
        vec![
            ("the first superblock", block(0)),
            ("the superblock of btrfs", block(64 << 10)),
            ("the copy of LUKS2's header", block(4 << 20)),
            ("the second superblock of btrfs", block(64 << 20)),
            ("the end", block(end - 4096)),
        ]
    }

    /// Fails unless staging is refused for each failing area, with the I/O error in the message, and the disk stays unchanged.
    fn is_left_alone(&self, rig: &Rig, ailment: Ailment, codes: &[Code]) -> Result<()> {
        let life = self.life(rig)?;
        let before = self.sick.checksum(self.place.clone())?;
        for (what, area) in self.areas() {
            let what = format!("{ailment:?} at {what} of a volume that is {life}");
            let illness = self.sick.ill(ailment, area)?;
            let message = refused(rig.csi().node_stage_volume(self.volume.stage_request()), codes, &what)?;
            assert!(message.contains("error") && message.contains("(os error 5)"), "{what}: {message}");
            drop(illness);
            assert!(mount_at(&self.volume.staging())?.is_none(), "{what}: the refused stage left a mount");
        }
        assert_eq!(self.life(rig)?, life, "the tag of the filesystem's life changed");
        // A volume on which mkfs never began is cleared before it is probed.
        let is_new = life.starts_with("formatting=") && records(rig)?.is_empty();
        assert!(is_new || self.sick.checksum(self.place.clone())? == before, "the volume in the state {life} was written to");
        Ok(())
    }

    fn gone(&self) -> Result<()> {
        self.volume.detach()?;
        self.volume.delete()
    }
}

/// Where the driver records what was done to volumes.
fn directory(rig: &Rig) -> PathBuf {
    rig.driver.start().state().join("exposed")
}

fn records(rig: &Rig) -> Result<Vec<fs::DirEntry>> {
    let files = fs::read_dir(directory(rig)).map_err(Trouble::io("listing the records"))?;
    files.map(|file| file.map_err(Trouble::io("reading a record"))).collect()
}

#[test]
fn a_superblock_area_that_cannot_be_read_stops_the_stage_and_nothing_is_formatted() -> Result<()> {
    let sick = Sick::over("sick", &lab::disk(1)?)?;
    let mut rig = Rig::make_on(&[sick.path()], None, &[])?;
    for (filesystem, mib, ailment) in [("ext4", 80, Ailment::Dead), ("xfs", 320, Ailment::Dust)] {
        let mut patient = Patient::new(&sick, &rig, filesystem, mib)?;
        let formatting = format!("formatting={filesystem}");
        if ailment == Ailment::Dead {
            patient.is_left_alone(&rig, ailment, &[Code::Internal, Code::Unavailable])?;
        }
        assert_eq!(patient.life(&rig)?, formatting);

        // Remove what the previous volume left here. The first probe would have cleared it.
        rig.vg.with_active(&patient.lv, |device| tool::run("wipefs", &["-q", "-a", "-f", &text(device)]).map(drop))?;
        // The driver died while it made the filesystem: what is there must not be treated as empty.
        rig.driver.stop()?;
        let lv = vg::lvm(&["lvs", "--noheadings", "-o", "vg_uuid,lv_uuid", &format!("labvg/{}", patient.lv)])?;
        let record = lv.split_whitespace().chain([formatting.as_str(), "0"]).collect::<Vec<_>>().join(".");
        fs::write(directory(&rig).join(record), "").map_err(Trouble::io("recording that mkfs began"))?;
        rig.driver.restart()?;
        patient.volume = patient.volume.through(rig.csi());
        patient.is_left_alone(&rig, ailment, &[Code::Unavailable])?;
        patient.volume.unstage()?;

        patient.volume.stage()?;
        assert_eq!(patient.life(&rig)?, filesystem);
        let kept = patient.volume.staging().join("kept");
        fs::write(&kept, "kept").map_err(Trouble::io("writing into the volume"))?;
        patient.volume.unstage()?;
        patient.volume.make_staging()?;
        patient.is_left_alone(&rig, ailment, &[Code::Unavailable])?;
        patient.volume.stage()?;
        assert_eq!(fs::read_to_string(&kept).map_err(Trouble::io("reading from the volume"))?, "kept");
        patient.volume.unstage()?;
        patient.gone()?;
    }
    // A new volume is cleared before it is probed, which cures bad sectors: there is no data to lose.
    let patient = Patient::new(&sick, &rig, "ext4", 80)?;
    let illness = sick.ill(Ailment::Dust, patient.areas()[0].1.clone())?;
    patient.volume.stage()?;
    drop(illness);
    assert_eq!(patient.life(&rig)?, "ext4");
    patient.volume.unstage()?;
    patient.gone()?;
    rig.finish()?;
    drop(sick);
    covers!(59)
}
