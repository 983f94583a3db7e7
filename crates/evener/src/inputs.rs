//! Inputs of a configuration from outside its file: TLS certificates, and servers by name or from other sources.
//! All of them are read before anything changes.

use crate::api_access::ApiAccess;
use crate::certificates::{self, TlsSettings};
use crate::config::{Config, Problem, one_line};
use crate::discover::FirstReadings;
use crate::loops;
use std::sync::Arc;

/// The inputs of a configuration.
#[derive(Clone)]
pub(crate) struct Inputs {
    tls: TlsSettings,
    servers: FirstReadings,
    api: Option<Arc<ApiAccess>>,
}

impl Inputs {
    /// Returns the access to the API over TCP, if it has an address.
    pub(crate) fn api(&self) -> Option<&Arc<ApiAccess>> {
        self.api.as_ref()
    }

    /// Returns the inputs with other certificates.
    pub(crate) fn with_tls(self, tls: TlsSettings) -> Self {
        Self { tls, ..self }
    }

    /// Returns the TLS settings and the servers.
    pub(crate) fn into_parts(self) -> (TlsSettings, FirstReadings) {
        (self.tls, self.servers)
    }
}

type Gathered = Result<Inputs, Vec<Problem>>;

/// Resolves names and reads files. Each failure is a problem.
pub(crate) async fn gather(config: &Config, before: TlsSettings) -> Gathered {
    let (servers, tls, api) =
        tokio::join!(FirstReadings::of(&config.spec), load(config, before), read_api(config));
    all(config, servers, tls, api)
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
    let (servers, api) = tokio::join!(FirstReadings::of(&config.spec), read_api(config));
    (all(config, servers, Ok(tls), api), why)
}

async fn load(config: &Config, before: TlsSettings) -> Result<TlsSettings, Vec<Problem>> {
    let wanted = config.clone();
    let loading = tokio::task::spawn_blocking(move || certificates::load(&wanted, &before));
    loading.await.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]))
}

/// Access to the API over TCP, or the problems with its files.
type ReadApi = Result<Option<Arc<ApiAccess>>, Vec<Problem>>;

async fn read_api(config: &Config) -> ReadApi {
    if config.spec.admin.listen.is_none() {
        return Ok(None);
    }
    let wanted = config.clone();
    let reading = tokio::task::spawn_blocking(move || ApiAccess::read(&wanted));
    reading.await.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())]))
}

fn all(
    config: &Config,
    servers: FirstReadings,
    tls: Result<TlsSettings, Vec<Problem>>,
    api: ReadApi,
) -> Gathered {
    let mut problems = servers.problems(config);
    if problems.is_empty() {
        problems = loops::problems(config, &servers);
    }
    match (tls, api) {
        (Ok(tls), Ok(api)) if problems.is_empty() => Ok(Inputs { tls, servers, api }),
        (tls, api) => {
            let others = tls.err().into_iter().chain(api.err()).flatten();
            Err(problems.into_iter().chain(others).collect())
        }
    }
}
