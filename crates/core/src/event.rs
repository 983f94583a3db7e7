//! Every observable fact, declared once: the name, level and fields of the log line, the metric and the API
//! record all come from here. Fields come from the configuration, never from clients.

use crate::counters::{Counter, CounterSet, Declaration, Kind, Label, LabelValue, Unit};
use crate::reason::Reason;
use crate::spec::XdpEventLevel;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Importance of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Expected and frequent.
    Debug,
    /// A state changed.
    Info,
    /// An operator should act.
    Warn,
    /// Something does not work.
    Error,
}

impl Level {
    /// All levels, the least important first.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// Returns the name in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Value of a field.
trait FieldValue {
    /// Returns the value to show; `None` if the field is left out.
    fn shown(&self) -> Option<&dyn Display>;
}

macro_rules! shown_always {
    ($($type:ty),*) => {$(
        impl FieldValue for $type {
            fn shown(&self) -> Option<&dyn Display> {
                Some(self)
            }
        }
    )*};
}

shown_always!(
    &'static str,
    String,
    Box<str>,
    Arc<str>,
    Reason,
    u16,
    u32,
    u64,
    usize,
    IpAddr,
    Box<SocketAddr>
);

impl<T: FieldValue> FieldValue for Option<T> {
    fn shown(&self) -> Option<&dyn Display> {
        self.as_ref().and_then(FieldValue::shown)
    }
}

/// Relation of a failure to similar ones: those of the same service with the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Similar {
    /// One failure a second, with the number of similar ones since the last event that have no event.
    Sampled(u64),
    /// A further failure, for readers who want all of them.
    Further,
}

impl Display for Similar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sampled(unlogged) => unlogged.fmt(out),
            Self::Further => Ok(()),
        }
    }
}

impl FieldValue for Similar {
    fn shown(&self) -> Option<&dyn Display> {
        matches!(self, Self::Sampled(1..)).then_some(self as &dyn Display)
    }
}

/// Level of a decision about a packet, which has more steps than the levels of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Severity(pub XdpEventLevel);

impl Severity {
    const fn level(self) -> Level {
        match self.0 {
            XdpEventLevel::Critical | XdpEventLevel::Error => Level::Error,
            XdpEventLevel::Warning => Level::Warn,
            XdpEventLevel::Info => Level::Info,
            XdpEventLevel::Debug | XdpEventLevel::Trace => Level::Debug,
        }
    }
}

/// Level of a message of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScriptLevel(pub Level);

impl FieldValue for ScriptLevel {
    fn shown(&self) -> Option<&dyn Display> {
        // The level of the event says the same.
        None
    }
}

impl FieldValue for Severity {
    fn shown(&self) -> Option<&dyn Display> {
        match self.0 {
            XdpEventLevel::Critical => Some(&"critical"),
            XdpEventLevel::Trace => Some(&"trace"),
            // The level of the event says the same.
            _ => None,
        }
    }
}

