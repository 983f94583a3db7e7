//! Health: from what probes and real traffic saw to a verdict, and the deadlines of both.
//!
//! An active check decides by `rise` and `fall`; the first probe of a server decides alone, and until then the server is
//! unchecked. A failed connect takes a server out at once (or after some failures in
//! a row): for a time, or, when there is a check, until the check has found it well again or that time is over.

use crate::random::Random;
use crate::spec::{CheckSpec, PassiveSpec};
use crate::time::Time;
use std::time::Duration;

/// What a probe saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The server answered as it should.
    Pass,
    /// It did not, and this is why.
    Fail(String),
    /// The probe was not made, for a reason of our own (descriptors, ports, memory): no verdict.
    Unmade(String),
}

/// What real traffic saw of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connect was refused (or ICMP said that the port is closed).
    Refused,
    /// The connect was not answered in time.
    Timeout,
    /// There is no way to it.
    Unreachable,
    /// TLS with it failed, and how.
    Tls(TlsFailure),
    /// It was asked, and said nothing at all in time.
    Silent,
}

impl Failure {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "connect timeout",
            Self::Unreachable => "unreachable",
            Self::Tls(how) => how.reason(),
            Self::Silent => "no answer in time",
        }
    }
}

/// The reason why a TLS handshake with a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// The server ended the connection.
    Ended,
    /// The server does not speak TLS.
    NotTls,
    /// Neither TLS 1.2 nor 1.3.
    Version,
    /// No cipher suite or group in common.
    CipherSuite,
    /// The server wants another certificate of ours, or one at all.
    OurCertificate,
    /// The server refused for another reason.
    Refused,
    /// Its certificate is not of a trusted authority.
    Authority,
    /// Its certificate does not have the name.
    Name,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// Its certificate is for another purpose.
    Purpose,
    /// Its certificate is not valid for another reason.
    Certificate,
    /// Anything else.
    Other,
}

impl TlsFailure {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Ended => "TLS handshake failed: the server ended the connection",
            Self::NotTls => "TLS handshake failed: the server does not speak TLS",
            Self::Version => "TLS handshake failed: the server speaks neither TLS 1.2 nor 1.3",
            Self::CipherSuite => "TLS handshake failed: no cipher suite in common",
            Self::OurCertificate => "TLS handshake failed: the server does not take our certificate",
            Self::Refused => "TLS handshake failed: the server refused it",
            Self::Authority => "TLS handshake failed: the certificate is not of a trusted authority",
            Self::Name => "TLS handshake failed: the certificate has another name",
            Self::Expired => "TLS handshake failed: the certificate has expired",
            Self::NotYetValid => "TLS handshake failed: the certificate is not valid yet",
            Self::Purpose => "TLS handshake failed: the certificate is not for servers",
            Self::Certificate => "TLS handshake failed: the certificate is not valid",
            Self::Other => "TLS handshake failed",
        }
    }
}

/// Whether a server is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Up,
    /// Its first probe has not come back yet: it is used only where no other server is there.
    Unchecked,
    /// It is not.
    Down,
}

impl Verdict {
    /// The word of the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Unchecked => "unchecked",
            Self::Down => "down",
        }
    }
}

/// A verdict that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The server is used again.
    Up,
    /// The first probe of an unchecked server passed.
    Checked,
    /// The server is used no more, and why.
    Down(String),
}

/// The health of one server.
#[derive(Clone, Debug)]
pub struct Health {
    check: Option<CheckSpec>,
    passive: PassiveSpec,
    active: Verdict,
    /// The next probe decides alone, for none has come back yet.
    first: bool,
    /// Numbers the times since which probes count: the result of an earlier one says nothing of now.
    round: u32,
    /// Consecutive probes that passed since real traffic last took it out, up to `rise`.
    passes: u32,
    /// Consecutive probes that failed, up to `fall`.
    fails: u32,
    /// Consecutive failures of real traffic.
    failures: u32,
    out_until: Option<Time>,
    reason: Option<String>,
    next_probe: Time,
    /// Whether the connection that has to stand with it does; `None` where none has to.
    session: Option<Verdict>,
}

