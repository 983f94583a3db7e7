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
/// Interval of warnings about certificates that expire soon.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The certificates in use, and the checks of their files.
#[derive(Default)]
pub(super) struct Certificates {
    tls: TlsSettings,
    next: Time,
    busy: bool,
    warned: Time,
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
    /// configuration, `config`.
    pub(super) fn on_time(
        &mut self,
        now: Time,
        config: &Config,
        configuration: u64,
        sender: &mpsc::Sender<Input>,
    ) -> Vec<Event> {
        if now < self.deadline() {
            return Vec::new();
        }
        (self.busy, self.next) = (true, now + CHECK_EVERY);
        let is_warning_due = now.since(self.warned) >= WARN_EVERY;
        let events = if is_warning_due { self.warnings(now) } else { Vec::new() };
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

    /// Returns notices about the certificates that have expired or expire soon.
    pub(super) fn warnings(&mut self, now: Time) -> Vec<Event> {
        self.warned = now;
        self.tls.warnings().into_iter().map(|text| Event::Notice { text }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_checked_immediately_after_a_configuration() {
        let (sender, mut inputs) = mpsc::channel(1);
        let tls = || TlsSettings::of_missing_file("/no/such/file.pem".into());
        let mut certificates = Certificates::default();
        certificates.configure(tls());
        let now = Time::ZERO + Duration::from_secs(60);
        for configuration in 1..3 {
            certificates.on_time(now, &Config::default(), configuration, &sender);
            let Some(Input::Reread(reread)) = inputs.recv().await else { panic!("expected a result") };
            assert!(certificates.on_reread(reread, configuration).is_ok_and(|found| found.is_none()));
            assert_eq!(certificates.deadline(), now + CHECK_EVERY);
            // A check that puts newer files in use is followed by older files of a slow reload.
            certificates.configure(tls());
            assert!(certificates.deadline() <= now, "{:?}", certificates.deadline());
        }
    }
}
