//! Network of a client behind a router with address translation, a balancer and a server. The balancer's namespace is
//! the thread's own.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Deadline of everything that takes a moment.
const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace and the process that keeps it alive.
pub(crate) struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a shell script in the namespace of the thread.
pub(crate) fn run(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until a condition holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "no {what} in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let current = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let namespace = Self(Command::new("unshare").args(["--net", "sleep", "180"]).spawn().unwrap());
        wait_until("namespace", || std::fs::read_link(namespace.path()).is_ok_and(|link| link != current));
        namespace.run("ip link set lo up");
        namespace
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    pub(crate) fn run(&self, script: &str) -> String {
        run(&format!("nsenter --net={} -- sh -ec '{script}'", self.path()))
    }

    /// Runs a function on a thread in the namespace.
    pub(crate) fn within<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = std::fs::File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            let network = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), network).unwrap();
            function()
        })
    }
}

/// Connects, and returns the first byte that the server sends.
pub(crate) fn connect(server: SocketAddr) -> std::io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    std::io::Read::read_exact(&mut stream, &mut byte)?;
    Ok(byte[0])
}

/// Moves the thread into a new namespace.
pub(crate) fn leave() {
    // SAFETY: the thread has no state that depends on its namespace.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    run("ip link set lo up");
}

/// Sends frames from an interface of the thread's namespace until `frame` returns `None`. Returns their number.
pub(crate) fn send_frames(index: u32, mut frame: impl FnMut() -> Option<Vec<u8>>) -> u64 {
    let flags = rustix::net::SocketType::RAW;
    let socket = rustix::net::socket(rustix::net::AddressFamily::PACKET, flags, None).unwrap();
    let mut sent = 0;
    while let Some(frame) = frame() {
        let mut address: libc::sockaddr_ll = unsafe_zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        let length = size_of::<libc::sockaddr_ll>() as u32;
        let pointer: *const libc::sockaddr_ll = &raw const address;
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&socket);
        // SAFETY: the buffer and the address are valid for the call, with these lengths.
        let result = unsafe {
            libc::sendto(descriptor, frame.as_ptr().cast(), frame.len(), 0, pointer.cast(), length)
        };
        sent += u64::from(result == frame.len() as isize);
    }
    sent
}

fn unsafe_zeroed() -> libc::sockaddr_ll {
    // SAFETY: the struct has only integers, for which zero is valid.
    unsafe { std::mem::zeroed() }
}
