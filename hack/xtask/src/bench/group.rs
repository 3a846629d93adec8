//! Creates a volume group with any number of volumes, by one restore of its metadata.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use testkit::driver::Start;
use testkit::error::{Result, Trouble};

use super::stock::{self, lvm};

#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    /// Directory for the driver and all other files.
    pub(crate) home: PathBuf,
}

impl Group {
    /// Wipes a disk and creates a group of that name on it, with this many volumes of the driver, of one 1 MiB extent each.
    ///
    /// # Errors
    /// LVM fails.
    pub(crate) fn make(name: &str, disk: &Path, home: &Path, volumes: usize) -> Result<Self> {
        let disk = disk.to_str().ok_or_else(|| Trouble::wrong(format!("the path {} is not UTF-8", disk.display())))?;
        fs::create_dir_all(home).map_err(Trouble::io(format!("making {}", home.display())))?;
        stock::run("wipefs", &["-q", "-a", disk])?;
        lvm(&["pvcreate", "-qq", "-ff", "-y", "--metadatasize", "16m", disk])?;
        lvm(&["vgcreate", "-qq", "-s", "1m", "--setautoactivation", "n", name, disk])?;
        let path = home.join("volumes.text");
        let file = path.to_string_lossy();
        lvm(&["vgcfgbackup", "-qq", "-f", &file, name])?;
        let text = fs::read_to_string(&path).map_err(Trouble::io(format!("reading {file}")))?;
        fs::write(&path, with_volumes(&text, volumes)?).map_err(Trouble::io(format!("writing {file}")))?;
        lvm(&["vgcfgrestore", "-qq", "-y", "-f", &file, name])?;
        Ok(Self { name: name.to_owned(), home: home.to_owned() })
    }

    pub(crate) fn driver(&self, program: &Path) -> Start {
        Start::on_vg(program, &self.home, &self.name)
    }

    /// The driver's `LVM_SYSTEM_DIR` for this group.
    pub(crate) fn system_dir(&self) -> PathBuf {
        self.home.join("run").join(format!("vg-{}", self.name)).join("lvm")
    }
}

/// Adds volumes, as the driver creates them, to the metadata of an empty group.
fn with_volumes(empty: &str, volumes: usize) -> Result<String> {
    let (head, tail) = empty.trim_end().rsplit_once('}').ok_or_else(|| Trouble::wrong("vgcfgbackup wrote no volume group"))?;
    let mut text = format!("{head}\n\tlogical_volumes {{\n");
    for number in 0..volumes {
        let digits = format!("{number:032}");
        let parts = [&digits[..6], &digits[6..10], &digits[10..14], &digits[14..18], &digits[18..22], &digits[22..26]];
        let id = format!("{}-{}", parts.join("-"), &digits[26..]);
        let _ = write!(
            text,
            "\n\t\t{} {{\n\t\t\tid = \"{id}\"\n\t\t\tstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\n\t\t\tflags = []\n\
             \t\t\ttags = [\"csi.d=lvm-csi.dev\", \"csi.fs=ext4\", \"lvm-csi=1\"]\n\t\t\tcreation_time = 1700000000\n\t\t\tcreation_host = \"bench\"\n\
             \t\t\tsegment_count = 1\n\n\t\t\tsegment1 {{\n\t\t\t\tstart_extent = 0\n\t\t\t\textent_count = 1\n\n\
             \t\t\t\ttype = \"striped\"\n\t\t\t\tstripe_count = 1\n\n\t\t\t\tstripes = [\n\t\t\t\t\t\"pv0\", {number}\n\
             \t\t\t\t]\n\t\t\t}}\n\t\t}}\n",
            name(number)
        );
    }
    Ok(format!("{text}\t}}\n}}{tail}\n"))
}

/// A name as external-provisioner makes it.
pub(crate) fn name(number: usize) -> String {
    format!("pvc-00000000-0000-4000-8000-{number:012x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_stand_within_the_group() {
        let text = with_volumes("# by\n\nvg {\n\tid = \"x\"\n}\n", 2).unwrap();
        assert!(text.starts_with("# by\n\nvg {\n\tid = \"x\"\n\n\tlogical_volumes {\n"));
        assert_eq!(text.matches("segment1 {").count(), 2);
        assert!(text.contains("id = \"000000-0000-0000-0000-0000-0000-000001\"") && text.contains("\"pv0\", 1\n"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
