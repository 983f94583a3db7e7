//! The bytes of a connection before a server is chosen: the PROXY header of a downstream proxy, and the
//! ClientHello of passed-through TLS. Also the PROXY header that is sent to a server.

use crate::io::tls::TlsFacts;
use crate::service::Settings;
use crate::service::hops::HOPS_MAX;
use evener_core::reason::{Cause, Reason};
use evener_core::wire::hello::{self, HelloError};
use evener_core::wire::http::is_http;
use evener_core::wire::proxy::ProxyError;
use evener_core::wire::proxy::{self, Ends, Extras, Transport, Version};
use rustix::fd::OwnedFd;
use rustix::net::SocketAddrAny;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Maximum time for a preamble to arrive.
pub(crate) const PREAMBLE: Duration = Duration::from_secs(10);

/// The client of a connection, from the socket or a PROXY header.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The client; clients of a unix socket count as loopback.
    client: SocketAddr,
    /// The address that the client connected to, if a PROXY header has it; otherwise the socket's address
    /// counts.
    pub(crate) destination: Option<SocketAddr>,
    /// The received PROXY header; its contents are passed on.
    header: Vec<u8>,
    /// The header reports that the client uses TLS with the proxy.
    pub(crate) secure: bool,
    /// Number of instances of Evener that the connection passed before, from the PROXY header.
    hops: u8,
}

impl Origin {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { client: peer, destination: None, header: Vec::new(), secure: false, hops: 0 }
    }

    /// Applies the contents of a PROXY header.
    fn apply(&mut self, header: &proxy::Header<'_>, bytes: &[u8]) {
        if let Some(ends) = header.ends {
            self.client = ends.source;
            self.destination = Some(ends.destination);
        }
        self.header = bytes[..header.length].to_vec();
        self.secure = header.extras.ssl.is_some();
        self.hops = header.extras.hops;
    }

    /// The client's address and port.
    pub(crate) fn client(&self) -> SocketAddr {
        self.client
    }

    /// Returns whether so many instances forwarded the connection that there must be a loop.
    pub(crate) fn is_loop(&self) -> bool {
        self.hops >= HOPS_MAX
    }

    /// Number of instances that forwarded the connection, including this one; 0 without a header.
    pub(crate) fn next_hop(&self) -> u8 {
        if self.header.is_empty() { 0 } else { self.hops.saturating_add(1) }
    }

    /// Both ends, for the PROXY header to a server.
    pub(crate) fn ends(&self, socket: &OwnedFd) -> Option<Ends> {
        let destination = self.destination.or_else(|| local_address(socket))?;
        Some(Ends { source: self.client, destination })
    }
}

/// Returns the address of a client. Clients of a unix socket have no address; they count as loopback.
pub(crate) fn client_address(address: Option<SocketAddrAny>) -> SocketAddr {
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    address.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

/// The address that a client connected to; `None` for a unix socket.
pub(crate) fn local_address(socket: &OwnedFd) -> Option<SocketAddr> {
    rustix::net::getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok())
}

/// Reads the PROXY header at the beginning of `bytes`. Returns its length; `None` when more bytes have to
/// arrive.
pub(crate) fn read_proxy(bytes: &[u8], origin: &mut Origin) -> Result<Option<usize>, ProxyError> {
    Ok(proxy::parse(bytes)?.map(|header| {
        origin.apply(&header, bytes);
        header.length
    }))
}

/// The first bytes of a connection that is only relayed.
#[derive(Debug)]
pub(crate) struct Preamble {
    origin: Origin,
    /// The received bytes. A complete PROXY header is removed; the rest, including a ClientHello, is the
    /// payload for the server.
    bytes: Vec<u8>,
    /// The server name in the ClientHello.
    name: Option<String>,
    /// Number of bytes of the local PROXY header that the server has not received yet; they do not count as the
    /// client's.
    header_left: u64,
    awaits_proxy: bool,
    awaits_hello: bool,
}

/// The progress of a preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PreambleState {
    /// More bytes have to arrive.
    More,
    /// The PROXY header is complete, so that the client is known.
    Known,
    /// The preamble is complete.
    Done,
    /// The preamble is malformed.
    Malformed(Cause),
}

impl Preamble {
    /// Creates the preamble that is expected from `peer`.
    pub(crate) fn new(peer: SocketAddr, settings: &Settings) -> Self {
        Self {
            origin: Origin::new(peer),
            bytes: Vec::new(),
            name: None,
            header_left: 0,
            awaits_proxy: settings.is_proxy(peer.ip()),
            awaits_hello: !settings.routes.is_empty(),
        }
    }

    /// Returns the number of the client's bytes among the next bytes for the server: the local header precedes
    /// them.
    pub(crate) fn count_of_client(&mut self, bytes: u64) -> u64 {
        let header = bytes.min(self.header_left);
        self.header_left -= header;
        bytes - header
    }

