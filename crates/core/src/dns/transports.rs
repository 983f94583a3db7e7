//! Which of its two transports a DNS server refuses. One that speaks only UDP is no worse for it, and what TCP clients meet
//! must not take it from others. Whether a server is up is not decided here: that is `health.rs`.

use crate::spec::Transport;
use crate::time::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A transport that was refused is avoided for so long.
const REFUSED: Duration = Duration::from_secs(30);
/// A response counts for so long as evidence that the transport works.
const WORKS: Duration = Duration::from_secs(5);
/// Responses are noted at most so often: they come often, and all workers write here.
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// Transports that a server is known to refuse.
#[derive(Debug, Default)]
pub struct Transports {
    datagram: Seen,
    stream: Seen,
}

/// When a transport was refused and when it brought a response, in nanoseconds; 0 is never.
#[derive(Debug, Default)]
struct Seen {
    refused_at: AtomicU64,
    answered_at: AtomicU64,
}

impl Transports {
    const fn seen(&self, by: Transport) -> &Seen {
        match by {
            Transport::Datagram => &self.datagram,
            Transport::Stream => &self.stream,
        }
    }

    /// The server refused this transport, or could not be reached by it.
    pub fn refused(&self, by: Transport, now: Time) {
        let seen = self.seen(by);
        seen.refused_at.store(now.as_nanos().max(1), Ordering::Relaxed);
        seen.answered_at.store(0, Ordering::Relaxed);
    }

    /// The server responded by this transport. Where both were refused it was gone and is back: the other one may be, too.
    pub fn answered(&self, by: Transport, now: Time) {
        let seen = self.seen(by);
        if seen.refused_at.load(Ordering::Relaxed) > 0 {
            self.datagram.refused_at.store(0, Ordering::Relaxed);
            self.stream.refused_at.store(0, Ordering::Relaxed);
        }
        if !is_within(seen.answered_at.load(Ordering::Relaxed), NOTED_EVERY, now) {
            seen.answered_at.store(now.as_nanos().max(1), Ordering::Relaxed);
        }
    }

    /// Whether this transport was refused of late, and brought no response since.
    #[must_use]
    pub fn refuses(&self, by: Transport, now: Time) -> bool {
        is_within(self.seen(by).refused_at.load(Ordering::Relaxed), REFUSED, now)
    }

    /// Whether this transport is refused, but not the other one. Of a server that refuses both its verdict says when it is
    /// asked again.
    #[must_use]
    pub fn refuses_only(&self, by: Transport, now: Time) -> bool {
        let both = self.refuses(Transport::Datagram, now) && self.refuses(Transport::Stream, now);
        self.refuses(by, now) && !both
    }

    /// Whether this transport brought a response of late, and was not refused since.
    #[must_use]
    pub fn works(&self, by: Transport, now: Time) -> bool {
        is_within(self.seen(by).answered_at.load(Ordering::Relaxed), WORKS, now)
    }

    /// Whether a refusal by this transport says something of the server as a whole. Every server speaks UDP, so one that
    /// refuses it is gone, unless TCP works; a refusal by TCP says nothing, unless UDP is refused, too.
    #[must_use]
    pub fn is_telling(&self, by: Transport, now: Time) -> bool {
        match by {
            Transport::Datagram => !self.works(Transport::Stream, now),
            Transport::Stream => self.refuses(Transport::Datagram, now),
        }
    }
}

/// Whether something was less than so long ago. Workers read the clock at different times: it may lie ahead.
fn is_within(nanos: u64, time: Duration, now: Time) -> bool {
    nanos > 0 && now.since(Time::from_nanos(nanos)) < time
}

#[cfg(test)]
mod tests {
    use super::*;
    use Transport::{Datagram, Stream};

    /// Steps: `u` and `t`, a refusal by UDP and TCP, `U` and `T`, a response; digits pass so many seconds. What holds in the
    /// end: `u` and `t`, the transports that are refused, `1`, that one of them is alone, `U` and `T`, those that work, `!` and `?`, whether a refusal by UDP
    /// and TCP is telling.
    fn check(steps: &str, expected: &str) {
        let (transports, mut now) = (Transports::default(), Time::from_nanos(1));
        for step in steps.chars() {
            match step {
                'u' => transports.refused(Datagram, now),
                't' => transports.refused(Stream, now),
                'U' => transports.answered(Datagram, now),
                'T' => transports.answered(Stream, now),
                digit => now += Duration::from_secs(u64::from(digit.to_digit(10).unwrap())),
            }
        }
        let marks = [
            ('u', transports.refuses(Datagram, now)),
            ('t', transports.refuses(Stream, now)),
            ('1', transports.refuses_only(Datagram, now) || transports.refuses_only(Stream, now)),
            ('U', transports.works(Datagram, now)),
            ('T', transports.works(Stream, now)),
            ('!', transports.is_telling(Datagram, now)),
            ('?', transports.is_telling(Stream, now)),
        ];
        let seen: String = marks.into_iter().filter(|(_, is_so)| *is_so).map(|(mark, _)| mark).collect();
        assert_eq!(seen, expected, "{steps}");
    }

    #[test]
    fn what_one_transport_refuses_counts_for_that_one() {
        check("", "!");
        check("Ut", "t1U!");
        check("t", "t1!");
        check("Tu", "u1T?");
        check("u", "u1!?");
        check("ut", "ut!?");
        check("TUut", "ut!?");
    }

    #[test]
    fn it_is_forgotten_in_time_and_by_a_response() {
        check("t992", "t1!");
        check("t993333", "!");
        check("tT", "T");
        check("utU", "U!");
        check("utT", "T");
        check("tU", "t1U!");
        check("T4", "T");
        check("T5", "!");
        check("T4T4", "T");
    }
}
