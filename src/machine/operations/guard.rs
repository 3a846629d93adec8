//! Guards a volume against a tool of an earlier driver that still works on it.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::{Guard, GuardError, files};
use crate::inflight::Reservation;
use crate::machine::Machine;
use crate::types::{Error, chain};
use crate::volume::inventory::Volume;

/// How long one call waits for a survivor to end.
const LIMIT: Duration = Duration::from_secs(10);

/// The guards of this machine's volumes.
pub(in crate::machine) struct Guards {
    directory: PathBuf,
    limit: Duration,
}

impl Guards {
    /// Uses a directory that a reboot empties, just as it ends every survivor.
    pub(in crate::machine) fn new(run_dir: &std::path::Path) -> Self {
        Self { directory: run_dir.join("volumes"), limit: LIMIT }
    }
}

impl Machine {
    /// Locks a volume against everyone else who formats, grows, zeroes, deactivates or first shows it. The reservation excludes only
    /// other operations of this driver.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while something of an earlier driver still works on it; the text names it.
    pub fn guard(&self, _reservation: &Reservation, volume: &Volume) -> Result<Guard, Error> {
        let fail = |error: &dyn std::error::Error| Error::unavailable(format!("volume {}", volume.id), chain(error));
        files::make_directories(&self.guards.directory)
            .map_err(|source| fail(&GuardError::Lock { path: self.guards.directory.clone(), source }))?;
        let path = self.guards.directory.join(volume.uuid.compact());
        Guard::take(&path, self.guards.limit).map_err(|error| fail(&error))
    }

    /// Creates the directory of the guards, so that no call has to.
    pub(in crate::machine) fn make_guards(&self) {
        if let Err(error) = files::make_directories(&self.guards.directory) {
            tracing::warn!(directory = %self.guards.directory.display(), %error, "cannot create the directory that guards volumes against surviving tools");
        }
    }

    /// Waits for nobody.
    #[cfg(test)]
    pub(crate) fn impatient(mut self) -> Self {
        self.guards.limit = Duration::ZERO;
        self
    }
}
