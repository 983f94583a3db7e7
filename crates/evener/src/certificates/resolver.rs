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

/// Certificates by name. Several certificates may have the same name and different kinds of keys.
#[derive(Debug)]
pub(super) struct Resolver {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    default: Vec<Arc<CertifiedKey>>,
}

impl Resolver {
    /// Creates a resolver. A certificate is found by the host names in it, and by the host name of its file if
    /// there is one.
    pub(super) fn new(certificates: Vec<super::NamedCertificate>) -> Self {
        let mut by_name: HashMap<String, Vec<Arc<CertifiedKey>>> = HashMap::new();
        let mut default = Vec::new();
        let mut default_names: Vec<String> = Vec::new();
        for (file, key) in certificates {
            let names = key.cert.first().map(|certificate| host_names(certificate)).unwrap_or_default();
            let names: Vec<String> = names.into_iter().chain(file).collect();
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
        Self { by_name, default }
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

/// Returns the host names of a certificate in lower case.
fn host_names(der: &[u8]) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(der) else { return Vec::new() };
    let alternative = certificate.tbs_certificate.get::<SubjectAltName>().ok().flatten();
    let names = alternative.map(|(_, names)| names.0).unwrap_or_default();
    let host = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.as_str().to_ascii_lowercase()),
        _ => None,
    };
    names.iter().filter_map(host).collect()
}
