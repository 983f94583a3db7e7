//! Access rules that the operator adds at run time: prefixes that are consulted before the lists of the
//! configuration, for a time or until they are removed.

use super::Supervisor;
use crate::upgrade::state::AccessRecord;
use evener_core::Time;
use evener_core::acl::{Access, Acl, Prefix};
use evener_core::event::Event;
use evener_core::spec::ServiceSpec;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Maximum number of rules of one service.
const RULES_MAX: usize = 100_000;

/// An access rule of the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    prefix: Prefix,
    access: Access,
    /// Time at which the rule expires; `None` for a permanent rule.
    until: Option<Time>,
}

impl Rule {
    pub(crate) fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// Returns the command that adds the rule: `permit` or `deny`.
    pub(crate) fn action(&self) -> &'static str {
        if self.access == Access::Deny { "deny" } else { "permit" }
    }

    /// Returns the time until the rule expires; `None` for a permanent rule.
    pub(crate) fn left(&self, now: Time) -> Option<Duration> {
        self.until.map(|until| until.since(now))
    }
}

/// A change of the access rules.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AccessChange {
    /// Adds a rule for a prefix, for a time or until it is removed.
    Add(Access, Prefix, Option<Duration>),
    /// Removes the rule of a prefix.
    Remove(Prefix),
}

/// Reason why a change was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AccessError {
    /// The service or rule does not exist.
    Unknown(String),
    /// The change is not possible.
    Impossible(String),
}

type Done = oneshot::Sender<Result<String, AccessError>>;

/// The rules of all services.
#[derive(Default)]
pub(super) struct AccessRules {
    by_service: BTreeMap<Arc<str>, Vec<Rule>>,
    /// Services whose rules changed and are not in force yet. Several changes are compiled together.
    changed: BTreeSet<Arc<str>>,
    /// Requests that wait until their changes are in force, with the descriptions of the changes.
    waiting: Vec<(Done, String)>,
}

impl AccessRules {
    /// Returns the rules, with the names of their services.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Rule)> {
        self.by_service.iter().flat_map(|(service, rules)| rules.iter().map(move |rule| (&**service, rule)))
    }

    /// Returns the access list of the configuration of a service, with the operator's rules in front.
    pub(super) fn acl_of(&self, spec: &ServiceSpec) -> Option<Arc<Acl>> {
        match self.by_service.get(&spec.name).filter(|rules| !rules.is_empty()) {
            None => spec.acl.clone(),
            Some(rules) => {
                let permit_all = || Arc::new(Acl::new(&[], Access::Permit));
                let rules: Vec<_> = rules.iter().map(|rule| (rule.prefix, rule.access)).collect();
                Some(Arc::new(spec.acl.clone().unwrap_or_else(permit_all).after(&rules)))
            }
        }
    }

    /// Returns a copy of the rules.
    pub(super) fn in_force(&self) -> Self {
        Self { by_service: self.by_service.clone(), ..Self::default() }
    }

    /// Brings back the rules of services that have none now. They come into force with the next configuration.
    pub(super) fn restore(&mut self, before: &Self) {
        for (service, rules) in &before.by_service {
            self.by_service.entry(Arc::clone(service)).or_insert_with(|| rules.clone());
        }
    }

    /// Returns records of all rules, for the next instance.
    pub(super) fn records(&self) -> Vec<AccessRecord> {
        let record =
            |(service, rule): (&str, &Rule)| AccessRecord::new(service, rule.access, rule.prefix, rule.until);
        self.all().map(record).collect()
    }

    /// Adds the rules of the previous instance, which come into force with [`Supervisor::apply_access`].
    pub(super) fn adopt(
        &mut self,
        service: &Arc<str>,
        (access, prefix, until): (Access, Prefix, Option<Time>),
    ) {
        let rules = self.by_service.entry(Arc::clone(service)).or_default();
        if rules.len() < RULES_MAX {
            rules.push(Rule { prefix, access, until });
            self.changed.insert(Arc::clone(service));
        }
    }

    /// Removes the rules of services that a configuration does not have.
    pub(super) fn retain(&mut self, services: &[ServiceSpec]) {
        self.by_service.retain(|name, _| services.iter().any(|service| service.name == *name));
    }

    /// Changes the rules of a service. Returns a description of the change.
    fn change(&mut self, service: &Arc<str>, change: AccessChange, now: Time) -> Result<String, AccessError> {
        let rules = self.by_service.entry(Arc::clone(service)).or_default();
        let description = match change {
            AccessChange::Add(access, prefix, time) => {
                let rule = Rule { prefix, access, until: time.map(|time| now + time) };
                match rules.iter().position(|rule| rule.prefix == prefix) {
                    Some(at) => rules[at] = rule,
                    None if rules.len() < RULES_MAX => rules.push(rule),
                    None => {
                        let message = format!(
                            "service `{service}` has {RULES_MAX} rules, the maximum: forget some first"
                        );
                        return Err(AccessError::Impossible(message));
                    }
                }
                let time =
                    time.map(|time| format!(" for {}", humantime::format_duration(time))).unwrap_or_default();
                format!("{} {prefix}{time}", rule.action())
            }
            AccessChange::Remove(prefix) => {
                let known = rules.iter().position(|rule| rule.prefix == prefix);
                let unknown = || format!("there is no rule for {prefix}; `evener access` lists the rules");
                rules.swap_remove(known.ok_or_else(|| AccessError::Unknown(unknown()))?);
                format!("forget {prefix}")
            }
        };
        self.changed.insert(Arc::clone(service));
        Ok(description)
    }

    /// Removes rules that have expired.
    pub(super) fn on_time(&mut self, now: Time) -> Vec<Event> {
        if self.deadline() > now {
            return Vec::new();
        }
        let has_expired = |rule: &mut Rule| rule.until.is_some_and(|until| until <= now);
        let mut expired = Vec::new();
        for (service, rules) in &mut self.by_service {
            for rule in rules.extract_if(.., has_expired) {
                expired.push((Arc::clone(service), format!("{} expired", rule.prefix)));
            }
        }
        self.changed.extend(expired.iter().map(|(service, _)| Arc::clone(service)));
        let event = |(service, change)| Event::AccessChanged { service, change };
        expired.into_iter().map(event).collect()
    }

    /// Returns the time at which the next rule expires.
    pub(super) fn deadline(&self) -> Time {
        let ends = self.by_service.values().flatten().filter_map(|rule| rule.until);
        ends.min().unwrap_or(Time::NEVER)
    }
}

