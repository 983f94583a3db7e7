//! Ports that a test knows before a program listens there. Reservations prevent other tests from using them.

use crate::harness::local;
use socket2::{Domain, Socket, Type};
use std::cell::RefCell;
use std::net::UdpSocket;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// The first port, and the number of ports. They are below the range from which the kernel chooses ports.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A port of loopback that no other test uses, in this run or another, until the reservation is dropped.
///
/// A TCP socket is bound to the port and never listens. Listeners with SO_REUSEADDR can bind the port as well.
/// Until one does, connections are refused.
pub(crate) struct Reservation {
    port: u16,
    _socket: Socket,
}

impl Reservation {
    pub(crate) fn new() -> Self {
        // The first port is far from the first port of a test run with a neighbouring pid.
        static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
            AtomicU16::new((u64::from(std::process::id()) * 7919 % u64::from(COUNT)) as u16)
        });
        let mut ports = std::iter::repeat_with(|| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT);
        ports.by_ref().take(usize::from(COUNT)).find_map(Self::of).expect("a free port")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Reserves the port if it is free for TCP and UDP.
    fn of(port: u16) -> Option<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // The socket has no SO_REUSEADDR yet, so the bind fails if another test reserved the port.
        socket.bind(&local(port).into()).ok()?;
        UdpSocket::bind(local(port)).ok()?;
        socket.set_reuse_address(true).unwrap();
        Some(Self { port, _socket: socket })
    }
}

/// Reserves a port until the thread of the test ends. It is for peers whose configuration needs a port, for servers that start
/// later, and for ports without a server.
pub(crate) fn reserved_port() -> u16 {
    thread_local! {
        static OF_TEST: RefCell<Vec<Reservation>> = const { RefCell::new(Vec::new()) };
    }
    let reserved = Reservation::new();
    let port = reserved.port();
    OF_TEST.with_borrow_mut(|all| all.push(reserved));
    port
}
