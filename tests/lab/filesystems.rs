//! The filesystems that the driver makes: which features they have.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lvm_csi_hack::client::mount;
use lvm_csi_hack::error::{Result, Trouble};
use lvm_csi_proto::csi::volume_capability::access_mode::Mode;

use crate::rig::Rig;

/// The words of a superblock at these offsets.
fn words<const N: usize>(device: &Path, offsets: [u64; N], word: fn([u8; 4]) -> u32) -> Result<[u32; N]> {
    let file = File::open(device).map_err(Trouble::io("opening a device"))?;
    let mut words = [0; N];
    for (at, offset) in offsets.into_iter().enumerate() {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, offset).map_err(Trouble::io("reading a superblock"))?;
        words[at] = word(bytes);
    }
    Ok(words)
}

/// Linux 5.10 is the oldest kernel on which filesystems of this driver shall be mounted.
#[test]
fn filesystems_have_only_features_that_old_kernels_know() -> Result<()> {
    let rig = Rig::linear()?;
    for (filesystem, mib) in [("ext4", 64), ("xfs", 320)] {
        let mut volume = rig.with("linear", mib, mount(filesystem, Mode::SingleNodeWriter))?;
        volume.attach()?;
        volume.stage()?;
        volume.unstage()?;
        rig.vg.with_active(volume.lv(), |device| {
            if filesystem == "ext4" {
                // Compatible, incompatible, and such that a kernel that does not know them mounts it read-only: as e2fsprogs 1.43.
                let found = words(device, [1024 + 0x5c, 1024 + 0x60, 1024 + 0x64], u32::from_le_bytes)?;
                assert_eq!(found, [0x3c, 0x2c2, 0x46b], "{found:#x?}");
            } else {
                // finobt, reflink; ftype, sparse inodes: what mkfs.xfs gave when Linux 5.10 came out.
                let found = words(device, [208, 212, 216, 220], u32::from_be_bytes)?;
                assert_eq!(found, [0, 0x5, 0x3, 0], "{found:#x?}");
            }
            Ok(())
        })?;
        volume.detach()?;
        volume.delete()?;
    }
    rig.finish()
}
