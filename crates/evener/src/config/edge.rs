//! The keys for TLS with clients and with servers, the PROXY protocol, HTTP and routes.

use super::access::read_prefixes;
use super::fields::Fields;
use super::hints::{one_of, values};
use super::patience::{read_abort_on_close, read_min_rate};
use super::raw::{Table, Value, shown};
use super::scalar::parse_size;
use evener_core::route::{HostPattern, Route};
use evener_core::spec::{
    Balance, CertificateFiles, ClientCertificates, ForwardedMode, ForwardedSpec, Http2, HttpSpec, OnDown,
    Presence, Protocol, RedirectSpec, RespondSpec, ServerSpec, ServerTlsSpec, TlsSpec, TlsVersion,
    Verification,
};
use evener_core::wire::proxy;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Returns TLS settings with one file, which has both the certificate and the key.
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
        Value::Text(text) => {
            let file = fields.path_of("tls", text);
            if Path::new(&file).is_dir() {
                let text = shown(text);
                fields.problem("tls", format!("{text} is a directory: write tls = {{ directory = {text} }}"));
            }
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
        _ => {
            fields.must("tls", "be a PEM file or { certificate = \"site.crt\", key = \"site.key\" }");
            return None;
        }
    }
    if matches!(protocol, Protocol::Udp | Protocol::Dns) {
        fields.problem_with("tls", format!("is not available with protocol = \"{}\"", protocol.name()));
    }
    Some(Arc::new(spec))
}

fn read_tls_table(nested: &mut Fields<'_>, protocol: Protocol, spec: &mut TlsSpec) {
    read_certificates(nested, spec);
    if let Some(directories) =
        nested.texts("directory", "a directory of name.crt and name.key, or a list of them", |text| {
            Ok(text.to_owned())
        })
    {
        spec.directories =
            directories.iter().map(|directory| nested.path_of("directory", directory)).collect();
    }
    spec.client = read_client_certificates(nested);
    match nested.text_such_as("min_version", "\"1.2\" or \"1.3\"", "") {
        None => {}
        Some("1.2") => spec.oldest = TlsVersion::V12,
        Some("1.3") => spec.oldest = TlsVersion::V13,
        Some(text) => nested.must_hint("min_version", "be \"1.2\" or \"1.3\"", &values::tls_version(text)),
    }
    if let Some(alpn) = nested.texts("alpn", "a protocol such as \"http/1.1\", or a list", |text| match text
        .len()
    {
        1..=255 => Ok(text.to_owned()),
        length => Err(format!("tls.alpn must have names of 1 to 255 bytes (RFC 7301), got {length} bytes")),
    }) {
        if protocol == Protocol::Http {
            nested.problem(
                "alpn",
                "tls.alpn cannot be set with protocol = \"http\": remove it; HTTP/2 is negotiated by default, and http2 = false disables it",
            );
        }
        spec.alpn = alpn;
    }
    spec.handshake_timeout = nested.duration("handshake_timeout").unwrap_or(spec.handshake_timeout);
    spec.handshakes_max = nested.integer("handshakes_max", 1..=1_000_000).unwrap_or(spec.handshakes_max);
    // Read last, so that keys that are misspelt are known by now. The first certificate is the default.
    spec.certificates.splice(..0, read_certificate(nested));
    let tried = ["certificate", "key", "ocsp", "issuers", "certificates", "directory"]
        .iter()
        .any(|key| nested.has(key));
    if !tried && !nested.has_unknown_keys() {
        nested.problem_here(
            "tls has no certificate: write tls = { certificate = \"site.crt\", key = \"site.key\" }, or a directory",
        );
    }
}

/// Reads the list `certificates`.
fn read_certificates(nested: &mut Fields<'_>, spec: &mut TlsSpec) {
    for (index, item) in nested.items("certificates").unwrap_or_default() {
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
                let mut one = nested.within_item("certificates", index, table);
                match read_certificate(&mut one) {
                    Some(files) => spec.certificates.push(files),
                    // Other mistakes already have their message.
                    None if table.keys().next().is_some() => {}
                    None => one.problem_here(
                        "write each certificate as { certificate = \"a.crt\", key = \"a.key\" }",
                    ),
                }
                one.finish();
            }
            other => nested.value_must(
                "certificates",
                other,
                "be a list of PEM files and { certificate = \"a.crt\", key = \"a.key\" }",
                "",
            ),
        }
    }
}

