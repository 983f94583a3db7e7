//! Selects the certificate for a client: the one with the requested name, exactly or by a wildcard, else the
//! first.

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Certificates that expire within this time cause a warning.
const ENDS_SOON_DAYS: i64 = 14;

/// Certificates by name. Several may have one name, with different kinds of keys.
#[derive(Debug)]
pub(super) struct Resolver {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Resolver {
    /// Creates a resolver from certificates with the names of their files, and returns the expiry time of
    /// each.
    pub(super) fn new(certificates: Vec<super::Named>) -> (Self, Vec<Ends>) {
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        let (mut default, mut ends) = (Vec::new(), Vec::new());
        let mut default_names: Vec<String> = Vec::new();
        for (file, key) in certificates {
            let facts = key.cert.first().map(|certificate| facts_of(certificate)).unwrap_or_default();
            let names: Vec<String> = facts.names.into_iter().chain(file).collect();
            let name = names.first().cloned().unwrap_or_else(|| "without a name".into());
            ends.extend(facts.ends.map(|at| Ends { name, at }));
            if default.is_empty() {
                default_names.clone_from(&names);
            }
            // Certificates with the same names and other kinds of keys are also defaults, for clients that
            // cannot use the first.
            if default.is_empty() || names.iter().any(|name| default_names.contains(name)) {
                default.push(Arc::clone(&key));
            }
            for name in names {
                by_name.entry(name).or_default().push(Arc::clone(&key));
            }
        }
        (Self { by_name, default }, ends)
    }

    fn find(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        // A wildcard matches one label (RFC 9525, section 6.3).
        let wildcard = || Some(format!("*.{}", name.split_once('.')?.1));
        let found = self.by_name.get(&name).or_else(|| self.by_name.get(&wildcard()?));
        found.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = hello.server_name().map_or(&self.default[..], |name| self.find(name));
        let schemes = hello.signature_schemes();
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        candidates.iter().find(fits).or_else(|| candidates.first()).cloned()
    }
}

#[derive(Default)]
struct Facts {
    names: Vec<String>,
    /// Expiry time, in seconds since 1970.
    ends: Option<i64>,
}

fn facts_of(der: &[u8]) -> Facts {
    let Ok(certificate) = Certificate::from_der(der) else { return Facts::default() };
    let body = certificate.tbs_certificate;
    let alternative =
        body.get::<SubjectAltName>().ok().flatten().map(|(_, names)| names.0).unwrap_or_default();
    let names = alternative.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    });
    let ends = body.validity.not_after.to_unix_duration().as_secs() as i64;
    Facts { names: names.collect(), ends: Some(ends) }
}

/// Expiry of a certificate.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    name: String,
    at: i64,
}

impl Ends {
    /// Returns a warning if the certificate has expired at `now` or expires soon.
    pub(super) fn warning(&self, now: i64) -> Option<String> {
        let name = &self.name;
        match (self.at - now).div_euclid(86_400) {
            days if days < 0 => Some(format!("the certificate of {name} has expired")),
            days if days < ENDS_SOON_DAYS => {
                Some(format!("the certificate of {name} expires in {days} days"))
            }
            _ => None,
        }
    }
}
