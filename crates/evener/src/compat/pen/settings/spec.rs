//! Builds the configuration from pen's settings: one service, its pool, and possibly a pool for refused
//! clients.

use super::address::PenLog;
use super::{FastClose, Listen, PenSettings, Slot};
use crate::config::{Config, Problem};
use evener_core::acl::Acl;
use evener_core::spec::{
    self, AbortOnClose, Balance, Denied, Failover, HttpSpec, PassiveSpec, Policy, PoolSpec, Protocol,
    RespondSpec, ServerSpec, ServiceOptions, ServiceSpec, Source, Spec, StickyBy, StickySpec,
};
use std::sync::Arc;
use std::time::Duration;

/// Name of the service and its pool.
pub(in crate::compat::pen) const NAME: &str = "pen";
/// Name of the emergency server.
pub(in crate::compat::pen) const EMERGENCY: &str = "emergency";
/// Name of the pool for refused clients, and of its server.
pub(in crate::compat::pen) const ABUSE: &str = "abuse";
/// Default time after which an idle UDP flow ends.
const FLOW_IDLE: Duration = Duration::from_secs(60);
/// Interval of keepalive probes. pen uses the default of the system.
const KEEPALIVE: Duration = Duration::from_secs(75);
/// Timeout in cases where pen waits without a limit.
const NO_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
const DUMMY_TYPE: &str = "text/html";
const DUMMY_BODY: &str = "Ulric was here.";
/// Configuration that the settings define.
pub(in crate::compat::pen) struct Compiled {
    pub(in crate::compat::pen) config: Config,
    /// Access list of the control port.
    pub(in crate::compat::pen) control: Option<Arc<Acl>>,
}

impl PenSettings {
    /// Returns the configuration that the settings define, or every problem.
    pub(in crate::compat::pen) fn compile(&self) -> Result<Compiled, Vec<Problem>> {
        let lists = self.access.compile();
        let control = lists[self.control_acl].clone();
        // Clients of a unix socket have no address for a list to match.
        let is_path = self.listen.as_ref().is_some_and(Listen::is_path);
        let lists = if is_path { vec![None; lists.len()] } else { lists };
        let service = service(self, &lists).map_err(|error| vec![Problem::new(error)])?;
        let pools = [Some(pool(self, &lists)), abuse_pool(self)].into_iter().flatten().collect();
        let spec = Spec { pools, services: vec![service], ..Spec::default() };
        let spec = self.move_into_plane(spec, &lists).map_err(|error| vec![Problem::new(error)])?;
        let config = Config::without_file(spec).allow_loops();
        Ok(Compiled { config, control })
    }
}

fn pool(settings: &PenSettings, lists: &[Option<Arc<Acl>>]) -> PoolSpec {
    let mut used: Vec<(usize, &Slot)> =
        settings.servers.iter().enumerate().filter(|(_, slot)| slot.is_used()).collect();
    if settings.prio {
        // The policy prefers the first server: servers of one priority are sorted by number.
        used.sort_by_key(|(_, slot)| slot.priority());
    }
    let use_weight = settings.weight && !settings.prio;
    let server = |(number, slot): (usize, &Slot)| slot.numbered_spec(number, use_weight, lists);
    let mut servers: Vec<ServerSpec> = used.into_iter().filter_map(server).collect();
    let tier = if servers.is_empty() { 1 } else { 2 };
    let emergency = settings.emergency.as_ref().and_then(|slot| slot.server_spec(EMERGENCY.into()));
    servers.extend(emergency.map(|server| ServerSpec { tier, ..server }));
    PoolSpec {
        policy: policy(settings),
        sticky: settings.tracks_clients().then(|| StickySpec {
            by: StickyBy::ClientIp,
            size: settings.clients_max() as usize,
            ttl: seconds(settings.tracking),
            failback: false,
            rebalance: None,
        }),
        passive: PassiveSpec { failures: 1, down_for: Duration::from_secs(settings.blacklist.into()) },
        failover: if settings.stubborn { Failover::Never } else { Failover::Next },
        // pen tries every server for each client.
        retry_budget: None,
        // pen refuses clients immediately.
        queue: None,
        ..PoolSpec::new(NAME, servers)
    }
}

/// Returns the policy, with pen's precedence: priority, weight, hash. With round robin pen also hashes the
/// ports of clients, so that the connections of a client are spread as without a hash.
fn policy(settings: &PenSettings) -> Policy {
    match (settings.prio, settings.weight, settings.hash && !settings.roundrobin) {
        (true, ..) => Policy::First,
        (_, true, _) => Policy::LeastConn,
        (.., true) => Policy::Hash,
        _ => Policy::RoundRobin,
    }
}

fn abuse_pool(settings: &PenSettings) -> Option<PoolSpec> {
    let server = settings.abuse.as_ref()?.server_spec(ABUSE.into())?;
    let down_for = Duration::from_secs(settings.blacklist.into());
    Some(PoolSpec {
        passive: PassiveSpec { failures: 1, down_for },
        retry_budget: None,
        queue: None,
        ..PoolSpec::new(ABUSE, vec![server])
    })
}

