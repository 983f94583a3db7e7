//! Listening sockets that the service manager opened before the program started (socket activation,
//! sd_listen_fds(3)). Reads the environment once; matching sockets with services is the caller's part.

use crate::io::listener::Bound;
use crate::io::sys;
use evener_core::Endpoint;
use evener_core::spec::{ServiceOptions, Transport};
use rustix::fd::OwnedFd;
use socket2::{SockAddr, Socket, Type};
use std::io;
use std::path::PathBuf;

/// Maximum number of sockets.
const SOCKETS_MAX: usize = 4096;

/// A listening socket that the program inherited.
#[derive(Debug)]
pub struct Inherited {
    /// Address that the socket is bound to.
    pub address: Endpoint,
    /// Transport of its clients.
    pub transport: Transport,
    socket: Socket,
}

/// Takes the sockets that were passed to this process. Later calls return none. The second list has a text for each
/// descriptor that is not a socket for a service; these descriptors are closed.
#[must_use]
pub fn inherited_sockets() -> (Vec<Inherited>, Vec<String>) {
    let variable = |name| std::env::var(name).ok();
    let count = passed(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id());
    let (mut sockets, mut refused) = (Vec::new(), Vec::new());
    for (number, descriptor) in sys::take_passed(count.min(SOCKETS_MAX)) {
        match Inherited::new(descriptor) {
            Ok(socket) => sockets.push(socket),
            Err(reason) => refused.push(format!("descriptor {number} {reason}")),
        }
    }
    if count > SOCKETS_MAX {
        refused.push(format!("{count} sockets were passed, and only {SOCKETS_MAX} are used"));
    }
    (sockets, refused)
}

/// Returns the number of sockets that the service manager passed, if it passed them to this process.
fn passed(process: Option<String>, count: Option<String>, this: u32) -> usize {
    let is_for_this = process.and_then(|process| process.parse().ok()) == Some(this);
    count.filter(|_| is_for_this).and_then(|count| count.parse().ok()).unwrap_or(0)
}

impl Inherited {
    fn new(descriptor: OwnedFd) -> Result<Self, String> {
        let socket = Socket::from(descriptor);
        let failed = |error: io::Error| format!("is not a listening socket: {error}");
        let transport = match socket.r#type().map_err(failed)? {
            Type::STREAM if socket.is_listener().map_err(failed)? => Transport::Stream,
            Type::STREAM => return Err("is a connection, not a listening socket (Accept=yes?)".into()),
            Type::DGRAM => Transport::Datagram,
            _ => return Err("is neither a socket for connections nor one for datagrams".into()),
        };
        let address = endpoint(&socket.local_addr().map_err(failed)?)
            .filter(|address| transport == Transport::Stream || matches!(address, Endpoint::Ip(_)));
        let address = address.ok_or("is a socket of another address family")?;
        Ok(Self { address, transport, socket })
    }

    /// Prepares the socket for workers. Connections are accepted by all workers; datagrams are received by one, so
    /// that the datagrams of a client meet its flow. The file of a unix socket belongs to the service manager.
    ///
    /// # Errors
    /// The socket refuses an option, or there is no descriptor left.
    pub fn into_bound(self, options: &ServiceOptions, workers: usize) -> io::Result<Bound> {
        let Self { address, transport, socket } = self;
        Bound::of_inherited(socket, address, transport, options, workers)
    }
}

fn endpoint(address: &SockAddr) -> Option<Endpoint> {
    if let Some(address) = address.as_socket() {
        return Some(Endpoint::Ip(address));
    }
    if let Some(name) = address.as_abstract_namespace() {
        return Some(Endpoint::Unix(PathBuf::from(format!("@{}", std::str::from_utf8(name).ok()?))));
    }
    address.as_pathname().map(|path| Endpoint::Unix(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::spec::Protocol;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_are_only_for_the_process_that_they_were_passed_to() {
        let check = |process: Option<&str>, count: Option<&str>, expected| {
            assert_eq!(passed(process.map(str::to_owned), count.map(str::to_owned), 7), expected);
        };
        check(Some("7"), Some("3"), 3);
        check(Some("8"), Some("3"), 0);
        check(None, Some("3"), 0);
        check(Some("7"), None, 0);
        check(Some("7"), Some("-1"), 0);
    }

    #[test]
    fn listening_sockets_are_recognized_and_others_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let inherited = Inherited::new(listener.into()).unwrap();
        assert_eq!((&inherited.address, inherited.transport), (&Endpoint::Ip(address), Transport::Stream));
        let options = ServiceOptions::of(Protocol::Tcp);
        let bound = inherited.into_bound(&options, 3).unwrap();
        assert_eq!(bound.address, Endpoint::Ip(address));
        assert_eq!(bound.into_sockets().count(), 3);

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inherited = Inherited::new(socket.into()).unwrap();
        assert_eq!(inherited.transport, Transport::Datagram);
        assert_eq!(inherited.into_bound(&options, 3).unwrap().into_sockets().count(), 1);

        let refused = |descriptor: OwnedFd| Inherited::new(descriptor).unwrap_err();
        assert!(refused(client.into()).contains("is a connection"));
        assert!(refused(std::fs::File::open("/dev/null").unwrap().into()).contains("not a listening socket"));
    }

    #[test]
    fn the_file_of_an_inherited_unix_socket_stays() {
        let path = std::env::temp_dir().join(format!("evener-inherited-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let inherited = Inherited::new(listener.into()).unwrap();
        assert_eq!(inherited.address, Endpoint::Unix(path.clone()));
        drop(inherited.into_bound(&ServiceOptions::of(Protocol::Tcp), 2).unwrap());
        assert!(path.exists());
        std::fs::remove_file(path).unwrap();
    }
}
