//! Importing an LV that somebody made by hand as a volume: what must hold before, and which tags it gets. Its name and its bytes stay.

use crate::lvm::command::Command;
use crate::lvm::metadata::{Lv, SegmentKind};
use crate::types::{Bytes, Error, FsKind, Life, LvName, LvUuid, Placement, Signature, SignatureUsage, VolumeId};

use super::inventory::{Class, Inventory, Volume};
use super::tag::{self, Marks};
use super::{Decision, Step, may_change, may_reshape};

/// What a person says is on the LV; the probe must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Filesystem(FsKind),
    /// Data that its user wrote to a raw block device.
    Raw,
}

/// What the probe found on the LV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub signatures: Vec<Signature>,
    /// The places of signatures hold only zeroes.
    pub blank: bool,
}

impl Content {
    fn describe(&self) -> String {
        let name = |one: &Signature| if one.damaged { format!("a damaged {}", one.kind) } else { one.kind.clone() };
        match (self.signatures.as_slice(), self.blank) {
            ([], true) => "only zeroes in the places of signatures".to_owned(),
            ([], false) => "bytes of an unknown kind".to_owned(),
            (some, _) => some.iter().map(name).collect::<Vec<_>>().join(" and "),
        }
    }

    /// The life of a volume with this content. The driver never formats an imported LV, so an empty one cannot be imported to get a
    /// filesystem later.
    ///
    /// # Errors
    /// Why the LV cannot be imported, and what to do.
    pub fn life(&self, expected: Option<Expected>) -> Result<Life, String> {
        let holds = self.describe();
        match (self.signatures.as_slice(), expected) {
            (all, Some(Expected::Raw)) if !all.iter().any(is_filesystem) => Ok(Life::Raw),
            (_, Some(Expected::Raw)) => Err(format!("it holds {holds}, which is not what --filesystem raw says")),
            ([one], expected) if is_filesystem(one) && !one.damaged => match FsKind::parse(&one.kind) {
                Some(kind) if expected.is_none_or(|said| said == Expected::Filesystem(kind)) => Ok(Life::Formatted(kind)),
                Some(kind) => Err(format!("it holds {kind}, which is not what --filesystem says")),
                None => Err(format!("it holds {holds}; this driver serves {}", FsKind::ALL.map(FsKind::name).join(" and "))),
            },
            (_, Some(Expected::Filesystem(kind))) => Err(format!("it holds {holds}, not just {kind}")),
            (_, None) => Err(format!(
                "it holds {holds}; if a user of a raw block device wrote that, pass --filesystem raw, and the driver will never make a \
                 filesystem on it"
            )),
        }
    }
}

fn is_filesystem(signature: &Signature) -> bool {
    signature.usage == SignatureUsage::Filesystem
}

/// The LV with this name, if it can be imported.
///
/// # Errors
/// Why it cannot.
pub fn candidate<'a>(inventory: &'a Inventory, name: &LvName) -> Result<&'a Lv, Error> {
    let vg = &inventory.vg;
    let refuse = |reason: String| Err(Error::precondition(format!("LV {}/{name}", vg.name), reason));
    may_change(vg)?;
    let (Some(lv), Some(class)) = (vg.lv(name.as_str()), inventory.class(name.as_str())) else {
        return refuse("it does not exist; see lvs".to_owned());
    };
    match class {
        Class::Foreign => {}
        Class::Pool => return refuse("it is a thin pool; import its volumes instead".to_owned()),
        Class::Hidden => {
            return refuse("it is a part of another LV, or a copy-on-write snapshot".to_owned());
        }
        Class::Others(_) => return refuse(inventory.others(name).unwrap_or_default()),
        Class::Damaged(why) => return refuse(format!("it is already this driver's, and {why}")),
        Class::Volume(_) | Class::Unfinished(_) | Class::Snapshot(_) | Class::Ephemeral(_) | Class::Renamed(_) => {
            return refuse("it is already this driver's".to_owned());
        }
    }
    if let Some(tag) = lv.tags.iter().find(|tag| tag::is_ours(tag)) {
        return refuse(format!(
            "it has the tag {tag}, which would mean something to this driver; remove it with lvchange --deltag"
        ));
    }
    match lv.segments.first().map(|segment| &segment.kind) {
        _ if Placement::of(lv) == Some(Placement::LINEAR) => {}
        Some(SegmentKind::Thin { external_origin: None, merging: false, .. }) => {}
        Some(SegmentKind::Thin { .. }) => return refuse("it reads from an external origin, or is being merged".to_owned()),
        Some(SegmentKind::Other { type_name, .. }) => {
            return refuse(format!("it is {type_name}; only linear and thin LVs can be imported"));
        }
        _ => return refuse("it is striped; only linear and thin LVs can be imported".to_owned()),
    }
    may_reshape(vg, Some(lv), &format!("LV {}/{name}", vg.name))?;
    let dependents = vg.dependents(name.as_str());
    if !dependents.is_empty() {
        return refuse(format!("other LVs depend on it: {}; remove them first", dependents.join(", ")));
    }
    if !lv.writable {
        return refuse(format!("it is read-only; run lvchange -prw {}/{name}", vg.name));
    }
    Ok(lv)
}

