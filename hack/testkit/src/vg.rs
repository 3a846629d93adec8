//! Runs the real `lvm`, never the shim, and reads its reports.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::error::{Result, Trouble};
use crate::{lab, shim, tool};

/// Extent size of the test kit's volume groups, in bytes.
pub const EXTENT: u64 = 4 << 20;

/// LVM's defaults, apart from what costs time: synchronous I/O, no backups in /etc, no dmeventd.
const CONFIG: &str = "global {\n use_aio = 0\n}\nbackup {\n backup = 0\n archive = 0\n}\nactivation {\n monitoring = 0\n}\n";

/// A line of `lvs --all`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lv {
    pub vg: String,
    /// In brackets if the LV is hidden.
    pub name: String,
    pub uuid: String,
    /// In bytes.
    pub size: u64,
    /// The ten letters of `lv_attr`, see lvs(8).
    pub attr: String,
    /// The thin pool, or empty.
    pub pool: String,
    /// The origin, or empty.
    pub origin: String,
    pub tags: Vec<String>,
}

impl Lv {
    /// Whether it is active: the fifth letter of `lv_attr`.
    pub fn active(&self) -> bool {
        self.attr.as_bytes().get(4) == Some(&b'a')
    }
}

/// Runs the real `lvm` and returns its standard output. The shim does not count it.
///
/// # Errors
/// LVM cannot be started, or fails.
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

/// All volume groups as `name uuid seqno`, sorted.
///
/// # Errors
/// LVM fails.
pub fn vgs() -> Result<Vec<String>> {
    let text = lvm(&["vgs", "--noheadings", "-o", "vg_name,vg_uuid,vg_seqno"])?;
    let mut lines: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    Ok(lines)
}

/// All LVs of all volume groups, hidden ones too, sorted.
///
/// # Errors
/// LVM fails, or prints an unexpected line.
pub fn lvs() -> Result<Vec<Lv>> {
    const COLUMNS: &str = "vg_name,lv_name,lv_uuid,lv_size,lv_attr,pool_lv,origin,lv_tags";
    let text = lvm(&["lvs", "-a", "--noheadings", "--separator", "|", "--units", "b", "--nosuffix", "-o", COLUMNS])?;
    let mut lvs = Vec::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [vg, name, uuid, size, attr, pool, origin, tags] = fields[..] else {
            return Err(Trouble::wrong(format!("lvs printed the line {line:?}")));
        };
        lvs.push(Lv {
            vg: vg.to_owned(),
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            size: size.parse().map_err(|_| Trouble::wrong(format!("lvs printed the size {size:?}")))?,
            attr: attr.to_owned(),
            pool: pool.to_owned(),
            origin: origin.to_owned(),
            tags: tags.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
        });
    }
    lvs.sort();
    Ok(lvs)
}
