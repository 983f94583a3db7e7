//! Certificates that change on disk, for example by an ACME client. They are applied without a reload, and
//! nothing else changes. Problems are logged, and then the old certificates stay.

use super::{Input, Supervisor};
use crate::certificates::{self, Materials};
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
    /// The last problem that was logged. It is not logged twice.
    logged: Option<String>,
}

/// Certificates that were read again.
pub(crate) struct Reread {
    /// Number of the configuration that they were read for.
    configuration: u64,
    /// `None` when no file changed.
    found: Option<Result<Materials, Vec<Problem>>>,
}

impl Supervisor {
    /// Checks the files when this is due, on another thread.
    pub(super) fn check_certificates(&mut self, now: Time) {
        if self.materials.is_empty() || self.watch.busy || now < self.watch.next {
            return;
        }
        (self.watch.busy, self.watch.next) = (true, now + CHECK_EVERY);
        if now.since(self.watch.warned) >= WARN_EVERY {
            self.warn_of_certificates();
        }
        let (config, before) = (self.config.clone(), self.materials.clone());
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
            // A reload came in between. It read newer files, and for another configuration.
            return;
        }
        match reread.found {
            None => self.watch.logged = None,
            Some(Ok(materials)) => {
                self.watch.logged = None;
                // The files were touched, but their contents are the same.
                let same = self.materials.is_same(&materials);
                self.apply_materials(materials);
                if !same {
                    self.tell(&Event::CertificatesReloaded {});
                    self.warn_of_certificates();
                }
            }
            Some(Err(problems)) => {
                let problem = one_line(&problems);
                if self.watch.logged.as_ref() != Some(&problem) {
                    self.tell(&Event::CertificatesRefused { problem: problem.clone() });
                    self.watch.logged = Some(problem);
                }
            }
        }
    }

    /// Logs the certificates that expire soon.
    pub(super) fn warn_of_certificates(&mut self) {
        self.watch.warned = self.now();
        for text in self.materials.warnings() {
            self.tell(&Event::Notice { text });
        }
    }

    pub(super) fn certificates_deadline(&self) -> Time {
        if self.materials.is_empty() || self.watch.busy { Time::NEVER } else { self.watch.next }
    }
}
