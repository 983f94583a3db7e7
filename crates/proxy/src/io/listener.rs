//! Listening sockets. The control thread opens them before it applies a configuration, so that a failure
//! changes nothing.

mod adoption;

pub use adoption::AdoptError;

use crate::io::batch::Local;
use evener_core::Endpoint;
use evener_core::address::abstract_name;
use evener_core::spec::{ServiceOptions, Transport};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::sockopt;
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Requested buffer size of a datagram socket.
const DATAGRAM_BUFFER_BYTES: usize = 4 << 20;

/// Reason why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program listens on the address.
    #[error("{0} is in use: another program listens there (`ss -lntup` shows which)")]
    InUse(Endpoint),
    /// The path belongs to a file that is not a socket.
    #[error("{0} exists and is not a socket: remove the file or choose another path")]
    NotASocket(Endpoint),
    /// The port is below 1024, or the directory is not writable.
    #[error(
        "cannot listen on {0}: permission denied; a port below 1024 needs root or CAP_NET_BIND_SERVICE, a unix socket needs write access to its directory"
    )]
    Permission(Endpoint),
    /// No interface has the address.
    #[error(
        "{0} is not an address of this machine (`ip address` lists them); set `freebind = true` to listen on an address that is added later"
    )]
    NotLocal(Endpoint),
    /// The directory of the socket does not exist.
    #[error("cannot create {0}: its directory does not exist")]
    NoDirectory(Endpoint),
    /// Datagram services have no unix sockets.
    #[error("{0}: a udp or dns service listens on IP addresses only")]
    UnixDatagram(Endpoint),
    /// Another error.
    #[error("cannot listen on {0}: {1}")]
    Other(Endpoint, io::Error),
}

impl BindError {
    fn new(address: &Endpoint, error: io::Error) -> Self {
        let address = address.clone();
        match error.kind() {
            io::ErrorKind::AddrInUse if matches!(&address, Endpoint::Unix(path) if is_other_file(path)) => {
                Self::NotASocket(address)
            }
            io::ErrorKind::AddrInUse => Self::InUse(address),
            io::ErrorKind::PermissionDenied => Self::Permission(address),
            io::ErrorKind::AddrNotAvailable => Self::NotLocal(address),
            io::ErrorKind::NotFound => Self::NoDirectory(address),
            _ => Self::Other(address, error),
        }
    }
}

/// Listening sockets at one address, one for each worker.
#[derive(Debug)]
pub struct Bound {
    /// Configured address. A port of 0 is replaced by the port that the system chose.
    pub address: Endpoint,
    transport: Transport,
    sockets: Vec<OwnedFd>,
    unix: Option<UnixPath>,
}

/// Listening socket of one worker.
#[derive(Debug)]
pub(crate) enum ListeningSocket {
    /// Accepts connections. The listeners of all workers share the path of a unix socket.
    Stream(OwnedFd, Option<Arc<UnixPath>>),
    /// Receives datagrams.
    Datagram(OwnedFd, Local),
}

impl ListeningSocket {
    /// Returns the [number](socket_number) of the socket.
    pub(crate) fn number(&self) -> io::Result<u64> {
        let (Self::Stream(socket, _) | Self::Datagram(socket, _)) = self;
        socket_number(socket)
    }
}

/// Returns the number of a socket, which is the same for all copies of its descriptor in all processes.
///
/// # Errors
/// The descriptor is closed.
pub fn socket_number(socket: impl AsFd) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

impl Bound {
    /// Returns the socket of each worker.
    pub(crate) fn into_sockets(self) -> impl Iterator<Item = ListeningSocket> {
        let on_all = matches!(self.address, Endpoint::Ip(address) if address.ip().is_unspecified());
        let local = if on_all { Local::Each } else { Local::Fixed };
        let (transport, unix) = (self.transport, self.unix.map(Arc::new));
        self.sockets.into_iter().map(move |socket| match transport {
            Transport::Stream => ListeningSocket::Stream(socket, unix.clone()),
            Transport::Datagram => ListeningSocket::Datagram(socket, local),
        })
    }
}

