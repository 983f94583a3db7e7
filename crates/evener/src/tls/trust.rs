//! Trust in peers: authorities, and configured self-signed certificates.
//!
//! A self-signed certificate of `openssl req -x509` has the CA flag, so webpki refuses it as the certificate of
//! a server (RFC 5280, section 4.2.1.9). This module trusts a configured certificate of this kind: the peer
//! must present exactly this certificate and have the key. The name, validity and purpose of the certificate
//! are verified as for any other certificate.

use evener_core::spec::Presence;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use std::sync::Arc;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::ExtendedKeyUsage;

/// id-kp-serverAuth (RFC 5280, section 4.2.1.12).
const FOR_SERVERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
/// id-kp-clientAuth (RFC 5280, section 4.2.1.12).
const FOR_CLIENTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// Certificates of authorities, and the self-signed certificates among them.
#[derive(Clone, Debug)]
pub(crate) struct Authorities {
    store: RootCertStore,
    self_signed: SelfSigned,
}

impl Default for Authorities {
    fn default() -> Self {
        Self::of(RootCertStore::empty())
    }
}

impl Authorities {
    /// Creates a set that trusts only the authorities of a store.
    pub(crate) fn of(store: RootCertStore) -> Self {
        Self { store, self_signed: SelfSigned::default() }
    }

    /// Adds a certificate to the trusted certificates.
    pub(crate) fn add(&mut self, certificate: CertificateDer<'static>) -> Result<(), Error> {
        self.store.add(certificate.clone())?;
        let is_self_signed = Certificate::from_der(&certificate)
            .is_ok_and(|parsed| parsed.tbs_certificate.subject == parsed.tbs_certificate.issuer);
        if is_self_signed {
            self.self_signed.0.push(certificate);
        }
        Ok(())
    }

    /// Returns the number of certificates.
    pub(crate) fn len(&self) -> usize {
        self.store.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// Returns a verifier of servers.
    pub(crate) fn for_servers(self) -> Result<Arc<dyn ServerCertVerifier>, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(self.store), provider);
        let inner = builder.build().map_err(|error| error.to_string())?;
        Ok(Arc::new(ServerVerifier { inner, self_signed: self.self_signed }))
    }

    /// Returns a verifier of clients. Clients without a certificate are accepted if certificates are optional.
    pub(crate) fn for_clients(self, presence: Presence) -> Result<Arc<dyn ClientCertVerifier>, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(self.store), provider);
        let builder = match presence {
            Presence::Required => builder,
            Presence::Optional => builder.allow_unauthenticated(),
        };
        let inner = builder.build().map_err(|error| error.to_string())?;
        Ok(Arc::new(ClientVerifier { inner, self_signed: self.self_signed }))
    }
}

/// Self-signed certificates that are trusted as certificates of peers.
#[derive(Clone, Debug, Default)]
struct SelfSigned(Vec<CertificateDer<'static>>);

impl SelfSigned {
    /// Accepts a certificate that webpki refused with `error`, if it is one of these self-signed certificates
    /// and is valid at `now` and for this purpose.
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        purpose: ObjectIdentifier,
        now: UnixTime,
        error: Error,
    ) -> Result<(), Error> {
        if !self.0.iter().any(|self_signed| self_signed == certificate) {
            return Err(without_ca_error(error));
        }
        let Ok(parsed) = Certificate::from_der(certificate) else { return Err(error) };
        let body = parsed.tbs_certificate;
        let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
        if now.as_secs() < seconds(body.validity.not_before) {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > seconds(body.validity.not_after) {
            return Err(CertificateError::Expired.into());
        }
        match body.get::<ExtendedKeyUsage>() {
            Ok(None) => Ok(()),
            Ok(Some((_, usage))) if usage.0.contains(&purpose) => Ok(()),
            _ => Err(CertificateError::InvalidPurpose.into()),
        }
    }
}

/// Replaces the error of webpki about a peer that presents the certificate of an authority as its own. The peer
/// is not trusted, so the error becomes `UnknownIssuer`.
fn without_ca_error(error: Error) -> Error {
    match &error {
        Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            CertificateError::UnknownIssuer.into()
        }
        _ => error,
    }
}

