//! Inputs of a configuration from outside its file: TLS certificates, and servers by name or from other sources.
//! All of them are read before anything changes.

use crate::certificates::{self, TlsSettings};
use crate::config::{Config, Problem, one_line};
use crate::discover::FirstReadings;
use crate::loops;

/// The inputs of a configuration.
#[derive(Clone)]
pub(crate) struct Inputs {
    tls: TlsSettings,
    servers: FirstReadings,
}

impl Inputs {
    /// Returns the TLS settings and the servers.
    pub(crate) fn into_parts(self) -> (TlsSettings, FirstReadings) {
        (self.tls, self.servers)
    }
}

type Gathered = Result<Inputs, Vec<Problem>>;

/// Resolves names and reads files. Each failure is a problem.
pub(crate) async fn gather(config: &Config, before: TlsSettings) -> Gathered {
    let (servers, tls) = tokio::join!(FirstReadings::of(&config.spec), load(config, before));
    all(config, servers, tls)
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
    (all(config, FirstReadings::of(&config.spec).await, Ok(tls)), why)
}

async fn load(config: &Config, before: TlsSettings) -> Result<TlsSettings, Vec<Problem>> {
    let wanted = config.clone();
    let loading = tokio::task::spawn_blocking(move || certificates::load(&wanted, &before));
    loading.await.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]))
}

fn all(config: &Config, servers: FirstReadings, tls: Result<TlsSettings, Vec<Problem>>) -> Gathered {
    let mut problems = servers.problems(config);
    if problems.is_empty() {
        problems = loops::problems(config, &servers);
    }
    match tls {
        Ok(tls) if problems.is_empty() => Ok(Inputs { tls, servers }),
        tls => Err(problems.into_iter().chain(tls.err().into_iter().flatten()).collect()),
    }
}
