//! The life of a grant, as pure decisions.
//!
//! ```text
//!            ControllerPublish            NodeStage                NodeUnstage             ControllerUnpublish
//!   Free ─────────────────────▶ Granted(e) ────────▶ Staged(e) ──────────────▶ Released(e) ───────────────────▶ Free
//!    ▲                            │  ▲                  │  ▲                      │   │
//!    └────────────────────────────┘  └──────────────────┘  └──────────────────────┘   │ NodeStage again, same epoch
//!       ControllerUnpublish            the holder rebooted       NodeStage            ▼
//!       (never staged)                 (another boot id)                           Staged(e)
//! ```
//!
//! A grant that nobody takes back, since the controller gave up its node, must not stand in the way for ever: once it is known to be
//! [idle](State::is_idle), a grant of another mode replaces it, and its volume may be removed. So does one of another holder: the
//! ledger is of one machine, and the former holder is that machine under a name that it no longer has.
//!
//! An epoch never comes twice for one volume: it starts at the clock and only grows, so a lost ledger cannot reuse one. The
//! acknowledgement belongs to the holder alone: the grant's side never writes it, and the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::types::{AccessMode, AccessType, Error, LvName, LvUuid, NodeId, Object, VgUuid, VolumeId};

/// How a grant may be used. Two calls with equal modes are the same attachment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Published read-only whatever NodePublish asks.
    pub read_only: bool,
    /// As a block device; else as a filesystem.
    pub block: bool,
    /// CSI access mode.
    pub access: AccessMode,
}

impl Mode {
    /// The mode that a capability and the `readonly` field of ControllerPublish ask for.
    pub fn new(access: AccessType, mode: AccessMode, read_only: bool) -> Self {
        Self {
            read_only: read_only || mode == AccessMode::SingleNodeReaderOnly,
            block: access == AccessType::Block,
            access: mode,
        }
    }

    /// The text carried in the publish context: `rw,mount,SINGLE_NODE_WRITER`.
    pub fn to_text(&self) -> String {
        let rw = if self.read_only { "ro" } else { "rw" };
        let kind = if self.block { "block" } else { "mount" };
        format!("{rw},{kind},{}", self.access)
    }

    /// Reads that text; `None` for any other.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let read_only = match parts.next()? {
            "ro" => true,
            "rw" => false,
            _ => return None,
        };
        let block = match parts.next()? {
            "block" => true,
            "mount" => false,
            _ => return None,
        };
        let access = AccessMode::parse(parts.next()?)?;
        parts.next().is_none().then_some(Self { read_only, block, access })
    }
}

/// The right of one node to use a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The group of the volume.
    pub vg: VgUuid,
    pub lv: LvUuid,
    /// The name in its handle, by which it is let go even when its LV was renamed, lost its tags or is gone. `None` in a grant that
    /// an earlier version wrote.
    pub name: Option<LvName>,
    /// Counts the grants of this volume; never comes twice.
    pub epoch: u64,
    /// How it may be used.
    pub mode: Mode,
    /// Who has it.
    pub holder: NodeId,
}

/// What the holder last said of its grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The grant it speaks of.
    pub epoch: u64,
    /// The boot in which it spoke (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// What it said.
    pub state: AckState,
    /// Where it is staged. Empty once it is released, and in what an earlier version wrote.
    pub at: BTreeSet<PathSum>,
}

impl Ack {
    /// How many staging paths one volume may have at once: what a record of the ledger holds.
    pub const MOST_PATHS: usize = 16;
}

/// A sum of a staging path without symlinks: enough to tell one of a volume's few from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathSum(pub(super) u64);

const SUM: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);

impl PathSum {
    /// The sum of a path.
    pub fn of(path: &Path) -> Self {
        Self(SUM.checksum(path.as_os_str().as_bytes()))
    }
}

/// What a holder can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckState {
    /// The volume is active here.
    Staged,
    /// It is not, and nothing of it is left.
    Released,
}

/// What the ledger knows of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The grant in force.
    pub grant: Option<Grant>,
    /// The boot in which the controller gave it; `None` where the holder took it itself, or an earlier version gave it.
    pub given_in: Option<String>,
    /// The holder's last word.
    pub ack: Option<Ack>,
}

/// Where a volume is in the life of a grant, as drawn above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has it.
    Free,
    /// A node may stage it.
    Granted,
    /// It may be in use.
    Staged,
    /// Its node has let it go, and the grant is still to be taken back.
    Releasing,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Free, Self::Granted, Self::Staged, Self::Releasing];

    /// The phase in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Granted => "granted",
            Self::Staged => "staged",
            Self::Releasing => "releasing",
        }
    }
}

