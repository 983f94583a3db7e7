//! The transports that a DNS server refuses. A server that supports only UDP is healthy: its failures over TCP
//! must not exclude it for UDP clients. `health.rs` decides whether a server is up.

use crate::spec::Transport;
use crate::time::Time;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time for which a refused transport is avoided.
const REFUSED: Duration = Duration::from_secs(30);
/// Time for which a response proves that the transport works.
const WORKS: Duration = Duration::from_secs(5);
/// Minimum time between two updates of the time of the last response: responses are frequent, and all workers
/// write to the same place in memory.
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// Transports that a server is known to refuse.
#[derive(Debug, Default)]
pub struct Transports {
    datagram: TransportTimes,
    stream: TransportTimes,
}

/// Times of the last refusal and of the last response over one transport, in nanoseconds; 0 is never.
#[derive(Debug, Default)]
struct TransportTimes {
    refused_at: AtomicU64,
    responded_at: AtomicU64,
}

impl Transports {
    const fn seen(&self, by: Transport) -> &TransportTimes {
        match by {
            Transport::Datagram => &self.datagram,
            Transport::Stream => &self.stream,
        }
    }

    /// Records that the server refused this transport or was not reachable over it.
    pub fn refused(&self, by: Transport, now: Time) {
        let seen = self.seen(by);
        seen.refused_at.store(now.as_nanos().max(1), Ordering::Relaxed);
        seen.responded_at.store(0, Ordering::Relaxed);
    }

    /// Records a response over this transport. If this transport was refused before, the refusals of both
    /// transports are forgotten: the server was down and is up again.
    pub fn responded(&self, by: Transport, now: Time) {
        let seen = self.seen(by);
        if seen.refused_at.load(Ordering::Relaxed) > 0 {
            self.datagram.refused_at.store(0, Ordering::Relaxed);
            self.stream.refused_at.store(0, Ordering::Relaxed);
        }
        if !is_within(seen.responded_at.load(Ordering::Relaxed), NOTED_EVERY, now) {
            seen.responded_at.store(now.as_nanos().max(1), Ordering::Relaxed);
        }
    }

    /// Returns true if this transport was refused recently and no response has cancelled the refusal since.
    #[must_use]
    pub fn refuses(&self, by: Transport, now: Time) -> bool {
        is_within(self.seen(by).refused_at.load(Ordering::Relaxed), REFUSED, now)
    }

    /// Returns true if this transport is refused and the other transport is not. If a server refuses both, its
    /// verdict decides when the server is tried again.
    #[must_use]
    pub fn refuses_only(&self, by: Transport, now: Time) -> bool {
        let both = self.refuses(Transport::Datagram, now) && self.refuses(Transport::Stream, now);
        self.refuses(by, now) && !both
    }

    /// Returns true if a response arrived over this transport recently and the transport was not refused since.
    #[must_use]
    pub fn works(&self, by: Transport, now: Time) -> bool {
        is_within(self.seen(by).responded_at.load(Ordering::Relaxed), WORKS, now)
    }

    /// Returns true if a refusal of this transport counts against the whole server. Every server supports UDP,
    /// so a server that refuses UDP is down, unless TCP works. A refusal of TCP counts only if UDP is also
    /// refused.
    #[must_use]
    pub fn is_telling(&self, by: Transport, now: Time) -> bool {
        match by {
            Transport::Datagram => !self.works(Transport::Stream, now),
            Transport::Stream => self.refuses(Transport::Datagram, now),
        }
    }
}

/// Returns true if less than `time` has passed since `nanos`; 0 is never. Workers read the clock at different
/// times, so `nanos` may lie in the future.
fn is_within(nanos: u64, time: Duration, now: Time) -> bool {
    nanos > 0 && now.since(Time::from_nanos(nanos)) < time
}

#[cfg(test)]
mod tests {
    use super::*;
    use Transport::{Datagram, Stream};

    /// Steps: `u` is a refusal of UDP, `t` of TCP; `U` and `T` are responses; a digit lets that many seconds
    /// pass. Expected: `u` and `t` are the refused transports, `1` means that only one of them is refused, `U`
    /// and `T` are the working transports, and `!` and `?` mean that a refusal of UDP or TCP counts against the
    /// server.
    fn check(steps: &str, expected: &str) {
        let (transports, mut now) = (Transports::default(), Time::from_nanos(1));
        for step in steps.chars() {
            match step {
                'u' => transports.refused(Datagram, now),
                't' => transports.refused(Stream, now),
                'U' => transports.responded(Datagram, now),
                'T' => transports.responded(Stream, now),
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
    fn a_refusal_counts_for_its_transport_only() {
        check("", "!");
        check("Ut", "t1U!");
        check("t", "t1!");
        check("Tu", "u1T?");
        check("u", "u1!?");
        check("ut", "ut!?");
        check("TUut", "ut!?");
    }

    #[test]
    fn a_refusal_is_forgotten_after_30_seconds_or_by_a_response() {
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
