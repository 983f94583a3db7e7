//! Reasons why TLS handshakes fail: the errors of rustls in the words of this program. Traffic and checks use the
//! same words.

use evener_core::health::TlsFailure;
use evener_core::reason::{Cause, Reason};
use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// Longest list of names of a certificate in a reason.
const NAMES_BYTES_MAX: usize = 200;

/// Returns the reason why a handshake with a server failed; `None` means that the server closed the connection.
#[must_use]
pub fn failure_with_server(error: Option<&Error>) -> TlsFailure {
    match error {
        None | Some(Error::AlertReceived(AlertDescription::CloseNotify)) => TlsFailure::Ended,
        Some(Error::InvalidCertificate(error)) => failure_of_certificate(error),
        Some(Error::AlertReceived(alert)) => failure_of_alert(*alert),
        Some(Error::PeerIncompatible(why)) => match why {
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => TlsFailure::Version,
            _ => TlsFailure::CipherSuite,
        },
        Some(Error::InvalidMessage(_)) => TlsFailure::NotTls,
        Some(Error::NoCertificatesPresented) => TlsFailure::Certificate,
        Some(
            Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::DecryptError
            | Error::PeerSentOversizedRecord,
        ) => TlsFailure::Protocol,
        Some(_) => TlsFailure::Other,
    }
}

fn failure_of_certificate(error: &CertificateError) -> TlsFailure {
    match error {
        CertificateError::UnknownIssuer => TlsFailure::Authority,
        CertificateError::NotValidForName => TlsFailure::Name(None),
        CertificateError::NotValidForNameContext { presented, .. } => TlsFailure::Name(names_of(presented)),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFailure::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsFailure::NotYetValid
        }
        CertificateError::Revoked => TlsFailure::Revoked,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            TlsFailure::Purpose
        }
        _ => TlsFailure::Certificate,
    }
}

/// Returns the names of a certificate as a short list. rustls writes them as `DnsName("a.example")` or
/// `IpAddress(192.0.2.1)`. The server chose the bytes, so only bytes of host names are kept.
fn names_of(presented: &[String]) -> Option<std::sync::Arc<str>> {
    let mut list = String::new();
    for name in presented {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, inner)| inner);
        let is_of_name = |c: &char| c.is_ascii_alphanumeric() || "-._*:".contains(*c);
        let name: String = inner.chars().filter(is_of_name).collect();
        if list.len() + name.len() > NAMES_BYTES_MAX {
            list.push_str(", ...");
            break;
        }
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(&name);
    }
    (!list.is_empty()).then(|| list.into())
}

fn failure_of_alert(alert: AlertDescription) -> TlsFailure {
    match alert {
        AlertDescription::ProtocolVersion => TlsFailure::Version,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            TlsFailure::CipherSuite
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRequired
        | AlertDescription::UnknownCA => TlsFailure::ClientCertificate,
        _ => TlsFailure::Alert(name_of(alert)),
    }
}

/// Returns the reason why a handshake with a client failed; `None` means that the client closed the connection.
pub(crate) fn failure_with_client(error: Option<&Error>) -> Cause {
    match error {
        None | Some(Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled)) => {
            Reason::TlsClosed.into()
        }
        Some(Error::AlertReceived(alert)) => cause_of_alert(*alert),
        Some(Error::PeerIncompatible(why)) => cause_of_difference(why),
        Some(Error::NoCertificatesPresented) => Reason::TlsClientCertificateMissing.into(),
        Some(Error::InvalidCertificate(error)) => {
            Cause::with(Reason::TlsClientCertificateInvalid, fault_of_client_certificate(error))
        }
        Some(Error::NoApplicationProtocol) => Reason::TlsProtocol.into(),
        Some(Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        )) => Reason::NotTls.into(),
        Some(Error::InvalidMessage(_)) => {
            Cause::with(Reason::TlsOther, "the client sent a malformed message")
        }
        Some(Error::DecryptError) => {
            Cause::with(Reason::TlsOther, "a message of the client could not be decrypted")
        }
        Some(
            Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::PeerSentOversizedRecord,
        ) => Cause::with(Reason::TlsOther, "the client violated the protocol"),
        Some(_) => Cause::with(Reason::TlsOther, "a local error"),
    }
}

fn cause_of_alert(alert: AlertDescription) -> Cause {
    let name = name_of(alert);
    match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnrecognisedName => Cause::with(Reason::TlsNotTrusted, name),
        AlertDescription::ProtocolVersion => Cause::with(Reason::TlsVersion, name),
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            Cause::with(Reason::TlsCipher, name)
        }
        _ => Cause::with(Reason::TlsAlert, name),
    }
}

