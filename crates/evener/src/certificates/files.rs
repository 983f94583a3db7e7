//! Certificates with their keys from files. The first message about a file names the cause and the remedy.

use super::form::Form;
use super::validity::{CertificateFacts, Role, common_name, holder, is_same_name, listed, names_of, parse};
use super::{Loader, certificates, chain, is_der};
use crate::tls::pem;
use evener_core::spec::CertificateFiles;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::Path;
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::BasicConstraints;

/// Signed certificate timestamps (RFC 6962, section 3.3), which certificates of public authorities have.
const TIMESTAMPS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.11129.2.4.2");

/// The user of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A service presents it to clients.
    Service,
    /// A pool presents it to its servers.
    Pool,
}

impl Loader {
    /// Reads a certificate with its key. Returns `None` after a problem.
    pub(super) fn certificate(&mut self, files: &CertificateFiles, side: Side) -> Option<Arc<CertifiedKey>> {
        let bytes = self.read(Path::new(&files.chain))?;
        let key_bytes = match files.key == files.chain {
            true => bytes.clone(),
            false => self.read_as(Path::new(&files.key), &format!(" (the key of {})", files.chain))?,
        };
        let ocsp = match &files.ocsp {
            Some(path) => Some(self.ocsp_response(path)?),
            None => None,
        };
        let issuers = match &files.issuers {
            Some(path) => self.issuers(path)?,
            None => Vec::new(),
        };
        match certified(files, &bytes, &key_bytes, &issuers) {
            Ok(mut certified) => {
                certified.ocsp = ocsp;
                self.inspect(files, &certified.cert, side);
                Some(Arc::new(certified))
            }
            Err(problem) => {
                self.problem(problem);
                None
            }
        }
    }

    fn ocsp_response(&mut self, path: &str) -> Option<Vec<u8>> {
        let response = self.read(Path::new(path))?;
        if is_der(&response) {
            return Some(response);
        }
        self.problem(format!("{path} is not an OCSP response in DER (RFC 6960, section 4.2.1)"));
        None
    }

    fn issuers(&mut self, path: &str) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.read(Path::new(path))?;
        let issuers = certificates(&bytes).unwrap_or_default();
        if issuers.is_empty() {
            self.problem(Form::of(&bytes).message(path, "certificate"));
            return None;
        }
        Some(issuers)
    }

    /// Records the validity of the certificates of a chain, and warnings about the chain.
    fn inspect(&mut self, files: &CertificateFiles, chain: &[CertificateDer<'static>], side: Side) {
        let file = &files.chain;
        let chain: Vec<Certificate> = chain.iter().map_while(|der| parse(der)).collect();
        let Some((leaf, others)) = chain.split_first() else { return };
        self.track(CertificateFacts::new(leaf, file, Role::Leaf));
        for other in others {
            self.track(CertificateFacts::new(other, file, Role::Intermediate));
        }
        let pair = chain.windows(2).find(|pair| !is_issuer(&pair[1], &pair[0]));
        if let Some([one, next]) = pair {
            self.warn(format!(
                "{file} has certificates that do not belong together or are in the wrong order: {} is not the issuer of {}, which is {}: each certificate must be followed by its issuer",
                name_of(next),
                name_of(one),
                common_name(&one.tbs_certificate.issuer),
            ));
        }
        if side == Side::Pool {
            return;
        }
        let is_self_signed = is_issuer(leaf, leaf);
        let is_authority = leaf
            .tbs_certificate
            .get::<BasicConstraints>()
            .is_ok_and(|constraints| constraints.is_some_and(|(_, constraints)| constraints.ca));
        if is_authority && !is_self_signed {
            self.warn(format!(
                "{file} is the certificate of an authority ({}), which clients do not accept as the certificate of a server: use a certificate that this authority issued",
                common_name(holder(leaf)),
            ));
        } else if names_of(leaf).is_empty() {
            self.warn(format!(
                "the certificate {} in {file} has no host names (subjectAltName), so browsers and most other clients refuse it: issue it again with its names, such as openssl req -addext subjectAltName=DNS:www.example.org",
                common_name(holder(leaf)),
            ));
        }
        let is_public =
            leaf.tbs_certificate.extensions.iter().flatten().any(|extension| extension.extn_id == TIMESTAMPS);
        if is_public && others.is_empty() {
            self.warn(format!(
                "{file} has only the certificate of {}, without the intermediate certificate {}, so many clients cannot verify it: use the file with the full chain (often fullchain.pem)",
                listed(&names_of(leaf)),
                common_name(&leaf.tbs_certificate.issuer),
            ));
        }
    }
}

fn is_issuer(issuer: &Certificate, issued: &Certificate) -> bool {
    is_same_name(holder(issuer), &issued.tbs_certificate.issuer)
}

/// Returns the names of a certificate, or its subject if it has none.
fn name_of(certificate: &Certificate) -> String {
    let names = names_of(certificate);
    if names.is_empty() { common_name(holder(certificate)) } else { listed(&names) }
}

