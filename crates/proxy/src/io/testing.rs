//! Sockets for unit tests of components. The tests take the place of the loop of a worker.

use crate::context::registry::Readiness;
use evener_core::Target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

/// Longest wait of a test for the kernel.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Returns a non-blocking listener at a free port of loopback.
pub(crate) fn bound() -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// Returns the address of a listener as the target of a server.
pub(crate) fn target(listener: &TcpListener) -> Target {
    Target::Ip(listener.local_addr().unwrap())
}

/// Returns a bound socket and its address, which refuses connections because the socket does not listen.
pub(crate) fn refusing() -> (OwnedFd, Target) {
    let family = rustix::net::AddressFamily::INET;
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap();
    (socket, Target::Ip(SocketAddr::try_from(address).unwrap()))
}

/// Returns the readiness of a socket, as an event would report it.
pub(crate) fn readiness(socket: &OwnedFd) -> Readiness {
    let mut wanted = [PollFd::new(socket, PollFlags::IN | PollFlags::OUT | PollFlags::RDHUP)];
    poll(&mut wanted, Some(&Timespec::default())).unwrap();
    let got = wanted[0].revents();
    let error = got.intersects(PollFlags::ERR | PollFlags::HUP);
    Readiness {
        readable: got.contains(PollFlags::IN),
        writable: got.contains(PollFlags::OUT),
        ended: error || got.contains(PollFlags::RDHUP),
        error: got.contains(PollFlags::ERR),
    }
}

/// Returns whether a read failed only because no byte has arrived yet.
pub(crate) fn is_blocked(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