/// Reads `certificate`, `key`, `ocsp` and `issuers`. Without `key`, the file of the certificate also has the
/// key.
fn read_certificate(nested: &mut Fields<'_>) -> Option<CertificateFiles> {
    let chain = nested.path("certificate");
    let key = nested.path("key");
    let ocsp = nested.path("ocsp");
    let issuers = nested.path("issuers");
    // The certificate may be there, under a misspelt key.
    let is_missing = chain.is_none() && !nested.has_unknown_keys();
    if is_missing && (key.is_some() || ocsp.is_some() || issuers.is_some()) {
        nested.problem_here("key, ocsp and issuers need a certificate: add certificate = \"FILE\"");
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
    let presence = nested.word("client_certificate", &["required", "optional"], |word| match word {
        "required" => Some(Presence::Required),
        "optional" => Some(Presence::Optional),
        _ => None,
    });
    match (authorities, presence) {
        (Some(authorities), presence) => {
            Some(ClientCertificates { authorities, presence: presence.unwrap_or(Presence::Required) })
        }
        (None, Some(_)) => {
            nested.problem_with("client_certificate", "needs client_ca = \"FILE\" to verify certificates");
            None
        }
        (None, None) => None,
    }
}

/// Warning about authorities that are never used.
pub(super) const VERIFY_OFF: &str = "ca has no effect with verify = false, which accepts any certificate: remove verify = false to verify the servers";

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
                nested.must("sni", "be a host name");
            }
            spec.authorities = nested.path("ca");
            if nested.bool("verify") == Some(false) {
                spec.verification = Verification::Off;
            }
            spec.certificate = read_certificate(&mut nested);
            if spec.verification == Verification::Off && spec.authorities.is_some() {
                nested.warn_of("ca", VERIFY_OFF);
            }
            nested.finish();
        }
        _ => {
            fields.must("tls", "be true or { ca = \"ca.crt\", sni = \"name\" }");
            return None;
        }
    }
    Some(Arc::new(spec))
}

/// Reads `on_down = "close"` of a pool with these servers.
pub(super) fn read_on_down(servers: &[ServerSpec], fields: &mut Fields<'_>) -> Option<OnDown> {
    let names = OnDown::ALL.map(OnDown::name);
    let found = fields.word("on_down", &names, |word| OnDown::ALL.into_iter().find(|on| on.name() == word));
    let has_check = fields.has("check") || servers.iter().any(|server| server.check.is_some());
    if found == Some(OnDown::Close) && !has_check {
        fields.problem("on_down", "on_down = \"close\" needs a check, because failures of traffic expire");
    }
    found
}

/// Reads `send_proxy = "v2"` of a pool.
pub(super) fn read_send_proxy(fields: &mut Fields<'_>) -> Option<proxy::Version> {
    match fields.take("send_proxy")? {
        Value::Text(word) if word == "v1" => Some(proxy::Version::V1),
        Value::Text(word) if word == "v2" => Some(proxy::Version::V2),
        Value::Bool(true) => {
            let choice = "write \"v2\", or \"v1\" if the servers support only the text version";
            fields
                .warn_of("send_proxy", format!("send_proxy = true is a deprecated form of \"v2\": {choice}"));
            Some(proxy::Version::V2)
        }
        Value::Bool(false) | Value::Unknown => None,
        _ => {
            fields.must_be_one_of("send_proxy", &["v1", "v2"], "");
            None
        }
    }
}

/// Reads the keys of an http service.
pub(super) fn read_http(fields: &mut Fields<'_>) -> Arc<HttpSpec> {
    let mut spec = HttpSpec::default();
    let balance = fields.word("balance_per", &["request", "connection"], |word| match word {
        "request" => Some(Balance::Request),
        "connection" => Some(Balance::Connection),
        _ => None,
    });
    spec.balance = balance.unwrap_or(spec.balance);
    read_forwarded(fields, &mut spec.forwarded);
    // A size in bytes, so that k is 1024.
    if let Some(size) = fields.first_text("header_bytes_max").and_then(values::size)
        && let Ok(bytes) = parse_size(&Value::Text(size))
    {
        fields.take("header_bytes_max");
        fields.must_hint(
            "header_bytes_max",
            "be a number of bytes from 1024 to 65536",
            &(if (1024..=65_536).contains(&bytes) { format!("write {bytes}") } else { String::new() }),
        );
    } else {
        spec.limits.bytes_max = fields
            .integer("header_bytes_max", 1024..=65_536)
            .map_or(spec.limits.bytes_max, |bytes| bytes as usize);
    }
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
    if spec.redirect.is_some() && spec.respond.is_some() {
        fields.problem("respond", "redirect and respond exclude each other: remove one of them");
    }
    spec.health = fields.text("health").map(str::to_owned);
    if spec.health.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains(['?', ' '])) {
        fields.must("health", "be a path such as \"/health\", without a query");
    }
    spec.subject_field = fields.text("certificate_header").map(str::to_owned);
    let token =
        |name: &String| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let reserved =
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "cookie", "expect"];
    let is_reserved = |name: &String| reserved.contains(&name.to_ascii_lowercase().as_str());
    if spec.subject_field.as_ref().is_some_and(|name| name.is_empty() || !token(name) || is_reserved(name)) {
        fields
            .must("certificate_header", "be a header field that is not in use, such as \"X-Client-Subject\"");
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

/// Reads `mode` of the table `forwarded`.
fn read_mode(nested: &mut Fields<'_>, modes: &[&'static str]) -> Option<ForwardedMode> {
    if nested.text("mode") == Some("add") {
        nested.must_hint("mode", format!("be {}", one_of(modes, "")), "write \"append\"");
        return None;
    }
    nested.word("mode", modes, forwarded_mode)
}

