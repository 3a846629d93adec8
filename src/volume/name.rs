//! LV names for CSI names, which may be any Unicode. The same CSI name always gives the same LV name, so a repeated call finds what an
//! earlier one made.

use sha2::{Digest, Sha256};

use crate::types::{EphemeralId, LvName};

/// Prefix of volumes that Kubernetes named.
const VOLUME: &str = "pvc-";
/// Prefix of snapshots that Kubernetes named.
const SNAPSHOT: &str = "snap-";
/// Prefixes of names that are digests: of volumes, snapshots and inline ephemeral volumes.
const DIGESTS: [&str; 3] = ["vh-", "sh-", "eh-"];
/// Length of a digest in bytes.
const DIGEST: usize = 20;
/// Hexadecimal digits in the parts of a UUID.
const UUID: [usize; 5] = [8, 4, 4, 4, 12];

/// The CSI name of a volume, with the LV name derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeName {
    csi: String,
    lv: LvName,
}

impl VolumeName {
    pub fn new(csi: impl Into<String>) -> Self {
        let csi = csi.into();
        let lv = of_volume(&csi);
        Self { csi, lv }
    }

    pub fn csi(&self) -> &str {
        &self.csi
    }

    pub fn lv(&self) -> &LvName {
        &self.lv
    }
}

/// The LV name of a volume: the CSI name itself if it is `pvc-` and up to 48 letters, digits or hyphens, as Kubernetes sends it; else
/// `vh-` and a digest of it.
pub fn of_volume(csi_name: &str) -> LvName {
    direct(csi_name.strip_prefix(VOLUME), VOLUME).unwrap_or_else(|| digest(DIGESTS[0], csi_name))
}

/// The LV name of a snapshot: `snap-…` for `snapshot-…`, since LVM reserves the prefix `snapshot`; else `sh-` and a digest.
pub fn of_snapshot(csi_name: &str) -> LvName {
    direct(csi_name.strip_prefix("snapshot-"), SNAPSHOT).unwrap_or_else(|| digest(DIGESTS[1], csi_name))
}

/// The LV name of an inline ephemeral volume: `eh-` and a digest, since its id is too long for a name.
pub fn of_ephemeral(id: &EphemeralId) -> LvName {
    digest(DIGESTS[2], id.as_str())
}

/// Globs for the names that this driver gives (`?` is one character, `*` any number): of all volumes, and of snapshots whose CSI name
/// is a UUID, as in Kubernetes, or became a digest.
pub fn globs() -> impl Iterator<Item = String> {
    let uuid = UUID.map(|signs| "?".repeat(signs)).join("-");
    let digests = DIGESTS.map(|prefix| format!("{prefix}{}*", "?".repeat(2 * DIGEST)));
    [format!("{VOLUME}*"), format!("{SNAPSHOT}{uuid}*")].into_iter().chain(digests)
}

/// Whether a name matches one of the [`globs`].
pub fn is_of_ours(name: &str) -> bool {
    let is_uuid = |rest: &str| {
        let mut parts = rest.splitn(UUID.len(), '-');
        UUID[..4].iter().all(|signs| parts.next().is_some_and(|part| part.len() == *signs))
            && parts.next().is_some_and(|part| part.len() >= UUID[4])
    };
    name.starts_with(VOLUME)
        || name.strip_prefix(SNAPSHOT).is_some_and(is_uuid)
        || DIGESTS.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.len() >= 2 * DIGEST))
}

fn direct(rest: Option<&str>, prefix: &str) -> Option<LvName> {
    let rest = rest?;
    // Only names of the form that Kubernetes makes are kept: they are unique, and short enough for a dm name.
    let plain = rest.len() <= 48 && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then(|| LvName::new(format!("{prefix}{rest}")).ok()).flatten()
}

fn digest(prefix: &str, csi_name: &str) -> LvName {
    let sum = Sha256::digest(csi_name.as_bytes());
    let hex: String = sum.iter().take(DIGEST).map(|byte| format!("{byte:02x}")).collect();
    LvName::new(format!("{prefix}{hex}")).expect("our prefix and hexadecimal digits always make a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kubernetes_stay_readable_and_all_others_are_digests() {
        let uuid = "0b6c6a0e-1111-4222-8333-444455556666";
        assert_eq!(of_volume(&format!("pvc-{uuid}")).as_str(), format!("pvc-{uuid}"));
        assert_eq!(of_snapshot(&format!("snapshot-{uuid}")).as_str(), format!("snap-{uuid}"));
        for odd in [
            "",
            "pvc-",
            "pvc-a/b",
            "../../etc",
            "-rf",
            "käse",
            "snapshot-1",
            "pvc-ü",
            &"x".repeat(128),
            &format!("pvc-{}", "a".repeat(124)),
        ] {
            let name = of_volume(odd);
            assert!(name.as_str().starts_with("vh-") && name.as_str().len() == 43, "{odd} gives {name}");
        }
        assert_ne!(of_volume("a"), of_volume("b"));
    }

    #[test]
    fn no_volume_takes_the_name_of_a_snapshot() {
        assert_ne!(of_volume("snap-1"), of_snapshot("snapshot-1"));
        assert_ne!(of_volume("sh-1").as_str()[..3], of_snapshot("sh-1").as_str()[..3]);
    }

    #[test]
    fn names_that_we_give_are_distinguished_from_others() {
        let uuid = "0b6c6a0e-1111-4222-8333-444455556666";
        let ephemeral = of_ephemeral(&EphemeralId::parse(&format!("csi-{}", "0".repeat(64))).unwrap());
        let ours = [of_volume("pvc-1"), of_volume("1"), of_snapshot(&format!("snapshot-{uuid}")), of_snapshot("1"), ephemeral];
        for name in ours.iter().map(LvName::as_str) {
            assert!(is_of_ours(name), "{name}");
            let fits = |glob: String| {
                let (fixed, any) = (glob.trim_end_matches('*'), glob.ends_with('*'));
                let signs = fixed.chars().zip(name.chars()).all(|(wanted, sign)| wanted == '?' || wanted == sign);
                signs && (fixed.len() == name.len() || any && name.len() > fixed.len())
            };
            assert!(globs().any(fits), "{name}");
        }
        for others in ["snap-home", "snap-0b6c6a0e-1111", "sh-history", "vh-1", "eh-", "root", "snapshots", "pvc"] {
            assert!(!is_of_ours(others), "{others}");
        }
    }
}
