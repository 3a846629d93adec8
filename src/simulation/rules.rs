//! What must hold at every moment, and what must hold once a call is answered.

use std::ops::Range;

use crate::lvm::metadata::{Lv, SegmentKind, Vg};

use super::content::{Cell, Content, Super};
use super::host::{Dm, Host, Line, On, State};

/// Where a device differs from the data written to it. It must never show anyone else's data.
fn difference(truth: &Content, seen: &[(Range<u64>, Cell)]) -> Option<String> {
    seen.iter().find_map(|(at, cell)| match cell {
        Cell::Old => Some(format!("shows old bytes at {at:?}")),
        Cell::Super(_) => None,
        Cell::Zero | Cell::Data(_) => {
            let other = truth.get(at).into_iter().find(|(_, written)| written != cell)?;
            Some(format!("shows {cell:?} at {:?}, where {:?} was written", other.0, other.1))
        }
    })
}

impl Host {
    /// Called after each effect: checks what nobody may see even for a moment.
    pub(super) fn look(&self) {
        let entries = self.entries();
        let mut state = self.state();
        let mut wrong = Vec::new();
        for entry in entries.iter().filter(|entry| entry.fstype == "devtmpfs") {
            let root = entry.root.to_string_lossy();
            let Some(node) = root.strip_prefix("/dm-") else { continue };
            let dead = node.strip_suffix("//deleted");
            let minor: u32 = dead.unwrap_or(node).parse().unwrap();
            let Some(dm) = state.dm.get(&minor) else { continue };
            if dead.is_some() {
                wrong.push(format!("{} shows a node whose number now belongs to {}", entry.target.display(), dm.name));
            }
            let (Some(live), Some(lv)) = (&dm.live, dm.lv()) else { continue };
            let problem = match state.pieces_of(live, &(0..live.size())) {
                Some(pieces) => difference(&state.truth[&lv].data, &state.seen(&pieces)),
                None => Some("lies beyond what is beneath".to_owned()),
            };
            wrong.extend(problem.map(|problem| format!("{} at {} {problem}", dm.name, entry.target.display())));
        }
        for survivor in state.survivors.iter().filter(|survivor| !state.is(&survivor.device)) {
            wrong.push(format!("{} works on a device that is now another one", survivor.tool));
        }
        wrong.extend(state.shared());
        wrong.extend(state.strayed());
        state.wrong.extend(wrong);
    }
}

impl State {
    /// Devices of two LVs that share bytes.
    fn shared(&self) -> Option<String> {
        let mut used = Vec::new();
        for dm in self.dm.values().filter(|dm| dm.is_lvms()) {
            for line in dm.live.iter().flat_map(|table| &table.lines) {
                if let On::Linear { device, offset } = line.on {
                    used.push((device, offset, offset + line.sectors, &dm.name));
                }
            }
        }
        used.sort();
        let meet = used.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].2 > pair[1].1)?;
        Some(format!("{} and {} share sectors", meet[0].3, meet[1].3))
    }

    /// A device on bytes that the metadata do not assign to its LV.
    fn strayed(&self) -> Option<String> {
        let vg = self.vg();
        self.dm.values().filter(|dm| dm.is_lvms()).find_map(|dm| {
            let own = self.table(&vg, vg.lv_by_uuid(&dm.lv()?).filter(|lv| lv.is_linear())?).lines;
            let within = |line: &&Line| own.iter().any(|own| line.is_within(own));
            let astray = dm.live.iter().flat_map(|table| &table.lines).find(|line| !within(line))?;
            Some(format!("{} lies on {astray:?}, which is not its own", dm.name))
        })
    }

    /// Those of these devices that are not in the state of an idle device.
    pub(super) fn disorder(&self, which: impl Fn(&Dm) -> bool) -> Vec<String> {
        let bad = |dm: &&Dm| which(dm) && (dm.suspended || dm.inactive.is_some() || dm.live.is_none());
        self.dm.values().filter(bad).map(|dm| format!("{} is in disorder", dm.name)).collect()
    }

    /// Data that was written and is gone.
    pub(super) fn lost_data(&self) -> Vec<String> {
        let vg = self.vg();
        vg.lvs.iter().filter(|lv| lv.visible).filter_map(|lv| Some(format!("{} {}", lv.name, self.lost(&vg, lv)?))).collect()
    }

    /// The part of an LV's true content that is not on the disks.
    fn lost(&self, vg: &Vg, lv: &Lv) -> Option<String> {
        if let SegmentKind::ThinPool { .. } = lv.segments[0].kind {
            return None;
        }
        let truth = self.truth.get(&lv.uuid)?;
        let pieces = self.pieces_of(&self.table(vg, lv), &(0..vg.lv_size(lv).0))?;
        let seen = self.seen(&pieces);
        let head = seen.first().map(|(_, cell)| *cell);
        if let Some(serial) = truth.filesystem
            && !matches!(head, Some(Cell::Super(Super { serial: there, whole: true, .. })) if there == serial)
        {
            return Some(format!("lost its filesystem {serial}: {head:?}"));
        }
        let written = truth.data.get(&(0..vg.lv_size(lv).0));
        let gone = |(at, cell): &&(Range<u64>, Cell)| {
            let meets = |(there, is): &(Range<u64>, Cell)| there.start < at.end && there.end > at.start && is != cell;
            *cell != Cell::Zero && seen.iter().any(meets)
        };
        written.iter().find(gone).map(|(at, cell)| format!("lost {cell:?} at {at:?}"))
    }

    /// A tenant writes one cell of a device, and is told that it is on the disks.
    pub(super) fn tenant_writes(&mut self, minor: u32, at: &Range<u64>) {
        let number = (super::host::DM, minor);
        let cell = Cell::Data(self.serial());
        let (Some(pieces), Some(lv)) = (self.pieces(number, at), self.dm[&minor].lv()) else { return };
        self.write(&pieces, cell);
        self.flush(&pieces);
        if let Some(truth) = self.truth.get_mut(&lv) {
            truth.data.set(at, cell);
        }
    }

    /// Fills an LV, as a person does.
    pub(super) fn fill(&mut self, lv: &str) {
        let vg = self.vg();
        let Some(lv) = vg.lv(lv) else { return };
        let (whole, cell) = (0..vg.lv_size(lv).0, Cell::Data(self.serial()));
        let pieces = self.pieces_of(&self.table(&vg, lv), &whole).unwrap_or_default();
        self.write(&pieces, cell);
        if let Some(truth) = self.truth.get_mut(&lv.uuid) {
            truth.data.set(&whole, cell);
        }
    }
}
