//! Selection of the certificate for a client: a certificate with exactly the requested name, else a certificate
//! with a wildcard that matches the name, else the first certificate.

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Warnings begin this number of days before a certificate expires.
const WARNING_DAYS: i64 = 14;

/// Certificates by name. Several certificates may have the same name and different kinds of keys.
#[derive(Debug)]
pub(super) struct Resolver {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Resolver {
    /// Creates a resolver, and returns it with the expiry times of the certificates. A certificate is found by
    /// the names in it, and by the host name of its file if there is one.
    pub(super) fn new(certificates: Vec<super::NamedCertificate>) -> (Self, Vec<Expiry>) {
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        let (mut default, mut expiries) = (Vec::new(), Vec::new());
        let mut default_names: Vec<String> = Vec::new();
        for (file, key) in certificates {
            let facts = key.cert.first().map(|certificate| facts_of(certificate)).unwrap_or_default();
            let names: Vec<String> = facts.names.into_iter().chain(file).collect();
            let name = names.first().cloned().unwrap_or_else(|| "without a name".into());
            expiries.extend(facts.expires.map(|at| Expiry { name, at }));
            if default.is_empty() {
                default_names.clone_from(&names);
            }
            // Further certificates with a name of the first certificate are also defaults. They may have
            // another kind of key, for clients that do not support the key of the first certificate.
            if default.is_empty() || names.iter().any(|name| default_names.contains(name)) {
                default.push(Arc::clone(&key));
            }
            for name in names {
                by_name.entry(name).or_default().push(Arc::clone(&key));
            }
        }
        (Self { by_name, default }, expiries)
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

/// Names and expiry time of a certificate.
#[derive(Default)]
struct Facts {
    names: Vec<String>,
    /// Expiry time, in seconds since 1970.
    expires: Option<i64>,
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
    let expires = body.validity.not_after.to_unix_duration().as_secs() as i64;
    Facts { names: names.collect(), expires: Some(expires) }
}

/// Name and expiry time of a certificate.
#[derive(Clone, Debug)]
pub(super) struct Expiry {
    name: String,
    at: i64,
}

impl Expiry {
    /// Returns a warning if the certificate has expired at `now` or expires soon.
    pub(super) fn warning(&self, now: i64) -> Option<String> {
        let name = &self.name;
        match (self.at - now).div_euclid(86_400) {
            days if days < 0 => Some(format!("the certificate of {name} has expired")),
            days if days < WARNING_DAYS => Some(format!("the certificate of {name} expires in {days} days")),
            _ => None,
        }
    }
}
