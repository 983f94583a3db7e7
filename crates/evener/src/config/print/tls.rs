//! TLS with clients and with servers.

use super::source::{Node, Say, Table, one_or_list, path};
use crate::config::edge::tls_defaults;
use evener_core::spec::{
    CertificateFiles, ClientCertificates, Presence, ServerTlsSpec, TlsSpec, TlsVersion, Verification,
};

/// Writes `tls` of a service.
pub(super) fn write_tls(table: &mut Table, tls: Option<&TlsSpec>) {
    let Some(spec) = tls else { return };
    let TlsSpec { certificates, directories, client, oldest, alpn, handshake_timeout, handshakes_max } = spec;
    let defaults = tls_defaults();
    let mut nested = Table::new();
    if let Some(client) = client {
        write_client(&mut nested, client);
    }
    nested.unless("min_version", &version(*oldest), &version(defaults.oldest));
    if *alpn != defaults.alpn {
        nested.key("alpn", one_or_list(alpn));
    }
    nested.unless("handshake_timeout", handshake_timeout, &defaults.handshake_timeout);
    nested.unless("handshakes_max", handshakes_max, &defaults.handshakes_max);
    if let ([only], [], true) = (&certificates[..], &directories[..], nested.is_empty())
        && let Some(file) = one_file(only)
    {
        return table.set("tls", path(file));
    }
    let mut whole = Table::new();
    write_certificates(&mut whole, certificates, directories);
    whole.extend(nested);
    table.key("tls", whole);
}

fn version(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V12 => "1.2",
        TlsVersion::V13 => "1.3",
    }
}

fn write_certificates(nested: &mut Table, certificates: &[CertificateFiles], directories: &[String]) {
    let (first, further) = certificates.split_first().map_or((None, certificates), |(a, b)| (Some(a), b));
    if let Some(first) = first {
        write_certificate(nested, first);
    }
    if !further.is_empty() || (first.is_none() && directories.is_empty()) {
        nested.key("certificates", certificate_list(further));
    }
    if !directories.is_empty() {
        nested.key("directory", one_or_list(directories.iter().map(|directory| path(directory))));
    }
}

fn certificate_list(certificates: &[CertificateFiles]) -> Table {
    let mut list = Table::new();
    for certificate in certificates {
        match one_file(certificate) {
            Some(file) => list.item(path(file).say()),
            None => {
                let mut nested = Table::new();
                write_certificate(&mut nested, certificate);
                list.item(Node::Table(nested));
            }
        }
    }
    list
}

/// Returns the file if the certificate and the key are in the same file, and there are no other files.
fn one_file(certificate: &CertificateFiles) -> Option<&str> {
    let CertificateFiles { chain, key, ocsp, issuers } = certificate;
    (chain == key && ocsp.is_none() && issuers.is_none()).then_some(chain)
}

fn write_certificate(nested: &mut Table, certificate: &CertificateFiles) {
    let CertificateFiles { chain, key, ocsp, issuers } = certificate;
    nested.set("certificate", path(chain));
    if key != chain {
        nested.set("key", path(key));
    }
    nested.some("ocsp", ocsp.as_deref().map(path).as_ref());
    nested.some("issuers", issuers.as_deref().map(path).as_ref());
}

fn write_client(nested: &mut Table, client: &ClientCertificates) {
    let ClientCertificates { authorities, presence } = client;
    nested.key("client_ca", one_or_list(authorities.iter().map(|authority| path(authority))));
    match presence {
        Presence::Required => {}
        Presence::Optional => nested.set("client_certificate", "optional"),
    }
}

/// Writes `tls` of a pool.
pub(super) fn write_server_tls(table: &mut Table, tls: Option<&ServerTlsSpec>) {
    let Some(ServerTlsSpec { name, authorities, verification, certificate }) = tls else { return };
    let mut nested = Table::new();
    nested.some("ca", authorities.as_deref().map(path).as_ref());
    nested.some("sni", name.as_ref());
    match verification {
        Verification::Full => {}
        Verification::Off => nested.set("verify", &false),
    }
    if let Some(certificate) = certificate {
        write_certificate(&mut nested, certificate);
    }
    if nested.is_empty() { table.set("tls", &true) } else { table.key("tls", nested) }
}
