//! The events of the program. Each event goes to the log, to the counters of events, to the ring of recent events,
//! and to subscribers. Nothing here waits for a reader.

mod view;

pub(crate) use view::{Line, RecentEvents};

use crate::observe::{Log, LogLevel};
use evener_core::counters::Sharded;
use evener_core::event::{Event, EventCounters, Level};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// Maximum number of recent events. Debug events, which are frequent, are not among them.
const RECENT_MAX: usize = 1000;
/// Maximum number of subscribers.
const SUBSCRIBERS_MAX: usize = 64;
/// Maximum number of events that wait for a subscriber. Further events are lost to it, and counted.
const WAITING_MAX: usize = 256;

/// Handle through which all events of an instance are emitted.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    log: Log,
    counters: Arc<Sharded<EventCounters>>,
    history: Arc<Mutex<History>>,
    /// True while the log or a subscriber wants debug events.
    wants_details: Arc<AtomicBool>,
}

/// An event with its number and its time.
#[derive(Debug)]
pub(crate) struct Occurrence {
    /// Number of the event: 1 for the first event of the program.
    number: u64,
    time: SystemTime,
    event: Event,
}

/// The events that a reader wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection {
    /// Lowest level.
    level: Level,
    /// Number of the last event that the reader knows; 0 if it knows none.
    after: u64,
}

impl Selection {
    /// Selects events of at least `level` with a number above `after`.
    pub(crate) fn new(level: Level, after: u64) -> Self {
        Self { level, after }
    }

    /// Returns the selection for an instance whose last event has the number `last`. A reader that knows later
    /// events knows them from an earlier instance.
    fn in_instance(self, last: u64) -> Self {
        if self.after > last { Self { after: 0, ..self } } else { self }
    }

    fn includes(&self, number: u64, event: &Event) -> bool {
        number > self.after && event.level() >= self.level
    }
}

impl Events {
    /// Creates the handle of an instance whose events are written to `log`.
    pub(crate) fn new(log: Log) -> Self {
        let events = Self {
            log,
            counters: Arc::new(Sharded::new(1)),
            history: Arc::default(),
            wants_details: Arc::default(),
        };
        events.note_readers(&events.history());
        events
    }

    /// Records an event everywhere. Never waits for a reader.
    pub(crate) fn emit(&self, event: &Event) {
        self.counters.of(0).count(event);
        self.log.event(event);
        let mut history = self.history();
        history.add(event, SystemTime::now());
        self.note_readers(&history);
    }

    /// Returns the flag that is true while the log or a subscriber wants debug events.
    pub(crate) fn wants_details(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.wants_details)
    }

    /// Records whether any reader wants debug events.
    fn note_readers(&self, history: &History) {
        let wanted = self.log.includes(Level::Debug) || history.has_reader_of_details();
        self.wants_details.store(wanted, Ordering::Relaxed);
    }

    /// Returns the number of events by name.
    pub(crate) fn counters(&self) -> &Sharded<EventCounters> {
        &self.counters
    }

    /// Returns the recent events of a selection, the oldest first.
    fn recent(&self, selection: Selection) -> Vec<Arc<Occurrence>> {
        self.history().recent(selection)
    }

    /// Returns the recent events of a selection, and all that follow. Returns `None` if there are too many
    /// subscribers.
    pub(crate) fn subscribe(&self, selection: Selection) -> Option<Subscription> {
        let mut history = self.history();
        let subscription = history.subscribe(selection);
        self.note_readers(&history);
        subscription
    }

    /// Sets the lowest level of events that are logged.
    pub(crate) fn set_log_level(&self, level: LogLevel) {
        self.log.set_level(level);
        self.note_readers(&self.history());
    }

    /// Waits until the lines of earlier events are in the log, up to a time limit.
    pub(crate) fn flush(&self) {
        self.log.flush();
    }

    fn history(&self) -> MutexGuard<'_, History> {
        lock(&self.history)
    }
}

