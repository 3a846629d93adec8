//! ValidateVolumeCapabilities.

use crate::types::{AccessType, Capability, Error, Parameter, Parameters};
use crate::volume::context::VolumeContext;
use crate::volume::create::{usable_as, usable_together};

use super::{Controller, Listed};

/// ValidateVolumeCapabilities, checked for form.
#[derive(Clone, Debug)]
pub struct ValidateRequest {
    /// `volume_id`, as given.
    pub id: String,
    /// `volume_capabilities`, each as the driver understands it, or why it does not.
    pub capabilities: Vec<Result<Capability, Error>>,
    /// `volume_context`.
    pub said: Result<VolumeContext, Error>,
    /// `parameters`, and whether `mutable_parameters` has any.
    pub parameters: Result<Parameters, Error>,
}

impl Controller {
    /// Whether a volume allows all of these uses; the text says why not.
    ///
    /// # Errors
    /// [`Error::Missing`] if there is no such volume; [`Error::Unavailable`] if that or its pool is unknown for now.
    pub async fn validate(&self, request: &ValidateRequest) -> Result<Result<(), String>, Error> {
        let Listed { volume, node, .. } = self.volume(&request.id).await?;
        let agents = self.fleet.agents().await?;
        let said = match (&request.said, agents.iter().find(|agent| *agent.node() == node)) {
            (Ok(said), Some(agent)) => Self::check_said(said, &volume.id, agent).await,
            (said, _) => said.as_ref().map(drop).map_err(Error::clone),
        };
        let named = request.parameters.as_ref().ok().and_then(|parameters| parameters.get(Parameter::Pool));
        let pool = match self.pool(named).await {
            // This error says nothing about the volume.
            Err(error @ Error::Unavailable { .. }) => return Err(error),
            known => known.map(drop),
        };
        let checked = || -> Result<(), Error> {
            request.parameters.clone()?;
            pool.clone()?;
            said.clone()?;
            let capabilities = request.capabilities.iter().map(|one| one.as_ref().map(|one| one.access).map_err(Error::clone));
            let all: Vec<AccessType> = capabilities.collect::<Result<_, _>>()?;
            usable_together(&all).map_err(|why| Error::invalid("volume_capabilities", "", why))?;
            for access in all {
                usable_as(volume.marks.life, &volume.placement, access)
                    .map_err(|why| Error::precondition(format!("volume {}", volume.id), why))?;
            }
            Ok(())
        };
        Ok(checked().map_err(|error| error.to_string()))
    }
}
