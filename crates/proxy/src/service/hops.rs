//! Detection of loops at run time, such as two instances that are each other's server. Requests, DNS queries
//! and PROXY headers carry the number of instances that forwarded them, and are refused if this number has
//! reached [`HOPS_MAX`]. For other traffic the TTL of packets serves the same purpose: where suspiciously many
//! clients may be servers of the pool, the connection or flow to the server gets the TTL of the client's
//! packets minus one, and a TTL of 1 is refused.

use crate::context::Context;
use crate::context::descriptors;
use crate::context::report::{Notice, Report};
use crate::service::{Backend, Service};
use evener_core::{Target, Time};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::net::IpAddr;
use std::time::Duration;

pub(crate) use evener_core::wire::HOPS_MAX;

/// Number of connections of a service from which on they may be part of a loop; half of the limit, if that is
/// less.
const CONNECTIONS_SUSPICIOUS: u32 = 1000;
/// Number of queries of a worker from which on they may be part of a loop; half of the worker's part of the
/// limit, if that is less.
const QUERIES_SUSPICIOUS: u32 = 32;
/// Number of servers of a pool that are compared with the address of a client.
const SERVERS_COMPARED_MAX: usize = 64;
/// Number of new flows of a listener in a [`WINDOW`] from which on they may be part of a loop.
const FLOWS_SUSPICIOUS: u32 = 256;
/// The window in which flows are counted. On a busy machine a looping datagram may pass only about ten times a
/// second.
const WINDOW: Duration = Duration::from_secs(10);
/// Socket option that makes a listener keep the first packets of its connections (tcp(7)).
const TCP_SAVE_SYN: i32 = 27;

/// Counts and reports a refusal because of a loop.
pub(crate) fn note_loop(cx: &Context, service: &Service) {
    service.live.counters.of(cx.id).loops.one();
    if service.may_notice(Notice::Loop, cx.now) {
        cx.report(Report::Loop { service: service.live.name.clone() });
    }
}

/// Returns whether a client may be this server: their addresses are the same.
pub(crate) fn may_loop(client: IpAddr, server: &Target) -> bool {
    let Target::Ip(server) = server else { return false };
    let (client, server) = (client.to_canonical(), server.ip().to_canonical());
    client == server || (client.is_loopback() && server.is_loopback())
}

/// Returns whether a service has so many connections that they may be a few looping ones.
fn is_crowded(service: &Service) -> bool {
    let most = service.settings.load().options.connections_max.min(descriptors::connections_max()) / 2;
    service.live.connections.active() >= CONNECTIONS_SUSPICIOUS.min(most)
}

/// Returns whether a request may be part of a loop, if it does not carry the number of instances that forwarded
/// it.
pub(crate) fn may_request_loop(service: &Service, client: IpAddr, backend: &Backend) -> bool {
    is_crowded(service) && {
        let pool = backend.pool.load();
        pool.servers().iter().take(SERVERS_COMPARED_MAX).any(|server| may_loop(client, &server.target))
    }
}

/// Returns whether so many queries are outstanding that they may be a few looping ones.
pub(crate) fn is_crowded_by_queries(in_flight: u32, most: u32) -> bool {
    in_flight >= QUERIES_SUSPICIOUS.min(most / 2)
}

/// Gives the connection to a server the TTL of the client's packets minus one, as a router would, if the
/// connection may be part of a loop.
///
/// # Errors
/// EMULTIHOP when the client's packets may not pass another router.
pub(crate) fn limit_connection(
    cx: &mut Context,
    service: &Service,
    (client, address): (&OwnedFd, IpAddr),
    (server, target): (&OwnedFd, &Target),
) -> Result<(), Errno> {
    if !is_crowded(service) || !may_loop(address, target) {
        return Ok(());
    }
    let mut room = [0; 128];
    let received = crate::io::sys::saved_syn(client.as_fd(), &mut room).ok().and_then(ttl_of);
    let Some(received) = received else {
        // The TTL of later connections will be known.
        cx.note_crowded(&service.live.name);
        return Ok(());
    };
    if received <= 1 {
        note_loop(cx, service);
        return Err(Errno::MULTIHOP);
    }
    set_ttl(server.as_fd(), target, received - 1);
    Ok(())
}

