//! Server health: turns the results of probes and real traffic into a verdict, and schedules the next probe
//! and the end of a down time.
//!
//! An active check decides by `rise` and `fall`. The first probe of a server decides alone; until then the
//! server is unchecked. A failed connection attempt (or several in a row) marks a server down immediately,
//! for some time. If there is a check, `rise` successful probes in a row end that time early.

use crate::random::Random;
use crate::spec::{CheckSpec, PassiveSpec};
use crate::time::Time;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// Result of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The server responded as expected.
    Pass,
    /// The server did not respond as expected, with the reason.
    Fail(String),
    /// The probe could not be made for a local reason (descriptors, ports, memory), so there is no result.
    Unmade(String),
}

/// Failure of real traffic at a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection attempt was refused (or ICMP reported a closed port).
    Refused,
    /// The connection attempt timed out.
    Timeout,
    /// There is no route to the server.
    Unreachable,
    /// The TLS handshake failed.
    Tls(TlsFailure),
    /// The server sent no response to a request in time.
    Silent,
}

impl Failure {
    /// Returns the failure in words.
    #[must_use]
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Tls(how) => how.reason(),
            other => other.words().into(),
        }
    }

    /// Returns the failure in fixed words, without details of the server.
    #[must_use]
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "connect timeout",
            Self::Unreachable => "unreachable",
            Self::Tls(how) => how.words(),
            Self::Silent => "no response in time",
        }
    }
}

/// The reason why a TLS handshake with a server failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsFailure {
    /// The server closed the connection.
    Ended,
    /// The server did not complete the handshake within the connect timeout.
    Timeout,
    /// The server does not use TLS.
    NotTls,
    /// The server supports neither TLS 1.2 nor 1.3.
    Version,
    /// No cipher suite or group in common.
    CipherSuite,
    /// The server requires a client certificate and accepts neither none nor the configured one.
    ClientCertificate,
    /// The server ended the handshake with this alert.
    Alert(&'static str),
    /// The certificate is not from a trusted authority.
    Authority,
    /// The certificate has other names: the names, if they are known.
    Name(Option<Arc<str>>),
    /// The certificate has expired.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for another purpose.
    Purpose,
    /// The certificate was revoked.
    Revoked,
    /// The certificate is not valid for another reason.
    Certificate,
    /// The server violated the protocol.
    Protocol,
    /// Any other reason.
    Other,
}

impl TlsFailure {
    /// Returns the reason in words.
    #[must_use]
    pub fn reason(&self) -> Cow<'static, str> {
        match self {
            Self::Name(Some(names)) => format!("{}: it is for {names}", self.words()).into(),
            Self::Alert(alert) => format!("{} ({alert})", self.words()).into(),
            _ => self.words().into(),
        }
    }

    /// Returns the reason in fixed words, without details of the server.
    #[must_use]
    pub const fn words(&self) -> &'static str {
        match self {
            Self::Ended => "TLS handshake failed: the server closed the connection",
            Self::Timeout => "TLS handshake failed: the server did not complete it in time",
            Self::NotTls => "TLS handshake failed: the server does not use TLS",
            Self::Version => "TLS handshake failed: the server supports neither TLS 1.2 nor 1.3",
            Self::CipherSuite => "TLS handshake failed: no cipher suite or group in common",
            Self::ClientCertificate => {
                "TLS handshake failed: the server does not accept the client certificate"
            }
            Self::Alert(_) => "TLS handshake failed: the server sent an alert",
            Self::Authority => "TLS handshake failed: the certificate is not from a trusted authority",
            Self::Name(_) => "TLS handshake failed: the certificate has another name",
            Self::Expired => "TLS handshake failed: the certificate has expired",
            Self::NotYetValid => "TLS handshake failed: the certificate is not valid yet",
            Self::Purpose => "TLS handshake failed: the certificate is not for servers",
            Self::Revoked => "TLS handshake failed: the certificate was revoked",
            Self::Certificate => "TLS handshake failed: the certificate is not valid",
            Self::Protocol => "TLS handshake failed: the server violated the protocol",
            Self::Other => "TLS handshake failed for a local reason",
        }
    }
}

/// Verdict on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The server is used.
    Up,
    /// The first probe has not ended yet: the server is used only if no other server is usable.
    Unchecked,
    /// The server is not used.
    Down,
}

impl Verdict {
    /// Returns the name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Unchecked => "unchecked",
            Self::Down => "down",
        }
    }
}