/// Verifier of the certificates of servers.
#[derive(Debug)]
struct ServerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    self_signed: SelfSigned,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let refused = match self.inner.verify_server_cert(certificate, others, name, ocsp, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        self.self_signed.verify(certificate, FOR_SERVERS, now, refused)?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Verifier of the certificates of clients.
#[derive(Debug)]
struct ClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    self_signed: SelfSigned,
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refused = match self.inner.verify_client_cert(certificate, others, now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        self.self_signed.verify(certificate, FOR_CLIENTS, now, refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    /// Creates a self-signed certificate with the CA flag, as `openssl req -x509` does.
    fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params =
            CertificateParams::new(vec!["a.example".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn now() -> UnixTime {
        UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
    }

    fn authorities(certificate: &CertificateDer<'static>) -> Authorities {
        let mut authorities = Authorities::default();
        authorities.add(certificate.clone()).unwrap();
        authorities
    }

    /// Verifies a server that presents `presented` where `trusted` is trusted.
    fn server(
        trusted: &CertificateDer<'static>,
        presented: &CertificateDer<'_>,
        name: &str,
        now: UnixTime,
    ) -> Result<(), Error> {
        let verifier = authorities(trusted).for_servers().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        verifier.verify_server_cert(presented, &[], &name, &[], now).map(drop)
    }

    #[test]
    fn a_configured_self_signed_certificate_is_trusted_for_its_names_while_it_is_valid() {
        let (one, other) = (self_signed(|_| {}), self_signed(|_| {}));
        assert_eq!(server(&one, &one, "a.example", now()), Ok(()));
        assert_eq!(server(&one, &one, "127.0.0.1", now()), Ok(()));
        assert!(
            server(&one, &one, "b.example", now()).is_err(),
            "a server whose certificate has another name must be refused"
        );
        // Another self-signed certificate with the same name.
        assert_eq!(server(&one, &other, "a.example", now()), Err(CertificateError::UnknownIssuer.into()));
        let later = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
        assert_eq!(server(&one, &one, "a.example", later), Err(CertificateError::Expired.into()));
        let before = UnixTime::since_unix_epoch(Duration::from_secs(1));
        assert_eq!(server(&one, &one, "a.example", before), Err(CertificateError::NotValidYet.into()));
        let plain = self_signed(|params| params.is_ca = IsCa::NoCa);
        assert_eq!(server(&plain, &plain, "a.example", now()), Ok(()));
    }

    #[test]
    fn a_self_signed_certificate_is_trusted_only_for_its_purpose() {
        let with =
            |usage: ExtendedKeyUsagePurpose| self_signed(|params| params.extended_key_usages = vec![usage]);
        let (for_servers, for_clients) =
            (with(ExtendedKeyUsagePurpose::ServerAuth), with(ExtendedKeyUsagePurpose::ClientAuth));
        let client = |one: &CertificateDer<'static>| {
            let verifier = authorities(one).for_clients(Presence::Required).unwrap();
            verifier.verify_client_cert(one, &[], now()).map(drop)
        };
        let wrong = Err(CertificateError::InvalidPurpose.into());
        assert_eq!(server(&for_servers, &for_servers, "a.example", now()), Ok(()));
        assert_eq!(server(&for_clients, &for_clients, "a.example", now()), wrong);
        assert_eq!((client(&for_clients), client(&for_servers)), (Ok(()), wrong));
        assert_eq!(client(&self_signed(|_| {})), Ok(()));
        let (one, other) = (self_signed(|_| {}), self_signed(|_| {}));
        let verifier = authorities(&one).for_clients(Presence::Optional).unwrap();
        assert!(verifier.verify_client_cert(&other, &[], now()).is_err());
        assert!(!verifier.client_auth_mandatory() && verifier.offer_client_auth());
    }
}
