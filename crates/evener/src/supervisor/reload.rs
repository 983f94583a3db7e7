//! Reloads: the file is read and names are resolved on another thread, one reload at a time.

use super::{ConfigSource, Files, Input, Outcome, Supervisor};
use crate::certificates::TlsSettings;
use crate::config::{self, Config, Problem};
use crate::inputs::{CertificatesInUse, Inputs, gather, gather_with};
use crate::service_manager;
use evener_core::diff::{ChangeSet, diff_specs};
use evener_core::event::Event;
use tokio::sync::{mpsc, oneshot};

pub(super) type Done = oneshot::Sender<Outcome>;

/// A configuration that was read.
pub(crate) struct Loaded {
    found: Result<(Config, Inputs), Vec<Problem>>,
    /// Receiver of the outcome, if the configuration was given and not read from the file.
    given: Option<Done>,
    /// Reason why the old certificates stay in use although their files were read again.
    refused: Option<String>,
}

/// Reloads in progress.
pub(super) struct Reloads {
    source: ConfigSource,
    sender: mpsc::Sender<Input>,
    /// Receivers of the outcome of the present reload.
    running: Option<Vec<Done>>,
    /// Requests that arrived during a reload. That reload may have read the file before the last change.
    next: Option<Vec<Done>>,
}

impl Reloads {
    pub(super) fn new(source: ConfigSource, sender: mpsc::Sender<Input>) -> Self {
        Self { source, sender, running: None, next: None }
    }

    /// Returns true if a front end handles reloads and signals itself.
    pub(super) fn has_front(&self) -> bool {
        matches!(self.source, ConfigSource::Front(_))
    }

    /// Returns true while a reload is in progress.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Returns the file that a reload reads, if there is one.
    pub(super) fn file(&self) -> Option<&std::path::Path> {
        match &self.source {
            ConfigSource::File(file) => Some(file),
            ConfigSource::None | ConfigSource::Front(_) => None,
        }
    }

    /// Returns true if another reload follows the present one.
    fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// Reads the configuration again, now or after the reload in progress. Returns the event of a failure.
    pub(super) fn begin(&mut self, done: Option<Done>, before: &TlsSettings) -> Option<Event> {
        let file = match &self.source {
            ConfigSource::File(file) => file.clone(),
            // A front end catches the signal itself.
            ConfigSource::Front(front) => {
                if let Some(Err(full)) = done.map(|done| front.try_send(done)) {
                    let problem = "too many reloads are waiting: try again later".to_owned();
                    drop(full.into_inner().send(Err(vec![problem])));
                }
                return None;
            }
            ConfigSource::None => {
                let problem =
                    "this instance was started without a configuration file, so it cannot reload".to_owned();
                done.into_iter().for_each(|done| drop(done.send(Err(vec![problem.clone()]))));
                return Some(Event::ReloadFailed { problem });
            }
        };
        if self.running.is_some() {
            self.next.get_or_insert_default().extend(done);
            return None;
        }
        self.running = Some(done.into_iter().collect());
        service_manager::reloading();
        let (sender, before) = (self.sender.clone(), before.clone());
        tokio::spawn(async move {
            let read = tokio::task::spawn_blocking(move || config::load(&file)).await;
            let found = match read.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())])) {
                Ok(config) => gather(&config, before).await.map(|inputs| (config, inputs)),
                Err(problems) => Err(problems),
            };
            let _ = sender.send(Input::Loaded(Box::new(Loaded { found, given: None, refused: None }))).await;
        });
        None
    }

    /// Resolves the names and reads the files of a given configuration, which is then applied.
    fn begin_given(
        &self,
        config: Config,
        in_use: Option<CertificatesInUse>,
        before: TlsSettings,
        done: Done,
    ) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let (found, refused) = match in_use {
                None => (gather(&config, before).await, None),
                Some(in_use) => gather_with(&config, before, in_use).await,
            };
            let found = found.map(|inputs| (config, inputs));
            let _ = sender.send(Input::Loaded(Box::new(Loaded { found, given: Some(done), refused }))).await;
        });
    }

    /// Sends the outcome of the present reload to those who wait for it. Begins the next reload if there are
    /// requests for it.
    fn finish(&mut self, outcome: &Outcome, before: &TlsSettings) -> Option<Event> {
        for done in self.running.take().unwrap_or_default() {
            let _ = done.send(outcome.clone());
        }
        let problem = outcome.as_ref().err().and_then(|problems| problems.first());
        service_manager::reload_ended(problem.map(String::as_str));
        let waiting = self.next.take()?;
        let failed = self.begin(None, before);
        self.running.get_or_insert_default().extend(waiting);
        failed
    }
}

impl Supervisor {
    /// Reads the configuration again, now or after the reload in progress.
    pub(super) fn begin_reload(&mut self, done: Option<Done>) {
        // Log rotation needs new files now, even if the configuration is refused.
        self.request_logs.reopen();
        let upgrading = "an upgrade is in progress: the new instance reads the file";
        let upgrading = self.upgrades.is_running().then(|| upgrading.to_owned());
        if let Some(problem) = upgrading.or_else(|| self.confirmation.refusal(self.now())) {
            // The service manager waits for the end of a reload that it requested.
            service_manager::reloading();
            self.log(&Event::ReloadFailed { problem: problem.clone() });
            service_manager::ready();
            return done.into_iter().for_each(|done| drop(done.send(Err(vec![problem.clone()]))));
        }
        let failed = self.reloads.begin(done, self.certificates.tls());
        failed.iter().for_each(|event| self.log(event));
    }

    /// Applies a given configuration as soon as its names are resolved and its files are read.
    pub(super) fn begin_apply(&mut self, config: Config, files: Files, done: Done) {
        let has_same_tls = !diff_specs(&self.config.spec, &config.spec).concerns_tls();
        let in_use = has_same_tls.then_some(match files {
            Files::KeepUnchanged => CertificatesInUse::Keep,
            Files::ReadAll => CertificatesInUse::ReadAgain,
        });
        self.reloads.begin_given(config, in_use, self.certificates.tls().clone(), done);
    }

    pub(super) fn on_loaded(&mut self, Loaded { found, given, refused }: Loaded) {
        refused.into_iter().for_each(|problem| self.log(&Event::CertificatesRefused { problem }));
        let outcome = if self.is_draining() {
            Err(vec![Problem::new("this instance is shutting down")])
        } else if let Some(problem) = self.confirmation.refusal(self.now()) {
            Err(vec![Problem::new(problem)])
        } else {
            found.and_then(|(config, inputs)| self.apply(config, inputs))
        };
        let outcome = self.log_outcome(outcome);
        if outcome.is_ok() {
            self.confirmation.forget_applied().iter().for_each(|event| self.log(event));
        }
        self.warn_of_descriptors();
        if let Some(done) = given {
            let _ = done.send(outcome);
            return;
        }
        if self.reloads.has_next() {
            self.request_logs.reopen();
        }
        let failed = self.reloads.finish(&outcome, self.certificates.tls());
        failed.iter().for_each(|event| self.log(event));
    }

    fn log_outcome(&self, outcome: Result<ChangeSet, Vec<Problem>>) -> Outcome {
        match outcome {
            Ok(changes) => {
                let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
                changes.iter().for_each(|change| self.log(&Event::Changed { change: change.clone() }));
                self.log(&Event::Reloaded { changes: changes.len() });
                Ok(changes)
            }
            Err(problems) => {
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                let failed = |problem: &String| Event::ReloadFailed { problem: problem.clone() };
                problems.iter().for_each(|problem| self.log(&failed(problem)));
                Err(problems)
            }
        }
    }
}
