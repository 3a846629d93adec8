//! Programs of the simulated host: mkfs and its relatives, and the probe of a device. Supports only ext4.

use std::ops::Range;
use std::process::ExitStatus;
use std::time::Duration;

use crate::device::{ProbeReport, superblock_areas};
use crate::host::{DmDevice, Output, Tool, ToolError, Tools, Use, effect};
use crate::types::{Bytes, Signature, SignatureUsage};

use super::content::{Cell, HEAD, Super};
use super::doom::Moment;
use super::host::{DM, Host, State, Survivor};

fn failed(tool: &Tool) -> ToolError {
    ToolError::Absent { program: tool.name(), package: "nothing of this machine" }
}

fn success(stdout: Vec<u8>) -> Output {
    Output { status: ExitStatus::default(), stdout, stderr: Vec::new(), cut: false, took: Duration::ZERO }
}

/// The 16 bytes of a UUID in text form.
fn bytes(uuid: &str) -> [u8; 16] {
    let digits: Vec<u32> = uuid.chars().filter_map(|digit| digit.to_digit(16)).collect();
    std::array::from_fn(|n| u8::try_from(digits[2 * n] << 4 | digits[2 * n + 1]).unwrap())
}

fn text(uuid: [u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

impl Tools for Host {
    fn run(&self, tool: &Tool, on: Use<'_>) -> Result<Output, ToolError> {
        let at = (on.device.major, on.device.minor);
        let (subject, is_on) = match tool {
            Tool::MakeExt4 { device, .. } | Tool::CheckExt4 { device } | Tool::Probe { device } => {
                (device, self.state().number(&device.to_string_lossy()))
            }
            Tool::GrowExt4 { mount_point, .. } => {
                let mounted = self.entries().into_iter().rfind(|entry| entry.target == *mount_point);
                (mount_point, mounted.map(|entry| (entry.major, entry.minor)))
            }
            _ => return Err(failed(tool)),
        };
        if is_on != Some(at) || !self.state().is(on.device) {
            return Err(failed(tool));
        }
        if let Tool::Probe { .. } = tool {
            let report = self.state().probe(at).ok_or_else(|| failed(tool))?;
            return Ok(success(serde_json::to_vec(&report).unwrap()));
        }
        effect(tool.name(), &subject.display(), || {
            if self.doom.leaves_alone() {
                let survivor = Survivor { tool: tool.clone(), device: on.device.clone(), _guard: on.guard.share().into() };
                self.state().survivors.push(survivor);
                self.doom.at(Moment::Alone);
                unreachable!("the driver is dead");
            }
            self.work(tool, at, &mut || self.doom.part())
        })
    }
}

impl Host {
    fn work(&self, tool: &Tool, at: (u32, u32), part: &mut dyn FnMut()) -> Result<Output, ToolError> {
        let mounts = self.entries();
        let mut state = self.state();
        match tool {
            Tool::MakeExt4 { uuid, .. } => {
                if mounts.iter().any(|entry| (entry.major, entry.minor) == at) {
                    return Err(failed(tool));
                }
                state.make_filesystem(at, bytes(uuid), part);
            }
            Tool::GrowExt4 { blocks, .. } => {
                let size = (blocks * 4096).min(state.size(at));
                let head = state.head(at).filter(|head| head.mounted).ok_or_else(|| failed(tool))?;
                state.put_head(at, Super { size, ..head });
            }
            _ => {}
        }
        Ok(success(Vec::new()))
    }

    /// Whether a tool goes on although its driver died.
    pub(super) fn survives(&self) -> bool {
        !self.state().survivors.is_empty()
    }

    /// Lets the tools whose driver died finish.
    pub(super) fn let_tools_end(&self) {
        let survivors = std::mem::take(&mut self.state().survivors);
        for Survivor { tool, device, .. } in &survivors {
            let _ = self.work(tool, (device.major, device.minor), &mut || ());
        }
    }
}

impl State {
    /// Whether a device still is the same one.
    pub(super) fn is(&self, device: &DmDevice) -> bool {
        device.major == DM && self.dm.get(&device.minor).is_some_and(|dm| dm.uuid == device.uuid)
    }

    fn probe(&self, device: (u32, u32)) -> Option<ProbeReport> {
        let size = self.size(device);
        let mut cells = Vec::new();
        for area in superblock_areas(Bytes(size)) {
            let found = self.seen(&self.pieces(device, &(area.offset..area.offset + area.length))?);
            cells.extend(found.into_iter().map(|(_, cell)| (area.offset, cell)));
        }
        let signature = |kind: &str, usage: SignatureUsage, uuid: Option<String>, at: u64| Signature {
            kind: kind.to_owned(),
            usage,
            uuid,
            label: None,
            damaged: false,
            offset: Some(at),
        };
        let signatures = cells.iter().filter_map(|(at, cell)| match cell {
            Cell::Super(head) => Some(signature("ext4", SignatureUsage::Filesystem, Some(text(head.uuid)), *at)),
            // The former user of the disk had a filesystem that began here, or a RAID that ended here.
            Cell::Old if *at == 0 => Some(signature("xfs", SignatureUsage::Filesystem, None, *at)),
            Cell::Old => Some(signature("linux_raid_member", SignatureUsage::Raid, None, *at)),
            Cell::Zero | Cell::Data(_) => None,
        });
        let blank_bytes = cells.iter().all(|(_, cell)| *cell == Cell::Zero);
        Some(ProbeReport { size, blank_bytes, signatures: signatures.collect() })
    }

    /// Whether a part of a device holds only zeroes; `None` if it cannot be read.
    pub(super) fn is_zero(&self, device: (u32, u32), part: &Range<u64>) -> Option<bool> {
        Some(self.seen(&self.pieces(device, part)?).iter().all(|(_, cell)| *cell == Cell::Zero))
    }

    pub(super) fn put_head(&mut self, device: (u32, u32), head: Super) {
        if let Some(pieces) = self.pieces(device, &(0..HEAD)) {
            self.write(&pieces, Cell::Super(head));
        }
    }

    fn make_filesystem(&mut self, device: (u32, u32), uuid: [u8; 16], part: &mut dyn FnMut()) {
        let lv = self.dm.get(&device.1).filter(|_| device.0 == DM).and_then(|dm| dm.lv());
        let truth = lv.as_ref().and_then(|lv| self.truth.get(lv));
        if let Some(truth) = truth
            && (truth.filesystem.is_some() || truth.data.get(&(0..u64::MAX)).iter().any(|(_, cell)| *cell != Cell::Zero))
        {
            self.wrong.push(format!("mkfs on dm-{}, which holds a user's data", device.1));
        }
        let (serial, size) = (self.serial(), self.size(device));
        let head = Super { serial, uuid, size, whole: false, mounted: false };
        self.put_head(device, head);
        part();
        self.put_head(device, Super { whole: true, ..head });
    }
}
