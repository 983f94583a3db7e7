//! Accepting that pauses: there is no place for one more client, or the system has nothing left. It goes on by itself after
//! a time, and as soon as a place is given back.

use crate::context::descriptors;
use crate::context::report::{Notice, Report};
use crate::tcp::listener::StreamListener;
use crate::worker::Worker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::time::Duration;

/// A listener that could not accept (no descriptors, no memory, no place) tries again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether somebody may still wait in a listener's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// It is empty, or accepting is paused.
    Left,
    /// Perhaps.
    More,
}

/// What there is no place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// One more connection; the limit.
    Connections(u32),
    /// One more connect under way.
    Pending,
    /// One more client with its server, as descriptors go.
    Descriptors,
}

/// Pauses accepting until there is a place again.
pub(crate) fn pause_full(worker: &mut Worker, index: usize, full: Full) -> Queue {
    let (id, now) = (worker.cx.id, worker.cx.now);
    let StreamListener { service, paused, socket, .. } = &mut worker.tcp.listeners[index];
    let mut queue = [PollFd::new(socket, PollFlags::IN)];
    if poll(&mut queue, Some(&Timespec::default())) == Ok(0) {
        // Full, but nobody waits; the next one makes an edge.
        *paused = None;
        return Queue::Left;
    }
    if paused.is_none() {
        service.live.counters.of(id).accept_pauses.one();
    }
    *paused = Some(now + ACCEPT_PAUSE);
    let name = service.name.clone();
    match full {
        Full::Connections(connections_max) if service.may_notice(Notice::Full, now) => {
            (worker.cx.report)(Report::Full { service: name, connections_max });
        }
        Full::Descriptors => {
            if service.may_notice(Notice::NoDescriptors, now) {
                let connections_max = descriptors::connections_max();
                (worker.cx.report)(Report::NoDescriptors { service: name, connections_max });
            }
            if descriptors::want_some(now) {
                worker.cx.wake_all();
            }
        }
        // That servers take their time is for a moment, and said of them when it is not.
        Full::Pending | Full::Connections(_) => {}
    }
    Queue::Left
}

/// Pauses accepting after an error.
pub(crate) fn pause_failed(worker: &mut Worker, index: usize, error: Errno) -> Queue {
    let (id, now) = (worker.cx.id, worker.cx.now);
    let StreamListener { service, paused, .. } = &mut worker.tcp.listeners[index];
    service.live.counters.of(id).accept_errors.one();
    *paused = Some(now + ACCEPT_PAUSE);
    if service.may_notice(Notice::AcceptFailed, now) {
        (worker.cx.report)(Report::AcceptFailed { service: service.name.clone(), error: error.into() });
    }
    Queue::Left
}