impl State {
    /// Where the volume is in the life of its grant, in this boot.
    pub fn phase(&self, boot: &str) -> Phase {
        match (&self.grant, &self.ack) {
            (None, _) => Phase::Free,
            (Some(grant), Some(ack)) if ack.epoch == grant.epoch && ack.state == AckState::Released => Phase::Releasing,
            (Some(_), _) if self.staged(boot) => Phase::Staged,
            (Some(_), _) => Phase::Granted,
        }
    }

    /// Whether the volume may be in use: staged under the grant in force, in this boot.
    pub fn staged(&self, boot: &str) -> bool {
        self.said(boot, AckState::Staged).is_some()
    }

    /// Where it is staged in this boot, as far as that is recorded.
    pub fn staged_at(&self, boot: &str) -> BTreeSet<PathSum> {
        self.said(boot, AckState::Staged).map(|ack| ack.at.clone()).unwrap_or_default()
    }

    fn said(&self, boot: &str, state: AckState) -> Option<&Ack> {
        let (Some(grant), Some(ack)) = (&self.grant, &self.ack) else { return None };
        (ack.epoch == grant.epoch && ack.state == state && ack.boot == boot).then_some(ack)
    }

    /// Whether this node has let the volume go in this boot, and it was not detached since: whoever attached it may stage it again at
    /// any moment, so it is not free.
    pub fn may_be_staged_again(&self, node: &NodeId, boot: &str) -> bool {
        self.said(boot, AckState::Released).is_some() && self.grant.as_ref().is_some_and(|grant| grant.holder == *node)
    }

    /// Whether the grant in force is known to be of no use to anybody: nothing has the volume's device open, as a mount and a published
    /// block device do, and its holder has let it go, or the machine was booted anew since it was staged or, never staged, given. The
    /// holder stages at once what it took itself.
    pub fn is_idle(&self, boot: &str, open: bool) -> bool {
        if open {
            return false;
        }
        match (&self.grant, &self.ack) {
            (None, _) => true,
            (Some(grant), Some(ack)) if ack.epoch == grant.epoch => ack.state == AckState::Released || ack.boot != boot,
            (Some(_), _) => self.given_in.as_deref() != Some(boot),
        }
    }
}

impl State {
    /// As [`State::is_idle`], on the node that has this name now. Nothing is staged any more under a grant of a former name, also
    /// where that was given in this boot.
    pub fn is_idle_on(&self, node: &NodeId, boot: &str, open: bool) -> bool {
        let former = self.grant.as_ref().is_some_and(|grant| grant.holder != *node);
        self.is_idle(boot, open) || (former && !open && !self.staged(boot))
    }
}

/// What ControllerPublish hands to NodeStage and NodePublish, byte-identical for as long as the grant lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishContext {
    pub vg: VgUuid,
    pub lv: LvUuid,
    /// The grant.
    pub epoch: u64,
    /// How it may be used.
    pub mode: Mode,
}

const KEY_VG: &str = "vgUUID";
const KEY_LV: &str = "lvUUID";
const KEY_EPOCH: &str = "epoch";
const KEY_MODE: &str = "mode";

impl PublishContext {
    /// As the map that CSI carries.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (KEY_VG.to_owned(), self.vg.to_string()),
            (KEY_LV.to_owned(), self.lv.to_string()),
            (KEY_EPOCH.to_owned(), self.epoch.to_string()),
            (KEY_MODE.to_owned(), self.mode.to_text()),
        ])
    }

    /// Reads that map.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the key that is missing or cannot be read.
    pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let field = |key: &str| format!("publish_context[{key}]");
        let need = |key: &'static str| {
            let reason = "it is missing; NodeStage and NodePublish need what ControllerPublishVolume answered";
            get(key).ok_or_else(|| Error::invalid(field(key), "", reason))
        };
        let bad =
            |key: &'static str, value: &str| Error::invalid(field(key), value, "it is not what ControllerPublishVolume answers");
        let (vg, lv, epoch, mode) = (need(KEY_VG)?, need(KEY_LV)?, need(KEY_EPOCH)?, need(KEY_MODE)?);
        Ok(Self {
            vg: VgUuid::new(vg).ok_or_else(|| bad(KEY_VG, vg))?,
            lv: LvUuid::new(lv).ok_or_else(|| bad(KEY_LV, lv))?,
            epoch: epoch.parse().map_err(|_| bad(KEY_EPOCH, epoch))?,
            mode: Mode::parse(mode).ok_or_else(|| bad(KEY_MODE, mode))?,
        })
    }
}

