//! Socket addresses and control messages in the form of the kernel (cmsg(3)): source and destination addresses,
//! TTLs, and the segment size of UDP_SEGMENT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for one IPV6_PKTINFO (20 bytes) or IP_PKTINFO (12 bytes), and one further message of at most 4 bytes
/// (IP_TTL, IPV6_HOPLIMIT or UDP_SEGMENT) behind it, with their headers and alignment.
const CONTROL_BYTES: usize = 64;

/// Room for the control messages of one datagram.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct ControlBuffer([u8; CONTROL_BYTES]);

impl ControlBuffer {
    pub(super) const EMPTY: Self = Self([0; CONTROL_BYTES]);
}

/// Socket address as the kernel reads and writes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    pub(super) const EMPTY: Self = Self { v6: EMPTY_V6 };

    /// Returns the address; `None` when it is neither IPv4 nor IPv6.
    pub(super) fn read(&self) -> Option<SocketAddr> {
        // SAFETY: every variant begins with the family and is plain old data; all bytes were initialised by
        // EMPTY.
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

    /// Stores an address, and returns its length for the kernel.
    pub(super) fn write(&mut self, address: SocketAddr) -> libc::socklen_t {
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

/// Destination of a datagram that was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination {
    /// Destination address in the header of the datagram.
    address: IpAddr,
    /// Local address for a response. It differs from `address` if that is an IPv4 broadcast address or
    /// multicast group.
    local: IpAddr,
}

impl Destination {
    /// Returns whether the datagram was sent to a broadcast address or a multicast group.
    pub(super) fn is_broadcast_or_multicast(&self) -> bool {
        self.address != self.local || self.address.is_multicast()
    }

    /// Returns the source address for a response; `None` leaves the choice to the kernel.
    pub(super) fn source_of_response(&self) -> Option<IpAddr> {
        Some(self.local).filter(|local| !local.is_unspecified() && !local.is_multicast())
    }

    /// Reads the first control message.
    ///
    /// # Safety
    /// `header.msg_control` is null, or points to `msg_controllen` bytes that the kernel filled.
    pub(super) unsafe fn read(header: &libc::msghdr) -> Option<Self> {
        // SAFETY: as the caller promises; the macros stay inside the buffer.
        unsafe {
            let control = libc::CMSG_FIRSTHDR(header).as_ref()?;
            let data = libc::CMSG_DATA(control);
            match (control.cmsg_level, control.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let address = |raw: libc::in_addr| Ipv4Addr::from(u32::from_be(raw.s_addr)).into();
                    Some(Self { address: address(info.ipi_addr), local: address(info.ipi_spec_dst) })
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr).into();
                    Some(Self { address, local: address })
                }
                _ => None,
            }
        }
    }
}

/// Reads the TTL of a datagram, if its control messages have one.
///
/// # Safety
/// `header.msg_control` is null, or points to `msg_controllen` bytes that the kernel filled.
pub(super) unsafe fn read_ttl(header: &libc::msghdr) -> Option<u8> {
    // SAFETY: as the caller promises; the macros stay inside the buffer, and the two options have an int each.
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

/// Prepares `header` for a receive that writes control messages into `control`.
pub(super) fn expect_messages(header: &mut libc::msghdr, control: &mut ControlBuffer) {
    (header.msg_control, header.msg_controllen) = ((&raw mut *control).cast(), CONTROL_BYTES);
}

/// Writes the source address of a response (ip(7), ipv6(7)).
pub(super) fn write_source(header: &mut libc::msghdr, control: &mut ControlBuffer, source: IpAddr) {
    header.msg_control = (&raw mut *control).cast();
    header.msg_controllen = CONTROL_BYTES;
    // SAFETY: msg_control points to CONTROL_BYTES bytes, enough for either structure with its header.
    unsafe {
        match source {
            IpAddr::V4(source) => {
                let address = libc::in_addr { s_addr: u32::from(source).to_be() };
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: address,
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                write_message(header, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
                header.msg_controllen = libc::CMSG_SPACE(size_of_val(&info) as u32) as usize;
            }
            IpAddr::V6(source) => {
                let address = libc::in6_addr { s6_addr: source.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: 0 };
                write_message(header, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
                header.msg_controllen = libc::CMSG_SPACE(size_of_val(&info) as u32) as usize;
            }
        }
    }
}

/// Makes the kernel cut a message into datagrams of this length (UDP_SEGMENT, Linux 4.18,
/// `Documentation/networking/udp`). The message may have a source address already, which is copied into
/// `control`.
pub(super) fn write_segment_size(header: &mut libc::msghdr, control: &mut ControlBuffer, length: u16) {
    let present = header.msg_controllen;
    debug_assert!(present + 24 <= CONTROL_BYTES, "there is room for both messages");
    // SAFETY: msg_control of the header has `present` bytes, and `control` has room for them and one u16 with
    // its header; a message is as long as its alignment requires, so that the next one is aligned, too.
    unsafe {
        if present > 0 {
            std::ptr::copy_nonoverlapping(header.msg_control.cast::<u8>(), control.0.as_mut_ptr(), present);
        }
        let space = libc::CMSG_SPACE(size_of::<u16>() as u32) as usize;
        (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().add(present).cast(), space);
        write_message(header, (libc::SOL_UDP, libc::UDP_SEGMENT), length);
        (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), present + space);
    }
}

/// Writes one control message.
///
/// # Safety
/// `header.msg_control` must point to a writable, aligned buffer of `msg_controllen` bytes, enough for `value`.
unsafe fn write_message<T: Copy>(header: &libc::msghdr, (level, kind): (i32, i32), value: T) {
    // SAFETY: as the caller promises; CMSG_FIRSTHDR is null only when the buffer is too small.
    unsafe {
        let Some(control) = libc::CMSG_FIRSTHDR(header).as_mut() else { return };
        control.cmsg_level = level;
        control.cmsg_type = kind;
        control.cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as usize;
        libc::CMSG_DATA(control).cast::<T>().write_unaligned(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_form_of_the_kernel() {
        for address in ["192.0.2.1:65535", "[2001:db8::1]:53", "0.0.0.0:0", "[fe80::1%3]:7"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut raw = RawAddress::EMPTY;
            let length = raw.write(address);
            assert_eq!((raw.read(), length > 0), (Some(address), true));
        }
        assert_eq!(RawAddress::EMPTY.read(), None);
    }
}
