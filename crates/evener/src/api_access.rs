//! Access to the admin API over TCP: the tokens of its clients, the names by which they address it, its certificate,
//! and its listener. The files are read before a configuration is applied. This module serves nothing.

mod token;

pub(crate) use token::{Tokens, read_token};

use crate::config::{Config, Problem};
use crate::tls::pem;
use evener_core::spec::AdminTls;
use rustls::ServerConfig;
use rustls::crypto::ring;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Maximum size of a certificate or key.
const TLS_FILE_BYTES_MAX: u64 = 1 << 20;

/// Access to the API at one address.
pub(crate) struct ApiAccess {
    listen: SocketAddr,
    hosts: Vec<String>,
    tokens: Tokens,
    tls: Option<(TlsFiles, Arc<ServerConfig>)>,
}

/// Contents of the files of a certificate and its key.
type TlsFiles = (Vec<u8>, Vec<u8>);

impl ApiAccess {
    /// Reads the files of a configuration. Returns `None` if the API has no address.
    pub(crate) fn read(config: &Config) -> Result<Option<Arc<Self>>, Vec<Problem>> {
        let admin = &config.spec.admin;
        let (Some(listen), Some(token_file)) = (admin.listen, &admin.token_file) else { return Ok(None) };
        let tokens = Tokens::read(Path::new(token_file)).map_err(|why| format!("admin.token_file: {why}"));
        let tls = admin.tls.as_ref().map(read_tls).transpose().map_err(|why| format!("admin.tls: {why}"));
        match (tokens, tls) {
            (Ok(tokens), Ok(tls)) => {
                Ok(Some(Arc::new(Self { listen, hosts: admin.hosts.clone(), tokens, tls })))
            }
            (tokens, tls) => {
                let problems = tokens.err().into_iter().chain(tls.err());
                Err(problems.map(|problem| config.problem_with_admin(problem)).collect())
            }
        }
    }

    /// Returns the name of the token in a header field `Authorization`.
    pub(crate) fn authenticate(&self, authorization: &[u8]) -> Option<Arc<str>> {
        let (scheme, token) = authorization.split_at_checked(7)?;
        // The scheme is not case-sensitive (RFC 9110, section 11.1).
        let is_bearer = scheme.eq_ignore_ascii_case(b"Bearer ");
        is_bearer.then(|| self.tokens.find(token.trim_ascii())).flatten()
    }

    /// Returns true if clients may address the API by this host, with or without a port. A page of another site
    /// that made its name resolve to this address has its own name here.
    pub(crate) fn admits_host(&self, authority: &str) -> bool {
        let host = host_of(authority);
        let listen = self.listen.ip();
        if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return listen.is_unspecified() || address.to_canonical() == listen.to_canonical();
        }
        let is_local = listen.is_unspecified() || listen.to_canonical().is_loopback();
        let host = host.strip_suffix('.').unwrap_or(host);
        (is_local && host.eq_ignore_ascii_case("localhost"))
            || self.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Returns the settings of TLS, if the API uses it.
    pub(crate) fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref().map(|(_, config)| config)
    }

    /// Returns the scheme of the URLs of the API.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Returns true if clients would notice no difference.
    fn is_same(&self, other: &Self) -> bool {
        let files = |access: &Self| access.tls.as_ref().map(|(files, _)| files.clone());
        self.listen == other.listen
            && self.hosts == other.hosts
            && self.tokens == other.tokens
            && files(self) == files(other)
    }
}

/// Returns the host of an authority such as `[::1]:9900`.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

/// Reads a file that must not be longer than `most` bytes.
fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > most {
        return Err(io::Error::other(format!("the file has more than {most} bytes")));
    }
    Ok(contents)
}

