//! Accepting that pauses: there is no place for one more client, or the system has nothing left. It goes on by itself after
//! a time, and as soon as a place is given back.

use crate::context::Context;
use crate::context::descriptors;
use crate::context::keys::ListenerKey;
use crate::context::report::{Notice, Report};
use crate::tcp::Tcp;
use crate::tcp::listener::StreamListener;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::time::Duration;

/// A listener that could not accept (no descriptors, no memory, no place) tries again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether somebody may still wait in a listener's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// It is empty, or accepting is paused.
    Left,
    /// Perhaps.
    More,
}

/// What there is no place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// One more connection; the limit.
    Connections(u32),
    /// One more connect under way.
    Pending,
    /// One more client with its server, as descriptors go.
    Descriptors,
}

impl Tcp {
    /// Pauses accepting until there is a place again.
    pub(super) fn pause_full(&mut self, cx: &mut Context, key: ListenerKey, full: Full) -> Queue {
        let (id, now) = (cx.id, cx.now);
        let StreamListener { service, paused, socket, .. } = &mut self.listeners[key];
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
                (cx.report)(Report::Full { service: name, connections_max });
            }
            Full::Descriptors => {
                if service.may_notice(Notice::NoDescriptors, now) {
                    let connections_max = descriptors::connections_max();
                    (cx.report)(Report::NoDescriptors { service: name, connections_max });
                }
                if descriptors::want_some(now) {
                    cx.wake_all();
                }
            }
            // That servers take their time is for a moment, and said of them when it is not.
            Full::Pending | Full::Connections(_) => {}
        }
        Queue::Left
    }

    /// Pauses accepting after an error.
    pub(super) fn pause_failed(&mut self, cx: &mut Context, key: ListenerKey, error: Errno) -> Queue {
        let (id, now) = (cx.id, cx.now);
        let StreamListener { service, paused, .. } = &mut self.listeners[key];
        service.live.counters.of(id).accept_errors.one();
        *paused = Some(now + ACCEPT_PAUSE);
        if service.may_notice(Notice::AcceptFailed, now) {
            (cx.report)(Report::AcceptFailed { service: service.name.clone(), error: error.into() });
        }
        Queue::Left
    }
}
