//! The real `lvm`, never the shim, and what it reports.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::error::{Result, Trouble};
use crate::{lab, shim, tool};

/// Extent size of every volume group made here, in bytes.
pub const EXTENT: u64 = 4 << 20;

/// LVM as distributed but for the speed: synchronous I/O, no copies in /etc, no monitoring daemon.
const CONFIG: &str = "global {\n use_aio = 0\n}\nbackup {\n backup = 0\n archive = 0\n}\nactivation {\n monitoring = 0\n}\n";

/// A logical volume as LVM reports it; hidden ones too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lv {
    pub vg: String,
    /// Name, in brackets when hidden.
    pub name: String,
    /// UUID.
    pub uuid: String,
    /// Size in bytes.
    pub size: u64,
    /// The ten letters of `lv_attr`.
    pub attr: String,
    /// Thin pool, or empty.
    pub pool: String,
    /// Origin, or empty.
    pub origin: String,
    /// Tags.
    pub tags: Vec<String>,
}

impl Lv {
    /// Whether it has a device.
    pub fn active(&self) -> bool {
        self.attr.as_bytes().get(4) == Some(&b'a')
    }
}

/// Runs the real `lvm`, uncounted, and gives its standard output.
///
/// # Errors
/// It could not be started or failed.
pub fn lvm(args: &[&str]) -> Result<String> {
    let system = Path::new(lab::ROOT).join("lvm");
    let conf = system.join("lvm.conf");
    if !conf.exists() {
        fs::create_dir_all(&system).map_err(Trouble::io(format!("making {}", system.display())))?;
        fs::write(&conf, CONFIG).map_err(Trouble::io(format!("writing {}", conf.display())))?;
    }
    let program = if Path::new(shim::REAL).exists() { shim::REAL } else { shim::LVM };
    let mut command = tool::command(program);
    command.arg0("lvm").args(args).env("LVM_SYSTEM_DIR", &system);
    tool::finish(&mut command)
}

/// Every volume group, as `name uuid seqno`, in order.
///
/// # Errors
/// LVM failed.
pub fn vgs() -> Result<Vec<String>> {
    let text = lvm(&["vgs", "--noheadings", "-o", "vg_name,vg_uuid,vg_seqno"])?;
    let mut lines: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    Ok(lines)
}

/// Every logical volume of every volume group, in order.
///
/// # Errors
/// LVM failed, or answered with fewer columns than asked.
pub fn lvs() -> Result<Vec<Lv>> {
    const COLUMNS: &str = "vg_name,lv_name,lv_uuid,lv_size,lv_attr,pool_lv,origin,lv_tags";
    let text = lvm(&["lvs", "-a", "--noheadings", "--separator", "|", "--units", "b", "--nosuffix", "-o", COLUMNS])?;
    let mut lvs = Vec::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [vg, name, uuid, size, attr, pool, origin, tags] = fields[..] else {
            return Err(Trouble::wrong(format!("lvs answered {line:?}")));
        };
        lvs.push(Lv {
            vg: vg.to_owned(),
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            size: size.parse().map_err(|_| Trouble::wrong(format!("lvs gave the size {size:?}")))?,
            attr: attr.to_owned(),
            pool: pool.to_owned(),
            origin: origin.to_owned(),
            tags: tags.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
        });
    }
    lvs.sort();
    Ok(lvs)
}
