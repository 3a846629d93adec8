//! The life of a volume's contents, and the one decision whether a filesystem may be made on it.
//!
//! ```text
//! [blank ──►] formatting=<t> ──► <t>        a filesystem volume
//! [blank ──►] raw                           a block volume
//! ```
//! The life is a tag, committed before what it announces. Nothing that once was `<t>` or `raw` is ever formatted again. A volume
//! that is to be mounted is created as `formatting=<t>`; the node records when mkfs begins, and until then it may get another type.
//!
//! A blank probe alone never allows mkfs. The probe must have read every superblock area without an error, the tag must say `blank` or
//! `formatting`, and no evidence may contradict it: a record that a pod was shown the volume, or a filesystem with the volume's derived
//! UUID that was ever mounted.

use super::{Kind, Life};
use crate::types::{Signature, SignatureUsage};

/// What a device shows. A value exists only if every superblock area was read without an error: after an error the content is
/// unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceContent {
    /// Every signature found.
    pub signatures: Vec<Signature>,
    /// Whether the filesystem there was never mounted; `None` if that was not checked.
    pub never_mounted: Option<bool>,
}

/// The next step towards a mountable filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Commit [`Life::Formatting`], then make the filesystem.
    CommitFormattingThenMake,
    /// Make the filesystem, over nothing or over what a dead run of ours left.
    Make,
    MountIt,
    /// Refuse: a person must look.
    Refuse(Refusal),
}

/// Why a device is neither formatted nor mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The volume has, or is getting, a filesystem of another kind.
    #[error("the volume holds {life}, not {wanted}; a volume keeps its first filesystem")]
    OtherKind {
        life: Life,
        /// The requested kind.
        wanted: Kind,
    },
    /// The volume was published as a block device and may hold anything.
    #[error("the volume was published as a raw block device and is never formatted or mounted")]
    Raw,
    /// The device has a signature although the tag says that nothing was ever written.
    #[error(
        "the volume was never formatted, but its device carries {found}, which is not overwritten. Find out whose it is, and \
         remove it (wipefs) or the volume"
    )]
    Unexpected {
        /// The signatures.
        found: String,
    },
    /// The tag is older than the filesystem.
    #[error(
        "its tags say that the volume was never used ({life}), but its device carries {kind} {uuid}, which this driver made for this very \
         volume and which was mounted: its metadata are older than its data (vgcfgrestore?). Nothing was written. Bring newer metadata \
         back; or, once you have seen that its data are there, run lvchange --deltag csi.fs={life} --addtag csi.fs={kind} on its LV"
    )]
    Used {
        /// What the tags say.
        life: Life,
        /// The filesystem on the device.
        kind: Kind,
        uuid: String,
    },
    /// A device that was being formatted has something other than our own unused filesystem.
    #[error(
        "formatting with {kind} began and did not finish, but the device carries {found}, {why}, so it is not overwritten. \
         Find out whose it is, and remove it (wipefs) or the volume"
    )]
    NotOurs {
        /// The filesystem that was being made.
        kind: Kind,
        /// The signatures.
        found: String,
        /// Why our own dead mkfs cannot have left it.
        why: &'static str,
    },
    #[error(
        "the volume was formatted with {kind}, but its device shows {found}. It is not formatted again: restore it, or \
         repair it by hand"
    )]
    Lost {
        /// The filesystem that it was formatted with.
        kind: Kind,
        /// The signatures.
        found: String,
    },
}

/// Decides the next step towards a mounted filesystem of kind `wanted` on a volume of this life, whose device shows `content`. `has_begun`
/// tells whether our mkfs is known to have begun there. `uuid` is the UUID that it gives to a filesystem on this LV.
pub fn next_step(life: Life, has_begun: bool, content: &DeviceContent, wanted: Kind, uuid: &str) -> Step {
    let refusal = match life {
        Life::Raw => Refusal::Raw,
        // Until mkfs begins, a volume may still get a filesystem of another kind.
        Life::Formatting(kind) if kind != wanted && !has_begun => return next_step(Life::Blank, false, content, wanted, uuid),
        Life::Formatting(kind) | Life::Formatted(kind) if kind != wanted => Refusal::OtherKind { life, wanted },
        Life::Blank if content.signatures.is_empty() => return Step::CommitFormattingThenMake,
        Life::Blank => Refusal::Unexpected { found: names(&content.signatures) },
        Life::Formatting(kind) => match why_not_ours(kind, content, uuid) {
            None => return Step::Make,
            Some(_) if !has_begun => Refusal::Unexpected { found: names(&content.signatures) },
            Some(why) => Refusal::NotOurs { kind, found: names(&content.signatures), why },
        },
        Life::Formatted(kind) if is_there(kind, content) => return Step::MountIt,
        Life::Formatted(kind) => Refusal::Lost { kind, found: names(&content.signatures) },
    };
    Step::Refuse(refusal)
}