/// Combines a chain and its key, or returns the reason why they cannot be used.
fn certified(
    files: &CertificateFiles,
    bytes: &[u8],
    key_bytes: &[u8],
    issuers: &[CertificateDer<'static>],
) -> Result<CertifiedKey, String> {
    let file = &files.chain;
    let chain = match certificates(bytes) {
        Ok(chain) if !chain.is_empty() => chain,
        Ok(_) => return Err(without_certificate(files, bytes, key_bytes)),
        Err(_) => {
            return Err(format!("{file} has a certificate that is damaged or cut off: copy the file again"));
        }
    };
    let leaf = chain.first().and_then(|der| parse(der));
    let Some(leaf) = leaf else {
        return Err(format!("{file}: the certificate is damaged: its contents are not X.509"));
    };
    let owner = name_of(&leaf);
    if leaf.tbs_certificate.version != Version::V3 {
        let version = if leaf.tbs_certificate.version == Version::V1 { 1 } else { 2 };
        return Err(format!(
            "{file}: the certificate of {owner} has version {version} of X.509, and TLS needs version 3: issue it again as version 3, with its host names (subjectAltName)"
        ));
    }
    let key = pem::private_key(key_bytes).map_err(|_| without_key(files, key_bytes, &owner))?;
    let provider = ring::default_provider();
    if provider.key_provider.load_private_key(key.clone_key()).is_err() {
        let why = pem::unsupported_key(&key);
        return Err(match files.key == *file {
            true => format!("{file}: {why}"),
            false => format!("{}: {why} (key of the certificate of {owner} in {file})", files.key),
        });
    }
    let (others, same_key) = (chain[1..].to_vec(), key.clone_key());
    let complete = chain::complete(chain, issuers);
    CertifiedKey::from_der(complete, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => wrong_key(files, &leaf, &others, &same_key),
        error => format!("{file}: {}", super::words::of_error(&error)),
    })
}

/// Returns the message about a key that does not belong to the first certificate, `leaf`, of a file. It may belong to
/// one of the other certificates.
fn wrong_key(
    files: &CertificateFiles,
    leaf: &Certificate,
    others: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> String {
    let (file, owner) = (&files.chain, name_of(leaf));
    let belongs = |der: &&CertificateDer<'static>| {
        CertifiedKey::from_der(vec![(*der).clone()], key.clone_key(), &ring::default_provider()).is_ok()
    };
    let other = others.iter().find(belongs).and_then(|der| parse(der));
    if let Some(issuer) = other.as_ref().filter(|other| is_issuer(other, leaf)) {
        return format!(
            "{} is the key of {}, the issuer of the certificate of {owner} in {file}: use the key of {owner}",
            files.key,
            common_name(holder(issuer)),
        );
    }
    if let Some(other) = other {
        return format!(
            "{file} has its certificates in the wrong order: it begins with {}, but the key belongs to the certificate of {}: put that one first, and its issuers below it",
            common_name(holder(leaf)),
            name_of(&other),
        );
    }
    let advice = "use the key with which the certificate was requested";
    if files.key == *file {
        return format!("{file}: the private key does not belong to the certificate of {owner}: {advice}");
    }
    format!("{} is not the key of the certificate of {owner} in {file}: {advice}", files.key)
}

/// Returns the message about a file in which there is no certificate in PEM.
fn without_certificate(files: &CertificateFiles, bytes: &[u8], key_bytes: &[u8]) -> String {
    let (file, key) = (&files.chain, &files.key);
    let has_key = pem::private_key(bytes).is_ok();
    let is_certificate = certificates(key_bytes).is_ok_and(|all| !all.is_empty());
    if has_key && is_certificate {
        return format!("{file} is a key and {key} a certificate: swap them");
    }
    if has_key || pem::is_encrypted(bytes) {
        return format!(
            "{file} has a private key, but no certificate: write tls = {{ certificate = \"FILE\", key = \"{file}\" }} with the file of the certificate"
        );
    }
    Form::of(bytes).message(file, "certificate")
}

/// Returns the message about a file in which there is no private key that can be used.
fn without_key(files: &CertificateFiles, bytes: &[u8], owner: &str) -> String {
    let (file, key) = (&files.chain, &files.key);
    if pem::is_encrypted(bytes) {
        return format!(
            "the key in {key}, of the certificate of {owner}, is encrypted: decrypt it: openssl pkey -in {key} -out NEW.key, then write tls = {{ certificate = \"{file}\", key = \"NEW.key\" }}"
        );
    }
    if key == file {
        return format!(
            "{file} has no private key: write tls = {{ certificate = \"{file}\", key = \"FILE\" }}"
        );
    }
    if certificates(bytes).is_ok_and(|all| !all.is_empty()) {
        return format!(
            "{key} has a certificate, but no private key: write key = \"FILE\" with the key of {owner}"
        );
    }
    Form::of(bytes).message(key, "private key")
}
