//! A line for the system's log, from a program that has no terminal (syslog(3), over the socket of the log's daemon).
//!
//! What cannot be logged is lost: there is nobody else to tell.

use evener_core::event::Level;
use std::io;
use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/dev/log";

/// Facility user (RFC 3164, section 4.1.1).
const FACILITY: u32 = 8;

/// The longest text of one line.
const TEXT_BYTES_MAX: usize = 1024;

/// The system's log.
#[derive(Debug)]
pub(crate) struct Syslog {
    socket: Option<UnixDatagram>,
    program: &'static str,
}

impl Syslog {
    /// Opens it; before a change of the root, behind which there is no such socket.
    pub(crate) fn open(program: &'static str) -> Self {
        Self { socket: connect().ok(), program }
    }

    /// With the severity that pen's programs use for all that they say.
    pub(crate) fn say(&mut self, text: &str) {
        self.say_at(Level::Debug, text);
    }

    pub(crate) fn say_at(&mut self, level: Level, text: &str) {
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let priority = FACILITY + severity(level);
        let line = format!("<{priority}>{}[{}]: {text}", self.program, std::process::id());
        let sent = self.socket.as_ref().is_some_and(|socket| match socket.send(line.as_bytes()) {
            // A log that is behind loses lines.
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            Ok(_) => true,
        });
        if !sent && let Ok(socket) = connect() {
            // The log's daemon was started again since.
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
    // A log that is behind must not hold up the program.
    socket.set_nonblocking(true)?;
    Ok(socket)
}
