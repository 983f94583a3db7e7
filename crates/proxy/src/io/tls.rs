//! TLS without I/O (rustls' unbuffered connections). Records are opened in the buffer into which the worker
//! received them, and sealed into the buffer from which it sends them, so an idle connection has no buffers.

mod failures;
#[cfg(test)]
mod tests;

pub(crate) use self::failures::failure_with_client;
pub use self::failures::failure_with_server;

use crate::io::buffer::Buffer;
use crate::io::relay::End;
use evener_core::Target;
use evener_core::snapshot::Entry;
use evener_core::wire::proxy::Ssl;
use rustix::io::Errno;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CipherSuite, ClientConfig, CommonState, HandshakeKind, ProtocolVersion, ServerConfig};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use x509_cert::der::Decode;

/// Most bytes that sealing adds to a record (RFC 8446, section 5.2: 256 bytes, and the header).
const SEAL_BYTES_MAX: usize = 256 + 5;
/// Most bytes of plaintext in a record.
const RECORD_BYTES_MAX: usize = 1 << 14;
/// Longest name of a certificate in header fields and logs; longer names are cut.
const SUBJECT_BYTES_MAX: usize = 1024;

/// TLS options of a service.
pub struct TlsAcceptor {
    /// Keys, certificates and tickets.
    pub config: Arc<ServerConfig>,
    /// Longest time for a handshake.
    pub handshake_timeout: Duration,
    /// Most handshakes under way at the same time.
    pub handshakes_max: u32,
}

/// TLS options of a pool.
pub struct TlsConnector {
    /// Authorities, the client certificate, and sessions.
    pub config: Arc<ClientConfig>,
    /// Expected name in the certificates of all servers. Without it, each server has its host name, or its
    /// address.
    pub name: Option<ServerName<'static>>,
}

impl TlsConnector {
    /// Returns the name that the certificate of a server must have.
    #[must_use]
    pub fn name_of(&self, server: &Entry) -> Option<ServerName<'static>> {
        let usual = || match (&server.host, &server.target) {
            (Some(host), _) => ServerName::try_from(host.to_string()).ok(),
            (None, Target::Ip(address)) => Some(ServerName::IpAddress(address.ip().into())),
            // Only if the certificate is not verified: TLS needs a name even then.
            (None, Target::Unix(_)) => ServerName::try_from("localhost").ok(),
        };
        self.name.clone().or_else(usual)
    }
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
        out.debug_struct("TlsConnector").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Facts that a handshake with a client established.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsFacts {
    /// Server name in the ClientHello.
    name: Option<String>,
    alpn: Option<Vec<u8>>,
    version: &'static str,
    cipher: String,
    /// Subject of the client's verified certificate (RFC 4514).
    subject: Option<String>,
    /// Common name in the subject.
    common_name: Option<String>,
    is_resumed: bool,
}

impl TlsFacts {
    /// Returns the server name that the client requested.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns whether the client chose HTTP/2 (RFC 9113, section 3.2).
    pub(crate) fn is_http2(&self) -> bool {
        self.alpn.as_deref() == Some(b"h2")
    }

    /// Returns the version of TLS.
    pub(crate) fn version(&self) -> &'static str {
        self.version
    }

    /// Returns whether the handshake resumed an earlier session.
    pub(crate) fn is_resumed(&self) -> bool {
        self.is_resumed
    }

    /// Returns the subject of the client's verified certificate.
    pub(crate) fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// Returns the negotiated application protocol, for a PROXY header.
    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// Returns the TLS part of a PROXY header.
    pub(crate) fn proxy_header_part(&self) -> Ssl<'_> {
        Ssl {
            version: Some(self.version.as_bytes()),
            cipher: Some(self.cipher.as_bytes()),
            common_name: self.common_name.as_deref().map(str::as_bytes),
            verified: self.subject.is_some(),
        }
    }
}

/// TLS state of one connection.
pub(crate) enum Tls {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl fmt::Debug for Tls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if matches!(self, Self::Server(_)) { "Tls::Server" } else { "Tls::Client" })
    }
}

/// Result of opening records.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opened {
    /// The peer sent close_notify.
    is_closed: bool,
    /// The handshake is complete.
    is_established: bool,
    /// The connection failed; the alert for the peer is in the output.
    failure: Option<rustls::Error>,
}

impl Opened {
    /// Returns the end of the receiving direction, if one of the records announced it.
    pub(crate) fn end(&self) -> Option<End> {
        match &self.failure {
            _ if self.is_closed => Some(End::Fin),
            Some(_) => Some(End::Error(Errno::PROTO)),
            None => None,
        }
    }

    /// Returns whether the handshake is complete, or the reason why it failed.
    pub(crate) fn established(self) -> Result<bool, rustls::Error> {
        self.failure.map_or(Ok(self.is_established), Err)
    }
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

