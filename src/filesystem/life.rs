//! The life of a volume's contents, and the one decision whether a filesystem may be made on it.
//!
//! ```text
//! [blank ──►] formatting=<t> ──► <t>        a filesystem volume
//! [blank ──►] raw                           a block volume
//! ```
//! The life is a tag, committed before what it announces. Nothing that once was `<t>` or `raw` is ever formatted again. A volume is
//! created as `formatting=<t>` where its filesystem type is known then; the node records when mkfs begins.

use super::{Kind, Life};
use crate::types::{Signature, SignatureUsage};

/// What a device shows. It exists only when every superblock area was read without an error: a probe that met one has not
/// seen the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceContent {
    /// Every signature, none when there is none.
    pub signatures: Vec<Signature>,
    /// Whether the filesystem there was never mounted; `None` when nobody looked.
    pub never_mounted: Option<bool>,
}

/// What to do next to bring a volume to a mountable filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Commit [`Life::Formatting`], then make the filesystem.
    CommitFormattingThenMake,
    /// Make the filesystem, over nothing or over what a dead run of ours left.
    Make,
    /// Mount it.
    MountIt,
    /// A person must look.
    Refuse(Refusal),
}

/// Why a device is neither formatted nor mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is, or is becoming, a filesystem of another kind.
    #[error("the volume holds {life}, not {wanted}; a volume keeps its first filesystem")]
    OtherKind {
        /// What it holds.
        life: Life,
        /// What was asked for.
        wanted: Kind,
    },
    /// It was given out as a block device and may hold anything.
    #[error("the volume was published as a raw block device and is never formatted or mounted")]
    Raw,
    /// Something stands where the tag says that nothing was ever written.
    #[error(
        "the volume was never formatted, but its device carries {found}; it is not overwritten: find out whose it is, and \
         remove it (wipefs) or the volume"
    )]
    Unexpected {
        /// What was found.
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
        /// What stands there.
        kind: Kind,
        uuid: String,
    },
    /// Something other than our own unused filesystem stands on a device that was being formatted.
    #[error(
        "formatting with {kind} was begun and did not end, but the device carries {found}, {why}; it is not overwritten: \
         find out whose it is, and remove it (wipefs) or the volume"
    )]
    NotOurs {
        /// What was being made.
        kind: Kind,
        /// What was found.
        found: String,
        /// Why it is not taken for what our own dead mkfs left.
        why: &'static str,
    },
    /// The filesystem is gone.
    #[error(
        "the volume was formatted with {kind}, but its device shows {found}; it is not formatted again: restore it, or \
         repair it by hand"
    )]
    Lost {
        /// What it was formatted with.
        kind: Kind,
        /// What was found.
        found: String,
    },
}

/// Decides the next step towards a mounted filesystem of kind `wanted` on a volume of this life, whose device shows `seen`. `has_begun`
/// tells whether our mkfs is known to have begun there. `uuid` is the UUID that it gives to a filesystem on this LV.
pub fn next_step(life: Life, has_begun: bool, seen: &DeviceContent, wanted: Kind, uuid: &str) -> Step {
    let refusal = match life {
        Life::Raw => Refusal::Raw,
        Life::Formatting(kind) | Life::Formatted(kind) if kind != wanted => Refusal::OtherKind { life, wanted },
        Life::Blank if seen.signatures.is_empty() => return Step::CommitFormattingThenMake,
        Life::Blank => Refusal::Unexpected { found: names(&seen.signatures) },
        Life::Formatting(kind) => match why_not_ours(kind, seen, uuid) {
            None => return Step::Make,
            Some(_) if !has_begun => Refusal::Unexpected { found: names(&seen.signatures) },
            Some(why) => Refusal::NotOurs { kind, found: names(&seen.signatures), why },
        },
        Life::Formatted(kind) if is_there(kind, seen) => return Step::MountIt,
        Life::Formatted(kind) => Refusal::Lost { kind, found: names(&seen.signatures) },
    };
    Step::Refuse(refusal)
}

/// Why what stands on the device cannot be a leaving of our own mkfs; `None` when it can, or when nothing stands there.
fn why_not_ours(kind: Kind, seen: &DeviceContent, uuid: &str) -> Option<&'static str> {
    match seen.signatures.as_slice() {
        [] => None,
        [only] if !is(only, kind) => Some("which is something else"),
        [only] if !only.uuid.as_deref().is_some_and(|found| found.eq_ignore_ascii_case(uuid)) => {
            Some("whose UUID is not the one that this driver gives it")
        }
        [_] => match seen.never_mounted {
            Some(true) => None,
            Some(false) => Some("which was mounted already"),
            None => Some("of which it is not known whether it was mounted"),
        },
        _ => Some("of which at most one can be ours"),
    }
}

