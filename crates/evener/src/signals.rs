//! Signals: held back from the first moment of the process on, then caught, so that none of them ends what is about to
//! serve. Held signals are not lost: they arrive as soon as they can be caught.

use nix::sys::signal::{SigSet, Signal as Number};
use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals whose default is to end the process.
const HELD: [Number; 5] = [Number::SIGHUP, Number::SIGINT, Number::SIGTERM, Number::SIGUSR1, Number::SIGUSR2];

/// Holds signals back: before anything else is done, while there is one thread.
pub(crate) fn hold() {
    let _ = HELD.into_iter().collect::<SigSet>().thread_block();
}

/// Lets signals through: once they are caught, or when the program does nothing that lasts. Threads that start later
/// have them, too.
pub(crate) fn let_through() {
    let _ = HELD.into_iter().collect::<SigSet>().thread_unblock();
}

/// The signals that a running instance reacts to.
pub(crate) struct Signals(Option<Streams>);

struct Streams {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
    user1: Signal,
    user2: Signal,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caught {
    /// HUP
    HangUp,
    /// TERM or INT, by its name.
    End(&'static str),
    /// USR1
    User1,
    /// USR2
    User2,
}

impl Signals {
    /// Catches them from now on. They are still held back until [`let_through`].
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self(Some(Streams {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })))
    }

    /// No signals: those of the process are another program's.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Waits for the next one.
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
}
