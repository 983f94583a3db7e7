//! The control port: each connection carries one line and its response.

use super::front::{ControlAccess, Input, LINE_BYTES_MAX};
use super::settings::{Listen, ListenAddress};
use crate::events::Events;
use crate::unix_socket::{SocketFile, remove_left_over};
use anyhow::Context;
use evener_core::event::Event;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Maximum number of concurrent clients; others wait.
const CLIENTS_MAX: usize = 64;
/// Interval of log lines about refused clients.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit for receiving a line, and for sending a response.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The port, open but not yet served.
#[derive(Debug)]
pub(super) enum Control {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

impl Control {
    /// Opens the port: `[host:]port` or a path.
    pub(super) fn open(text: &str) -> anyhow::Result<Self> {
        let failed = || format!("control port {text}");
        match Listen::parse(text).map_err(anyhow::Error::msg).with_context(failed)?.into_address() {
            ListenAddress::Ip(address, port) => {
                let listener = std::net::TcpListener::bind((address, port)).with_context(failed)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            ListenAddress::Path(path) => {
                remove_left_over(&path).with_context(failed)?;
                let listener = std::os::unix::net::UnixListener::bind(&path).with_context(failed)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, SocketFile::of(&path)))
            }
        }
    }

    /// Serves clients forever. Refused clients are closed immediately, so that they do not use up the limit.
    pub(super) async fn serve(
        self,
        front: mpsc::Sender<Input>,
        access: ControlAccess,
        events: Events,
    ) -> std::io::Result<()> {
        let mut reported: Option<Instant> = None;
        let permits = Arc::new(Semaphore::new(CLIENTS_MAX));
        match self {
            Self::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
                    match listener.accept().await {
                        Ok((stream, peer)) if access.permits(peer.ip()) => {
                            tokio::spawn(serve_client(stream, front.clone(), permit));
                        }
                        // A refused client gets a reset, so that penctl fails as with pen.
                        Ok((stream, peer)) => {
                            let _ = stream.set_zero_linger();
                            if reported.is_none_or(|reported| reported.elapsed() >= REPORT_INTERVAL) {
                                reported = Some(Instant::now());
                                let text =
                                    format!("control port: {} is not permitted", peer.ip().to_canonical());
                                events.emit(&Event::Notice { text });
                            }
                        }
                        Err(_) => pause().await,
                    }
                }
            }
            Self::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
                    match listener.accept().await {
                        Ok((stream, _)) => drop(tokio::spawn(serve_client(stream, front.clone(), permit))),
                        Err(_) => pause().await,
                    }
                }
            }
        }
    }
}

/// Serves one client.
async fn serve_client(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    front: mpsc::Sender<Input>,
    _permit: OwnedSemaphorePermit,
) {
    if let Some(response) = respond(&mut stream, front).await {
        let _ = tokio::time::timeout(TIME_MAX, stream.write_all(response.as_bytes())).await;
    }
}

/// Waits after a connection could not be accepted. Without descriptors the next attempt would fail immediately.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Returns the response to a command; `None` if there is none.
async fn respond(stream: &mut (impl AsyncRead + Unpin), front: mpsc::Sender<Input>) -> Option<String> {
    let line = tokio::time::timeout(TIME_MAX, read_line(stream)).await.ok()??;
    let Received::Line(line) = line else {
        return Some(format!("a command has at most {LINE_BYTES_MAX} bytes: this one was ignored\n"));
    };
    let (response, receiver) = oneshot::channel();
    front.send(Input::Command { line, response }).await.ok()?;
    receiver.await.ok()
}

/// Result of reading a line.
enum Received {
    Line(String),
    /// The line is longer than the maximum. It is not executed in part, which could have another meaning.
    TooLong,
}

/// Reads up to the end of the line, or of the stream.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stream.read(&mut piece).await.ok()?;
        bytes.extend_from_slice(&piece[..read]);
        let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let end = end.or((read == 0).then_some(bytes.len()));
        if end.unwrap_or(bytes.len()) > LINE_BYTES_MAX {
            return Some(Received::TooLong);
        }
        if let Some(end) = end {
            return Some(Received::Line(String::from_utf8_lossy(&bytes[..end]).into_owned()));
        }
    }
}