/// A change of a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The server is used again.
    Up,
    /// The first probe of an unchecked server passed.
    Checked,
    /// The server is no longer used, with the reason.
    Down(String),
}

/// The health of one server.
#[derive(Clone, Debug)]
pub struct Health {
    check: Option<CheckSpec>,
    passive: PassiveSpec,
    active: Verdict,
    /// The next probe decides alone, because none has ended since the check began or resumed.
    first: bool,
    /// Number of the current round of probes. Results of earlier rounds are obsolete.
    round: u32,
    /// Consecutive probes that passed since real traffic last marked the server down, up to `rise`.
    passes: u32,
    /// Consecutive probes that failed, up to `fall`.
    fails: u32,
    /// Consecutive failures of real traffic.
    failures: u32,
    out_until: Option<Time>,
    reason: Option<String>,
    next_probe: Time,
    /// The next probe is the first one, whose delay is not drawn yet.
    is_cold: bool,
    /// State of the persistent connection to the server; `None` if it needs none.
    session: Option<Verdict>,
}

impl Health {
    /// Creates the health of a server without a history. With a check the server is unchecked and its first
    /// probe is due immediately; without a check it counts as up.
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
            is_cold: true,
            session: None,
        }
    }

    /// Creates the health of a server that needs a persistent connection and has no probes. It is down until
    /// the connection is established.
    #[must_use]
    pub fn with_session(passive: &PassiveSpec, now: Time) -> Self {
        let reason = Some("no persistent connection".into());
        Self { session: Some(Verdict::Down), reason, ..Self::new(None, passive, now) }
    }

    /// Records that the persistent connection was established, or failed with a reason.
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

    /// Applies another configuration. The verdict stays, but the first probe of a new check decides alone.
    /// Without a check the verdict of earlier checks is dropped, because no probe could change it.
    pub fn configure(
        &mut self,
        check: Option<&CheckSpec>,
        passive: &PassiveSpec,
        now: Time,
    ) -> Option<Change> {
        let before = self.verdict();
        if self.check.as_ref() != check {
            self.first |= self.check.is_none();
            self.is_cold |= self.check.is_none();
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

    /// Resumes the probes after a pause. The next probe decides alone; a server that was up is unchecked
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

    /// Returns the number of the current round of probes. A probe that began in an earlier round does not
    /// count.
    #[must_use]
    pub const fn round(&self) -> u32 {
        self.round
    }

    /// Returns the verdict.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let no_session = self.session == Some(Verdict::Down);
        if self.out_until.is_some() || no_session { Verdict::Down } else { self.active }
    }

    /// Returns true if only real traffic marked the server down, so that it may be tried as a last resort.
    #[must_use]
    pub fn is_only_passively_down(&self) -> bool {
        let is_connected = self.session != Some(Verdict::Down);
        self.out_until.is_some() && self.active != Verdict::Down && is_connected
    }

    /// Returns the reason why the server is down.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Records the result of a probe.
    pub fn on_probe(&mut self, seen: Probe) -> Option<Change> {
        let (rise, fall) = self.check.as_ref().map(|check| (check.rise, check.fall))?;
        if matches!(seen, Probe::Unmade(_)) {
            return None;
        }
        let before = self.verdict();
        if std::mem::take(&mut self.first) {
            // The first probe counts as the last probe of a streak.
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

    /// Records that real traffic could not reach the server.
    pub fn on_failure(&mut self, now: Time, failure: &Failure) -> Option<Change> {
        let before = self.verdict();
        self.failures = self.failures.saturating_add(1);
        if self.passive.failures > 0 && self.failures >= self.passive.failures {
            // Failures of connection attempts that began earlier do not prolong the down time, which would
            // otherwise never end under load.
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

    /// Forgets the failures of real traffic, because traffic reached the server or an operator reset it.
    pub fn forgive(&mut self) -> Option<Change> {
        let before = self.verdict();
        self.out_until = None;
        self.failures = 0;
        self.changed(before)
    }

    /// Handles deadlines that have passed.
    pub fn on_time(&mut self, now: Time) -> Option<Change> {
        let before = self.verdict();
        if self.out_until.is_some_and(|until| until <= now) {
            self.out_until = None;
            self.failures = 0;
        }
        self.changed(before)
    }

    /// Returns true if a probe is due; the first one is due after a random part of `warm_up`. In that case schedules the next probe `every` later, with jitter.
    pub fn probe_due(&mut self, now: Time, random: &mut Random) -> bool {
        let Some(check) = &self.check else { return false };
        let due = self.next_probe <= now;
        if due && std::mem::take(&mut self.is_cold) && !check.warm_up.is_zero() {
            self.next_probe = now + check.warm_up.mul_f64(random.fraction());
            return false;
        }
        if due {
            let factor = 1.0 + check.jitter * (random.fraction() * 2.0 - 1.0);
            self.next_probe = now + check.every.mul_f64(factor).max(Duration::from_millis(1));
        }
        due
    }

    /// Returns the time of the next probe or of the end of the down time, whichever is earlier.
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

    /// Panics unless the state is consistent.
    pub fn check_invariants(&self) {
        assert_eq!(
            self.verdict() == Verdict::Down,
            self.reason.is_some(),
            "a server has a reason exactly if it is down"
        );
        assert!(
            self.check.is_some() || self.active == Verdict::Up,
            "without a check only traffic marks a server down"
        );
        assert!(self.check.is_some() || !self.first, "without a check there is no first probe");
        assert!(
            self.first || self.active != Verdict::Unchecked,
            "a server is unchecked only until its first probe"
        );
        let (rise, fall) = self.check.as_ref().map_or((0, 0), |check| (check.rise, check.fall));
        assert!(self.passes <= rise && self.fails <= fall, "streaks are at most `rise` and `fall` long");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::CheckKind;

    /// Steps: `p`ass, `f`ail, `u`nmade, `r`efused, `s`uccess, end of `m`aintenance; a digit is a number of
    /// seconds that pass. `expected` has the verdict after each step.
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
                'r' => health.on_failure(now, &Failure::Refused),
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
    fn an_active_verdict_changes_after_rise_or_fall_results_in_a_row() {
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
    fn traffic_marks_a_server_down_immediately_and_the_check_restores_it() {
        check(2, 3, 1, "prpp", "UddU");
        check(2, 3, 1, "prpfpp", "UddddU");
        check(2, 3, 1, "pr5", "UdU");
        check(2, 3, 1, "prfff5", "Uddddd");
        check(2, 3, 0, "prrr", "UUUU");
        check(2, 3, 2, "prsrrs", "UUUUdU");
    }

    #[test]
    fn a_probe_that_could_not_be_made_changes_nothing() {
        check(2, 3, 1, "uuuuu", "?????");
        check(2, 3, 1, "ufpp", "?ddU");
        check(2, 3, 1, "pffufupp", "UUUUdddU");
        check(2, 3, 1, "pfffpup", "UUUdddU");
    }

    #[test]
    fn without_a_check_time_alone_restores_a_server() {
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
    fn first_probes_are_spread_over_the_warm_up() {
        let spec = CheckSpec { warm_up: Duration::from_secs(10), ..CheckSpec::new(CheckKind::Tcp) };
        let mut random = Random::seeded(1);
        let first = |random: &mut Random| {
            let mut health = Health::new(Some(&spec), &PassiveSpec::default(), Time::ZERO);
            assert!(!health.probe_due(Time::ZERO, random));
            let at = health.deadline();
            assert!(health.probe_due(at, random), "the delay is drawn once");
            assert!(health.deadline().since(at) <= spec.every * 2);
            at.since(Time::ZERO).as_secs_f64()
        };
        let delays: Vec<f64> = (0..100).map(|_| first(&mut random)).collect();
        assert!(delays.iter().all(|delay| *delay <= 10.0));
        assert!(delays.iter().any(|delay| *delay < 2.0) && delays.iter().any(|delay| *delay > 8.0));
    }

    #[test]
    fn removing_a_check_drops_its_verdict() {
        let spec = CheckSpec { fall: 1, ..CheckSpec::new(CheckKind::Tcp) };
        let passive = PassiveSpec::default();
        let mut health = Health::new(Some(&spec), &passive, Time::ZERO);
        assert!(matches!(health.on_probe(Probe::Fail("no".into())), Some(Change::Down(_))));
        assert_eq!(health.configure(Some(&spec), &passive, Time::ZERO), None);
        assert_eq!(health.configure(None, &passive, Time::ZERO), Some(Change::Up));
    }

    #[test]
    fn a_new_check_leaves_the_verdict_until_its_first_probe() {
        let (spec, passive) = (CheckSpec::new(CheckKind::Tcp), PassiveSpec::default());
        let mut health = Health::new(None, &passive, Time::ZERO);
        assert_eq!(health.configure(Some(&spec), &passive, Time::ZERO), None);
        assert_eq!(health.verdict(), Verdict::Up);
        assert!(matches!(health.on_probe(Probe::Fail("no".into())), Some(Change::Down(_))));
        health.check_invariants();
    }
}
