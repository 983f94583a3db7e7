//! Names and validity of the certificates in use: warnings before a certificate expires, and records of the
//! status. The time is an argument, in seconds since 1970.

use crate::config::{Location, TlsOwner, Warning};
use evener_core::event::Event;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;

const DAY: i64 = 86_400;
/// Warnings begin this time before a certificate expires.
const WARNED_BEFORE: i64 = 14 * DAY;
/// Maximum number of names of a certificate in a message.
const NAMES_MAX: usize = 3;

/// Returns the time in seconds since 1970.
pub(crate) fn unix_time() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// The stage of a certificate in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    NotYetValid,
    Valid,
    ExpiresSoon,
    Expired,
}

impl Stage {
    /// Returns the name in the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotYetValid => "not_yet_valid",
            Self::Valid => "valid",
            Self::ExpiresSoon => "expires_soon",
            Self::Expired => "expired",
        }
    }
}

/// The time from which and the time until which a certificate is valid, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    /// Returns the validity of a certificate.
    pub(super) fn of(certificate: &Certificate) -> Self {
        let validity = &certificate.tbs_certificate.validity;
        let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs() as i64;
        Self { not_before: seconds(&validity.not_before), not_after: seconds(&validity.not_after) }
    }

    /// Returns the time in which at least one of two certificates is valid, if they overlap.
    fn joined(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.min(other.not_before),
            not_after: self.not_after.max(other.not_after),
        }
    }

    pub(crate) fn stage(self, now: i64) -> Stage {
        match self.not_after - now {
            left if left < 0 => Stage::Expired,
            _ if now < self.not_before => Stage::NotYetValid,
            left if left < WARNED_BEFORE => Stage::ExpiresSoon,
            _ => Stage::Valid,
        }
    }

    /// Returns the next time after `now` at which the stage changes.
    fn next_change(self, now: i64) -> Option<i64> {
        let changes = [self.not_before, self.not_after - WARNED_BEFORE + 1, self.not_after + 1];
        changes.into_iter().filter(|at| *at > now).min()
    }

    /// Returns the beginning as the API shows it.
    pub(crate) fn begins(self) -> String {
        rfc3339(self.not_before)
    }

    /// Returns the end as the API shows it.
    pub(crate) fn ends(self) -> String {
        rfc3339(self.not_after)
    }

    /// Returns the seconds from `now` until the end; negative after it.
    pub(crate) fn left(self, now: i64) -> i64 {
        self.not_after - now
    }

    /// Describes the stage for people, if an operator has to act: `expired on 2026-01-31 12:00 UTC, 3 days ago`.
    pub(crate) fn complaint(self, now: i64) -> Option<String> {
        Some(match self.stage(now) {
            Stage::Valid => return None,
            Stage::Expired => {
                format!("expired on {}, {} ago", minute(self.not_after), distance(now - self.not_after))
            }
            Stage::ExpiresSoon => {
                format!("expires on {}, in {}", minute(self.not_after), distance(self.not_after - now))
            }
            Stage::NotYetValid => {
                let (at, left) = (minute(self.not_before), distance(self.not_before - now));
                format!("is not valid before {at}, which is in {left}")
            }
        })
    }
}

/// A certificate in a file, for messages and the status.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFacts {
    /// The host names and addresses in the certificate, or its subject without them.
    names: Vec<String>,
    file: Arc<str>,
    validity: Validity,
    role: Role,
}

/// The use of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Certificate of this side.
    Leaf,
    /// Intermediate certificate of the chain of this side.
    Intermediate,
    /// Authority of the certificates of the other side.
    Authority,
}

impl Role {
    /// Returns the name in the API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Leaf => "certificate",
            Self::Intermediate => "intermediate",
            Self::Authority => "authority",
        }
    }
}

impl CertificateFacts {
    pub(super) fn new(certificate: &Certificate, file: &str, role: Role) -> Self {
        let names = match role {
            Role::Leaf => names_of(certificate),
            Role::Intermediate | Role::Authority => Vec::new(),
        };
        let names = if names.is_empty() { vec![common_name(holder(certificate))] } else { names };
        Self { names, file: file.into(), validity: Validity::of(certificate), role }
    }

