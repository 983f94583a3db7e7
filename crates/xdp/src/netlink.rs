//! A small netlink client: requests with attributes, and errors with the kernel's own words (extended ACK).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const HEADER: usize = 16;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
/// Every object instead of one.
pub(crate) const FLAG_DUMP: u16 = 0x300;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
/// Flag of an error whose request is not repeated.
const FLAG_CAPPED: u16 = 0x100;
/// Flag of an error with attributes.
const FLAG_ACK_ATTRIBUTES: u16 = 0x200;
const ERROR_TEXT: u16 = 1;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
/// Bytes of a datagram of the kernel at most.
const DATAGRAM_MAX: usize = 65_536;

/// The kernel refused a request.
#[derive(Debug, thiserror::Error)]
#[error("{}", text.clone().unwrap_or_else(|| error.to_string()))]
pub(crate) struct Refused {
    error: io::Error,
    /// The reason in the kernel's words, if it gave one.
    text: Option<String>,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { error, text: None }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

/// A request with a fixed part and attributes.
#[derive(Debug)]
pub(crate) struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        Self { kind, flags, body: fixed.to_vec() }
    }

    /// Adds an attribute.
    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push(&mut self.body, kind, value);
        self
    }

    /// Adds an attribute that contains attributes.
    pub(crate) fn nested(mut self, kind: u16, attributes: &[(u16, &[u8])]) -> Self {
        let mut inner = Vec::new();
        for (kind, value) in attributes {
            push(&mut inner, *kind, value);
        }
        push(&mut self.body, kind | NESTED, &inner);
        self
    }

    fn emit(&self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(HEADER + self.body.len()).expect("a small request");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((FLAG_REQUEST | FLAG_ACK | self.flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a small attribute");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Attributes of a message, in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Reads the attributes behind the fixed part of a message.
    pub(crate) fn new(message: &'a [u8], fixed: usize) -> Self {
        Self(message.get(fixed..).unwrap_or_default())
    }

    /// Returns the value of the first attribute of a kind.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    pub(crate) fn u8(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }

    pub(crate) fn u16(self, kind: u16) -> Option<u16> {
        Some(u16::from_ne_bytes(self.find(kind)?.get(..2)?.try_into().ok()?))
    }

    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.find(kind)?.get(..4)?.try_into().ok()?))
    }

    pub(crate) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_ne_bytes(self.find(kind)?.get(..8)?.try_into().ok()?))
    }

    pub(crate) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    pub(crate) fn nested(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & KIND_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket of a protocol, such as `NETLINK_ROUTE`.
    pub(crate) fn open(protocol: i32) -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            let on: libc::c_int = 1;
            let size = libc::socklen_t::try_from(size_of_val(&on)).expect("a small value");
            // Kernels before 4.12 have no extended ACK, and then there is no text.
            // SAFETY: the pointer and the size are those of a living variable.
            let _ = unsafe {
                libc::setsockopt(fd, libc::SOL_NETLINK, option, std::ptr::from_ref(&on).cast(), size)
            };
        }
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and returns the messages of its response, without their headers.
    pub(crate) fn request(&mut self, request: &Request) -> Result<Vec<Vec<u8>>, Refused> {
        self.sequence += 1;
        let bytes = request.emit(self.sequence);
        // SAFETY: the pointer and the length are those of a living buffer.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut messages = Vec::new();
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            let received = self.receive(&mut buffer)?;
            let mut rest = &buffer[..received];
            while let Some(message) = Message::next(&mut rest) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    KIND_ERROR => return message.acknowledged().map(|()| messages),
                    KIND_DONE => return Ok(messages),
                    _ => messages.push(message.body.to_vec()),
                }
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the pointer and the length are those of a living buffer.
        let received =
            unsafe { libc::recv(self.socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn next(rest: &mut &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let length = word(0)? as usize;
        let message =
            Self { kind: half(4)?, flags: half(6)?, sequence: word(8)?, body: rest.get(HEADER..length)? };
        *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }

    /// Reads an acknowledgement.
    fn acknowledged(&self) -> Result<(), Refused> {
        let code = self.body.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
        if code == 0 {
            return Ok(());
        }
        // The header of the request comes first, and its body unless the message is capped.
        let request =
            self.body.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
        let repeated = if self.flags & FLAG_CAPPED == 0 { request as usize } else { HEADER };
        let text = (self.flags & FLAG_ACK_ATTRIBUTES != 0)
            .then(|| Attributes::new(self.body, 4 + repeated.next_multiple_of(4)).text(ERROR_TEXT))
            .flatten();
        Err(Refused { error: io::Error::from_raw_os_error(-code), text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let request = Request::new(1, 0, &[9; 4]).attribute(3, b"eth0\0").nested(7, &[(1, &[1, 0, 0, 0])]);
        let attributes = Attributes::new(&request.body, 4);
        assert_eq!(attributes.text(3).as_deref(), Some("eth0"));
        assert_eq!(attributes.nested(7).u32(1), Some(1));
        assert_eq!(attributes.find(8), None);
    }

    #[test]
    fn cut_attributes_end_the_list() {
        let request = Request::new(1, 0, &[]).attribute(3, b"eth0\0").attribute(4, &[1; 8]);
        for length in 0..request.body.len() {
            assert!(Attributes(&request.body[..length]).count() <= 1, "{length} bytes");
        }
    }
}
