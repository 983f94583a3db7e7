//! The configuration that is equivalent to mname-balancer.

use super::CommandLine;
use evener_core::Endpoint;
use evener_core::spec::{
    DiscoverSpec, DnsSpec, Policy, PoolSpec, Protocol, RetryOn, ServiceOptions, ServiceSpec, Spec, StickyBy,
    StickySpec,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Name of the service and its pool.
const NAME: &str = "mname";
/// Maximum number of clients in the sticky table.
const REMOTES_MAX: usize = 65_536;
/// Time after which an idle client is removed from the sticky table.
const REMOTE_TTL: Duration = Duration::from_secs(300);
/// Interval of rebalancing.
const REBALANCE: Duration = Duration::from_secs(15);
/// Idle timeout of TCP clients. Servers close their idle connections after 5 s.
const IDLE: Duration = Duration::from_secs(30);

/// Returns the services and pools that the command line defines.
pub(super) fn spec(line: &CommandLine) -> Spec {
    let sticky = StickySpec {
        by: StickyBy::ClientIp,
        size: REMOTES_MAX,
        ttl: Some(REMOTE_TTL),
        failback: true,
        rebalance: Some(REBALANCE),
    };
    let pool = PoolSpec {
        discover: vec![DiscoverSpec::Mname { directory: line.sockets.clone() }],
        policy: Policy::RoundRobin,
        sticky: Some(sticky),
        // mname-balancer tries every server for each query.
        retry_budget: None,
        ..PoolSpec::new(NAME, Vec::new())
    };
    let service = ServiceSpec {
        listen: vec![Endpoint::Ip(SocketAddr::from((line.address, line.port)))],
        pool: Some(NAME.into()),
        // Clients get every response of a server unchanged.
        dns: Some(Arc::new(DnsSpec { retry_on: RetryOn::NONE, ..DnsSpec::default() })),
        clients: Some(REMOTES_MAX as u32),
        options: ServiceOptions { idle_timeout: Some(IDLE), ..ServiceOptions::of(Protocol::Dns) },
        ..ServiceSpec::new(NAME, Protocol::Dns)
    };
    Spec { pools: vec![pool], services: vec![service], ..Spec::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::mname_balancer::BalancerAction;
    use crate::compat::mname_balancer::command_line::parse;

    /// The configuration in docs/migrate-from-mname-balancer.md is equivalent to the command line there.
    #[test]
    fn the_configuration_in_the_document_is_equivalent() {
        let document = include_str!("../../../../../docs/migrate-from-mname-balancer.md");
        let line = document.lines().find_map(|line| line.strip_prefix("    mname-balancer ")).unwrap();
        let words = line.split(' ').map(std::ffi::OsString::from).collect();
        let Ok(BalancerAction::Run(line)) = parse(words, None) else { panic!("a command line") };
        let lua = document.split("```lua\n").nth(1).unwrap().split("```").next().unwrap();
        let file = std::env::temp_dir().join(format!("evener-mname-{}.lua", std::process::id()));
        std::fs::write(&file, lua).unwrap();
        let config = crate::config::load(&file);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(config.unwrap().spec, spec(&line));
    }
}
