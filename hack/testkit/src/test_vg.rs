//! Volume groups for the demo and the tests.

use std::path::{Path, PathBuf};

use crate::error::{Result, Trouble};
use crate::vg::{EXTENT, Lv, lvm, lvs};
use crate::{cleanup, lab, tool};

/// A volume group on whole disks.
#[derive(Clone, Debug)]
pub struct TestVg {
    pub name: String,
    pub uuid: String,
    pub disks: Vec<PathBuf>,
}

impl TestVg {
    /// Wipes the disks, after removing what uses them, and creates a volume group of that name on them.
    ///
    /// # Errors
    /// This is not the lab, or LVM or the kernel refuses a step.
    pub fn make(name: &str, disks: &[PathBuf]) -> Result<Self> {
        lab::require()?;
        for disk in disks {
            cleanup::release(disk)?;
        }
        let paths: Vec<&str> = disks.iter().map(|d| d.to_str().unwrap_or_default()).collect();
        lvm(&[&["pvcreate", "-qq", "-ff", "-y", "--metadatasize", "4m"], &paths[..]].concat())?;
        lvm(&[&["vgcreate", "-qq", "--physicalextentsize", "4m", "--setautoactivation", "n", name], &paths[..]].concat())?;
        // The driver finds its disks through udev's database.
        tool::settle()?;
        let uuid = lvm(&["vgs", "--noheadings", "-o", "vg_uuid", name])?.trim().to_owned();
        Ok(Self { name: name.to_owned(), uuid, disks: disks.to_vec() })
    }

    /// Creates an active, zeroing thin pool of a size in MiB, and creates and removes its first volume. With that volume LVM adds a layer
    /// to the pool, which takes 1.5 seconds in the lab, or a third of that if one command creates pool and volume.
    ///
    /// # Errors
    /// LVM fails.
    pub fn thin_pool(&self, name: &str, mib: u64) -> Result<()> {
        let (size, first) = (format!("{mib}m"), format!("{name}-first"));
        let volume = ["--type", "thin", "-V", "4m", "-n", &first, &self.name];
        lvm(&[&["lvcreate", "-qq", "-y", "-Zy", "-L", &size, "--thinpool", name], &volume[..]].concat())?;
        lvm(&["lvremove", "-qq", "-y", &format!("{}/{first}", self.name)]).map(drop)
    }

    /// # Errors
    /// LVM fails.
    pub fn lvs(&self) -> Result<Vec<Lv>> {
        Ok(lvs()?.into_iter().filter(|lv| lv.vg == self.name).collect())
    }

    /// # Errors
    /// LVM fails, or there is no such LV.
    pub fn lv(&self, name: &str) -> Result<Lv> {
        let found = self.lvs()?.into_iter().find(|lv| lv.name == name);
        found.ok_or_else(|| Trouble::wrong(format!("there is no LV {}/{name}", self.name)))
    }

    /// The LV of a volume's or snapshot's handle, `<vg uuid>/<lv name>`.
    ///
    /// # Errors
    /// LVM fails, the handle is of another volume group, or there is no such LV.
    pub fn of_handle(&self, id: &str) -> Result<Lv> {
        let name = id.strip_prefix(&format!("{}/", self.uuid));
        self.lv(name.ok_or_else(|| Trouble::wrong(format!("{id:?} is not a handle of the VG {}", self.uuid)))?)
    }

    /// `vg_seqno`, which LVM increments with each change of the volume group.
    ///
    /// # Errors
    /// LVM fails.
    pub fn seqno(&self) -> Result<u64> {
        self.number("vg_seqno")
    }

    /// Free space in bytes.
    ///
    /// # Errors
    /// LVM fails.
    pub fn free(&self) -> Result<u64> {
        Ok(self.number("vg_free_count")? * EXTENT)
    }

    fn number(&self, field: &str) -> Result<u64> {
        let text = lvm(&["vgs", "--noheadings", "-o", field, &self.name])?;
        text.trim().parse().map_err(|_| Trouble::wrong(format!("vgs reports {text:?} as {field}")))
    }

    /// Path of an active LV's device.
    pub fn device(&self, lv: &str) -> PathBuf {
        Path::new("/dev").join(&self.name).join(lv)
    }

    /// Activates an LV without the driver, does some work with its device, and deactivates it.
    ///
    /// # Errors
    /// LVM or the work fails.
    pub fn with_active<T>(&self, lv: &str, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let full = format!("{}/{lv}", self.name);
        lvm(&["lvchange", "-qq", "-ay", "-K", &full])?;
        tool::settle()?;
        let done = work(&self.device(lv));
        tool::settle()?;
        lvm(&["lvchange", "-qq", "-an", &full])?;
        done
    }

    /// Offset in bytes of a linear LV's first segment on its PV.
    ///
    /// # Errors
    /// LVM fails, or the LV is not linear.
    pub fn begin(&self, lv: &str) -> Result<u64> {
        let full = format!("{}/{lv}", self.name);
        let ranges = lvm(&["lvs", "--noheadings", "-o", "seg_pe_ranges", &full])?;
        let first = ranges.trim().rsplit_once(':').and_then(|(_, range)| range.split('-').next()?.parse::<u64>().ok());
        let pe_start = lvm(&["pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", &self.pv_of(ranges.trim())])?;
        match (first, pe_start.trim().parse::<u64>()) {
            (Some(extent), Ok(start)) => Ok(start + extent * EXTENT),
            _ => Err(Trouble::wrong(format!("LVM reports {ranges:?} and {pe_start:?} as the place of {full}"))),
        }
    }

    fn pv_of(&self, ranges: &str) -> String {
        ranges.rsplit_once(':').map_or_else(String::new, |(pv, _)| pv.to_owned())
    }

    /// Removes the volume group with its mounts, devices and labels.
    ///
    /// # Errors
    /// The kernel or LVM refuses a step. The steps before it are done.
    pub fn destroy(&self) -> Result<()> {
        for disk in &self.disks {
            cleanup::release(disk)?;
        }
        Ok(())
    }
}
