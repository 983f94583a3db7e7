//! Completes the chain that a certificate is shown with, from certificates that lie beside it.

use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// The longest chain.
const LENGTH_MAX: usize = 10;

/// Adds the issuer of the last one, its issuer and so on, as far as they are there. One that signed itself is not shown
/// (RFC 8446, section 4.4.2: who trusts it has it).
pub(super) fn complete(
    mut chain: Vec<CertificateDer<'static>>,
    issuers: &[CertificateDer<'static>],
) -> Vec<CertificateDer<'static>> {
    while chain.len() < LENGTH_MAX {
        let Some(wanted) = chain.last().and_then(|last| parse(last)).filter(|last| !is_own(last)) else {
            break;
        };
        let by_subject = |der: &&CertificateDer<'static>| {
            parse(der).is_some_and(|one| {
                one.tbs_certificate.subject == wanted.tbs_certificate.issuer && !is_own(&one)
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

fn is_own(certificate: &Certificate) -> bool {
    certificate.tbs_certificate.subject == certificate.tbs_certificate.issuer
}