/// The volume that this LV becomes.
pub fn adopted(inventory: &Inventory, lv: &Lv, name: &LvName, life: Life) -> Volume {
    let vg = &inventory.vg;
    let placement = Placement::of(lv).unwrap_or(Placement::LINEAR);
    let size = vg.lv_size(lv);
    // A raw LV holds its owner's own data; only its later growth is zeroed.
    let zeroed = if life == Life::Raw && placement.needs_zeroing() { size } else { Bytes(0) };
    let marks = Marks { life, zeroed, ..inventory.new_marks(name) };
    Volume { id: VolumeId { vg: vg.uuid.clone(), lv: name.clone() }, uuid: lv.uuid.clone(), size, placement, marks }
}

/// Decides the next step to import an LV as this volume.
pub fn decide(inventory: &Inventory, wanted: &Volume) -> Decision<Volume> {
    if let Some(volume) = inventory.volume(&wanted.id).filter(|volume| volume.uuid == wanted.uuid) {
        return Decision::AlreadyThere(volume.clone());
    }
    let is_it = |lv: &&Lv| lv.uuid == wanted.uuid && inventory.vg.lv_size(lv) == wanted.size;
    match candidate(inventory, &wanted.id.lv) {
        Err(error) => Decision::Refuse(error),
        Ok(lv) if is_it(&lv) => Decision::Do(Step::Lvm(adopt(inventory, &wanted.id.lv, &wanted.uuid, &wanted.marks))),
        Ok(_) => {
            let reason = "somebody changed it while the driver examined it; run the import again";
            Decision::Refuse(Error::precondition(format!("LV {}/{}", inventory.vg.name, wanted.id.lv), reason))
        }
    }
}

