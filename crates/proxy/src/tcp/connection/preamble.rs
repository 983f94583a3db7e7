//! The preamble of a connection, which is received before a server is chosen, and the bytes that the server
//! gets before the client's payload.

use super::{Connection, Stage};
use crate::service::preamble::{Preamble, PreambleState};
use evener_core::Random;
use evener_core::reason::Cause;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Maximum number of bytes that one receive of the preamble takes.
const PREAMBLE_BYTES: usize = 4096;

/// Outcome of reading the preamble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcp) enum PreambleStep {
    /// More bytes have to arrive.
    Wait,
    /// The PROXY header is complete, and the client's address is known.
    ClientKnown,
    /// The PROXY header shows a loop.
    Loop,
    /// The preamble is complete.
    Complete,
    /// The preamble is malformed.
    Malformed(Cause),
    /// The client closed the connection, or the connection failed.
    Closed,
}

impl Connection {
    /// Sets the preamble, which may be complete already: a PROXY header to a server needs the client's origin.
    pub(in crate::tcp) fn set_preamble(&mut self, preamble: Preamble) {
        self.preamble = Some(Box::new(preamble));
    }

    /// Returns whether the connection has a preamble. Such connections use epoll until the preamble is sent.
    pub(in crate::tcp) fn has_preamble(&self) -> bool {
        self.preamble.is_some()
    }

    /// Receives and parses the preamble.
    pub(in crate::tcp) fn read_preamble(&mut self) -> PreambleStep {
        loop {
            let Some(preamble) = &mut self.preamble else { return PreambleStep::Wait };
            match preamble.read() {
                PreambleState::Known if preamble.origin().is_loop() => return PreambleStep::Loop,
                PreambleState::Known => {
                    self.address = preamble.origin().client().ip();
                    return PreambleStep::ClientKnown;
                }
                PreambleState::Done => return PreambleStep::Complete,
                PreambleState::Malformed(cause) => return PreambleStep::Malformed(cause),
                PreambleState::More => {
                    let mut piece = [0; PREAMBLE_BYTES];
                    match recv(&self.client, &mut piece, RecvFlags::empty()) {
                        Ok((read @ 1.., _)) => preamble.append(&piece[..read]),
                        Err(Errno::AGAIN) => return PreambleStep::Wait,
                        Err(Errno::INTR) => {}
                        Ok(_) | Err(_) => return PreambleStep::Closed,
                    }
                }
            }
        }
    }

    /// Chooses the backend of a client whose preamble is complete. Returns false if no route matches.
    pub(in crate::tcp) fn route(&mut self) -> bool {
        let name = self.preamble.as_ref().and_then(|preamble| preamble.name()).unwrap_or_default();
        let routed = self.settings.routes.find(name.as_bytes(), b"").copied();
        let admitted = self.admitted.as_ref().and_then(|admitted| admitted.backend);
        let Some(backend) = admitted.or(routed).or(self.settings.default_backend) else { return false };
        self.backend = backend as u32;
        // Bytes after the preamble may still be in the socket, and no event will report them again.
        self.from_client.expect_unread_bytes();
        true
    }

    /// Queues the PROXY header for the server, and the bytes of the preamble that belong to the payload.
    pub(in crate::tcp) fn send_preamble(&mut self, worker: usize, random: &mut Random) {
        debug_assert_eq!(self.stage, Stage::Relaying, "the preamble is sent after the server is connected");
        let version = self.backend().send_proxy;
        let Some(preamble) = &mut self.preamble else { return };
        let ends = version.and_then(|_| preamble.origin().ends(&self.client));
        let number = version.map_or(0, |_| random.bits());
        let (first, header_bytes) = preamble.take_first(version, ends, number);
        if let Some(tap) = self.tap(worker).filter(|_| first.len() > header_bytes) {
            tap.piece(&first[header_bytes..]);
        }
        self.from_client.prepend(first);
    }
}
