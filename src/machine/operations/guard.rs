//! Keeping off a volume that a tool of an earlier driver still works on.

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
    /// Below a directory that is gone with a reboot, as every survivor is.
    pub(in crate::machine) fn new(run_dir: &std::path::Path) -> Self {
        Self { directory: run_dir.join("volumes"), limit: LIMIT }
    }
}

impl Machine {
    /// Keeps everybody else off a volume: whoever formats, grows, zeroes or deactivates it, or shows it for the first time. The reservation
    /// keeps off other operations of this driver only.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while something that an earlier driver began still works on it; the text names that.
    pub fn guard(&self, _reservation: &Reservation, volume: &Volume) -> Result<Guard, Error> {
        let fail = |error: &dyn std::error::Error| Error::unavailable(format!("volume {}", volume.id), chain(error));
        files::make_directories(&self.guards.directory)
            .map_err(|source| fail(&GuardError::Lock { path: self.guards.directory.clone(), source }))?;
        let path = self.guards.directory.join(volume.uuid.compact());
        Guard::take(&path, self.guards.limit).map_err(|error| fail(&error))
    }

    /// Makes the directory of the guards, so that no call has to.
    pub(in crate::machine) fn make_guards(&self) {
        if let Err(error) = files::make_directories(&self.guards.directory) {
            tracing::warn!(directory = %self.guards.directory.display(), %error, "no volume can be guarded against tools that live on");
        }
    }

    /// Waits for nobody.
    #[cfg(test)]
    pub(crate) fn impatient(mut self) -> Self {
        self.guards.limit = Duration::ZERO;
        self
    }
}
