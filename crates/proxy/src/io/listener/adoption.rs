//! Listening sockets that another process opened: the instance before an upgrade, or the service manager. They
//! continue with their queues, so that no client that waits there is lost.

use super::{Bound, UnixPath, apply_options, backlog, open};
use evener_core::Endpoint;
use evener_core::address::abstract_name;
use evener_core::spec::{ServiceOptions, Transport};
use rustix::fd::OwnedFd;
use rustix::io::ioctl_fionbio;
use rustix::net::{AddressFamily, SocketType, getsockname, sockopt};
use std::io;
use std::net::SocketAddr;

/// Reason why inherited sockets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// There is no socket.
    #[error("no socket was inherited for {0}")]
    None(Endpoint),
    /// The socket has another type or address.
    #[error("the inherited socket for {0} has another type or address")]
    Other(Endpoint),
    /// A system call failed.
    #[error("the inherited socket for {0} cannot be used: {1}")]
    Failed(Endpoint, io::Error),
}

impl Bound {
    /// Takes listening sockets at `address` that another process opened, for `workers` workers. All of them stay
    /// in use, because each may have clients in its queue: a worker gets several if there are more sockets than
    /// workers. If there are fewer, further sockets are opened.
    ///
    /// # Errors
    /// A socket is not of this address and transport, or a system call failed.
    pub fn adopt(
        address: &Endpoint,
        transport: Transport,
        inherited: Vec<OwnedFd>,
        options: &ServiceOptions,
        workers: usize,
    ) -> Result<Self, AdoptError> {
        let failed = |error: io::Error| AdoptError::Failed(address.clone(), error);
        let Some(first) = inherited.first() else { return Err(AdoptError::None(address.clone())) };
        if !inherited.iter().all(|socket| has_type(socket, transport) && is_at(socket, address)) {
            return Err(AdoptError::Other(address.clone()));
        }
        let more = match address {
            Endpoint::Ip(ip) => more_at(*ip, transport, first, options, (inherited.len(), workers)),
            _ => copies(first, workers.saturating_sub(inherited.len())),
        };
        let mut sockets = inherited;
        sockets.extend(more.map_err(failed)?);
        for socket in &sockets {
            ioctl_fionbio(socket, true).map_err(|error| failed(error.into()))?;
            if transport == Transport::Stream {
                super::reconfigure(socket, options);
            }
        }
        let unix = match address {
            Endpoint::Unix(path) if abstract_name(path).is_none() => Some(UnixPath::of(path)),
            _ => None,
        };
        Ok(Self { address: address.clone(), transport, sockets, unix })
    }
}

/// Returns whether the socket has the type of a transport. A TCP and a UDP socket can have the same address.
fn has_type(socket: &OwnedFd, transport: Transport) -> bool {
    let wanted = if transport == Transport::Stream { SocketType::STREAM } else { SocketType::DGRAM };
    let listens = transport == Transport::Datagram || sockopt::socket_acceptconn(socket) == Ok(true);
    sockopt::socket_type(socket) == Ok(wanted) && listens
}

fn is_at(socket: &OwnedFd, address: &Endpoint) -> bool {
    match address {
        Endpoint::Ip(wanted) => {
            getsockname(socket).ok().and_then(|local| SocketAddr::try_from(local).ok()) == Some(*wanted)
        }
        Endpoint::Unix(_) => sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX),
        Endpoint::Host { .. } => false,
    }
}

/// Opens the sockets that are missing for `workers` workers, beside `present` ones. Without SO_REUSEPORT, which
/// the service manager may not have set, the workers share the socket for connections. A socket for datagrams
/// stays with one worker then, because the flows of a client belong to one worker.
fn more_at(
    address: SocketAddr,
    transport: Transport,
    first: &OwnedFd,
    options: &ServiceOptions,
    (present, workers): (usize, usize),
) -> io::Result<Vec<OwnedFd>> {
    let missing = workers.saturating_sub(present);
    if sockopt::socket_reuseport(first) != Ok(true) {
        return if transport == Transport::Stream { copies(first, missing) } else { Ok(Vec::new()) };
    }
    let open_one = |_| {
        let socket = open(address, transport, options)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        if transport == Transport::Stream {
            apply_options(&socket, options)?;
            socket.listen(backlog(options))?;
        }
        Ok(OwnedFd::from(socket))
    };
    (0..missing).map(open_one).collect()
}

fn copies(socket: &OwnedFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    (0..count).map(|_| socket.try_clone()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::super::{Sharing, bind};
    use super::*;
    use evener_core::spec::Protocol;
    use std::net::{TcpListener, UdpSocket};

    fn adopt(address: SocketAddr, transport: Transport, sockets: Vec<OwnedFd>) -> Result<usize, AdoptError> {
        let options = ServiceOptions::of(Protocol::Tcp);
        Bound::adopt(&Endpoint::Ip(address), transport, sockets, &options, 3).map(|bound| bound.sockets.len())
    }

    #[test]
    fn every_inherited_socket_stays_and_missing_ones_are_opened() {
        let options = ServiceOptions::of(Protocol::Tcp);
        let any = Endpoint::Ip("127.0.0.1:0".parse().unwrap());
        for (transport, workers) in [(Transport::Stream, 2), (Transport::Stream, 5), (Transport::Datagram, 1)]
        {
            let bound = bind(&any, transport, &options, workers, Sharing::None).unwrap();
            let Endpoint::Ip(address) = bound.address else { panic!("another kind of address") };
            assert_eq!(adopt(address, transport, bound.sockets).unwrap(), workers.max(3));
        }
    }

    #[test]
    fn sockets_without_a_shared_port_have_one_descriptor_for_each_acceptor() {
        let stream = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = stream.local_addr().unwrap();
        assert_eq!(adopt(address, Transport::Stream, vec![stream.into()]).unwrap(), 3);
        let datagram = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = datagram.local_addr().unwrap();
        assert_eq!(adopt(address, Transport::Datagram, vec![datagram.into()]).unwrap(), 1);
    }

    #[test]
    fn a_socket_of_another_transport_or_address_is_refused() {
        let stream = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = stream.local_addr().unwrap();
        let copy = || vec![stream.try_clone().unwrap().into()];
        assert!(matches!(adopt(address, Transport::Datagram, copy()), Err(AdoptError::Other(_))));
        let other = SocketAddr::from(([127, 0, 0, 1], address.port() ^ 1));
        assert!(matches!(adopt(other, Transport::Stream, copy()), Err(AdoptError::Other(_))));
        assert!(matches!(adopt(address, Transport::Stream, Vec::new()), Err(AdoptError::None(_))));
    }
}
