//! A volume group of the demo's or a test's own.

use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble};
use crate::vg::{EXTENT, Lv, lvm, lvs};
use crate::{cleanup, lab, tool};

/// A volume group on whole disks.
#[derive(Clone, Debug)]
pub struct TestVg {
    pub name: String,
    pub uuid: String,
    /// The physical volumes.
    pub disks: Vec<PathBuf>,
}

impl TestVg {
    /// Makes a volume group of that name on the disks, which are wiped; what was on them is taken down first.
    ///
    /// # Errors
    /// LVM or the kernel refused a step.
    pub fn make(name: &str, disks: &[PathBuf]) -> Result<Self> {
        lab::require()?;
        for disk in disks {
            cleanup::release(disk)?;
        }
        let paths: Vec<&str> = disks.iter().map(|d| d.to_str().unwrap_or_default()).collect();
        lvm(&[&["pvcreate", "-qq", "-ff", "-y", "--metadatasize", "4m"], &paths[..]].concat())?;
        lvm(&[&["vgcreate", "-qq", "--physicalextentsize", "4m", "--setautoactivation", "n", name], &paths[..]].concat())?;
        // A driver that starts now finds its disks by what udev knows of them.
        tool::settle()?;
        let uuid = lvm(&["vgs", "--noheadings", "-o", "vg_uuid", name])?.trim().to_owned();
        Ok(Self { name: name.to_owned(), uuid, disks: disks.to_vec() })
    }

    /// Makes a thin pool of a size in MiB, zeroing, active, and with its first volume made and removed: LVM then lays one more
    /// device over the pool, which takes 1.5 seconds here, or a third of that when pool and volume are made at once.
    ///
    /// # Errors
    /// LVM failed.
    pub fn thin_pool(&self, name: &str, mib: u64) -> Result<()> {
        let (size, first) = (format!("{mib}m"), format!("{name}-first"));
        let volume = ["--type", "thin", "-V", "4m", "-n", &first, &self.name];
        lvm(&[&["lvcreate", "-qq", "-y", "-Zy", "-L", &size, "--thinpool", name], &volume[..]].concat())?;
        lvm(&["lvremove", "-qq", "-y", &format!("{}/{first}", self.name)]).map(drop)
    }

    /// The logical volumes in it.
    ///
    /// # Errors
    /// LVM failed.
    pub fn lvs(&self) -> Result<Vec<Lv>> {
        Ok(lvs()?.into_iter().filter(|lv| lv.vg == self.name).collect())
    }

    /// One logical volume.
    ///
    /// # Errors
    /// LVM failed, or there is no such volume.
    pub fn lv(&self, name: &str) -> Result<Lv> {
        let found = self.lvs()?.into_iter().find(|lv| lv.name == name);
        found.ok_or_else(|| Trouble::wrong(format!("there is no LV {}/{name}", self.name)))
    }

    /// The logical volume of a volume's or snapshot's handle, `<vg uuid>/<lv name>`.
    ///
    /// # Errors
    /// LVM failed, the handle is of another volume group, or there is no such volume.
    pub fn of_handle(&self, id: &str) -> Result<Lv> {
        let name = id.strip_prefix(&format!("{}/", self.uuid));
        self.lv(name.ok_or_else(|| Trouble::wrong(format!("{id:?} is not a handle in VG {}", self.uuid)))?)
    }

    /// The number LVM counts up with every change of the volume group.
    ///
    /// # Errors
    /// LVM failed.
    pub fn seqno(&self) -> Result<u64> {
        self.number("vg_seqno")
    }

    /// Free space in bytes.
    ///
    /// # Errors
    /// LVM failed.
    pub fn free(&self) -> Result<u64> {
        Ok(self.number("vg_free_count")? * EXTENT)
    }

    fn number(&self, field: &str) -> Result<u64> {
        let text = lvm(&["vgs", "--noheadings", "-o", field, &self.name])?;
        text.trim().parse().map_err(|_| Trouble::wrong(format!("vgs gave {field} as {text:?}")))
    }

    /// Path of the device of an active logical volume.
    pub fn device(&self, lv: &str) -> PathBuf {
        Path::new("/dev").join(&self.name).join(lv)
    }

    /// Activates a logical volume behind the driver's back, does something with its device and deactivates it.
    ///
    /// # Errors
    /// LVM failed, or what was done.
    pub fn with_active<T>(&self, lv: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let full = format!("{}/{lv}", self.name);
        lvm(&["lvchange", "-qq", "-ay", "-K", &full])?;
        tool::settle()?;
        let done = work(&self.device(lv));
        tool::settle()?;
        lvm(&["lvchange", "-qq", "-an", &full])?;
        done
    }

    /// Byte at which the first segment of a linear logical volume begins on its physical volume.
    ///
    /// # Errors
    /// LVM failed, or the volume is not linear.
    pub fn begin(&self, lv: &str) -> Result<u64> {
        let full = format!("{}/{lv}", self.name);
        let ranges = lvm(&["lvs", "--noheadings", "-o", "seg_pe_ranges", &full])?;
        let first = ranges.trim().rsplit_once(':').and_then(|(_, range)| range.split('-').next()?.parse::<u64>().ok());
        let pe_start = lvm(&["pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", &self.pv_of(ranges.trim())])?;
        match (first, pe_start.trim().parse::<u64>()) {
            (Some(extent), Ok(start)) => Ok(start + extent * EXTENT),
            _ => Err(Trouble::wrong(format!("LVM gave {ranges:?} and {pe_start:?} as the place of {full}"))),
        }
    }

    fn pv_of(&self, ranges: &str) -> String {
        ranges.rsplit_once(':').map_or_else(String::new, |(pv, _)| pv.to_owned())
    }

    /// Takes everything down: what is mounted from it, its devices, the volume group and the labels.
    ///
    /// # Errors
    /// The kernel or LVM refused a step; what came before it is done.
    pub fn destroy(&self) -> Result<()> {
        for disk in &self.disks {
            cleanup::release(disk)?;
        }
        Ok(())
    }
}