impl Supervisor {
    /// Changes the access rules of a service. Open connections stay open and their next requests are checked;
    /// UDP flows of clients that are now refused are closed. The response is sent once the change is in force.
    pub(super) fn change_access(&mut self, service: &str, change: AccessChange, done: Done) {
        let now = self.now();
        let spec = self.config.spec.services.iter().find(|spec| *spec.name == *service);
        let changed = match spec {
            Some(spec) => self.access.change(&spec.name, change, now).map(|text| (spec.name.clone(), text)),
            None => Err(AccessError::Unknown(self.no_service(service))),
        };
        match changed {
            Ok((service, description)) => {
                self.log(&Event::AccessChanged { service, change: description.clone() });
                self.access.waiting.push((done, description));
            }
            Err(refused) => drop(done.send(Err(refused))),
        }
    }

    /// Puts changed rules in force.
    pub(super) fn apply_access(&mut self) {
        let (changed, waiting) =
            (std::mem::take(&mut self.access.changed), std::mem::take(&mut self.access.waiting));
        for service in changed {
            let spec = self.config.spec.services.iter().find(|spec| spec.name == service).cloned();
            spec.iter().for_each(|spec| self.apply_service(spec));
        }
        waiting.into_iter().for_each(|(done, description)| drop(done.send(Ok(description))));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn a_temporary_rule_expires_and_a_permanent_rule_stays() {
        let (service, at) = (Arc::from("s"), |seconds| Time::ZERO + Duration::from_secs(seconds));
        let mut rules = AccessRules::default();
        let add = |time: Option<u64>| {
            let prefix = if time.is_some() { "192.0.2.1" } else { "192.0.2.2" };
            AccessChange::Add(Access::Deny, prefix.parse().unwrap(), time.map(Duration::from_secs))
        };
        assert_eq!(rules.change(&service, add(Some(10)), at(5)), Ok("deny 192.0.2.1/32 for 10s".into()));
        assert_eq!(rules.change(&service, add(None), at(5)), Ok("deny 192.0.2.2/32".into()));
        assert_eq!(rules.deadline(), at(15));
        assert_eq!(rules.on_time(at(14)), []);
        let expired =
            Event::AccessChanged { service: Arc::clone(&service), change: "192.0.2.1/32 expired".into() };
        assert_eq!(rules.on_time(at(15)), [expired]);
        assert_eq!((rules.deadline(), rules.all().count()), (Time::NEVER, 1));
        let remove = AccessChange::Remove("192.0.2.1".parse().unwrap());
        assert!(matches!(rules.change(&service, remove, at(16)), Err(AccessError::Unknown(_))));
    }

    #[test]
    fn the_number_of_rules_of_a_service_is_bounded() {
        let service = Arc::from("s");
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let rule = Rule { prefix: prefix("192.0.2.1"), access: Access::Deny, until: None };
        let mut rules = AccessRules::default();
        rules.by_service.insert(Arc::clone(&service), vec![rule; RULES_MAX]);
        let mut add = |text| {
            let change = AccessChange::Add(Access::Permit, prefix(text), None);
            rules.change(&service, change, Time::ZERO)
        };
        assert!(matches!(add("192.0.2.2"), Err(AccessError::Impossible(_))));
        assert!(add("192.0.2.1").is_ok(), "a rule for a known prefix is replaced");
    }
}
