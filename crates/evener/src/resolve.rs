//! Resolution of host names before a configuration is applied. A name that does not resolve makes the
//! configuration invalid.

use crate::config::{Config, Problem};
use evener_core::{Endpoint, Target};
use std::collections::BTreeMap;
use std::time::Duration;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses of all servers of a configuration.
#[derive(Debug)]
pub(crate) struct Targets(BTreeMap<Endpoint, Target>);

impl Targets {
    /// Returns the address of a server in the resolved configuration.
    pub(crate) fn of(&self, endpoint: &Endpoint) -> Target {
        self.0
            .get(endpoint)
            .cloned()
            .or_else(|| endpoint.target())
            .expect("every endpoint of the configuration was resolved")
    }
}

/// Resolves all names concurrently. Each failure is a problem.
pub(crate) async fn resolve(config: &Config) -> Result<Targets, Vec<Problem>> {
    let servers = config.spec.pools.iter().flat_map(|pool| &pool.servers).map(|server| &server.endpoint);
    let names = servers.filter(|endpoint| matches!(endpoint, Endpoint::Host { .. }));
    let mut tasks = tokio::task::JoinSet::new();
    for endpoint in names.collect::<std::collections::BTreeSet<_>>() {
        tasks.spawn(resolve_endpoint(endpoint.clone()));
    }
    let (mut targets, mut problems) = (BTreeMap::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let Ok((endpoint, found)) = done else { continue };
        match found {
            Ok(target) => drop(targets.insert(endpoint, target)),
            Err(why) => {
                problems.push(config.problem_with_server(&endpoint, why));
            }
        }
    }
    problems.sort();
    if problems.is_empty() { Ok(Targets(targets)) } else { Err(problems) }
}

async fn resolve_endpoint(endpoint: Endpoint) -> (Endpoint, Result<Target, String>) {
    let found = match &endpoint {
        Endpoint::Host { name, port } => resolve_host(name, *port).await,
        other => other.target().ok_or_else(|| format!("`{other}` is not an address")),
    };
    (endpoint, found)
}

async fn resolve_host(name: &str, port: u16) -> Result<Target, String> {
    match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name, port))).await {
        // getaddrinfo(3) sorts addresses by preference (RFC 6724).
        Ok(Ok(mut addresses)) => {
            addresses.next().map(Target::Ip).ok_or_else(|| format!("`{name}` has no address"))
        }
        Ok(Err(error)) => Err(format!("`{name}` does not resolve: {}", reason(&error))),
        Err(_) => Err(format!("`{name}` does not resolve: no response within {RESOLVE_TIMEOUT:?}")),
    }
}

/// Returns the last part of an error message, without the name of the failed function.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or(&text).to_owned()
}
