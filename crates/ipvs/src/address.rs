//! Virtual addresses on interfaces of this machine, by rtnetlink: routing daemons and VRRP announce an address while it is
//! there.

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};
use std::io::{self, ErrorKind};
use std::net::IpAddr;

const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const KIND_ERROR: u16 = 2;
const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_EXCLUSIVE: u16 = 0x200;
const FLAG_CREATE: u16 = 0x400;
const ATTRIBUTE_ADDRESS: u16 = 1;
const ATTRIBUTE_LOCAL: u16 = 2;
/// The address is used without a search for duplicates: several machines may have it, one at a time.
const NO_DUPLICATE_SEARCH: u8 = 2;
const HEADER: usize = 16;

/// Outcome of adding an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Added {
    /// The address is new.
    New,
    /// The interface has it already.
    Present,
}

/// Adds an address with the prefix of one host to an interface.
///
/// # Errors
/// There is no such interface, or the process lacks CAP_NET_ADMIN.
pub fn add(address: IpAddr, interface: &str) -> io::Result<Added> {
    let flags = FLAG_CREATE | FLAG_EXCLUSIVE;
    match request(NEW_ADDRESS, flags, address, index_of(interface)?) {
        Ok(()) => Ok(Added::New),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(Added::Present),
        Err(error) => Err(error),
    }
}

/// Removes an address from an interface. An address that is not there is not an error.
///
/// # Errors
/// There is no such interface, or the process lacks CAP_NET_ADMIN.
pub fn remove(address: IpAddr, interface: &str) -> io::Result<()> {
    match request(DELETE_ADDRESS, 0, address, index_of(interface)?) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

fn index_of(interface: &str) -> io::Result<u32> {
    let no_interface = || io::Error::new(ErrorKind::NotFound, format!("there is no interface {interface}"));
    // sysfs may show the interfaces of another network namespace.
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    name_to_index(&socket, interface).map_err(|error| match error {
        Errno::NODEV => no_interface(),
        other => other.into(),
    })
}

fn request(kind: u16, flags: u16, address: IpAddr, interface: u32) -> io::Result<()> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&message(kind, flags, address, interface), &SocketAddr::new(0, 0), 0)?;
    let (reply, _) = socket.recv_from_full()?;
    acknowledged(&reply)
}

/// Encodes a request: the header of netlink, `struct ifaddrmsg` and the address twice (rtnetlink(7)).
fn message(kind: u16, flags: u16, address: IpAddr, interface: u32) -> Vec<u8> {
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (family, bits) = if address.is_ipv4() { (libc::AF_INET, 32) } else { (libc::AF_INET6, 128) };
    let mut body = vec![family as u8, bits, NO_DUPLICATE_SEARCH, 0];
    body.extend(interface.to_ne_bytes());
    for attribute in [ATTRIBUTE_LOCAL, ATTRIBUTE_ADDRESS] {
        body.extend((4 + bytes.len() as u16).to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(&bytes);
    }
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((FLAG_REQUEST | FLAG_ACK | flags).to_ne_bytes());
    message.extend([1_u32, 0].iter().flat_map(|word| word.to_ne_bytes()));
    message.extend(body);
    message
}

/// Returns the result of a request from its response.
fn acknowledged(reply: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::other("the response of the kernel is malformed");
    let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = reply.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(KIND_ERROR), Some(0)) => Ok(()),
        (Some(KIND_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_layout_of_the_kernel() {
        let v4 = message(NEW_ADDRESS, FLAG_CREATE, IpAddr::from([192, 0, 2, 1]), 7);
        assert_eq!(v4.len(), 16 + 8 + 2 * 8);
        assert_eq!(v4[..4], 40_u32.to_ne_bytes());
        assert_eq!(v4[16..24], [2, 32, 2, 0, 7, 0, 0, 0]);
        assert_eq!(v4[24..32], [8, 0, 2, 0, 192, 0, 2, 1]);
        let v6 = message(DELETE_ADDRESS, 0, "2001:db8::1".parse().expect("an address"), 1);
        assert_eq!(v6.len(), 16 + 8 + 2 * 20);
        assert_eq!(v6[16..18], [10, 128]);
    }

    #[test]
    fn malformed_responses_are_errors() {
        let mut reply = vec![0; 20];
        reply[4] = 2;
        assert!(acknowledged(&reply).is_ok());
        reply[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(acknowledged(&reply).expect_err("EEXIST").raw_os_error(), Some(libc::EEXIST));
        for length in 0..20 {
            assert!(acknowledged(&reply[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn an_unknown_interface_is_named() {
        let error = add(IpAddr::from([192, 0, 2, 1]), "nosuch0").expect_err("no interface");
        assert_eq!(error.to_string(), "there is no interface nosuch0");
    }
}