fn cause_of_difference(why: &PeerIncompatible) -> Cause {
    match why {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // Clients of TLS 1.1 and older do not send this extension.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Reason::TlsVersion.into(),
        PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NamedGroupsExtensionRequired => {
            Cause::with(Reason::TlsCipher, "no key exchange group in common")
        }
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            Cause::with(Reason::TlsCipher, "no signature scheme in common for the kind of the certificate")
        }
        PeerIncompatible::NoCipherSuitesInCommon => Reason::TlsCipher.into(),
        _ => Cause::with(Reason::TlsOther, "the client lacks a required feature of TLS"),
    }
}

fn fault_of_client_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::UnknownIssuer => "it is not from a trusted authority",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "it is not valid yet",
        CertificateError::Revoked => "it was revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not for clients"
        }
        CertificateError::BadSignature => "its signature is wrong",
        _ => "it is malformed or has an unsupported feature",
    }
}

/// Returns the name of an alert, as RFC 8446, section 6, and openssl write it.
fn name_of(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnexpectedMessage => "alert unexpected_message",
        AlertDescription::BadRecordMac => "alert bad_record_mac",
        AlertDescription::HandshakeFailure => "alert handshake_failure",
        AlertDescription::BadCertificate => "alert bad_certificate",
        AlertDescription::UnsupportedCertificate => "alert unsupported_certificate",
        AlertDescription::CertificateRevoked => "alert certificate_revoked",
        AlertDescription::CertificateExpired => "alert certificate_expired",
        AlertDescription::CertificateUnknown => "alert certificate_unknown",
        AlertDescription::IllegalParameter => "alert illegal_parameter",
        AlertDescription::UnknownCA => "alert unknown_ca",
        AlertDescription::AccessDenied => "alert access_denied",
        AlertDescription::DecodeError => "alert decode_error",
        AlertDescription::DecryptError => "alert decrypt_error",
        AlertDescription::ProtocolVersion => "alert protocol_version",
        AlertDescription::InsufficientSecurity => "alert insufficient_security",
        AlertDescription::InternalError => "alert internal_error",
        AlertDescription::InappropriateFallback => "alert inappropriate_fallback",
        AlertDescription::MissingExtension => "alert missing_extension",
        AlertDescription::UnsupportedExtension => "alert unsupported_extension",
        AlertDescription::UnrecognisedName => "alert unrecognized_name",
        AlertDescription::CertificateRequired => "alert certificate_required",
        AlertDescription::NoApplicationProtocol => "alert no_application_protocol",
        _ => "another alert",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_listed_without_the_notation_of_rustls() {
        let check = |presented: &[&str], expected: Option<&str>| {
            let presented: Vec<String> = presented.iter().map(|&name| name.to_owned()).collect();
            assert_eq!(names_of(&presented).as_deref(), expected, "{presented:?}");
        };
        check(&["DnsName(\"a.example\")", "IpAddress(192.0.2.1)"], Some("a.example, 192.0.2.1"));
        check(&["DnsName(\"\u{1b}[31m*.example\\n\")"], Some("31m*.examplen"));
        check(&[], None);
        let many = vec!["DnsName(\"host.name.example\")"; 100];
        let list = names_of(&many.into_iter().map(str::to_owned).collect::<Vec<_>>()).unwrap();
        assert!(list.len() < NAMES_BYTES_MAX + 30 && list.ends_with(", ..."), "{list}");
    }

    #[test]
    fn each_fault_of_a_client_has_a_reason() {
        let reason = |error: Error| failure_with_client(Some(&error)).reason();
        assert_eq!(reason(Error::AlertReceived(AlertDescription::UnknownCA)), Reason::TlsNotTrusted);
        assert_eq!(reason(Error::AlertReceived(AlertDescription::InternalError)), Reason::TlsAlert);
        assert_eq!(reason(PeerIncompatible::Tls12NotOfferedOrEnabled.into()), Reason::TlsVersion);
        assert_eq!(reason(PeerIncompatible::NoCipherSuitesInCommon.into()), Reason::TlsCipher);
        assert_eq!(reason(Error::NoCertificatesPresented), Reason::TlsClientCertificateMissing);
        assert_eq!(
            reason(Error::InvalidCertificate(CertificateError::Expired)),
            Reason::TlsClientCertificateInvalid
        );
        assert_eq!(failure_with_client(None).reason(), Reason::TlsClosed);
    }
}
