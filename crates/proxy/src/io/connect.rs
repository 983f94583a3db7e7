//! Opens sockets for connections to servers and classifies connection failures. `core::attempt` chooses the
//! servers.

use crate::context::Context;
use crate::context::report::{Report, is_due};
use crate::io::source::SourceAddress;
use evener_core::address::abstract_name;
use evener_core::attempt::{Cost, FailedTry, Fault};
use evener_core::health::Failure;
use evener_core::snapshot::{Choice, Entry, ServerLive, Why};
use evener_core::spec::ServiceOptions;
use evener_core::{ServerId, Target};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of servers that may fail in a row for one client before the worker handles other clients.
pub(crate) const TRIES_MAX: usize = 256;

/// Opens a socket for a connection to a server, with the options of the service and the source address for this
/// client.
pub(crate) fn open_socket(
    target: &Target,
    options: &ServiceOptions,
    client: IpAddr,
) -> Result<OwnedFd, Errno> {
    let socket = stream_socket(target)?;
    if let Target::Ip(address) = target {
        if options.nodelay {
            sockopt::set_tcp_nodelay(&socket, true)?;
        }
        if let Some(after) = options.server_keepalive {
            sockopt::set_socket_keepalive(&socket, true)?;
            sockopt::set_tcp_keepidle(&socket, after)?;
        }
        if let Some(source) = SourceAddress::of(options, client) {
            source.bind(&socket, *address)?;
        }
    }
    Ok(socket)
}

/// Opens a socket for a connection to a server.
pub(crate) fn stream_socket(target: &Target) -> Result<OwnedFd, Errno> {
    net::socket_with(family(target), SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)
}

/// Opens a connected socket for a flow.
pub(crate) fn datagram_socket(target: &Target, source: Option<SourceAddress>) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(family(target), SocketType::DGRAM, flags, None)?;
    if let (Some(source), Target::Ip(address)) = (source, target) {
        source.bind(&socket, *address)?;
    }
    connect(&socket, target)?;
    Ok(socket)
}

fn family(target: &Target) -> AddressFamily {
    match target {
        Target::Ip(SocketAddr::V4(_)) => AddressFamily::INET,
        Target::Ip(SocketAddr::V6(_)) => AddressFamily::INET6,
        Target::Unix(_) => AddressFamily::UNIX,
    }
}

/// Begins to connect a stream socket, or sets the peer of a datagram socket.
pub(crate) fn connect(socket: &OwnedFd, target: &Target) -> Result<(), Errno> {
    match target {
        Target::Ip(address) => net::connect(socket, address),
        Target::Unix(path) => match abstract_name(path) {
            None => net::connect(socket, &SocketAddrUnix::new(path)?),
            Some(name) => net::connect(socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?),
        },
    }
}

/// Returns the failure of a connection attempt in words.
pub(crate) fn failure_words(error: Errno) -> &'static str {
    match (failed_try(error).fault, error) {
        (Fault::Server, Errno::CONNREFUSED) => Failure::Refused.words(),
        (Fault::Server, Errno::TIMEDOUT) => Failure::Timeout.words(),
        (Fault::Server, _) => Failure::Unreachable.words(),
        (Fault::Local, _) => "a local error",
        (Fault::Client, _) => "the connection loops",
    }
}

/// Counts a failed connection attempt, and reports it if the server is at fault.
pub(crate) fn note_failure(cx: &Context, pool: Arc<str>, server: &Entry, error: Errno) {
    if let Some(failure) = count_failure(cx, &pool, server, error) {
        cx.report(Report::Failure { pool, server: server.id, target: server.target.clone(), failure });
    }
}

/// Counts a failed connection attempt; returns the failure to report if the server is at fault.
pub(crate) fn count_failure(cx: &Context, pool: &Arc<str>, server: &Entry, error: Errno) -> Option<Failure> {
    let failures = &server.live.counters.of(cx.id).connect_failures;
    match (failed_try(error).fault, error) {
        (Fault::Server, Errno::CONNREFUSED) => {
            failures.refused.one();
            Some(Failure::Refused)
        }
        (Fault::Server, Errno::TIMEDOUT) => {
            failures.timeout.one();
            Some(Failure::Timeout)
        }
        (Fault::Server, _) => {
            failures.error.one();
            Some(Failure::Unreachable)
        }
        (Fault::Local, _) => {
            count_local_error(cx, pool, server.id, &server.live, error);
            None
        }
        // The loop was reported already.
        (Fault::Client, _) => {
            failures.error.one();
            None
        }
    }
}