/// The recent events and the subscribers to new ones.
#[derive(Debug, Default)]
struct History {
    /// Number of the last event.
    last: u64,
    recent: VecDeque<Arc<Occurrence>>,
    subscribers: Vec<Subscriber>,
}

impl History {
    fn add(&mut self, event: &Event, time: SystemTime) {
        self.last += 1;
        let number = self.last;
        let is_recorded = event.level() > Level::Debug;
        if !is_recorded && self.subscribers.is_empty() {
            return;
        }
        let occurrence = Arc::new(Occurrence { number, time, event: event.clone() });
        self.subscribers.retain(|subscriber| subscriber.send(&occurrence));
        if is_recorded {
            if self.recent.len() == RECENT_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(occurrence);
        }
    }

    fn has_reader_of_details(&self) -> bool {
        let wants = |subscriber: &Subscriber| subscriber.selection.level == Level::Debug;
        self.subscribers.iter().any(wants)
    }

    fn recent(&self, selection: Selection) -> Vec<Arc<Occurrence>> {
        let selection = selection.in_instance(self.last);
        let wanted = self.recent.iter().filter(|one| selection.includes(one.number, &one.event));
        wanted.cloned().collect()
    }

    fn subscribe(&mut self, selection: Selection) -> Option<Subscription> {
        let selection = selection.in_instance(self.last);
        self.subscribers.retain(|subscriber| !subscriber.sender.is_closed());
        if self.subscribers.len() == SUBSCRIBERS_MAX {
            return None;
        }
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        let lost = Arc::default();
        self.subscribers.push(Subscriber { selection, sender, lost: Arc::clone(&lost) });
        Some(Subscription { recent: self.recent(selection).into(), waiting, lost })
    }
}

/// Number of events that a subscriber lost since the last report of a loss. The lock is held while an event is sent.
type Lost = Arc<Mutex<u64>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Subscriber {
    selection: Selection,
    sender: mpsc::Sender<Arc<Occurrence>>,
    lost: Lost,
}

impl Subscriber {
    /// Sends an event if it is wanted. Returns false if the subscriber has left.
    fn send(&self, occurrence: &Arc<Occurrence>) -> bool {
        if !self.selection.includes(occurrence.number, &occurrence.event) {
            return true;
        }
        // After a loss, nothing is sent until the subscriber has received the number of lost events. So the
        // number is reported where the events are missing.
        let mut lost = lock(&self.lost);
        if *lost == 0 {
            match self.sender.try_send(Arc::clone(occurrence)) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) => {}
            }
        }
        *lost += 1;
        !self.sender.is_closed()
    }
}

/// Receiver of events.
#[derive(Debug)]
pub(crate) struct Subscription {
    recent: VecDeque<Arc<Occurrence>>,
    waiting: mpsc::Receiver<Arc<Occurrence>>,
    lost: Lost,
}

/// A message to a subscriber.
#[derive(Debug)]
pub(crate) enum News {
    Event(Arc<Occurrence>),
    /// Number of events that were lost, because the subscriber was too slow.
    Lost(u64),
}

