//! The UUID of a filesystem that we make on a volume.

use sha2::{Digest, Sha256};

use crate::types::LvUuid;

/// Separates this digest from any other digest of an LV's UUID.
const DOMAIN: &[u8] = b"lvm-csi filesystem uuid\0";

/// The UUID that mkfs gets for this LV, in text form (RFC 9562, version 8: 122 bits of a digest).
///
/// It is derived, not random: after a crash we recognise our half-made filesystem without a record of it.
pub fn uuid_for(lv: &LvUuid) -> String {
    let digest = Sha256::new().chain_update(DOMAIN).chain_update(lv.as_str()).finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    text(bytes)
}

/// The text form of a UUID: 8-4-4-4-12 lower-case hexadecimal digits.
pub(super) fn text(bytes: [u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (at, byte) in bytes.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            out.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_is_stable_and_says_that_it_is_derived() {
        let lv = LvUuid::new("AbCdEf-0123-4567-89ab-cdef-0123-456789").unwrap();
        let uuid = uuid_for(&lv);
        assert_eq!(uuid, UUID, "a changed derivation orphans half-made filesystems of the version before");
        assert_eq!(uuid.as_bytes()[14], b'8');
        assert!(b"89ab".contains(&uuid.as_bytes()[19]));
        let other = LvUuid::new("AbCdEf-0123-4567-89ab-cdef-0123-456780").unwrap();
        assert_ne!(uuid_for(&other), uuid);
    }

    const UUID: &str = "8d063900-4833-8f78-9d12-b69e518ff57a";
}