/// Why our own mkfs cannot have left what is on the device; `None` if it can, or if nothing is there.
fn why_not_ours(kind: Kind, content: &DeviceContent, uuid: &str) -> Option<&'static str> {
    match content.signatures.as_slice() {
        [] => None,
        [only] if !is(only, kind) => Some("which is something else"),
        [only] if !only.uuid.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(uuid)) => {
            Some("whose UUID is not the one that this driver gives it")
        }
        [_] => match content.never_mounted {
            Some(true) => None,
            Some(false) => Some("which was already mounted"),
            None => Some("which may have been mounted"),
        },
        _ => Some("at most one of which can be ours"),
    }
}

/// Whether the filesystem that a volume was formatted with is there: its superblock, at its place, decides.
///
/// Other signatures are mostly remains at the end of the device: added extents hold what was on the disk before, and a filesystem
/// that grew over them need not have written there. A user's file may look like anything, too. Only another filesystem or
/// encryption at the beginning of the device counts, since somebody may have made it over ours.
fn is_there(kind: Kind, content: &DeviceContent) -> bool {
    let begins = |found: &Signature| found.offset.is_none_or(|offset| offset < BEGINNING);
    let counts = |found: &&Signature| matches!(found.usage, SignatureUsage::Filesystem | SignatureUsage::Crypto) && begins(found);
    let mut counting = content.signatures.iter().filter(counts);
    counting.next().is_some_and(|found| is(found, kind)) && counting.next().is_none()
}

/// Filesystems and encryption at the beginning of a device show it within this many bytes: the first two labels of ZFS reach
/// furthest. Our filesystems keep their own structures there.
const BEGINNING: u64 = 512 << 10;

fn is(signature: &Signature, kind: Kind) -> bool {
    signature.usage == SignatureUsage::Filesystem && signature.kind == kind.name()
}

