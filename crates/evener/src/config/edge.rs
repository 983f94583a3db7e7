//! The keys of the edge: TLS with clients and with servers, the PROXY protocol, HTTP and its routes.

use super::access::read_prefixes;
use super::fields::{Fields, nearest};
use super::patience::{read_abort_on_close, read_min_rate};
use super::raw::{Table, Value};
use evener_core::route::{HostPattern, Route};
use evener_core::spec::{
    Balance, CertificateFiles, CheckKind, ClientCertificates, ForwardedMode, ForwardedSpec, Http2, HttpSpec,
    OnDown, PoolSpec, Presence, Protocol, RedirectSpec, RespondSpec, ServerTlsSpec, TlsSpec, TlsVersion,
    Verification,
};
use evener_core::wire::proxy;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Returns TLS settings with one file that has the certificate and the key.
pub(crate) fn tls_from_file(file: &Path) -> Arc<TlsSpec> {
    let file = file.display().to_string();
    let certificate = CertificateFiles { chain: file.clone(), key: file, ocsp: None, issuers: None };
    Arc::new(TlsSpec { certificates: vec![certificate], ..tls_defaults() })
}

pub(crate) fn tls_defaults() -> TlsSpec {
    TlsSpec {
        certificates: Vec::new(),
        directories: Vec::new(),
        client: None,
        oldest: TlsVersion::V12,
        alpn: Vec::new(),
        handshake_timeout: Duration::from_secs(10),
        handshakes_max: 4096,
    }
}

/// Reads `tls = "site.pem"`, or a table with certificates.
pub(super) fn read_tls(fields: &mut Fields<'_>, protocol: Protocol) -> Option<Arc<TlsSpec>> {
    let mut spec = tls_defaults();
    match fields.take("tls")? {
        Value::Text(file) => {
            let file = fields.path_of("tls", file);
            spec.certificates.push(CertificateFiles {
                chain: file.clone(),
                key: file,
                ocsp: None,
                issuers: None,
            });
        }
        Value::Table(table) => {
            let mut nested = fields.within("tls", table);
            read_tls_table(&mut nested, protocol, &mut spec);
            nested.finish();
        }
        Value::Bool(false) | Value::Unknown => return None,
        other => {
            let message = format!(
                "`tls` is {}, not a PEM file or {{ certificate = \"site.crt\", key = \"site.key\" }}",
                other.kind()
            );
            fields.problem("tls", message);
            return None;
        }
    }
    if matches!(protocol, Protocol::Udp | Protocol::Dns) {
        fields.problem("tls", format!("a {} service cannot have TLS", protocol.name()));
    }
    Some(Arc::new(spec))
}

fn read_tls_table(nested: &mut Fields<'_>, protocol: Protocol, spec: &mut TlsSpec) {
    spec.certificates.extend(read_certificate(nested));
    for item in nested.items("certificates").unwrap_or_default() {
        match item {
            Value::Text(file) => {
                let file = nested.path_of("certificates", file);
                spec.certificates.push(CertificateFiles {
                    chain: file.clone(),
                    key: file,
                    ocsp: None,
                    issuers: None,
                });
            }
            Value::Table(table) => {
                let mut one = nested.within("certificates", table);
                match read_certificate(&mut one) {
                    Some(files) => spec.certificates.push(files),
                    None => one
                        .problem_here("a certificate must be {  certificate = \"a.crt\", key = \"a.key\" }"),
                }
                one.finish();
            }
            Value::Unknown => {}
            other => nested.problem("certificates", format!("{} is not a certificate", other.kind())),
        }
    }
    if let Some(directories) =
        nested.texts("directory", "a directory of name.crt and name.key, or a list of them", |text| {
            Ok(text.to_owned())
        })
    {
        spec.directories =
            directories.iter().map(|directory| nested.path_of("directory", directory)).collect();
    }
    let tried = ["certificate", "key", "ocsp", "issuers", "certificates", "directory"]
        .iter()
        .any(|key| nested.has(key));
    if !tried {
        nested.problem_here(
            "TLS needs a certificate: certificate = \"site.crt\", key = \"site.key\", or a directory",
        );
    }
    spec.client = read_client_certificates(nested);
    if let Some(version) = nested.text("min_version") {
        match version {
            "1.2" => spec.oldest = TlsVersion::V12,
            "1.3" => spec.oldest = TlsVersion::V13,
            other => nested.problem(
                "min_version",
                format!("`{other}` is not a supported version of TLS: use 1.2 or 1.3"),
            ),
        }
    }
    if let Some(alpn) =
        nested.texts("alpn", "a protocol such as \"http/1.1\", or a list", |text| match text.len() {
            1..=255 => Ok(text.to_owned()),
            _ => Err(format!("`{text}` is not a protocol name: use 1 to 255 bytes (RFC 7301)")),
        })
    {
        if protocol == Protocol::Http {
            nested
                .problem("alpn", "an http service sets `alpn` itself; use `http2 = false` to disable HTTP/2");
        }
        spec.alpn = alpn;
    }
    spec.handshake_timeout = nested.duration("handshake_timeout").unwrap_or(spec.handshake_timeout);
    spec.handshakes_max = nested.integer("handshakes_max", 1..=1_000_000).unwrap_or(spec.handshakes_max);
}