    /// Describes the authorities of a file or directory together, because it is enough if one of them is valid.
    pub(super) fn of_authorities(certificates: &[Certificate], path: &str) -> Option<Self> {
        let last = certificates.iter().max_by_key(|one| Validity::of(one).not_after)?;
        let validity = certificates.iter().map(Validity::of).reduce(Validity::joined)?;
        Some(Self { validity, ..Self::new(last, path, Role::Authority) })
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    pub(crate) fn validity(&self) -> Validity {
        self.validity
    }
}

impl fmt::Display for CertificateFacts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.role {
            Role::Leaf => "the certificate of",
            Role::Intermediate => "the intermediate certificate",
            Role::Authority => "the authority",
        };
        write!(out, "{kind} {} in {}", listed(&self.names), self.file)
    }
}

/// A service or pool that uses certificates.
type Owner = (TlsOwner, Arc<str>);

/// Returns the name of a service or pool at the beginning of a message.
pub(super) fn subject((kind, name): &Owner) -> String {
    match kind {
        TlsOwner::Service => format!("service `{name}`"),
        TlsOwner::Pool => format!("pool `{name}`"),
    }
}

/// A certificate with its user.
#[derive(Clone, Debug)]
pub(crate) struct TrackedCertificate {
    /// The service or pool that uses the certificate.
    owner: Owner,
    location: Option<Location>,
    facts: CertificateFacts,
}

impl TrackedCertificate {
    pub(super) fn new(owner: Owner, location: Option<&Location>, facts: CertificateFacts) -> Self {
        Self { owner, location: location.cloned(), facts }
    }

    /// Creates a certificate of the service `s` that is valid from 1970 until `not_after`.
    #[cfg(test)]
    pub(super) fn until(not_after: i64) -> Self {
        let validity = Validity { not_before: 0, not_after };
        let names = vec!["a.example".to_owned()];
        let facts = CertificateFacts { names, file: "a.crt".into(), validity, role: Role::Leaf };
        Self::new((TlsOwner::Service, "s".into()), None, facts)
    }

    /// Returns the service or pool that uses the certificate.
    pub(crate) fn owner(&self) -> (TlsOwner, &str) {
        (self.owner.0, &self.owner.1)
    }

    pub(crate) fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Returns a warning if the certificate is not valid at `now` or expires soon.
    pub(super) fn warning(&self, now: i64) -> Option<Warning> {
        let complaint = self.facts.validity.complaint(now)?;
        let advice = match self.facts.validity.stage(now) {
            Stage::NotYetValid => "check the clock of this machine, or replace the certificate",
            _ if self.facts.role == Role::Authority => "replace it",
            _ => "renew it",
        };
        let message = format!("{}: {} {complaint}: {advice}", subject(&self.owner), self.facts);
        Some(Warning::maybe_at(self.location.as_ref(), message))
    }

    /// Returns an event if the certificate is not valid at `now` or expires soon.
    pub(super) fn event(&self, now: i64) -> Option<Event> {
        let used_by = subject(&self.owner).replace('`', "");
        let certificate = listed(&self.facts.names);
        let file = self.facts.file.to_string();
        let (not_before, not_after) = (self.facts.validity.begins(), self.facts.validity.ends());
        Some(match self.facts.validity.stage(now) {
            Stage::Valid => return None,
            Stage::Expired => Event::CertificateExpired { used_by, certificate, file, not_after },
            Stage::ExpiresSoon => Event::CertificateExpires { used_by, certificate, file, not_after },
            Stage::NotYetValid => Event::CertificateNotYetValid { used_by, certificate, file, not_before },
        })
    }

    pub(super) fn next_change(&self, now: i64) -> Option<i64> {
        self.facts.validity.next_change(now)
    }
}

/// Returns the host names and addresses of a certificate (RFC 5280, section 4.2.1.6).
pub(super) fn names_of(certificate: &Certificate) -> Vec<String> {
    let alternative = certificate.tbs_certificate.get::<SubjectAltName>().ok().flatten();
    let names = alternative.map(|(_, names)| names.0).unwrap_or_default();
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::IpAddr::from(bytes).to_string()),
    };
    let name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        GeneralName::IpAddress(bytes) => address(bytes.as_bytes()),
        _ => None,
    };
    let is_printable = |name: &String| !name.chars().any(char::is_control);
    names.iter().filter_map(name).filter(is_printable).collect()
}

