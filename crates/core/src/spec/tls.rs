//! TLS settings, with the paths of files. The program reads the files.

use std::time::Duration;

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then its intermediates.
    pub chain: String,
    /// PEM: the private key; may be the same file.
    pub key: String,
    /// DER: an OCSP response to staple (RFC 6960).
    pub ocsp: Option<String>,
    /// PEM: certificates that complete the chain if it does not lead to an authority.
    pub issuers: Option<String>,
}

/// TLS settings for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// Certificates. The first one is for clients that send no host name, or a host name without a certificate.
    pub certificates: Vec<CertificateFiles>,
    /// Directories of `name.crt` with `name.key`, and perhaps `name.ocsp` and `name.ca` (issuers).
    pub directories: Vec<String>,
    /// Certificates of clients.
    pub client: Option<ClientCertificates>,
    /// Minimum version.
    pub oldest: TlsVersion,
    /// Application protocols (RFC 7301), the preferred first.
    pub alpn: Vec<String>,
    /// Time for a handshake.
    pub handshake_timeout: Duration,
    /// Maximum number of concurrent handshakes; further clients are closed.
    pub handshakes_max: u32,
}

/// Certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// PEM: the authorities; files, or directories of them.
    pub authorities: Vec<String>,
    /// Treatment of clients without a certificate.
    pub presence: Presence,
}

/// Treatment of clients without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Clients need a certificate.
    Required,
    /// Clients need no certificate, but a certificate that is sent has to be valid.
    Optional,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246)
    V12,
    /// TLS 1.3 (RFC 8446)
    V13,
}

/// TLS settings for servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsSpec {
    /// Name that is sent and verified; the server's host name or address if absent.
    pub name: Option<String>,
    /// PEM: trusted authorities, a file or a directory; the system's authorities if absent.
    pub authorities: Option<String>,
    /// Verification of the server's certificate.
    pub verification: Verification,
    /// Client certificate for servers that request one.
    pub certificate: Option<CertificateFiles>,
}

/// Verification of a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// The certificate has to be valid.
    Full,
    /// Any certificate is accepted, so a man in the middle can read everything.
    Off,
}
