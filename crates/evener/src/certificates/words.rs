//! Errors of rustls and webpki about certificates, in words for operators.

use rustls::{CertificateError, Error};

/// Describes an error about a certificate from a file.
pub(super) fn of_error(error: &Error) -> String {
    let error = match error {
        Error::InvalidCertificate(error) => error,
        Error::InconsistentKeys(_) => return "the key does not belong to the certificate".into(),
        Error::NoCertificatesPresented => return "there is no certificate".into(),
        other => return spelt_out(&other.to_string()),
    };
    match error {
        CertificateError::BadEncoding => {
            "the certificate is damaged or uses a form that is not supported".into()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the certificate is not valid yet".into()
        }
        CertificateError::Revoked => "the certificate is revoked".into(),
        CertificateError::UnhandledCriticalExtension => {
            "the certificate has a critical extension that is not supported".into()
        }
        CertificateError::UnknownIssuer => "the issuer of the certificate is unknown".into(),
        CertificateError::BadSignature => "the signature of the certificate is wrong".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the certificate is for another purpose".into()
        }
        CertificateError::Other(other) => match other.to_string().as_str() {
            "UnsupportedCertVersion" => {
                "the certificate has version 1 of X.509, and TLS needs version 3".into()
            }
            other => format!("the certificate is not supported: {}", spelt_out(other)),
        },
        other => format!("the certificate is not supported: {}", spelt_out(&other.to_string())),
    }
}

/// Separates the words of a name such as `UnsupportedCertVersion`. Other text stays as it is.
fn spelt_out(text: &str) -> String {
    let is_name =
        text.starts_with(|c: char| c.is_ascii_uppercase()) && text.chars().all(|c| c.is_ascii_alphanumeric());
    if !is_name {
        return text.to_owned();
    }
    let mut words = String::new();
    for (at, c) in text.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            words.push(' ');
        }
        words.push(c.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_has_the_form_of_a_value_of_a_program() {
        let other = |text: &'static str| {
            let error: Box<dyn std::error::Error + Send + Sync> = text.into();
            CertificateError::Other(rustls::OtherError(error.into()))
        };
        let errors = [
            CertificateError::BadEncoding,
            CertificateError::Expired,
            CertificateError::NotValidYet,
            CertificateError::Revoked,
            CertificateError::UnhandledCriticalExtension,
            CertificateError::UnknownIssuer,
            CertificateError::BadSignature,
            CertificateError::InvalidPurpose,
            CertificateError::ApplicationVerificationFailure,
            other("UnsupportedCertVersion"),
            other("MalformedExtensions"),
            other("PathLenConstraintViolated"),
        ];
        for error in errors {
            let text = of_error(&Error::InvalidCertificate(error));
            let is_plain = |word: &str| {
                !word.chars().skip(1).any(|c| c.is_ascii_lowercase())
                    || !word.chars().skip(1).any(|c| c.is_ascii_uppercase())
            };
            assert!(text.split(' ').all(is_plain) && !text.contains(['(', '{', '"']), "{text}");
            assert!(text.contains("certificate"), "{text}");
        }
        assert_eq!(spelt_out("PathLenConstraintViolated"), "path len constraint violated");
        assert_eq!(spelt_out("invalid value"), "invalid value");
    }
}
