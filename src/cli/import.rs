//! `lvm-csi import`: an LV that somebody made by hand becomes a volume, and two objects of Kubernetes are printed for it.

use std::fmt::Write;

use crate::config::Config;
use crate::controller::topology_key;
use crate::lvm::Pins;
use crate::machine::{Import, Imported, Machine};
use crate::types::{Life, LvName, NodeId, VgName};
use crate::volume::import::Expected;
use crate::volume::inventory::Volume;

use super::run_apart;

/// Bytes in the longest name that is made for an object.
const LONGEST_NAME: usize = 63;

/// The claim that a volume is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub namespace: String,
    pub name: String,
}

impl Claimant {
    /// Reads `NAMESPACE/NAME`; `None` for what Kubernetes does not take.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (is_name(namespace) && is_name(name)).then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// What is to be imported.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    pub vg: VgName,
    pub lv: LvName,
    /// The pool it must lie in.
    pub pool: Option<String>,
    /// What is said to be on it.
    pub expected: Option<Expected>,
    /// Do it.
    pub apply: bool,
    /// Who may have it; whoever selects it without.
    pub claim: Option<Claimant>,
}

/// Looks at an LV, makes a volume of it where that is asked, and gives what is to be told: comments, then the objects.
///
/// # Errors
/// Why it cannot be a volume, or what could not be begun.
pub fn import(config: Config, wish: ImportRequest) -> anyhow::Result<String> {
    let (node, driver) = (config.node_id.clone(), config.driver_name.clone());
    let request = Import { vg: wish.vg.clone(), lv: wish.lv, pool: wish.pool, expected: wish.expected, apply: wish.apply };
    let operation = Machine::on_import(&request);
    let pins = Pins::looked_at(&config.state_dir);
    let imported =
        run_apart(config, "import", pins, operation, move |machine, reservation| machine.import(reservation, &request))?;
    Ok(tell(&imported, &wish.vg, &node, &driver, wish.claim.as_ref()))
}

/// What was found and done, as comments of YAML, and the objects.
fn tell(imported: &Imported, vg: &VgName, node: &NodeId, driver: &str, claim: Option<&Claimant>) -> String {
    let Imported { volume, pool, done } = imported;
    let tags: Vec<String> = volume.marks.tags().iter().map(ToString::to_string).collect();
    let state = if *done { "It is a volume of this driver now; its tags are:" } else { "It would get the tags:" };
    let mut text = format!(
        "# LV {vg}/{}: {} in pool {pool}, holds {}.\n# {state} {}\n",
        volume.id.lv,
        volume.size,
        volume.marks.life,
        tags.join(" ")
    );
    if !*done {
        text.push_str("# Nothing was changed; run it again with --apply.\n");
    }
    text.push_str(&objects(volume, vg, node, driver, claim));
    text
}

/// PersistentVolume and PersistentVolumeClaim. Texts of others are names of LVM, Kubernetes or CSI, whose characters need no escape
/// within quotes.
fn objects(volume: &Volume, vg: &VgName, node: &NodeId, driver: &str, claim: Option<&Claimant>) -> String {
    let name = object_name(vg, &volume.id.lv);
    let bytes = volume.size.0;
    let (mode, fs_type) = match volume.marks.life {
        Life::Formatted(kind) | Life::Formatting(kind) => ("Filesystem", format!("    fsType: \"{kind}\"\n")),
        Life::Blank => ("Filesystem", String::new()),
        Life::Raw => ("Block", String::new()),
    };
    let reference = claim.map_or_else(String::new, |claim| {
        format!(
            "  claimRef:\n    apiVersion: v1\n    kind: PersistentVolumeClaim\n    namespace: \"{}\"\n    name: \"{}\"\n",
            claim.namespace, claim.name
        )
    });
    let claimant = match claim {
        Some(claim) => format!("  namespace: \"{}\"\n  name: \"{}\"\n", claim.namespace, claim.name),
        None => format!("  name: \"{name}\"\n"),
    };
    let mut text = String::new();
    // Writing to a text does not fail.
    let _ = write!(
        text,
        "apiVersion: v1
kind: PersistentVolume
metadata:
  name: \"{name}\"
  labels:
    {driver}/imported: \"{name}\"
spec:
  capacity:
    storage: \"{bytes}\"
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  persistentVolumeReclaimPolicy: Retain
  storageClassName: \"\"
{reference}  csi:
    driver: \"{driver}\"
    volumeHandle: \"{handle}\"
{fs_type}    volumeAttributes:
      volumegroup: \"{vg_uuid}\"
      volumeID: \"{lv}\"
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - key: \"{key}\"
          operator: In
          values: [\"{node}\"]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
{claimant}spec:
  accessModes: [ReadWriteOnce]
  volumeMode: {mode}
  storageClassName: \"\"
  selector:
    matchLabels:
      {driver}/imported: \"{name}\"
  resources:
    requests:
      storage: \"{bytes}\"
",
        handle = volume.id,
        vg_uuid = volume.id.vg,
        lv = volume.id.lv,
        key = topology_key(driver),
    );
    text
}

/// A name of Kubernetes for a volume, of its group's and its own.
fn object_name(vg: &VgName, lv: &LvName) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut name: String = format!("{vg}-{lv}").chars().map(plain).take(LONGEST_NAME).collect();
    while name.ends_with('-') {
        name.pop();
    }
    name.trim_start_matches('-').to_owned()
}

