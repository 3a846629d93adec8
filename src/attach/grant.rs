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
//! If the controller gives up a node, nobody takes its grants back. Such a grant must not block its volume for ever: once it is
//! [idle](State::is_idle), a grant with another mode replaces it, and its volume may be removed. A grant with another holder replaces
//! it, too: the ledger belongs to one machine, and the former holder is that machine under a name that it no longer has.
//!
//! A volume never has the same epoch twice: epochs start at the clock and only grow, so a lost ledger cannot reuse one. Giving a grant
//! never writes the acknowledgement, and acknowledging never writes the grant; only the end of a grant clears both.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::types::{AccessMode, AccessType, Error, LvName, LvUuid, NodeId, Object, VgUuid, VolumeId};

/// How a grant may be used. Two calls with equal modes are the same attachment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Published read-only whatever NodePublish requests.
    pub read_only: bool,
    /// As a block device; else as a filesystem.
    pub block: bool,
    pub access: AccessMode,
}

impl Mode {
    /// The mode that a capability and the `readonly` field of ControllerPublish request.
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
    pub vg: VgUuid,
    pub lv: LvUuid,
    /// The LV name in the volume's handle. It allows a release even if the LV was renamed, lost its tags or is gone. `None` in a grant
    /// that an earlier version wrote.
    pub name: Option<LvName>,
    /// Distinguishes the grants of this volume; never reused.
    pub epoch: u64,
    pub mode: Mode,
    pub holder: NodeId,
}

/// The holder's last acknowledgement of its grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Epoch of the acknowledged grant.
    pub epoch: u64,
    /// The boot in which the holder wrote it (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    pub state: AckState,
    /// The staging paths. Empty once the volume is released, and in an acknowledgement that an earlier version wrote.
    pub at: BTreeSet<PathSum>,
}

impl Ack {
    /// Most staging paths of one volume at once: as many as fit into a record of the ledger.
    pub const MOST_PATHS: usize = 16;
}

/// Checksum of a staging path without symlinks: enough to distinguish the few staging paths of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathSum(pub(super) u64);

const SUM: crc::Crc<u64> = crc::Crc::<u64>::new(&crc::CRC_64_XZ);

impl PathSum {
    pub fn of(path: &Path) -> Self {
        Self(SUM.checksum(path.as_os_str().as_bytes()))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckState {
    /// The volume is active on the holder.
    Staged,
    /// It is not active, and nothing of it is left there.
    Released,
}

/// The ledger's record of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The grant in force.
    pub grant: Option<Grant>,
    /// The boot in which the controller gave the grant; `None` if the holder took it itself, or an earlier version gave it.
    pub given_in: Option<String>,
    /// The holder's last acknowledgement.
    pub ack: Option<Ack>,
}

/// The phase of a grant, as drawn above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nobody has the volume.
    Free,
    /// A node may stage it.
    Granted,
    /// It may be in use.
    Staged,
    /// Its node has released it, and the controller has not taken the grant back yet.
    Releasing,
}

impl Phase {
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
    /// The phase of the grant in this boot.
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
        self.acked(boot, AckState::Staged).is_some()
    }

    /// The recorded staging paths in this boot.
    pub fn staged_at(&self, boot: &str) -> BTreeSet<PathSum> {
        self.acked(boot, AckState::Staged).map(|ack| ack.at.clone()).unwrap_or_default()
    }

    /// The acknowledgement, if it is for the grant in force, with this state, in this boot.
    fn acked(&self, boot: &str, state: AckState) -> Option<&Ack> {
        let (Some(grant), Some(ack)) = (&self.grant, &self.ack) else { return None };
        (ack.epoch == grant.epoch && ack.state == state && ack.boot == boot).then_some(ack)
    }

    /// Whether this node released the volume in this boot and the volume is still attached to it. It is not free then, since a
    /// NodeStageVolume may stage it again at any moment.
    pub fn may_be_staged_again(&self, node: &NodeId, boot: &str) -> bool {
        self.acked(boot, AckState::Released).is_some() && self.grant.as_ref().is_some_and(|grant| grant.holder == *node)
    }

    /// Whether certainly nobody uses the grant in force. Nothing may have the volume's device open (a mount and a published block
    /// device do). Its holder must have released it, or the machine must have rebooted since it was staged or, if never staged, given.
    /// A grant that the holder took itself counts as idle until it is staged, since the holder stages it at once.
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
    /// As [`State::is_idle`], on the node that has this name now. Under a grant of a former name nothing can be staged any more, even if
    /// it was given in this boot.
    pub fn is_idle_on(&self, node: &NodeId, boot: &str, open: bool) -> bool {
        let former = self.grant.as_ref().is_some_and(|grant| grant.holder != *node);
        self.is_idle(boot, open) || (former && !open && !self.staged(boot))
    }
}

/// What ControllerPublish passes to NodeStage and NodePublish, byte-identical during the whole life of the grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishContext {
    pub vg: VgUuid,
    pub lv: LvUuid,
    pub epoch: u64,
    pub mode: Mode,
}

const KEY_VG: &str = "vgUUID";
const KEY_LV: &str = "lvUUID";
const KEY_EPOCH: &str = "epoch";
const KEY_MODE: &str = "mode";

