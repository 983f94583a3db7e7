//! Every observable fact, declared once: the name, the level and the fields of the log line, the metric and the API
//! record all come from here. Fields come from the configuration, never from clients.

use std::fmt::Display;
use std::sync::Arc;

/// Who should look at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Expected, in great number.
    Debug,
    /// A state changed.
    Info,
    /// An operator should act.
    Warn,
    /// It does not work.
    Error,
}

impl Level {
    /// All levels, the least first.
    pub const ALL: [Self; 4] = [Self::Debug, Self::Info, Self::Warn, Self::Error];

    /// In lower case.
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

macro_rules! events {
    ($($(#[$doc:meta])* $level:ident $name:literal $variant:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        /// A fact.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "fields are named for what they are")]
        pub enum Event { $($(#[$doc])* $variant { $($field: $type),* }),* }

        impl Event {
            /// Its name in logs, metrics and the API.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant { .. } => $name),* }
            }

            /// Who should look at it.
            #[must_use]
            pub const fn level(&self) -> Level {
                match self { $(Self::$variant { .. } => Level::$level),* }
            }

            /// Calls `visit` with each field's name and value, in order.
            pub fn fields(&self, visit: &mut dyn FnMut(&'static str, &dyn Display)) {
                match self { $(Self::$variant { $($field),* } => { $(visit(stringify!($field), $field);)* let _ = &visit; })* }
            }
        }
    };
}

events! {
    /// The program runs.
    Info "started" Started { version: &'static str, pid: u32, workers: usize, services: usize, pools: usize }
    /// The admin socket answers.
    Info "admin_listening" AdminListening { socket: String }
    /// A service takes clients at an address.
    Info "listening" Listening { service: Arc<str>, protocol: &'static str, address: String }
    /// A service takes no more clients at an address.
    Info "listener_closed" ListenerClosed { service: Arc<str>, address: String }
    /// A directory where servers are to be found has something wrong with it; what was found stays.
    Warn "discovery_failed" DiscoveryFailed { directory: String, problem: String }
    /// A server came with the configuration, or was found.
    Info "server_added" ServerAdded { pool: Arc<str>, server: Arc<str> }
    /// A server left with the configuration, or is no longer found.
    Info "server_removed" ServerRemoved { pool: Arc<str>, server: Arc<str> }
    /// A server is at another address: its verdict starts anew.
    Info "server_moved" ServerMoved { pool: Arc<str>, server: Arc<str>, before: String, after: String }
    /// A server is used again.
    Info "server_up" ServerUp { pool: Arc<str>, server: Arc<str> }
    /// The first check of a server passed.
    Debug "server_checked" ServerChecked { pool: Arc<str>, server: Arc<str> }
    /// A server is used no more.
    Warn "server_down" ServerDown { pool: Arc<str>, server: Arc<str>, reason: String }
    /// The operator wants something else of a server.
    Info "server_state" ServerState { pool: Arc<str>, server: Arc<str>, state: &'static str }
    /// A server had many more clients than others: some are chosen for anew.
    Info "clients_rebalanced" ClientsRebalanced { pool: Arc<str>, server: Arc<str>, clients: usize }
    /// No server of a pool is usable.
    Error "pool_down" PoolDown { pool: Arc<str> }
    /// A pool that had no usable server has one.
    Info "pool_up" PoolUp { pool: Arc<str> }
    /// A probe failed; the verdict may stand.
    Debug "probe_failed" ProbeFailed { pool: Arc<str>, server: Arc<str>, reason: String }
    /// A connection that has to stand with a server does not, or ended.
    Debug "session_failed" SessionFailed { pool: Arc<str>, server: Arc<str>, reason: String }
    /// Traffic could not reach a server.
    Debug "connect_failed" ConnectFailed { pool: Arc<str>, server: Arc<str>, reason: &'static str }
    /// A connect or a check failed for a reason of our own (descriptors, ports, memory), which is no verdict on the
    /// server; at most once a second.
    Warn "local_error" LocalError { pool: Arc<str>, server: Arc<str>, error: String }
    /// Clients got no server; at most once a second a service.
    Warn "no_server" NoServer { service: Arc<str>, reason: String }
    /// A question that no server left could take: too long, an address that frames have no room for, or what stands with the
    /// server is stuck; at most once a second a service.
    Warn "untakable" Untakable { service: Arc<str> }
    /// What clients send comes back to the service, by way of its own servers; at most once a second a service.
    Warn "loop_found" LoopFound { service: Arc<str> }
    /// A service is full: accepting pauses; at most once a second a service.
    Warn "service_full" ServiceFull { service: Arc<str>, connections_max: u32 }
    /// As many connections are open as descriptors allow: accepting pauses; at most once a second a service.
    Warn "descriptors_used_up" DescriptorsUsedUp { service: Arc<str>, connections_max: u32 }
    /// Accepting failed, and goes on after a pause; at most once a second a service.
    Warn "accept_failed" AcceptFailed { service: Arc<str>, error: String }
    /// The files of request logs were opened anew, at SIGUSR1.
    Info "logs_reopened" LogsReopened {}
    /// Another configuration is in force.
    Info "reloaded" Reloaded { changes: usize }
    /// What a reload changed.
    Info "changed" Changed { change: String }
    /// A configuration was refused; nothing changed.
    Error "reload_failed" ReloadFailed { problem: String }
    /// Certificates changed on disk, and are in force.
    Info "certificates_reloaded" CertificatesReloaded {}
    /// Certificates changed on disk, but cannot be used: the old ones stay.
    Error "certificates_kept" CertificatesKept { problem: String }
    /// The operator changed who may come in.
    Info "access_changed" AccessChanged { service: Arc<str>, change: String }
    /// The operator closed a connection, or a flow.
    Info "connection_closed" ConnectionClosed { number: u64 }
    /// Connections, requests and flows of a server ended, because a check took it down or the operator wanted it.
    Info "server_closed" ServerClosed { pool: Arc<str>, server: Arc<str>, reason: &'static str, closed: usize }
    /// No new clients; those that are there may finish.
    Info "draining" Draining { signal: &'static str, connections: u64, deadline: String }
    /// Everybody finished.
    Info "drained" Drained {}
    /// The deadline came, or a second signal: those that were left were cut.
    Warn "cut" Cut { connections: u64 }
    /// Something that the operator should read.
    Warn "notice" Notice { text: String }
    /// The program ends.
    Info "stopped" Stopped {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_its_name_level_and_fields() {
        let event = Event::ServerDown { pool: "web".into(), server: "a:1".into(), reason: "refused".into() };
        let mut line = format!("{} {}", event.level().name(), event.name());
        event.fields(&mut |name, value| line += &format!(" {name}={value}"));
        assert_eq!(line, "warn server_down pool=web server=a:1 reason=refused");
    }
}
