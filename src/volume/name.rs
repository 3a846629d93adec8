//! From a CSI name, which may be any Unicode, to the name of an LV. The same CSI name always gives the same LV name, so that a
//! repeated call finds what an earlier one made.

use sha2::{Digest, Sha256};

use crate::types::{EphemeralId, LvName};

/// The LV name of a volume: the CSI name itself where it is `pvc-…` in LVM's characters, as Kubernetes sends it; else `vh-` and a
/// digest of it.
pub fn of_volume(csi_name: &str) -> LvName {
    direct(csi_name.strip_prefix("pvc-"), "pvc-").unwrap_or_else(|| digest("vh-", csi_name))
}

/// The LV name of a snapshot: `snap-…` for `snapshot-…`, whose own beginning LVM reserves; else `sh-` and a digest.
pub fn of_snapshot(csi_name: &str) -> LvName {
    direct(csi_name.strip_prefix("snapshot-"), "snap-").unwrap_or_else(|| digest("sh-", csi_name))
}

/// The LV name of an inline ephemeral volume: `eh-` and a digest, since its id is longer than a name may be.
pub fn of_ephemeral(id: &EphemeralId) -> LvName {
    digest("eh-", id.as_str())
}

fn direct(rest: Option<&str>, prefix: &str) -> Option<LvName> {
    let rest = rest?;
    // Only what Kubernetes makes is taken as it is: long enough to be unique, short enough for a dm name.
    let plain = rest.len() <= 48 && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then(|| LvName::new(format!("{prefix}{rest}")).ok()).flatten()
}

fn digest(prefix: &str, csi_name: &str) -> LvName {
    let sum = Sha256::digest(csi_name.as_bytes());
    let hex: String = sum.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    LvName::new(format!("{prefix}{hex}")).expect("a prefix of ours and hexadecimal digits are always a name")
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
}
