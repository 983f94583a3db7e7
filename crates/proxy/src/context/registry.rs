//! Where the descriptors of a worker are registered, and what stands for them in events.

use mio::Interest;
use mio::unix::SourceFd;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;

/// Who an epoll event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Waker,
    Stream(usize),
    Client(usize),
    Server(usize),
    Datagrams(usize),
    Flow(usize),
    Session(usize),
    Upstream(usize),
    DnsListener(usize),
    DnsSocket(usize),
    DnsClient(usize),
    DnsStream(usize),
    DnsStanding(usize),
}

impl Token {
    pub(crate) fn encode(self) -> mio::Token {
        let (kind, index) = match self {
            Self::Waker => (0, 0),
            Self::Stream(index) => (1, index),
            Self::Client(index) => (2, index),
            Self::Server(index) => (3, index),
            Self::Datagrams(index) => (4, index),
            Self::Flow(index) => (5, index),
            Self::Session(index) => (6, index),
            Self::Upstream(index) => (7, index),
            Self::DnsListener(index) => (8, index),
            Self::DnsSocket(index) => (9, index),
            Self::DnsClient(index) => (10, index),
            Self::DnsStream(index) => (11, index),
            Self::DnsStanding(index) => (12, index),
        };
        mio::Token(index << 4 | kind)
    }

    pub(crate) fn decode(mio::Token(token): mio::Token) -> Self {
        let index = token >> 4;
        match token & 15 {
            1 => Self::Stream(index),
            2 => Self::Client(index),
            3 => Self::Server(index),
            4 => Self::Datagrams(index),
            5 => Self::Flow(index),
            6 => Self::Session(index),
            7 => Self::Upstream(index),
            8 => Self::DnsListener(index),
            9 => Self::DnsSocket(index),
            10 => Self::DnsClient(index),
            11 => Self::DnsStream(index),
            12 => Self::DnsStanding(index),
            _ => Self::Waker,
        }
    }
}

/// Where descriptors are registered.
#[derive(Debug)]
pub(crate) struct Registry(mio::Registry);

impl Registry {
    pub(crate) fn new(registry: mio::Registry) -> Self {
        Self(registry)
    }

    /// Edge-triggered for both ways. Closing the descriptor takes it out again, if there is no copy of it.
    pub(crate) fn register(&self, socket: &OwnedFd, token: Token) -> Result<(), Errno> {
        let interest = match token {
            Token::Client(_)
            | Token::Server(_)
            | Token::Session(_)
            | Token::Upstream(_)
            | Token::DnsClient(_)
            | Token::DnsStream(_)
            | Token::DnsStanding(_) => Interest::READABLE | Interest::WRITABLE,
            Token::Waker
            | Token::Stream(_)
            | Token::Datagrams(_)
            | Token::Flow(_)
            | Token::DnsListener(_)
            | Token::DnsSocket(_) => Interest::READABLE,
        };
        let registered = self.0.register(&mut SourceFd(&socket.as_raw_fd()), token.encode(), interest);
        registered.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    /// Takes a descriptor out before it is closed: of a shared unix listener copies stay open.
    pub(crate) fn deregister(&self, socket: &OwnedFd) {
        let _ = self.0.deregister(&mut SourceFd(&socket.as_raw_fd()));
    }
}
