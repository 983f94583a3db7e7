//! Request logs: files, UDP collectors and the system's log, and the thread that writes to them. Callers never wait to queue a
//! line. After a rotation, [`RequestLogs::reopen`] continues in a new file.

use crate::config::{Config, Problem};
use crate::events::Events;
use arc_swap::ArcSwap;
use evener_core::event::Event;
use evener_core::spec::{LogDestination, RequestLog as RequestLogSpec};
use evener_proxy::{LogForm, Queued, RequestLog};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Maximum number of queued lines of all logs. Further lines are counted and dropped.
const LINES_MAX: usize = 8192;
/// Maximum number of lines in one write.
const BATCH_LINES: usize = 1024;
/// Time limit for the last lines at the end of the program.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Time limit for a line to the system's log.
const SYSLOG_TIMEOUT: Duration = Duration::from_millis(200);

const FLUSH_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// All request logs.
pub(crate) struct RequestLogs {
    /// Log of the program, for errors.
    events: Events,
    /// Queue of the writing thread, started with the first log.
    writer: Option<SyncSender<Message>>,
    running: Vec<Running>,
}

/// A log that services use.
struct Running {
    spec: RequestLogSpec,
    output: Arc<Output>,
    handle: Arc<RequestLog>,
}

/// Logs that were opened for a configuration before anything changes.
pub(crate) struct Opened(Vec<(RequestLogSpec, Arc<Output>)>);

/// Destination of lines.
#[derive(Debug)]
enum Output {
    File {
        path: PathBuf,
        file: ArcSwap<File>,
    },
    Datagrams {
        socket: UdpSocket,
        to: SocketAddr,
    },
    /// The socket is connected again if the daemon was started again.
    Syslog {
        socket: ArcSwap<UnixDatagram>,
        path: PathBuf,
    },
}

enum Message {
    Line(Arc<Output>, Vec<u8>),
    /// Reports that all earlier lines are written.
    Flush(SyncSender<()>),
}

impl RequestLogs {
    pub(crate) fn new(events: Events) -> Self {
        Self { events, writer: None, running: Vec::new() }
    }

    /// Opens the logs that a configuration needs and that are not open yet.
    pub(crate) fn open(&self, config: &Config) -> Result<Opened, Vec<Problem>> {
        let (mut opened, mut problems) = (Vec::new(), Vec::new());
        for service in &config.spec.services {
            let Some(wanted) = &service.request_log else { continue };
            let known = opened.iter().any(|(other, _)| other == wanted);
            if known || self.running.iter().any(|running| running.spec == *wanted) {
                continue;
            }
            match Output::open(wanted) {
                Ok(output) => opened.push((wanted.clone(), Arc::new(output))),
                Err(error) => {
                    let message =
                        format!("service `{}`: request_log: {}: {error}", service.name, name(wanted));
                    problems.push(Problem::new(message));
                }
            }
        }
        if problems.is_empty() { Ok(Opened(opened)) } else { Err(problems) }
    }

    /// Adds the opened logs, and closes logs that no service uses any more.
    pub(crate) fn update(&mut self, opened: Opened, config: &Config) {
        for (wanted, output) in opened.0 {
            let lines = self.writer.get_or_insert_with(|| start(self.events.clone())).clone();
            let (form, to) = (output.form(), Arc::clone(&output));
            let sample = wanted.sample;
            let handle = RequestLog::new(wanted.format.clone(), form, move |line| {
                let queued = lines.try_send(Message::Line(Arc::clone(&to), line));
                if queued.is_ok() { Queued::Taken } else { Queued::Full }
            });
            let handle = Arc::new(handle.sampled(sample));
            self.running.push(Running { spec: wanted, output, handle });
        }
        let services = &config.spec.services;
        let is_wanted = |wanted: &RequestLogSpec| {
            services.iter().any(|service| service.request_log.as_ref() == Some(wanted))
        };
        self.running.retain(|running| is_wanted(&running.spec));
    }

    /// Returns the running log for this configuration.
    pub(crate) fn of(&self, wanted: &RequestLogSpec) -> Option<Arc<RequestLog>> {
        let running = self.running.iter().find(|running| running.spec == *wanted)?;
        Some(Arc::clone(&running.handle))
    }

    /// Opens every file again by its name, for log rotation. If a file cannot be opened, the error is logged
    /// and the old file stays in use.
    pub(crate) fn reopen(&self) {
        for running in &self.running {
            let Output::File { path, file } = &*running.output else { continue };
            match open_file(path) {
                Ok(new) => file.store(Arc::new(new)),
                Err(error) => {
                    let text =
                        format!("{}: {error}: the request log continues in the old file", path.display());
                    self.events.emit(&Event::Notice { text });
                }
            }
        }
    }

    /// Waits until queued lines are written, up to the time limit.
    pub(crate) fn flush(&self) {
        let Some(writer) = &self.writer else { return };
        let (until, (done, written)) = (Instant::now() + FLUSH_TIMEOUT, sync_channel(1));
        // No lines are added any more, so there will be space in the queue unless the writer is blocked.
        while writer.try_send(Message::Flush(done.clone())).is_err() {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(FLUSH_CHECK_INTERVAL);
        }
        let _ = written.recv_timeout(FLUSH_TIMEOUT);
    }
}

fn name(wanted: &RequestLogSpec) -> String {
    match &wanted.destination {
        LogDestination::File(path) => path.display().to_string(),
        LogDestination::Udp(address) => address.to_string(),
        LogDestination::Syslog(path) => path.display().to_string(),
    }
}