macro_rules! events {
    ($($(#[doc = $doc:literal])* $level:ident $name:literal $variant:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        /// An observable fact.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the names of the fields describe them")]
        pub enum Event { $($(#[doc = $doc])* $variant { $($field: $type),* }),* }

        impl Event {
            /// Returns the name in logs, metrics and the API.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $name),* }
            }

            /// Returns the importance of most events of the name.
            const fn usual_level(&self) -> Level {
                match self { $(Self::$variant { .. } => Level::$level),* }
            }

            /// Calls `visit` with each field's name and value, in order. Fields without a value are left out.
            pub fn fields(&self, visit: &mut dyn FnMut(&'static str, &dyn Display)) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        $($field.shown().into_iter().for_each(|value| visit(stringify!($field), value));)*
                        let _ = &visit;
                    })*
                }
            }

            /// Returns the position of the event's name in the label of [`EventCounters`].
            const fn position(&self) -> usize {
                enum Position { $($variant),* }
                match self { $(Self::$variant { .. } => Position::$variant as usize),* }
            }
        }

        const NAMES: &[LabelValue] = &[$(LabelValue { name: $name, help: concat!($($doc),*).trim_ascii() }),*];
    };
}

events! {
    /// The program started.
    Info "started" Started { version: &'static str, pid: u32, workers: usize, driver: &'static str, services: usize, pools: usize }
    /// The admin socket is open.
    Info "admin_listening" AdminListening { socket: String }
    /// The admin API is served at an address.
    Info "api_listening" ApiListening { address: String }
    /// The admin API is no longer served at an address.
    Info "api_closed" ApiClosed { address: String }
    /// A client changed something through the admin API. `who` is the user and the process at the admin socket, or the
    /// name of the token and the address.
    Info "api_change" ApiChange { who: Box<str>, action: &'static str, subject: Box<str>, before: Option<Box<str>>, after: Option<Box<str>> }
    /// A request to the admin API over TCP was refused, because its token, its host or its origin was wrong; at most
    /// once a second.
    Warn "api_refused" ApiRefused { client: IpAddr, reason: &'static str, similar_not_logged: Similar }
    /// The metrics are served at an address.
    Info "metrics_listening" MetricsListening { address: String }
    /// A service accepts clients at an address.
    Info "listening" Listening { service: Arc<str>, protocol: &'static str, address: String }
    /// A service no longer accepts clients at an address.
    Info "listener_closed" ListenerClosed { service: Arc<str>, address: String }
    /// A source of servers, such as a file or a host name, has a problem; the servers found earlier stay. A
    /// problem that continues is logged once.
    Warn "discovery_failed" DiscoveryFailed { pool: Arc<str>, source: String, problem: String }
    /// A source of servers that had a problem works again.
    Info "discovery_recovered" DiscoveryRecovered { pool: Arc<str>, source: String }
    /// An address that a source lists is not used.
    Warn "server_refused" ServerRefused { pool: Arc<str>, server: Arc<str>, reason: String }
    /// A server was added by the configuration or discovered.
    Info "server_added" ServerAdded { pool: Arc<str>, server: Arc<str> }
    /// A server was removed from the configuration or is no longer discovered.
    Info "server_removed" ServerRemoved { pool: Arc<str>, server: Arc<str> }
    /// A server has another name, because the number of addresses of its host name changed.
    Info "server_renamed" ServerRenamed { pool: Arc<str>, before: Arc<str>, server: Arc<str> }
    /// A server has another address; its verdict starts anew.
    Info "server_moved" ServerMoved { pool: Arc<str>, server: Arc<str>, before: String, after: String }
    /// A server is used again.
    Info "server_up" ServerUp { pool: Arc<str>, server: Arc<str> }
    /// The first check of a server passed.
    Debug "server_checked" ServerChecked { pool: Arc<str>, server: Arc<str> }
    /// A server is no longer used.
    Warn "server_down" ServerDown { pool: Arc<str>, server: Arc<str>, reason: String }
    /// An operator changed the administrative state of a server.
    Info "server_state" ServerState { pool: Arc<str>, server: Arc<str>, state: &'static str }
    /// A server had many more clients than others; some of them get another server.
    Info "clients_rebalanced" ClientsRebalanced { pool: Arc<str>, server: Arc<str>, clients: usize }
    /// No server of a pool is usable.
    Error "pool_down" PoolDown { pool: Arc<str> }
    /// A pool that had no usable server has one.
    Info "pool_up" PoolUp { pool: Arc<str> }
    /// The usable servers of a pool have less weight than its quorum. The sorry server takes the new clients, if
    /// there is one.
    Error "quorum_lost" QuorumLost { pool: Arc<str>, weight: u32, quorum: u32 }
    /// A pool that was below its quorum has it again.
    Info "quorum_gained" QuorumGained { pool: Arc<str>, weight: u32, quorum: u32 }
    /// A program of `notify` could not be run, failed or was killed after its timeout.
    Warn "notify_failed" NotifyFailed { pool: Arc<str>, hook: &'static str, program: String, problem: String }
    /// A probe failed; the verdict may not change.
    Debug "probe_failed" ProbeFailed { pool: Arc<str>, server: Arc<str>, reason: String }
    /// A persistent connection to a server failed or ended.
    Debug "persistent_connection_failed" PersistentConnectionFailed { pool: Arc<str>, server: Arc<str>, reason: String }
    /// Traffic failed to reach a server.
    Debug "connect_failed" ConnectFailed { pool: Arc<str>, server: Arc<str>, reason: String }
    /// A connection attempt or a check failed for a local reason (descriptors, ports, memory), which does not
    /// count against the server; at most once a second.
    Warn "local_error" LocalError { pool: Arc<str>, server: Arc<str>, error: String }
    /// A request of HTTP got an error response from Evener, or its response was cut off. This event and the next
    /// four are at level info at most once a second for each service and reason, and at debug for the others.
    Info "request_failed" RequestFailed { service: Arc<str>, client: Option<IpAddr>, status: Option<u16>, pool: Option<Arc<str>>, server: Option<Arc<str>>, reason: Reason, detail: Box<str>, similar_not_logged: Similar }
    /// The TLS handshake of a client failed.
    Info "tls_failed" TlsFailed { service: Arc<str>, client: Option<IpAddr>, reason: Reason, detail: Box<str>, similar_not_logged: Similar }
    /// A connection of a client was refused or closed before it was served.
    Info "connection_failed" ConnectionFailed { service: Arc<str>, client: Option<IpAddr>, pool: Option<Arc<str>>, server: Option<Arc<str>>, reason: Reason, detail: Box<str>, similar_not_logged: Similar }
    /// A query of DNS got an error response from Evener, or none.
    Info "query_failed" QueryFailed { service: Arc<str>, client: Option<IpAddr>, status: Option<&'static str>, pool: Option<Arc<str>>, server: Option<Arc<str>>, reason: Reason, detail: Box<str>, similar_not_logged: Similar }
    /// A datagram of a client was dropped.
    Info "datagram_dropped" DatagramDropped { service: Arc<str>, client: Option<IpAddr>, pool: Option<Arc<str>>, reason: Reason, detail: Box<str>, similar_not_logged: Similar }
    /// The XDP plane decided about a packet; `xdp.events` sets the level up to which decisions are reported. Dropped
    /// packets have a reason, and forwarded packets have the addresses that change. It has the level of the decision.
    Info "packet_decision" PacketDecision { severity: Severity, decision: &'static str, reason: Option<&'static str>, service: Option<Arc<str>>, protocol: Option<&'static str>, source: Option<Box<SocketAddr>>, destination: Option<Box<SocketAddr>>, new_source: Option<Box<SocketAddr>>, new_destination: Option<Box<SocketAddr>> }
    /// The header section of a response was not quite valid; the client received a repaired one.
    Debug "response_repaired" ResponseRepaired { service: Arc<str>, pool: Arc<str>, server: Arc<str>, detail: &'static str }
    /// No server was available for clients; at most once a second for each service.
    Warn "no_server" NoServer { service: Arc<str>, reason: String }
    /// The retry budget of a pool is used up, so failed tries are not repeated; at most once a second for each
    /// service.
    Warn "retries_exhausted" RetriesExhausted { service: Arc<str>, pool: Arc<str> }
    /// No remaining server could take a query: the query is too long, the client's address does not fit into
    /// a frame, or the connection to the server is stuck; at most once a second for each service.
    Warn "no_capable_server" NoCapableServer { service: Arc<str> }
    /// Traffic loops: packets that a service sends return to it through its own servers; at most once a
    /// second for each service.
    Warn "loop_found" LoopFound { service: Arc<str> }
    /// A service is full and accepting pauses; at most once a second for each service.
    Warn "service_full" ServiceFull { service: Arc<str>, connections_max: u32 }
    /// Accepting pauses because the process has no descriptors for more than `connections_max` connections;
    /// at most once a second for each service.
    Warn "descriptors_used_up" DescriptorsUsedUp { service: Arc<str>, connections_max: u32 }
    /// Accepting failed and continues after a pause; at most once a second for each service.
    Warn "accept_failed" AcceptFailed { service: Arc<str>, error: String }
    /// The files of request logs were reopened on SIGUSR1.
    Info "logs_reopened" LogsReopened {}
    /// Another configuration is active.
    Info "reloaded" Reloaded { changes: usize }
    /// One change of a reload.
    Info "changed" Changed { change: String }
    /// An operator applied a configuration.
    Info "applied" Applied { file: String, changes: usize }
    /// A configuration that an operator applied was refused; nothing changed.
    Error "apply_failed" ApplyFailed { file: String, problem: String }
    /// The applied configuration goes back after this time unless `evener confirm` keeps it.
    Warn "confirmation_awaited" ConfirmationAwaited { file: String, within: String }
    /// An operator confirmed the applied configuration.
    Info "confirmed" Confirmed { file: String }
    /// The configuration before is in use again, because the applied one was not confirmed or an operator rejected it.
    Warn "went_back" WentBack { file: String, changes: usize }
    /// The configuration before could not be applied; the next attempt follows in 5 s.
    Error "back_failed" BackFailed { file: String, problem: String }
    /// A configuration was refused; nothing changed.
    Error "reload_failed" ReloadFailed { problem: String }
    /// Certificates changed on disk and are in use.
    Info "certificates_reloaded" CertificatesReloaded {}
    /// Certificates changed on disk but cannot be used; the old ones stay.
    Error "certificates_refused" CertificatesRefused { problem: String }
    /// A certificate in use has expired: clients or servers refuse it. Logged at the start, at a reload, when it
    /// happens, and once a day.
    Warn "certificate_expired" CertificateExpired { used_by: String, certificate: String, file: String, not_after: String }
    /// A certificate in use expires within 14 days. Logged at the start, at a reload, when it happens, and once a
    /// day.
    Warn "certificate_expires" CertificateExpires { used_by: String, certificate: String, file: String, not_after: String }
    /// A certificate in use is not valid yet: clients or servers refuse it. Logged as an expired certificate.
    Warn "certificate_not_yet_valid" CertificateNotYetValid { used_by: String, certificate: String, file: String, not_before: String }
    /// A configuration that is in use has a setting that probably does not do as intended; `evener check` shows
    /// the same warnings.
    Warn "config_warning" ConfigWarning { warning: String }
    /// An operator changed the access list of a service.
    Info "access_changed" AccessChanged { service: Arc<str>, change: String }
    /// An operator closed a connection or a flow.
    Info "connection_closed" ConnectionClosed { number: u64 }
    /// Connections, requests and flows of a server were closed because a check marked it down or an operator
    /// requested it.
    Info "server_closed" ServerClosed { pool: Arc<str>, server: Arc<str>, reason: &'static str, closed: usize }
    /// A new instance is being started, which is to take over.
    Info "upgrade_begun" UpgradeBegun { binary: String }
    /// A new instance could not take over; this one goes on.
    Warn "upgrade_failed" UpgradeFailed { problem: String }
    /// A new instance took over; this one drains.
    Info "upgraded" Upgraded { pid: u32 }
    /// This instance took over from another one, whose process number and version are given.
    Info "took_over" TookOver { pid: u32, version: String, listeners: usize }
    /// No new clients are accepted; the present ones may finish.
    Info "draining" Draining { signal: &'static str, connections: u64, deadline: String }
    /// All clients finished.
    Info "drained" Drained {}
    /// The drain deadline passed or a second signal arrived; the remaining connections were closed.
    Warn "cut" Cut { connections: u64 }
    /// The XDP program runs at an interface. `not_native` is the reason why it runs in the network stack and not in
    /// the driver.
    Info "xdp_attached" XdpAttached { interface: String, mode: &'static str, not_native: Option<String> }
    /// Something of the XDP plane does not work, for example because an interface disappeared. It is logged once.
    Warn "xdp_problem" XdpProblem { problem: String }
    /// The next hop of a server of the XDP plane is not known for some seconds. It is logged once.
    Warn "xdp_unreachable" XdpUnreachable { address: IpAddr, reason: String }
    /// The next hop of a server of the XDP plane is known again.
    Info "xdp_reachable" XdpReachable { address: IpAddr }
    /// A script changed the servers of a pool.
    Info "script_changed" ScriptChanged { pool: Arc<str>, server: Arc<str>, change: String, script: String }
    /// A script failed or was stopped. A check keeps the verdict of its server, unless `on_error` is \"down\".
    Warn "script_failed" ScriptFailed { script: String, pool: Option<Arc<str>>, server: Option<Arc<str>>, error: String }
    /// A script did not end and could not be stopped; all scripts were started anew.
    Error "scripts_restarted" ScriptsRestarted { script: String }
    /// A script wrote a message. It has the level that the script gave it.
    Info "script_message" ScriptMessage { severity: ScriptLevel, script: String, text: String }
    /// Something of the IPVS plane does not work, for example because the kernel lacks a scheduler. It is logged once.
    Warn "ipvs_problem" IpvsProblem { problem: String }
    /// Another program changed the table of IPVS. `change` has the entry with the value that was found and the value that
    /// was set.
    Warn "ipvs_drift" IpvsDrift { change: String }
    /// A destination or service was deleted after its connections ended or its drain timeout passed.
    Info "ipvs_drained" IpvsDrained { entry: String }
    /// A sysctl of the kernel does not fit the services of the IPVS plane.
    Warn "ipvs_setting" IpvsSetting { advice: String }
    /// An interface got the virtual address of a service that can serve clients.
    Info "ipvs_address_added" IpvsAddressAdded { address: IpAddr, interface: Arc<str> }
    /// The virtual address of a service without available servers was removed from its interface.
    Info "ipvs_address_removed" IpvsAddressRemoved { address: IpAddr, interface: Arc<str> }
    /// A message for the operator.
    Warn "notice" Notice { text: String }
    /// The descriptors allow fewer connections than the defaults of the services do.
    Info "capacity" Capacity { descriptors_max: u64, descriptors_reserved: u64, descriptors_others: u64, connections_max: u64 }
    /// The program exits.
    Info "stopped" Stopped {}
}

impl Event {
    /// Returns the names of all events.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|value| value.name)
    }

    /// Returns true if the event reports a condition of traffic, which can be repeated every second, and not a change.
    #[must_use]
    pub const fn is_report(&self) -> bool {
        matches!(
            self,
            Self::LocalError { .. }
                | Self::NoServer { .. }
                | Self::RetriesExhausted { .. }
                | Self::NoCapableServer { .. }
                | Self::LoopFound { .. }
                | Self::ServiceFull { .. }
                | Self::DescriptorsUsedUp { .. }
                | Self::AcceptFailed { .. }
                | Self::RequestFailed { .. }
                | Self::TlsFailed { .. }
                | Self::ConnectionFailed { .. }
                | Self::QueryFailed { .. }
                | Self::DatagramDropped { .. }
                | Self::PacketDecision { .. }
                | Self::ScriptFailed { .. }
                | Self::ScriptMessage { .. }
                | Self::ApiRefused { .. }
        )
    }

    /// Returns the importance.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            Self::RequestFailed { similar_not_logged: Similar::Further, .. }
            | Self::TlsFailed { similar_not_logged: Similar::Further, .. }
            | Self::ConnectionFailed { similar_not_logged: Similar::Further, .. }
            | Self::QueryFailed { similar_not_logged: Similar::Further, .. }
            | Self::DatagramDropped { similar_not_logged: Similar::Further, .. } => Level::Debug,
            Self::PacketDecision { severity, .. } => severity.level(),
            Self::ScriptMessage { severity, .. } => severity.0,
            _ => self.usual_level(),
        }
    }
}

/// Number of events of each name, counted by any thread.
#[derive(Debug)]
pub struct EventCounters([Counter; NAMES.len()]);

impl EventCounters {
    /// Counts an event.
    pub fn count(&self, event: &Event) {
        self.0[event.position()].one_shared();
    }
}

impl Default for EventCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl CounterSet for EventCounters {
    const DECLARED: &'static [Declaration] = &[Declaration {
        name: "events",
        help: "Events by name, including events below the level of the log.",
        kind: Kind::Counter,
        unit: Unit::Events,
        label: Some(Label { name: "event", values: NAMES }),
    }];

    fn values(&self) -> Vec<u64> {
        self.0.iter().map(Counter::read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_a_level_and_fields() {
        let event = Event::ServerDown { pool: "web".into(), server: "a:1".into(), reason: "refused".into() };
        let mut line = format!("{} {}", event.level().name(), event.name());
        event.fields(&mut |name, value| line += &format!(" {name}={value}"));
        assert_eq!(line, "warn server_down pool=web server=a:1 reason=refused");
    }
    #[test]
    fn events_are_counted_by_their_name() {
        let counters = EventCounters::default();
        counters.count(&Event::Drained {});
        let position = NAMES.iter().position(|value| value.name == "drained").unwrap();
        assert_eq!((counters.values()[position], counters.values().iter().sum::<u64>()), (1, 1));
        assert_eq!(NAMES[position].help, "All clients finished.");
    }
}