impl PublishContext {
    /// The map for CSI's `publish_context`.
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
    /// [`Error::Invalid`] with the key that is missing or cannot be read.
    pub fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let field = |key: &str| format!("publish_context[{key}]");
        let need = |key: &'static str| {
            let reason = "it is missing; NodeStageVolume and NodePublishVolume need what ControllerPublishVolume answered";
            get(key).ok_or_else(|| Error::invalid(field(key), "", reason))
        };
        let bad =
            |key: &'static str, value: &str| Error::invalid(field(key), value, "ControllerPublishVolume never answers that");
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

    /// The publish context of this grant.
    pub fn context(&self) -> PublishContext {
        PublishContext { vg: self.vg.clone(), lv: self.lv.clone(), epoch: self.epoch, mode: self.mode.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// The volume's handle.
    pub id: VolumeId,
    pub lv: LvUuid,
    /// The future holder.
    pub node: NodeId,
    pub mode: Mode,
}

/// The decision on a [`GrantRequest`].
#[derive(Debug)]
pub enum Granting {
    /// This grant is in force.
    AlreadyThere(Grant),
    Refuse(Error),
    /// Write this grant.
    Write(Grant),
}

/// What the decision needs in addition to the volume's state.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Volumes granted to the node.
    pub attached: usize,
    /// Most volumes granted to the node; 0 for no limit.
    pub limit: usize,
    /// An epoch that was never used.
    pub next_epoch: u64,
    /// Whether the volume's present grant is [idle](State::is_idle).
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
                "it is attached to node {} since epoch {}; detach it there first (ControllerUnpublishVolume). If that is a former name \
                 of this node, NodeUnstageVolume or a reboot releases it",
                now.holder, now.epoch
            );
            return Granting::Refuse(Error::precondition(format!("volume {id}"), reason));
        }
        if !room.idle {
            let difference = format!(
                "it is attached to node {} as {}, and the request is for {}; detach it first (ControllerUnpublishVolume)",
                now.holder,
                now.mode.to_text(),
                request.mode.to_text()
            );
            return Granting::Refuse(Error::Differs { object: Object::Volume, id, difference });
        }
        // The grant it replaces counts already.
        if same_holder {
            return new();
        }
    }
    if room.limit > 0 && room.attached >= room.limit {
        let reason = format!("{} volumes are attached there, and {} are allowed (maxVolumesPerNode)", room.attached, room.limit);
        return Granting::Refuse(Error::Exhausted { what: format!("volume {id} on node {}", request.node), reason });
    }
    new()
}

/// Decides on ControllerUnpublish for `node`, or for any holder if that is `None`. `false` means there is no grant to end.
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

/// Decides whether NodeStage and NodePublish may continue with this publish context; without one, any grant of this node suffices.
/// Returns the context of the grant in force.
///
/// # Errors
/// [`Error::Precondition`] if another grant is in force, or none.
pub fn accepts(state: &State, id: &VolumeId, node: &NodeId, context: Option<&PublishContext>) -> Result<PublishContext, Error> {
    let refuse = |reason: String| Err(Error::precondition(format!("volume {id}"), reason));
    match (&state.grant, context) {
        (None, None) => refuse(format!("it is not staged on node {node}; NodeStageVolume must succeed first")),
        (None, Some(_)) => refuse(format!("it is not attached to node {node}; ControllerPublishVolume must succeed first")),
        (Some(grant), _) if grant.holder != *node => {
            refuse(format!("it is attached to node {}, not to node {node}", grant.holder))
        }
        (Some(grant), Some(context)) if grant.context() != *context => refuse(format!(
            "its attachment has epoch {} ({}), and the publish context has epoch {} ({}); it was attached again since",
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
    fn a_volume_has_one_holder_and_one_mode_at_a_time() {
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
    fn a_grant_ends_only_when_its_holder_has_released_it() {
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
    fn a_grant_is_idle_when_its_holder_released_it_or_rebooted_and_nothing_is_open() {
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
        // The replaced grant counts already, so the limit does not matter.
        let new = grant(&state, &request("a", true), idle(room(1, 1, 8)));
        assert!(matches!(&new, Granting::Write(new) if new.epoch == 8 && new.mode.read_only), "{new:?}");
        assert!(
            matches!(grant(&state, &request("a", false), idle(room(1, 1, 8))), Granting::AlreadyThere(old) if old.epoch == 7)
        );
        let new = grant(&state, &request("b", false), idle(room(0, 1, 8)));
        assert!(matches!(&new, Granting::Write(new) if new.epoch == 8 && new.holder == node("b")), "{new:?}");
        // A grant of another holder does not count yet.
        assert!(matches!(grant(&state, &request("b", false), idle(room(1, 1, 8))), Granting::Refuse(Error::Exhausted { .. })));
    }

    #[test]
    fn an_idle_grant_under_a_former_name_of_the_node_gives_way() {
        // The node was renamed (or a new VM uses its disks), and Kubernetes detached the volume from the old name without a call. Since
        // then the machine rebooted, and nothing is open.
        let state = granted("former");
        assert!(state.is_idle("boot2", false));
        let room = Room { attached: 0, limit: 0, next_epoch: 8, idle: true };
        let decided = grant(&state, &request("present", false), room);
        assert!(matches!(decided, Granting::Write(_)), "{decided:?}");
        // A ControllerUnpublishVolume for the former name frees it at once.
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
        // A volume in use under a former name stays attached to that name.
        let room = Room { attached: 0, limit: 0, next_epoch: 8, idle: false };
        let Granting::Refuse(error) = grant(&staged, &request("b", false), room) else { panic!() };
        assert!(error.to_string().contains("former name"), "{error}");
    }

    #[test]
    fn a_context_is_valid_for_its_own_grant_only() {
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
    fn a_context_round_trips_and_an_error_names_the_wrong_key() {
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
        // A reboot ends the staging.
        assert_eq!((staged.phase("b"), staged.phase("c")), (Phase::Staged, Phase::Granted));
        assert_eq!(State { ack: ack(AckState::Released), ..state }.phase("b"), Phase::Releasing);
    }
}
