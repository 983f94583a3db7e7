//! Inputs of a configuration from outside its file: resolved addresses, TLS certificates, and servers found in
//! directories. All of them are read before anything changes.

use crate::certificates::{self, TlsSettings};
use crate::config::{Config, Problem, one_line};
use crate::discover::{Found, find};
use crate::loops;
use crate::resolve::{Targets, resolve};

/// The resolved inputs of a configuration.
pub(crate) struct Inputs {
    pub(crate) targets: Targets,
    pub(crate) tls: TlsSettings,
    pub(crate) found: Found,
}

type Gathered = Result<Inputs, Vec<Problem>>;

/// Resolves names and reads files. Each failure is a problem.
pub(crate) async fn gather(config: &Config, before: TlsSettings) -> Gathered {
    let (targets, tls, found) = tokio::join!(resolve(config), load(config, before), find(&config.spec));
    all(config, targets, tls, found)
}

/// Treatment of certificates that are in use, if the configuration of TLS did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CertificatesInUse {
    /// The certificates stay in use.
    Keep,
    /// The files are read again. If that fails, the certificates stay in use: the program may have given up the
    /// right to read the files, or changed its root.
    ReadAgain,
}

/// Resolves names where certificates are in use. Also returns the reason if these could not be read again.
pub(crate) async fn gather_with(
    config: &Config,
    before: TlsSettings,
    in_use: CertificatesInUse,
) -> (Gathered, Option<String>) {
    let loaded = match in_use {
        CertificatesInUse::Keep => Ok(before.clone()),
        CertificatesInUse::ReadAgain => load(config, before.clone()).await,
    };
    let (tls, why) = match loaded {
        Ok(tls) => (tls, None),
        Err(problems) => (before, Some(one_line(&problems))),
    };
    (all(config, resolve(config).await, Ok(tls), find(&config.spec).await), why)
}

async fn load(config: &Config, before: TlsSettings) -> Result<TlsSettings, Vec<Problem>> {
    let wanted = config.clone();
    let loading = tokio::task::spawn_blocking(move || certificates::load(&wanted, &before));
    loading.await.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]))
}

fn all(
    config: &Config,
    targets: Result<Targets, Vec<Problem>>,
    tls: Result<TlsSettings, Vec<Problem>>,
    found: Found,
) -> Gathered {
    let targets = targets.and_then(|targets| {
        let problems = loops::problems(config, &targets);
        if problems.is_empty() { Ok(targets) } else { Err(problems) }
    });
    match (targets, tls) {
        (Ok(targets), Ok(tls)) => Ok(Inputs { targets, tls, found }),
        (targets, tls) => Err(targets.err().into_iter().chain(tls.err()).flatten().collect()),
    }
}
