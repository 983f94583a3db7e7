//! Ports that the system chooses (`listen = "127.0.0.1:0"`): finds a port that is free for every transport of a
//! service.

use evener_core::Endpoint;
use evener_core::spec::Transport;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use std::io;
use std::net::SocketAddr;

/// Maximum number of ports that are tried.
const TRIES_MAX: usize = 64;

/// A port that is reserved until the sockets of the workers are bound to it.
///
/// The sockets are bound without SO_REUSEPORT, so that no other process can have the port. The option is set
/// afterwards, so that the workers can bind the port. Otherwise two instances that choose at the same time
/// could get the same port and share its clients.
#[derive(Debug)]
pub(super) struct Reservation {
    /// Address with the chosen port.
    address: SocketAddr,
    _sockets: Vec<OwnedFd>,
}

impl Reservation {
    /// Reserves a port of `address` that is free for all transports.
    pub(super) fn new(address: SocketAddr, transports: &[Transport], freebind: bool) -> io::Result<Self> {
        for _ in 0..TRIES_MAX {
            match reserve(address, transports, freebind) {
                // The port that the system chose for the first transport is in use for the other transport.
                Err(Errno::ADDRINUSE) => {}
                reserved => return Ok(reserved?),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Returns the address with the chosen port.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint::Ip(self.address)
    }
}

fn reserve(mut address: SocketAddr, transports: &[Transport], freebind: bool) -> Result<Reservation, Errno> {
    let mut sockets = Vec::with_capacity(transports.len());
    for transport in transports {
        let kind = if *transport == Transport::Stream { SocketType::STREAM } else { SocketType::DGRAM };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        match address {
            SocketAddr::V4(_) => sockopt::set_ip_freebind(&socket, freebind)?,
            SocketAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, freebind)?,
        }
        bind(&socket, &address)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        address = SocketAddr::try_from(getsockname(&socket)?)?;
        sockets.push(socket);
    }
    Ok(Reservation { address, _sockets: sockets })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn a_reserved_port_cannot_be_bound_by_others_on_any_transport() {
        let transports = [Transport::Stream, Transport::Datagram];
        for any in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            let wanted: SocketAddr = any.parse().unwrap();
            let reserved = Reservation::new(wanted, &transports, false).unwrap();
            let address = reserved.address;
            assert_eq!((address.ip(), address.port() > 0), (wanted.ip(), true));
            let taken = |error: io::Error| error.kind() == io::ErrorKind::AddrInUse;
            assert!(TcpListener::bind(address).is_err_and(taken), "{address}");
            assert!(UdpSocket::bind(address).is_err_and(taken), "{address}");
        }
        let elsewhere = Reservation::new("192.0.2.1:0".parse().unwrap(), &transports, false);
        assert_eq!(elsewhere.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
        assert!(Reservation::new("192.0.2.1:0".parse().unwrap(), &transports, true).is_ok());
    }
}
