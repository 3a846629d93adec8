//! What a tenant may read of an error. Kubernetes writes the text of an answer into events of claims and pods, and these belong to
//! tenants; what devices a node has, and by what UUIDs LVM knows them, is its operator's business. So texts are written in full, logged in
//! full, and pass here on their way out.

use super::ids::VgUuid;

/// What stands for a device.
const DEVICE: &str = "a device";
/// What stands for a UUID.
const UUID: &str = "…";
/// Length of a UUID of LVM, with its hyphens.
const UUID_BYTES: usize = 38;
/// Where paths begin that name devices.
const ROOTS: [&str; 2] = ["/dev/", "/sys/"];
/// What is in paths of kubelet, whose directories may be called as those of devices are.
const OF_KUBELET: [&str; 2] = ["/plugins/", "/pods/"];
/// What begins the dm UUID of an LV, which holds two of LVM's without hyphens; it may have been cut.
const DM: &str = "LVM-";
/// No word is so long.
const DM_BYTES: usize = 16;
/// What stands before the numbers of a device; the longest first.
const NUMBERED: [&str; 2] = ["block device ", "device "];

/// A text for everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discreet {
    /// The text.
    pub text: String,
    /// Whether a device or a UUID was left out, which the log has.
    pub lacks: bool,
}

/// Leaves out of a text the paths of devices and LVM's UUIDs. Of the handle of a volume the name of its LV stays, which is that of its
/// PersistentVolume.
pub fn discreet(text: &str) -> Discreet {
    let mut told = Discreet { text: String::with_capacity(text.len()), lacks: false };
    let mut at = 0;
    let mut before = None;
    while let Some(next) = text[at..].chars().next() {
        let rest = &text[at..];
        // Of a word, or of a path that begins elsewhere.
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
                told.text.push(next);
                before = Some(next);
                at += next.len_utf8();
                continue;
            }
        };
        told.text.push_str(instead);
        told.lacks = true;
        before = text[..at + length].chars().next_back();
        at += length;
    }
    told
}

/// Bytes of the letters and digits that a text begins with.
fn word(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_alphanumeric).count()
}

fn begins_with_uuid(text: &str) -> bool {
    text.get(..UUID_BYTES).and_then(VgUuid::new).is_some() && word(&text[UUID_BYTES..]) == 0
}

/// Whether a path is that of a device, also where the host's directories are mounted elsewhere (`/host/dev/sdb`).
fn names_device(path: &str) -> bool {
    let at = ROOTS.iter().filter_map(|root| path.find(root)).min();
    path.starts_with('/') && at.is_some_and(|at| !OF_KUBELET.iter().any(|of| path[..=at].contains(of)))
}

/// Bytes of the device that a text begins with by its numbers (`block device 253:3`); 0 where it does not.
fn numbered(text: &str) -> usize {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let bytes = NUMBERED.iter().find_map(|words| {
        let major = digits(text.strip_prefix(words)?);
        let minor = digits(text[words.len() + major..].strip_prefix(':')?);
        (major > 0 && minor > 0).then_some(words.len() + major + 1 + minor)
    });
    bytes.unwrap_or(0)
}

/// Bytes of the path that a text begins with. Signs at its end are of the sentence.
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
    fn devices_and_uuids_are_left_out_and_nothing_else() {
        for (text, told) in [
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
            // A path of kubelet, a UUID of a filesystem, a name, a word that is longer.
            ("/var/lib/kubelet/plugins/v/dev/1".to_owned(), "/var/lib/kubelet/plugins/v/dev/1"),
            ("pvc-0d2ce7ac-0000-4000-8000-000000000001".to_owned(), "pvc-0d2ce7ac-0000-4000-8000-000000000001"),
            (format!("{VG}x"), &format!("{VG}x")),
            ("ü / LVM-2 /device".to_owned(), "ü / LVM-2 /device"),
        ] {
            let found = discreet(&text);
            assert_eq!(found.text, told, "{text}");
            assert_eq!(found.lacks, told.contains('…') || told.contains("a device"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn wherever_they_stand(before in "[^a-zA-Z0-9]?|.*[ \"'(,;=:]", after in "|[ \"'),;:\n].*", lv in "[a-z0-9.+_-]{1,9}") {
            for secret in [VG.to_owned(), format!("{VG}/{lv}"), "/dev/vg0/data".to_owned(), "/dev/disk/by-id/wwn-0x5".to_owned()] {
                let told = discreet(&format!("{before}{secret}{after}")).text;
                prop_assert!(!told.contains(VG) && !told.contains("/dev/vg0/") && !told.contains("by-id"), "{}", told);
            }
        }
    }
}