/// Reports a successful connection to a server that had failed before.
pub(crate) fn note_success(cx: &Context, pool: &Arc<str>, choice: &Choice) {
    let server = &choice.server;
    if server.live.suspect.load(Ordering::Relaxed) || choice.why == Why::LastResort {
        let (pool, target) = (Arc::clone(pool), server.target.clone());
        cx.report(Report::Success { pool, server: server.id, target });
    }
}

/// Counts a datagram that a server refused with an ICMP error; returns the failure to report.
pub(crate) fn count_refusal(cx: &Context, server: &Entry, error: Errno) -> Failure {
    let counters = server.live.counters.of(cx.id);
    if error == Errno::CONNREFUSED {
        counters.connect_failures.refused.one();
        Failure::Refused
    } else {
        counters.connect_failures.error.one();
        Failure::Unreachable
    }
}

/// Counts a connection attempt that failed for a local reason, and reports it at most once a second.
pub(crate) fn count_local_error(
    cx: &Context,
    pool: &Arc<str>,
    id: ServerId,
    live: &ServerLive,
    error: Errno,
) {
    let counters = live.counters.of(cx.id);
    counters.connect_failures.error.one();
    counters.local_errors.one_shared();
    report_local_error(cx, pool, id, error);
}

/// Reports a local error, at most once a second for the whole process, because most of the exhausted limits
/// apply to the process.
fn report_local_error(cx: &Context, pool: &Arc<str>, server: ServerId, error: Errno) {
    static REPORTED_AT: AtomicU64 = AtomicU64::new(0);
    if is_due(&REPORTED_AT, cx.now) {
        cx.report(Report::LocalError { pool: Arc::clone(pool), server, error: error.into() });
    }
}

/// Returns whether an error means that this process lacks descriptors, ports or memory. Such an error does not
/// depend on the peer.
pub fn is_resource_exhaustion(error: Errno) -> bool {
    matches!(
        error,
        Errno::MFILE
            | Errno::NFILE
            | Errno::NOBUFS
            | Errno::NOMEM
            | Errno::NOSPC
            | Errno::ADDRNOTAVAIL
            | Errno::ADDRINUSE
    )
}

/// Returns whether the cause of a failed connection attempt is local: no descriptor, memory or port is left, a
/// local rule forbids the connection, or the source address is not local. EAGAIN means that no local port is
/// left, or that the queue of a unix socket is full for a moment.
pub(crate) fn is_local_error(error: Errno) -> bool {
    is_resource_exhaustion(error) || matches!(error, Errno::AGAIN | Errno::PERM | Errno::ACCESS)
}