impl Health {
    /// Health of a server without a history. With a check it is unchecked, and its first probe is due at once; without
    /// one it counts as up.
    #[must_use]
    pub fn new(check: Option<&CheckSpec>, passive: &PassiveSpec, now: Time) -> Self {
        Self {
            check: check.cloned(),
            passive: passive.clone(),
            active: if check.is_some() { Verdict::Unchecked } else { Verdict::Up },
            first: check.is_some(),
            round: 0,
            passes: 0,
            fails: 0,
            failures: 0,
            out_until: None,
            reason: None,
            next_probe: if check.is_some() { now } else { Time::NEVER },
            session: None,
        }
    }

    /// A server that is down as long as no connection stands with it. Probes are not for such.
    #[must_use]
    pub fn with_session(passive: &PassiveSpec, now: Time) -> Self {
        let reason = Some("no connection stands with it".into());
        Self { session: Some(Verdict::Down), reason, ..Self::new(None, passive, now) }
    }

    /// The connection that has to stand with it does, or no longer does and why.
    pub fn on_session(&mut self, seen: Probe) -> Option<Change> {
        let before = self.verdict();
        match seen {
            Probe::Pass => self.session = Some(Verdict::Up),
            Probe::Fail(reason) => {
                self.session = Some(Verdict::Down);
                self.reason = Some(reason);
            }
            Probe::Unmade(_) => {}
        }
        self.changed(before)
    }

    /// Takes on another configuration; the verdict stays, but the first probe of a check that was not there before
    /// decides alone. Without a check nothing could lift its verdict, so it goes.
    pub fn configure(
        &mut self,
        check: Option<&CheckSpec>,
        passive: &PassiveSpec,
        now: Time,
    ) -> Option<Change> {
        let before = self.verdict();
        if self.check.as_ref() != check {
            self.first |= self.check.is_none();
            self.round = self.round.wrapping_add(1);
            self.check = check.cloned();
            (self.passes, self.fails) = (0, 0);
            self.next_probe = if check.is_some() { now } else { Time::NEVER };
        }
        if check.is_none() {
            (self.active, self.first) = (Verdict::Up, false);
        }
        if passive.failures == 0 {
            self.out_until = None;
        }
        self.passive = passive.clone();
        self.changed(before)
    }

    /// Takes up the probes again after a time without any: the next one decides alone. A server that was up is unchecked
    /// until then.
    pub fn resume(&mut self, now: Time) {
        if self.check.is_none() {
            return;
        }
        (self.first, self.next_probe) = (true, now);
        self.round = self.round.wrapping_add(1);
        (self.passes, self.fails) = (0, 0);
        if self.active == Verdict::Up {
            self.active = Verdict::Unchecked;
        }
    }

    /// The number of the present round of probes: one that began in an earlier round does not count.
    #[must_use]
    pub const fn round(&self) -> u32 {
        self.round
    }

