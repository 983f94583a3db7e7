//! Builds the configuration from pen's settings: one service, its pool, and possibly a pool for refused
//! clients.

use super::state::{FastClose, Listen, ListenTo, Slot, State};
use crate::config::{Config, Problem, tls_defaults};
use evener_core::Endpoint;
use evener_core::acl::Acl;
use evener_core::limits::Limits;
use evener_core::spec::{
    self, AbortOnClose, Balance, CertificateFiles, ClientCertificates, Denied, Failover, HttpSpec,
    PassiveSpec, Policy, PoolSpec, Presence, Protocol, RespondSpec, ServerSpec, ServiceOptions, ServiceSpec,
    Source, Spec, StickyBy, StickySpec, TlsSpec, TlsVersion, WEIGHT_MAX,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// Name of the service and its pool.
pub(super) const NAME: &str = "pen";
/// Name of the emergency server.
pub(super) const EMERGENCY: &str = "emergency";
/// Name of the pool for refused clients, and of its server.
pub(super) const ABUSE: &str = "abuse";
/// Default time after which an idle UDP flow ends.
const FLOW_IDLE: Duration = Duration::from_secs(60);
/// Interval of keepalive probes. pen uses the default of the system.
const KEEPALIVE: Duration = Duration::from_secs(75);
/// Value of timeouts that pen does not limit.
const EVER: Duration = Duration::from_secs(24 * 3600);
const DUMMY_TYPE: &str = "text/html";
const DUMMY_BODY: &str = "Ulric was here.";
/// Path of the usual authorities in Debian.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Everything that the settings define.
pub(super) struct Whole {
    pub(super) config: Config,
    /// Access list of the control port.
    pub(super) control: Option<Arc<Acl>>,
}

/// Returns everything that the settings define, or every problem.
pub(super) fn whole(state: &State) -> Result<Whole, Vec<Problem>> {
    let lists: Vec<Option<Arc<Acl>>> =
        state.lists.iter().map(|list| list.compile(&state.countries)).collect();
    let control = lists[state.control_acl].clone();
    // Clients of a unix socket have no address for a list to match.
    let is_path = matches!(state.listen.as_ref().map(|listen| &listen.to), Some(ListenTo::Path(_)));
    let lists = if is_path { vec![None; lists.len()] } else { lists };
    let service = service(state, &lists).map_err(|error| vec![Problem::new(error)])?;
    let pools = [Some(pool(state, &lists)), abuse_pool(state)].into_iter().flatten().collect();
    let spec = Spec { pools, services: vec![service] };
    let config = Config::without_file(spec).allow_loops();
    Ok(Whole { config, control })
}

/// Returns the configuration alone.
pub(super) fn config(state: &State) -> Result<Config, Vec<Problem>> {
    whole(state).map(|whole| whole.config)
}

fn pool(state: &State, lists: &[Option<Arc<Acl>>]) -> PoolSpec {
    let mut used: Vec<(usize, &Slot)> =
        state.servers.iter().enumerate().filter(|(_, slot)| slot.is_used()).collect();
    if state.prio {
        // The policy prefers the first server: servers of one priority are sorted by number.
        used.sort_by_key(|(_, slot)| slot.prio);
    }
    let weighs = state.weight && !state.prio;
    let mut servers: Vec<ServerSpec> = used
        .into_iter()
        .filter_map(|(number, slot)| {
            let server = server(number.to_string(), slot)?;
            let weight = if weighs { slot.weight.min(WEIGHT_MAX) } else { 1 };
            Some(ServerSpec { weight, acl: lists[slot.acl].clone(), ..server })
        })
        .collect();
    let tier = if servers.is_empty() { 1 } else { 2 };
    let emergency = state.emergency.as_ref().and_then(|slot| server(EMERGENCY.into(), slot));
    servers.extend(emergency.map(|server| ServerSpec { tier, ..server }));
    PoolSpec {
        policy: policy(state),
        sticky: state.tracks().then(|| StickySpec {
            by: StickyBy::ClientIp,
            size: state.clients_max() as usize,
            ttl: seconds(state.tracking),
            failback: false,
            rebalance: None,
        }),
        passive: PassiveSpec { failures: 1, down_for: Duration::from_secs(state.blacklist.into()) },
        failover: if state.stubborn { Failover::Never } else { Failover::Next },
        // pen refuses clients at once.
        queue: None,
        ..PoolSpec::new(NAME, servers)
    }
}

/// Returns the policy, with pen's precedence: priority, weight, hash. With round robin pen also hashes the
/// ports of clients, so that the connections of a client are spread as without a hash.
fn policy(state: &State) -> Policy {
    match (state.prio, state.weight, state.hash && !state.roundrobin) {
        (true, ..) => Policy::First,
        (_, true, _) => Policy::LeastConn,
        (.., true) => Policy::Hash,
        _ => Policy::RoundRobin,
    }
}

fn server(name: String, slot: &Slot) -> Option<ServerSpec> {
    let endpoint = Endpoint::Ip(SocketAddr::new(slot.address?, slot.port));
    // Without a soft limit pen ignores the hard limit, too; a hard limit below the soft one has no effect.
    let soft = (slot.max > 0).then_some(slot.max);
    let limits = Limits { soft, hard: soft.map(|soft| slot.hard.max(soft)) };
    Some(ServerSpec { name: name.into(), limits, ..ServerSpec::new(endpoint) })
}

fn abuse_pool(state: &State) -> Option<PoolSpec> {
    let server = server(ABUSE.into(), state.abuse.as_ref()?)?;
    let down_for = Duration::from_secs(state.blacklist.into());
    Some(PoolSpec {
        passive: PassiveSpec { failures: 1, down_for },
        queue: None,
        ..PoolSpec::new(ABUSE, vec![server])
    })
}

fn service(state: &State, lists: &[Option<Arc<Acl>>]) -> Result<ServiceSpec, String> {
    let protocol = protocol(state);
    let listen =
        state.listen.as_ref().ok_or("there is no port to listen on: give `pen PORT SERVER...`, or `listen PORT` in a file (-F); `pen --help` tells more")?;
    if state.udp && matches!(listen.to, ListenTo::Path(_)) {
        return Err(format!("-U listens on addresses, not on a unix socket: {}", listen.text));
    }
    let control = state.control.as_ref().and_then(|control| Listen::parse(control).ok());
    if let Some(control) = control.filter(|control| control.to == listen.to && !state.udp) {
        return Err(format!("{}: -C needs another port than the one for clients", control.text));
    }
    let tls = state.tls.certificate.as_ref().map(|_| tls(state)).transpose()?;
    if tls.is_some() && state.udp {
        return Err("-E and -U cannot be combined: TLS needs connections".into());
    }
    let denied = if state.abuse.is_some() { Denied::Pool(ABUSE.into()) } else { Denied::Drop };
    let request_log = state.log.as_ref().filter(|_| !state.udp).map(|log| log.to.clone());
    Ok(ServiceSpec {
        listen: listen_on(listen),
        pool: Some(NAME.into()),
        acl: lists[state.client_acl].clone(),
        denied,
        tls,
        dns: None,
        http: (protocol == Protocol::Http).then(|| Arc::new(http(state))),
        clients: Some(state.clients_max()),
        request_log,
        options: options(state, protocol),
        ..ServiceSpec::new(NAME, protocol)
    })
}

fn protocol(state: &State) -> Protocol {
    match (state.udp, state.http || state.dummy) {
        (true, _) => Protocol::Udp,
        (_, true) => Protocol::Http,
        _ => Protocol::Tcp,
    }
}

/// Returns the listen addresses. `::` includes IPv4, as for pen where net.ipv6.bindv6only is 0.
fn listen_on(listen: &Listen) -> Vec<Endpoint> {
    match &listen.to {
        ListenTo::Path(path) => vec![Endpoint::Unix(path.clone())],
        ListenTo::Ip(address, port) => {
            let all = matches!(address, IpAddr::V6(address) if address.is_unspecified());
            let both = all.then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)));
            let single = SocketAddr::new(*address, *port);
            [Some(single), both].into_iter().flatten().map(Endpoint::Ip).collect()
        }
    }
}

