//! A server for the protocol of mname-balancer, whose responses the test chooses.

use crate::harness::dns::{Nameserver, address, framed, read_framed, service};
use crate::harness::{Directory, wait_until};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A frame that a balancer sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Hello,
    Udp {
        from: SocketAddrV4,
        message: Vec<u8>,
    },
    Tcp {
        from: SocketAddrV4,
    },
    Heartbeat,
    /// A DNS message of an accepted TCP session, sent without a frame header
    Message(Vec<u8>),
}

/// A frame with these words.
pub(crate) fn frame(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn hello() -> Vec<u8> {
    frame(&[1001])
}

pub(crate) fn outbound(to: SocketAddrV4, data: &[u8]) -> Vec<u8> {
    let header = frame(&[1002, (*to.ip()).into(), to.port().into(), data.len() as u32]);
    [&header[..], data].concat()
}

pub(crate) fn accepted() -> Vec<u8> {
    frame(&[1003])
}

pub(crate) fn alive() -> Vec<u8> {
    frame(&[1004])
}

/// Responds to a frame as the protocol requires, and to each query with the address 192.0.2.`host`.
pub(crate) fn respond(frame: &Frame, mut back: &UnixStream, host: u8) {
    let bytes = match frame {
        Frame::Hello => hello(),
        Frame::Udp { from, message } => outbound(*from, &address(message, 60, host)),
        Frame::Tcp { .. } => accepted(),
        Frame::Heartbeat => alive(),
        Frame::Message(message) => framed(&address(message, 60, host)),
    };
    let _ = back.write_all(&bytes);
}

fn word(mut stream: &UnixStream) -> Option<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).ok()?;
    Some(u32::from_le_bytes(bytes))
}

fn source(stream: &UnixStream) -> Option<SocketAddrV4> {
    let address = Ipv4Addr::from(word(stream)?);
    Some(SocketAddrV4::new(address, word(stream)?.try_into().unwrap()))
}

fn read_frame(mut stream: &UnixStream) -> Option<Frame> {
    match word(stream)? {
        1 => Some(Frame::Hello),
        2 => {
            let from = source(stream)?;
            let length = word(stream)?;
            assert!(length <= 1500, "expected at most 1500 bytes of payload in a frame, got {length}");
            let mut message = vec![0; length as usize];
            stream.read_exact(&mut message).ok()?;
            Some(Frame::Udp { from, message })
        }
        3 => Some(Frame::Tcp { from: source(stream)? }),
        4 => Some(Frame::Heartbeat),
        other => panic!("unknown frame type {other}"),
    }
}

#[derive(Default)]
struct Shared {
    frames: Mutex<Vec<Frame>>,
    open: AtomicUsize,
    stopped: AtomicBool,
    streams: Mutex<Vec<UnixStream>>,
}

/// A server on a unix socket.
pub(crate) struct MnameServer {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The directory of the socket, unless the test chose its path
    _directory: Option<Directory>,
}

impl MnameServer {
    /// Starts a server that passes each frame to `serve`.
    pub(crate) fn start(serve: impl Fn(&Frame, &UnixStream) + Send + Sync + 'static) -> Self {
        let directory = Directory::new();
        let mut backend = Self::start_at(directory.file("socket"), serve);
        backend._directory = Some(directory);
        backend
    }

    pub(crate) fn start_at(
        path: PathBuf,
        serve: impl Fn(&Frame, &UnixStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = wait_until("the socket", || UnixListener::bind(&path).ok());
        listener.set_nonblocking(true).unwrap();
        let (shared, serve) = (Arc::new(Shared::default()), Arc::new(serve));
        let state = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !state.stopped.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                state.streams.lock().unwrap().push(stream.try_clone().unwrap());
                let (state, serve) = (Arc::clone(&state), Arc::clone(&serve));
                std::thread::spawn(move || serve_connection(&stream, &state, &*serve));
            }
        });
        Self { path, shared, thread: Some(thread), _directory: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name of the server in the configuration.
    pub(crate) fn name(&self) -> String {
        format!("m{}", self.path.display())
    }

    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.shared.frames.lock().unwrap().clone()
    }

    /// Returns the number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }
}

fn serve_connection(stream: &UnixStream, state: &Shared, serve: &(impl Fn(&Frame, &UnixStream) + ?Sized)) {
    state.open.fetch_add(1, Ordering::Relaxed);
    let mut is_tcp = false;
    while let Some(frame) =
        if is_tcp { read_framed(&mut &*stream).map(Frame::Message) } else { read_frame(stream) }
    {
        is_tcp |= matches!(frame, Frame::Tcp { .. });
        state.frames.lock().unwrap().push(frame.clone());
        serve(&frame, stream);
    }
    state.open.fetch_sub(1, Ordering::Relaxed);
}

impl Drop for MnameServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.thread.take().into_iter().for_each(|thread| drop(thread.join()));
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The configuration of a service `d` with mname servers and other servers.
pub(crate) fn mname_service(
    listen: u16,
    backends: &[&MnameServer],
    servers: &[&Nameserver],
    more: &str,
) -> String {
    let backends: String = backends
        .iter()
        .map(|backend| {
            format!(
                "{{ \"unix:{}\", mname = true, name = \"{}\" }}, ",
                backend.path().display(),
                backend.name()
            )
        })
        .collect();
    let servers: String = servers.iter().map(|server| format!("\"{}\", ", server.name())).collect();
    service(listen, &[], &format!("{backends} {servers} {more}"))
}