    /// Whether the server is used.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let no_session = self.session == Some(Verdict::Down);
        if self.out_until.is_some() || no_session { Verdict::Down } else { self.active }
    }

    /// Whether only real traffic took it out: as a last resort it may be tried.
    #[must_use]
    pub fn is_only_passively_down(&self) -> bool {
        let stands = self.session != Some(Verdict::Down);
        self.out_until.is_some() && self.active != Verdict::Down && stands
    }

    /// Why it is down.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// A probe came back.
    pub fn on_probe(&mut self, seen: Probe) -> Option<Change> {
        let (rise, fall) = self.check.as_ref().map(|check| (check.rise, check.fall))?;
        if matches!(seen, Probe::Unmade(_)) {
            return None;
        }
        let before = self.verdict();
        if std::mem::take(&mut self.first) {
            // As if it were the last one of a streak.
            (self.passes, self.fails) = (rise - 1, fall - 1);
        }
        match seen {
            Probe::Pass => self.on_pass(rise),
            Probe::Fail(reason) => self.on_fail(reason, fall),
            Probe::Unmade(_) => {}
        }
        self.changed(before)
    }

    fn on_pass(&mut self, rise: u32) {
        (self.passes, self.fails) = ((self.passes + 1).min(rise), 0);
        if self.passes >= rise {
            self.active = Verdict::Up;
            self.out_until = None;
            self.failures = 0;
        }
    }

    fn on_fail(&mut self, reason: String, fall: u32) {
        (self.passes, self.fails) = (0, (self.fails + 1).min(fall));
        if self.fails >= fall {
            self.active = Verdict::Down;
        }
        if self.active == Verdict::Down {
            self.reason = Some(reason);
        }
    }

    /// Real traffic could not reach it.
    pub fn on_failure(&mut self, now: Time, failure: Failure) -> Option<Change> {
        let before = self.verdict();
        self.failures = self.failures.saturating_add(1);
        if self.passive.failures > 0 && self.failures >= self.passive.failures {
            // A failure of a connect that began before does not prolong the time: it would, without end, under load.
            if self.out_until.is_none() {
                self.out_until = Some(now + self.passive.down_for);
                self.passes = 0;
                if self.check.is_some() {
                    self.next_probe = self.next_probe.min(now);
                }
            }
            if self.active != Verdict::Down {
                self.reason = Some(failure.reason().into());
            }
        }
        self.changed(before)
    }

    /// Real traffic reached it, or an operator brings it back: what traffic saw before no longer counts.
    pub fn forgive(&mut self) -> Option<Change> {
        let before = self.verdict();
        self.out_until = None;
        self.failures = 0;
        self.changed(before)
    }

    /// Time passed.
    pub fn on_time(&mut self, now: Time) -> Option<Change> {
        let before = self.verdict();
        if self.out_until.is_some_and(|until| until <= now) {
            self.out_until = None;
            self.failures = 0;
        }
        self.changed(before)
    }

    /// Whether a probe is due; if so the next one is planned, `every` later with its jitter.
    pub fn probe_due(&mut self, now: Time, random: &mut Random) -> bool {
        let Some(check) = &self.check else { return false };
        let due = self.next_probe <= now;
        if due {
            let factor = 1.0 + check.jitter * (random.fraction() * 2.0 - 1.0);
            self.next_probe = now + check.every.mul_f64(factor).max(Duration::from_millis(1));
        }
        due
    }

    /// When time alone changes something, or a probe is due.
    #[must_use]
    pub fn deadline(&self) -> Time {
        self.next_probe.min(self.out_until.unwrap_or(Time::NEVER))
    }

    fn changed(&mut self, before: Verdict) -> Option<Change> {
        let after = self.verdict();
        if after != Verdict::Down {
            self.reason = None;
        }
        match (before, after) {
            (Verdict::Up | Verdict::Unchecked, Verdict::Down) => {
                Some(Change::Down(self.reason.clone().unwrap_or_else(|| "unknown".into())))
            }
            (Verdict::Down, Verdict::Up | Verdict::Unchecked) => Some(Change::Up),
            (Verdict::Unchecked, Verdict::Up) => Some(Change::Checked),
            _ => None,
        }
    }

    /// Panics unless what is known fits together.
    pub fn check_invariants(&self) {
        assert_eq!(
            self.verdict() == Verdict::Down,
            self.reason.is_some(),
            "a reason exactly when it is down"
        );
        assert!(self.check.is_some() || self.active == Verdict::Up, "without a check only traffic takes out");
        assert!(self.check.is_some() || !self.first, "without a check no probe comes");
        assert!(self.first || self.active != Verdict::Unchecked, "the first probe decides");
        let (rise, fall) = self.check.as_ref().map_or((0, 0), |check| (check.rise, check.fall));
        assert!(self.passes <= rise && self.fails <= fall, "a streak ends in a verdict");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CheckKind;

    /// Steps: `p`ass, `f`ail, `r`efused, `s`uccess, `m`aintenance over, digits pass seconds. Expects the verdict after each
    /// letter.
    fn check(rise: u32, fall: u32, failures: u32, steps: &str, expected: &str) {
        let spec = CheckSpec { rise, fall, ..CheckSpec::new(CheckKind::Tcp) };
        let passive = PassiveSpec { failures, down_for: Duration::from_secs(5) };
        run(Some(&spec), &passive, steps, expected);
    }

    fn run(spec: Option<&CheckSpec>, passive: &PassiveSpec, steps: &str, expected: &str) {
        let mut now = Time::ZERO;
        let mut health = Health::new(spec, passive, now);
        let mut seen = String::new();
        for step in steps.chars() {
            let _ = match step {
                'p' => health.on_probe(Probe::Pass),
                'f' => health.on_probe(Probe::Fail("no".into())),
                'u' => health.on_probe(Probe::Unmade("no descriptor".into())),
                'r' => health.on_failure(now, Failure::Refused),
                's' => health.forgive(),
                'm' => {
                    health.resume(now);
                    None
                }
                digit => {
                    now += Duration::from_secs(u64::from(digit.to_digit(10).unwrap()));
                    health.on_time(now)
                }
            };
            health.check_invariants();
            seen.push(match health.verdict() {
                Verdict::Up => 'U',
                Verdict::Unchecked => '?',
                Verdict::Down => 'd',
            });
        }
        assert_eq!(seen, expected, "{steps}");
    }

    #[test]
    fn an_active_verdict_takes_rise_and_fall_in_a_row() {
        check(2, 3, 1, "pffpfffppp", "UUUUUUddUU");
        check(2, 3, 1, "pfffpfpp", "UUUddddU");
        check(1, 1, 1, "fpfp", "dUdU");
    }

    #[test]
    fn the_first_probe_decides_alone() {
        check(2, 3, 1, "0f", "?d");
        check(2, 3, 1, "9pff", "?UUU");
        check(2, 3, 1, "fpp", "ddU");
        check(2, 3, 1, "rp", "dU");
        check(2, 3, 1, "r5f", "d?d");
        check(2, 3, 1, "rs", "d?");
        check(2, 3, 1, "pmf", "U?d");
        check(2, 3, 1, "pmp", "U?U");
        check(2, 3, 1, "fmp", "ddU");
        check(2, 3, 1, "fmfpp", "ddddU");
    }

    #[test]
    fn traffic_takes_out_at_once_and_the_check_brings_back() {
        check(2, 3, 1, "prpp", "UddU");
        check(2, 3, 1, "prpfpp", "UddddU");
        check(2, 3, 1, "pr5", "UdU");
        check(2, 3, 1, "prfff5", "Uddddd");
        check(2, 3, 0, "prrr", "UUUU");
        check(2, 3, 2, "prsrrs", "UUUUdU");
    }

    #[test]
    fn a_check_that_could_not_be_made_changes_nothing() {
        check(2, 3, 1, "uuuuu", "?????");
        check(2, 3, 1, "ufpp", "?ddU");
        check(2, 3, 1, "pffufupp", "UUUUdddU");
        check(2, 3, 1, "pfffpup", "UUUdddU");
    }

    #[test]
    fn without_a_check_the_time_alone_brings_back() {
        let passive = PassiveSpec { failures: 1, down_for: Duration::from_secs(5) };
        run(None, &passive, "r4r1", "dddU");
        run(None, &passive, "fffr5r", "UUUdUd");
    }

    #[test]
    fn probes_come_at_their_interval_within_the_jitter() {
        let spec =
            CheckSpec { jitter: 0.2, every: Duration::from_secs(10), ..CheckSpec::new(CheckKind::Tcp) };
        let mut health = Health::new(Some(&spec), &PassiveSpec::default(), Time::ZERO);
        let mut random = Random::seeded(1);
        let (mut now, mut seen) = (Time::ZERO, Vec::new());
        for _ in 0..100 {
            assert!(health.probe_due(now, &mut random) && !health.probe_due(now, &mut random));
            seen.push(health.deadline().since(now).as_secs_f64());
            now = health.deadline();
        }
        assert!(seen.iter().all(|gap| (8.0..=12.0).contains(gap)));
        assert!(seen.iter().any(|gap| *gap < 9.0) && seen.iter().any(|gap| *gap > 11.0));
    }

    #[test]
    fn a_check_that_is_taken_away_takes_its_verdict_along() {
        let spec = CheckSpec { fall: 1, ..CheckSpec::new(CheckKind::Tcp) };
        let passive = PassiveSpec::default();
        let mut health = Health::new(Some(&spec), &passive, Time::ZERO);
        assert!(matches!(health.on_probe(Probe::Fail("no".into())), Some(Change::Down(_))));
        assert_eq!(health.configure(Some(&spec), &passive, Time::ZERO), None);
        assert_eq!(health.configure(None, &passive, Time::ZERO), Some(Change::Up));
    }

    #[test]
    fn a_check_that_comes_leaves_the_verdict_until_its_first_probe() {
        let (spec, passive) = (CheckSpec::new(CheckKind::Tcp), PassiveSpec::default());
        let mut health = Health::new(None, &passive, Time::ZERO);
        assert_eq!(health.configure(Some(&spec), &passive, Time::ZERO), None);
        assert_eq!(health.verdict(), Verdict::Up);
        assert!(matches!(health.on_probe(Probe::Fail("no".into())), Some(Change::Down(_))));
        health.check_invariants();
    }
}
