//! Link-local addresses with a zone (RFC 4007). Configurations contain the name of the interface, such as
//! `[fe80::1%eth0]:80`; sockets and the core use its number.

use evener_core::address::AddressError;
use evener_core::spec::ServerSpec;
use evener_core::{Endpoint, Target};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
use std::net::{SocketAddr, SocketAddrV6};

/// Parses an address. The interface may be a name or a number.
pub(crate) fn parse(text: &str) -> Result<Endpoint, AddressError> {
    with_interface_number(text).as_deref().unwrap_or(text).parse()
}

/// Parses an address to listen on. With port 0 the system chooses the port.
pub(crate) fn parse_listen(text: &str) -> Result<Endpoint, AddressError> {
    Endpoint::parse_listen(with_interface_number(text).as_deref().unwrap_or(text))
}

/// Parses the address of a server. If the address has an interface, the text becomes the name of the server,
/// because the number of an interface can change.
pub(crate) fn server(text: &str) -> Result<ServerSpec, AddressError> {
    let endpoint = parse(text)?;
    let has_scope = endpoint.target().is_some_and(|target| scoped(&target).is_some());
    let server = ServerSpec::new(endpoint);
    Ok(if has_scope { ServerSpec { name: text.into(), ..server } } else { server })
}

/// Formats an address with the name of the interface.
pub(crate) fn text(endpoint: &Endpoint) -> String {
    let written = endpoint.target().as_ref().and_then(scoped).and_then(|address| {
        let name = netdevice::index_to_name(any_socket()?, address.scope_id()).ok()?;
        Some(format!("[{}%{name}]:{}", address.ip(), address.port()))
    });
    written.unwrap_or_else(|| endpoint.to_string())
}

fn scoped(target: &Target) -> Option<SocketAddrV6> {
    match target {
        Target::Ip(SocketAddr::V6(address)) if address.scope_id() > 0 => Some(*address),
        _ => None,
    }
}

/// Returns the text with the number of the interface instead of its name, if the interface exists.
fn with_interface_number(text: &str) -> Option<String> {
    let (host, rest) = text.strip_prefix('[')?.split_once('%')?;
    let (name, tail) = rest.split_once(']')?;
    let number = netdevice::name_to_index(any_socket()?, name).ok()?;
    Some(format!("[{host}%{number}]{tail}"))
}

/// Opens a socket for requests to the kernel (netdevice(7)).
fn any_socket() -> Option<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn addresses_have_the_name_or_number_of_an_interface() {
        // The number of the loopback interface is 1 in each network namespace.
        for written in ["[fe80::7%lo]:53", "[fe80::7%1]:53"] {
            let endpoint = parse(written).unwrap();
            assert_eq!(endpoint.to_string(), "[fe80::7%1]:53");
            assert_eq!(text(&endpoint), "[fe80::7%lo]:53");
            let server = server(written).unwrap();
            assert_eq!((&*server.name, server.endpoint), (written, endpoint));
        }
        for written in ["[::1]:53", "10.0.0.1:53", "www.example:53", "/run/a.sock"] {
            assert_eq!(text(&parse(written).unwrap()), written);
            assert_eq!(&*server(written).unwrap().name, written);
        }
        let problem = |written: &str| parse(written).unwrap_err().to_string();
        assert!(problem("[fe80::7%none-such]:53").contains("no interface `none-such`"));
        assert!(problem("[2001:db8::7%lo]:53").contains("only a link-local address"));
        assert!(problem("[%lo]:53").contains("write an IPv6 address"));
        // An unknown interface is written as its number.
        assert_eq!(text(&"[fe80::7%999999]:53".parse().unwrap()), "[fe80::7%999999]:53");
    }
}