impl Grant {
    /// Whether it is the grant of the volume with this handle.
    pub fn is_of(&self, id: &VolumeId) -> bool {
        self.vg == id.vg && self.name.as_ref() == Some(&id.lv)
    }

    /// The context that this grant stands for.
    pub fn context(&self) -> PublishContext {
        PublishContext { vg: self.vg.clone(), lv: self.lv.clone(), epoch: self.epoch, mode: self.mode.clone() }
    }
}

/// A grant that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// The volume's handle, for texts.
    pub id: VolumeId,
    /// The volume's LV.
    pub lv: LvUuid,
    /// Who wants it.
    pub node: NodeId,
    /// How.
    pub mode: Mode,
}

/// What to do with a wish for a grant.
#[derive(Debug)]
pub enum Granting {
    /// It is there.
    AlreadyThere(Grant),
    /// It cannot be had now.
    Refuse(Error),
    /// Write this one.
    Write(Grant),
}

/// What a node has, when a grant is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Volumes that are granted to it.
    pub attached: usize,
    /// How many may be; 0 for no limit.
    pub limit: usize,
    /// An epoch that was never used.
    pub next_epoch: u64,
    /// Whether the grant that the volume has is [idle](State::is_idle).
    pub idle: bool,
}

/// Decides on ControllerPublish.
pub fn grant(state: &State, request: &GrantRequest, room: Room) -> Granting {
    let id = request.id.to_string();
    let new = || {
        Granting::Write(Grant {
            vg: request.id.vg.clone(),
            lv: request.lv.clone(),
            name: Some(request.id.lv.clone()),
            epoch: room.next_epoch,
            mode: request.mode.clone(),
            holder: request.node.clone(),
        })
    };
    if let Some(now) = &state.grant {
        let same_holder = now.holder == request.node;
        if same_holder && now.mode == request.mode {
            return Granting::AlreadyThere(now.clone());
        }
        if !same_holder && !room.idle {
            let reason = format!(
                "it is attached to node {} since epoch {}; it must be detached there first (ControllerUnpublishVolume). If that is a \
                 former name of this node, NodeUnstageVolume or a reboot lets it go",
                now.holder, now.epoch
            );
            return Granting::Refuse(Error::precondition(format!("volume {id}"), reason));
        }
        if !room.idle {
            let difference = format!(
                "it is attached to node {} as {}, and {} is asked; it must be detached first (ControllerUnpublishVolume)",
                now.holder,
                now.mode.to_text(),
                request.mode.to_text()
            );
            return Granting::Refuse(Error::Differs { object: Object::Volume, id, difference });
        }
        // It counts already.
        if same_holder {
            return new();
        }
    }
    if room.limit > 0 && room.attached >= room.limit {
        let reason = format!("{} volumes are attached there and {} are allowed (maxVolumesPerNode)", room.attached, room.limit);
        return Granting::Refuse(Error::Exhausted { what: format!("volume {id} on node {}", request.node), reason });
    }
    new()
}

/// Decides on ControllerUnpublish for `node` (or every holder, for `None`): whether the grant may end.
///
/// # Errors
/// [`Error::Precondition`] while the holder still uses the volume.
pub fn release(state: &State, id: &VolumeId, node: Option<&NodeId>, boot: &str) -> Result<bool, Error> {
    let Some(grant) = &state.grant else { return Ok(false) };
    if node.is_some_and(|node| *node != grant.holder) {
        return Ok(false);
    }
    if state.staged(boot) {
        let reason = format!(
            "node {} still has it staged under epoch {}; NodeUnstageVolume must succeed there first",
            grant.holder, grant.epoch
        );
        return Err(Error::precondition(format!("volume {id}"), reason));
    }
    Ok(true)
}

