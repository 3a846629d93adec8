//! The part of an error that a tenant may read. Kubernetes writes the text of an answer into events of claims and pods, which belong to
//! tenants; a node's devices and their LVM UUIDs are for its operator only. So texts are written and logged in full, and pass through
//! [`discreet`] on their way out.

use super::ids::VgUuid;

/// Replaces a device.
const DEVICE: &str = "a device";
/// Replaces a UUID.
const UUID: &str = "…";
/// Length of an LVM UUID with its hyphens.
const UUID_BYTES: usize = 38;
/// Directories of device paths.
const ROOTS: [&str; 2] = ["/dev/", "/sys/"];
/// Parts of kubelet's paths, below which directories may have the names of [`ROOTS`].
const OF_KUBELET: [&str; 2] = ["/plugins/", "/pods/"];
/// Prefix of an LV's dm UUID, which contains two LVM UUIDs without hyphens and may have been cut.
const DM: &str = "LVM-";
/// Least length of the rest of a dm UUID: longer than any word.
const DM_BYTES: usize = 16;
/// Words before a device number; the longest first.
const NUMBERED: [&str; 2] = ["block device ", "device "];

/// A text for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discreet {
    pub text: String,
    /// Whether a device or a UUID was replaced; the log has it.
    pub lacks: bool,
}

/// Replaces devices and LVM's UUIDs in a text. The LV name in a volume's handle stays; it is the name of the PersistentVolume.
pub fn discreet(text: &str) -> Discreet {
    let mut result = Discreet { text: String::with_capacity(text.len()), lacks: false };
    let mut at = 0;
    let mut before = None;
    while let Some(next) = text[at..].chars().next() {
        let rest = &text[at..];
        // Inside a word, or a path that began before.
        let inside = before.is_some_and(|c: char| c.is_ascii_alphanumeric());
        let (length, instead) = match () {
            () if !inside && names_device(&rest[..path(rest)]) => (path(rest), DEVICE),
            () if !inside && numbered(rest) > 0 => (numbered(rest), DEVICE),
            () if !inside && before != Some('-') && rest.strip_prefix(DM).is_some_and(|uuid| word(uuid) >= DM_BYTES) => {
                (path(rest), DEVICE)
            }
            () if !inside && begins_with_uuid(rest) => match &rest[UUID_BYTES..] {
                after if after.starts_with('/') => {
                    before = Some('/');
                    at += UUID_BYTES + 1;
                    continue;
                }
                _ => (UUID_BYTES, UUID),
            },
            () => {
                result.text.push(next);
                before = Some(next);
                at += next.len_utf8();
                continue;
            }
        };
        result.text.push_str(instead);
        result.lacks = true;
        before = text[..at + length].chars().next_back();
        at += length;
    }
    result
}

/// Length in bytes of the letters and digits at the beginning of a text.
fn word(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_alphanumeric).count()
}

fn begins_with_uuid(text: &str) -> bool {
    text.get(..UUID_BYTES).and_then(VgUuid::new).is_some() && word(&text[UUID_BYTES..]) == 0
}

/// Whether a path names a device, even if the host's directories are mounted elsewhere (`/host/dev/sdb`).
fn names_device(path: &str) -> bool {
    let at = ROOTS.iter().filter_map(|root| path.find(root)).min();
    path.starts_with('/') && at.is_some_and(|at| !OF_KUBELET.iter().any(|of| path[..=at].contains(of)))
}

/// Length in bytes of a device with its number (`block device 253:3`) at the beginning of a text; 0 if there is none.
fn numbered(text: &str) -> usize {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let bytes = NUMBERED.iter().find_map(|words| {
        let major = digits(text.strip_prefix(words)?);
        let minor = digits(text[words.len() + major..].strip_prefix(':')?);
        (major > 0 && minor > 0).then_some(words.len() + major + 1 + minor)
    });
    bytes.unwrap_or(0)
}

/// Length in bytes of the path at the beginning of a text, without the punctuation of the sentence at its end.
fn path(text: &str) -> usize {
    let end = text.find(|c: char| c.is_whitespace() || c.is_control() || "\"'`;()[]{}<>|".contains(c)).unwrap_or(text.len());
    text[..end].trim_end_matches(['.', ',', ':', '!', '?']).len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VG: &str = "AbCdEf-0123-4567-89ab-cdef-0123-456789";

    #[test]
    fn devices_and_uuids_are_replaced_and_nothing_else() {
        for (text, expected) in [
            (format!("volume {VG}/pvc-1 does not exist"), "volume pvc-1 does not exist"),
            (format!("volume \"{VG}/pvc-1\": busy"), "volume \"pvc-1\": busy"),
            (format!("PV {VG} is missing"), "PV … is missing"),
            (format!("group vg0 ({VG}) is sick"), "group vg0 (…) is sick"),
            ("reading /dev/sdb: I/O error (os error 5)".to_owned(), "reading a device: I/O error (os error 5)"),
            ("/dev/sda, /dev/disk/by-path/pci-0000:00:1f.2-ata-1 and /dev/dm-3.".to_owned(), "a device, a device and a device."),
            ("mkfs.ext4 '/dev/mapper/a b'".to_owned(), "mkfs.ext4 'a device b'"),
            ("(/sys/block/sdb/queue)".to_owned(), "(a device)"),
            (format!("device LVM-{} is there", "x".repeat(64)), "device a device is there"),
            (format!("device LVM-{}", "x".repeat(20)), "device a device"),
            ("/host/dev/sdb: gone, and /host/sys/block/sdb".to_owned(), "a device: gone, and a device"),
            ("it is block device 253:3, not device 8:16".to_owned(), "it is a device, not a device"),
            ("by /dev/disk/by-path/ip-10.0.0.1:3260,1-lun-2, once".to_owned(), "by a device, once"),
            ("block device 253 is device a:1".to_owned(), "block device 253 is device a:1"),
            // A path of kubelet, the name of a volume, a longer word, other uses of the prefixes.
            ("/var/lib/kubelet/plugins/v/dev/1".to_owned(), "/var/lib/kubelet/plugins/v/dev/1"),
            ("pvc-0d2ce7ac-0000-4000-8000-000000000001".to_owned(), "pvc-0d2ce7ac-0000-4000-8000-000000000001"),
            (format!("{VG}x"), &format!("{VG}x")),
            ("ü / LVM-2 /device".to_owned(), "ü / LVM-2 /device"),
        ] {
            let result = discreet(&text);
            assert_eq!(result.text, expected, "{text}");
            assert_eq!(result.lacks, expected.contains('…') || expected.contains("a device"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn devices_and_uuids_are_replaced_in_any_context(before in "[^a-zA-Z0-9]?|.*[ \"'(,;=:]", after in "|[ \"'),;:\n].*", lv in "[a-z0-9.+_-]{1,9}") {
            for secret in [VG.to_owned(), format!("{VG}/{lv}"), "/dev/vg0/data".to_owned(), "/dev/disk/by-id/wwn-0x5".to_owned()] {
                let text = discreet(&format!("{before}{secret}{after}")).text;
                prop_assert!(!text.contains(VG) && !text.contains("/dev/vg0/") && !text.contains("by-id"), "{}", text);
            }
        }
    }
}
