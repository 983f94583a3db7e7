//! Batches of datagrams: recvmmsg(2), sendmmsg(2) and UDP_SEGMENT, which rustix does not wrap.

#[cfg(test)]
mod tests;

use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::io::Errno;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;

/// Number of datagrams in a batch, unless another number is given.
pub(crate) const BATCH: usize = 64;
/// The largest datagram: an IPv4 packet without its headers is 65 507 bytes, an IPv6 one 65 527.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Buffers begin at different offsets of a page; otherwise they would compete for the same cache lines.
const STRIDE: usize = DATAGRAM_BYTES_MAX + 320;
/// The most bytes in one segmented send.
pub(crate) const SEGMENTED_BYTES_MAX: usize = 65_000;
/// Room for one IPV6_PKTINFO (20 bytes) or IP_PKTINFO (12 bytes), and one IP_TTL or IPV6_HOPLIMIT (4 bytes) behind it, with
/// their headers and alignment.
const CONTROL_BYTES: usize = 64;

/// An address as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    const EMPTY: Self = Self { v6: EMPTY_V6 };

    fn read(&self) -> Option<SocketAddr> {
        // SAFETY: every variant begins with the family and is plain old data; all bytes were initialised by EMPTY.
        unsafe {
            match i32::from(self.family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(u32::from_be(self.v4.sin_addr.s_addr));
                    Some(SocketAddrV4::new(ip, u16::from_be(self.v4.sin_port)).into())
                }
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    Some(SocketAddrV6::new(ip, port, self.v6.sin6_flowinfo, self.v6.sin6_scope_id).into())
                }
                _ => None,
            }
        }
    }

    fn write(&mut self, address: SocketAddr) -> libc::socklen_t {
        match address {
            SocketAddr::V4(address) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(address) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
                size_of::<libc::sockaddr_in6>() as libc::socklen_t
            }
        }
    }
}

const EMPTY_V6: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: 0,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// The local addresses of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// The socket has one address.
    Fixed,
    /// The socket listens on all addresses: each datagram has its own.
    Each,
}

/// The addresses of a datagram that arrived.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// The destination address in its header.
    to: IpAddr,
    /// The local address that belongs to it.
    ours: IpAddr,
}

/// Buffers for datagrams with their addresses. Memory is taken from the system as datagrams fill it.
pub(crate) struct Batch {
    buffer: Vec<u8>,
    parts: Vec<libc::iovec>,
    addresses: Vec<RawAddress>,
    controls: Vec<Control>,
    headers: Vec<libc::mmsghdr>,
    /// TTLs are received, too.
    wants_ttl: bool,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Batch").finish_non_exhaustive()
    }
}

