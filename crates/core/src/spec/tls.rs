//! TLS as configured: files by their paths. Reading them is the program's part.

use std::time::Duration;

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then those that lead to an authority.
    pub chain: String,
    /// PEM: the private key; may be the same file.
    pub key: String,
    /// DER: an OCSP response to staple (RFC 6960).
    pub ocsp: Option<String>,
    /// PEM: certificates from which the chain is completed, where it does not lead to an authority by itself.
    pub issuers: Option<String>,
}

/// TLS with clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// The first is for clients that name no host, or one that no certificate has.
    pub certificates: Vec<CertificateFiles>,
    /// Directories of `name.crt` with `name.key`, and perhaps `name.ocsp` and `name.ca` (issuers).
    pub directories: Vec<String>,
    /// Certificates of clients.
    pub client: Option<ClientCertificates>,
    /// The oldest version spoken.
    pub oldest: TlsVersion,
    /// Application protocols to agree on (RFC 7301), the preferred first.
    pub alpn: Vec<String>,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// How many handshakes may be under way at once; clients beyond that are closed.
    pub handshakes_max: u32,
}

/// What is asked of clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// PEM: the authorities; files, or directories of them.
    pub authorities: Vec<String>,
    /// Whether a client without a certificate is let in.
    pub presence: Presence,
}

/// Whether a client has to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It has to.
    Required,
    /// It may; one that it shows has to be valid.
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

/// TLS with servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTlsSpec {
    /// The name to ask for and to verify; the server's own host name or address when absent.
    pub name: Option<String>,
    /// PEM: the authorities to trust, a file or a directory; the system's when absent.
    pub authorities: Option<String>,
    /// Whether the server's certificate is verified.
    pub verification: Verification,
    /// What we show to servers that ask.
    pub certificate: Option<CertificateFiles>,
}

/// Whether a server's certificate has to be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verification {
    /// It has to.
    Full,
    /// Anything will do: who stands between can read everything.
    Off,
}
