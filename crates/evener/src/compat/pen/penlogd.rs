//! `penlogd [options] port`: merges the logs of all web servers, and replaces pen's address in each line by the
//! address of the client.
//!
//! Every host that can send datagrams to penlogd can write into the log, as with pen's own program. So penlogd
//! needs a private network.

mod recent;

use super::super::daemon::{self, Daemon, Directory, PidFile, Process, Stdout, User};
use crate::observe::Syslog;
use anyhow::{Context, bail};
use recent::{ForwardedRequest, RecentRequests};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

const USAGE: &str = "Usage: penlogd [options] port

  -d        debugging on
  -f        stay in foreground
  -j dir    run in chroot
  -l file   write log to file
  -b        write each line at once (it always does)
  -n N      number of pen log entries to remember [1000]
  -p file   write pid to file
  -u user   run as another user";

/// Maximum number of remembered requests (`-n`); each takes some 200 bytes.
const REMEMBERED_MAX: i64 = 1_000_000;

const REMEMBERED_DEFAULT: usize = 1000;

/// Maximum length of a datagram.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// Minimum interval of messages about invalid datagrams, so that a flood of them does not flood the log.
const MESSAGE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Number of bytes of an invalid datagram that a message shows.
const SHOWN_BYTES_MAX: usize = 100;

/// A parsed command line.
#[derive(Debug)]
struct Options {
    port: u16,
    remembered: usize,
    foreground: bool,
    debug: bool,
    root: Option<PathBuf>,
    log: Option<PathBuf>,
    pid: Option<PathBuf>,
    user: Option<String>,
}

/// Runs the program.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(error) => return super::usage_error("penlogd", USAGE, &error),
    };
    if options.foreground {
        return super::exit_code("penlogd", run(&options, None));
    }
    match Daemon::begin(Directory::Root) {
        Ok(Process::Called(code)) => code,
        Ok(Process::Background(daemon)) => super::exit_code("penlogd", run(&options, Some(daemon))),
        Err(error) => super::exit_code("penlogd", Err(error)),
    }
}

impl Options {
    fn parse(arguments: Vec<OsString>) -> anyhow::Result<Self> {
        use lexopt::prelude::*;
        let mut parser = lexopt::Parser::from_args(arguments);
        let mut options = Self {
            port: 0,
            remembered: REMEMBERED_DEFAULT,
            foreground: false,
            debug: false,
            root: None,
            log: None,
            pid: None,
            user: None,
        };
        let mut words = Vec::new();
        while let Some(argument) = parser.next()? {
            match argument {
                Short('b') => {}
                Short('d') => options.debug = true,
                Short('f') => options.foreground = true,
                Short('j') => options.root = Some(parser.value()?.into()),
                Short('l') => options.log = Some(parser.value()?.into()),
                Short('n') => {
                    options.remembered =
                        usize::try_from(super::number(&mut parser, 0..=REMEMBERED_MAX).context("-n")?)?;
                }
                Short('p') => options.pid = Some(parser.value()?.into()),
                Short('u') => options.user = Some(parser.value()?.string()?),
                Value(word) => words.push(word.string()?),
                other => return Err(other.unexpected().into()),
            }
        }
        let [port] = words.as_slice() else { bail!("expected one port, got {}", words.len()) };
        options.port = super::port(port)?;
        options.with_absolute_paths()
    }

    /// Makes paths absolute, because a daemon changes to `/` and opens its log file again at each HUP. With
    /// another root (`-j`) the other paths stay, because they are relative to the new root.
    fn with_absolute_paths(mut self) -> anyhow::Result<Self> {
        self.root = self.root.map(std::path::absolute).transpose().context("-j")?;
        if self.root.is_none() {
            self.log = self.log.map(std::path::absolute).transpose().context("-l")?;
            self.pid = self.pid.map(std::path::absolute).transpose().context("-p")?;
        }
        Ok(self)
    }
}