impl Batch {
    /// Creates room for so many datagrams.
    pub(crate) fn new(room: usize) -> Self {
        // SAFETY: mmsghdr is plain old data for which all zeroes are valid (null pointers, no lengths).
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let mut batch = Self {
            buffer: vec![0; room * STRIDE],
            parts: Vec::with_capacity(room),
            addresses: vec![RawAddress::EMPTY; room],
            controls: vec![Control([0; CONTROL_BYTES]); room],
            headers: vec![header; room],
            wants_ttl: false,
        };
        for chunk in batch.buffer.chunks_exact_mut(STRIDE) {
            batch.parts.push(libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: 0 });
        }
        for at in 0..room {
            // The vectors are never resized, so these pointers stay valid as long as the batch lives.
            let header = &mut batch.headers[at].msg_hdr;
            header.msg_iov = &raw mut batch.parts[at];
            header.msg_iovlen = 1;
        }
        batch
    }

    /// Has the TTLs of datagrams received from now on, or no longer.
    pub(crate) fn receive_ttls(&mut self, wanted: bool) {
        self.wants_ttl = wanted;
    }

    /// Receives at most [`BATCH`] datagrams into the batch, from index `from` on; returns their number. Fewer than
    /// that mean that nothing is left. `Err` reports an earlier send that was refused.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        from: usize,
        names: Names,
        local: Local,
    ) -> Result<usize, Errno> {
        let to = self.headers.len().min(from + BATCH);
        for at in from..to {
            self.parts[at].iov_len = DATAGRAM_BYTES_MAX;
            let header = &mut self.headers[at].msg_hdr;
            (header.msg_name, header.msg_namelen) = match names {
                Names::Wanted => {
                    ((&raw mut self.addresses[at]).cast(), size_of::<RawAddress>() as libc::socklen_t)
                }
                Names::Unwanted => (std::ptr::null_mut(), 0),
            };
            (header.msg_control, header.msg_controllen) = if local == Local::Each || self.wants_ttl {
                ((&raw mut self.controls[at]).cast(), CONTROL_BYTES)
            } else {
                (std::ptr::null_mut(), 0)
            };
        }
        let room = (to - from) as libc::c_uint;
        // SAFETY: the headers from `from` on point to buffers, addresses and controls of this batch, which outlive the
        // call; `room` is their number.
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
        for at in from..from + count as usize {
            self.parts[at].iov_len = self.headers[at].msg_len as usize;
        }
        Ok(count as usize)
    }

    /// The bytes of datagram `nth`.
    pub(crate) fn bytes_of(&self, nth: usize) -> &[u8] {
        &self.buffer[nth * STRIDE..nth * STRIDE + self.len(nth)]
    }

    /// The bytes of datagram `nth`, for changes.
    pub(crate) fn bytes_of_mut(&mut self, nth: usize) -> &mut [u8] {
        let length = self.len(nth);
        &mut self.buffer[nth * STRIDE..nth * STRIDE + length]
    }

    /// Makes `bytes` datagram `nth`, cut to the size of a buffer.
    pub(crate) fn put(&mut self, nth: usize, bytes: &[u8]) {
        let length = bytes.len().min(DATAGRAM_BYTES_MAX);
        self.buffer[nth * STRIDE..nth * STRIDE + length].copy_from_slice(&bytes[..length]);
        self.parts[nth].iov_len = length;
    }

    /// Removes the first `count` bytes of datagram `nth`.
    pub(crate) fn strip(&mut self, nth: usize, count: usize) {
        let (start, length) = (nth * STRIDE, self.len(nth));
        debug_assert!(count <= length, "no more than there is");
        self.buffer.copy_within(start + count..start + length, start);
        self.parts[nth].iov_len -= count;
    }

    /// Puts `bytes` before datagram `nth`; at most as many as a buffer exceeds a datagram.
    pub(crate) fn prepend(&mut self, nth: usize, bytes: &[u8]) {
        let (start, length) = (nth * STRIDE, self.len(nth));
        debug_assert!(bytes.len() <= STRIDE - DATAGRAM_BYTES_MAX, "a PROXY header without names is short");
        self.buffer.copy_within(start..start + length, start + bytes.len());
        self.buffer[start..start + bytes.len()].copy_from_slice(bytes);
        self.parts[nth].iov_len += bytes.len();
    }

    /// The length of datagram `nth`.
    pub(crate) fn len(&self, nth: usize) -> usize {
        self.parts[nth].iov_len
    }

    /// The message and the part of datagram `nth` for the kernel, after [`Batch::address`]. Both point into this
    /// batch.
    pub(crate) fn prepared(&self, nth: usize) -> (libc::msghdr, libc::iovec) {
        (self.headers[nth].msg_hdr, self.parts[nth])
    }

    /// The sender of datagram `nth`.
    pub(crate) fn sender(&self, nth: usize) -> Option<SocketAddr> {
        self.addresses[nth].read()
    }

    /// The local address for the response to datagram `nth`, if it was received with [`Local::Each`]: the one that it
    /// was sent to. For a broadcast it is the one that the kernel would choose (ip(7)); for an IPv6 multicast group
    /// there is none, so that the kernel chooses. A packet cannot come from such an address (RFC 1122, section
    /// 3.2.1.3; RFC 4291, section 2.7).
    pub(crate) fn local(&self, nth: usize) -> Option<IpAddr> {
        self.arrival(nth)
            .map(|arrival| arrival.ours)
            .filter(|ours| !ours.is_unspecified() && !ours.is_multicast())
    }

    /// Returns whether datagram `nth`, received with [`Local::Each`], was sent to a broadcast address or a group.
    /// Each socket of the port gets a copy of such a datagram.
    pub(crate) fn is_for_all(&self, nth: usize) -> bool {
        self.arrival(nth).is_some_and(|arrival| arrival.to != arrival.ours || arrival.to.is_multicast())
    }

    fn arrival(&self, nth: usize) -> Option<Arrival> {
        let header = &self.headers[nth].msg_hdr;
        // SAFETY: the kernel filled msg_control, a buffer of this batch, up to msg_controllen; the macros stay inside.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(header).as_ref()?;
            let data = libc::CMSG_DATA(control);
            match (control.cmsg_level, control.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let address = |raw: libc::in_addr| Ipv4Addr::from(u32::from_be(raw.s_addr)).into();
                    Some(Arrival { to: address(info.ipi_addr), ours: address(info.ipi_spec_dst) })
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let to = Ipv6Addr::from(info.ipi6_addr.s6_addr).into();
                    Some(Arrival { to, ours: to })
                }
                _ => None,
            }
        }
    }

    /// The TTL of datagram `nth`, if TTLs were received.
    pub(crate) fn ttl(&self, nth: usize) -> Option<u8> {
        if !self.wants_ttl {
            return None;
        }
        let header = &self.headers[nth].msg_hdr;
        // SAFETY: as in `local`; the two options have an int each.
        unsafe {
            let mut next = libc::CMSG_FIRSTHDR(header);
            while let Some(control) = next.as_ref() {
                if matches!(
                    (control.cmsg_level, control.cmsg_type),
                    (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
                ) {
                    let ttl = libc::CMSG_DATA(control).cast::<libc::c_int>().read_unaligned();
                    return u8::try_from(ttl).ok();
                }
                next = libc::CMSG_NXTHDR(header, control);
            }
        }
        None
    }

    /// Sets the destination of datagram `nth`, and the local address that it comes from.
    pub(crate) fn address(&mut self, nth: usize, client: SocketAddr, local: Option<IpAddr>) {
        let length = self.addresses[nth].write(client);
        let name = (&raw mut self.addresses[nth]).cast();
        let header = &mut self.headers[nth].msg_hdr;
        (header.msg_name, header.msg_namelen) = (name, length);
        (header.msg_control, header.msg_controllen) = (std::ptr::null_mut(), 0);
        if let Some(local) = local {
            header.msg_control = (&raw mut self.controls[nth]).cast();
            header.msg_controllen = CONTROL_BYTES;
            write_local(header, local);
        }
    }

    /// Sends datagrams `from..to`, each to its own address. Returns how many the kernel took, and why it refused the
    /// others.
    pub(crate) fn send_addressed(&mut self, socket: BorrowedFd<'_>, range: Range<usize>) -> Sent {
        let mut sent = Sent::default();
        let (mut at, to) = (range.start, range.end);
        while at < to {
            // SAFETY: headers `at..to` point into this batch and were filled by `address`.
            let taken = unsafe {
                let first = self.headers.as_mut_ptr().add(at);
                libc::sendmmsg(socket.as_raw_fd(), first, (to - at) as libc::c_uint, libc::MSG_NOSIGNAL)
            };
            if taken > 0 {
                sent.taken += taken as usize;
                at += taken as usize;
            } else {
                match last_error() {
                    Errno::INTR => {}
                    error => {
                        // The first one failed, and the next ones follow. When the buffer is full, all others would
                        // fail as well.
                        sent.lost(error);
                        at = if error == Errno::AGAIN { to } else { at + 1 };
                    }
                }
            }
        }
        sent
    }

    /// Sends these datagrams over a connected socket: one, or a run of equal lengths in one segmented send, or one by
    /// one. Returns how many the kernel took, and why it refused the next one.
    pub(crate) fn send_connected(&self, socket: BorrowedFd<'_>, indices: &[usize]) -> Delivered {
        if indices.len() > 1 && self.is_run(indices) {
            match self.send_segmented(socket, indices, self.len(indices[0]) as u16) {
                Ok(()) => return Delivered { taken: indices.len(), error: None },
                // The kernel refuses segments that are too large for the route: they go one by one then.
                Err(Errno::INVAL | Errno::MSGSIZE | Errno::IO) => {}
                Err(error) => return Delivered { taken: 0, error: Some(error) },
            }
        }
        for (taken, &at) in indices.iter().enumerate() {
            if let Err(error) = self.send_one(socket, at) {
                return Delivered { taken, error: Some(error) };
            }
        }
        Delivered { taken: indices.len(), error: None }
    }

    /// Returns whether these datagrams can go as one segmented send: all have one length, but the last one may be
    /// shorter.
    fn is_run(&self, indices: &[usize]) -> bool {
        let Some((&last, body)) = indices.split_last() else { return false };
        let size = self.len(indices[0]);
        let equal = body.iter().all(|&at| self.len(at) == size) && (1..=size).contains(&self.len(last));
        equal && self.bytes(indices) <= SEGMENTED_BYTES_MAX as u64
    }

    /// The total length of these datagrams.
    pub(crate) fn bytes(&self, indices: &[usize]) -> u64 {
        indices.iter().map(|&at| self.len(at) as u64).sum()
    }

    fn send_one(&self, socket: BorrowedFd<'_>, nth: usize) -> Result<(), Errno> {
        let part = &self.parts[nth];
        // SAFETY: the part points to iov_len initialised bytes of this batch's buffer.
        let sent = unsafe { libc::send(socket.as_raw_fd(), part.iov_base, part.iov_len, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(last_error()) } else { Ok(()) }
    }

    /// Sends a message that the kernel cuts into datagrams (UDP_SEGMENT, Linux 4.18, `Documentation/networking/udp`).
    fn send_segmented(&self, socket: BorrowedFd<'_>, indices: &[usize], size: u16) -> Result<(), Errno> {
        let mut parts = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH];
        parts.iter_mut().zip(indices).for_each(|(part, &at)| *part = self.parts[at]);
        let mut control = Control([0; CONTROL_BYTES]);
        // SAFETY: all zeroes are a valid msghdr; the pointers set here outlive the call, and the control buffer has room
        // for one u16 with its header.
        let sent = unsafe {
            let mut header: libc::msghdr = mem::zeroed();
            header.msg_iov = parts.as_mut_ptr();
            header.msg_iovlen = indices.len();
            header.msg_control = (&raw mut control).cast();
            header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
            put_control(&header, (libc::SOL_UDP, libc::UDP_SEGMENT), size);
            libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL)
        };
        if sent < 0 { Err(last_error()) } else { Ok(()) }
    }
}