fn adopt(inventory: &Inventory, lv: &LvName, uuid: &LvUuid, marks: &Marks) -> Command {
    Command::Adopt { vg: inventory.vg.name.clone(), lv: lv.clone(), uuid: uuid.clone(), tags: marks.tags() }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Group, lv, thin};
    use super::*;

    fn name(text: &str) -> LvName {
        LvName::new(text).unwrap()
    }

    fn content(signatures: &[(&str, bool)]) -> Content {
        let one = |(kind, is_filesystem): &(&str, bool)| Signature {
            kind: (*kind).to_owned(),
            usage: if *is_filesystem { SignatureUsage::Filesystem } else { SignatureUsage::Other },
            uuid: None,
            label: None,
            damaged: false,
            offset: None,
        };
        Content { signatures: signatures.iter().map(one).collect(), blank: signatures.is_empty() }
    }

    #[test]
    fn the_probe_decides_and_the_expected_content_must_agree() {
        use Expected::{Filesystem, Raw};
        let (ext4, xfs) = (content(&[("ext4", true)]), content(&[("xfs", true)]));
        assert_eq!(ext4.life(None).unwrap(), Life::Formatted(FsKind::Ext4));
        assert_eq!(xfs.life(Some(Filesystem(FsKind::Xfs))).unwrap(), Life::Formatted(FsKind::Xfs));
        assert!(ext4.life(Some(Filesystem(FsKind::Xfs))).is_err() && ext4.life(Some(Raw)).is_err());
        let unknown = Content { signatures: vec![], blank: false };
        for raw in [content(&[]), unknown, content(&[("gpt", false)]), content(&[("crypto_LUKS", false)])] {
            assert_eq!(raw.life(Some(Raw)).unwrap(), Life::Raw, "{raw:?}");
            assert!(raw.life(None).unwrap_err().contains("--filesystem raw"), "{raw:?}");
            assert!(raw.life(Some(Filesystem(FsKind::Ext4))).is_err(), "{raw:?}");
        }
        let mut damaged = ext4.clone();
        damaged.signatures[0].damaged = true;
        let both = content(&[("ext4", true), ("linux_raid_member", false)]);
        for odd in [content(&[("btrfs", true)]), damaged, both] {
            for expected in [None, Some(Raw), Some(Filesystem(FsKind::Ext4))] {
                assert!(odd.life(expected).is_err(), "{odd:?} {expected:?}");
            }
        }
    }

    #[test]
    fn one_guarded_command_imports_an_lv_once() {
        let group = || Group::new().with(lv("data", 4, &["backup"]));
        let inventory = group().inventory();
        let existing = candidate(&inventory, &name("data")).unwrap();
        let wanted = adopted(&inventory, existing, &name("data"), Life::Raw);
        assert_eq!(wanted.marks.zeroed, wanted.size);
        let Decision::Do(Step::Lvm(command)) = decide(&inventory, &wanted) else { panic!() };
        let argv = command.argv().join(" ");
        assert!(argv.contains(&format!("lv_uuid={}", wanted.uuid)) && argv.contains("lv_active!=active"), "{argv}");
        assert!(argv.contains("--addtag csi.fs=raw") && argv.contains(&format!("--addtag csi.z={}", wanted.size.0)), "{argv}");
        let tags: Vec<String> = wanted.marks.tags().iter().map(|tag| tag.as_str().to_owned()).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let mut done = wanted.clone();
        let there = Group::new().with(lv("data", 4, &tags)).inventory();
        done.uuid = there.volume(&wanted.id).unwrap().uuid.clone();
        assert!(matches!(decide(&there, &done), Decision::AlreadyThere(volume) if volume.marks == wanted.marks));
        let another = Volume { size: Bytes(1), ..wanted };
        assert!(matches!(decide(&inventory, &another), Decision::Refuse(Error::Precondition { .. })));
    }

    #[test]
    fn an_lv_that_cannot_be_imported_is_refused() {
        let inventory = Group::new()
            .with(lv("ours", 1, &["lvm-csi=1", "csi.fs=raw"]))
            .with(lv("half", 1, &["csi.fs=raw"]))
            .with(lv("odd", 1, &["lvm-csi=1"]))
            .with(thin("origin", 1, &[]))
            .with(lv("fixed", 1, &[]))
            .with(lv("striped", 1, &[]))
            .with(lv("mirror", 1, &[]))
            .but(|vg| {
                for lv in &mut vg.lvs {
                    let kind = lv.segments.first_mut().map(|segment| &mut segment.kind);
                    match (lv.name.as_str(), kind) {
                        ("fixed", _) => lv.writable = false,
                        ("origin", Some(SegmentKind::Thin { external_origin, .. })) => *external_origin = Some("fixed".into()),
                        ("striped", Some(SegmentKind::Striped { stripes, .. })) => stripes.push(stripes[0].clone()),
                        ("mirror", Some(kind)) => {
                            *kind = SegmentKind::Other { type_name: "raid1".into(), refs: vec![], areas: vec![] };
                        }
                        _ => {}
                    }
                }
            })
            .inventory();
        for (lv, word) in [
            ("ours", "already"),
            ("half", "csi.fs=raw"),
            ("odd", "already"),
            ("origin", "external origin"),
            ("fixed", "depend"),
            ("striped", "striped"),
            ("mirror", "raid1"),
            ("pool", "thin pool"),
            ("none", "lvs"),
        ] {
            let error = candidate(&inventory, &name(lv)).unwrap_err();
            assert!(matches!(&error, Error::Precondition { reason, .. } if reason.contains(word)), "{lv}: {error}");
        }
        let hidden = inventory.vg.lvs.iter().find(|lv| !lv.visible && LvName::new(&lv.name).is_ok());
        assert!(hidden.is_none_or(|lv| candidate(&inventory, &name(&lv.name)).is_err()));
    }
}
