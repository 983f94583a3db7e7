//! Reloads: the file is read and names are resolved on another thread, one reload at a time.

use super::{ConfigSource, Files, Input, Outcome, Supervisor};
use crate::config::{self, Config, Problem};
use crate::inputs::{CertificatesInUse, Inputs, gather, gather_with};
use evener_core::diff::{ChangeSet, diff_specs};
use evener_core::event::Event;
use tokio::sync::oneshot;

pub(super) type Done = oneshot::Sender<Outcome>;

/// A configuration that was read.
pub(crate) struct Loaded {
    found: Result<(Config, Inputs), Vec<Problem>>,
    /// Receiver of the outcome, if the configuration was given and not read from the file.
    given: Option<Done>,
    /// Reason why the old certificates stay in use although their files were read again.
    refused: Option<String>,
}

/// Receivers of the outcomes of reloads.
#[derive(Default)]
pub(super) struct Reloads {
    running: Option<Vec<Done>>,
    /// Requests that arrived during a reload. That reload may have read the file before the last change.
    next: Option<Vec<Done>>,
}

impl Supervisor {
    /// Reads the configuration again, now or after the reload in progress.
    pub(super) fn begin_reload(&mut self, done: Option<Done>) {
        // Log rotation needs new files now, even if the configuration is refused.
        self.request_logs.reopen();
        let file = match &self.setting.source {
            ConfigSource::File(file) => file.clone(),
            // A front end catches the signal itself.
            ConfigSource::Front(front) => {
                if let Some(Err(full)) = done.map(|done| front.try_send(done)) {
                    let problem = "too many reloads are waiting: try again later".to_owned();
                    drop(full.into_inner().send(Err(vec![problem])));
                }
                return;
            }
            ConfigSource::None => {
                let problem =
                    "this instance was started without a configuration file, so it cannot reload".to_owned();
                self.log(&Event::ReloadFailed { problem: problem.clone() });
                done.into_iter().for_each(|done| drop(done.send(Err(vec![problem.clone()]))));
                return;
            }
        };
        if self.reloads.running.is_some() {
            self.reloads.next.get_or_insert_default().extend(done);
            return;
        }
        self.reloads.running = Some(done.into_iter().collect());
        let (sender, before) = (self.sender.clone(), self.tls.clone());
        tokio::spawn(async move {
            let read = tokio::task::spawn_blocking(move || config::load(&file)).await;
            let found = match read.unwrap_or_else(|error| Err(vec![Problem::new(error.to_string())])) {
                Ok(config) => gather(&config, before).await.map(|inputs| (config, inputs)),
                Err(problems) => Err(problems),
            };
            let _ = sender.send(Input::Loaded(Loaded { found, given: None, refused: None })).await;
        });
    }

    /// Applies a given configuration as soon as its names are resolved and its files are read.
    pub(super) fn begin_apply(&mut self, config: Config, files: Files, done: Done) {
        let (sender, before) = (self.sender.clone(), self.tls.clone());
        let same = !diff_specs(&self.config.spec, &config.spec).concerns_tls();
        tokio::spawn(async move {
            let (found, refused) = match (same, files) {
                (false, _) => (gather(&config, before).await, None),
                (true, Files::KeepUnchanged) => gather_with(&config, before, CertificatesInUse::Keep).await,
                (true, Files::ReadAll) => gather_with(&config, before, CertificatesInUse::ReadAgain).await,
            };
            let found = found.map(|inputs| (config, inputs));
            let _ = sender.send(Input::Loaded(Loaded { found, given: Some(done), refused })).await;
        });
    }

    pub(super) fn on_loaded(&mut self, Loaded { found, given, refused }: Loaded) {
        refused.into_iter().for_each(|problem| self.log(&Event::CertificatesRefused { problem }));
        let outcome = if self.is_draining() {
            Err(vec![Problem::new("this instance is shutting down")])
        } else {
            found.and_then(|(config, inputs)| self.apply(config, inputs))
        };
        let outcome = self.log_outcome(outcome);
        self.warn_of_descriptors();
        if let Some(done) = given {
            let _ = done.send(outcome);
            return;
        }
        for done in self.reloads.running.take().unwrap_or_default() {
            let _ = done.send(outcome.clone());
        }
        if let Some(waiting) = self.reloads.next.take() {
            self.begin_reload(None);
            self.reloads.running.get_or_insert_default().extend(waiting);
        }
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
