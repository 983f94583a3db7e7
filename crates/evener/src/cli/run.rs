//! The commands that run an instance (`run`, `tcp`, `udp`, `http`, `dns`).

use super::{OneLiner, RunOptions};
use crate::admin::AdminSocket;
use crate::config::{self, Config, failure};
use crate::instance::Instance;
use crate::scope;
use crate::signals::{self, Signals};
use crate::supervisor::ConfigSource;
use anyhow::bail;
use evener_core::Endpoint;
use evener_core::spec::{
    CheckSpec, Policy, PoolSpec, Protocol, ServerSpec, ServiceSpec, Spec, StickyBy, StickySpec, Transport,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `evener run FILE`
pub(super) async fn file(file: PathBuf, options: &RunOptions) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let config = read(&file).await?;
    let admin = match &options.admin {
        Some(path) => AdminSocket::open(path)?,
        None => AdminSocket::open_default()?,
    };
    let mut instance = Instance::start(config, options.setting(ConfigSource::File(file))).await?;
    instance.serve_admin(admin);
    instance.run(signals).await;
    Ok(())
}

/// `evener tcp|udp|http|dns LISTEN SERVER...`. `complete` adds settings that only this protocol has.
pub(super) async fn one_liner(
    line: &OneLiner,
    protocol: Protocol,
    check: Option<CheckSpec>,
    complete: impl FnOnce(&mut ServiceSpec),
) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let mut spec = one_liner_spec(line, protocol, check)?;
    spec.services.first_mut().map(complete);
    let config = Config::without_file(spec);
    let admin = match &line.options.admin {
        Some(path) => AdminSocket::open(path)?,
        None => AdminSocket::open_any()?,
    };
    let mut instance = Instance::start(config, line.options.setting(ConfigSource::None)).await?;
    instance.serve_admin(admin);
    instance.run(signals).await;
    Ok(())
}

fn one_liner_spec(line: &OneLiner, protocol: Protocol, check: Option<CheckSpec>) -> anyhow::Result<Spec> {
    let listen = scope::parse_listen(&line.listen)?;
    let name = protocol.name();
    let has_datagrams = protocol.transports().contains(&Transport::Datagram);
    if has_datagrams && matches!(listen, Endpoint::Unix(_)) {
        bail!("`{listen}` is a unix socket: {name} must listen on IP addresses");
    }
    if matches!(listen, Endpoint::Host { .. }) {
        bail!(
            "`{listen}` is not a listen address: write an IP address, such as 127.0.0.1:8080 or 0.0.0.0:8080"
        );
    }
    let mut servers = Vec::new();
    for server in &line.servers {
        let server = scope::server(server)?;
        if has_datagrams && matches!(server.endpoint, Endpoint::Unix(_)) {
            bail!("server `{}` is a unix socket: {name} needs IP servers", server.endpoint);
        }
        if servers.iter().any(|other: &ServerSpec| other.name == server.name) {
            bail!("server `{}` is listed twice", server.name);
        }
        servers.push(server);
    }
    let pool = PoolSpec {
        policy: Policy::named(&line.policy).unwrap_or(Policy::RoundRobin),
        sticky: line.sticky.then_some(StickySpec {
            by: StickyBy::ClientIp,
            size: 65_536,
            ttl: Some(Duration::from_secs(3600)),
            failback: false,
            rebalance: None,
        }),
        check,
        ..PoolSpec::new(name, servers)
    };
    let service =
        ServiceSpec { listen: vec![listen], pool: Some(name.into()), ..ServiceSpec::new(name, protocol) };
    Ok(Spec { pools: vec![pool], services: vec![service] })
}

/// Reads a configuration file.
pub(super) async fn read(file: &Path) -> anyhow::Result<Config> {
    let path = file.to_owned();
    let config = tokio::task::spawn_blocking(move || config::load(&path)).await?;
    config.map_err(|problems| failure(&problems))
}