/// Whether Kubernetes takes it as the name of an object.
fn is_name(text: &str) -> bool {
    let inner = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    let bytes = text.as_bytes();
    bytes.len() <= 253 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Bytes, FsKind, LvUuid, VgUuid, VolumeId};
    use crate::volume::tag::Marks;

    fn told(life: Life, done: bool, claim: Option<&str>) -> String {
        let id = VolumeId { vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(), lv: LvName::new("Data_1").unwrap() };
        let uuid = LvUuid::from_compact(&"l".repeat(32)).unwrap();
        let volume = Volume {
            id,
            uuid,
            size: Bytes(64 << 20),
            placement: crate::types::Placement::LINEAR,
            marks: Marks { life, ..Marks::blank() },
        };
        let claim = claim.map(|text| Claimant::parse(text).unwrap());
        let (vg, node) = (VgName::new("vg0").unwrap(), NodeId::new("node-a").unwrap());
        tell(&Imported { volume, pool: "linear".into(), done }, &vg, &node, "lvm.example.com", claim.as_ref())
    }

    #[test]
    fn the_objects_fit_each_other_and_the_volume() {
        let text = told(Life::Formatted(FsKind::Xfs), true, None);
        for line in [
            "  name: \"vg0-data-1\"",
            "    lvm.example.com/imported: \"vg0-data-1\"",
            "    storage: \"67108864\"",
            "    volumeHandle: \"vvvvvv-vvvv-vvvv-vvvv-vvvv-vvvv-vvvvvv/Data_1\"",
            "    fsType: \"xfs\"",
            "  volumeMode: Filesystem",
            "        - key: \"topology.lvm.example.com/node\"",
            "          values: [\"node-a\"]",
            "      lvm.example.com/imported: \"vg0-data-1\"",
        ] {
            assert!(text.lines().any(|there| there == line), "{line:?} is not in\n{text}");
        }
        assert!(!text.contains("claimRef") && !text.contains("--apply"), "{text}");
    }

    #[test]
    fn a_dry_run_says_so_and_a_claim_is_bound_both_ways() {
        let text = told(Life::Raw, false, Some("db/data-0"));
        assert!(text.contains("--apply") && text.contains("csi.fs=raw"), "{text}");
        assert!(text.contains("volumeMode: Block") && !text.contains("fsType"), "{text}");
        assert_eq!(text.matches("    namespace: \"db\"\n    name: \"data-0\"\n").count(), 1, "{text}");
        assert_eq!(text.matches("\n  namespace: \"db\"\n  name: \"data-0\"\n").count(), 1, "{text}");
    }

    #[test]
    fn a_claim_is_named_as_kubernetes_does() {
        for bad in ["data", "/data", "db/", "DB/data", "db/data/x", "db/-data", "db/da ta"] {
            assert_eq!(Claimant::parse(bad), None, "{bad}");
        }
        assert_eq!(object_name(&VgName::new("a".repeat(60)).unwrap(), &LvName::new("__x").unwrap()), "a".repeat(60));
        assert_eq!(object_name(&VgName::new("_vg").unwrap(), &LvName::new("data").unwrap()), "vg-data");
    }
}