/// Reads `forwarded = "append"`, or `{ mode = "replace", trust = { "10.0.0.0/8" }, headers = "both" }`.
fn read_forwarded(fields: &mut Fields<'_>, spec: &mut ForwardedSpec) {
    const MODES: [&str; 3] = ["replace", "append", "off"];
    match fields.take("forwarded") {
        None | Some(Value::Unknown) => {}
        Some(Value::Bool(false)) => spec.mode = ForwardedMode::Off,
        Some(Value::Text(word)) => match forwarded_mode(word) {
            Some(mode) => spec.mode = mode,
            None => fields.must_be_one_of("forwarded", &MODES, "a table"),
        },
        Some(Value::Table(table)) => {
            let mut nested = fields.within("forwarded", table);
            spec.mode = read_mode(&mut nested, &MODES).unwrap_or(spec.mode);
            spec.trust = read_prefixes(&mut nested, "trust");
            let is_field = |text: &str| text.to_ascii_lowercase().starts_with("x-forwarded-");
            let headers = if nested.first_text("headers").is_some_and(is_field) {
                nested.take("headers");
                nested.must_hint(
                    "headers",
                    "be \"x-forwarded\", \"forwarded\" or \"both\"",
                    "write \"x-forwarded\", which includes all fields of this kind",
                );
                None
            } else {
                nested.word("headers", &["x-forwarded", "forwarded", "both"], |word| match word {
                    "x-forwarded" => Some((true, false)),
                    "forwarded" => Some((false, true)),
                    "both" => Some((true, true)),
                    _ => None,
                })
            };
            (spec.classic, spec.standard) = headers.unwrap_or((spec.classic, spec.standard));
            nested.finish();
        }
        Some(_) => fields.must_be_one_of("forwarded", &MODES, "a table"),
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
            if let Some(status) = nested.integer("status", 0..=u32::MAX) {
                spec.status = status as u16;
                if ![301, 302, 307, 308].contains(&status) {
                    nested.must("status", "be 301, 302, 307 or 308");
                }
            }
            spec.port = nested.integer("port", 1..=65_535).map_or(spec.port, |port| port as u16);
            nested.finish();
        }
        Value::Bool(false) | Value::Unknown => return None,
        other => {
            let hint = match other.text() {
                Some(text) if text.contains("://") || text == "http" => {
                    "only https of the same host is available; write redirect = \"https\""
                }
                _ if matches!(other, Value::Bool(true)) => "write redirect = \"https\"",
                _ => "",
            };
            fields.must_hint("redirect", "be \"https\" or { port = 8443 }", hint);
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
            let hint = match other {
                Value::Int(status) if (200..=599).contains(status) => {
                    Some(format!("write respond = {{ status = {status} }}"))
                }
                other => other.text().map(|text| format!("write respond = {{ body = {} }}", shown(text))),
            };
            fields.must_hint("respond", "be a table", &hint.unwrap_or_default());
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
        nested.must("type", "be a media type such as \"text/html\"");
    }
    if spec.body.len() > RespondSpec::BODY_BYTES_MAX {
        let (most, length) = (RespondSpec::BODY_BYTES_MAX, spec.body.len());
        nested.problem_with("body", format!("must have at most {most} bytes, got {length}"));
    }
    nested.finish();
    Some(spec)
}

fn is_host(text: &str) -> bool {
    text.parse::<HostPattern>().is_ok()
}

