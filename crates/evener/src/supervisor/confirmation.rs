//! The wait for the confirmation of an applied configuration: unless an operator confirms in time, the configuration
//! before comes back. The wait does not depend on the client that applied it. While it lasts, reloads and further
//! applies are refused, so that nothing but the decision or the end of the time decides.

use super::access::AccessRules;
use super::operator::Operator;
use super::{Decision, Input, Supervisor};
use crate::certificates::TlsSettings;
use crate::config::{Config, Problem, one_line};
use crate::inputs::{CertificatesInUse, Inputs, gather_with};
use evener_core::Time;
use evener_core::event::Event;
use std::time::Duration;

/// Pause after an attempt to go back that failed.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// The configuration that an operator applied, and the wait for its confirmation.
#[derive(Default)]
pub(super) struct Confirmation {
    /// Name of the file that was applied, if a reload reads another text.
    other_file: Option<String>,
    pending: Option<Pending>,
}

/// A configuration with its certificates, which may no longer be in their files.
struct Before {
    config: Config,
    tls: TlsSettings,
    other_file: Option<String>,
    /// The changes of operators, which the applied configuration may override.
    operator: Operator,
    /// Access rules that operators gave, which the applied configuration may drop with their services.
    access: AccessRules,
    /// Inputs to use if they cannot be read again: going back must not depend on the network and on files.
    inputs: Option<Inputs>,
}

/// The state before an apply, to which the instance may go back.
pub(super) struct GoBackTo(Duration, Before);

/// An applied configuration that waits for its confirmation.
struct Pending {
    file: String,
    until: Time,
    before: Before,
    is_going_back: bool,
}

/// The wait as the status shows it.
#[derive(Clone, Debug)]
pub(crate) struct PendingView {
    /// The applied file.
    pub(crate) file: String,
    /// Time until the configuration before comes back.
    pub(crate) left: Duration,
}

/// The configuration before, with its inputs or the problems with them.
pub(crate) struct GoneBack(Result<(Config, Inputs), Vec<Problem>>);

impl Confirmation {
    /// Returns the reason why no other configuration is accepted now.
    pub(super) fn refusal(&self, now: Time) -> Option<String> {
        let pending = self.pending.as_ref()?;
        let left = crate::table::seconds(pending.until.since(now).as_secs());
        Some(format!(
            "the configuration {} waits for its confirmation for {left} more: `evener confirm` keeps it, `evener \
             confirm --back` goes back",
            pending.file
        ))
    }

    pub(super) fn deadline(&self) -> Time {
        self.pending
            .as_ref()
            .filter(|pending| !pending.is_going_back)
            .map_or(Time::NEVER, |pending| pending.until)
    }

    /// Returns the wait, if there is one.
    pub(super) fn view(&self, now: Time) -> Option<PendingView> {
        let Pending { file, until, .. } = self.pending.as_ref()?;
        Some(PendingView { file: file.clone(), left: until.since(now) })
    }

    /// Returns the name of the applied file, if a reload would replace it by another text.
    pub(super) fn other_file(&self) -> Option<&str> {
        self.other_file.as_deref()
    }

    /// Records that a file was applied.
    pub(super) fn applied(&mut self, file: &str, is_of_file: bool) {
        self.other_file = (!is_of_file).then(|| file.to_owned());
    }

    /// Records that a reload replaced the applied configuration. Returns the notice for the operator.
    pub(super) fn forget_applied(&mut self) -> Option<Event> {
        let file = self.other_file.take()?;
        let text = format!("the reload replaced the configuration that `evener apply` took from {file}");
        Some(Event::Notice { text })
    }
}

impl Supervisor {
    /// Remembers the present configuration, to which the instance goes back after `within`.
    pub(super) fn remember_before(&self, within: Duration) -> GoBackTo {
        let (config, tls) = (self.config.clone(), self.certificates.tls().clone());
        let (other_file, operator) = (self.confirmation.other_file.clone(), self.operator.foresee());
        let (access, inputs) = (self.access.in_force(), self.inputs_in_use.clone());
        GoBackTo(within, Before { config, tls, other_file, operator, access, inputs })
    }

    /// Begins to wait for the confirmation of the configuration that was applied.
    pub(super) fn await_confirmation(&mut self, file: String, GoBackTo(within, before): GoBackTo) {
        let time = humantime::format_duration(within).to_string();
        self.log(&Event::ConfirmationAwaited { file: file.clone(), within: time });
        let until = self.now() + within;
        self.confirmation.pending = Some(Pending { file, until, before, is_going_back: false });
    }

    /// Keeps the applied configuration, or begins to go back. Returns the applied file, or the reason of the failure.
    pub(super) fn confirm(&mut self, decision: Decision) -> Result<String, String> {
        let Some(pending) = &mut self.confirmation.pending else {
            return Err("no configuration waits for a confirmation".into());
        };
        if pending.is_going_back {
            return Err("the time is over: the configuration before is coming back".into());
        }
        let file = pending.file.clone();
        match decision {
            Decision::Keep => {
                self.confirmation.pending = None;
                self.log(&Event::Confirmed { file: file.clone() });
            }
            Decision::GoBack => {
                pending.until = Time::ZERO;
                self.confirm_on_time(self.now());
            }
        }
        Ok(file)
    }

    /// Begins to go back if the time is over.
    pub(super) fn confirm_on_time(&mut self, now: Time) {
        if self.confirmation.deadline() > now {
            return;
        }
        let Some(pending) = &mut self.confirmation.pending else { return };
        pending.is_going_back = true;
        let (config, tls) = (pending.before.config.clone(), pending.before.tls.clone());
        let before = pending.before.inputs.clone();
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let same = config.clone();
            // Lua states are used once. If the file changed, there is only the old one.
            let renewed = tokio::task::spawn_blocking(move || config.with_fresh_program()).await;
            let config = renewed.unwrap_or(same);
            // The certificates are those in memory. Names are resolved again.
            let (found, _) = gather_with(&config, tls.clone(), CertificatesInUse::Keep).await;
            let found = found.or_else(|why| before.map(|inputs| inputs.with_tls(tls)).ok_or(why));
            let found = GoneBack(found.map(|inputs| (config, inputs)));
            let _ = sender.send(Input::GoneBack(Box::new(found))).await;
        });
    }

    pub(super) fn on_gone_back(&mut self, GoneBack(found): GoneBack) {
        let Some(pending) = self.confirmation.pending.take() else { return };
        if self.is_draining() {
            return;
        }
        let file = pending.file.clone();
        let applied = found.and_then(|(config, inputs)| {
            self.operator.restore(&pending.before.operator);
            self.access.restore(&pending.before.access);
            self.apply(config, inputs)
        });
        match applied {
            Ok(changes) => {
                let lines = changes.iter().map(|change| Event::Changed { change: change.to_string() });
                lines.for_each(|event| self.log(&event));
                self.log(&Event::WentBack { file, changes: changes.len() });
                self.confirmation.other_file = pending.before.other_file;
                self.warn_of_descriptors();
            }
            Err(problems) => {
                self.log(&Event::BackFailed { file, problem: one_line(&problems) });
                let until = self.now() + RETRY_EVERY;
                self.confirmation.pending = Some(Pending { until, is_going_back: false, ..pending });
            }
        }
    }
}