/// The result of sending datagrams of a flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    pub(crate) taken: usize,
    pub(crate) error: Option<Errno>,
}

/// The senders of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Wanted,
    /// The socket is connected.
    Unwanted,
}

/// The result of sending a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) taken: usize,
    /// The send buffer was full.
    pub(crate) full: bool,
    /// Number of datagrams that failed otherwise.
    pub(crate) failed: usize,
}

impl Sent {
    pub(crate) fn lost(&mut self, error: Errno) {
        if error == Errno::AGAIN {
            self.full = true;
        } else {
            self.failed += 1;
        }
    }
}

pub(crate) fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Writes the source address of a response (ip(7), ipv6(7)).
fn write_local(header: &mut libc::msghdr, local: IpAddr) {
    // SAFETY: msg_control points to CONTROL_BYTES bytes, enough for either with its header.
    unsafe {
        match local {
            IpAddr::V4(local) => {
                let address = libc::in_addr { s_addr: u32::from(local).to_be() };
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: address,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                put_control(header, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
                header.msg_controllen = libc::CMSG_SPACE(size_of_val(&info) as u32) as usize;
            }
            IpAddr::V6(local) => {
                let address = libc::in6_addr { s6_addr: local.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
                put_control(header, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
                header.msg_controllen = libc::CMSG_SPACE(size_of_val(&info) as u32) as usize;
            }
        }
    }
}

/// Writes one control message.
///
/// # Safety
/// `header.msg_control` must point to a writable, aligned buffer of `msg_controllen` bytes, enough for `value`.
pub(crate) unsafe fn put_control<T: Copy>(header: &libc::msghdr, (level, kind): (i32, i32), value: T) {
    // SAFETY: as the caller promises; CMSG_FIRSTHDR is null only when the buffer is too small.
    unsafe {
        let Some(control) = libc::CMSG_FIRSTHDR(header).as_mut() else { return };
        control.cmsg_level = level;
        control.cmsg_type = kind;
        control.cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as usize;
        libc::CMSG_DATA(control).cast::<T>().write_unaligned(value);
    }
}

// SAFETY: the raw pointers point into the batch's own vectors, which move with it to another thread.
unsafe impl Send for Batch {}