/// Makes a listener keep the first packets of its connections from now on.
pub(crate) fn save_first_packets(listener: &OwnedFd) {
    let _ = crate::io::sys::set_int(listener.as_fd(), (libc::IPPROTO_TCP, TCP_SAVE_SYN), 1);
}

/// The TTL or hop limit of a packet (RFC 791, section 3.1; RFC 8200, section 3).
fn ttl_of(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => packet.get(8).copied(),
        6 => packet.get(7).copied(),
        _ => None,
    }
}

fn set_ttl(socket: BorrowedFd<'_>, target: &Target, ttl: u8) {
    let Target::Ip(address) = target else { return };
    let option = if address.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_TTL)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS)
    };
    let _ = crate::io::sys::set_int(socket, option, ttl.into());
}

/// Counts the recent flows of a listener, and requests TTLs while so many flows may be part of a loop.
#[derive(Debug, Default)]
pub(crate) struct FlowWatch {
    since: Time,
    begun: u32,
    /// The socket reports TTLs.
    reads_ttls: bool,
}

impl FlowWatch {
    /// Returns whether the socket of the listener reports TTLs.
    pub(crate) fn reads_ttls(&self) -> bool {
        self.reads_ttls
    }

    /// Counts a new flow to `target`, whose first datagram arrived with the TTL `received`, and gives its
    /// socket this TTL minus one. `Err` if the datagram may not pass another router.
    pub(crate) fn on_flow(
        &mut self,
        now: Time,
        listener: &OwnedFd,
        (server, target): (&OwnedFd, &Target),
        received: Option<u8>,
    ) -> Result<(), Errno> {
        if now.since(self.since) >= WINDOW {
            if self.reads_ttls && self.begun < FLOWS_SUSPICIOUS {
                self.read(listener, false);
            }
            (self.since, self.begun) = (now, 0);
        }
        self.begun += 1;
        if !self.reads_ttls && self.begun >= FLOWS_SUSPICIOUS {
            self.read(listener, true);
        }
        match received {
            Some(0 | 1) => Err(Errno::MULTIHOP),
            Some(received) => {
                set_ttl(server.as_fd(), target, received - 1);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn read(&mut self, listener: &OwnedFd, wanted: bool) {
        for option in [(libc::IPPROTO_IP, libc::IP_RECVTTL), (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)] {
            // The socket belongs to one of the two families.
            let _ = crate::io::sys::set_int(listener.as_fd(), option, wanted.into());
        }
        self.reads_ttls = wanted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::{self, TestPool};
    use evener_core::spec::Protocol;

    #[test]
    fn each_loop_is_counted_and_one_a_second_is_reported() {
        let (mut cx, reports) = Context::for_tests();
        let service = testing::service(Protocol::Udp, &TestPool::new("pool", &[]));
        let loops = || service.live.counters.total("loops");
        for (millis, counted, reported) in [(1, 1, 1), (500, 2, 0), (1_001, 3, 1), (1_002, 4, 0)] {
            cx.now = Time::ZERO + Duration::from_millis(millis);
            note_loop(&cx, &service);
            assert_eq!((loops(), reports.take().len()), (counted, reported), "after {millis} ms");
        }
    }

    #[test]
    fn a_client_may_be_its_server_if_the_addresses_are_equal() {
        let check = |client: &str, server: &str, expected: bool| {
            let server = Target::Ip(server.parse().unwrap());
            assert_eq!(may_loop(client.parse().unwrap(), &server), expected, "{client} {server:?}");
        };
        check("127.0.0.1", "127.0.0.2:53", true);
        check("::ffff:10.0.0.1", "10.0.0.1:53", true);
        check("2001:db8::1", "[2001:db8::1]:53", true);
        check("10.0.0.1", "10.0.0.2:53", false);
        check("10.0.0.1", "127.0.0.1:53", false);
        assert!(!may_loop("127.0.0.1".parse().unwrap(), &Target::Unix("/run/s".into())));
    }

    #[test]
    fn the_ttl_of_packets_is_read() {
        let mut v4 = [0x45; 40];
        v4[8] = 61;
        let mut v6 = [0x60; 60];
        v6[7] = 255;
        assert_eq!((ttl_of(&v4), ttl_of(&v6)), (Some(61), Some(255)));
        assert_eq!((ttl_of(&[]), ttl_of(&v4[..8]), ttl_of(&[0; 40])), (None, None, None));
    }

    fn sockets() -> [OwnedFd; 2] {
        [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into())
    }

    fn ttl_option(socket: &OwnedFd) -> u32 {
        rustix::net::sockopt::ip_ttl(socket).unwrap()
    }

    #[test]
    fn ttls_are_watched_while_a_window_has_many_flows() {
        let ([listener, server], target) = (sockets(), Target::Ip("127.0.0.1:9".parse().unwrap()));
        let mut watch = FlowWatch::default();
        let begin = |watch: &mut FlowWatch, secs: u64| {
            let now = Time::ZERO + Duration::from_secs(secs);
            watch.on_flow(now, &listener, (&server, &target), None).unwrap();
            watch.reads_ttls()
        };
        assert!((1..FLOWS_SUSPICIOUS).all(|_| !begin(&mut watch, 20)));
        assert!(begin(&mut watch, 29), "the flows of one window are suspiciously many");
        assert!(begin(&mut watch, 30), "the previous window had many flows");
        assert!(!begin(&mut watch, 40), "the previous window had few flows");
    }

    #[test]
    fn a_flow_to_a_server_has_the_ttl_of_its_client_minus_one() {
        let ([listener, server], target) = (sockets(), Target::Ip("127.0.0.1:9".parse().unwrap()));
        let mut watch = FlowWatch::default();
        let mut begin = |ttl: Option<u8>| watch.on_flow(Time::ZERO, &listener, (&server, &target), ttl);
        let default = ttl_option(&server);
        assert_eq!((begin(None), ttl_option(&server)), (Ok(()), default));
        assert_eq!((begin(Some(64)), ttl_option(&server)), (Ok(()), 63));
        assert_eq!((begin(Some(2)), ttl_option(&server)), (Ok(()), 1));
        assert_eq!([begin(Some(1)), begin(Some(0))], [Err(Errno::MULTIHOP); 2]);
    }

    #[test]
    fn a_small_service_is_crowded_at_half_of_its_limit() {
        let check = |connections_max: u32, connections: u32, expected: bool| {
            let server = Target::Ip("127.0.0.1:9".parse().unwrap());
            let service =
                testing::service_with(Protocol::Http, &TestPool::new("pool", &[server]), |settings| {
                    settings.options.connections_max = connections_max;
                });
            let _leases: Vec<_> = (0..connections).map(|_| service.enter(u32::MAX)).collect();
            let backend = service.settings.load().backends[0].clone();
            let [local, remote] = ["127.0.0.2", "192.0.2.1"].map(|client| client.parse().unwrap());
            assert_eq!(
                may_request_loop(&service, local, &backend),
                expected,
                "{connections_max} {connections}"
            );
            assert!(!may_request_loop(&service, remote, &backend), "no server has its address");
        };
        check(10, 4, false);
        check(10, 5, true);
        check(10_000, 999, false);
        check(10_000, 1000, true);
    }

    #[test]
    fn queries_are_crowded_at_half_of_a_small_limit() {
        let crowded =
            [(3, 8), (4, 8), (31, 1000), (32, 1000)].map(|(now, most)| is_crowded_by_queries(now, most));
        assert_eq!(crowded, [false, true, false, true]);
    }
}
