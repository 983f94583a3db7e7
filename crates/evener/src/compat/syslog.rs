//! A line for the system's log, from a program that has no terminal (syslog(3), over the socket of the log's daemon).
//!
//! What cannot be logged is lost: there is nobody else to tell.

use std::os::unix::net::UnixDatagram;

const SOCKET: &str = "/dev/log";

/// Facility user, severity debug: what pen's programs use (RFC 3164, section 4.1.1).
const PRIORITY: u32 = 8 + 7;

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
        let connected = UnixDatagram::unbound().and_then(|socket| {
            socket.connect(SOCKET)?;
            // A log that is behind must not hold up the program.
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        Self { socket: connected.ok(), program }
    }

    pub(crate) fn say(&self, text: &str) {
        let Some(socket) = &self.socket else { return };
        let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let line = format!("<{PRIORITY}>{}[{}]: {text}", self.program, std::process::id());
        let _ = socket.send(line.as_bytes());
    }
}
