//! TLS settings of pen: files, and options of OpenSSL.

use super::command::{Step, Words};
use crate::config::{nearest, tls_defaults};
use evener_core::spec::{CertificateFiles, ClientCertificates, Presence, TlsSpec, TlsVersion};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Path of the usual authorities in Debian.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Options of OpenSSL that `ssl_option` accepts.
const SSL_OPTIONS: [&str; 6] =
    ["no_sslv2", "no_sslv3", "no_tlsv1", "no_tlsv1.1", "no_tlsv1.2", "cipher_server_preference"];

/// Commands that set a file, in the order of [`TlsSettings::paths_mut`].
const FILE_COMMANDS: [&str; 6] =
    ["ssl_certificate", "ssl_key", "ssl_ca", "ssl_ca_directory", "ssl_sni_path", "ssl_ocsp_response"];

/// TLS settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsSettings {
    /// `-E`
    certificate: Option<PathBuf>,
    /// `-K`
    key: Option<PathBuf>,
    /// `-G`
    ca_file: Option<PathBuf>,
    /// `-A`
    ca_directory: Option<PathBuf>,
    /// `-R`
    required: bool,
    sni_path: Option<PathBuf>,
    ocsp: Option<PathBuf>,
    /// Options of `ssl_option`, as written.
    options: Vec<String>,
    ciphers: Option<String>,
}

impl TlsSettings {
    /// Executes a command for TLS. Returns `None` for other commands.
    pub(super) fn execute(&mut self, words: &Words<'_>) -> Option<Result<Vec<Step>, String>> {
        if let Some(file) = self.file_of_command(words.verb()) {
            let path = words.one("a file").map(PathBuf::from);
            return Some(path.map(|path| *file = Some(path)).map(|()| Vec::new()));
        }
        match words.verb() {
            "ssl_ciphers" => Some(self.set_ciphers(words)),
            "ssl_option" => Some(words.one("an option").and_then(|option| self.add_option(option))),
            "ssl_require_peer" => Some(words.none().map(|()| self.required = true).map(|()| Vec::new())),
            _ => None,
        }
    }

    /// Executes `no WORD`. Returns false if the word is not a setting of TLS.
    pub(super) fn unset(&mut self, verb: &str) -> bool {
        if let Some(file) = self.file_of_command(verb) {
            *file = None;
            return true;
        }
        match verb {
            "ssl_option" => self.options.clear(),
            "ssl_require_peer" => self.required = false,
            _ => return false,
        }
        true
    }

    fn file_of_command(&mut self, verb: &str) -> Option<&mut Option<PathBuf>> {
        let position = FILE_COMMANDS.iter().position(|name| *name == verb)?;
        self.paths_mut().into_iter().nth(position)
    }

    /// Returns the file that an option of the command line sets.
    pub(super) fn file_of_option(&mut self, letter: char) -> Option<&mut Option<PathBuf>> {
        match letter {
            'E' => Some(&mut self.certificate),
            'K' => Some(&mut self.key),
            'G' => Some(&mut self.ca_file),
            'A' => Some(&mut self.ca_directory),
            _ => None,
        }
    }

    /// Sets `-R`: clients must have a certificate.
    pub(super) fn require_client_certificates(&mut self) {
        self.required = true;
    }

    fn set_ciphers(&mut self, words: &Words<'_>) -> Result<Vec<Step>, String> {
        self.ciphers = words.optional()?.map(str::to_owned);
        let why = "ssl_ciphers: the list is not used; all supported cipher suites are strong";
        Ok(vec![Step::Warn(why.into())])
    }

    fn add_option(&mut self, option: &str) -> Result<Vec<Step>, String> {
        if !SSL_OPTIONS.contains(&option) {
            let all = SSL_OPTIONS.join(", ");
            let hint = nearest(option, SSL_OPTIONS.into_iter());
            return Err(format!("ssl_option: `{option}` is not one of {all}{hint}"));
        }
        if !self.has_option(option) {
            self.options.push(option.to_owned());
        }
        Ok(Vec::new())
    }

    fn has_option(&self, option: &str) -> bool {
        self.options.iter().any(|known| known == option)
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.certificate.is_some()
    }

    /// Returns true if there are TLS settings without a certificate.
    pub(super) fn lacks_certificate(&self) -> bool {
        let Self { key, ca_file, ca_directory, sni_path, .. } = self;
        let some = [key, ca_file, ca_directory, sni_path].into_iter().any(Option::is_some);
        self.certificate.is_none() && (some || self.required)
    }

    /// Returns the paths that are relative to the directory of the start.
    pub(super) fn paths_mut(&mut self) -> [&mut Option<PathBuf>; 6] {
        let Self { certificate, key, ca_file, ca_directory, sni_path, ocsp, .. } = self;
        [certificate, key, ca_file, ca_directory, sni_path, ocsp]
    }

    /// Returns the settings of files for `write`, with the names of their commands.
    pub(super) fn files(&self) -> [(&'static str, Option<String>); 6] {
        let Self { certificate, key, ca_file, ca_directory, sni_path, ocsp, .. } = self;
        let paths = [certificate, key, ca_file, ca_directory, sni_path, ocsp];
        std::array::from_fn(|at| (FILE_COMMANDS[at], paths[at].as_deref().map(text)))
    }

    pub(super) fn is_client_certificate_required(&self) -> bool {
        self.required
    }

    /// Returns the other commands that restore the settings.
    pub(super) fn option_lines(&self) -> Vec<String> {
        let options = self.options.iter().map(|option| format!("ssl_option {option}"));
        let ciphers = self.ciphers.iter().map(|ciphers| format!("ssl_ciphers {ciphers}"));
        std::iter::once("no ssl_option".to_owned()).chain(options).chain(ciphers).collect()
    }

    /// Returns the TLS configuration; `None` without a certificate.
    pub(super) fn spec(&self) -> Option<Arc<TlsSpec>> {
        let chain = text(self.certificate.as_deref()?);
        let certificate = CertificateFiles {
            key: self.key.as_deref().map_or_else(|| chain.clone(), text),
            chain,
            ocsp: self.ocsp.as_deref().map(text),
            issuers: self.ca_file.as_deref().map(text),
        };
        let authorities = self.ca_file.iter().chain(&self.ca_directory).map(|path| text(path));
        let authorities: Vec<String> = authorities.collect();
        let client = self.required.then(|| ClientCertificates {
            authorities: if authorities.is_empty() { vec![SYSTEM_AUTHORITIES.into()] } else { authorities },
            presence: Presence::Required,
        });
        Some(Arc::new(TlsSpec {
            certificates: vec![certificate],
            directories: self.sni_path.iter().map(|path| text(path)).collect(),
            client,
            oldest: if self.has_option("no_tlsv1.2") { TlsVersion::V13 } else { TlsVersion::V12 },
            ..tls_defaults()
        }))
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
