//! `evener demo`: three embedded HTTP servers and a UDP echo server, balanced on loopback under a modest load.
//! Shows the share of each server, and failover when a server stops and returns.

mod load;
mod screen;
mod servers;

use super::RunOptions;
use crate::admin::AdminSocket;
use crate::config::Config;
use crate::instance::Instance;
use crate::observe::{LogFormat, LogLevel};
use crate::signals::{self, Signals};
use crate::state::ViewScope;
use crate::supervisor::{ConfigSource, Handle};
use anyhow::{Context, bail};
use evener_core::Endpoint;
use evener_core::spec::{CheckKind, CheckSpec, PoolSpec, Protocol, ServerSpec, ServiceSpec, Spec};
use load::Tally;
use screen::Screen;
use servers::WebServer;
use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
/// Duration of a round, in which one server stops and returns. A round is shorter if the whole demo is shorter.
const ROUND: Duration = Duration::from_secs(12);
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// Runs the demo for `length` or until a signal. Returns an error if a request failed even after a retry.
pub(super) async fn demo(length: Option<Duration>) -> anyhow::Result<()> {
    let signals = Signals::catch()?;
    signals::unblock();
    let (servers, addresses, echo) = start_servers().await.context("cannot start the embedded servers")?;
    let options = RunOptions {
        workers: None,
        pin: false,
        driver: super::DriverName::Auto,
        admin: None,
        admin_mode: None,
        metrics: None,
        admin_group: None,
        drain_timeout: Duration::from_secs(2),
        log: LogFormat::Text,
        log_level: LogLevel::Off,
    };
    let config = Config::without_file(spec(&addresses, echo));
    let mut instance = Instance::start(config, options.setting(ConfigSource::None)).await?;
    let admin = AdminSocket::open_any(options.admin_permissions()?)?;
    let mut screen = Screen::new(std::io::stdout().is_terminal());
    screen.opening(admin.path(), &addresses, echo);
    instance.serve_admin(admin);
    let show = tokio::spawn(show(instance.handle(), servers, screen, signals, length));
    // The demo catches signals itself, because the load must end before the instance ends.
    instance.run(Signals::none()).await;
    let tally = show.await?;
    println!("\n{}", tally.summary());
    if tally.failed() > 0 {
        bail!("{} requests failed", tally.failed());
    }
    Ok(())
}

/// Starts the servers on a separate thread, so that they are independent of the instance.
async fn start_servers() -> anyhow::Result<(EmbeddedServers, Vec<SocketAddr>, SocketAddr)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let started = runtime.spawn(async {
        let mut servers = Vec::new();
        for name in NAMES {
            servers.push(WebServer::start(name, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?);
        }
        anyhow::Ok((servers, servers::start_echo().await?))
    });
    let (servers, echo) = started.await??;
    let addresses = servers.iter().map(WebServer::address).collect();
    Ok((EmbeddedServers { runtime: Some(runtime), servers }, addresses, echo))
}

/// The embedded servers and their thread.
struct EmbeddedServers {
    runtime: Option<tokio::runtime::Runtime>,
    servers: Vec<WebServer>,
}

impl Drop for EmbeddedServers {
    fn drop(&mut self) {
        // Dropping a runtime would block, which is not allowed inside another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn spec(addresses: &[SocketAddr], echo: SocketAddr) -> Spec {
    let named = |(address, name): (&SocketAddr, &str)| ServerSpec {
        name: name.into(),
        ..ServerSpec::new(Endpoint::Ip(*address))
    };
    let check = CheckSpec { every: Duration::from_millis(500), rise: 1, ..CheckSpec::new(CheckKind::Tcp) };
    let web = PoolSpec {
        check: Some(check),
        ..PoolSpec::new("web", addresses.iter().zip(NAMES).map(named).collect())
    };
    let echo = PoolSpec::new(
        "echo",
        vec![ServerSpec { name: "echo".into(), ..ServerSpec::new(Endpoint::Ip(echo)) }],
    );
    let service = |name: &str, protocol| ServiceSpec {
        listen: vec![Endpoint::Ip(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))],
        pool: Some(name.into()),
        ..ServiceSpec::new(name, protocol)
    };
    Spec {
        pools: vec![web, echo],
        services: vec![service("web", Protocol::Tcp), service("echo", Protocol::Udp)],
        ..Spec::default()
    }
}

/// Runs the load, stops and restarts servers, and draws the screen, until `length` has passed or a signal
/// arrives. Then ends the load and stops the instance.
async fn show(
    handle: Handle,
    mut servers: EmbeddedServers,
    mut screen: Screen,
    mut signals: Signals,
    length: Option<Duration>,
) -> Arc<Tally> {
    let tally = Arc::new(Tally::default());
    let Some(first) = handle.view(ViewScope::Instance).await else { return tally };
    let address = |service: &str| first.listen_addresses(service).first().copied();
    let (Some(web), Some(udp)) = (address("web"), address("echo")) else { return tally };
    let Some(runtime) = &servers.runtime else { return tally };
    let load = load::start(runtime, web, udp, &tally);
    let began = Instant::now();
    let mut script = Script::new(length.unwrap_or(ROUND).min(ROUND));
    let mut ticks = tokio::time::interval(CHECK_EVERY);
    while length.is_none_or(|length| began.elapsed() < length) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = signals.end() => break,
        }
        script.act(began.elapsed(), &mut servers, &mut screen).await;
        let Some(view) = handle.view(ViewScope::Instance).await else { break };
        screen.draw(began.elapsed(), &view, &tally);
        if screen.has_failed() {
            break;
        }
    }
    // The instance still accepts connections, so that every request gets its response. A second signal ends the
    // load immediately.
    tokio::select! {
        () = load.end() => {}
        () = signals.end() => {}
    }
    if let Some(view) = handle.view(ViewScope::Instance).await {
        screen.finish(began.elapsed(), &view, &tally);
    }
    handle.stop().await;
    tally
}

/// Schedule of the servers: in each round, one server stops after a third of the round and returns after two
/// thirds.
struct Script {
    round: Duration,
    next: u32,
    stopped: Option<usize>,
}

impl Script {
    fn new(round: Duration) -> Self {
        Self { round, next: 1, stopped: None }
    }

    async fn act(&mut self, elapsed: Duration, servers: &mut EmbeddedServers, screen: &mut Screen) {
        if elapsed < self.round * self.next / 3 {
            return;
        }
        let which = (self.next / 3) as usize % servers.servers.len();
        match (self.next % 3, self.stopped) {
            (1, _) => {
                servers.servers[which].stop().await;
                screen.add_event(elapsed, format!("the demo stops {}", NAMES[which]));
                self.stopped = Some(which);
            }
            (2, Some(stopped)) => {
                let Some(runtime) = &servers.runtime else { return };
                servers.servers[stopped].restart(runtime.handle());
                screen.add_event(elapsed, format!("the demo starts {} again", NAMES[stopped]));
                self.stopped = None;
            }
            _ => {}
        }
        self.next += 1;
    }
}