impl Subscription {
    /// Waits for the next event. Never ends while the program runs.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<News>> {
        if let Some(occurrence) = self.recent.pop_front() {
            return Poll::Ready(Some(News::Event(occurrence)));
        }
        match self.waiting.poll_recv(cx) {
            // tokio interrupts tasks that receive for a long time, and continues them later.
            Poll::Pending if !self.waiting.is_empty() => Poll::Pending,
            // If no loss is to be reported, the next event is sent, and wakes this task.
            Poll::Pending => match std::mem::take(&mut *lock(&self.lost)) {
                0 => Poll::Pending,
                lost => Poll::Ready(Some(News::Lost(lost))),
            },
            ready => ready.map(|occurrence| occurrence.map(News::Event)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Selection = Selection { level: Level::Debug, after: 0 };

    fn notice(number: usize) -> Event {
        Event::Notice { text: number.to_string() }
    }

    fn add(history: &mut History, event: &Event) {
        history.add(event, SystemTime::UNIX_EPOCH);
    }

    fn next(subscription: &mut Subscription) -> Option<String> {
        match subscription.poll_next(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(Some(News::Event(one))) => Some(format!("{} {}", one.number, one.event.name())),
            Poll::Ready(Some(News::Lost(lost))) => Some(format!("lost {lost}")),
            Poll::Ready(None) | Poll::Pending => None,
        }
    }

    #[test]
    fn details_are_wanted_while_the_log_or_a_subscriber_wants_debug_events() {
        let events = Events::new(Log::new(crate::observe::LogFormat::Text, LogLevel::Off));
        let flag = events.wants_details();
        let wanted = || flag.load(Ordering::Relaxed);
        assert!(!wanted(), "there is no reader");
        events.set_log_level(LogLevel::Debug);
        assert!(wanted(), "the log is at debug");
        events.set_log_level(LogLevel::Off);
        let info = events.subscribe(Selection { level: Level::Info, after: 0 });
        assert!(!wanted(), "the subscriber wants info");
        let debug = events.subscribe(ALL);
        assert!(wanted(), "the subscriber wants debug");
        drop((info, debug));
        events.emit(&notice(1));
        assert!(!wanted(), "the subscribers have left");
    }

    #[test]
    fn the_ring_has_the_last_events_above_the_debug_level() {
        let mut history = History::default();
        add(&mut history, &Event::Drained {});
        for number in 0..RECENT_MAX {
            add(&mut history, &notice(number));
            add(&mut history, &Event::ServerChecked { pool: "p".into(), server: "s".into() });
        }
        let recent = history.recent(ALL);
        assert_eq!((recent.len(), recent[0].number, history.last), (RECENT_MAX, 2, 2001));
        assert_eq!(history.recent(Selection { level: Level::Info, after: 1998 }).len(), 1);
        assert_eq!(history.recent(Selection { level: Level::Error, after: 0 }).len(), 0);
        // The reader knows event 2002 from an earlier instance.
        assert_eq!(history.recent(Selection { level: Level::Info, after: 2002 }).len(), RECENT_MAX);
    }

    #[test]
    fn a_subscriber_receives_recent_events_and_then_new_ones_of_its_level() {
        let mut history = History::default();
        add(&mut history, &Event::Drained {});
        add(&mut history, &notice(1));
        let mut subscription = history.subscribe(Selection { level: Level::Warn, after: 0 }).unwrap();
        add(&mut history, &Event::Drained {});
        add(&mut history, &notice(2));
        let received: Vec<_> = std::iter::from_fn(|| next(&mut subscription)).collect();
        assert_eq!(received, ["2 notice", "4 notice"]);
    }

    #[test]
    fn a_slow_subscriber_receives_the_number_of_events_that_it_lost() {
        let mut history = History::default();
        let mut subscription = history.subscribe(ALL).unwrap();
        for number in 0..WAITING_MAX + 5 {
            add(&mut history, &notice(number));
        }
        assert_eq!(next(&mut subscription).as_deref(), Some("1 notice"));
        // There is room for an event, but the loss was not reported yet.
        add(&mut history, &notice(0));
        let received: Vec<_> = std::iter::from_fn(|| next(&mut subscription)).collect();
        assert_eq!((received.len(), received.last().unwrap().as_str()), (WAITING_MAX, "lost 6"));
        add(&mut history, &Event::Drained {});
        assert_eq!(next(&mut subscription).as_deref(), Some("263 drained"));
    }

    #[test]
    fn subscribers_are_bounded_and_leave_when_they_are_dropped() {
        let mut history = History::default();
        let subscriptions: Vec<_> = (0..SUBSCRIBERS_MAX).map(|_| history.subscribe(ALL).unwrap()).collect();
        assert!(history.subscribe(ALL).is_none());
        drop(subscriptions);
        assert!(history.subscribe(ALL).is_some());
        assert_eq!(history.subscribers.len(), 1);
        add(&mut history, &Event::Drained {});
        assert_eq!(history.subscribers.len(), 0);
    }
}
