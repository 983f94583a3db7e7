//! TLS certificates, keys, authorities and tickets. Files are read before a configuration is applied. Unchanged
//! settings are reused, with their sessions and ticket keys.

mod chain;
mod files;
mod form;
mod resolver;
mod validity;
mod words;

pub(crate) use validity::{TrackedCertificate, unix_time};

use crate::config::{Config, Location, Problem, TlsOwner, Warning, unreadable};
use crate::tls::pem::certificates;
use crate::tls::{Authorities, insecure_verifier};
use evener_core::Endpoint;
use evener_core::diff::TlsDigests;
use evener_core::event::Event;
use evener_core::spec::{
    CertificateFiles, CheckKind, ClientCertificates, Http2, PoolSpec, ServerTlsSpec, ServiceSpec, TlsSpec,
    TlsVersion, Verification,
};
use evener_proxy::{TlsAcceptor, TlsConnector};
use files::Side;
use resolver::Resolver;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion, WantsVerifier,
    version,
};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use validity::{CertificateFacts, subject};
use x509_cert::der::{Decode, Tagged};

const FILE_BYTES_MAX: u64 = 4 << 20;
const CERTIFICATES_MAX: usize = 100_000;
/// Maximum number of warnings about the certificates of a configuration.
const WARNINGS_MAX: usize = 1000;
/// Maximum number of stored sessions, which clients of TLS 1.2 without tickets resume.
const SESSIONS_MAX: usize = 10_000;

/// The TLS settings of all services and pools.
#[derive(Clone, Default)]
pub(crate) struct TlsSettings {
    services: BTreeMap<Arc<str>, ClientSettings>,
    pools: BTreeMap<Arc<str>, ServerSettings>,
    /// Files that were read, with stamps to detect changes.
    files: BTreeMap<PathBuf, Option<Stamp>>,
    /// The certificates in use, with their validity.
    tracked: Arc<[TrackedCertificate]>,
    /// Warnings about the certificates that do not depend on the time.
    warnings: Arc<[Warning]>,
}

/// A certificate. If it was read from a directory, the name of its file is added as a host name.
type NamedCertificate = (Option<String>, Arc<CertifiedKey>);

/// Stamp of a file: inode, length, and the time of its last change (ctime, which programs cannot set).
type Stamp = (u64, u64, i64, i64);

#[derive(Clone)]
struct ClientSettings {
    digests: TlsDigests,
    /// Digest of the requirements for client certificates. When they change, ticket keys are replaced, so that
    /// an old ticket cannot bypass the new requirements.
    client_digest: u64,
    tickets: Arc<dyn ProducesTickets>,
    acceptor: Arc<TlsAcceptor>,
}

#[derive(Clone)]
struct ServerSettings {
    digests: TlsDigests,
    connector: Arc<TlsConnector>,
}

impl TlsSettings {
    /// Returns the TLS settings for clients of a service.
    pub(crate) fn acceptor(&self, service: &str) -> Option<Arc<TlsAcceptor>> {
        self.services.get(service).map(|settings| Arc::clone(&settings.acceptor))
    }

    /// Returns the TLS settings for servers of a pool.
    pub(crate) fn connector(&self, pool: &str) -> Option<Arc<TlsConnector>> {
        self.pools.get(pool).map(|settings| Arc::clone(&settings.connector))
    }

    /// Returns warnings about the certificates in use, which are certificates that have expired at `now` (in
    /// seconds since 1970) or expire soon, and chains that clients cannot verify.
    pub(crate) fn warnings(&self, now: i64) -> Vec<Warning> {
        let expiring = self.tracked.iter().filter_map(|tracked| tracked.warning(now));
        expiring.chain(self.warnings.iter().cloned()).collect()
    }

    /// Returns the warnings about the certificates in use that do not depend on the time.
    pub(crate) fn lasting_warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Returns events about the certificates that are not valid at `now` (in seconds since 1970) or expire soon,
    /// and the time at which the next certificate becomes such a certificate.
    pub(crate) fn expiry_events(&self, now: i64) -> (Vec<Event>, Option<i64>) {
        let events = self.tracked.iter().filter_map(|tracked| tracked.event(now)).collect();
        (events, self.tracked.iter().filter_map(|tracked| tracked.next_change(now)).min())
    }

    /// Returns the certificates in use.
    pub(crate) fn certificates(&self) -> &[TrackedCertificate] {
        &self.tracked
    }

    /// Returns digests of the settings and files of a service; `None` without TLS.
    pub(crate) fn digests_of_service(&self, name: &str) -> Option<TlsDigests> {
        self.services.get(name).map(|settings| settings.digests)
    }