fn names(signatures: &[Signature]) -> String {
    if signatures.is_empty() {
        return "no signature at all".to_owned();
    }
    signatures.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "5d8f7a52-90a1-8bcd-9d3e-0123456789ab";

    fn signature(kind: &str, usage: SignatureUsage, uuid: Option<&str>) -> Signature {
        Signature { kind: kind.to_owned(), usage, uuid: uuid.map(str::to_owned), label: None, damaged: false, offset: Some(0) }
    }

    /// A signature in added extents.
    fn at_the_end(kind: &str, usage: SignatureUsage) -> Signature {
        Signature { offset: Some((64 << 20) - (512 << 10)), ..signature(kind, usage, None) }
    }

    fn content(signatures: &[Signature], never_mounted: Option<bool>) -> DeviceContent {
        DeviceContent { signatures: signatures.to_vec(), never_mounted }
    }

    fn luks() -> Signature {
        signature("crypto_LUKS", SignatureUsage::Crypto, None)
    }

    fn ours(kind: Kind) -> Signature {
        signature(kind.name(), SignatureUsage::Filesystem, Some(UUID))
    }

    #[test]
    fn a_blank_volume_is_formatted_only_without_any_signature() {
        for kind in Kind::ALL {
            assert_eq!(next_step(Life::Blank, false, &DeviceContent::default(), kind, UUID), Step::CommitFormattingThenMake);
            for found in [luks(), ours(kind), signature("gpt", SignatureUsage::PartitionTable, None)] {
                let step = next_step(Life::Blank, false, &content(&[found], Some(true)), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::Unexpected { .. })), "{step:?}");
            }
        }
    }

    #[test]
    fn an_interrupted_mkfs_is_done_again_only_over_its_own_leavings() {
        for kind in Kind::ALL {
            let life = Life::Formatting(kind);
            for has_begun in [false, true] {
                assert_eq!(next_step(life, has_begun, &DeviceContent::default(), kind, UUID), Step::Make);
                assert_eq!(next_step(life, has_begun, &content(&[ours(kind)], Some(true)), kind, UUID), Step::Make);
            }
            let other_uuid = signature(kind.name(), SignatureUsage::Filesystem, Some("11111111-2222-8333-8444-555555555555"));
            let no_uuid = signature(kind.name(), SignatureUsage::Filesystem, None);
            let not_a_filesystem = signature(kind.name(), SignatureUsage::Other, Some(UUID));
            for (signatures, never_mounted) in [
                (vec![ours(kind)], Some(false)),
                (vec![ours(kind)], None),
                (vec![other_uuid], Some(true)),
                (vec![no_uuid], Some(true)),
                (vec![not_a_filesystem], Some(true)),
                (vec![luks()], Some(true)),
                (vec![ours(kind), luks()], Some(true)),
            ] {
                let step = next_step(life, true, &content(&signatures, never_mounted), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::NotOurs { .. })), "{signatures:?}: {step:?}");
                let step = next_step(life, false, &content(&signatures, never_mounted), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::Unexpected { .. })), "{signatures:?}: {step:?}");
            }
        }
    }

    #[test]
    fn a_formatted_volume_is_mounted_or_refused_and_never_formatted_again() {
        for kind in Kind::ALL {
            let life = Life::Formatted(kind);
            // A clone has the UUID of its source.
            let clone = signature(kind.name(), SignatureUsage::Filesystem, Some("11111111-2222-8333-8444-555555555555"));
            assert_eq!(next_step(life, true, &content(&[clone], None), kind, UUID), Step::MountIt);
            let misplaced = Signature { offset: Some(64 << 20), ..ours(kind) };
            for signatures in [vec![], vec![luks()], vec![ours(kind), luks()], vec![misplaced]] {
                let step = next_step(life, true, &content(&signatures, Some(true)), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::Lost { .. })), "{signatures:?}: {step:?}");
            }
        }
    }

    #[test]
    fn remains_in_added_extents_do_not_prevent_a_mount() {
        let remains = [
            signature("linux_raid_member", SignatureUsage::Raid, None),
            signature("gpt", SignatureUsage::PartitionTable, None),
            at_the_end("zfs_member", SignatureUsage::Filesystem),
            at_the_end("nilfs2", SignatureUsage::Filesystem),
            at_the_end("crypto_LUKS", SignatureUsage::Crypto),
            at_the_end("drbd", SignatureUsage::Raid),
            signature("swap", SignatureUsage::Other, None),
        ];
        for kind in Kind::ALL {
            let with = |first: &[Signature]| content(&[first, &remains].concat(), None);
            assert_eq!(next_step(Life::Formatted(kind), true, &with(&[ours(kind)]), kind, UUID), Step::MountIt);
            // At the beginning they are no remains; nor is it known of what does not tell its place.
            let in_place = signature("zfs_member", SignatureUsage::Filesystem, None);
            let anywhere = Signature { offset: None, ..luks() };
            for lost in [vec![], vec![ours(kind), ours(kind)], vec![ours(kind), in_place], vec![ours(kind), anywhere]] {
                let step = next_step(Life::Formatted(kind), true, &with(&lost), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::Lost { .. })), "{lost:?}: {step:?}");
            }
        }
    }

    #[test]
    fn a_volume_keeps_its_kind_and_a_raw_one_is_never_touched() {
        for found in [DeviceContent::default(), content(&[ours(Kind::Ext4)], Some(true))] {
            for kind in Kind::ALL {
                assert_eq!(next_step(Life::Raw, true, &found, kind, UUID), Step::Refuse(Refusal::Raw));
            }
            for life in [Life::Formatting(Kind::Ext4), Life::Formatted(Kind::Ext4)] {
                let step = next_step(life, true, &found, Kind::Xfs, UUID);
                assert_eq!(step, Step::Refuse(Refusal::OtherKind { life, wanted: Kind::Xfs }));
            }
        }
    }

    #[test]
    fn another_kind_is_made_until_mkfs_begins() {
        let life = Life::Formatting(Kind::Xfs);
        let step = |has_begun, content: &DeviceContent| next_step(life, has_begun, content, Kind::Ext4, UUID);
        assert_eq!(step(false, &DeviceContent::default()), Step::CommitFormattingThenMake);
        assert_eq!(step(true, &DeviceContent::default()), Step::Refuse(Refusal::OtherKind { life, wanted: Kind::Ext4 }));
        assert!(matches!(step(false, &content(&[luks()], None)), Step::Refuse(Refusal::Unexpected { .. })));
    }

    #[test]
    fn a_refusal_names_what_is_there() {
        let mut found = ours(Kind::Xfs);
        found.label = Some("db".to_owned());
        let Step::Refuse(refusal) = next_step(Life::Blank, false, &content(&[found, luks()], None), Kind::Ext4, UUID) else {
            panic!("formatted over a filesystem")
        };
        assert!(refusal.to_string().contains(&format!("xfs {UUID} labelled \"db\" and crypto_LUKS")), "{refusal}");
    }
}
