//! Which machine may change a volume group. The first machine that changes it records itself in the group's tag
//! `csi.machine=<id>/<node>`. If the disk is cloned, or a second machine sees it too, that machine reads another's name and changes
//! nothing. The tag replaces LVM's own system ID, which would keep the host's LVM out.

use crate::lvm::command::Command;
use crate::lvm::metadata::Vg;
use crate::types::{Error, MachineId, Recorded, Tag};

use super::may_change;

const MACHINE: &str = "csi.machine=";

/// The owner of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This machine.
    Us,
    /// No machine is recorded.
    Nobody,
    /// Other machines are recorded, perhaps with this one.
    Others(Vec<Recorded>),
}

impl Owner {
    /// Reads it from the tags of a group.
    pub fn of(vg: &Vg, machine: &MachineId) -> Self {
        let recorded: Vec<Recorded> = recorded(vg).collect();
        if recorded.is_empty() {
            Self::Nobody
        } else if recorded.iter().all(|one| machine.is(one)) {
            Self::Us
        } else {
            Self::Others(recorded)
        }
    }
}

/// The machines that a group records; more than one if two recorded themselves at once.
pub fn recorded(vg: &Vg) -> impl Iterator<Item = Recorded> {
    vg.tags.iter().filter_map(|tag| tag.strip_prefix(MACHINE)).map(|text| {
        let (id, node) = text.split_once('/').unwrap_or((text, ""));
        Recorded { id: id.to_owned(), node: node.to_owned() }
    })
}

fn tags(vg: &Vg) -> impl Iterator<Item = &str> {
    vg.tags.iter().map(String::as_str).filter(|tag| tag.starts_with(MACHINE))
}

/// Why this machine must not change a group: it belongs to another machine. `None` if it may.
pub fn stranger(vg: &Vg, machine: &MachineId) -> Option<String> {
    let Owner::Others(recorded) = Owner::of(vg, machine) else { return None };
    let others: Vec<String> = recorded.iter().filter(|one| !machine.is(one)).map(ToString::to_string).collect();
    Some(format!(
        "it is recorded as the group of {}, and this is {}: nothing in it is changed here, since its disks may be a copy or in use \
         there; if they belong to this machine for good, run lvm-csi adopt --vg {} on this node",
        others.join(" and of "),
        machine.record(),
        vg.name
    ))
}

/// Refuses to change a group of another machine.
///
/// # Errors
/// [`Error::Precondition`] with both machines and the command that takes the group over.
pub fn check(vg: &Vg, machine: &MachineId) -> Result<(), Error> {
    stranger(vg, machine).map_or(Ok(()), |why| Err(Error::precondition(format!("volume group {}", vg.name), why)))
}

/// The command that makes this machine the only one that a group records; `None` if it is already.
///
/// # Errors
/// The group cannot be changed now, or a tag would be invalid.
pub fn record(vg: &Vg, machine: &MachineId) -> Result<Option<Command>, Error> {
    if Owner::of(vg, machine) == Owner::Us {
        return Ok(None);
    }
    may_change(vg)?;
    let what = || format!("recording this machine in volume group {}", vg.name);
    let Recorded { id, node } = machine.record();
    let own = Tag::new(format!("{MACHINE}{id}/{node}")).map_err(|why| Error::precondition(what(), why.to_string()))?;
    let remove = tags(vg).map(|tag| Tag::new(tag).map_err(|why| Error::precondition(what(), format!("its tag {tag} {why}"))));
    Ok(Some(Command::RetagGroup {
        vg: vg.name.clone(),
        uuid: vg.uuid.clone(),
        remove: remove.collect::<Result<_, _>>()?,
        add: vec![own],
    }))
}

/// Whether a command may run in another machine's group: only ending the use of a device here, and recording a machine.
pub fn is_for_anybody(command: &Command) -> bool {
    matches!(command, Command::Deactivate { .. } | Command::RetagGroup { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::metadata::apply;
    use crate::types::NodeId;
    use crate::volume::testing::Group;

    fn machine(name: &str) -> MachineId {
        MachineId::new(NodeId::new(format!("node-{name}").as_str()).unwrap(), [("dmi", name)])
    }

    fn vg(tags: &[&str]) -> Vg {
        let mut vg = (*Group::new().inventory().vg).clone();
        vg.tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        vg
    }

    fn recorded_by(vg: &Vg, machine: &MachineId) -> Vg {
        apply(vg, &record(vg, machine).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn the_first_machine_is_recorded_and_keeps_its_group() {
        let (a, b) = (machine("a"), machine("b"));
        let of_nobody = vg(&["theirs"]);
        assert_eq!(Owner::of(&of_nobody, &a), Owner::Nobody);
        check(&of_nobody, &a).unwrap();
        let of_a = recorded_by(&of_nobody, &a);
        assert_eq!(of_a.tags[0], "theirs");
        assert_eq!(of_a.tags[1], format!("csi.machine={}/node-a", a.record().id));
        check(&of_a, &a).unwrap();
        assert_eq!(record(&of_a, &a).unwrap(), None);
        // The node was renamed.
        check(&of_a, &MachineId::new(NodeId::new("other").unwrap(), [("dmi", "a")])).unwrap();
        let error = check(&of_a, &b).unwrap_err();
        let named = [&format!("{}", a.record()), &format!("{}", b.record()), "lvm-csi adopt --vg"].map(str::to_owned);
        assert!(
            matches!(&error, Error::Precondition { .. }) && named.iter().all(|name| error.to_string().contains(name)),
            "{error}"
        );
        let of_b = recorded_by(&of_a, &b);
        check(&of_b, &b).unwrap();
        check(&of_b, &a).unwrap_err();
    }

    #[test]
    fn two_that_recorded_themselves_at_once_both_wait_for_a_person() {
        let (a, b) = (machine("a"), machine("b"));
        let of_a = recorded_by(&vg(&[]), &a);
        let of_b = recorded_by(&vg(&[]), &b);
        let both = vg(&[&of_a.tags[0], &of_b.tags[0]]);
        check(&both, &a).unwrap_err();
        check(&both, &b).unwrap_err();
        assert_eq!(recorded_by(&both, &b).tags, of_b.tags);
        // A malformed tag counts as another machine's, too.
        for odd in ["csi.machine=", "csi.machine=/", "csi.machine=x"] {
            check(&vg(&[odd]), &a).unwrap_err();
            assert_eq!(recorded_by(&vg(&[odd]), &a).tags, of_a.tags, "{odd}");
        }
    }

    #[test]
    fn nothing_is_recorded_in_a_group_that_cannot_be_changed() {
        let exported = Vg { exported: true, ..vg(&[]) };
        assert!(matches!(record(&exported, &machine("a")), Err(Error::Unavailable { .. })));
    }
}