fn service(settings: &PenSettings, lists: &[Option<Arc<Acl>>]) -> Result<ServiceSpec, String> {
    let protocol = protocol(settings);
    let listen =
        settings.listen.as_ref().ok_or("there is no port to listen on: give `pen PORT SERVER...`, or `listen PORT` in a file (-F); see `pen --help`")?;
    if settings.udp && listen.is_path() {
        return Err(format!("-U listens on addresses, not on a unix socket: {listen}"));
    }
    let control = settings.control.as_ref().and_then(|control| Listen::parse(control).ok());
    if let Some(control) = control.filter(|control| control.is_same_address(listen) && !settings.udp) {
        return Err(format!("{control}: -C needs another port than the one for clients"));
    }
    if settings.tls.is_enabled() && settings.udp {
        return Err("-E and -U cannot be combined: TLS needs connections".into());
    }
    let denied = if settings.abuse.is_some() { Denied::Pool(ABUSE.into()) } else { Denied::Drop };
    let request_log = settings.log.as_ref().filter(|_| !settings.udp).map(PenLog::request_log);
    Ok(ServiceSpec {
        listen: listen.endpoints(),
        pool: Some(NAME.into()),
        acl: lists[settings.client_acl].clone(),
        denied,
        tls: settings.tls.spec(),
        dns: None,
        http: (protocol == Protocol::Http).then(|| Arc::new(http(settings))),
        clients: Some(settings.clients_max()),
        // Refused clients would evict those whose servers pen remembers.
        records_refused: false,
        request_log,
        options: options(settings, protocol),
        ..ServiceSpec::new(NAME, protocol)
    })
}

fn protocol(settings: &PenSettings) -> Protocol {
    match (settings.udp, settings.http || settings.dummy) {
        (true, _) => Protocol::Udp,
        (_, true) => Protocol::Http,
        _ => Protocol::Tcp,
    }
}

fn options(settings: &PenSettings, protocol: Protocol) -> ServiceOptions {
    let defaults = ServiceOptions::of(protocol);
    let idle = seconds(settings.idle_timeout);
    let source = match (settings.transparent, settings.source) {
        (true, _) => Some(Source::Client),
        (false, source) => source.map(Source::Address),
    };
    if settings.udp {
        return ServiceOptions {
            flows_max: settings.conn_max(),
            idle_timeout: idle.or(Some(FLOW_IDLE)),
            source,
            ..defaults
        };
    }
    ServiceOptions {
        connections_max: settings.conn_max(),
        connect_timeout: Duration::from_secs(settings.timeout.into()),
        idle_timeout: idle,
        // pen waits for the other side without a limit.
        half_closed_timeout: None,
        backlog: settings.backlog.min(65_535),
        nodelay: settings.tcp_nodelay,
        server_keepalive: settings.keepalive.then_some(KEEPALIVE),
        source,
        fast_close: match settings.fast_close {
            FastClose::Off => spec::FastClose::Off,
            FastClose::Up => spec::FastClose::Server,
            FastClose::Down => spec::FastClose::Client,
            FastClose::Both => spec::FastClose::Both,
        },
        pending_max: Some(settings.pending_max),
        // Warm connections have no client yet: neither an address nor TLS.
        warm: if settings.transparent || settings.tls.is_enabled() { 0 } else { settings.idlers.min(10_000) },
        ..defaults
    }
}

fn seconds(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Returns the HTTP settings. All requests of a connection get the same server, as in pen.
fn http(settings: &PenSettings) -> HttpSpec {
    let idle = seconds(settings.idle_timeout).unwrap_or(NO_TIMEOUT);
    HttpSpec {
        balance: Balance::Connection,
        keepalive_timeout: idle,
        stall_timeout: idle,
        min_rate: None,
        abort_on_close: AbortOnClose::Never,
        response_timeout: idle,
        respond: settings.dummy.then(|| RespondSpec {
            status: 200,
            content_type: DUMMY_TYPE.into(),
            body: DUMMY_BODY.into(),
        }),
        ..HttpSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compat::pen::run::{PenAction, parse};
    use evener_core::limits::Limits;

    fn spec(line: &str) -> Spec {
        let Ok(PenAction::Run(line)) = parse(line.split(' ').map(Into::into).collect()) else {
            panic!("{line}")
        };
        line.settings().compile().expect("a configuration").config.spec
    }

    #[test]
    fn servers_are_sorted_by_priority_and_the_emergency_server_comes_last() {
        let line = "-e 10.0.0.9 -W -o prio 80 10.0.0.1:80:0:0:0:7 10.0.0.2:80:0:0:0:5 10.0.0.3:80:0:0:0:5";
        let pool = &spec(line).pools[0];
        let servers: Vec<(&str, u8)> =
            pool.servers.iter().map(|server| (&*server.name, server.tier)).collect();
        assert_eq!(servers, [("1", 1), ("2", 1), ("0", 1), ("emergency", 2)]);
        assert_eq!((pool.policy, pool.servers[0].weight), (Policy::First, 1));
    }

    #[test]
    fn weights_are_used_only_with_the_option() {
        let weights = |line: &str| -> Vec<u32> {
            spec(line).pools[0].servers.iter().map(|server| server.weight).collect()
        };
        assert_eq!(weights("80 10.0.0.1:80:0:0:4 10.0.0.2"), [1, 1]);
        assert_eq!(weights("-W 80 10.0.0.1:80:0:0:4 10.0.0.2"), [4, 0]);
    }

    #[test]
    fn a_soft_limit_is_also_the_hard_limit_and_a_hard_limit_alone_has_no_effect() {
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
            let Ok(PenAction::Run(parsed)) = parse(line.split(' ').map(Into::into).collect()) else {
                panic!("{line}")
            };
            let problems = parsed.settings().compile().err().expect(line);
            assert!(problems[0].to_string().contains(part), "{line}: {problems:?}");
        }
    }
}