/// Whether the filesystem that a volume was formatted with stands there: its superblock, at its place, decides.
///
/// What else shows a signature is mostly what others left at the end of the device: extents that were added hold what was on the disk
/// before, and a filesystem that grew over them need not have written there. A file of its user may look like anything, too. Only
/// where another filesystem or encryption begins as one does that was made over ours, somebody may have put it in place.
fn is_there(kind: Kind, seen: &DeviceContent) -> bool {
    let begins = |found: &Signature| found.offset.is_none_or(|offset| offset < BEGINNING);
    let counts = |found: &&Signature| matches!(found.usage, SignatureUsage::Filesystem | SignatureUsage::Crypto) && begins(found);
    let mut counting = seen.signatures.iter().filter(counts);
    counting.next().is_some_and(|found| is(found, kind)) && counting.next().is_none()
}

/// Filesystems and encryption that begin a device show it within so many bytes: the first two labels of ZFS reach furthest. Ours keep
/// their own structures there.
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

    /// The same where extents were added.
    fn at_the_end(kind: &str, usage: SignatureUsage) -> Signature {
        Signature { offset: Some((64 << 20) - (512 << 10)), ..signature(kind, usage, None) }
    }

    fn seen(signatures: &[Signature], never_mounted: Option<bool>) -> DeviceContent {
        DeviceContent { signatures: signatures.to_vec(), never_mounted }
    }

    fn luks() -> Signature {
        signature("crypto_LUKS", SignatureUsage::Crypto, None)
    }

    fn ours(kind: Kind) -> Signature {
        signature(kind.name(), SignatureUsage::Filesystem, Some(UUID))
    }

    #[test]
    fn a_blank_volume_is_formatted_only_where_nothing_stands() {
        for kind in Kind::ALL {
            assert_eq!(next_step(Life::Blank, false, &DeviceContent::default(), kind, UUID), Step::CommitFormattingThenMake);
            for found in [luks(), ours(kind), signature("gpt", SignatureUsage::PartitionTable, None)] {
                let step = next_step(Life::Blank, false, &seen(&[found], Some(true)), kind, UUID);
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
                assert_eq!(next_step(life, has_begun, &seen(&[ours(kind)], Some(true)), kind, UUID), Step::Make);
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
                let step = next_step(life, true, &seen(&signatures, never_mounted), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::NotOurs { .. })), "{signatures:?}: {step:?}");
                let step = next_step(life, false, &seen(&signatures, never_mounted), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::Unexpected { .. })), "{signatures:?}: {step:?}");
            }
        }
    }

    #[test]
    fn what_was_formatted_is_mounted_or_refused_and_never_made_again() {
        for kind in Kind::ALL {
            let life = Life::Formatted(kind);
            // A clone carries the UUID of its source.
            let clone = signature(kind.name(), SignatureUsage::Filesystem, Some("11111111-2222-8333-8444-555555555555"));
            assert_eq!(next_step(life, true, &seen(&[clone], None), kind, UUID), Step::MountIt);
            let misplaced = Signature { offset: Some(64 << 20), ..ours(kind) };
            for signatures in [vec![], vec![luks()], vec![ours(kind), luks()], vec![misplaced]] {
                let step = next_step(life, true, &seen(&signatures, Some(true)), kind, UUID);
                assert!(matches!(step, Step::Refuse(Refusal::Lost { .. })), "{signatures:?}: {step:?}");
            }
        }
    }

    #[test]
    fn remains_of_others_in_added_extents_do_not_keep_a_filesystem_from_its_mount() {
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
            let with = |first: &[Signature]| seen(&[first, &remains].concat(), None);
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
        for found in [DeviceContent::default(), seen(&[ours(Kind::Ext4)], Some(true))] {
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
    fn a_refusal_names_what_stands_there() {
        let mut found = ours(Kind::Xfs);
        found.label = Some("db".to_owned());
        let Step::Refuse(refusal) = next_step(Life::Blank, false, &seen(&[found, luks()], None), Kind::Ext4, UUID) else {
            panic!("formatted over a filesystem")
        };
        assert!(refusal.to_string().contains(&format!("xfs {UUID} labelled \"db\" and crypto_LUKS")), "{refusal}");
    }
}