    /// Returns digests of the settings and files of a pool; `None` without TLS.
    pub(crate) fn digests_of_pool(&self, name: &str) -> Option<TlsDigests> {
        self.pools.get(name).map(|settings| settings.digests)
    }

    /// Returns true if a file or directory changed since it was read.
    pub(crate) fn is_stale(&self) -> bool {
        self.files.iter().any(|(path, stamp)| stamp_of(path) != *stamp)
    }

    /// Creates settings without certificates that depend on a missing file.
    #[cfg(test)]
    pub(crate) fn of_missing_file(path: PathBuf) -> Self {
        Self { files: BTreeMap::from([(path, None)]), ..Self::default() }
    }

    /// Creates settings with a certificate that is valid until `not_after`, in seconds since 1970.
    #[cfg(test)]
    pub(crate) fn of_certificate(not_after: i64) -> Self {
        let tracked = TrackedCertificate::until(not_after);
        Self { tracked: [tracked].into(), ..Self::of_missing_file("/no/such/file.pem".into()) }
    }

    /// Returns true if no files were read.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

/// Reads the files of a configuration. Settings in `before` that did not change are reused.
pub(crate) fn load(config: &Config, before: &TlsSettings) -> Result<TlsSettings, Vec<Problem>> {
    let mut loader = Loader {
        tls: TlsSettings::default(),
        problems: Vec::new(),
        owner: (TlsOwner::Service, "".into()),
        digest: DefaultHasher::new(),
        files: DefaultHasher::new(),
        location: None,
        tracked: Vec::new(),
        warnings: Vec::new(),
    };
    for service in &config.spec.services {
        if let Some(spec) = &service.tls {
            let old = before.services.get(&service.name);
            loader.location = config.tls_location(TlsOwner::Service, &service.name).cloned();
            if let Some(settings) = loader.for_clients(service, spec, old) {
                loader.tls.services.insert(service.name.clone(), settings);
            }
        }
    }
    for pool in &config.spec.pools {
        if let Some(spec) = &pool.tls {
            let old = before.pools.get(&pool.name);
            loader.location = config.tls_location(TlsOwner::Pool, &pool.name).cloned();
            if let Some(settings) = loader.for_servers(pool, spec, old) {
                loader.tls.pools.insert(pool.name.clone(), settings);
            }
        }
    }
    if !loader.problems.is_empty() {
        return Err(loader.problems);
    }
    config.spec.pools.iter().for_each(|pool| loader.track_authorities_of_checks(pool));
    let (tracked, warnings) = (loader.tracked.into(), loader.warnings.into());
    Ok(TlsSettings { tracked, warnings, ..loader.tls })
}

/// Reads the files of all services and pools, and collects problems.
struct Loader {
    tls: TlsSettings,
    problems: Vec<Problem>,
    /// The service or pool that is being read.
    owner: (TlsOwner, Arc<str>),
    /// Digest of the settings and files of the owner that have been read.
    digest: DefaultHasher,
    /// Digest of the files of the owner that have been read.
    files: DefaultHasher,
    /// Location of the TLS settings of the owner.
    location: Option<Location>,
    tracked: Vec<TrackedCertificate>,
    warnings: Vec<Warning>,
}

impl Loader {
    fn problem(&mut self, message: impl std::fmt::Display) {
        let message = format!("{}: {message}", subject(&self.owner));
        self.problems.push(Problem::maybe_at(self.location.as_ref(), message));
    }

    fn warn(&mut self, message: impl std::fmt::Display) {
        if self.warnings.len() < WARNINGS_MAX {
            let message = format!("{}: {message}", subject(&self.owner));
            self.warnings.push(Warning::maybe_at(self.location.as_ref(), message));
        }
    }

    /// Records the validity of a certificate of the owner.
    fn track(&mut self, facts: CertificateFacts) {
        self.tracked.push(TrackedCertificate::new(self.owner.clone(), self.location.as_ref(), facts));
    }

    /// Records the validity of the authorities that only checks of a pool use.
    fn track_authorities_of_checks(&mut self, pool: &PoolSpec) {
        let files = pool.checks().filter_map(|check| match &check.kind {
            CheckKind::Http { tls, .. } | CheckKind::Stream { tls, .. } => tls.as_ref()?.ca_file.as_ref(),
            _ => None,
        });
        let mut files: BTreeSet<_> = files.collect();
        if let Some(path) = pool.tls.as_ref().and_then(|of_pool| of_pool.authorities.as_ref()) {
            files.remove(path);
        }
        self.owner = (TlsOwner::Pool, Arc::clone(&pool.name));
        self.location = None;
        files.into_iter().for_each(|path| self.track_authorities(path));
    }