    /// Opens and consumes the complete records in `records`: plaintext goes to `plain`, bytes to be sent to
    /// `out`.
    pub(super) fn open(&mut self, records: &mut Buffer, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Opened {
        let mut opened = Opened::default();
        let mut unreadable = false;
        loop {
            let rest = records.unread_mut();
            let step = match self {
                Self::Server(connection) => process(connection.process_tls_records(rest), plain, out),
                Self::Client(connection) => process(connection.process_tls_records(rest), plain, out),
            };
            records.consume(step.used);
            match step.outcome {
                StepOutcome::Continue => {}
                StepOutcome::Closed => opened.is_closed = true,
                StepOutcome::Established => {
                    opened.is_established = true;
                    return opened;
                }
                StepOutcome::Blocked => return opened,
                // The next steps write the alert for the peer. The first error is the cause of all others.
                StepOutcome::Failed(error) if opened.failure.is_none() => {
                    unreadable = step.used == 0;
                    opened.failure = Some(error);
                    continue;
                }
                StepOutcome::Failed(_) => return opened,
            }
            // Only the alert was left to be written. Another attempt at the same bytes would make a second
            // alert.
            if unreadable {
                return opened;
            }
        }
    }

    /// Seals `plain` into `out`. Fails when the keys are exhausted. `records` are the bytes that could not be
    /// opened yet: rustls stores offsets into them (half a handshake message), and would panic without them.
    pub(super) fn seal(&mut self, plain: &[u8], records: &mut Buffer, out: &mut Vec<u8>) -> Result<(), ()> {
        // Messages of the protocol itself (key updates) go first.
        let incomplete = records.len();
        self.open(records, &mut Vec::new(), out);
        debug_assert!(records.len() == incomplete, "complete records are opened when they are received");
        let records = records.unread_mut();
        for part in plain.chunks(RECORD_BYTES_MAX) {
            let wanted = part.len() + SEAL_BYTES_MAX;
            grow(out, wanted, |room| match self {
                Self::Server(connection) => write(connection.process_tls_records(records), part, room),
                Self::Client(connection) => write(connection.process_tls_records(records), part, room),
            })?;
        }
        Ok(())
    }

    /// Writes close_notify into `out` (RFC 8446, section 6.1).
    pub(super) fn close(&mut self, records: &mut Buffer, out: &mut Vec<u8>) {
        let records = records.unread_mut();
        let _ = grow(out, SEAL_BYTES_MAX, |room| match self {
            Self::Server(connection) => write_close(connection.process_tls_records(records), room),
            Self::Client(connection) => write_close(connection.process_tls_records(records), room),
        });
    }

    /// Returns the facts of a handshake with a client; `name` comes from the ClientHello.
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
            is_resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
        }
    }
}

/// Returns the IANA name of a cipher suite: rustls names TLS 1.3 suites `TLS13_...`.
fn cipher_name(suite: CipherSuite) -> String {
    suite.as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

/// Outcome of one step of rustls' state machine.
enum StepOutcome {
    /// Another step follows.
    Continue,
    /// The peer sent close_notify.
    Closed,
    /// The handshake is complete, and no complete record is left.
    Established,
    /// The next step needs more bytes.
    Blocked,
    Failed(rustls::Error),
}

struct Step {
    /// Number of bytes that the step consumed.
    used: usize,
    outcome: StepOutcome,
}

fn process<Data>(status: UnbufferedStatus<'_, '_, Data>, plain: &mut Vec<u8>, out: &mut Vec<u8>) -> Step {
    let UnbufferedStatus { discard: mut used, state } = status;
    let outcome = match state {
        Err(error) => StepOutcome::Failed(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                let Ok(record) = record else { break };
                used += record.discard;
                plain.extend_from_slice(record.payload);
            }
            StepOutcome::Continue
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let encoded = grow(out, SEAL_BYTES_MAX, |room| match data.encode(room) {
                Ok(written) => Ok(written),
                Err(EncodeError::InsufficientSize(size)) => Err(Some(size.required_size)),
                Err(EncodeError::AlreadyEncoded) => Ok(0),
            });
            debug_assert!(encoded.is_ok(), "a buffer that grows becomes large enough");
            StepOutcome::Continue
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            // The bytes are in the output, which is sent in order.
            data.done();
            StepOutcome::Continue
        }
        Ok(ConnectionState::PeerClosed) => StepOutcome::Closed,
        Ok(ConnectionState::WriteTraffic(_) | ConnectionState::Closed) => StepOutcome::Established,
        // The configuration does not allow early data.
        Ok(_) => StepOutcome::Blocked,
    };
    Step { used, outcome }
}

/// Result of writing: the number of written bytes, or the number that the record needs; `Err(None)` if it
/// failed.
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

/// Calls `step` to append to `out`, and again with more room if it needs more.
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

/// Returns the subject of a certificate (RFC 4514) and its common name, without characters that could end a
/// header line.
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