/// Path of a local unix socket; the file is removed when no worker listens on it any more.
#[derive(Debug)]
pub(crate) struct UnixPath {
    path: PathBuf,
    /// Device and inode. The file is removed only if they are unchanged: the next instance, or another program,
    /// may have bound a socket of its own to the path.
    identity: Option<(u64, u64)>,
    /// Another process listens on the same socket, and owns the file.
    is_passed_on: AtomicBool,
}

impl UnixPath {
    /// Records the path of a socket of this process.
    fn of(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path), is_passed_on: AtomicBool::new(false) }
    }

    /// Leaves the file to another process that listens on the same socket.
    pub(crate) fn pass_on(&self) {
        self.is_passed_on.store(true, Ordering::Relaxed);
    }
}

impl Drop for UnixPath {
    fn drop(&mut self) {
        if !self.is_passed_on.load(Ordering::Relaxed) && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Use of a port by other listeners of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// No other listener of this process uses the port.
    None,
    /// Another listener of this process has the port, on an address that includes this one or is included in
    /// it.
    Overlapping,
}

/// Opens sockets at `address` for `workers` workers, without disturbing other programs.
pub fn bind(
    address: &Endpoint,
    transport: Transport,
    options: &ServiceOptions,
    workers: usize,
    sharing: Sharing,
) -> Result<Bound, BindError> {
    let failed = |error| BindError::new(address, error);
    match (address, transport) {
        (Endpoint::Ip(ip), _) => {
            let (sockets, ip) = bind_ip(*ip, transport, options, workers, sharing).map_err(failed)?;
            Ok(Bound { address: Endpoint::Ip(ip), transport, sockets, unix: None })
        }
        (Endpoint::Unix(path), Transport::Stream) => {
            let sockets = bind_unix(path, options, workers).map_err(failed)?;
            let unix = abstract_name(path).is_none().then(|| UnixPath::of(path));
            Ok(Bound { address: address.clone(), transport, sockets, unix })
        }
        (Endpoint::Unix(_), Transport::Datagram) => Err(BindError::UnixDatagram(address.clone())),
        (Endpoint::Host { .. }, _) => {
            let unresolved =
                io::Error::new(io::ErrorKind::InvalidInput, "listen addresses are IP addresses or paths");
            Err(BindError::Other(address.clone(), unresolved))
        }
    }
}

fn bind_ip(
    address: SocketAddr,
    transport: Transport,
    options: &ServiceOptions,
    workers: usize,
    sharing: Sharing,
) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    let bound = if sharing == Sharing::None { find_free(address, transport, options)? } else { address };
    let sockets = (0..workers.max(1)).map(|_| {
        let socket = open(bound, transport, options)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound.into())?;
        if transport == Transport::Stream {
            apply_options(&socket, options)?;
            socket.listen(backlog(options))?;
        }
        Ok(OwnedFd::from(socket))
    });
    Ok((sockets.collect::<io::Result<_>>()?, bound))
}

/// Returns the address if it is free. A port of 0 is replaced by the port that the system chose.
fn find_free(address: SocketAddr, transport: Transport, options: &ServiceOptions) -> io::Result<SocketAddr> {
    // With SO_REUSEPORT alone a second instance would silently take a share of the clients. Binding a socket
    // without the option detects other listeners.
    let alone = open(address, transport, options)?;
    alone.bind(&address.into())?;
    if transport == Transport::Stream {
        alone.listen(1)?;
    }
    Ok(alone.local_addr()?.as_socket().unwrap_or(address))
}

