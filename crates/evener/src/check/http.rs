//! HTTP checks: one request over a new connection, in the clear or over TLS.

use super::body::ExpectedBody;
use super::exchange::{Expected, exchange};
use super::{CheckedServer, ProbeError, Stream, connect, is_resource_exhaustion};
use crate::tls::{Authorities, insecure_verifier, pem::certificates};
use evener_core::spec::{CheckKind, CheckTls};
use evener_core::{Endpoint, Target};
use evener_proxy::failure_with_server;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// Sends a request to a server. `Err` describes the failure.
pub(super) async fn probe(
    target: &Target,
    server: &CheckedServer,
    kind: &CheckKind,
) -> Result<(), ProbeError> {
    let CheckKind::Http { method, path, host, status, body, regex, digest, tls } = kind else {
        return Ok(());
    };
    let authority = host.clone().unwrap_or_else(|| authority(&server.endpoint));
    let request = request(method, path, &authority)?;
    let body = ExpectedBody { text: body.as_deref(), regex: regex.as_deref(), digest: digest.as_deref() };
    let expected = Expected { status, body, limits: server.limits };
    let judged = match (connect(target, server.send_proxy).await?, tls) {
        (Stream::Tcp(stream), Some(tls)) => {
            exchange(wrap(stream, tls, &authority).await?, &request, &expected).await
        }
        (Stream::Unix(stream), Some(tls)) => {
            exchange(wrap(stream, tls, &authority).await?, &request, &expected).await
        }
        (Stream::Tcp(stream), None) => exchange(stream, &request, &expected).await,
        (Stream::Unix(stream), None) => exchange(stream, &request, &expected).await,
    };
    Ok(judged?)
}

/// Builds the header section of the request.
fn request(method: &str, path: &str, authority: &str) -> Result<Vec<u8>, String> {
    // A fragment is never sent (RFC 9110, section 4.1).
    let path = path.split('#').next().unwrap_or_default();
    let fits = |text: &str| !text.is_empty() && !text.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    for text in [method, path, authority] {
        if !fits(text) {
            return Err(format!("http: {text:?} cannot be part of a request: change the check"));
        }
    }
    let agent = concat!("evener/", env!("CARGO_PKG_VERSION"));
    let fields = format!("host: {authority}\r\nuser-agent: {agent}\r\nconnection: close\r\n\r\n");
    Ok(format!("{method} {path} HTTP/1.1\r\n{fields}").into_bytes())
}

/// Returns the value of the Host header (RFC 9110, section 7.2): the name or address as configured, `localhost`
/// for a unix socket.
pub(super) fn authority(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Unix(_) => "localhost".into(),
        // The zone is omitted, because it has a meaning only on this machine (RFC 6874, section 4).
        Endpoint::Ip(address) => SocketAddr::new(address.ip(), address.port()).to_string(),
        Endpoint::Host { .. } => endpoint.to_string(),
    }
}

/// Starts TLS on a stream. The name of the server for TLS is `sni` of the check, or else the host in
/// `authority`.
pub(super) async fn wrap<S>(
    stream: S,
    tls: &CheckTls,
    authority: &str,
) -> Result<tokio_rustls::client::TlsStream<S>, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    let name = tls.sni.clone().unwrap_or_else(|| host.to_owned());
    let name = ServerName::try_from(name).map_err(|error| format!("tls: {error}"))?;
    let connector = TlsConnector::from(client_config(tls)?);
    connector.connect(name, stream).await.map_err(|error| handshake_error(&error))
}

/// Describes a failed handshake in the words that are used for traffic, too.
fn handshake_error(error: &io::Error) -> ProbeError {
    if let Some(fault) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return failure_with_server(Some(fault)).reason().into_owned().into();
    }
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return failure_with_server(None).reason().into_owned().into();
    }
    ProbeError::by_system("tls", error)
}

/// Trust of a check: `true` if any certificate is accepted, and the file of authorities.
type Trust = (bool, Option<String>);

/// Returns the TLS configuration of a check. Checks without a file of authorities share it, because reading the
/// authorities of the system takes milliseconds.
fn client_config(tls: &CheckTls) -> Result<Arc<ClientConfig>, ProbeError> {
    static KNOWN: LazyLock<Mutex<BTreeMap<Trust, Arc<ClientConfig>>>> = LazyLock::new(Mutex::default);
    let key = (tls.insecure, tls.ca_file.clone());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = known.get(&key) {
        return Ok(Arc::clone(config));
    }
    let config = Arc::new(make_config(tls)?);
    // Only configurations without a file are cached: a file can be replaced, and the next check has to read
    // it again.
    if tls.ca_file.is_none() {
        known.insert(key, Arc::clone(&config));
    }
    Ok(config)
}

fn make_config(tls: &CheckTls) -> Result<ClientConfig, ProbeError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("tls: {error}"))?;
    let verifier = if tls.insecure { insecure_verifier() } else { authorities(tls)?.for_servers()? };
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Reads the authorities that a check trusts: the certificates in `ca_file`, or else the authorities of the
/// system.
fn authorities(tls: &CheckTls) -> Result<Authorities, ProbeError> {
    let mut authorities = Authorities::default();
    let failed = |path: &str, error: &dyn std::fmt::Display| format!("tls: {path}: {error}");
    match &tls.ca_file {
        Some(path) => {
            let unread = |error: io::Error| ProbeError::by_system(&format!("tls: {path}"), &error);
            for file in files_of(Path::new(path)).map_err(unread)? {
                let bytes = std::fs::read(&file).map_err(unread)?;
                for certificate in certificates(&bytes).map_err(|error| failed(path, &error))? {
                    authorities.add(certificate).map_err(|error| failed(path, &error))?;
                }
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            if let Some(error) = found.errors.iter().find(|error| wants(&error.kind)) {
                return Err(ProbeError::Unmade(format!("tls: {error}")));
            }
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            authorities = Authorities::of(roots);
        }
    }
    if authorities.is_empty() {
        let why = "tls: this system trusts no authorities; give the check `ca` or `verify = false`";
        return Err(why.to_owned().into());
    }
    Ok(authorities)
}

/// Returns the path itself, or the files in it if it is a directory.
fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path)?.flatten().map(|entry| entry.path());
    Ok(entries.filter(|entry| entry.is_file()).collect())
}

/// Returns true if the authorities of the system could not be read because this process lacks resources.
fn wants(kind: &rustls_native_certs::ErrorKind) -> bool {
    matches!(kind, rustls_native_certs::ErrorKind::Io { inner, .. } if is_resource_exhaustion(inner))
}
