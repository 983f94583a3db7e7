//! Lines for the system's log, from programs without a terminal (syslog(3)), sent to the socket of its daemon.
//! Lines that cannot be sent are lost, because they cannot be reported anywhere else.

use evener_core::event::Level;
use std::io;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/dev/log";

/// Facility user (RFC 3164, section 4.1.1).
const FACILITY: u32 = 8;

/// Maximum length of the text of a line.
const TEXT_BYTES_MAX: usize = 1024;

/// A connection to the system's log.
#[derive(Debug)]
pub(crate) struct Syslog {
    socket: Option<UnixDatagram>,
    program: &'static str,
}

impl Syslog {
    /// Opens the log. Must be called before a change of the root directory, in which the socket is missing.
    pub(crate) fn open(program: &'static str) -> Self {
        Self { socket: connect().ok(), program }
    }

    /// Logs a line with the severity debug, which the programs of pen use for all lines.
    pub(crate) fn say(&mut self, text: &str) {
        self.log_at(Level::Debug, text);
    }

    /// Logs a line with the severity of a level.
    pub(crate) fn log_at(&mut self, level: Level, text: &str) {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let priority = FACILITY + severity(level);
        let line = format!("<{priority}>{}[{}]: {text}", self.program, std::process::id());
        let sent = self.socket.as_ref().is_some_and(|socket| match socket.send(line.as_bytes()) {
            // The line is lost, because the daemon is too slow.
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            Ok(_) => true,
        });
        if !sent && let Ok(socket) = connect() {
            // The daemon may have been restarted, so the line is sent over a new connection.
            let _ = socket.send(line.as_bytes());
            self.socket = Some(socket);
        }
    }
}

fn severity(level: Level) -> u32 {
    match level {
        Level::Debug => 7,
        Level::Info => 6,
        Level::Warn => 4,
        Level::Error => 3,
    }
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET)?;
    // A slow daemon must not block the program.
    socket.set_nonblocking(true)?;
    Ok(socket)
}
