//! A server's end of tunnels: takes packets out of IP in IP and GUE and gives them to the kernel through a TUN device. (The
//! kernels of these tests have no devices of these kinds.)

use crate::network::Namespace;
use std::collections::HashMap;
use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const IFF_TUN: u16 = 1;
const IFF_NO_PI: u16 = 0x1000;
const TUNSETIFF: libc::Ioctl = 0x4004_54ca as libc::Ioctl;
const UDP_NO_CHECK6_RX: c_int = 102;
const GUE_PORT: u16 = 6080;

/// The running decapsulator.
pub(crate) struct Decapsulator {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    received: Arc<Mutex<HashMap<IpAddr, u64>>>,
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// A raw socket or the socket of GUE.
struct Source {
    socket: OwnedFd,
    /// Packets begin with the IPv4 header of the tunnel.
    has_header: bool,
}

fn set_option(socket: &OwnedFd, level: c_int, option: c_int) {
    let one: c_int = 1;
    // SAFETY: the value is an int that lives during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const one).cast(),
            size_of::<c_int>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn open(family: c_int, kind: c_int, protocol: c_int) -> OwnedFd {
    // SAFETY: the call has no pointers.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and has no other owner.
    unsafe { OwnedFd::from_raw_fd(socket) }
}

fn open_tun() -> File {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // struct ifreq: a name of 16 bytes, and the flags.
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"tun0");
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: the request is as long as a struct ifreq.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun
}

/// Opens the sockets: IPv4 and IPv6 in both, and GUE over IPv4 and IPv6.
fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for protocol in [4, 41] {
        sources.push(Source { socket: open(libc::AF_INET, libc::SOCK_RAW, protocol), has_header: true });
        sources.push(Source { socket: open(libc::AF_INET6, libc::SOCK_RAW, protocol), has_header: false });
    }
    for address in ["0.0.0.0", "::"] {
        let address: IpAddr = address.parse().unwrap();
        let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = open(family, libc::SOCK_DGRAM, 0);
        if address.is_ipv6() {
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
            set_option(&socket, libc::IPPROTO_UDP, UDP_NO_CHECK6_RX);
        }
        rustix::net::bind(&socket, &std::net::SocketAddr::new(address, GUE_PORT)).unwrap();
        sources.push(Source { socket, has_header: false });
    }
    sources
}

impl Decapsulator {
    /// Starts the decapsulator in a namespace.
    pub(crate) fn start(namespace: &Namespace) -> Self {
        let (tun, sources) = namespace.enter(|| (open_tun(), sources()));
        namespace.run("echo 0 >/proc/sys/net/ipv4/conf/tun0/rp_filter; ip link set tun0 up");
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(Mutex::new(HashMap::new()));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&received));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                pass_packets(&tun, &sources, &counted);
            }
        });
        Self { stop, thread: Some(thread), received }
    }

    /// Returns how many packets came through tunnels of IP in IPv4, by the address of the tunnel's end, since the last call.
    pub(crate) fn take_received(&self) -> HashMap<IpAddr, u64> {
        std::mem::take(&mut self.received.lock().unwrap())
    }
}

/// Waits a moment for packets, and passes those that came.
fn pass_packets(tun: &File, sources: &[Source], received: &Mutex<HashMap<IpAddr, u64>>) {
    let mut polled: Vec<libc::pollfd> = sources
        .iter()
        .map(|source| libc::pollfd { fd: source.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    // SAFETY: the array lives during the call and has the given length.
    unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as u64, 100) };
    let mut buffer = [0; 65536];
    for source in sources {
        while let Ok((length, _)) =
            rustix::net::recv(&source.socket, &mut buffer[..], rustix::net::RecvFlags::empty())
        {
            let mut packet = &buffer[..length];
            if source.has_header {
                let end = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
                *received.lock().unwrap().entry(end.into()).or_default() += 1;
                packet = &packet[usize::from(packet[0] & 0xf) * 4..];
            }
            // A packet that the kernel refuses is lost, as on a network.
            let _ = (&*tun).write(packet);
        }
    }
}