/// Reads the hosts of a route: `host` for http, `sni` for TLS that is passed through.
fn read_hosts(nested: &mut Fields<'_>, key: &'static str) -> Option<Vec<HostPattern>> {
    let parse = |text: &str| {
        let host: Result<HostPattern, _> = text.parse();
        host.map_err(|error| match text.rsplit_once(':') {
            _ if text.contains("://") => {
                let host = text.split("://").nth(1).and_then(|rest| rest.split(['/', ':']).next());
                format!("`{text}` is a URL: write {key} = {}", shown(host.unwrap_or_default()))
            }
            _ if text.trim_start_matches("*.").contains('*') && text != "*" => {
                format!("`{text}` has a * that is not its first part: write each host, or *.example.org for all names below one")
            }
            _ if text == "*" => format!("remove {key} = \"*\": a route without {key} is for any host"),
            Some((host, port)) if port.parse::<u16>().is_ok() => {
                format!("`{text}` has a port: write {key} = {}", shown(host))
            }
            _ if is_host(text.trim_end_matches('.')) => {
                let host = shown(text.trim_end_matches('.'));
                format!(
                    "`{text}` ends with a dot: write {key} = {host}, which also matches requests with the dot"
                )
            }
            _ if !text.is_ascii() => {
                format!("`{text}` has characters outside ASCII: write the ASCII form of the name, with xn--")
            }
            _ => error.to_string(),
        })
    };
    nested.texts(key, "a host name such as \"www.example.org\" or \"*.example.org\", or a list", parse)
}

/// Checks the path of a route.
fn check_path(nested: &mut Fields<'_>, path: &str) {
    let is_pattern = !path.starts_with('/') && path.contains(['^', '~', '(', '*']) || path.ends_with(".*");
    if is_pattern {
        let literal: String = path
            .trim_start_matches(['~', ' ', '^', '*'])
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_'))
            .collect();
        let is_any = path.chars().all(|c| matches!(c, '^' | '~' | ' ' | '.' | '*' | '$'));
        let hint = match literal.starts_with('/') {
            true => format!("write {}", shown(&literal)),
            false if is_any => "write \"/\" for all paths, or remove path if the route has a host".into(),
            false => String::new(),
        };
        nested.must_hint("path", "be a prefix of the path, not a regular expression", &hint);
    } else if !path.starts_with('/') {
        nested.must_hint("path", "begin with /", &format!("write {}", shown(&format!("/{path}"))));
    } else if let Some(below) = path.strip_suffix('*') {
        let below = shown(if below == "/" { below } else { below.trim_end_matches('/') });
        nested.must_hint("path", "have no *", &format!("write {below}, which includes all paths below it"));
    } else if let Some((before, _)) = path.split_once('*') {
        let before = &before[..=before.rfind('/').unwrap_or_default()];
        let before = shown(if before == "/" { before } else { before.trim_end_matches('/') });
        nested.must_hint(
            "path",
            "have no *, which is not a wildcard",
            &format!("write {before}, which includes all paths below it"),
        );
    } else if let Some((before, _)) = path.split_once(['?', '#']) {
        nested.must_hint("path", "have no query", &format!("write {}", shown(before)));
    }
}

/// Returns a name for a route in messages: ``the route of host `b.example.org` ``.
pub(super) fn name_of_route(route: &Fields<'_>) -> String {
    let named = ["host", "sni", "path"].iter().find_map(|key| Some((key, route.first_text(key)?)));
    named.map_or_else(|| "a route".into(), |(key, text)| format!("the route of {key} `{text}`"))
}

/// Reads one route, with the name of its pool.
pub(super) fn read_route(
    mut nested: Fields<'_>,
    table: &Table,
    protocol: Protocol,
    pool: impl FnOnce(&mut Fields<'_>) -> Option<Arc<str>>,
) -> Option<Route<Arc<str>>> {
    let is_http = protocol == Protocol::Http;
    if is_http && nested.take("sni").is_some() {
        nested.problem("sni", "a route of an http service is chosen by host or path, not sni");
    }
    if !is_http && (nested.take("host").is_some() | nested.take("path").is_some()) {
        let key = if nested.has("host") { "host" } else { "path" };
        nested
            .problem(key, "a route by host or path needs protocol = \"http\"; a tcp service chooses by sni");
    }
    let host_key = if is_http { "host" } else { "sni" };
    let hosts = read_hosts(&mut nested, host_key);
    let path = if is_http { nested.text("path").map(str::to_owned) } else { None };
    if let Some(path) = &path {
        check_path(&mut nested, path);
    }
    let to = pool(&mut nested);
    let has_any = ["host", "path", "sni"].iter().any(|key| nested.has(key));
    if !has_any && !nested.has_unknown_keys() {
        nested.problem_here(if is_http { "a route needs a host or a path" } else { "a route needs sni" });
    }
    nested.finish();
    // A route with invalid hosts is dropped, because without hosts it would match any host.
    let any_host = matches!(table.get(host_key), Some(Value::Table(list)) if list.list().is_empty());
    let hosts = hosts.unwrap_or_default();
    let is_valid = !hosts.is_empty() || path.is_some() || any_host;
    Some(Route { hosts, path, to: to? }).filter(|_| is_valid)
}