fn options(state: &State, protocol: Protocol) -> ServiceOptions {
    let defaults = ServiceOptions::of(protocol);
    let idle = seconds(state.idle_timeout);
    let source = match (state.transparent, state.source) {
        (true, _) => Some(Source::Client),
        (false, source) => source.map(Source::Address),
    };
    if state.udp {
        return ServiceOptions {
            flows_max: state.conn_max(),
            idle_timeout: idle.or(Some(FLOW_IDLE)),
            source,
            ..defaults
        };
    }
    ServiceOptions {
        connections_max: state.conn_max(),
        connect_timeout: Duration::from_secs(state.timeout.into()),
        idle_timeout: idle,
        // pen waits for the other side without a limit.
        half_closed_timeout: None,
        backlog: state.backlog.min(65_535),
        nodelay: state.tcp_nodelay,
        server_keepalive: state.keepalive.then_some(KEEPALIVE),
        source,
        fast_close: match state.fast_close {
            FastClose::Off => spec::FastClose::Off,
            FastClose::Up => spec::FastClose::Server,
            FastClose::Down => spec::FastClose::Client,
            FastClose::Both => spec::FastClose::Both,
        },
        pending_max: Some(state.pending_max),
        // Warm connections have no client yet: neither an address nor TLS.
        warm: if state.transparent || state.tls.certificate.is_some() { 0 } else { state.idlers.min(10_000) },
        ..defaults
    }
}

