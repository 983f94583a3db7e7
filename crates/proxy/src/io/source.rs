//! Source addresses of connections and datagrams to servers: a configured local address, or the client's.

use crate::io::sys;
use evener_core::spec::{ServiceOptions, Source};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Source address of a connection to a server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SourceAddress {
    /// A local address.
    Local(IpAddr),
    /// The client's address.
    Client(IpAddr),
}

impl SourceAddress {
    /// Returns the configured source address for this client; `None` leaves the choice to the system.
    pub(crate) fn of(options: &ServiceOptions, client: IpAddr) -> Option<Self> {
        options.source.map(|source| match source {
            Source::Address(address) => Self::Local(address),
            Source::Client => Self::Client(client.to_canonical()),
        })
    }

    /// Binds a socket that will be connected to `server`. Leaves the choice to the system if the two addresses
    /// are of different families, or if the client's loopback address has no meaning at a remote server.
    ///
    /// # Errors
    /// EADDRNOTAVAIL for every error of the system, because the cause is the source address and not the server.
    /// For example, the link-local address of a client (RFC 4291, section 2.5.6) has no meaning on other links.
    pub(crate) fn bind(self, socket: &OwnedFd, server: SocketAddr) -> Result<(), Errno> {
        self.try_bind(socket, server).map_err(|_| Errno::ADDRNOTAVAIL)
    }

    fn try_bind(self, socket: &OwnedFd, server: SocketAddr) -> Result<(), Errno> {
        let (Self::Local(source) | Self::Client(source)) = self;
        if source.is_ipv4() != server.is_ipv4() {
            return Ok(());
        }
        if matches!(self, Self::Client(_)) {
            // A loopback address belongs to another client on another machine.
            if source.is_loopback() && !server.ip().is_loopback() {
                return Ok(());
            }
            let flag = sys::set_flag(socket.as_fd(), transparent(source));
            flag.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PERM))?;
        }
        bind_source(socket, source)
    }
}

/// Level and name of the socket option that permits a source address that is not local (ip(7), ipv6(7)).
fn transparent(address: IpAddr) -> (i32, i32) {
    match address {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    }
}

/// Checks that this process may bind sockets to the addresses of clients.
///
/// # Errors
/// The system's error without CAP_NET_ADMIN.
pub fn may_be_transparent() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    sys::set_flag(socket.as_fd(), transparent(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

/// Binds to an address. The system chooses the port at connect(2), so that one local port serves connections to
/// several servers (ip(7)).
fn bind_source(socket: &OwnedFd, source: IpAddr) -> Result<(), Errno> {
    const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
    let _ = sys::set_flag(socket.as_fd(), (libc::IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT));
    rustix::net::bind(socket, &SocketAddr::new(source, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::connect::{datagram_socket, is_local_error};
    use evener_core::Target;

    #[test]
    fn an_impossible_source_is_a_local_error() {
        let server: SocketAddr = "[::1]:9".parse().unwrap();
        // A link-local address without its link, and an address that no interface has.
        for source in ["fe80::1", "2001:db8::1"] {
            let source_address = SourceAddress::Local(source.parse().unwrap());
            let error = datagram_socket(&Target::Ip(server), Some(source_address)).unwrap_err();
            assert!(is_local_error(error) && error == Errno::ADDRNOTAVAIL, "{source}: {error}");
        }
        let other = SourceAddress::Local("127.0.0.1".parse().unwrap());
        assert!(
            datagram_socket(&Target::Ip(server), Some(other)).is_ok(),
            "a source of another address family is ignored"
        );
    }
}