/// Reads `certificate`, `key` and `ocsp`. Without `key` it is in the same file.
fn read_certificate(nested: &mut Fields<'_>) -> Option<CertificateFiles> {
    let chain = nested.path("certificate");
    let key = nested.path("key");
    let ocsp = nested.path("ocsp");
    let issuers = nested.path("issuers");
    if chain.is_none() && (key.is_some() || ocsp.is_some() || issuers.is_some()) {
        nested.problem_here("`key`, `ocsp` and `issuers` need a `certificate`");
    }
    let chain = chain?;
    Some(CertificateFiles { key: key.unwrap_or_else(|| chain.clone()), chain, ocsp, issuers })
}

fn read_client_certificates(nested: &mut Fields<'_>) -> Option<ClientCertificates> {
    let authorities = nested
        .texts("client_ca", "a file or a directory of authorities, or a list of them", |text| {
            Ok(text.to_owned())
        })
        .map(|list| list.iter().map(|path| nested.path_of("client_ca", path)).collect());
    let presence = nested.text("client_certificate").and_then(|word| match word {
        "required" => Some(Presence::Required),
        "optional" => Some(Presence::Optional),
        other => {
            nested.problem("client_certificate", format!("`{other}` is not \"required\" or \"optional\""));
            None
        }
    });
    match (authorities, presence) {
        (Some(authorities), presence) => {
            Some(ClientCertificates { authorities, presence: presence.unwrap_or(Presence::Required) })
        }
        (None, Some(_)) => {
            nested.problem(
                "client_certificate",
                "`client_certificate` needs a `client_ca` to verify certificates",
            );
            None
        }
        (None, None) => None,
    }
}

/// Reads `tls = true`, or a table, of a pool.
pub(super) fn read_server_tls(fields: &mut Fields<'_>) -> Option<Arc<ServerTlsSpec>> {
    let mut spec =
        ServerTlsSpec { name: None, authorities: None, verification: Verification::Full, certificate: None };
    match fields.take("tls")? {
        Value::Bool(true) => {}
        Value::Bool(false) | Value::Unknown => return None,
        Value::Table(table) => {
            let mut nested = fields.within("tls", table);
            spec.name = nested.text("sni").map(str::to_owned);
            if spec.name.as_deref().is_some_and(|name| rustls::pki_types::ServerName::try_from(name).is_err())
            {
                nested.problem("sni", "`sni` must be a host name");
            }
            spec.authorities = nested.path("ca");
            if nested.bool("verify") == Some(false) {
                spec.verification = Verification::Off;
            }
            spec.certificate = read_certificate(&mut nested);
            nested.finish();
        }
        other => {
            let message = format!(
                "`tls` of a pool is {}, not true or {{ ca = \"ca.crt\", sni = \"name\" }}",
                other.kind()
            );
            fields.problem("tls", message);
            return None;
        }
    }
    Some(Arc::new(spec))
}

/// Completes the check of a pool with TLS to its servers: https and tls checks inherit its settings. Servers
/// would not respond to other kinds of checks.
pub(super) fn inherit_tls(pool: &mut PoolSpec, fields: &mut Fields<'_>) {
    let Some(spec) = pool.tls.clone() else { return };
    let port = pool.check.as_ref().and_then(|check| check.port);
    match pool.check.as_mut().map(|check| &mut check.kind) {
        Some(CheckKind::Http { tls: Some(tls), .. } | CheckKind::Stream { tls: Some(tls), .. }) => {
            tls.sni = tls.sni.take().or_else(|| spec.name.clone());
            tls.ca_file = tls.ca_file.take().or_else(|| spec.authorities.clone());
            tls.insecure |= spec.verification == Verification::Off;
        }
        Some(CheckKind::Http { tls: None, .. }) => {
            fields.problem("check", "the servers of this pool use TLS: use check.https");
        }
        // Another port may have no TLS.
        Some(CheckKind::Stream { tls: None, .. }) if port.is_none() => {
            fields.problem("check", "the servers of this pool use TLS: use check.tls");
        }
        _ => {}
    }
}