/// Returns the name of the holder of a certificate.
pub(super) fn holder(certificate: &Certificate) -> &Name {
    &certificate.tbs_certificate.subject
}

/// Returns the common name of a distinguished name as `CN=name`; the whole name without one.
pub(super) fn common_name(name: &Name) -> String {
    let whole = name.to_string();
    let common = whole.split(',').find(|part| part.starts_with("CN="));
    let text = common.map_or_else(|| whole.clone(), str::to_owned);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { "without a name".into() } else { text }
}

/// Parses a certificate.
pub(super) fn parse(der: &[u8]) -> Option<Certificate> {
    Certificate::from_der(der).ok()
}

/// Returns true if two names are equal.
pub(super) fn is_same_name(one: &Name, other: &Name) -> bool {
    one.to_der().ok() == other.to_der().ok()
}

/// Lists the first names, and the number of others.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn rfc3339(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// Returns a time to the minute: `2026-01-31 12:00 UTC`.
fn minute(seconds: i64) -> String {
    let text = rfc3339(seconds);
    format!("{} UTC", text.get(..16).unwrap_or(&text).replace('T', " "))
}

/// Returns a length of time in its largest unit.
fn distance(seconds: i64) -> String {
    let counted = |count: i64, unit: &str| format!("{count} {unit}{}", if count == 1 { "" } else { "s" });
    match seconds {
        days if days >= DAY => counted(days / DAY, "day"),
        hours if hours >= 3600 => counted(hours / 3600, "hour"),
        minutes => counted(minutes / 60, "minute"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the stage, the description and the next change of a certificate that is valid for 30 days from the
    /// second 1767225600 (2026-01-01), at a time after the second of its beginning.
    fn check(after: i64, stage: Stage, complaint: &str, next: Option<i64>) {
        let begin = 1_767_225_600;
        let validity = Validity { not_before: begin, not_after: begin + 30 * DAY };
        let now = begin + after;
        assert_eq!(validity.stage(now), stage, "{after}");
        assert_eq!(validity.complaint(now).unwrap_or_default(), complaint, "{after}");
        assert_eq!(validity.next_change(now).map(|at| at - begin), next, "{after}");
        if let Some(next) = next {
            assert_ne!(validity.stage(begin + next), stage, "the stage changes at the next change");
            assert_eq!(validity.stage(begin + next - 1), stage, "the stage lasts until the next change");
        }
    }

    #[test]
    fn a_certificate_has_stages() {
        let soon = 16 * DAY + 1;
        let end = 30 * DAY + 1;
        check(
            -2 * DAY,
            Stage::NotYetValid,
            "is not valid before 2026-01-01 00:00 UTC, which is in 2 days",
            Some(0),
        );
        check(
            -7200,
            Stage::NotYetValid,
            "is not valid before 2026-01-01 00:00 UTC, which is in 2 hours",
            Some(0),
        );
        check(0, Stage::Valid, "", Some(soon));
        check(16 * DAY, Stage::Valid, "", Some(soon));
        check(soon, Stage::ExpiresSoon, "expires on 2026-01-31 00:00 UTC, in 13 days", Some(end));
        check(29 * DAY, Stage::ExpiresSoon, "expires on 2026-01-31 00:00 UTC, in 1 day", Some(end));
        check(30 * DAY - 90, Stage::ExpiresSoon, "expires on 2026-01-31 00:00 UTC, in 1 minute", Some(end));
        check(end, Stage::Expired, "expired on 2026-01-31 00:00 UTC, 0 minutes ago", None);
        check(1030 * DAY, Stage::Expired, "expired on 2026-01-31 00:00 UTC, 1000 days ago", None);
    }

    #[test]
    fn many_names_are_cut() {
        let names = |count: usize| (0..count).map(|n| format!("{n}.example")).collect::<Vec<_>>();
        assert_eq!(listed(&names(3)), "0.example, 1.example, 2.example");
        assert_eq!(listed(&names(5)), "0.example, 1.example, 2.example and 2 more");
    }
}
