//! What a configuration needs from outside of it: addresses for names, and what TLS is made of. All of it is had before
//! anything changes.

use crate::config::{Config, Problem};
use crate::material::{self, Materials};
use crate::resolve::{Targets, resolve};

/// All that was had.
pub(crate) struct Outside {
    pub(crate) targets: Targets,
    pub(crate) materials: Materials,
}

/// Resolves names and reads files; whatever cannot be had is a problem.
pub(crate) async fn gather(config: &Config, before: Materials) -> Result<Outside, Vec<Problem>> {
    let wanted = config.clone();
    let loading = tokio::task::spawn_blocking(move || material::load(&wanted, &before));
    let (targets, materials) = tokio::join!(resolve(config), loading);
    let materials = materials.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]));
    match (targets, materials) {
        (Ok(targets), Ok(materials)) => Ok(Outside { targets, materials }),
        (targets, materials) => Err(targets.err().into_iter().chain(materials.err()).flatten().collect()),
    }
}