/// Reads `on_down = "close"` of a pool.
pub(super) fn read_on_down(fields: &mut Fields<'_>) -> Option<OnDown> {
    let word = fields.text("on_down")?;
    let found = OnDown::ALL.into_iter().find(|known| known.name() == word);
    if found.is_none() {
        fields.problem("on_down", format!("`on_down` must be \"keep\" or \"close\", got \"{word}\""));
    }
    if found == Some(OnDown::Close) && !fields.has("check") {
        fields
            .problem("on_down", "`on_down = \"close\"` needs a `check`, because failures of traffic expire");
    }
    found
}

/// Reads `send_proxy = "v2"` of a pool.
pub(super) fn read_send_proxy(fields: &mut Fields<'_>) -> Option<proxy::Version> {
    match fields.take("send_proxy")? {
        Value::Text(word) if word == "v1" => Some(proxy::Version::V1),
        Value::Text(word) if word == "v2" => Some(proxy::Version::V2),
        Value::Bool(true) => Some(proxy::Version::V2),
        Value::Bool(false) | Value::Unknown => None,
        other => {
            fields.problem("send_proxy", format!("`send_proxy` is {}, not \"v1\" or \"v2\"", other.kind()));
            None
        }
    }
}

/// Reads the keys of an http service.
pub(super) fn read_http(fields: &mut Fields<'_>) -> Arc<HttpSpec> {
    let mut spec = HttpSpec::default();
    if let Some(word) = fields.text("balance_per") {
        match word {
            "request" => spec.balance = Balance::Request,
            "connection" => spec.balance = Balance::Connection,
            other => {
                let hint = nearest(other, ["request", "connection"].into_iter());
                fields
                    .problem("balance_per", format!("`{other}` is not \"request\" or \"connection\"{hint}"));
            }
        }
    }
    read_forwarded(fields, &mut spec.forwarded);
    spec.limits.bytes_max = fields
        .integer("header_bytes_max", 1024..=65_536)
        .map_or(spec.limits.bytes_max, |bytes| bytes as usize);
    spec.limits.fields_max = fields
        .integer("header_fields_max", 8..=10_000)
        .map_or(spec.limits.fields_max, |count| count as usize);
    spec.header_timeout = fields.duration("header_timeout").unwrap_or(spec.header_timeout);
    spec.keepalive_timeout = fields.duration("keepalive_timeout").unwrap_or(spec.keepalive_timeout);
    spec.stall_timeout = fields.duration("stall_timeout").unwrap_or(spec.stall_timeout);
    spec.min_rate = read_min_rate(fields).unwrap_or(spec.min_rate);
    spec.abort_on_close = read_abort_on_close(fields).unwrap_or(spec.abort_on_close);
    spec.response_timeout = fields.duration("response_timeout").unwrap_or(spec.response_timeout);
    spec.retries = fields.integer("retries", 0..=100).unwrap_or(spec.retries);
    spec.redirect = read_redirect(fields);
    spec.respond = read_respond(fields);
    spec.health = fields.text("health").map(str::to_owned);
    if spec.health.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains(['?', ' '])) {
        fields.problem("health", "`health` must be a path such as \"/health\"");
    }
    spec.subject_field = fields.text("certificate_header").map(str::to_owned);
    let token =
        |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let ours = ["host", "content-length", "transfer-encoding", "connection", "upgrade", "cookie", "expect"];
    let is_ours = |name: &String| ours.contains(&name.to_ascii_lowercase().as_str());
    if spec.subject_field.as_ref().is_some_and(|name| name.is_empty() || !token(name) || is_ours(name)) {
        fields.problem(
            "certificate_header",
            "`certificate_header` must be the name of a header, such as \"X-Client-Subject\"",
        );
    }
    if fields.bool("http2") == Some(false) {
        spec.http2 = Http2::Off;
    }
    Arc::new(spec)
}

fn forwarded_mode(word: &str) -> Option<ForwardedMode> {
    Some(match word {
        "replace" => ForwardedMode::Replace,
        "append" => ForwardedMode::Append,
        "off" => ForwardedMode::Off,
        _ => return None,
    })
}

