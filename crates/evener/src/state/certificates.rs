//! Certificates in use: their names, files and validity.

use super::metrics::{Families, Labels};
use crate::certificates::TrackedCertificate;
use crate::config::TlsOwner;
use crate::output::printable;
use serde::{Deserialize, Serialize};

/// Maximum number of certificates in the status.
const SHOWN_MAX: usize = 1000;
/// Maximum number of lines about certificates in the text of the status.
const LINES_MAX: usize = 10;

/// A certificate.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(super) struct CertificateView {
    /// The service or pool that uses the certificate. One of both is present.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pool: Option<String>,
    /// `certificate`, `intermediate` or `authority`.
    role: String,
    /// Host names and addresses in the certificate; its subject without them.
    names: Vec<String>,
    /// File with the certificate.
    file: String,
    /// Beginning and end of the validity (RFC 3339).
    not_before: String,
    not_after: String,
    /// Seconds until the end of the validity; negative after it.
    #[serde(default)]
    left_s: i64,
    /// `valid`, `expires_soon`, `expired` or `not_yet_valid`.
    state: String,
    /// Description for people; absent if the certificate is valid and does not expire soon.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    problem: Option<String>,
}

impl CertificateView {
    /// Describes certificates at `now`, in seconds since 1970. Returns the certificates that expire first if there
    /// are many.
    pub(super) fn list(certificates: &[TrackedCertificate], now: i64) -> Vec<Self> {
        let mut certificates: Vec<&TrackedCertificate> = certificates.iter().collect();
        certificates.sort_by_key(|tracked| tracked.facts().validity().left(now));
        certificates.into_iter().take(SHOWN_MAX).map(|tracked| Self::new(tracked, now)).collect()
    }

    /// Adds the metrics.
    pub(super) fn add_to(&self, families: &mut Families) {
        let (kind, owner) = match (&self.service, &self.pool) {
            (Some(service), _) => ("service", service),
            (None, pool) => ("pool", pool.as_ref().unwrap_or(&self.file)),
        };
        let labels = Labels::default().with(kind, owner).with("role", &self.role).with("file", &self.file);
        let labels = labels.with("name", self.names.first().map_or("", String::as_str));
        let help = "Seconds until the end of the validity of a certificate; negative after it.";
        families.gauge("evener_certificate_left_seconds", help, &labels, self.left_s);
    }

    /// Returns true if a service with this name uses the certificate.
    pub(super) fn is_of_service(&self, name: &str) -> bool {
        self.service.as_deref() == Some(name)
    }

    /// Returns two lines about the certificate: the lines of its problem, or its validity.
    pub(super) fn details(&self) -> String {
        self.text().unwrap_or_else(|| {
            let Self { role, names, file, not_after, .. } = self;
            let kind = if role == "intermediate" { "intermediate certificate" } else { role };
            let name = names.first().map_or("", String::as_str);
            format!("{kind} {name} valid until {not_after}\n  {file}\n")
        })
    }

    fn new(tracked: &TrackedCertificate, now: i64) -> Self {
        let ((kind, owner), facts) = (tracked.owner(), tracked.facts());
        Self {
            service: (kind == TlsOwner::Service).then(|| owner.to_owned()),
            pool: (kind == TlsOwner::Pool).then(|| owner.to_owned()),
            role: facts.role().name().into(),
            names: facts.names().to_vec(),
            file: facts.file().to_owned(),
            not_before: facts.validity().begins(),
            not_after: facts.validity().ends(),
            left_s: facts.validity().left(now),
            state: facts.validity().stage(now).name().into(),
            problem: facts.validity().complaint(now),
        }
    }

    /// Returns two lines if the certificate is not valid or expires soon.
    fn text(&self) -> Option<String> {
        let Self { service, pool, role, names, file, problem, .. } = self;
        let problem = problem.as_ref()?;
        let owner = match (service, pool) {
            (Some(service), _) => format!("service {service}"),
            (None, pool) => format!("pool {}", pool.as_deref().unwrap_or_default()),
        };
        let kind = if role == "intermediate" { "intermediate certificate" } else { role };
        let name = names.first().map_or("", String::as_str);
        let more = match names.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let line = format!("{kind} of {owner}: {name}{more} {problem}");
        Some(format!("{}\n  {}\n", printable(&line), printable(file)))
    }
}

/// Lists the certificates that are not valid or expire soon, after an empty line. Returns an empty text if there are
/// none.
pub(super) fn text(certificates: &[CertificateView]) -> String {
    let entries: Vec<String> = certificates.iter().filter_map(CertificateView::text).collect();
    let mut text = if entries.is_empty() { String::new() } else { "\n".to_owned() };
    text.extend(entries.iter().take(LINES_MAX).map(String::as_str));
    if entries.len() > LINES_MAX {
        text += &format!("and {} more certificates: evener status --json\n", entries.len() - LINES_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_files_and_names_are_escaped() {
        let view = serde_json::json!({
            "service": "s", "role": "certificate", "names": ["a\u{7}"], "file": "dir\u{1b}[31m/a.crt",
            "not_before": "", "not_after": "", "state": "expired", "problem": "has expired",
        });
        let view: CertificateView = serde_json::from_value(view).expect("the view is valid");
        let expected = "certificate of service s: a\\u{7} has expired\n  dir\\u{1b}[31m/a.crt\n";
        assert_eq!(view.text().as_deref(), Some(expected));
    }
}