fn seconds(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Returns the HTTP settings. All requests of a connection get the same server, as in pen.
fn http(state: &State) -> HttpSpec {
    let idle = seconds(state.idle_timeout).unwrap_or(EVER);
    HttpSpec {
        balance: Balance::Connection,
        keepalive_timeout: idle,
        stall_timeout: idle,
        min_rate: None,
        abort_on_close: AbortOnClose::Never,
        response_timeout: idle,
        respond: state.dummy.then(|| RespondSpec {
            status: 200,
            content_type: DUMMY_TYPE.into(),
            body: DUMMY_BODY.into(),
        }),
        ..HttpSpec::default()
    }
}

fn tls(state: &State) -> Result<Arc<TlsSpec>, String> {
    let tls = &state.tls;
    let text = |path: &std::path::PathBuf| path.display().to_string();
    let chain = tls.certificate.as_ref().map(text).unwrap_or_default();
    let certificate = CertificateFiles {
        key: tls.key.as_ref().map_or_else(|| chain.clone(), text),
        chain,
        ocsp: tls.ocsp.as_ref().map(text),
        issuers: tls.ca_file.as_ref().map(text),
    };
    let has = |option: &str| tls.options.iter().any(|known| known == option);
    let authorities: Vec<String> = tls.ca_file.iter().chain(&tls.ca_directory).map(text).collect();
    let client = tls.required.then(|| ClientCertificates {
        authorities: if authorities.is_empty() { vec![SYSTEM_AUTHORITIES.into()] } else { authorities },
        presence: Presence::Required,
    });
    Ok(Arc::new(TlsSpec {
        certificates: vec![certificate],
        directories: tls.sni_path.iter().map(text).collect(),
        client,
        oldest: if has("no_tlsv1.2") { TlsVersion::V13 } else { TlsVersion::V12 },
        ..tls_defaults()
    }))
}

#[cfg(test)]
mod tests {
    use super::super::line::{Wanted, parse};
    use super::*;

    fn spec(line: &str) -> Spec {
        let Ok(Wanted::Run(line)) = parse(line.split(' ').map(Into::into).collect()) else {
            panic!("{line}")
        };
        config(&line.state).expect("a configuration").spec
    }

    #[test]
    fn priorities_are_an_order_and_the_emergency_server_comes_last() {
        let line = "-e 10.0.0.9 -W -o prio 80 10.0.0.1:80:0:0:0:7 10.0.0.2:80:0:0:0:5 10.0.0.3:80:0:0:0:5";
        let pool = &spec(line).pools[0];
        let servers: Vec<(&str, u8)> =
            pool.servers.iter().map(|server| (&*server.name, server.tier)).collect();
        assert_eq!(servers, [("1", 1), ("2", 1), ("0", 1), ("emergency", 2)]);
        assert_eq!((pool.policy, pool.servers[0].weight), (Policy::First, 1));
    }

    #[test]
    fn weights_count_only_with_the_option() {
        let weights = |line: &str| -> Vec<u32> {
            spec(line).pools[0].servers.iter().map(|server| server.weight).collect()
        };
        assert_eq!(weights("80 10.0.0.1:80:0:0:4 10.0.0.2"), [1, 1]);
        assert_eq!(weights("-W 80 10.0.0.1:80:0:0:4 10.0.0.2"), [4, 0]);
    }

    #[test]
    fn limits_have_the_meaning_of_pen() {
        let limits = |server: &str| spec(&format!("80 {server}")).pools[0].servers[0].limits;
        assert_eq!(limits("10.0.0.1:80:10:20"), Limits { soft: Some(10), hard: Some(20) });
        assert_eq!(limits("10.0.0.1:80:10"), Limits { soft: Some(10), hard: Some(10) });
        assert_eq!(limits("10.0.0.1:80:0:20"), Limits { soft: None, hard: None });
    }

    #[test]
    fn the_unspecified_ipv6_address_includes_ipv4() {
        let listen = |text: &str| -> Vec<String> {
            spec(&format!("{text} 10.0.0.1")).services[0].listen.iter().map(ToString::to_string).collect()
        };
        assert_eq!(listen(":::53"), ["[::]:53", "0.0.0.0:53"]);
        assert_eq!(listen("53"), ["0.0.0.0:53"]);
        assert_eq!(listen("::1:53"), ["[::1]:53"]);
    }

    #[test]
    fn settings_that_exclude_each_other_are_reported() {
        for (line, part) in [
            ("-U /run/x 10.0.0.1:80", "unix socket"),
            ("-U -E x.pem 80 10.0.0.1", "TLS needs connections"),
            ("-f", "no port to listen on"),
            ("-C 80 80 10.0.0.1", "needs another port"),
        ] {
            let Ok(Wanted::Run(parsed)) = parse(line.split(' ').map(Into::into).collect()) else {
                panic!("{line}")
            };
            let problems = config(&parsed.state).expect_err(line);
            assert!(problems[0].to_string().contains(part), "{line}: {problems:?}");
        }
    }
}
