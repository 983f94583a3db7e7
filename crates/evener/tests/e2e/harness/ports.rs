//! Ports that are known before a program listens there. They are reserved, so that no other test gets them meanwhile.

use crate::harness::local;
use socket2::{Domain, Socket, Type};
use std::cell::RefCell;
use std::net::UdpSocket;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// First port, and number of ports, that are reserved: below those that the system gives to clients and chooses.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A port of loopback that is no other test's, of this run or another one, as long as this lives.
///
/// A TCP socket is bound to it, alone, and never listens. A listener with SO_REUSEADDR can have the port beside it, once or
/// several times; until then clients are refused.
pub(crate) struct Reservation {
    port: u16,
    _socket: Socket,
}

impl Reservation {
    pub(crate) fn new() -> Self {
        // Far from where another run of the tests, with a neighbouring pid, looks for its ports.
        static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
            AtomicU16::new((u64::from(std::process::id()) * 7919 % u64::from(COUNT)) as u16)
        });
        let mut ports = std::iter::repeat_with(|| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT);
        ports.by_ref().take(usize::from(COUNT)).find_map(Self::of).expect("one of the ports is free")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Reserves this port, if it is free for TCP and UDP.
    fn of(port: u16) -> Option<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Without SO_REUSEADDR: another reservation is in the way.
        socket.bind(&local(port).into()).ok()?;
        UdpSocket::bind(local(port)).ok()?;
        socket.set_reuse_address(true).unwrap();
        Some(Self { port, _socket: socket })
    }
}

/// A port that has to be known before a program listens there: that of a peer whose configuration names it, of a server that
/// starts later, or of no server at all. It is reserved until the thread ends, which is the end of the test.
pub(crate) fn reserved_port() -> u16 {
    thread_local! {
        static OF_TEST: RefCell<Vec<Reservation>> = const { RefCell::new(Vec::new()) };
    }
    let reserved = Reservation::new();
    let port = reserved.port();
    OF_TEST.with_borrow_mut(|all| all.push(reserved));
    port
}
