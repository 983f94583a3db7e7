//! Signals. They are blocked from the start of the process until they are caught, so that no signal ends a
//! program that is about to serve. Blocked signals are not lost: they are delivered as soon as they are
//! unblocked.

use nix::sys::signal::{SigSet, Signal as Number};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that end a process by default.
const ENDING: [Number; 5] =
    [Number::SIGHUP, Number::SIGINT, Number::SIGTERM, Number::SIGUSR1, Number::SIGUSR2];

/// Blocks signals. Must be called first, while there is only one thread.
pub(crate) fn block() {
    let _ = ENDING.into_iter().collect::<SigSet>().thread_block();
}

/// Unblocks signals. Must be called once they are caught, or if the program is a short command. Threads that
/// start later receive them, too.
pub(crate) fn unblock() {
    let _ = ENDING.into_iter().collect::<SigSet>().thread_unblock();
}

/// The signals that a running instance handles.
pub(crate) struct Signals(Option<Streams>);

struct Streams {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
    user1: Signal,
    user2: Signal,
}

/// A signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caught {
    /// HUP
    HangUp,
    /// TERM or INT, with its name.
    End(&'static str),
    /// USR1
    User1,
    /// USR2
    User2,
}

impl Signals {
    /// Catches signals from now on. They stay blocked until [`unblock`].
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self(Some(Streams {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })))
    }

    /// Catches no signals, because another part of the process handles them.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Caught {
        let Some(streams) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = streams.hang_up.recv() => Caught::HangUp,
            _ = streams.terminate.recv() => Caught::End("SIGTERM"),
            _ = streams.interrupt.recv() => Caught::End("SIGINT"),
            _ = streams.user1.recv() => Caught::User1,
            _ = streams.user2.recv() => Caught::User2,
        }
    }

    /// Waits for SIGTERM or SIGINT. Ignores other signals.
    pub(crate) async fn end(&mut self) {
        while !matches!(self.next().await, Caught::End(_)) {}
    }
}
