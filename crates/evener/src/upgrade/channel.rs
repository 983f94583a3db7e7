//! The channel between two instances at an upgrade: a pair of unix sockets that keep the bounds of messages
//! (SOCK_SEQPACKET), with descriptors beside them.

use super::message::{DESCRIPTORS_MAX, MESSAGE_BYTES_MAX, Message, MessageError, VERSION, decode, encode};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// Pause after the system has no room for more descriptors in flight.
const RETRY: Duration = Duration::from_millis(5);

/// Reason why the channel cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelError {
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The other process ended, or closed its socket.
    #[error("the other process ended")]
    Closed,
    #[error("the other process did not respond in time")]
    TimedOut,
    #[error("the hand-over failed: {0}")]
    Io(io::Error),
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::AGAIN => Self::TimedOut,
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// One end of a channel.
#[derive(Debug)]
pub(crate) struct Channel {
    socket: OwnedFd,
    /// Version in which messages are written.
    version: u16,
}

impl Channel {
    /// Creates the two ends of a channel.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (local, remote) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self { socket: local, version: VERSION }, remote))
    }

    /// Takes the end of a channel that another process created. Returns `None` if the descriptor is something else.
    pub(crate) fn from_descriptor(socket: OwnedFd) -> Option<Self> {
        let is_channel = sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET)
            && sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        is_channel.then_some(Self { socket, version: VERSION })
    }

    /// Sends a message with descriptors. Waits at most until `deadline` while the other process does not read.
    pub(crate) fn send(
        &self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
        deadline: Instant,
    ) -> Result<(), ChannelError> {
        let bytes = encode(message, self.version)?;
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        loop {
            self.limit(sockopt::Timeout::Send, deadline)?;
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(ChannelError::Io(io::ErrorKind::InvalidInput.into()));
            }
            match sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                // Descriptors in flight are bounded; the other process reads them soon.
                Err(Errno::TOOMANYREFS | Errno::NOBUFS) => std::thread::sleep(RETRY),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives a message with its descriptors, at the latest at `deadline`. The version of the first message becomes the version of all
    /// that are sent.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Result<(Message, Vec<OwnedFd>), ChannelError> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let (count, flags, descriptors) = loop {
            self.limit(sockopt::Timeout::Recv, deadline)?;
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break (received.bytes, received.flags, descriptors_of(&mut control)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if count == 0 {
            return Err(ChannelError::Closed);
        }
        if flags.contains(ReturnFlags::TRUNC) {
            return Err(MessageError::TooLong(count).into());
        }
        if flags.contains(ReturnFlags::CTRUNC) {
            // Descriptors were lost, for example because this process may have no more.
            return Err(ChannelError::Io(Errno::MFILE.into()));
        }
        let (message, version) = decode(&bytes[..count])?;
        self.version = version;
        Ok((message, descriptors))
    }

    /// Limits the next call to the time that is left.
    fn limit(&self, which: sockopt::Timeout, deadline: Instant) -> Result<(), ChannelError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ChannelError::TimedOut);
        }
        // A timeout of zero would mean to wait for ever.
        let left = left.max(Duration::from_millis(1));
        Ok(sockopt::set_socket_timeout(&self.socket, which, Some(left))?)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn descriptors_of(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let of_message = |message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    };
    control.drain().flat_map(of_message).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use rustix::net::send;
    use std::net::TcpListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn ends() -> (Channel, Channel) {
        let (one, other) = Channel::pair().unwrap();
        (one, Channel::from_descriptor(other).unwrap())
    }

    #[test]
    fn descriptors_arrive_with_their_message() {
        let (one, mut other) = ends();
        let listeners: Vec<TcpListener> =
            (0..DESCRIPTORS_MAX).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = listeners.iter().map(AsFd::as_fd).collect();
        let (first, second) = (Message::Taken(vec![1]), Message::Begin {});
        one.send(&first, &borrowed, soon()).unwrap();
        one.send(&second, &[], soon()).unwrap();
        let (message, descriptors) = other.receive(soon()).unwrap();
        assert_eq!(message, first);
        let address = |socket: &OwnedFd| TcpListener::from(socket.try_clone().unwrap()).local_addr().unwrap();
        let expected: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        assert_eq!(descriptors.iter().map(address).collect::<Vec<_>>(), expected);
        let (message, descriptors) = other.receive(soon()).unwrap();
        assert_eq!((message, descriptors.len()), (second, 0));
    }

    #[test]
    fn the_end_and_the_silence_of_the_other_process_are_noticed() {
        let (mut one, other) = ends();
        let silent = one.receive(Instant::now() + Duration::from_millis(20));
        assert!(matches!(silent, Err(ChannelError::TimedOut)), "{silent:?}");
        drop(other);
        assert!(matches!(one.receive(soon()), Err(ChannelError::Closed)));
        assert!(matches!(one.send(&Message::Begin {}, &[], soon()), Err(ChannelError::Closed)));
    }

    #[test]
    fn malformed_and_foreign_messages_are_refused() {
        let (one, mut other) = ends();
        for bytes in [&b"x"[..], b"EVup", &[0xff; 100], b"EVup\0\x01{\"hello\":", b"EVup\xff\xff{}"] {
            send(&one, bytes, SendFlags::NOSIGNAL).unwrap();
            let refused = other.receive(soon());
            assert!(matches!(refused, Err(ChannelError::Message(_))), "{refused:?}");
        }
        send(&one, &vec![b'x'; MESSAGE_BYTES_MAX + 5], SendFlags::NOSIGNAL).unwrap();
        assert!(matches!(other.receive(soon()), Err(ChannelError::Message(MessageError::TooLong(_)))));
    }

    #[test]
    fn other_descriptors_are_no_channel() {
        assert!(Channel::from_descriptor(TcpListener::bind("127.0.0.1:0").unwrap().into()).is_none());
        assert!(Channel::from_descriptor(std::fs::File::open("/dev/null").unwrap().into()).is_none());
    }
}
