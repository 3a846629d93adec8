//! The state of this node's groups, for the health service, the metrics and the capacity.

use crate::lvm::{ReadError, View};
use crate::machine::{Group, Machine};
use crate::types::{GroupQueue, GroupState, VgName, chain};
use crate::volume::{may_change, owner};

impl Machine {
    /// The names of the configured groups.
    pub fn group_names(&self) -> Vec<VgName> {
        let mut names: Vec<VgName> = self.pools.iter().map(|pool| pool.vg.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Reads a group's disks, and returns its state. Blocks as long as the disks do.
    pub fn group_state(&self, name: &VgName) -> GroupState {
        if let Some(reason) = &self.without_lvm {
            return GroupState::Unreadable(reason.clone());
        }
        let Some(group) = self.groups.get(name) else { return GroupState::Absent("it is not configured".to_owned()) };
        match group.lvm.read() {
            Ok(view) => {
                // Keeps what is reported between calls as fresh as this check.
                group.understand(&view);
                match (incomplete(group, &view), owner::stranger(&view.vg, &self.id)) {
                    (Some(why), _) => GroupState::Incomplete(why),
                    (None, Some(why)) => GroupState::Foreign(why),
                    (None, None) => GroupState::Complete,
                }
            }
            Err(error @ ReadError::Absent { .. }) => GroupState::Absent(chain(&error)),
            Err(error @ ReadError::Away { .. }) => GroupState::Away(chain(&error)),
            Err(error) => GroupState::Unreadable(chain(&error)),
        }
    }

    /// Who waits to change a group, and what hangs there. Reads no disk.
    pub fn group_queue(&self, name: &VgName) -> GroupQueue {
        self.groups.get(name).map_or_else(GroupQueue::default, |group| group.lvm.queue())
    }

    /// Why a group would refuse any change now.
    pub(in crate::machine) fn trouble(&self, group: &Group) -> Option<String> {
        match group.lvm.queue().wedge {
            Some(wedge) => Some(wedge.text),
            None => group.lvm.read().map_or_else(
                |error| Some(chain(&error)),
                |view| incomplete(group, &view).or_else(|| owner::stranger(&view.vg, &self.id)),
            ),
        }
    }
}

/// Why a group that can be read must not be changed.
fn incomplete(group: &Group, view: &View) -> Option<String> {
    let flagged = || may_change(&view.vg).err().map(|error| error.chain());
    group.lvm.check_present(view).err().or_else(flagged)
}
