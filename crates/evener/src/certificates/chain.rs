//! Completion of the chain of a certificate with certificates of its issuers.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// Maximum length of a chain.
const LENGTH_MAX: usize = 10;

/// Adds the issuer of the last certificate, the issuer of the issuer, and so on, if they are in `issuers`.
/// Self-signed certificates are not added, because the peer has them (RFC 8446, section 4.4.2).
pub(super) fn complete(
    mut chain: Vec<CertificateDer<'static>>,
    issuers: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    while chain.len() < LENGTH_MAX {
        let Some(wanted) = chain.last().and_then(|last| parse(last)).filter(|last| !is_self_signed(last))
        else {
            break;
        };
        let by_subject = |der: &&CertificateDer<'static>| {
            parse(der).is_some_and(|issuer| {
                issuer.tbs_certificate.subject == wanted.tbs_certificate.issuer && !is_self_signed(&issuer)
            })
        };
        match issuers.iter().find(by_subject) {
            Some(issuer) => chain.push(issuer.clone()),
            None => break,
        }
    }
    chain
}

fn parse(der: &CertificateDer<'_>) -> Option<Certificate> {
    Certificate::from_der(der).ok()
}

fn is_self_signed(certificate: &Certificate) -> bool {
    certificate.tbs_certificate.subject == certificate.tbs_certificate.issuer
}
