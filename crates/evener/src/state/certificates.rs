//! Certificates of a service: their names, files and validity.

use super::service::ServiceView;
use crate::certificates::CertificateFacts;
use serde::{Deserialize, Serialize};

/// Maximum number of certificates of a service in the status.
const SHOWN_MAX: usize = 100;
/// Maximum number of lines about certificates in the text of the status.
const LINES_MAX: usize = 10;

/// A certificate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CertificateView {
    /// Host names and addresses in the certificate; its subject without them.
    names: Vec<String>,
    /// File with the certificate.
    file: String,
    /// Beginning and end of the validity (RFC 3339).
    not_before: String,
    not_after: String,
    /// `valid`, `expires_soon`, `expired` or `not_yet_valid`.
    state: String,
    /// Description for people; absent if the certificate is valid and does not expire soon.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    problem: Option<String>,
}

impl CertificateView {
    /// Describes certificates at `now`, in seconds since 1970. Returns the first certificates that expire if there
    /// are many.
    pub(crate) fn list(mut certificates: Vec<&CertificateFacts>, now: i64) -> Vec<Self> {
        certificates.sort_by_key(|facts| facts.validity().left(now));
        let view = |facts: &CertificateFacts| Self {
            names: facts.names().to_vec(),
            file: facts.file().to_owned(),
            not_before: facts.validity().begins(),
            not_after: facts.validity().ends(),
            state: facts.validity().stage(now).name().into(),
            problem: facts.validity().complaint(now),
        };
        certificates.into_iter().take(SHOWN_MAX).map(view).collect()
    }
}

/// Lists the certificates of services that are not valid or expire soon, one per line, after an empty line.
/// Returns an empty text if there are none.
pub(super) fn text(services: &[ServiceView]) -> String {
    let line = |service: &str, certificate: &CertificateView| {
        let CertificateView { names, file, problem, .. } = certificate;
        let (first, problem) = (names.first()?, problem.as_ref()?);
        let more =
            if names.len() > 1 { format!(" (and {} more names)", names.len() - 1) } else { String::new() };
        Some(format!("certificate of {service}: {first}{more} {problem}\n             {file}\n"))
    };
    let of_service = |service: &ServiceView| {
        let lines = service.certificates().iter().filter_map(|one| line(service.name(), one));
        lines.collect::<Vec<_>>()
    };
    let lines: Vec<String> = services.iter().flat_map(of_service).collect();
    let mut text = if lines.is_empty() { String::new() } else { "\n".to_owned() };
    text.extend(lines.iter().take(LINES_MAX).map(String::as_str));
    if lines.len() > LINES_MAX {
        text += &format!("{} more certificates: evener status --json\n", lines.len() - LINES_MAX);
    }
    text
}