/// Returns the party at fault for a failed connection attempt, and its cost. A silent server takes the whole
/// timeout and an unreachable server some seconds (ARP); all other failures are immediate.
pub(crate) fn failed_try(error: Errno) -> FailedTry {
    let fault = match error {
        // The error of a connection that loops (`service::hops`).
        Errno::MULTIHOP => Fault::Client,
        error if is_local_error(error) => Fault::Local,
        _ => Fault::Server,
    };
    let is_slow = matches!(error, Errno::TIMEDOUT | Errno::HOSTUNREACH);
    FailedTry { fault, cost: if is_slow { Cost::Slow } else { Cost::Quick } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::testing::TestPool;
    use evener_core::snapshot::Request;
    use std::time::Duration;

    fn server() -> (TestPool, Arc<Entry>) {
        let pool = TestPool::new("pool", &[Target::Ip("192.0.2.1:80".parse().unwrap())]);
        let server = Arc::clone(&pool.published().load().servers()[0]);
        (pool, server)
    }

    /// Checks the failure that an error is reported as, and the counter of the server that counts it.
    fn check(error: Errno, expected: Option<&Failure>, counter: &str) {
        let ((_pool, server), (cx, reports)) = (server(), Context::for_tests());
        note_failure(&cx, "pool".into(), &server, error);
        let reported = reports.take().into_iter().find_map(|report| match report {
            Report::Failure { failure, .. } => Some(failure),
            _ => None,
        });
        assert_eq!(reported.as_ref(), expected, "{error}");
        let counted = ["connect_failures.refused", "connect_failures.timeout", "connect_failures.error"]
            .map(|name| (name, server.live.counters.total(name)));
        assert_eq!(counted, counted.map(|(name, _)| (name, u64::from(name == counter))), "{error}");
    }

    #[test]
    fn failures_are_reported_if_the_server_is_at_fault() {
        check(Errno::CONNREFUSED, Some(&Failure::Refused), "connect_failures.refused");
        check(Errno::TIMEDOUT, Some(&Failure::Timeout), "connect_failures.timeout");
        check(Errno::HOSTUNREACH, Some(&Failure::Unreachable), "connect_failures.error");
        check(Errno::NETUNREACH, Some(&Failure::Unreachable), "connect_failures.error");
        for local in
            [Errno::MULTIHOP, Errno::MFILE, Errno::ADDRNOTAVAIL, Errno::AGAIN, Errno::PERM, Errno::ACCESS]
        {
            check(local, None, "connect_failures.error");
        }
    }

    #[test]
    fn local_errors_are_failed_connection_attempts_of_all_protocols() {
        let ((_pool, server), (cx, _)) = (server(), Context::for_tests());
        count_local_error(&cx, &"pool".into(), server.id, &server.live, Errno::MFILE);
        note_failure(&cx, "pool".into(), &server, Errno::MFILE);
        let counted = ["local_errors", "connect_failures.error"].map(|name| server.live.counters.total(name));
        assert_eq!(counted, [2, 2]);
    }

    #[test]
    fn a_refused_datagram_is_a_failure() {
        let ((_pool, server), (cx, _)) = (server(), Context::for_tests());
        assert_eq!(count_refusal(&cx, &server, Errno::CONNREFUSED), Failure::Refused);
        assert_eq!(count_refusal(&cx, &server, Errno::HOSTUNREACH), Failure::Unreachable);
        let counted = ["connect_failures.refused", "connect_failures.error"]
            .map(|name| server.live.counters.total(name));
        assert_eq!(counted, [1, 1]);
    }

    #[test]
    fn a_connection_is_reported_if_the_server_had_failed_before() {
        let ((pool, server), (mut cx, reports)) = (server(), Context::for_tests());
        let snapshot = pool.published().load_full();
        let request = Request::of([192, 0, 2, 9].into(), cx.now);
        let mut choice = snapshot.pick(&request, &[], &mut cx.random).unwrap();
        note_success(&cx, &snapshot.pool, &choice);
        assert!(reports.take().is_empty());
        server.live.suspect.store(true, Ordering::Relaxed);
        note_success(&cx, &snapshot.pool, &choice);
        assert!(matches!(reports.take()[..], [Report::Success { .. }]));
        server.live.suspect.store(false, Ordering::Relaxed);
        choice.why = Why::LastResort;
        note_success(&cx, &snapshot.pool, &choice);
        assert!(matches!(reports.take()[..], [Report::Success { .. }]));
    }

    #[test]
    fn a_lack_of_resources_is_a_local_error() {
        let lacks =
            [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRINUSE, Errno::ADDRNOTAVAIL];
        assert!(lacks.into_iter().all(|error| is_resource_exhaustion(error) && is_local_error(error)));
        assert!([Errno::AGAIN, Errno::PERM, Errno::ACCESS].into_iter().all(|error| !is_resource_exhaustion(
            error
        ) && is_local_error(
            error
        )));
        let remote =
            [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::CONNRESET, Errno::NOENT];
        assert!(remote.into_iter().all(|error| !is_local_error(error)));
    }

    #[test]
    fn silent_servers_cost_more_time_than_other_failures() {
        let cost = |error| failed_try(error).cost;
        assert_eq!([Errno::TIMEDOUT, Errno::HOSTUNREACH].map(cost), [Cost::Slow; 2]);
        assert_eq!([Errno::CONNREFUSED, Errno::NETUNREACH, Errno::MFILE].map(cost), [Cost::Quick; 3]);
    }

    #[test]
    fn a_failed_connection_attempt_is_the_fault_of_one_party() {
        let fault = |error| failed_try(error).fault;
        let of_server = [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::CONNRESET];
        assert_eq!(of_server.map(fault), [Fault::Server; 4]);
        assert_eq!([Errno::MFILE, Errno::ADDRNOTAVAIL, Errno::PERM].map(fault), [Fault::Local; 3]);
        assert_eq!(fault(Errno::MULTIHOP), Fault::Client);
    }

    #[test]
    fn sockets_to_servers_have_the_options_of_the_service() {
        let mut options = ServiceOptions::of(evener_core::spec::Protocol::Tcp);
        let target = Target::Ip("127.0.0.1:9".parse().unwrap());
        options.nodelay = true;
        options.server_keepalive = Some(Duration::from_secs(77));
        options.source = Some(evener_core::spec::Source::Address([127, 0, 0, 5].into()));
        let socket = open_socket(&target, &options, [192, 0, 2, 1].into()).unwrap();
        assert!(sockopt::tcp_nodelay(&socket).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&socket), Ok(Duration::from_secs(77)));
        let local = SocketAddr::try_from(net::getsockname(&socket).unwrap()).unwrap();
        assert_eq!(local.ip(), IpAddr::from([127, 0, 0, 5]));
    }
}
