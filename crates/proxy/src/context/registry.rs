//! The registered descriptors of a worker, and the tokens of their events.

use super::keys::{
    ConnectionKey, DatagramListenerKey, DnsClientKey, DnsListenerKey, DnsSocketKey, DnsStreamKey,
    FlowSocketKey, Handle, ListenerKey, PersistentKey, ServerConnectionKey, SessionKey,
};
use mio::Interest;
use mio::event::Event;
use mio::unix::SourceFd;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;

/// The receiver of an epoll event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Waker,
    Stream(ListenerKey),
    Client(ConnectionKey),
    Server(ConnectionKey),
    Datagrams(DatagramListenerKey),
    Flow(FlowSocketKey),
    Session(SessionKey),
    Upstream(ServerConnectionKey),
    DnsListener(DnsListenerKey),
    DnsSocket(DnsSocketKey),
    DnsClient(DnsClientKey),
    DnsStream(DnsStreamKey),
    DnsPersistent(PersistentKey),
}

impl Token {
    pub(crate) fn encode(self) -> mio::Token {
        let (kind, raw): (u64, u64) = match self {
            Self::Waker => (0, 0),
            Self::Stream(key) => (1, key.into_raw()),
            Self::Client(key) => (2, key.into_raw()),
            Self::Server(key) => (3, key.into_raw()),
            Self::Datagrams(key) => (4, key.into_raw()),
            Self::Flow(key) => (5, key.into_raw()),
            Self::Session(key) => (6, key.into_raw()),
            Self::Upstream(key) => (7, key.into_raw()),
            Self::DnsListener(key) => (8, key.into_raw()),
            Self::DnsSocket(key) => (9, key.into_raw()),
            Self::DnsClient(key) => (10, key.into_raw()),
            Self::DnsStream(key) => (11, key.into_raw()),
            Self::DnsPersistent(key) => (12, key.into_raw()),
        };
        mio::Token((raw << 4 | kind) as usize)
    }

    pub(crate) fn decode(mio::Token(token): mio::Token) -> Self {
        let raw = (token >> 4) as u64;
        match token & 15 {
            1 => Self::Stream(Handle::from_raw(raw)),
            2 => Self::Client(Handle::from_raw(raw)),
            3 => Self::Server(Handle::from_raw(raw)),
            4 => Self::Datagrams(Handle::from_raw(raw)),
            5 => Self::Flow(Handle::from_raw(raw)),
            6 => Self::Session(Handle::from_raw(raw)),
            7 => Self::Upstream(Handle::from_raw(raw)),
            8 => Self::DnsListener(Handle::from_raw(raw)),
            9 => Self::DnsSocket(Handle::from_raw(raw)),
            10 => Self::DnsClient(Handle::from_raw(raw)),
            11 => Self::DnsStream(Handle::from_raw(raw)),
            12 => Self::DnsPersistent(Handle::from_raw(raw)),
            _ => Self::Waker,
        }
    }
}

/// The readiness of a socket, as an event reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer sends no more bytes, or the socket has an error.
    pub(crate) ended: bool,
    pub(crate) error: bool,
}

impl From<&Event> for Readiness {
    fn from(event: &Event) -> Self {
        Self {
            readable: event.is_readable(),
            writable: event.is_writable(),
            ended: event.is_read_closed() || event.is_error(),
            error: event.is_error(),
        }
    }
}

/// The registered descriptors.
#[derive(Debug)]
pub(crate) struct Registry(mio::Registry);

impl Registry {
    pub(crate) fn new(registry: mio::Registry) -> Self {
        Self(registry)
    }

    /// Registers a descriptor for edge-triggered events. Closing the descriptor deregisters it, unless a copy
    /// is open.
    pub(crate) fn register(&self, socket: &OwnedFd, token: Token) -> Result<(), Errno> {
        let interest = match token {
            Token::Client(_)
            | Token::Server(_)
            | Token::Session(_)
            | Token::Upstream(_)
            | Token::DnsClient(_)
            | Token::DnsStream(_)
            | Token::DnsPersistent(_) => Interest::READABLE | Interest::WRITABLE,
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

    /// Deregisters a descriptor that is about to be closed. Closing does not suffice for a unix listener, whose
    /// copies at other workers stay open.
    pub(crate) fn deregister(&self, socket: &OwnedFd) {
        let _ = self.0.deregister(&mut SourceFd(&socket.as_raw_fd()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn tokens_survive_encoding() {
        // The largest key: a whole index, and a generation of 27 bits.
        for raw in [0, 1, 1 << 32, (1 << 59) - 1] {
            let tokens = [
                Token::Waker,
                Token::Stream(Handle::from_raw(raw)),
                Token::Client(Handle::from_raw(raw)),
                Token::Server(Handle::from_raw(raw)),
                Token::Datagrams(Handle::from_raw(raw)),
                Token::Flow(Handle::from_raw(raw)),
                Token::Session(Handle::from_raw(raw)),
                Token::Upstream(Handle::from_raw(raw)),
                Token::DnsListener(Handle::from_raw(raw)),
                Token::DnsSocket(Handle::from_raw(raw)),
                Token::DnsClient(Handle::from_raw(raw)),
                Token::DnsStream(Handle::from_raw(raw)),
            ];
            for (nth, token) in tokens.iter().enumerate() {
                assert_eq!(Token::decode(token.encode()), *token);
                assert!(tokens[..nth].iter().all(|other| other.encode() != token.encode()));
            }
        }
    }

    #[test]
    fn registered_descriptors_have_events_until_they_are_deregistered() {
        let mut poll = mio::Poll::new().unwrap();
        let registry = Registry::new(poll.registry().try_clone().unwrap());
        let mut events = mio::Events::with_capacity(8);
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = OwnedFd::from(socket);
        let token = Token::Flow(Handle::from_raw(5));
        registry.register(&socket, token).unwrap();
        assert_eq!(registry.register(&socket, token), Err(Errno::EXIST));
        peer.write_all(b"x").unwrap();
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        let event = events.iter().next().expect("the socket is readable");
        assert_eq!(
            (Token::decode(event.token()), Readiness::from(event)),
            (token, Readiness { readable: true, ..Readiness::default() })
        );
        registry.deregister(&socket);
        peer.write_all(b"y").unwrap();
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
    }
}