    /// The client, and the address that it connected to.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The server name in the ClientHello.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Appends received bytes.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the first bytes for the server: a PROXY header of this version, if there is one, then the payload.
    /// Returns them with the size of the header. `number` becomes the unique ID of the connection if the
    /// received header has none.
    pub(crate) fn take_first(
        &mut self,
        version: Option<Version>,
        ends: Option<Ends>,
        number: u64,
    ) -> (Vec<u8>, usize) {
        let header = |version| introduce(version, &self.origin, ends, self.name(), None, number);
        let mut first = version.map_or_else(Vec::new, header);
        let header_bytes = first.len();
        self.header_left = header_bytes as u64;
        first.append(&mut self.bytes);
        (first, header_bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.awaits_proxy && !self.awaits_hello
    }

    pub(crate) fn awaits_proxy(&self) -> bool {
        self.awaits_proxy
    }

    /// Parses the received bytes.
    pub(crate) fn read(&mut self) -> PreambleState {
        if self.awaits_proxy {
            return match read_proxy(&self.bytes, &mut self.origin) {
                Ok(None) => PreambleState::More,
                Ok(Some(length)) => {
                    self.bytes.drain(..length);
                    self.awaits_proxy = false;
                    PreambleState::Known
                }
                Err(error) => PreambleState::Malformed(cause_of_header(error, &self.bytes)),
            };
        }
        if !self.awaits_hello {
            return PreambleState::Done;
        }
        match hello::parse(&self.bytes) {
            Ok(None) => PreambleState::More,
            Ok(Some(hello)) => {
                self.name = hello.name;
                self.awaits_hello = false;
                PreambleState::Done
            }
            Err(error) => PreambleState::Malformed(cause_of_hello(error, &self.bytes)),
        }
    }
}

/// Returns the cause for a connection without a valid PROXY header.
pub(crate) fn cause_of_header(error: ProxyError, bytes: &[u8]) -> Cause {
    let words = match error {
        ProxyError::Signature if is_http(bytes) == Some(true) => "the connection begins with HTTP",
        ProxyError::Signature if hello::is_record(bytes) => "the connection begins with TLS",
        ProxyError::Signature => "the connection begins with other bytes",
        ProxyError::Line => "the line of version 1 is malformed",
        ProxyError::Binary => "the header of version 2 is malformed",
        ProxyError::TooLong => "it is too long",
        ProxyError::Checksum => "its checksum is wrong",
    };
    Cause::with(Reason::ProxyHeaderInvalid, words)
}

/// Returns the cause for a connection without the ClientHello that a route needs.
fn cause_of_hello(error: HelloError, bytes: &[u8]) -> Cause {
    match error {
        HelloError::NotTls if is_http(bytes) == Some(true) => Reason::PlainHttp.into(),
        HelloError::NotTls => Reason::NotTls.into(),
        HelloError::Malformed => Cause::with(Reason::NotTls, "malformed ClientHello"),
        HelloError::TooLong => Cause::with(Reason::NotTls, "the ClientHello is too long"),
    }
}

/// Returns the PROXY header that introduces a client to its server.
pub(crate) fn introduce(
    version: Version,
    origin: &Origin,
    ends: Option<Ends>,
    name: Option<&str>,
    facts: Option<&TlsFacts>,
    number: u64,
) -> Vec<u8> {
    let mut out = Vec::new();
    if version == Version::V1 {
        proxy::emit_v1(ends, &mut out);
        return out;
    }
    let earlier = proxy::parse(&origin.header).ok().flatten().map(|header| header.extras).unwrap_or_default();
    let number = format!("{number:016x}");
    let ssl = facts.map(TlsFacts::proxy_header_part);
    let extras = Extras {
        alpn: facts.and_then(TlsFacts::alpn).or(earlier.alpn),
        authority: name.map(str::as_bytes).or(earlier.authority),
        unique_id: earlier.unique_id.or(Some(number.as_bytes())),
        ssl: ssl.or(earlier.ssl),
        hops: origin.next_hop(),
    };
    proxy::emit_v2(ends, Transport::Stream, &extras, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::testing::{TestPool, service_with};
    use evener_core::acl::{Access, Acl};
    use evener_core::route::{Route, Routes};
    use evener_core::spec::Protocol;
    use std::sync::Arc;

    const PROXY: &str = "192.0.2.7:1000";
    const V1: &[u8] = b"PROXY TCP4 198.51.100.1 198.51.100.2 5000 443\r\n";

    /// The preamble of a peer at a service with a proxy at [`PROXY`], and with routes by name if `is_routed`.
    fn preamble(peer: &str, is_routed: bool) -> Preamble {
        let service = service_with(Protocol::Tcp, &TestPool::new("pool", &[]), |settings| {
            let rules = [("192.0.2.7".parse().unwrap(), Access::Permit)];
            settings.proxy_from = Some(Arc::new(Acl::new(&rules, Access::Deny)));
            if is_routed {
                let hosts = vec!["www.example".parse().unwrap()];
                settings.routes = Routes::new(&[Route { hosts, path: None, to: 0 }]);
            }
        });
        Preamble::new(peer.parse().unwrap(), &service.settings.load())
    }

    fn header(hops: u8) -> Vec<u8> {
        let [source, destination] =
            ["198.51.100.1:5000", "198.51.100.2:443"].map(|text| text.parse().unwrap());
        let mut bytes = Vec::new();
        let extras = Extras { hops, ..Extras::default() };
        proxy::emit_v2(Some(Ends { source, destination }), Transport::Stream, &extras, &mut bytes);
        bytes
    }

    #[test]
    fn a_direct_client_has_no_preamble() {
        let preamble = preamble("192.0.2.8:1", false);
        assert!(preamble.is_over() && !preamble.awaits_proxy());
        assert_eq!(
            (preamble.origin.client.to_string().as_str(), preamble.origin.next_hop()),
            ("192.0.2.8:1", 0)
        );
    }

    #[test]
    fn a_proxy_header_gives_the_client_wherever_it_is_divided() {
        for cut in 0..=V1.len() {
            let mut preamble = preamble(PROXY, false);
            preamble.bytes.extend_from_slice(&V1[..cut]);
            if cut < V1.len() {
                assert_eq!(preamble.read(), PreambleState::More, "{cut} bytes");
            }
            preamble.bytes.extend_from_slice(&V1[cut..]);
            preamble.bytes.extend_from_slice(b"data");
            assert_eq!(preamble.read(), PreambleState::Known);
            assert_eq!((preamble.read(), &preamble.bytes[..]), (PreambleState::Done, &b"data"[..]));
            let Origin { client, destination, .. } = preamble.origin;
            assert_eq!(
                (client.to_string(), destination.map(|it| it.to_string())),
                ("198.51.100.1:5000".into(), Some("198.51.100.2:443".into()))
            );
        }
    }

    #[test]
    fn http_in_place_of_a_proxy_header_or_a_client_hello_is_malformed() {
        for (peer, is_routed) in [(PROXY, false), (PROXY, true), ("192.0.2.8:1", true)] {
            let mut preamble = preamble(peer, is_routed);
            preamble.bytes.extend_from_slice(b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n");
            let read = preamble.read();
            assert!(matches!(read, PreambleState::Malformed(_)), "{peer} {is_routed}: {read:?}");
        }
    }

    #[test]
    fn routes_wait_for_a_client_hello_after_the_header() {
        let mut preamble = preamble(PROXY, true);
        preamble.bytes.extend_from_slice(V1);
        assert_eq!((preamble.read(), preamble.is_over()), (PreambleState::Known, false));
        // The first bytes of a TLS handshake record.
        preamble.bytes.extend_from_slice(&[22, 3, 1, 0, 200, 1]);
        assert_eq!(preamble.read(), PreambleState::More);
    }

    #[test]
    fn too_many_hops_are_treated_as_a_loop() {
        for (hops, is_loop, next) in
            [(0, false, 1), (HOPS_MAX - 1, false, HOPS_MAX), (HOPS_MAX, true, HOPS_MAX + 1)]
        {
            let mut origin = Origin::new(PROXY.parse().unwrap());
            let bytes = header(hops);
            assert_eq!(read_proxy(&bytes, &mut origin), Ok(Some(bytes.len())));
            assert_eq!((origin.is_loop(), origin.next_hop()), (is_loop, next), "{hops}");
        }
    }

    #[test]
    fn bytes_of_the_local_header_do_not_count_as_bytes_of_the_client() {
        let mut preamble = preamble("192.0.2.8:1", false);
        preamble.header_left = 28;
        assert_eq!([10, 20, 5].map(|bytes| preamble.count_of_client(bytes)), [0, 2, 5]);
    }

    #[test]
    fn a_server_gets_the_values_of_an_earlier_proxy_where_there_is_no_local_value() {
        let mut origin = Origin::new(PROXY.parse().unwrap());
        let mut received = Vec::new();
        let extras =
            Extras { authority: Some(b"old.example"), unique_id: Some(b"id"), hops: 3, ..Extras::default() };
        proxy::emit_v2(None, Transport::Stream, &extras, &mut received);
        read_proxy(&received, &mut origin).unwrap();
        for (name, expected) in [(None, &b"old.example"[..]), (Some("new.example"), b"new.example")] {
            let sent = introduce(Version::V2, &origin, None, name, None, 7);
            let extras = proxy::parse(&sent).unwrap().unwrap().extras;
            assert_eq!(
                (extras.authority, extras.unique_id, extras.hops),
                (Some(expected), Some(&b"id"[..]), 4)
            );
        }
        let fresh = introduce(Version::V2, &Origin::new(PROXY.parse().unwrap()), None, None, None, 7);
        let extras = proxy::parse(&fresh).unwrap().unwrap().extras;
        assert_eq!((extras.unique_id, extras.hops), (Some(&b"0000000000000007"[..]), 0));
        assert_eq!(introduce(Version::V1, &origin, None, None, None, 7), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn clients_of_unix_sockets_count_as_loopback() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let socket = OwnedFd::from(socket);
        let address = rustix::net::getpeername(&socket).unwrap();
        assert!(client_address(address).ip().is_loopback() && client_address(None).ip().is_loopback());
        assert_eq!(local_address(&socket), None);
    }
}
