//! Batches of datagrams: recvmmsg(2), sendmmsg(2) and UDP_SEGMENT, which rustix does not wrap.

#[cfg(test)]
mod tests;

use crate::io::control_message::{self, ControlBuffer, Destination, RawAddress};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Usual number of datagrams in a batch, and most datagrams in one receive.
pub(crate) const BATCH: usize = 64;
/// Largest datagram: an IPv4 packet without its headers is 65 507 bytes, an IPv6 one 65 527.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Distance between buffers. It is not a multiple of the page size, so that buffers do not compete for the same
/// cache lines.
const STRIDE: usize = DATAGRAM_BYTES_MAX + 320;
/// Most bytes in one segmented send.
pub(crate) const SEGMENTED_BYTES_MAX: usize = 65_000;

/// Choice whether the TTLs of datagrams are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ttls {
    Received,
    Ignored,
}

/// Local addresses of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// The socket has one address.
    Fixed,
    /// The socket listens on all addresses: each datagram has its own local address.
    Each,
}

/// Buffers for datagrams with their addresses. The system provides the memory as datagrams fill it.
pub(crate) struct Batch {
    buffer: Vec<u8>,
    parts: Vec<libc::iovec>,
    addresses: Vec<RawAddress>,
    controls: Vec<ControlBuffer>,
    headers: Vec<libc::mmsghdr>,
    /// Set if TTLs are received with datagrams.
    ttls: Ttls,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Batch {
    /// Creates room for `room` datagrams.
    pub(crate) fn new(room: usize) -> Self {
        // SAFETY: mmsghdr is plain old data for which all zeroes are valid (null pointers, no lengths).
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let mut batch = Self {
            buffer: vec![0; room * STRIDE],
            parts: Vec::with_capacity(room),
            addresses: vec![RawAddress::EMPTY; room],
            controls: vec![ControlBuffer::EMPTY; room],
            headers: vec![header; room],
            ttls: Ttls::Ignored,
        };
        for chunk in batch.buffer.chunks_exact_mut(STRIDE) {
            batch.parts.push(libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: 0 });
        }
        for index in 0..room {
            // The vectors are never resized, so these pointers stay valid as long as the batch lives.
            let header = &mut batch.headers[index].msg_hdr;
            header.msg_iov = &raw mut batch.parts[index];
            header.msg_iovlen = 1;
        }
        batch
    }

    /// Sets whether the TTLs of datagrams are received with them.
    pub(crate) fn set_ttls(&mut self, ttls: Ttls) {
        self.ttls = ttls;
    }