    /// Records the validity of the authorities in a file.
    fn track_authorities(&mut self, path: &str) {
        let found = std::fs::read(path).ok().and_then(|bytes| certificates(&bytes).ok());
        let parsed: Vec<_> = found.iter().flatten().filter_map(|der| validity::parse(der)).collect();
        CertificateFacts::of_authorities(&parsed, path).into_iter().for_each(|facts| self.track(facts));
    }

    /// Reads a file, and records its stamp so that changes are detected.
    fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        self.read_as(path, "")
    }

    /// Reads a file as [`Self::read`] does. `purpose` is put behind the message about a file that cannot be read.
    fn read_as(&mut self, path: &Path, purpose: &str) -> Option<Vec<u8>> {
        self.tls.files.insert(path.to_owned(), stamp_of(path));
        let too_large = std::fs::metadata(path).is_ok_and(|meta| meta.len() > FILE_BYTES_MAX);
        let read =
            if too_large { Err(std::io::Error::other("it is too large")) } else { std::fs::read(path) };
        match read {
            Ok(bytes) => {
                // The names of files in directories are host names.
                (path, &bytes).hash(&mut self.digest);
                (path, &bytes).hash(&mut self.files);
                Some(bytes)
            }
            Err(error) => {
                self.problem(format!("{}{purpose}", unreadable(path, &error)));
                None
            }
        }
    }

    /// Returns the files of a directory, sorted.
    fn list(&mut self, directory: &Path) -> Vec<PathBuf> {
        self.tls.files.insert(directory.to_owned(), stamp_of(directory));
        match std::fs::read_dir(directory) {
            Ok(entries) => {
                let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
                files.sort();
                files
            }
            Err(error) => {
                self.problem(unreadable(directory, &error));
                Vec::new()
            }
        }
    }

    fn for_clients(
        &mut self,
        service: &ServiceSpec,
        spec: &TlsSpec,
        old: Option<&ClientSettings>,
    ) -> Option<ClientSettings> {
        self.owner = (TlsOwner::Service, Arc::clone(&service.name));
        let before = self.problems.len();
        // The requirements for client certificates have a separate digest, so that tickets stay valid if only
        // the certificates of the service change.
        (self.digest, self.files) = (DefaultHasher::new(), DefaultHasher::new());
        format!("{:?}", spec.client).hash(&mut self.digest);
        let verifier = spec.client.as_ref().map(|client| self.client_verifier(client));
        let client_digest = self.digest.finish();
        let http = service.http.as_ref().map(|http| http.http2);
        format!("{spec:?} {http:?}").hash(&mut self.digest);
        let certificates = self.certificates(spec);
        let digests = TlsDigests { settings: self.digest.finish(), files: self.files.finish() };
        if self.problems.len() > before {
            return None;
        }
        if let Some(old) = old.filter(|old| old.digests == digests) {
            return Some(old.clone());
        }
        let verifier = match verifier {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(verifier) => verifier?,
        };
        let resolver = Resolver::new(certificates);
        let tickets =
            old.filter(|old| old.client_digest == client_digest).map(|old| Arc::clone(&old.tickets));
        let tickets = match tickets.map_or_else(ring::Ticketer::new, Ok) {
            Ok(tickets) => tickets,
            Err(error) => {
                self.problem(format!("cannot create keys for tickets: {error}"));
                return None;
            }
        };
        let mut config = server_builder(spec.oldest)
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = protocols(service, spec);
        // The server chooses the cipher suite, as testssl.sh recommends.
        config.ignore_client_order = true;
        config.ticketer = Arc::clone(&tickets);
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        let acceptor = TlsAcceptor {
            config: Arc::new(config),
            handshake_timeout: spec.handshake_timeout,
            handshakes_max: spec.handshakes_max,
        };
        Some(ClientSettings { digests, client_digest, tickets, acceptor: Arc::new(acceptor) })
    }