/// Returns the standard stream that a path names. Such a stream is not opened by its name, because that fails
/// for a socket, such as the one of a system's log, and after a change of the user.
fn standard_stream(path: &Path) -> Option<io::Result<OwnedFd>> {
    match path.to_str()? {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => Some(io::stdout().as_fd().try_clone_to_owned()),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => Some(io::stderr().as_fd().try_clone_to_owned()),
        _ => None,
    }
}

/// Opens a file to append lines. Opening a pipe without a reader must not block the program, but writes to the
/// pipe block, so that a full pipe loses no lines.
fn open_file(path: &Path) -> io::Result<File> {
    if let Some(stream) = standard_stream(path) {
        return stream.map(File::from);
    }
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().append(true).create(true).custom_flags(flags).open(path)?;
    rustix::io::ioctl_fionbio(&file, false)?;
    Ok(file)
}

/// Writes all bytes. A standard stream may be non-blocking, because another program set that for the description
/// that all programs share: the writing thread then waits until the stream has room again.
fn write_waiting(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(file, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Connects to the socket of the system's log.
fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    // A slow daemon delays other logs for a short time only; then the line is lost.
    socket.set_write_timeout(Some(SYSLOG_TIMEOUT))?;
    Ok(socket)
}

/// Returns a line with the header of the system's log: facility daemon, severity info (RFC 3164, section 4.1.1).
fn syslog_line(line: &[u8]) -> Vec<u8> {
    let header = format!("<{}>evener[{}]: ", 3 * 8 + 6, std::process::id());
    [header.as_bytes(), line.trim_ascii_end()].concat()
}

impl Output {
    fn open(wanted: &RequestLogSpec) -> io::Result<Self> {
        Ok(match &wanted.destination {
            LogDestination::File(path) => {
                Self::File { path: path.clone(), file: ArcSwap::from_pointee(open_file(path)?) }
            }
            LogDestination::Udp(to) => {
                let any: IpAddr =
                    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                Self::Datagrams { socket: UdpSocket::bind((any, 0))?, to: *to }
            }
            LogDestination::Syslog(path) => {
                Self::Syslog { socket: ArcSwap::from_pointee(connect(path)?), path: path.clone() }
            }
        })
    }

    fn form(&self) -> LogForm {
        match self {
            Self::File { .. } | Self::Syslog { .. } => LogForm::Line,
            Self::Datagrams { .. } => LogForm::Datagram,
        }
    }

    /// Writes lines: all in one write to a file, or each in its own datagram to a collector.
    fn write(&self, lines: &[Vec<u8>]) -> io::Result<()> {
        match self {
            Self::File { file, .. } => write_waiting(&file.load(), &lines.concat()),
            Self::Datagrams { socket, to } => {
                lines.iter().try_for_each(|line| socket.send_to(line, to).map(drop))
            }
            Self::Syslog { socket, path } => {
                lines.iter().map(|line| syslog_line(line)).try_for_each(|line| {
                    if socket.load().send(&line).is_ok() {
                        return Ok(());
                    }
                    // The daemon was started again, so there is a new socket at the path.
                    socket.store(Arc::new(connect(path)?));
                    socket.load().send(&line).map(drop)
                })
            }
        }
    }
}

/// Starts the writing thread. If that fails, every line is dropped.
fn start(events: Events) -> SyncSender<Message> {
    let (lines, waiting) = sync_channel(LINES_MAX);
    let _ =
        std::thread::Builder::new().name("requests".into()).spawn(move || Writer::new(events).run(&waiting));
    lines
}

/// State of the writing thread.
struct Writer {
    events: Events,
    /// Lines for one output that are written together.
    batch: Vec<Vec<u8>>,
    output: Option<Arc<Output>>,
    /// True if the last write failed. The failure was logged.
    has_failed: bool,
}

impl Writer {
    fn new(events: Events) -> Self {
        Self { events, batch: Vec::new(), output: None, has_failed: false }
    }

    fn run(mut self, waiting: &Receiver<Message>) {
        while let Ok(first) = waiting.recv() {
            self.handle(first);
            for _ in 0..BATCH_LINES {
                let Ok(next) = waiting.try_recv() else { break };
                self.handle(next);
            }
            self.write();
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Line(output, line) => {
                if !self.output.as_ref().is_some_and(|present| Arc::ptr_eq(present, &output)) {
                    self.write();
                    self.output = Some(output);
                }
                self.batch.push(line);
            }
            Message::Flush(done) => {
                self.write();
                let _ = done.send(());
            }
        }
    }

    fn write(&mut self) {
        let Some(output) = self.output.take().filter(|_| !self.batch.is_empty()) else { return };
        let written = output.write(&self.batch);
        self.batch.clear();
        match written {
            Ok(()) => self.has_failed = false,
            Err(error) if !std::mem::replace(&mut self.has_failed, true) => {
                let to = match &*output {
                    Output::File { path, .. } => path.display().to_string(),
                    Output::Datagrams { to, .. } => to.to_string(),
                    Output::Syslog { path, .. } => path.display().to_string(),
                };
                let text = format!("{to}: {error}: lines of the request log are lost");
                self.events.emit(&Event::Notice { text });
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_stream_that_does_not_block_loses_no_lines() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let output =
            Output::File { path: "/dev/stdout".into(), file: ArcSwap::from_pointee(File::from(writer)) };
        let lines: Vec<Vec<u8>> =
            (0..20_000).map(|number| format!("line {number:06}\n").into_bytes()).collect();
        let expected = lines.concat();
        let written = std::thread::spawn(move || output.write(&lines));
        let mut received = Vec::new();
        File::from(reader).read_to_end(&mut received).unwrap();
        written.join().unwrap().unwrap();
        assert_eq!(received.len(), expected.len(), "more bytes than the pipe holds are all received");
        assert!(received == expected, "the lines are in order");
    }
}