/// Decides whether NodeStage and NodePublish may go on with the context they were given; without one, a grant of this node will do.
/// Answers with the context of the grant in force.
///
/// # Errors
/// [`Error::Precondition`] where the grant in force is another, or none.
pub fn accepts(state: &State, id: &VolumeId, node: &NodeId, context: Option<&PublishContext>) -> Result<PublishContext, Error> {
    let refuse = |reason: String| Err(Error::precondition(format!("volume {id}"), reason));
    match (&state.grant, context) {
        (None, None) => refuse(format!("it is not staged on node {node}; NodeStageVolume must succeed first")),
        (None, Some(_)) => refuse(format!("it is not attached to node {node}; ControllerPublishVolume must succeed first")),
        (Some(grant), _) if grant.holder != *node => {
            refuse(format!("it is attached to node {}, not to node {node}", grant.holder))
        }
        (Some(grant), Some(context)) if grant.context() != *context => refuse(format!(
            "its attachment is of epoch {} ({}), and the context given is of epoch {} ({}); it was attached anew since",
            grant.epoch,
            grant.mode.to_text(),
            context.epoch,
            context.mode.to_text()
        )),
        (Some(grant), _) => Ok(grant.context()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn id() -> VolumeId {
        VolumeId { vg: VgUuid::from_compact(&"v".repeat(32)).unwrap(), lv: LvName::new("pvc-1").unwrap() }
    }

    fn request(on: &str, read_only: bool) -> GrantRequest {
        GrantRequest {
            id: id(),
            lv: LvUuid::from_compact(&"l".repeat(32)).unwrap(),
            node: node(on),
            mode: Mode::new(AccessType::Mount(None), AccessMode::SingleNodeWriter, read_only),
        }
    }

    fn room(attached: usize, limit: usize, next_epoch: u64) -> Room {
        Room { attached, limit, next_epoch, idle: false }
    }

    fn granted(on: &str) -> State {
        let Granting::Write(grant) = grant(&State::default(), &request(on, false), room(0, 0, 7)) else { panic!() };
        State { grant: Some(grant), given_in: Some("boot1".into()), ack: None }
    }

    fn acked(state: AckState, epoch: u64, boot: &str) -> State {
        State { ack: Some(Ack { epoch, boot: boot.into(), state, at: BTreeSet::new() }), ..granted("a") }
    }

    #[test]
    fn one_holder_and_one_mode_at_a_time() {
        let state = granted("a");
        assert!(matches!(grant(&state, &request("a", false), room(9, 1, 8)), Granting::AlreadyThere(g) if g.epoch == 7));
        assert!(matches!(grant(&state, &request("a", true), room(0, 0, 8)), Granting::Refuse(Error::Differs { .. })));
        let Granting::Refuse(Error::Precondition { reason, .. }) = grant(&state, &request("b", false), room(0, 0, 8)) else {
            panic!()
        };
        assert!(reason.contains("node a"), "{reason}");
        assert!(matches!(
            grant(&State::default(), &request("a", false), room(3, 3, 8)),
            Granting::Refuse(Error::Exhausted { .. })
        ));
    }

    #[test]
    fn a_grant_ends_only_when_its_holder_let_go() {
        let freed = |state: &State, on: Option<&str>| release(state, &id(), on.map(node).as_ref(), "boot1");
        assert!(!freed(&State::default(), None).unwrap());
        assert!(freed(&granted("a"), Some("a")).unwrap());
        assert!(freed(&granted("a"), None).unwrap());
        assert!(!freed(&granted("a"), Some("b")).unwrap());
        assert!(freed(&acked(AckState::Released, 7, "boot1"), Some("a")).unwrap());
        assert!(matches!(freed(&acked(AckState::Staged, 7, "boot1"), None), Err(Error::Precondition { .. })));
        assert!(freed(&acked(AckState::Staged, 7, "boot0"), None).unwrap(), "the holder has rebooted since");
        assert!(freed(&acked(AckState::Staged, 6, "boot1"), None).unwrap(), "an acknowledgement of an older grant");
    }

    #[test]
    fn a_grant_is_idle_when_its_holder_let_go_or_booted_anew_and_nothing_is_open() {
        let given = |boot: Option<&str>| State { given_in: boot.map(str::to_owned), ..granted("a") };
        for (state, idle) in [
            (State::default(), true),
            (given(Some("boot1")), false),
            (given(Some("boot0")), true),
            (given(None), true),
            (acked(AckState::Staged, 7, "boot1"), false),
            (acked(AckState::Staged, 7, "boot0"), true),
            (acked(AckState::Released, 7, "boot1"), true),
            (acked(AckState::Released, 6, "boot1"), false),
            (acked(AckState::Staged, 6, "boot0"), false),
        ] {
            assert_eq!(state.is_idle("boot1", false), idle, "{state:?}");
            assert!(!state.is_idle("boot1", true), "{state:?}");
        }
    }

    #[test]
    fn an_idle_grant_gives_way_to_one_of_another_mode_or_holder() {
        let state = granted("a");
        let idle = |room: Room| Room { idle: true, ..room };
        // It counts already, so the limit is no reason.
        let new = grant(&state, &request("a", true), idle(room(1, 1, 8)));
        assert!(matches!(&new, Granting::Write(new) if new.epoch == 8 && new.mode.read_only), "{new:?}");
        assert!(
            matches!(grant(&state, &request("a", false), idle(room(1, 1, 8))), Granting::AlreadyThere(old) if old.epoch == 7)
        );
        let new = grant(&state, &request("b", false), idle(room(0, 1, 8)));
        assert!(matches!(&new, Granting::Write(new) if new.epoch == 8 && new.holder == node("b")), "{new:?}");
        // Of another holder it does not count yet.
        assert!(matches!(grant(&state, &request("b", false), idle(room(1, 1, 8))), Granting::Refuse(Error::Exhausted { .. })));
    }

    #[test]
    fn an_idle_grant_under_a_former_name_of_the_node_gives_way() {
        // The node was renamed (or its VM made anew from its disks); Kubernetes detached the volume from the name that is gone
        // without asking anybody. Booted since, nothing open.
        let state = granted("former");
        assert!(state.is_idle("boot2", false));
        let room = Room { attached: 0, limit: 0, next_epoch: 8, idle: true };
        let decided = grant(&state, &request("present", false), room);
        assert!(matches!(decided, Granting::Write(_)), "{decided:?}");
        // Detached from the former name by whom asks for it, it is free at once.
        assert!(release(&state, &id(), Some(&node("former")), "boot1").unwrap());
    }

    #[test]
    fn a_grant_under_a_former_name_is_idle_unless_it_is_staged_or_open() {
        let given = granted("a");
        assert!(given.is_idle_on(&node("b"), "boot1", false), "nobody has that name any more, so nobody stages it");
        assert!(!given.is_idle_on(&node("a"), "boot1", false));
        let staged = acked(AckState::Staged, 7, "boot1");
        for (state, boot, open, idle) in [
            (&given, "boot1", true, false),
            (&staged, "boot1", false, false),
            (&staged, "boot2", false, true),
            (&staged, "boot2", true, false),
            (&acked(AckState::Released, 7, "boot1"), "boot1", false, true),
        ] {
            assert_eq!(state.is_idle_on(&node("b"), boot, open), idle, "{state:?} {boot} {open}");
        }
        // A volume that is in use under a former name stays attached to it.
        let room = Room { attached: 0, limit: 0, next_epoch: 8, idle: false };
        let Granting::Refuse(error) = grant(&staged, &request("b", false), room) else { panic!() };
        assert!(error.to_string().contains("former name"), "{error}");
    }

    #[test]
    fn a_context_is_good_for_its_own_grant_only() {
        let state = granted("a");
        let context = state.grant.as_ref().unwrap().context();
        assert_eq!(accepts(&state, &id(), &node("a"), Some(&context)).unwrap(), context);
        assert_eq!(accepts(&state, &id(), &node("a"), None).unwrap(), context);
        let stale = PublishContext { epoch: 6, ..context.clone() };
        let none = &State::default();
        for (state, on, context) in [
            (&state, "a", Some(&stale)),
            (&state, "b", Some(&context)),
            (&state, "b", None),
            (none, "a", Some(&context)),
            (none, "a", None),
        ] {
            assert!(matches!(accepts(state, &id(), &node(on), context), Err(Error::Precondition { .. })));
        }
    }

    #[test]
    fn a_context_round_trips_and_says_what_is_wrong_with_another() {
        let context = granted("a").grant.unwrap().context();
        let map = context.to_map();
        assert_eq!(PublishContext::parse(|key| map.get(key).map(String::as_str)).unwrap(), context);
        for key in map.keys() {
            let without = PublishContext::parse(|k| (k != key).then(|| map.get(k).map(String::as_str)).flatten());
            assert!(without.unwrap_err().to_string().contains(key.as_str()));
            let odd = PublishContext::parse(|k| if k == key { Some("x") } else { map.get(k).map(String::as_str) });
            assert!(odd.unwrap_err().to_string().contains(key.as_str()));
        }
    }

    #[test]
    fn a_volume_is_in_one_phase() {
        let ack = |state| Some(Ack { epoch: 7, boot: "b".into(), state, at: BTreeSet::new() });
        let state = granted("a");
        assert_eq!(State::default().phase("b"), Phase::Free);
        assert_eq!(state.phase("b"), Phase::Granted);
        let staged = State { ack: ack(AckState::Staged), ..state.clone() };
        // A boot ends what was staged.
        assert_eq!((staged.phase("b"), staged.phase("c")), (Phase::Staged, Phase::Granted));
        assert_eq!(State { ack: ack(AckState::Released), ..state }.phase("b"), Phase::Releasing);
    }
}