/// Reads `forwarded = "append"`, or `{ mode = "replace", trust = { "10.0.0.0/8" }, headers = "both" }`.
fn read_forwarded(fields: &mut Fields<'_>, spec: &mut ForwardedSpec) {
    const MODES: &str = "\"replace\", \"append\" or \"off\"";
    match fields.take("forwarded") {
        None | Some(Value::Unknown) => {}
        Some(Value::Bool(false)) => spec.mode = ForwardedMode::Off,
        Some(Value::Text(word)) => match forwarded_mode(word) {
            Some(mode) => spec.mode = mode,
            None => fields.problem("forwarded", format!("`{word}` is not {MODES}")),
        },
        Some(Value::Table(table)) => {
            let mut nested = fields.within("forwarded", table);
            if let Some(word) = nested.text("mode") {
                match forwarded_mode(word) {
                    Some(mode) => spec.mode = mode,
                    None => nested.problem("mode", format!("`{word}` is not {MODES}")),
                }
            }
            spec.trust = read_prefixes(&mut nested, "trust");
            match nested.text("headers") {
                None | Some("x-forwarded") => {}
                Some("forwarded") => (spec.classic, spec.standard) = (false, true),
                Some("both") => (spec.classic, spec.standard) = (true, true),
                Some(other) => {
                    nested.problem(
                        "headers",
                        format!("`{other}` is not \"x-forwarded\", \"forwarded\" or \"both\""),
                    );
                }
            }
            nested.finish();
        }
        Some(other) => {
            fields.problem("forwarded", format!("`forwarded` is {}, not {MODES}, or a table", other.kind()));
        }
    }
}

pub(super) fn redirect_defaults() -> RedirectSpec {
    RedirectSpec { status: 308, port: 443 }
}

fn read_redirect(fields: &mut Fields<'_>) -> Option<RedirectSpec> {
    let mut spec = redirect_defaults();
    match fields.take("redirect")? {
        Value::Text(word) if word == "https" => {}
        Value::Table(table) => {
            let mut nested = fields.within("redirect", table);
            if let Some(status) = nested.integer("status", 301..=308) {
                spec.status = status as u16;
                if ![301, 302, 307, 308].contains(&status) {
                    nested.problem("status", format!("{status} is not a redirect: use 301, 302, 307 or 308"));
                }
            }
            spec.port = nested.integer("port", 1..=65_535).map_or(spec.port, |port| port as u16);
            nested.finish();
        }
        Value::Bool(false) | Value::Unknown => return None,
        other => {
            fields.problem(
                "redirect",
                format!("`redirect` is {}, not \"https\" or {{ port = 8443 }}", other.kind()),
            );
            return None;
        }
    }
    Some(spec)
}

pub(super) fn respond_defaults() -> RespondSpec {
    RespondSpec { status: 200, content_type: "text/plain; charset=utf-8".into(), body: String::new() }
}

/// Reads `respond = { status = 200, type = "text/html", body = "..." }`.
fn read_respond(fields: &mut Fields<'_>) -> Option<RespondSpec> {
    let table = match fields.take("respond")? {
        Value::Table(table) => table,
        Value::Unknown => return None,
        other => {
            fields
                .problem("respond", format!("`respond` is {}, not {{ body = \"It works\" }}", other.kind()));
            return None;
        }
    };
    let mut nested = fields.within("respond", table);
    let defaults = respond_defaults();
    let spec = RespondSpec {
        status: nested.integer("status", 200..=599).map_or(defaults.status, |status| status as u16),
        content_type: nested.text("type").map_or(defaults.content_type, str::to_owned),
        body: nested.text("body").map_or(defaults.body, str::to_owned),
    };
    if spec.content_type.chars().any(char::is_control) || spec.content_type.is_empty() {
        nested.problem("type", "`type` must be a media type such as \"text/html\"");
    }
    if spec.body.len() > RespondSpec::BODY_BYTES_MAX {
        nested.problem("body", format!("`body` must have at most {} bytes", RespondSpec::BODY_BYTES_MAX));
    }
    nested.finish();
    Some(spec)
}

/// Reads the hosts of a route: `host` for http, `sni` for TLS that is passed through.
fn read_hosts(nested: &mut Fields<'_>, key: &'static str) -> Option<Vec<HostPattern>> {
    let parse = |text: &str| {
        let host: Result<HostPattern, _> = text.parse();
        host.map_err(|error| error.to_string())
    };
    nested.texts(key, "a host name such as \"www.example.org\" or \"*.example.org\", or a list", parse)
}

/// Reads one route, with the name of its pool.
pub(super) fn read_route(
    fields: &Fields<'_>,
    table: &Table,
    protocol: Protocol,
    pool: impl FnOnce(&mut Fields<'_>) -> Option<Arc<str>>,
) -> Option<Route<Arc<str>>> {
    // The table lives as long as its run; only the borrow of the reader is shorter.
    let mut nested = fields.within("routes", table);
    let is_http = protocol == Protocol::Http;
    let hosts = read_hosts(&mut nested, if is_http { "host" } else { "sni" });
    let path = if is_http { nested.text("path").map(str::to_owned) } else { None };
    if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
        nested.problem("path", "`path` must begin with /");
    }
    if hosts.is_none() && path.is_none() {
        nested.problem_here(if is_http { "a route needs a host or a path" } else { "a route needs `sni`" });
    }
    let to = pool(&mut nested);
    nested.finish();
    Some(Route { hosts: hosts.unwrap_or_default(), path, to: to? })
}
