//! Ids: LVM's UUIDs, the handles that the driver gives to the container orchestrator, and the orchestrator's own ids.

use std::fmt;

use super::names::LvName;

/// Lengths of the groups of an LVM UUID, in characters.
const GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];

/// Whether a text has the form of an LVM UUID: `6-4-4-4-4-4-6` letters and digits.
fn is_lvm_uuid(text: &str) -> bool {
    let mut parts = text.split('-');
    GROUPS
        .iter()
        .all(|length| parts.next().is_some_and(|part| part.len() == *length && part.bytes().all(|b| b.is_ascii_alphanumeric())))
        && parts.next().is_none()
}

macro_rules! lvm_uuid {
    ($name:ident, $of:literal) => {
        #[doc = concat!("The LVM UUID of a ", $of, ", with its hyphens (38 characters).")]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// `None` if the text has another form.
            pub fn new(text: &str) -> Option<Self> {
                is_lvm_uuid(text).then(|| Self(text.to_owned()))
            }

            /// With hyphens, as LVM prints it.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The 32 characters without hyphens, as in PV labels and dm UUIDs.
            pub fn compact(&self) -> String {
                self.0.chars().filter(|c| *c != '-').collect()
            }

            /// Builds it from the 32 characters without hyphens; `None` if the text has another form.
            pub fn from_compact(text: &str) -> Option<Self> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    return None;
                }
                let mut out = String::with_capacity(38);
                let mut at = 0;
                for length in GROUPS {
                    if at > 0 {
                        out.push('-');
                    }
                    out.push_str(&text[at..at + length]);
                    at += length;
                }
                Some(Self(out))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

lvm_uuid!(VgUuid, "volume group");
lvm_uuid!(LvUuid, "logical volume");
lvm_uuid!(PvUuid, "physical volume");

macro_rules! handle {
    ($name:ident, $of:literal) => {
        #[doc = concat!("The handle of a ", $of, ": `<vg uuid>/<lv name>`, at most 102 bytes. It stays valid when the disks move.")]
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            pub vg: VgUuid,
            pub lv: LvName,
        }

        impl $name {
            /// Reads a handle; `None` for a text that no handle of this driver has, so the object does not exist.
            pub fn parse(text: &str) -> Option<Self> {
                let (vg, lv) = text.split_once('/')?;
                Some(Self { vg: VgUuid::new(vg)?, lv: LvName::new(lv).ok()? })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}/{}", self.vg, self.lv)
            }
        }
    };
}

handle!(VolumeId, "volume");
handle!(SnapshotId, "snapshot");

/// kubelet's id of an inline ephemeral volume: `csi-` and the SHA-256, in hexadecimal digits, of its pod's UID and its name in the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EphemeralId(String);

impl EphemeralId {
    /// `None` if the text has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let digest = text.strip_prefix("csi-")?;
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        (digest.len() == 64 && digest.bytes().all(hex)).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EphemeralId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The orchestrator's name of a node (CSI: at most 256 bytes; a Kubernetes node name fits into a label).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(String);

impl NodeId {
    /// Checks a node name, which becomes a topology value: 1 to 63 letters, digits, `-`, `_`, `.`, with a letter or digit at both ends;
    /// `None` otherwise.
    pub fn new(text: &str) -> Option<Self> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        (bytes.len() <= 63 && bytes.iter().all(|b| inner(*b)) && edge(bytes.first()) && edge(bytes.last()))
            .then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "AbCdEf-0123-4567-89ab-cdef-0123-456789";

    #[test]
    fn lvm_uuids_round_trip_through_the_compact_form() {
        let id = LvUuid::new(UUID).unwrap();
        assert_eq!(id.compact().len(), 32);
        assert_eq!(LvUuid::from_compact(&id.compact()), Some(id));
        assert_eq!(VgUuid::new("fake-vol-id"), None);
        assert_eq!(VgUuid::from_compact("é".repeat(16).as_str()), None);
    }

    #[test]
    fn an_ephemeral_id_is_not_a_handle() {
        let id = format!("csi-{}", "0a".repeat(32));
        assert_eq!(EphemeralId::parse(&id).unwrap().as_str(), id);
        assert_eq!(VolumeId::parse(&id), None);
        for other in ["csi-", "csi-0a", &id.to_uppercase(), &format!("{id}0"), &format!("csi-{}", "0g".repeat(32)), &id[4..]] {
            assert_eq!(EphemeralId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_text_of_another_form_is_not_a_handle() {
        let id = VolumeId::parse(&format!("{UUID}/pvc-1")).unwrap();
        assert_eq!(id.to_string(), format!("{UUID}/pvc-1"));
        for other in ["", "/", "fake-vol-id", "a/b", &format!("{UUID}/"), &format!("{UUID}/a/b"), &format!("{UUID}/../x")] {
            assert_eq!(VolumeId::parse(other), None, "{other}");
        }
    }
}