fn open(address: SocketAddr, transport: Transport, options: &ServiceOptions) -> io::Result<Socket> {
    let kind = if transport == Transport::Stream { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // `0.0.0.0:80` and `[::]:80` are two addresses, whether net.ipv6.bindv6only is set or not.
        socket.set_only_v6(true)?;
    }
    if options.freebind {
        let level_and_name = if address.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_FREEBIND)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)
        };
        crate::io::sys::set_flag(socket.as_fd(), level_and_name)?;
    }
    match transport {
        Transport::Stream => socket.set_reuse_address(true)?,
        Transport::Datagram => prepare_datagrams(&socket, address)?,
    }
    Ok(socket)
}

fn prepare_datagrams(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    grow_buffers(socket);
    if address.ip().is_unspecified() {
        // Responses must come from the address that the client sent to: the kernel reports it with each
        // datagram.
        let level_and_name = if address.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_PKTINFO)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
        };
        crate::io::sys::set_flag(socket.as_fd(), level_and_name)?;
    }
    Ok(())
}

/// Grows the buffers, so that bursts are queued instead of dropped. A smaller size is not an error.
pub(crate) fn grow_buffers(socket: impl AsFd) {
    let socket = socket.as_fd();
    for name in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        let _ = crate::io::sys::set_int(socket, (libc::SOL_SOCKET, name), DATAGRAM_BUFFER_BYTES as i32);
    }
    if sockopt::socket_recv_buffer_size(socket).is_ok_and(|bytes| bytes < DATAGRAM_BUFFER_BYTES) {
        let _ = sockopt::set_socket_recv_buffer_size(socket, DATAGRAM_BUFFER_BYTES);
        let _ = sockopt::set_socket_send_buffer_size(socket, DATAGRAM_BUFFER_BYTES);
    }
}

fn bind_unix(path: &Path, options: &ServiceOptions, workers: usize) -> io::Result<Vec<OwnedFd>> {
    let name = abstract_name(path);
    if name.is_none() {
        remove_stale(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // A path that begins with a null byte is an abstract name (unix(7)).
    let address = name.map_or_else(|| SockAddr::unix(path), |name| SockAddr::unix(format!("\0{name}")));
    socket.bind(&address?)?;
    if let Some(mode) = options.unix_mode.filter(|_| name.is_none()) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(backlog(options))?;
    // Unix sockets have no SO_REUSEPORT: the workers share one socket.
    copies(socket, workers)
}

/// Returns a descriptor of the socket for each worker.
fn copies(socket: Socket, workers: usize) -> io::Result<Vec<OwnedFd>> {
    let copies = (1..workers.max(1)).map(|_| socket.try_clone());
    let mut sockets: Vec<OwnedFd> = copies.map(|copy| copy.map(OwnedFd::from)).collect::<io::Result<_>>()?;
    sockets.push(socket.into());
    Ok(sockets)
}

impl Bound {
    /// Prepares a bound socket of another program as one that this program opened. Workers share the socket.
    pub(crate) fn of_inherited(
        socket: Socket,
        address: Endpoint,
        transport: Transport,
        options: &ServiceOptions,
        workers: usize,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        match (transport, &address) {
            (Transport::Stream, Endpoint::Ip(_)) => apply_options(&socket, options)?,
            (Transport::Datagram, Endpoint::Ip(ip)) => prepare_datagrams(&socket, *ip)?,
            (_, Endpoint::Unix(_) | Endpoint::Host { .. }) => {}
        }
        let sockets = match transport {
            Transport::Stream => {
                socket.listen(backlog(options))?;
                copies(socket, workers)?
            }
            Transport::Datagram => vec![socket.into()],
        };
        Ok(Self { address, transport, sockets, unix: None })
    }
}

/// Removes a socket file on which no program listens any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let refused = || UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket(path) && refused() { std::fs::remove_file(path) } else { Ok(()) }
}

/// Returns whether the path belongs to a file other than a socket.
fn is_other_file(path: &Path) -> bool {
    abstract_name(path).is_none() && !is_socket(path)
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn backlog(options: &ServiceOptions) -> i32 {
    options.backlog.min(i32::MAX as u32) as i32
}

/// Sets options that accepted sockets inherit from their listener (tcp(7)), which saves system calls for each
/// connection.
fn apply_options(socket: &Socket, options: &ServiceOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(options.nodelay)?;
    socket.set_keepalive(options.keepalive.is_some())?;
    if let Some(after) = options.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after))?;
    }
    Ok(())
}