    /// Receives at most [`BATCH`] datagrams into the batch, from index `from` on; returns their number. A
    /// smaller number means that no datagram is left. `Err` reports that an earlier send was refused.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        from: usize,
        senders: Senders,
        local: Local,
    ) -> Result<usize, Errno> {
        let to = self.headers.len().min(from + BATCH);
        for index in from..to {
            self.parts[index].iov_len = DATAGRAM_BYTES_MAX;
            let header = &mut self.headers[index].msg_hdr;
            (header.msg_name, header.msg_namelen) = match senders {
                Senders::Received => {
                    ((&raw mut self.addresses[index]).cast(), size_of::<RawAddress>() as libc::socklen_t)
                }
                Senders::Ignored => (std::ptr::null_mut(), 0),
            };
            if local == Local::Each || self.ttls == Ttls::Received {
                control_message::expect_messages(header, &mut self.controls[index]);
            } else {
                (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
            }
        }
        let room = (to - from) as libc::c_uint;
        // SAFETY: the headers from `from` on point to buffers, addresses and controls of this batch, which
        // outlive the call; `room` is their number.
        let count = unsafe {
            let first = self.headers.as_mut_ptr().add(from);
            libc::recvmmsg(socket.as_raw_fd(), first, room, libc::MSG_DONTWAIT, std::ptr::null_mut())
        };
        if count < 0 {
            return match last_error() {
                Errno::AGAIN | Errno::INTR => Ok(0),
                error => Err(error),
            };
        }
        for index in from..from + count as usize {
            self.parts[index].iov_len = self.headers[index].msg_len as usize;
        }
        Ok(count as usize)
    }

    /// Returns the bytes of datagram `position`.
    pub(crate) fn bytes_of(&self, position: usize) -> &[u8] {
        &self.buffer[position * STRIDE..position * STRIDE + self.len(position)]
    }

    /// Returns the bytes of datagram `position`, for changes.
    pub(crate) fn bytes_of_mut(&mut self, position: usize) -> &mut [u8] {
        let length = self.len(position);
        &mut self.buffer[position * STRIDE..position * STRIDE + length]
    }

    /// Sets the bytes of datagram `position`; cuts them to the size of a buffer.
    pub(crate) fn set_bytes(&mut self, position: usize, bytes: &[u8]) {
        let length = bytes.len().min(DATAGRAM_BYTES_MAX);
        self.buffer[position * STRIDE..position * STRIDE + length].copy_from_slice(&bytes[..length]);
        self.parts[position].iov_len = length;
    }

    /// Removes the first `count` bytes of datagram `position`.
    pub(crate) fn strip(&mut self, position: usize, count: usize) {
        let (start, length) = (position * STRIDE, self.len(position));
        debug_assert!(count <= length, "the datagram has that many bytes");
        self.buffer.copy_within(start + count..start + length, start);
        self.parts[position].iov_len -= count;
    }

    /// Inserts `bytes` before datagram `position`. The number of bytes is limited by the reserve of a buffer.
    pub(crate) fn prepend(&mut self, position: usize, bytes: &[u8]) {
        let (start, length) = (position * STRIDE, self.len(position));
        debug_assert!(bytes.len() <= STRIDE - DATAGRAM_BYTES_MAX, "a PROXY header without names is short");
        self.buffer.copy_within(start..start + length, start + bytes.len());
        self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
        self.parts[position].iov_len += bytes.len();
    }

    /// Returns the length of datagram `position`.
    pub(crate) fn len(&self, position: usize) -> usize {
        self.parts[position].iov_len
    }

    /// Returns the message and the part of datagram `position` for the kernel, after
    /// [`Batch::set_destination`]. Both point into this batch.
    pub(crate) fn prepared(&self, position: usize) -> (libc::msghdr, libc::iovec) {
        (self.headers[position].msg_hdr, self.parts[position])
    }

    /// Returns the sender of datagram `position`.
    pub(crate) fn sender(&self, position: usize) -> Option<SocketAddr> {
        self.addresses[position].read()
    }

    /// Returns the source address for the response to datagram `position`, if it was received with
    /// [`Local::Each`]: the destination address of the datagram. For a broadcast it is the address that the
    /// kernel would choose (ip(7)). For an IPv6 multicast group it is `None`, so that the kernel chooses,
    /// because a packet cannot come from such an address (RFC 1122, section 3.2.1.3; RFC 4291, section 2.7).
    pub(crate) fn local(&self, position: usize) -> Option<IpAddr> {
        self.destination(position)?.source_of_response()
    }

    /// Returns whether datagram `position`, received with [`Local::Each`], was sent to a broadcast address or a
    /// group. Each socket of the port gets a copy of such a datagram.
    pub(crate) fn is_broadcast_or_multicast(&self, position: usize) -> bool {
        self.destination(position).is_some_and(|destination| destination.is_broadcast_or_multicast())
    }

    fn destination(&self, position: usize) -> Option<Destination> {
        // SAFETY: the kernel filled msg_control, a buffer of this batch, up to msg_controllen; or it is null.
        unsafe { Destination::read(&self.headers[position].msg_hdr) }
    }

    /// Returns the TTL of datagram `position`, if TTLs were received.
    pub(crate) fn ttl(&self, position: usize) -> Option<u8> {
        if self.ttls == Ttls::Ignored {
            return None;
        }
        // SAFETY: as in `destination`.
        unsafe { control_message::read_ttl(&self.headers[position].msg_hdr) }
    }

    /// Sets the destination of datagram `position`, and its source address.
    pub(crate) fn set_destination(&mut self, position: usize, client: SocketAddr, local: Option<IpAddr>) {
        let length = self.addresses[position].write(client);
        let name = (&raw mut self.addresses[position]).cast();
        let header = &mut self.headers[position].msg_hdr;
        (header.msg_name, header.msg_namelen) = (name, length);
        (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
        if let Some(local) = local {
            control_message::write_source(header, &mut self.controls[position], local);
        }
    }

    /// Sends the datagrams of `range`, each to its own destination.
    pub(crate) fn send_addressed(&mut self, socket: BorrowedFd<'_>, range: Range<usize>) -> Sent {
        let mut sent = Sent::default();
        let (mut next, to) = (range.start, range.end);
        while next < to {
            // SAFETY: headers `next..to` point into this batch and were filled by `set_destination`.
            let taken = unsafe {
                let first = self.headers.as_mut_ptr().add(next);
                libc::sendmmsg(socket.as_raw_fd(), first, (to - next) as libc::c_uint, libc::MSG_NOSIGNAL)
            };
            if taken > 0 {
                sent.taken += taken as usize;
                next += taken as usize;
            } else {
                match last_error() {
                    Errno::INTR => {}
                    error => {
                        // The first datagram failed, and the next ones may still be sent, unless the buffer is
                        // full.
                        sent.count_failure(error);
                        next = if error == Errno::AGAIN { to } else { next + 1 };
                    }
                }
            }
        }
        sent
    }

    /// Sends these datagrams over a connected socket: in one segmented send if they have one length, else one
    /// by one. Stops at the first datagram that the kernel refuses.
    pub(crate) fn send_connected(&self, socket: BorrowedFd<'_>, indices: &[usize]) -> InOrder {
        if indices.len() > 1 && self.is_segmentable(indices) {
            match self.send_segmented(socket, indices, self.len(indices[0]) as u16) {
                Ok(()) => return (indices.len(), None),
                // The kernel refuses segments that are too large for the route: then the datagrams are sent one
                // by one.
                Err(Errno::INVAL | Errno::MSGSIZE | Errno::IO) => {}
                Err(error) => return (0, Some(error)),
            }
        }
        for (taken, &index) in indices.iter().enumerate() {
            if let Err(error) = self.send_one(socket, index) {
                return (taken, Some(error));
            }
        }
        (indices.len(), None)
    }

    /// Returns whether one segmented send can carry these datagrams: all have one length, but the last one may
    /// be shorter.
    fn is_segmentable(&self, indices: &[usize]) -> bool {
        let Some((&last, body)) = indices.split_last() else { return false };
        let size = self.len(indices[0]);
        let equal = body.iter().all(|&index| self.len(index) == size) && (1..=size).contains(&self.len(last));
        equal && self.bytes(indices) <= SEGMENTED_BYTES_MAX as u64
    }

    /// Returns the total length of these datagrams.
    pub(crate) fn bytes(&self, indices: &[usize]) -> u64 {
        indices.iter().map(|&index| self.len(index) as u64).sum()
    }

    fn send_one(&self, socket: BorrowedFd<'_>, position: usize) -> Result<(), Errno> {
        let part = &self.parts[position];
        // SAFETY: the part points to iov_len initialised bytes of this batch's buffer.
        let sent = unsafe { libc::send(socket.as_raw_fd(), part.iov_base, part.iov_len, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(last_error()) } else { Ok(()) }
    }

    /// Sends one message that the kernel cuts into datagrams of `size` bytes.
    fn send_segmented(&self, socket: BorrowedFd<'_>, indices: &[usize], size: u16) -> Result<(), Errno> {
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        parts.iter_mut().zip(indices).for_each(|(part, &index)| *part = self.parts[index]);
        let mut control = ControlBuffer::EMPTY;
        // SAFETY: all zeroes are a valid msghdr.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = parts.as_mut_ptr();
        header.msg_iovlen = indices.len();
        control_message::write_segment_size(&mut header, &mut control, size);
        // SAFETY: the header points to parts, to their buffers and to a control message, which outlive the
        // call.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(last_error()) } else { Ok(()) }
    }
}

/// Result of sending datagrams in order: the number that the kernel took, and the error of the next one.
pub(crate) type InOrder = (usize, Option<Errno>);

/// Choice whether the sender addresses of datagrams are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Senders {
    Received,
    /// The socket is connected: all datagrams come from its peer.
    Ignored,
}

/// Result of sending a batch, each datagram to its own destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Number of datagrams that the kernel took.
    taken: usize,
    /// The send buffer was full.
    is_full: bool,
    /// Number of datagrams that failed otherwise.
    failed: usize,
}

impl Sent {
    /// Returns the number of datagrams that the kernel took.
    pub(crate) fn count(&self) -> usize {
        self.taken
    }

    pub(super) fn count_taken(&mut self, datagrams: usize) {
        self.taken += datagrams;
    }

    pub(super) fn count_failure(&mut self, error: Errno) {
        if error == Errno::AGAIN {
            self.is_full = true;
        } else {
            self.failed += 1;
        }
    }
}

pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

// SAFETY: the raw pointers point into the batch's own vectors, which move with it to another thread.
unsafe impl Send for Batch {}