    /// Reads all certificates of a service. The names of files in directories are used as host names.
    fn certificates(&mut self, spec: &TlsSpec) -> Vec<NamedCertificate> {
        let (mut certificates, before) = (Vec::new(), self.problems.len());
        for files in &spec.certificates {
            certificates.extend(self.certificate(files, Side::Service).map(|key| (None, key)));
        }
        for directory in &spec.directories {
            self.directory(Path::new(directory), &mut certificates);
        }
        match certificates.len() {
            0 if self.problems.len() == before => {
                let directories = spec.directories.join(", ");
                self.problem(format!("no certificates in {directories}: add name.crt and name.key"));
            }
            count if count > CERTIFICATES_MAX => {
                self.problem(format!("more than {CERTIFICATES_MAX} certificates"));
            }
            _ => {}
        }
        certificates
    }

    /// Reads every `name.crt` of a directory with its `name.key`, and `name.ocsp` and `name.ca` if they exist.
    fn directory(&mut self, directory: &Path, certificates: &mut Vec<NamedCertificate>) {
        for path in self.list(directory) {
            if path.extension().is_none_or(|extension| extension != "crt") {
                continue;
            }
            let text = |path: &Path| path.display().to_string();
            let (ocsp, issuers) = (path.with_extension("ocsp"), path.with_extension("ca"));
            let files = CertificateFiles {
                chain: text(&path),
                key: text(&path.with_extension("key")),
                ocsp: ocsp.exists().then(|| text(&ocsp)),
                issuers: issuers.exists().then(|| text(&issuers)),
            };
            let name = path.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
            certificates.extend(self.certificate(&files, Side::Service).map(|key| (name, key)));
        }
    }

    /// Reads the certificates of authorities. Each path is a file or a directory of files.
    fn authorities(&mut self, paths: &[String]) -> Option<Authorities> {
        let mut store = Authorities::default();
        for path in paths {
            self.add_authorities(Path::new(path), &mut store)?;
        }
        Some(store)
    }

    fn add_authorities(&mut self, path: &Path, store: &mut Authorities) -> Option<()> {
        let files = if path.is_dir() { self.list(path) } else { vec![path.to_owned()] };
        let (before, mut parsed, mut last) = (store.len(), Vec::new(), Vec::new());
        // Subdirectories are skipped, and so are dangling links, which c_rehash leaves behind.
        for file in files.iter().filter(|file| file.is_file() || **file == path) {
            let bytes = self.read(file)?;
            last = bytes;
            let Ok(all) = certificates(&last) else {
                self.problem(format!("{} has a certificate that is damaged or cut off", file.display()));
                continue;
            };
            parsed.extend(all.iter().filter_map(|der| validity::parse(der)));
            if let Err(error) = all.into_iter().try_for_each(|der| store.add(der)) {
                self.problem(format!("{}: {}", file.display(), words::of_error(&error)));
            }
        }
        if store.len() == before {
            let path = path.display().to_string();
            let message = match &files[..] {
                [_] => match form::Form::of(&last) {
                    form::Form::PrivateKey => {
                        let (key, whose) = match self.owner.0 {
                            TlsOwner::Service => ("client_ca", "clients"),
                            TlsOwner::Pool => ("ca", "servers"),
                        };
                        format!(
                            "{path} is a private key: {key} needs the certificates of the authorities that issue the {whose}' certificates"
                        )
                    }
                    form => form.message(&path, "certificate"),
                },
                _ => format!("{path} has no certificate in PEM"),
            };
            self.problem(message);
            return None;
        }
        let facts = CertificateFacts::of_authorities(&parsed, &path.display().to_string());
        facts.into_iter().for_each(|facts| self.track(facts));
        Some(())
    }

    fn client_verifier(
        &mut self,
        client: &ClientCertificates,
    ) -> Option<Arc<dyn rustls::server::danger::ClientCertVerifier>> {
        let store = self.authorities(&client.authorities)?;
        match store.for_clients(client.presence) {
            Ok(verifier) => Some(verifier),
            Err(error) => {
                self.problem(error);
                None
            }
        }
    }