/// Applies the options of a new configuration to a listener for connections.
pub(crate) fn reconfigure(socket: &OwnedFd, options: &ServiceOptions) {
    let Ok(copy) = socket.try_clone() else { return };
    let socket = Socket::from(copy);
    if socket.domain().is_ok_and(|domain| domain != Domain::UNIX) {
        let _ = apply_options(&socket, options);
    }
    // On a listening socket this only changes the length of the queue (listen(2)).
    let _ = socket.listen(backlog(options));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// New directory that is removed with its contents.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("evener-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn bind_one(address: &Endpoint, transport: Transport) -> Result<Bound, BindError> {
        let options = ServiceOptions::of(evener_core::spec::Protocol::Tcp);
        bind(address, transport, &options, 2, Sharing::None)
    }

    #[test]
    fn workers_share_a_port_that_the_system_chose_and_no_other_program_does() {
        for transport in [Transport::Stream, Transport::Datagram] {
            let bound =
                bind_one(&"127.0.0.1:0".parse::<SocketAddr>().map(Endpoint::Ip).unwrap(), transport).unwrap();
            let Endpoint::Ip(address) = bound.address else { panic!("another kind of address") };
            assert!(address.port() > 0 && bound.sockets.len() == 2);
            for socket in &bound.sockets {
                let local = rustix::net::getsockname(socket).unwrap();
                assert_eq!(SocketAddr::try_from(local), Ok(address));
            }
            assert!(matches!(bind_one(&Endpoint::Ip(address), transport), Err(BindError::InUse(_))));
        }
    }

    #[test]
    fn an_address_that_cannot_be_listened_on_is_explained() {
        let directory = Directory::new("bind-errors");
        let file = directory.0.join("file");
        std::fs::write(&file, "not a socket").unwrap();
        let check = |address: Endpoint, transport: Transport, expected: fn(&BindError) -> bool| {
            let error = bind_one(&address, transport).expect_err("the address cannot be bound");
            assert!(expected(&error), "{address}: {error}");
        };
        let not_local = Endpoint::Ip("192.0.2.1:0".parse().unwrap());
        check(not_local, Transport::Stream, |error| matches!(error, BindError::NotLocal(_)));
        check(Endpoint::Unix(file.clone()), Transport::Stream, |error| {
            matches!(error, BindError::NotASocket(_))
        });
        let nowhere = Endpoint::Unix(directory.0.join("missing").join("socket"));
        check(nowhere, Transport::Stream, |error| matches!(error, BindError::NoDirectory(_)));
        let unix = Endpoint::Unix(directory.0.join("socket"));
        check(unix, Transport::Datagram, |error| matches!(error, BindError::UnixDatagram(_)));
        let host = Endpoint::Host { name: "www.example".into(), port: 80 };
        check(host, Transport::Stream, |error| matches!(error, BindError::Other(..)));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "not a socket", "the file is unchanged");
    }

    #[test]
    fn a_unix_socket_replaces_a_stale_one_and_is_removed_with_its_listeners() {
        let directory = Directory::new("unix-sockets");
        let path = directory.0.join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = Endpoint::Unix(path.clone());
        let bound = bind_one(&address, Transport::Stream).expect("no program listens there");
        assert_eq!(bound.sockets.len(), 2);
        assert!(matches!(bind_one(&address, Transport::Stream), Err(BindError::InUse(_))));
        // Another instance takes over the path before the first one closes.
        std::fs::remove_file(&path).unwrap();
        let successor = bind_one(&address, Transport::Stream).unwrap();
        drop(bound);
        assert!(path.exists(), "the socket of the successor stays");
        drop(successor);
        assert!(!path.exists());
    }
}
