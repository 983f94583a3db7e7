//! The bytes of a connection before a server is chosen: the PROXY header of a proxy before us, and the ClientHello of
//! TLS that is passed through. Also the PROXY header that a server gets.

use crate::io::tls::TlsFacts;
use crate::service::Settings;
use crate::service::hops::HOPS_MAX;
use evener_core::wire::proxy::{self, Ends, Extras, Ssl, Transport, Version};
use evener_core::wire::{hello, proxy::ProxyError};
use rustix::fd::OwnedFd;
use rustix::net::SocketAddrAny;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The longest time for a preamble to arrive.
pub(crate) const GREETING: Duration = Duration::from_secs(10);

/// The client of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The client; clients of a unix socket count as loopback.
    pub(crate) client: SocketAddr,
    /// The address that the client connected to, if a PROXY header has it; otherwise it is the socket's.
    pub(crate) destination: Option<SocketAddr>,
    /// The PROXY header that came; its contents are passed on.
    pub(crate) header: Vec<u8>,
    /// The header says that the client speaks TLS with the proxy.
    pub(crate) secure: bool,
    /// Number of instances of Evener that the connection passed before, as far as PROXY headers show.
    hops: u8,
}

impl Origin {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { client: peer, destination: None, header: Vec::new(), secure: false, hops: 0 }
    }

    /// Takes on the contents of a PROXY header.
    fn tell(&mut self, header: &proxy::Header<'_>, bytes: &[u8]) {
        if let Some(ends) = header.ends {
            self.client = ends.source;
            self.destination = Some(ends.destination);
        }
        self.header = bytes[..header.length].to_vec();
        self.secure = header.extras.ssl.is_some();
        self.hops = header.extras.hops;
    }

    /// Returns whether so many instances forwarded it that it must go round.
    pub(crate) fn goes_round(&self) -> bool {
        self.hops >= HOPS_MAX
    }

    /// Number of instances that forwarded it, with this one; 0 when no header came.
    pub(crate) fn next_hop(&self) -> u8 {
        if self.header.is_empty() { 0 } else { self.hops.saturating_add(1) }
    }

    /// Both ends, for the PROXY header to a server.
    pub(crate) fn ends(&self, socket: &OwnedFd) -> Option<Ends> {
        let destination = self.destination.or_else(|| local_address(socket))?;
        Some(Ends { source: self.client, destination })
    }
}

/// Clients of a unix socket have no address; they count as loopback.
pub(crate) fn client_address(address: Option<SocketAddrAny>) -> SocketAddr {
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    address.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

/// The address that a client connected to; `None` for a unix socket.
pub(crate) fn local_address(socket: &OwnedFd) -> Option<SocketAddr> {
    rustix::net::getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok())
}

/// Reads the PROXY header that `bytes` begin with. Returns its length; `None` when more has to come.
pub(crate) fn read_proxy(bytes: &[u8], origin: &mut Origin) -> Result<Option<usize>, ProxyError> {
    Ok(proxy::parse(bytes)?.map(|header| {
        origin.tell(&header, bytes);
        header.length
    }))
}

/// The first bytes of a connection that is only relayed.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) origin: Origin,
    /// The bytes that came; at the end those that the server gets.
    pub(crate) bytes: Vec<u8>,
    /// The server name in the ClientHello.
    pub(crate) name: Option<String>,
    /// Number of bytes of our own header among those that the server gets next; no client sent them.
    pub(crate) header_left: u64,
    awaits_proxy: bool,
    awaits_hello: bool,
}

/// The progress of a preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeted {
    /// More bytes have to come.
    More,
    /// The PROXY header is complete, so that the client is known.
    Known,
    /// The preamble is complete.
    Done,
    /// The preamble is malformed.
    Malformed,
}

impl Greeting {
    /// The preamble that is expected from `peer`.
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

    /// Returns how many of the next bytes that the server takes are the client's: our header goes before them.
    pub(crate) fn count_of_client(&mut self, bytes: u64) -> u64 {
        let header = bytes.min(self.header_left);
        self.header_left -= header;
        bytes - header
    }

    pub(crate) fn is_over(&self) -> bool {
        !self.awaits_proxy && !self.awaits_hello
    }

    pub(crate) fn awaits_proxy(&self) -> bool {
        self.awaits_proxy
    }

    /// Parses the bytes that came.
    pub(crate) fn read(&mut self) -> Greeted {
        if self.awaits_proxy {
            return match read_proxy(&self.bytes, &mut self.origin) {
                Ok(None) => Greeted::More,
                Ok(Some(length)) => {
                    self.bytes.drain(..length);
                    self.awaits_proxy = false;
                    Greeted::Known
                }
                Err(_) => Greeted::Malformed,
            };
        }
        if !self.awaits_hello {
            return Greeted::Done;
        }
        match hello::parse(&self.bytes) {
            Ok(None) => Greeted::More,
            Ok(Some(hello)) => {
                self.name = hello.name;
                self.awaits_hello = false;
                Greeted::Done
            }
            Err(_) => Greeted::Malformed,
        }
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
    let told = proxy::parse(&origin.header).ok().flatten().map(|header| header.extras).unwrap_or_default();
    let number = format!("{number:016x}");
    let ssl = facts.map(|facts| Ssl {
        version: Some(facts.version.as_bytes()),
        cipher: Some(facts.cipher.as_bytes()),
        common_name: facts.common_name.as_deref().map(str::as_bytes),
        verified: facts.subject.is_some(),
    });
    let extras = Extras {
        alpn: facts.and_then(|facts| facts.alpn.as_deref()).or(told.alpn),
        authority: name.map(str::as_bytes).or(told.authority),
        unique_id: told.unique_id.or(Some(number.as_bytes())),
        ssl: ssl.or(told.ssl),
        hops: origin.next_hop(),
    };
    proxy::emit_v2(ends, Transport::Stream, &extras, &mut out);
    out
}
