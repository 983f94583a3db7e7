//! Access rules that the operator adds at run time: prefixes that are consulted before the lists of the
//! configuration, for a time or until they are removed.

use super::Supervisor;
use evener_core::Time;
use evener_core::acl::{Access, Prefix};
use evener_core::event::Event;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Maximum number of rules of one service.
const RULES_MAX: usize = 100_000;

/// An access rule of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) prefix: Prefix,
    pub(crate) access: Access,
    /// Time at which the rule expires; `None` for a permanent rule.
    pub(crate) until: Option<Time>,
}

/// A change of the access rules.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AccessChange {
    /// Adds a rule for a prefix, for a time or until it is removed.
    Say(Access, Prefix, Option<Duration>),
    /// Removes the rule of a prefix.
    Forget(Prefix),
}

impl AccessChange {
    fn prefix(self) -> Prefix {
        match self {
            Self::Say(_, prefix, _) | Self::Forget(prefix) => prefix,
        }
    }
}

/// Reason why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccessRefused {
    /// The service or rule does not exist.
    Unknown(String),
    /// The change is not possible.
    Impossible(String),
}

type Done = oneshot::Sender<Result<String, AccessRefused>>;

/// Services whose rules changed. Several changes are compiled together.
#[derive(Default)]
pub(super) struct Changed {
    services: BTreeSet<Arc<str>>,
    waiting: Vec<(Done, String)>,
}

impl Supervisor {
    /// Changes the access rules of a service. Open connections stay open and their next requests are checked;
    /// UDP flows that are refused now are closed. The response is sent once the change is in force.
    pub(super) fn change_access(&mut self, service: &str, change: AccessChange, done: Done) {
        match self.say(service, change) {
            Ok(description) => self.access_changed.waiting.push((done, description)),
            Err(refused) => drop(done.send(Err(refused))),
        }
    }

    fn say(&mut self, service: &str, change: AccessChange) -> Result<String, AccessRefused> {
        let spec = self.config.spec.services.iter().find(|spec| *spec.name == *service);
        let name = spec.map(|spec| Arc::clone(&spec.name)).ok_or_else(|| {
            AccessRefused::Unknown(format!("there is no service `{service}`; `evener status` lists them"))
        })?;
        let now = self.now();
        let rules = self.access.entry(Arc::clone(&name)).or_default();
        let known = rules.iter().position(|rule| rule.prefix == change.prefix());
        let description = match change {
            AccessChange::Say(access, prefix, time) => {
                let rule = Rule { prefix, access, until: time.map(|time| now + time) };
                match known {
                    Some(at) => rules[at] = rule,
                    None if rules.len() < RULES_MAX => rules.push(rule),
                    None => {
                        let message = format!(
                            "service `{service}` has {RULES_MAX} rules, the maximum: forget some first"
                        );
                        return Err(AccessRefused::Impossible(message));
                    }
                }
                let time =
                    time.map(|time| format!(" for {}", humantime::format_duration(time))).unwrap_or_default();
                format!("{} {prefix}{time}", if access == Access::Deny { "deny" } else { "permit" })
            }
            AccessChange::Forget(prefix) => {
                let message = || format!("there is no rule for {prefix}; `evener access` lists the rules");
                rules.swap_remove(known.ok_or_else(|| AccessRefused::Unknown(message()))?);
                format!("forget {prefix}")
            }
        };
        self.tell(&Event::AccessChanged { service: Arc::clone(&name), change: description.clone() });
        self.access_changed.services.insert(name);
        Ok(description)
    }

    /// Puts changed rules in force.
    pub(super) fn apply_access(&mut self) {
        let Changed { services, waiting } = std::mem::take(&mut self.access_changed);
        for service in services {
            let spec = self.config.spec.services.iter().find(|spec| spec.name == service).cloned();
            spec.iter().for_each(|spec| self.apply_service(spec));
        }
        waiting.into_iter().for_each(|(done, description)| drop(done.send(Ok(description))));
    }

    /// Removes rules that expired.
    pub(super) fn expire_access(&mut self, now: Time) {
        if self.access_deadline() > now {
            return;
        }
        let over = |rule: &Rule| rule.until.is_some_and(|until| until <= now);
        let mut changed = Vec::new();
        for (service, rules) in &mut self.access {
            for rule in rules.extract_if(.., |rule| over(rule)) {
                changed.push((Arc::clone(service), format!("{} expired", rule.prefix)));
            }
        }
        for (service, change) in changed {
            self.tell(&Event::AccessChanged { service: Arc::clone(&service), change });
            self.access_changed.services.insert(service);
        }
    }

    /// Returns the time at which the next rule expires.
    pub(super) fn access_deadline(&self) -> Time {
        let ends = self.access.values().flatten().filter_map(|rule| rule.until);
        ends.min().unwrap_or(Time::NEVER)
    }
}
