//! TLS without I/O of its own (rustls' unbuffered connections). Records are opened where the worker received them,
//! and sealed where it sends them from, so an idle connection holds no buffers.

#[cfg(test)]
mod tests;

use evener_core::health::TlsFailure;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{
    AlertDescription, CertificateError, CipherSuite, ClientConfig, CommonState, HandshakeKind,
    PeerIncompatible, ProtocolVersion, ServerConfig,
};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use x509_cert::der::Decode;

/// The most that sealing adds to a record (RFC 8446, section 5.2: 256 bytes, and the header).
const SEAL_BYTES_MAX: usize = 256 + 5;
/// The most plaintext in a record.
const RECORD_BYTES_MAX: usize = 1 << 14;
/// The longest name of a certificate in fields and logs; longer ones are cut.
const SUBJECT_BYTES_MAX: usize = 1024;

/// The reason why a handshake with a server failed; without an error the server closed the connection.
pub(crate) fn failure_with_server(error: Option<&rustls::Error>) -> TlsFailure {
    match error {
        None => TlsFailure::Ended,
        Some(rustls::Error::InvalidCertificate(error)) => failure_of_certificate(error),
        Some(rustls::Error::AlertReceived(alert)) => failure_of_alert(*alert),
        Some(rustls::Error::PeerIncompatible(why)) => match why {
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => TlsFailure::Version,
            _ => TlsFailure::CipherSuite,
        },
        Some(rustls::Error::InvalidMessage(_)) => TlsFailure::NotTls,
        Some(_) => TlsFailure::Other,
    }
}

fn failure_of_certificate(error: &CertificateError) -> TlsFailure {
    match error {
        CertificateError::UnknownIssuer => TlsFailure::Authority,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            TlsFailure::Name
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFailure::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsFailure::NotYetValid
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            TlsFailure::Purpose
        }
        _ => TlsFailure::Certificate,
    }
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
        _ => TlsFailure::Refused,
    }
}

/// The TLS options of a service.
pub struct TlsAcceptor {
    /// Keys, certificates and tickets.
    pub config: Arc<ServerConfig>,
    /// The longest time for a handshake.
    pub handshake_timeout: Duration,
    /// The most handshakes under way at once.
    pub handshakes_max: u32,
}

/// The TLS options of a pool.
pub struct TlsConnector {
    /// Authorities, the client certificate, and sessions.
    pub config: Arc<ClientConfig>,
    /// The names in the certificates of servers, by the names of the servers. A server that was discovered later has
    /// none.
    pub names: std::collections::BTreeMap<Arc<str>, ServerName<'static>>,
}

impl fmt::Debug for TlsAcceptor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsAcceptor")
            .field("handshake_timeout", &self.handshake_timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsConnector").field("names", &self.names).finish_non_exhaustive()
    }
}

/// The facts that a handshake with a client established.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFacts {
    /// The server name in the ClientHello.
    pub(crate) name: Option<String>,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) version: &'static str,
    pub(crate) cipher: String,
    /// The subject of the client's verified certificate (RFC 4514).
    pub(crate) subject: Option<String>,
    /// The common name in that subject.
    pub(crate) common_name: Option<String>,
    pub(crate) resumed: bool,
}

/// The TLS state of one connection.
pub(crate) enum Tls {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if matches!(self, Self::Server(_)) { "Tls::Server" } else { "Tls::Client" })
    }
}

/// The result of opening records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opened {
    /// Number of bytes that were consumed.
    pub(crate) used: usize,
    /// The peer sent close_notify.
    pub(crate) closed: bool,
    /// The handshake is complete.
    pub(crate) established: bool,
    /// The connection failed; the alert for the peer is in the output.
    pub(crate) failed: Option<rustls::Error>,
}

impl Tls {
    pub(crate) fn server(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        UnbufferedServerConnection::new(Arc::clone(config)).map(Self::Server)
    }

    pub(crate) fn client(
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        UnbufferedClientConnection::new(Arc::clone(config), name).map(Self::Client)
    }

    fn state(&self) -> &CommonState {
        match self {
            Self::Server(connection) => connection,
            Self::Client(connection) => connection,
        }
    }

