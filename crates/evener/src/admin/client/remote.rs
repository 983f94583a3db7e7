//! An instance whose API is reached over TCP: its address, its certificate, and the token for it.

use crate::api_access::read_token;
use crate::tls::pem;
use anyhow::{Context, bail};
use hyper::header::HeaderValue;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// An instance at a URL.
pub(super) struct Remote {
    url: String,
    /// Host and port.
    authority: String,
    tls: Option<(ServerName<'static>, TlsConnector)>,
    token: String,
}

impl fmt::Display for Remote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(out)
    }
}

/// A connection, with or without TLS.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Remote {
    /// Reads the token, and the authorities if the URL begins with `https`. A token is sent in clear only to this
    /// machine.
    pub(super) fn new(url: &str, token_file: &Path, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let trimmed = url.trim_end_matches('/');
        let (is_tls, authority) = match (trimmed.strip_prefix("https://"), trimmed.strip_prefix("http://")) {
            (Some(authority), _) => (true, authority),
            (_, Some(authority)) => (false, authority),
            _ => bail!("--api {url}: write a URL such as https://lb.example.org:9900"),
        };
        let (host, port) = authority.rsplit_once(':').unwrap_or_default();
        if host.is_empty() || port.parse::<u16>().is_err() || authority.contains(['/', '@', '?']) {
            bail!("--api {url}: write a host and a port, such as https://lb.example.org:9900");
        }
        let address = authority.parse::<SocketAddr>().ok();
        let is_local = address.is_some_and(|address| address.ip().is_loopback()) || host == "localhost";
        if !is_tls && !is_local {
            bail!("--api {url}: the token would be sent in clear to another machine: write https://");
        }
        let token = read_token(token_file).map_err(|why| anyhow::anyhow!("--token-file: {why}"))?;
        let tls = if is_tls {
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
            Some((name.with_context(|| format!("--api {url}: not a host name"))?, connector(ca_file)?))
        } else {
            None
        };
        Ok(Self { url: trimmed.to_owned(), authority: authority.to_owned(), tls, token })
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the value of the header field `Authorization`.
    pub(super) fn authorization(&self) -> anyhow::Result<HeaderValue> {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", self.token))?;
        value.set_sensitive(true);
        Ok(value)
    }

    pub(super) async fn connect(&self) -> anyhow::Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(&self.authority).await;
        let stream = stream.with_context(|| format!("{self} is not reachable"))?;
        let Some((name, connector)) = &self.tls else { return Ok(Box::new(stream)) };
        let stream = connector.connect(name.clone(), stream).await;
        Ok(Box::new(
            stream.with_context(|| format!("{self}: TLS failed (--ca-file FILE adds an authority)"))?,
        ))
    }
}

/// Returns a connector that trusts the authorities of a file, else those of the system.
fn connector(ca_file: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let bytes = std::fs::read(file).with_context(|| format!("--ca-file {}", file.display()))?;
            let found = pem::certificates(&bytes).with_context(|| format!("--ca-file {}", file.display()))?;
            if roots.add_parsable_certificates(found).0 == 0 {
                bail!("--ca-file {}: the file has no certificates", file.display());
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_sent_in_clear_to_other_machines() {
        let check = |url: &str, expected: &str| {
            let why = Remote::new(url, Path::new("/no/such/file"), None).err().expect(url).to_string();
            assert!(why.contains(expected), "{url}: {why}");
        };
        check("http://192.0.2.1:9900", "in clear");
        check("http://lb.example.org:9900", "in clear");
        check("http://127.0.0.1.evil.example:9900", "in clear");
        check("ftp://127.0.0.1:9900", "write a URL");
        for wrong in ["http://127.0.0.1", "http://:1", "https://a:b", "https://u@a:1", "https://a:1/v1"] {
            check(wrong, "write a host and a port");
        }
        check("http://127.0.0.1:9900", "no/such/file");
        check("http://localhost:9900/", "no/such/file");
    }
}
