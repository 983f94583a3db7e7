//! A socket of generic netlink, and the number of the family `IPVS`.

use crate::error::ErrorKind;
use crate::exchange::Exchange;
use crate::message::Message;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader};
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Time for the kernel to respond. The kernel responds within a system call, so this is a safety net.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a datagram of the kernel at most.
const DATAGRAM_MAX: usize = 65_536;

/// Number of the family that numbers families.
const GENERIC_CONTROL: u16 = 16;

/// Number of objects that a request reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// A change, or one object
    One,
    /// Every object
    All,
}

pub(super) struct Socket {
    socket: netlink_sys::Socket,
    family: u16,
    sequence: u32,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Socket").field("family", &self.family).finish_non_exhaustive()
    }
}

impl Socket {
    pub(super) fn open() -> Result<Self, ErrorKind> {
        let mut socket = netlink_sys::Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // An acknowledgement without a copy of its request: more of them fit the buffer.
        socket.set_cap_ack(true)?;
        // SAFETY: the socket lives longer than the borrowed descriptor.
        let descriptor = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
        set_socket_timeout(descriptor, Timeout::Recv, Some(PATIENCE)).map_err(io::Error::from)?;
        let mut opened = Self { socket, family: 0, sequence: 1, buffer: vec![0; DATAGRAM_MAX] };
        opened.family = opened.resolve()?;
        Ok(opened)
    }

    /// Returns the number of the family. The kernel loads the module of a family that it does not have.
    fn resolve(&mut self) -> Result<u16, ErrorKind> {
        let name = GenlCtrlAttrs::FamilyName(Message::family_name().to_owned());
        let request = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![name] };
        let generic =
            GenlHeader { cmd: GenlFamily::command(&request), version: GenlFamily::version(&request) };
        let mut message = NetlinkMessage::new(
            header(NLM_F_REQUEST, self.sequence),
            NetlinkPayload::from(GenlMessage::new(generic, request, GENERIC_CONTROL)),
        );
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.send(&bytes)?;
        let length = self.receive(Instant::now() + PATIENCE)?;
        let response = NetlinkMessage::<GenlMessage<GenlCtrl>>::deserialize(&self.buffer[..length])
            .map_err(|error| ErrorKind::Unreadable(error.to_string()))?;
        self.sequence += 1;
        match response.payload {
            NetlinkPayload::InnerMessage(message) => message
                .payload
                .nlas
                .iter()
                .find_map(|nla| if let GenlCtrlAttrs::FamilyId(id) = nla { Some(*id) } else { None })
                .ok_or_else(|| ErrorKind::Unreadable("a family without a number".to_owned())),
            NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => Err(ErrorKind::NoIpvs),
            NetlinkPayload::Error(error) => Err(error.to_io().into()),
            _ => Err(ErrorKind::Unreadable("the number of the family".to_owned())),
        }
    }

    /// Sends requests in one datagram and waits for all responses.
    pub(super) fn exchange(&mut self, requests: &[Message], mode: Mode) -> Result<Exchange, ErrorKind> {
        let first = self.sequence;
        let mut bytes = Vec::new();
        let flags = NLM_F_REQUEST | if mode == Mode::All { NLM_F_DUMP } else { NLM_F_ACK };
        for request in requests {
            let generic = GenlMessage::new(
                GenlHeader { cmd: request.command(), version: request.version() },
                request.clone(),
                self.family,
            );
            let mut message =
                NetlinkMessage::new(header(flags, self.sequence), NetlinkPayload::from(generic));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
            self.sequence = self.sequence.wrapping_add(1);
        }
        self.send(&bytes)?;
        let mut exchange = Exchange::new(first, requests.len());
        let deadline = Instant::now() + PATIENCE;
        while !exchange.is_complete() {
            let length = self.receive(deadline)?;
            exchange.read(&self.buffer[..length])?;
        }
        Ok(exchange)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), ErrorKind> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero).into()) }
    }

    fn receive(&mut self, deadline: Instant) -> Result<usize, ErrorKind> {
        loop {
            if Instant::now() > deadline {
                return Err(ErrorKind::TimedOut(PATIENCE.as_secs()));
            }
            match self.socket.recv(&mut &mut self.buffer[..], 0) {
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(ErrorKind::TimedOut(PATIENCE.as_secs()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn header(flags: u16, sequence: u32) -> NetlinkHeader {
    let mut header = NetlinkHeader::default();
    (header.flags, header.sequence_number) = (flags, sequence);
    header
}
