//! Certificates that change on disk, for example because of an ACME client. They are applied without a reload,
//! and nothing else changes. If there are problems, they are logged and the old certificates stay in use.

use super::{Input, Supervisor};
use crate::certificates::{self, TlsSettings};
use crate::config::{Problem, one_line};
use evener_core::Time;
use evener_core::event::Event;
use std::time::Duration;

/// Interval at which the files are checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// Interval of warnings about certificates that expire soon.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// State of the checks of certificate files.
#[derive(Default)]
pub(super) struct Watch {
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

impl Supervisor {
    /// Checks the files on another thread if a check is due.
    pub(super) fn check_certificates(&mut self, now: Time) {
        if self.tls.is_empty() || self.watch.busy || now < self.watch.next {
            return;
        }
        (self.watch.busy, self.watch.next) = (true, now + CHECK_EVERY);
        if now.since(self.watch.warned) >= WARN_EVERY {
            self.warn_of_certificates();
        }
        let (config, before) = (self.config.clone(), self.tls.clone());
        let (sender, configuration) = (self.sender.clone(), self.configurations);
        tokio::spawn(async move {
            let inspect = move || before.is_stale().then(|| certificates::load(&config, &before));
            let found = tokio::task::spawn_blocking(inspect).await.unwrap_or_default();
            let _ = sender.send(Input::Reread(Reread { configuration, found })).await;
        });
    }

    pub(super) fn on_reread(&mut self, reread: Reread) {
        self.watch.busy = false;
        if reread.configuration != self.configurations {
            // A reload in the meantime read newer files for another configuration.
            return;
        }
        match reread.found {
            None => self.watch.logged = None,
            Some(Ok(tls)) => {
                self.watch.logged = None;
                if self.apply_tls(tls) {
                    self.log(&Event::CertificatesReloaded {});
                    self.warn_of_certificates();
                }
            }
            Some(Err(problems)) => {
                let problem = one_line(&problems);
                if self.watch.logged.as_ref() != Some(&problem) {
                    self.log(&Event::CertificatesRefused { problem: problem.clone() });
                    self.watch.logged = Some(problem);
                }
            }
        }
    }

    /// Logs the certificates that expire soon.
    pub(super) fn warn_of_certificates(&mut self) {
        self.watch.warned = self.now();
        for text in self.tls.warnings() {
            self.log(&Event::Notice { text });
        }
    }

    pub(super) fn certificates_deadline(&self) -> Time {
        if self.tls.is_empty() || self.watch.busy { Time::NEVER } else { self.watch.next }
    }
}
