//! Certificates for tests, TLS clients and servers that use the certificates, and the programs openssl and
//! curl.

use crate::harness::{DEADLINE, Directory, Server, connect};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A certificate chain and its key in PEM.
pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Issued {
    /// Writes `name.crt` and `name.key` to a directory and returns their paths.
    pub(crate) fn write(&self, directory: &Directory, name: &str) -> (PathBuf, PathBuf) {
        let chain = directory.write(&format!("{name}.crt"), &self.chain);
        (chain, directory.write(&format!("{name}.key"), &self.key))
    }

    /// Writes both files and returns the configuration keys for them.
    pub(crate) fn keys(&self, directory: &Directory, name: &str) -> String {
        let (chain, key) = self.write(directory, name);
        format!("certificate = \"{}\", key = \"{}\"", chain.display(), key.display())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.chain.as_bytes()).unwrap()
    }

    /// Returns a resolver that presents the certificate to every server.
    pub(crate) fn resolver(&self) -> Arc<dyn rustls::client::ResolvesClientCert> {
        let provider = rustls::crypto::ring::default_provider();
        let key = rustls::sign::CertifiedKey::from_der(vec![self.der()], self.key_der(), &provider).unwrap();
        Arc::new(rustls::sign::SingleCertAndKey::from(key))
    }

    /// Returns the configuration of a TLS server with this certificate.
    pub(crate) fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.der()], self.key_der())
            .unwrap();
        Arc::new(config)
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: Issued,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let root = Issued { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() };
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Writes the root certificate and its key as `name.crt` and `name.key` to a directory and returns their paths.
    pub(crate) fn write(&self, directory: &Directory, name: &str) -> (PathBuf, PathBuf) {
        self.root.write(directory, name)
    }

    /// Returns the root certificate in PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.root.chain
    }

    /// Issues a server certificate. The first name is also the common name.
    pub(crate) fn issue(&self, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names[0].as_str());
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        self.sign(params)
    }

    /// Issues a server certificate that expires in `days` days.
    pub(crate) fn issue_until(&self, name: &str, days: i64) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let end = now.as_secs().checked_add_signed(days * 86_400).unwrap();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        self.sign(params)
    }

    /// Issues a client certificate.
    pub(crate) fn issue_client(&self, common_name: &str) -> Issued {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Issued {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        Issued { chain: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Returns the configuration of a TLS client that trusts the authority.
    pub(crate) fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut store = RootCertStore::empty();
        store.add(self.root.der()).unwrap();
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(store)
            .with_no_client_auth()
    }
}

/// TLS 1.3 and TLS 1.2.
pub(crate) const ANY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Connects a client and completes the handshake.
pub(crate) fn shake(port: u16, name: &str, config: &Arc<ClientConfig>) -> io::Result<TlsStream> {
    shake_over(connect(port), name, config)
}

/// Completes a handshake over an open connection.
pub(crate) fn shake_over<S: Read + Write>(
    mut stream: S,
    name: &str,
    config: &Arc<ClientConfig>,
) -> io::Result<StreamOwned<ClientConnection, S>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// A TLS server that sends its name and the SNI of the client, and then echoes the received bytes.
pub(crate) fn tls_echo(name: &'static str, issued: &Issued) -> Server {
    let config = issued.server(ANY);
    Server::start(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let _ = echo(StreamOwned::new(connection, stream), name);
    })
}

fn echo(mut tls: StreamOwned<ServerConnection, TcpStream>, name: &str) -> io::Result<()> {
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    let requested = tls.conn.server_name().unwrap_or("-").to_owned();
    tls.write_all(format!("{name} {requested}\n").as_bytes())?;
    tls.flush()?;
    let mut buffer = vec![0; 65_536];
    loop {
        let read = tls.read(&mut buffer)?;
        if read == 0 {
            tls.conn.send_close_notify();
            return tls.flush();
        }
        tls.write_all(&buffer[..read])?;
        tls.flush()?;
    }
}

/// An HTTP server with TLS that responds with an empty body.
pub(crate) fn https_origin(issued: &Issued) -> Server {
    let config = issued.server(ANY);
    Server::start(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = StreamOwned::new(connection, stream);
        let mut header = Vec::new();
        let mut byte = [0];
        while let Ok(1) = tls.read(&mut byte) {
            header.push(byte[0]);
            if header.ends_with(b"\r\n\r\n") {
                if tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                    return;
                }
                header.clear();
            }
        }
    })
}

/// Reads up to a newline, the end of the stream or an error, and returns the bytes before the newline.
pub(crate) fn line_of(stream: &mut impl Read) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while let Ok(1) = stream.read(&mut byte) {
        if byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// An HTTP server that responds with its name and the header section of the request.
pub(crate) fn mirror(name: &'static str) -> Server {
    Server::start(move |mut stream| {
        let mut header = Vec::new();
        let mut byte = [0];
        while let Ok(1) = stream.read(&mut byte) {
            header.push(byte[0]);
            if header.ends_with(b"\r\n\r\n") {
                let body = format!("{name}\n{}", String::from_utf8_lossy(&header));
                let length = body.len();
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
                if stream.write_all(response.as_bytes()).is_err() {
                    return;
                }
                header.clear();
            }
        }
    })
}

fn run(program: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new("timeout");
    command.arg(DEADLINE.as_secs().to_string()).arg(program).args(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program may exit without reading its input.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Runs openssl and returns its output on stdout and stderr.
pub(crate) fn openssl(arguments: &[&str], input: &str) -> String {
    let output = run("openssl", arguments, input.as_bytes());
    [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat()
}

/// Runs `openssl s_client`. If `input` is not empty, openssl stays connected until the server closes the
/// connection.
pub(crate) fn s_client(port: u16, arguments: &[&str], input: &str) -> String {
    let at = format!("127.0.0.1:{port}");
    let mut all = vec!["s_client", "-connect", &at];
    all.extend(arguments);
    if !input.is_empty() {
        all.push("-ign_eof");
    }
    openssl(&all, input)
}

/// Sends a request with curl and returns the status and the body. The status is 0 if curl gets no response.
pub(crate) fn curl(port: u16, name: &str, scheme: &str, arguments: &[&str]) -> (u16, String) {
    let resolve = format!("{name}:{port}:127.0.0.1");
    let url = format!("{scheme}://{name}:{port}/");
    let mut all = vec!["-s", "--noproxy", "*", "--resolve", &resolve, "-w", "\n%{http_code}"];
    all.extend(arguments);
    all.push(&url);
    let output = run("curl", &all, b"");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (status.parse().unwrap_or(0), body.to_owned())
}
