//! Pauses in accepting, because the service is full or the system has no descriptors or memory left. Accepting
//! resumes after some time, and as soon as a slot is released.

use crate::context::Context;
use crate::context::descriptors;
use crate::context::keys::ListenerKey;
use crate::context::report::{Notice, Report};
use crate::tcp::Tcp;
use rustix::io::Errno;
use std::time::Duration;

/// Pause after a failure to accept (no descriptors, no memory, no slot).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// State of a listener's queue in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// Empty, or accepting is paused.
    Left,
    /// More clients may wait.
    More,
}

/// The limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Connections of the service, with the limit.
    Connections(u32),
    /// Pending connection attempts.
    Pending,
    /// Descriptors of the process.
    Descriptors,
}

impl Tcp {
    /// Pauses accepting for [`ACCEPT_PAUSE`], or until a slot is free, unless the kernel's queue is empty.
    pub(super) fn pause_full(&mut self, cx: &mut Context, key: ListenerKey, full: Full) -> Queue {
        let (id, now) = (cx.id, cx.now);
        let listener = &mut self.listeners[key];
        if listener.is_queue_empty() {
            return Queue::Left;
        }
        let is_new = listener.pause(now + ACCEPT_PAUSE);
        let service = listener.service();
        if is_new {
            service.live.counters.of(id).accept_pauses.one();
        }
        let name = service.live.name.clone();
        match full {
            Full::Connections(connections_max) if service.may_notice(Notice::Full, now) => {
                cx.report(Report::Full { service: name, connections_max });
            }
            Full::Descriptors => {
                if service.may_notice(Notice::NoDescriptors, now) {
                    let connections_max = descriptors::connections_max();
                    cx.report(Report::NoDescriptors { service: name, connections_max });
                }
                if descriptors::want_some(now) {
                    cx.wake_all();
                }
            }
            // Slow connection attempts are usual for a moment, and are reported when they time out.
            Full::Pending | Full::Connections(_) => {}
        }
        Queue::Left
    }

    /// Pauses accepting for [`ACCEPT_PAUSE`] after an error.
    pub(super) fn pause_failed(&mut self, cx: &mut Context, key: ListenerKey, error: Errno) -> Queue {
        let (id, now) = (cx.id, cx.now);
        let listener = &mut self.listeners[key];
        listener.pause(now + ACCEPT_PAUSE);
        let service = listener.service();
        service.live.counters.of(id).accept_errors.one();
        if service.may_notice(Notice::AcceptFailed, now) {
            cx.report(Report::AcceptFailed { service: service.live.name.clone(), error: error.into() });
        }
        Queue::Left
    }
}
