//! The control port: a connection carries one line in and the answer out.

use super::front::{Input, Who};
use super::state::{Listen, ListenTo};
use crate::compat::pen::front::LINE_BYTES_MAX;
use anyhow::{Context, bail};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// How many may ask at once; others wait.
const ASKING_MAX: usize = 64;
/// How long a line may take to come, and an answer to go.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The port, which nobody hears yet.
#[derive(Debug)]
pub(super) enum Control {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// The file of a unix socket, removed at the end.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Control {
    /// Opens it: `[host:]port` or a path.
    pub(super) fn open(text: &str) -> anyhow::Result<Self> {
        let failed = || format!("control port {text}");
        match Listen::parse(text).map_err(anyhow::Error::msg).with_context(failed)?.to {
            ListenTo::Ip(address, port) => {
                let listener = std::net::TcpListener::bind((address, port)).with_context(failed)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            ListenTo::Path(path) => {
                remove_left_over(&path)?;
                let listener = std::os::unix::net::UnixListener::bind(&path).with_context(failed)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(listener, SocketFile(path)))
            }
        }
    }

    /// Hears who asks, for ever.
    pub(super) async fn serve(self, front: mpsc::Sender<Input>) -> std::io::Result<()> {
        let places = Arc::new(Semaphore::new(ASKING_MAX));
        match self {
            Self::Tcp(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                    let Ok((stream, peer)) = listener.accept().await else {
                        pause().await;
                        continue;
                    };
                    let (front, who) = (front.clone(), Who::Address(peer.ip()));
                    tokio::spawn(async move {
                        let _place = place;
                        let (mut read, mut write) = stream.into_split();
                        if let Some(answer) = ask(&mut read, front, who).await {
                            let _ = tokio::time::timeout(TIME_MAX, write.write_all(answer.as_bytes())).await;
                        }
                    });
                }
            }
            Self::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
                    let Ok((mut stream, _)) = listener.accept().await else {
                        pause().await;
                        continue;
                    };
                    let front = front.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        if let Some(answer) = ask(&mut stream, front, Who::Local).await {
                            let _ = tokio::time::timeout(TIME_MAX, stream.write_all(answer.as_bytes())).await;
                        }
                    });
                }
            }
        }
    }
}

/// Without descriptors an accept fails at once, again and again.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn remove_left_over(path: &Path) -> anyhow::Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        bail!("control port {}: it is there already, and is no socket", path.display());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).with_context(|| format!("control port {}", path.display()))
        }
        _ => bail!("control port {} is in use: another program listens there", path.display()),
    }
}

/// The answer to what comes; `None` when nothing may be answered.
async fn ask(stream: &mut (impl AsyncRead + Unpin), front: mpsc::Sender<Input>, who: Who) -> Option<String> {
    let line = tokio::time::timeout(TIME_MAX, read_line(stream)).await.ok()??;
    let Heard::Line(line) = line else {
        return Some(format!("a command has at most {LINE_BYTES_MAX} bytes: this one was not looked at\n"));
    };
    let (answer, answered) = oneshot::channel();
    front.send(Input::Command { line, who, answer }).await.ok()?;
    answered.await.ok()
}

/// What somebody said.
enum Heard {
    Line(String),
    /// Half of it could mean something else.
    TooLong,
}

/// Up to the end of the line, or of what is sent.
async fn read_line(stream: &mut (impl AsyncRead + Unpin)) -> Option<Heard> {
    let mut bytes = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let read = stream.read(&mut piece).await.ok()?;
        bytes.extend_from_slice(&piece[..read]);
        let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
        let end = end.or((read == 0).then_some(bytes.len()));
        if end.unwrap_or(bytes.len()) > LINE_BYTES_MAX {
            return Some(Heard::TooLong);
        }
        if let Some(end) = end {
            return Some(Heard::Line(String::from_utf8_lossy(&bytes[..end]).into_owned()));
        }
    }
}
