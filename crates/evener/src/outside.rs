//! What a configuration needs from outside of it: addresses for names, what TLS is made of, and which servers are found in
//! directories. All of it is had before anything changes.

use crate::config::{Config, Problem, one_line};
use crate::discover::{Found, look_for};
use crate::loops;
use crate::material::{self, Materials};
use crate::resolve::{Targets, resolve};

/// All that was had.
pub(crate) struct Outside {
    pub(crate) targets: Targets,
    pub(crate) materials: Materials,
    pub(crate) found: Found,
}

type Gathered = Result<Outside, Vec<Problem>>;

/// Resolves names and reads files; whatever cannot be had is a problem.
pub(crate) async fn gather(config: &Config, before: Materials) -> Gathered {
    let (targets, materials, found) =
        tokio::join!(resolve(config), load(config, before), look_for(&config.spec));
    all(config, targets, materials, found)
}

/// What becomes of `before`, which is for the same certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It goes on.
    Kept,
    /// It goes on where files cannot be read again: the right to read them may be gone, or the root another one.
    KeptAtNeed,
}

/// Resolves names; certificates are known. Why they were kept is told, too.
pub(crate) async fn gather_known(
    config: &Config,
    before: Materials,
    known: Known,
) -> (Gathered, Option<String>) {
    let loaded = match known {
        Known::Kept => Ok(before.clone()),
        Known::KeptAtNeed => load(config, before.clone()).await,
    };
    let (materials, why) = match loaded {
        Ok(materials) => (materials, None),
        Err(problems) => (before, Some(one_line(&problems))),
    };
    (all(config, resolve(config).await, Ok(materials), look_for(&config.spec).await), why)
}

async fn load(config: &Config, before: Materials) -> Result<Materials, Vec<Problem>> {
    let wanted = config.clone();
    let loading = tokio::task::spawn_blocking(move || material::load(&wanted, &before));
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
        (Ok(targets), Ok(materials)) => Ok(Outside { targets, materials, found }),
        (targets, materials) => Err(targets.err().into_iter().chain(materials.err()).flatten().collect()),
    }
}