    fn for_servers(
        &mut self,
        pool: &PoolSpec,
        spec: &ServerTlsSpec,
        old: Option<&ServerSettings>,
    ) -> Option<ServerSettings> {
        self.owner = (TlsOwner::Pool, Arc::clone(&pool.name));
        (self.digest, self.files) = (DefaultHasher::new(), DefaultHasher::new());
        format!("{spec:?}").hash(&mut self.digest);
        // A pooled connection was verified for the host name that its server had then.
        format!("{:?}", pool.discover).hash(&mut self.digest);
        let name = spec.name.as_ref().and_then(|name| ServerName::try_from(name.clone()).ok());
        for server in &pool.servers {
            server.name.hash(&mut self.digest);
            server.endpoint.to_string().hash(&mut self.digest);
            if name.is_none() && !has_name(&server.endpoint, spec) {
                let message = format!(
                    "server `{}` has no name to verify: write tls = {{ sni = \"NAME\" }} in the pool",
                    server.name
                );
                self.problem(message);
            }
        }
        let before = self.problems.len();
        let store = match &spec.authorities {
            Some(path) => self.authorities(std::slice::from_ref(path))?,
            None => Authorities::of(system_authorities()),
        };
        if store.is_empty() && spec.verification == Verification::Full {
            self.problem("this system trusts no authorities; give the pool `tls = { ca = \"ca.crt\" }`");
        }
        let identity = match &spec.certificate {
            Some(files) => Some(self.certificate(files, Side::Pool)?),
            None => None,
        };
        let digests = TlsDigests { settings: self.digest.finish(), files: self.files.finish() };
        if self.problems.len() > before {
            return None;
        }
        if let Some(old) = old.filter(|old| old.digests == digests) {
            return Some(old.clone());
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions(TlsVersion::V12))
            .expect("ring supports these versions");
        let verifier = match spec.verification {
            Verification::Full => store.for_servers(),
            Verification::Off => Ok(insecure_verifier()),
        };
        let verifier = match verifier {
            Ok(verifier) => verifier,
            Err(error) => {
                self.problem(error);
                return None;
            }
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = match identity {
            Some(key) => {
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
            None => builder.with_no_client_auth(),
        };
        let connector = TlsConnector { config: Arc::new(config), name };
        Some(ServerSettings { digests, connector: Arc::new(connector) })
    }
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}

/// Returns true if the bytes are exactly one DER sequence (X.690, section 8.1).
fn is_der(bytes: &[u8]) -> bool {
    x509_cert::der::AnyRef::from_der(bytes).is_ok_and(|any| any.tag() == x509_cert::der::Tag::Sequence)
}

fn versions(oldest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static ALL: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
    match oldest {
        TlsVersion::V12 => ALL,
        TlsVersion::V13 => &ALL[..1],
    }
}

fn server_builder(oldest: TlsVersion) -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions(oldest))
        .expect("ring supports these versions")
}

/// Returns the ALPN protocols: fixed protocols for http services, else the configured protocols.
fn protocols(service: &ServiceSpec, spec: &TlsSpec) -> Vec<Vec<u8>> {
    let of_http: &[&str] = match service.http.as_ref().map(|http| http.http2) {
        None => return spec.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect(),
        Some(Http2::On) => HTTP_PROTOCOLS,
        Some(Http2::Off) => &["http/1.1", "http/1.0"],
    };
    of_http.iter().map(|protocol| protocol.as_bytes().to_vec()).collect()
}

/// ALPN protocols of an http service, in the order of preference.
const HTTP_PROTOCOLS: &[&str] = &["h2", "http/1.1", "http/1.0"];

/// Returns true if a server without a name in the settings of its pool has a name that its certificate can have,
/// or needs none.
fn has_name(endpoint: &Endpoint, spec: &ServerTlsSpec) -> bool {
    match endpoint {
        Endpoint::Ip(_) => true,
        Endpoint::Host { name, .. } => ServerName::try_from(name.as_str()).is_ok(),
        Endpoint::Unix(_) => spec.verification == Verification::Off,
    }
}

/// Returns the authorities that this system trusts. They are read once, at the first call.
fn system_authorities() -> RootCertStore {
    static STORE: LazyLock<RootCertStore> = LazyLock::new(|| {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        store
    });
    STORE.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::spec::{CheckSpec, CheckTls, ServerSpec, Spec};

    #[test]
    fn authorities_of_checks_of_single_servers_are_tracked() {
        let file = std::env::temp_dir().join(format!("evener-check-ca-{}.pem", std::process::id()));
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).expect("a certificate");
        std::fs::write(&file, made.cert.pem()).expect("the file can be written");
        let ca_file = Some(file.display().to_string());
        let tls = Some(CheckTls { ca_file, ..CheckTls::default() });
        let kind = CheckKind::Stream { send: Vec::new(), begins: None, expect: None, tls };
        let mut server = ServerSpec::new("10.0.0.1:443".parse().expect("a valid address"));
        server.check = Some(Arc::new(CheckSpec::new(kind)));
        let pools = vec![PoolSpec::new("web", vec![server])];
        let config = Config::without_file(Spec { pools, ..Spec::default() });
        let loaded = load(&config, &TlsSettings::default());
        std::fs::remove_file(&file).expect("the file can be removed");
        assert_eq!(loaded.ok().map(|settings| settings.tracked.len()), Some(1));
    }
}
