//! Inputs that a configuration takes from elsewhere: resolved addresses, TLS certificates, and servers found
//! in directories. All of them are read before anything changes.

use crate::certificates::{self, Materials};
use crate::config::{Config, Problem, one_line};
use crate::discover::{Found, find};
use crate::loops;
use crate::resolve::{Targets, resolve};

/// The resolved inputs of a configuration.
pub(crate) struct Inputs {
    pub(crate) targets: Targets,
    pub(crate) materials: Materials,
    pub(crate) found: Found,
}

type Gathered = Result<Inputs, Vec<Problem>>;

/// Resolves names and reads files. Each failure is a problem.
pub(crate) async fn gather(config: &Config, before: Materials) -> Gathered {
    let (targets, materials, found) = tokio::join!(resolve(config), load(config, before), find(&config.spec));
    all(config, targets, materials, found)
}

/// Treatment of the certificates in `before`, which are for the same TLS settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// The present ones stay in use.
    Unchanged,
    /// The files are read again. The present ones stay in use where that fails: the program may have given up
    /// the right to read them, or changed its root.
    UnchangedIfInvalid,
}

/// Resolves names. Certificates are known. Also returns the reason if they could not be read again.
pub(crate) async fn gather_known(
    config: &Config,
    before: Materials,
    known: Known,
) -> (Gathered, Option<String>) {
    let loaded = match known {
        Known::Unchanged => Ok(before.clone()),
        Known::UnchangedIfInvalid => load(config, before.clone()).await,
    };
    let (materials, why) = match loaded {
        Ok(materials) => (materials, None),
        Err(problems) => (before, Some(one_line(&problems))),
    };
    (all(config, resolve(config).await, Ok(materials), find(&config.spec).await), why)
}

async fn load(config: &Config, before: Materials) -> Result<Materials, Vec<Problem>> {
    let wanted = config.clone();
    let loading = tokio::task::spawn_blocking(move || certificates::load(&wanted, &before));
    loading.await.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]))
}

fn all(
    config: &Config,
    targets: Result<Targets, Vec<Problem>>,
    materials: Result<Materials, Vec<Problem>>,
    found: Found,
) -> Gathered {
    let targets = targets.and_then(|targets| {
        let problems = loops::problems(config, &targets);
        if problems.is_empty() { Ok(targets) } else { Err(problems) }
    });
    match (targets, materials) {
        (Ok(targets), Ok(materials)) => Ok(Inputs { targets, materials, found }),
        (targets, materials) => Err(targets.err().into_iter().chain(materials.err()).flatten().collect()),
    }
}