fn run(options: &Options, daemon: Option<Daemon>) -> anyhow::Result<()> {
    let socket = bind(options.port).with_context(|| format!("cannot listen to UDP port {}", options.port))?;
    let sink =
        if daemon.is_some() { MessageSink::Log(Syslog::open("penlogd")) } else { MessageSink::Terminal };
    let user = options.user.as_deref().map(User::find).transpose()?;
    if let Some(root) = &options.root {
        daemon::change_root(root)?;
    }
    // The pid file is written before the change of user, because /run belongs to root. The log file is
    // opened after it, because the user has to be able to open it again at HUP.
    let _pid = options.pid.as_deref().map(|path| PidFile::open(path).and_then(PidFile::write)).transpose()?;
    if let Some(user) = user {
        user.assume()?;
    }
    let collector = Collector {
        out: LogOutput::open(options.log.clone())?,
        recent: RecentRequests::new(options.remembered),
        errors: ErrorMessages { sink, last: None, suppressed: 0 },
        debug: options.debug,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(collector.serve(socket, daemon))
}

/// Binds a socket for both families, or for IPv4 alone where IPv6 is missing.
fn bind(port: u16) -> io::Result<UdpSocket> {
    let of_family = |family| {
        rustix::net::socket_with(
            family,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(ipproto::UDP),
        )
    };
    let six = of_family(AddressFamily::INET6).and_then(|socket| {
        sockopt::set_ipv6_v6only(&socket, false)?;
        rustix::net::bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
        Ok(socket)
    });
    match six {
        Err(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::ADDRNOTAVAIL) => {}
        six => return Ok(six?.into()),
    }
    let four = of_family(AddressFamily::INET)?;
    rustix::net::bind(&four, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
    Ok(four.into())
}

/// Destination of the lines.
#[derive(Debug)]
enum LogOutput {
    Stdout,
    File { file: File, path: PathBuf },
}

impl LogOutput {
    fn open(path: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        let file =
            append_to(&path).with_context(|| format!("cannot open the log file {}", path.display()))?;
        Ok(Self::File { file, path })
    }

    /// Opens the log file again by its name. If that fails, the old file stays in use.
    fn reopen(&mut self) -> anyhow::Result<()> {
        if let Self::File { file, path } = self {
            *file = append_to(path)
                .with_context(|| format!("cannot open the log file {} again", path.display()))?;
        }
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(line)?;
                stdout.flush()
            }
            Self::File { file, .. } => file.write_all(line),
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

/// Destination of messages.
#[derive(Debug)]
enum MessageSink {
    Terminal,
    Log(Syslog),
}

impl MessageSink {
    fn write(&mut self, text: &str) {
        match self {
            Self::Terminal => eprintln!("penlogd: {text}"),
            Self::Log(syslog) => syslog.say(text),
        }
    }
}

/// Messages about errors, at a limited rate.
#[derive(Debug)]
struct ErrorMessages {
    sink: MessageSink,
    last: Option<Instant>,
    /// Number of messages that were suppressed since the last written message.
    suppressed: u64,
}

impl ErrorMessages {
    fn report(&mut self, now: Instant, text: &str) {
        if self.last.is_some_and(|last| now.duration_since(last) < MESSAGE_INTERVAL_MIN) {
            self.suppressed += 1;
            return;
        }
        match std::mem::take(&mut self.suppressed) {
            0 => self.sink.write(text),
            suppressed => self.sink.write(&format!("{text} (and {suppressed} earlier messages)")),
        }
        self.last = Some(now);
    }
}

/// Writes the log.
#[derive(Debug)]
struct Collector {
    out: LogOutput,
    recent: RecentRequests,
    errors: ErrorMessages,
    debug: bool,
}

impl Collector {
    async fn serve(mut self, socket: UdpSocket, daemon: Option<Daemon>) -> anyhow::Result<()> {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let [mut hangup, mut user1, mut user2, mut interrupt, mut terminate] = signals()?;
        crate::signals::unblock();
        if let Some(daemon) = daemon {
            let stdout =
                if matches!(self.out, LogOutput::Stdout) { Stdout::Unchanged } else { Stdout::Closed };
            daemon.ready(stdout)?;
        }
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            tokio::select! {
                _ = hangup.recv() => self.reopen(),
                // Many daemons open their logs again on USR1, and scripts that rotate logs expect this.
                _ = user1.recv() => self.reopen(),
                _ = user2.recv() => {}
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                received = socket.recv_from(&mut datagram) => match received {
                    Ok((length, from)) => self.on_datagram(from, &datagram[..length])?,
                    Err(error) => self.errors.report(Instant::now(), &format!("cannot receive: {error}")),
                },
            }
        }
    }

    fn reopen(&mut self) {
        if let Err(error) = self.out.reopen() {
            self.errors.report(Instant::now(), &format!("{error:#}"));
        }
    }

    fn on_datagram(&mut self, from: SocketAddr, datagram: &[u8]) -> anyhow::Result<()> {
        if self.debug {
            self.errors.sink.write(&datagram_message(from, "sent", datagram));
        }
        if datagram.starts_with(b"+") {
            match ForwardedRequest::parse(datagram) {
                Some(request) => self.recent.remember(request),
                None => self.report_datagram(from, "sent an invalid line", datagram),
            }
            return Ok(());
        }
        match self.recent.line(from.ip(), datagram) {
            Some(line) => self.write(&line),
            None => {
                self.report_datagram(from, "sent a line without a request", datagram);
                Ok(())
            }
        }
    }

    fn report_datagram(&mut self, from: SocketAddr, problem: &str, datagram: &[u8]) {
        self.errors.report(Instant::now(), &datagram_message(from, problem, datagram));
    }

    /// Writes a line. A full disk may have space again later, but a closed stdout stays closed.
    fn write(&mut self, line: &[u8]) -> anyhow::Result<()> {
        match self.out.write(line) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(error.into()),
            Err(error) => {
                self.errors.report(Instant::now(), &format!("cannot write the log: {error}"));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

fn signals() -> io::Result<[Signal; 5]> {
    let [user1, user2] = [SignalKind::user_defined1(), SignalKind::user_defined2()].map(signal);
    let [hangup, interrupt, terminate] =
        [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()].map(signal);
    Ok([hangup?, user1?, user2?, interrupt?, terminate?])
}

/// Formats a message about a datagram, safe for a terminal and of bounded length.
fn datagram_message(from: SocketAddr, problem: &str, datagram: &[u8]) -> String {
    let beginning = &datagram[..datagram.len().min(SHOWN_BYTES_MAX)];
    format!("{} {problem}: {}", from.ip().to_canonical(), beginning.trim_ascii_end().escape_ascii())
}
