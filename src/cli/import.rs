//! `lvm-csi import`: makes a volume of an LV created by hand, and prints two Kubernetes objects for it.

use std::fmt::Write;

use crate::config::Config;
use crate::controller::topology_key;
use crate::lvm::Pins;
use crate::machine::{Import, Imported, Machine};
use crate::types::{Life, LvName, NodeId, VgName};
use crate::volume::import::Expected;
use crate::volume::inventory::Volume;

use super::run_apart;

/// Longest generated object name, in bytes.
const LONGEST_NAME: usize = 63;

/// The claim that gets the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    pub namespace: String,
    pub name: String,
}

impl Claimant {
    /// Parses `NAMESPACE/NAME`; `None` for names that Kubernetes does not accept.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        (is_name(namespace) && is_name(name)).then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

#[derive(Clone, Debug)]
pub struct ImportRequest {
    pub vg: VgName,
    pub lv: LvName,
    /// The pool that must contain the LV.
    pub pool: Option<String>,
    /// The contents that the LV should have.
    pub expected: Option<Expected>,
    /// Whether to make the change.
    pub apply: bool,
    /// The claim that may bind the volume; without it, any claim that selects it.
    pub claim: Option<Claimant>,
}

/// Checks an LV, makes it a volume if requested, and returns the text to print: comments, then the objects.
///
/// # Errors
/// The LV cannot become a volume, or the operation could not start.
pub fn import(config: Config, wish: ImportRequest) -> anyhow::Result<String> {
    let (node, driver) = (config.node_id.clone(), config.driver_name.clone());
    let request = Import { vg: wish.vg.clone(), lv: wish.lv, pool: wish.pool, expected: wish.expected, apply: wish.apply };
    let operation = Machine::on_import(&request);
    let pins = Pins::looked_at(&config.state_dir);
    let imported =
        run_apart(config, "import", pins, operation, move |machine, reservation| machine.import(reservation, &request))?;
    Ok(render(&imported, &wish.vg, &node, &driver, wish.claim.as_ref()))
}

/// The findings and changes as YAML comments, and the objects.
fn render(imported: &Imported, vg: &VgName, node: &NodeId, driver: &str, claim: Option<&Claimant>) -> String {
    let Imported { volume, pool, done } = imported;
    let tags: Vec<String> = volume.marks.tags().iter().map(ToString::to_string).collect();
    let state = if *done { "It is now a volume of this driver, with the tags:" } else { "It would get the tags:" };
    let mut text = format!(
        "# LV {vg}/{}: {} in pool {pool}, holds {}.\n# {state} {}\n",
        volume.id.lv,
        volume.size,
        volume.marks.life,
        tags.join(" ")
    );
    if !*done {
        text.push_str("# Nothing was changed; repeat with --apply to import it.\n");
    }
    text.push_str(&objects(volume, vg, node, driver, claim));
    text
}

/// PersistentVolume and PersistentVolumeClaim. All inserted texts are names of LVM, Kubernetes or CSI; their characters need no
/// escape within quotes.
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
    // Writing to a string does not fail.
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

/// A Kubernetes object name for a volume, made of the names of its group and LV.
fn object_name(vg: &VgName, lv: &LvName) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let mut name: String = format!("{vg}-{lv}").chars().map(plain).take(LONGEST_NAME).collect();
    while name.ends_with('-') {
        name.pop();
    }
    name.trim_start_matches('-').to_owned()
}

/// Whether Kubernetes accepts it as an object name.
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

    fn rendered(life: Life, done: bool, claim: Option<&str>) -> String {
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
        render(&Imported { volume, pool: "linear".into(), done }, &vg, &node, "lvm.example.com", claim.as_ref())
    }

    #[test]
    fn the_objects_fit_each_other_and_the_volume() {
        let text = rendered(Life::Formatted(FsKind::Xfs), true, None);
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
        let text = rendered(Life::Raw, false, Some("db/data-0"));
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