fn read_tls(files: &AdminTls) -> Result<(TlsFiles, Arc<ServerConfig>), String> {
    let AdminTls { certificate, key } = files;
    let read = |path: &str| {
        read_file(Path::new(path), TLS_FILE_BYTES_MAX).map_err(|error| format!("{path}: {error}"))
    };
    let (chain, secret) = (read(certificate)?, read(key)?);
    let found = pem::certificates(&chain).map_err(|error| format!("{certificate}: {error}"))?;
    if found.is_empty() {
        return Err(format!("{certificate}: the file has no certificate in PEM"));
    }
    let private_key = pem::private_key(&secret).map_err(|error| format!("{key}: no usable key: {error}"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map(rustls::ConfigBuilder::<ServerConfig, rustls::WantsVerifier>::with_no_client_auth)
        .and_then(|builder| builder.with_single_cert(found, private_key))
        .map_err(|error| format!("{certificate}: {error}"))?;
    Ok(((chain, secret), Arc::new(config)))
}

/// An address at which the API is served, with its access.
#[derive(Clone)]
pub(crate) struct Endpoint {
    access: Arc<ApiAccess>,
    listener: Arc<TcpListener>,
}

impl Endpoint {
    /// Opens the listener of the API. The listener of `before` is used again if the address is the same; `before` is
    /// returned if nothing changed. `inherited` is the listener of the previous instance, with its address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) fn open(
        access: Arc<ApiAccess>,
        before: Option<&Arc<Self>>,
        inherited: Option<(SocketAddr, TcpListener)>,
    ) -> Result<Arc<Self>, String> {
        let before = before.filter(|before| before.access.listen == access.listen);
        if let Some(same) = before.filter(|before| before.access.is_same(&access)) {
            return Ok(Arc::clone(same));
        }
        let bind = || {
            let inherited = inherited.filter(|(address, _)| *address == access.listen);
            let listener =
                inherited.map_or_else(|| TcpListener::bind(access.listen), |(_, socket)| Ok(socket))?;
            listener.set_nonblocking(true)?;
            io::Result::Ok(Arc::new(listener))
        };
        let listener = match before {
            Some(before) => Ok(Arc::clone(&before.listener)),
            None => bind(),
        };
        let listener =
            listener.map_err(|error| format!("admin.listen: {} cannot be bound: {error}", access.listen))?;
        Ok(Arc::new(Self { access, listener }))
    }

    pub(crate) fn access(&self) -> &Arc<ApiAccess> {
        &self.access
    }

    /// Returns the listener for an event loop.
    pub(crate) fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener.try_clone()?)
    }

    /// Copies the listener. Returns it with its address as configured.
    pub(crate) fn copy(&self) -> io::Result<(SocketAddr, OwnedFd)> {
        Ok((self.access.listen, self.listener.try_clone()?.into()))
    }

    /// Returns the address, with the port that the system chose.
    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap_or(self.access.listen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(listen: &str) -> ApiAccess {
        let hosts = vec!["lb.example.org".to_owned()];
        let tokens = Tokens::parse("ops 0123456789abcdef").expect("the token is valid");
        ApiAccess { listen: listen.parse().expect("an address"), hosts, tokens, tls: None }
    }

    #[test]
    fn only_the_address_and_names_of_the_api_are_admitted_as_hosts() {
        let check = |listen: &str, host: &str, expected: bool| {
            assert_eq!(access(listen).admits_host(host), expected, "{host} at {listen}");
        };
        for host in [
            "127.0.0.1:9900",
            "127.0.0.1",
            "localhost",
            "LOCALHOST:9900",
            "lb.example.org:1",
            "lb.example.org.",
        ] {
            check("127.0.0.1:9900", host, true);
        }
        for host in
            ["", ":9900", "127.0.0.2", "evil.example", "lb.example.org.evil.example", "[::1]:9900", "a:b:c"]
        {
            check("127.0.0.1:9900", host, false);
        }
        check("[::1]:9900", "[::1]:9900", true);
        check("[::1]:9900", "[::1]", true);
        check("0.0.0.0:9900", "192.0.2.7:9900", true);
        check("192.0.2.7:9900", "localhost", false);
    }

    #[test]
    fn a_token_is_found_only_with_its_scheme() {
        let found = |text: &str| access("127.0.0.1:1").authenticate(text.as_bytes());
        assert_eq!(found("Bearer 0123456789abcdef").as_deref(), Some("ops"));
        assert_eq!(found("bearer  0123456789abcdef ").as_deref(), Some("ops"));
        for wrong in
            ["", "Bearer", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef", "Bearer 0123456789abcde"]
        {
            assert_eq!(found(wrong), None, "{wrong}");
        }
    }
}
