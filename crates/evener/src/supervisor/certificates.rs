//! Certificates that change on disk, for example because of an ACME client. They are applied without a reload,
//! and nothing else changes. If there are problems, they are logged and the old certificates stay in use.

use super::Input;
use crate::certificates::{self, TlsSettings};
use crate::config::{Config, Problem, one_line};
use evener_core::Time;
use evener_core::event::Event;
use std::time::Duration;
use tokio::sync::mpsc;

/// Interval at which the files are checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Interval of warnings about certificates that have expired or expire soon.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of events about expiring certificates at a time.
const EVENTS_MAX: usize = 20;

/// The certificates in use, and the checks of their files.
#[derive(Default)]
pub(super) struct Certificates {
    tls: TlsSettings,
    next: Time,
    busy: bool,
    warned: Time,
    /// Time at which the next certificate expires or is about to expire, in seconds since 1970.
    next_expiry: Option<i64>,
    /// Last problem that was logged. It is not logged again.
    logged: Option<String>,
}

/// Certificates that were read again.
pub(crate) struct Reread {
    /// Number of the configuration for which they were read.
    configuration: u64,
    /// `None` when no file changed.
    found: Option<Result<TlsSettings, Vec<Problem>>>,
}

impl Certificates {
    /// Returns the TLS settings in use.
    pub(super) fn tls(&self) -> &TlsSettings {
        &self.tls
    }

    /// Puts TLS settings in use.
    pub(super) fn replace(&mut self, tls: TlsSettings) {
        self.tls = tls;
    }

    /// Puts the TLS settings of a new configuration in use. A check during the reload may have put newer files in
    /// use, so the next check is due immediately.
    pub(super) fn configure(&mut self, tls: TlsSettings) {
        self.replace(tls);
        self.next = Time::ZERO;
    }

    /// Returns the time of the next check.
    pub(super) fn deadline(&self) -> Time {
        if self.tls.is_empty() || self.busy { Time::NEVER } else { self.next }
    }

    /// Checks the files on another thread if a check is due. `configuration` is the number of the present
    /// configuration, `config`. `unix_time` is the time in seconds since 1970.
    pub(super) fn on_time(
        &mut self,
        now: Time,
        unix_time: i64,
        config: &Config,
        configuration: u64,
        sender: &mpsc::Sender<Input>,
    ) -> Vec<Event> {
        if now < self.deadline() {
            return Vec::new();
        }
        (self.busy, self.next) = (true, now + CHECK_EVERY);
        let is_warning_due = now.since(self.warned) >= WARN_EVERY
            || self.next_expiry.is_some_and(|next_expiry| unix_time >= next_expiry);
        let events = if is_warning_due { self.expiry_events(now, unix_time) } else { Vec::new() };
        let (config, before, sender) = (config.clone(), self.tls.clone(), sender.clone());
        tokio::spawn(async move {
            let inspect = move || before.is_stale().then(|| certificates::load(&config, &before));
            let found = tokio::task::spawn_blocking(inspect).await.unwrap_or_default();
            let _ = sender.send(Input::Reread(Reread { configuration, found })).await;
        });
        events
    }

    /// Handles the result of a check. Returns certificates that are to be applied, or the problem if it is new.
    pub(super) fn on_reread(
        &mut self,
        reread: Reread,
        configuration: u64,
    ) -> Result<Option<TlsSettings>, Event> {
        self.busy = false;
        if reread.configuration != configuration {
            // A reload in the meantime read newer files for another configuration.
            return Ok(None);
        }
        match reread.found {
            None => {
                self.logged = None;
                Ok(None)
            }
            Some(Ok(tls)) => {
                self.logged = None;
                Ok(Some(tls))
            }
            Some(Err(problems)) => {
                let problem = one_line(&problems);
                if self.logged.as_ref() == Some(&problem) {
                    return Ok(None);
                }
                self.logged = Some(problem.clone());
                Err(Event::CertificatesRefused { problem })
            }
        }
    }

    /// Returns events about the certificates that have expired or expire soon at `unix_time`, in seconds since
    /// 1970. They are due again after a day, and as soon as another certificate expires.
    pub(super) fn expiry_events(&mut self, now: Time, unix_time: i64) -> Vec<Event> {
        self.warned = now;
        let (mut events, next_expiry) = self.tls.expiry_events(unix_time);
        self.next_expiry = next_expiry;
        if events.len() > EVENTS_MAX {
            let more = events.len() - EVENTS_MAX;
            events.truncate(EVENTS_MAX);
            let text = format!(
                "{more} more certificates have expired or expire soon: `evener check FILE` lists them"
            );
            events.push(Event::Notice { text });
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_certificate_that_expires_while_the_program_runs_is_logged_then_and_once_a_day() {
        const DAY: i64 = 86_400;
        let (sender, mut inputs) = mpsc::channel(1);
        let end = 1000 * DAY;
        let mut certificates = Certificates::default();
        certificates.configure(TlsSettings::of_certificate(end));
        let start = end - 15 * DAY;
        assert_eq!(certificates.expiry_events(Time::ZERO, start), []);
        // The seconds since the start at which a check is made, and the event that it logs.
        let checks = [
            (DAY - 60, None),
            (DAY + 60, Some("certificate_expires")),
            (DAY + 120, None),
            (2 * DAY + 120, Some("certificate_expires")),
            (15 * DAY, Some("certificate_expires")),
            (15 * DAY + 6, Some("certificate_expired")),
            (15 * DAY + 12, None),
            (16 * DAY + 12, Some("certificate_expired")),
        ];
        for (after, expected) in checks {
            let now = Time::ZERO + Duration::from_secs(after as u64);
            let events = certificates.on_time(now, start + after, &Config::default(), 1, &sender);
            let names: Vec<&str> = events.iter().map(Event::name).collect();
            assert_eq!(names, expected.into_iter().collect::<Vec<_>>(), "{after}");
            let Some(Input::Reread(reread)) = inputs.recv().await else { panic!("expected a result") };
            assert!(certificates.on_reread(reread, 1).is_ok_and(|found| found.is_none()));
        }
    }

    #[tokio::test]
    async fn files_are_checked_immediately_after_a_configuration() {
        let (sender, mut inputs) = mpsc::channel(1);
        let tls = || TlsSettings::of_missing_file("/no/such/file.pem".into());
        let mut certificates = Certificates::default();
        certificates.configure(tls());
        let now = Time::ZERO + Duration::from_secs(60);
        for configuration in 1..3 {
            certificates.on_time(now, 0, &Config::default(), configuration, &sender);
            let Some(Input::Reread(reread)) = inputs.recv().await else { panic!("expected a result") };
            assert!(certificates.on_reread(reread, configuration).is_ok_and(|found| found.is_none()));
            assert_eq!(certificates.deadline(), now + CHECK_EVERY);
            // A check that puts newer files in use is followed by older files of a slow reload.
            certificates.configure(tls());
            assert!(certificates.deadline() <= now, "{:?}", certificates.deadline());
        }
    }
}