    /// Opens the records in `records`: plaintext goes to `plain`, bytes to be sent to `out`.
    pub(crate) fn open(&mut self, records: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Opened {
        let mut opened = Opened::default();
        let mut unreadable = false;
        loop {
            let rest = &mut records[opened.used..];
            let step = match self {
                Self::Server(connection) => digest(connection.process_tls_records(rest), plain, out),
                Self::Client(connection) => digest(connection.process_tls_records(rest), plain, out),
            };
            opened.used += step.used;
            match step.state {
                Did::More => {}
                Did::Closed => opened.closed = true,
                Did::Established => {
                    opened.established = true;
                    return opened;
                }
                Did::Blocked => return opened,
                // The alert for the peer comes with the next steps. The first error is the one that counts.
                Did::Failed(error) if opened.failed.is_none() => {
                    unreadable = step.used == 0;
                    opened.failed = Some(error);
                    continue;
                }
                Did::Failed(_) => return opened,
            }
            // Only the alert remained: another attempt at the same bytes would make a second one.
            if unreadable {
                return opened;
            }
        }
    }

    /// Seals `plain` into `out`. Fails when the keys are exhausted. `records` are the bytes that could not be opened
    /// yet: rustls keeps offsets into them (half a handshake message), and would panic without them.
    pub(crate) fn seal(&mut self, plain: &[u8], records: &mut [u8], out: &mut Vec<u8>) -> Result<(), ()> {
        // Messages of the protocol itself (key updates) go first.
        let opened = self.open(records, &mut Vec::new(), out);
        debug_assert!(opened.used == 0, "what was whole was opened when it came");
        for part in plain.chunks(RECORD_BYTES_MAX) {
            let wanted = part.len() + SEAL_BYTES_MAX;
            grow(out, wanted, |room| match self {
                Self::Server(connection) => write(connection.process_tls_records(records), part, room),
                Self::Client(connection) => write(connection.process_tls_records(records), part, room),
            })?;
        }
        Ok(())
    }

    /// Sends close_notify (RFC 8446, section 6.1).
    pub(crate) fn close(&mut self, records: &mut [u8], out: &mut Vec<u8>) {
        let _ = grow(out, SEAL_BYTES_MAX, |room| match self {
            Self::Server(connection) => write_close(connection.process_tls_records(records), room),
            Self::Client(connection) => write_close(connection.process_tls_records(records), room),
        });
    }

    /// The facts of a handshake with a client; `name` comes from the ClientHello.
    pub(crate) fn facts(&self, name: Option<String>) -> TlsFacts {
        let state = self.state();
        let version = match state.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLS",
        };
        let subject = state.peer_certificates().and_then(|chain| subject_of(chain.first()?));
        let (subject, common_name) = subject.map_or((None, None), |(subject, name)| (Some(subject), name));
        TlsFacts {
            name,
            alpn: state.alpn_protocol().map(<[u8]>::to_vec),
            version,
            cipher: state
                .negotiated_cipher_suite()
                .map(|suite| cipher_name(suite.suite()))
                .unwrap_or_default(),
            subject,
            common_name,
            resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

/// The IANA name of a cipher suite: rustls calls those of TLS 1.3 `TLS13_...`.
fn cipher_name(suite: CipherSuite) -> String {
    suite.as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

enum Did {
    More,
    Closed,
    Established,
    Blocked,
    Failed(rustls::Error),
}

struct Digested {
    used: usize,
    state: Did,
}

fn digest<Data>(status: UnbufferedStatus<'_, '_, Data>, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Digested {
    let UnbufferedStatus { discard: mut used, state } = status;
    let state = match state {
        Err(error) => Did::Failed(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                let Ok(record) = record else { break };
                used += record.discard;
                plain.extend_from_slice(record.payload);
            }
            Did::More
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let encoded = grow(out, SEAL_BYTES_MAX, |room| match data.encode(room) {
                Ok(written) => Ok(written),
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                Err(EncodeError::AlreadyEncoded) => Ok(0),
            });
            debug_assert!(encoded.is_ok(), "a buffer that grows is large enough in the end");
            Did::More
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            // It is in the output, which is sent in order.
            data.done();
            Did::More
        }
        Ok(ConnectionState::PeerClosed) => Did::Closed,
        Ok(ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => Did::Established,
        // The configuration does not allow early data.
        Ok(_) => Did::Blocked,
    };
    Digested { used, state }
}

/// The result of a step: the bytes that it wrote, or the room that it needs; `None` when it fails.
type Wrote = Result<usize, Option<usize>>;

fn write<Data>(status: UnbufferedStatus<'_, '_, Data>, plain: &[u8], room: &mut [u8]) -> Wrote {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match traffic.encrypt(plain, room) {
            Ok(written) => Ok(written),
            Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
            Err(EncryptError::EncryptExhausted) => Err(None),
        },
        _ => Err(None),
    }
}

fn write_close<Data>(status: UnbufferedStatus<'_, '_, Data>, room: &mut [u8]) -> Wrote {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => match traffic.queue_close_notify(room) {
            Ok(written) => Ok(written),
            Err(EncryptError::InsufficientSize(size)) => Err(Some(size.required_size)),
            Err(EncryptError::EncryptExhausted) => Err(None),
        },
        _ => Err(None),
    }
}

/// Has `step` write behind the bytes in `out`, with more room when it needs that.
fn grow(out: &mut Vec<u8>, wanted: usize, mut step: impl FnMut(&mut [u8]) -> Wrote) -> Result<(), ()> {
    let start = out.len();
    out.resize(start + wanted, 0);
    loop {
        match step(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(Some(wanted)) if wanted > out.len() - start => out.resize(start + wanted, 0),
            Err(_) => {
                out.truncate(start);
                return Err(());
            }
        }
    }
}

/// The subject of a certificate (RFC 4514) and its common name, without characters that could end a header line.
fn subject_of(certificate: &[u8]) -> Option<(String, Option<String>)> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    let subject = &certificate.tbs_certificate.subject;
    let common_name = subject.0.iter().flat_map(|part| part.0.iter()).find_map(|attribute| {
        // id-at-commonName (RFC 5280, appendix A.1).
        let is_name = attribute.oid.to_string() == "2.5.4.3";
        is_name.then(|| printable(&String::from_utf8_lossy(attribute.value.value())))
    });
    Some((printable(&subject.to_string()), common_name))
}

fn printable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let mut end = clean.len().min(SUBJECT_BYTES_MAX);
    while !clean.is_char_boundary(end) {
        end -= 1;
    }
    clean[..end].to_owned()
}
