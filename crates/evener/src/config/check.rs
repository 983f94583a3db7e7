//! The `check` key: `check.http { path = "/health", every = "2s" }`, or only the kind, such as `"http"`, for a
//! check with the defaults.

use super::edge::VERIFY_OFF;
use super::fields::{Fields, Reading};
use super::hints::values;
use super::problem::unreadable;
use super::raw::{Made, Value, shown};
use super::script;
use crate::check::compile;
use crate::config::Location;
use evener_core::Endpoint;
use evener_core::spec::{CheckKind, CheckSpec, CheckTls, PoolSpec, ServerTlsSpec, Verification};
use evener_core::wire::dns;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const KINDS: [&str; 7] = ["tcp", "tls", "http", "https", "udp", "dns", "smtp"];
const DATAGRAM_BYTES_MAX: usize = 1400;
/// Maximum length of the text that a check of tcp or tls sends or expects.
const STREAM_BYTES_MAX: usize = 4096;
/// Name of the client in an SMTP check.
pub(super) const SMTP_HELO: &str = "localhost";
/// Maximum length of a domain name in textual form (RFC 5321, section 4.5.3.1.2).
const HELO_BYTES_MAX: usize = 255;
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Completes the checks of a pool with TLS to its servers: https and tls checks inherit the TLS settings of the pool.
/// Checks that send text without TLS are refused, because the servers would not respond to them. `locations` has the
/// locations of the servers.
pub(super) fn inherit_tls(
    pool: &mut PoolSpec,
    fields: &mut Fields<'_>,
    locations: &BTreeMap<Endpoint, Location>,
) {
    let Some(tls) = pool.tls.clone() else { return };
    let of_pool = pool.check.as_mut().and_then(|check| inherit_tls_of(check, &tls));
    if let Some(advice) = of_pool {
        fields.problem("check", format!("the servers of this pool use TLS: write {advice}"));
    }
    for server in &mut pool.servers {
        let of_server = server.check.as_mut().and_then(|check| inherit_tls_of(Arc::make_mut(check), &tls));
        if let (Some(advice), Some(location)) = (of_server, locations.get(&server.endpoint)) {
            let message =
                format!("server `{}`: the servers of this pool use TLS: write {advice}", server.name);
            fields.reading().problem(location, message);
        }
    }
}

/// Completes a check with the TLS settings of a pool. Returns the advice if the servers would not respond to the check.
fn inherit_tls_of(check: &mut CheckSpec, of_pool: &ServerTlsSpec) -> Option<&'static str> {
    let port = check.port;
    match &mut check.kind {
        CheckKind::Http { tls: Some(tls), .. } | CheckKind::Stream { tls: Some(tls), .. } => {
            tls.sni = tls.sni.take().or_else(|| of_pool.name.clone());
            tls.ca_file = tls.ca_file.take().or_else(|| of_pool.authorities.clone());
            tls.insecure |= of_pool.verification == Verification::Off;
            None
        }
        CheckKind::Http { tls: None, .. } => {
            Some("check = \"https\", or check.https { ... } for its settings")
        }
        // With `port`, the check may use a port without TLS.
        CheckKind::Smtp { .. } if port.is_none() => Some("check = check.tls { begins = \"220 \" }"),
        CheckKind::Stream { tls: None, .. } if port.is_none() => {
            Some("check = \"tls\", or check.tls { ... } for its settings")
        }
        _ => None,
    }
}

/// Reads the check of a pool or service.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<CheckSpec> {
    match fields.take("check")? {
        Value::Made(made) if made.member_of("check").is_some() => {
            let kind = made.member_of("check").unwrap_or_default();
            Some(made_check(fields.reading(), made, kind))
        }
        Value::Text(kind) if kind == "udp" => {
            fields.problem(
                "check",
                "a udp check needs a text to send: write check = check.udp { send = \"...\" }",
            );
            None
        }
        Value::Text(kind) if kind == "exec" => {
            fields.problem(
                "check",
                "an exec check needs a program: write check = check.exec { \"/usr/local/bin/probe\" }",
            );
            None
        }
        Value::Text(kind) if KINDS.contains(&kind.as_str()) => Some(CheckSpec::new(default_kind(kind))),
        Value::Function(function) => Some(script::plain(fields.reading(), function)),
        Value::Bool(false) => None,
        given => {
            let hint = values::check(given);
            let is_library = matches!(given, Value::Library(_));
            if is_library || given.text().is_some() && hint.is_empty() {
                fields.must_be_one_of("check", &KINDS, "a check such as check.http { path = \"/health\" }");
            } else {
                fields.must_hint("check", "be a check such as check.http { path = \"/health\" }", &hint);
            }
            None
        }
    }
}

fn default_kind(kind: &str) -> CheckKind {
    match kind {
        "http" => http(None),
        "https" => http(Some(CheckTls::default())),
        "tls" => {
            CheckKind::Stream { send: Vec::new(), begins: None, expect: None, tls: Some(CheckTls::default()) }
        }
        "dns" => {
            let (name, qtype, rcode) = dns_defaults();
            CheckKind::Dns { name, qtype, rcode }
        }
        "smtp" => CheckKind::Smtp { helo: SMTP_HELO.into() },
        _ => CheckKind::Tcp,
    }
}

/// Returns an HTTP check with the defaults.
pub(crate) fn http_check() -> CheckSpec {
    CheckSpec::new(http(None))
}

/// NOERROR (RFC 1035, section 4.1.1).
const NOERROR: u8 = 0;
/// The type A (RFC 1035, section 3.2.2).
const TYPE_A: u16 = 1;

/// Returns the defaults of a DNS check: a query that every resolver and most authoritative servers respond
/// to.
pub(super) fn dns_defaults() -> (String, u16, Option<u8>) {
    ("a.root-servers.net.".into(), TYPE_A, None)
}

/// Returns a DNS check that queries the A records of a name and requires NOERROR.
pub(crate) fn dns_check(name: &str) -> Result<CheckSpec, String> {
    dns::parse_name(name).map_err(|error| format!("`{name}` is not a domain name: {error}"))?;
    Ok(CheckSpec::new(CheckKind::Dns { name: name.into(), qtype: TYPE_A, rcode: Some(NOERROR) }))
}

fn http(tls: Option<CheckTls>) -> CheckKind {
    let status: BTreeSet<u16> = (200..400).collect();
    let (method, path) = ("GET".into(), "/".into());
    CheckKind::Http { method, path, host: None, status, body: None, regex: None, digest: None, tls }
}

fn made_check(reading: &Reading<'_>, made: &Made, kind: &str) -> CheckSpec {
    let mut fields = Fields::new(reading, made, format!("check.{kind}"));
    let kind = match kind {
        "http" | "https" => read_http(&mut fields, kind),
        "udp" => read_udp(&mut fields),
        "dns" => read_dns(&mut fields),
        "script" => script::read(&mut fields),
        "smtp" => read_smtp(&mut fields),
        "exec" => super::exec::read_check(&mut fields),
        _ => read_stream(&mut fields, kind),
    };
    let is_exec = matches!(kind, CheckKind::Exec { .. });
    let defaults = script::with_defaults(CheckSpec::new(kind));
    let check = CheckSpec {
        every: fields.duration("every").unwrap_or(defaults.every),
        timeout: fields.duration("timeout").unwrap_or(defaults.timeout),
        rise: fields.integer("rise", 1..=100).unwrap_or(defaults.rise),
        fall: fields.integer("fall", 1..=100).unwrap_or(defaults.fall),
        jitter: fields.share("jitter").unwrap_or(defaults.jitter),
        warm_up: fields.duration("warm_up").unwrap_or(defaults.warm_up),
        port: fields.integer("port", 1..=65_535).map(|port| port as u16),
        kind: defaults.kind,
    };
    if check.timeout > TIMEOUT_MAX {
        fields.must("timeout", format!("be at most {}s", TIMEOUT_MAX.as_secs()));
    }
    if check.every < Duration::from_millis(10) {
        fields.must("every", "be at least 10ms");
    }
    if let Some(first) = made.table().list().first().filter(|_| !is_exec) {
        fields.problem_here(format!(
            "each setting needs a key, such as path = \"/health\", got {}",
            first.shown()
        ));
    }
    fields.finish();
    check
}

fn read_http(fields: &mut Fields<'_>, kind: &str) -> CheckKind {
    let tls = (kind == "https").then(|| read_tls(fields));
    let CheckKind::Http { mut method, mut path, mut status, .. } = http(None) else { return http(tls) };
    if let Some(given) = fields.text("method") {
        method = given.to_ascii_uppercase();
        if !given.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            fields.must("method", "be an HTTP method such as \"GET\"");
        }
    }
    if let Some(given) = fields.text("path") {
        path = given.to_owned();
        if !given.starts_with('/') || given.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            let right = format!("/{}", given.trim_start_matches('/'));
            let hint = if given.contains(' ') { String::new() } else { format!("write {}", shown(&right)) };
            fields.must_hint("path", "begin with / and have no spaces", &hint);
        }
    }
    if let Some(given) = read_status(fields) {
        status = given;
    }
    let host = fields.text("host").map(str::to_owned);
    if host.as_ref().is_some_and(|host| host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        fields.must("host", "be a host name");
    }
    let body = fields.text("body").map(str::to_owned);
    let regex = fields.text("regex").map(str::to_owned);
    if let Some(Err(error)) = regex.as_deref().map(compile) {
        fields.problem("regex", format!("regex cannot be used: {error}"));
    }
    let digest = fields.text("digest").map(str::to_ascii_lowercase);
    let is_digest =
        |text: &String| [32, 64].contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digest.as_ref().is_some_and(|digest| !is_digest(digest)) {
        fields.must("digest", "be 32 (MD5) or 64 (SHA-256) hexadecimal digits");
    }
    CheckKind::Http { method, path, host, status, body, regex, digest, tls }
}

fn read_tls(fields: &mut Fields<'_>) -> CheckTls {
    let tls = CheckTls {
        sni: fields.text("sni").map(str::to_owned),
        insecure: fields.bool("verify") == Some(false),
        ca_file: fields.path("ca"),
    };
    if tls.insecure && tls.ca_file.is_some() {
        fields.warn_of("ca", VERIFY_OFF);
    }
    if let Some(file) = &tls.ca_file {
        match std::fs::read(file) {
            Ok(bytes) if has_certificate(&bytes) => {}
            Ok(bytes) => {
                let is_key = String::from_utf8_lossy(&bytes).contains("PRIVATE KEY-----");
                let message = match is_key {
                    true => format!(
                        "{file} is a private key: ca needs the certificates of the authorities that issue the servers' certificates"
                    ),
                    false => format!("{file} has no certificate in PEM"),
                };
                fields.problem("ca", message);
            }
            Err(error) => fields.problem("ca", unreadable(Path::new(file), &error)),
        }
    }
    tls
}

/// Returns true if a file has at least one certificate in PEM, and all its certificates are well-formed.
fn has_certificate(bytes: &[u8]) -> bool {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    // Other labels of certificates (openssl(1), "PEM headers").
    for kind in ["X509", "TRUSTED"] {
        text = text.replace(&format!(" {kind} CERTIFICATE-----"), " CERTIFICATE-----");
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    certificates.is_ok_and(|list| !list.is_empty())
}

/// Reads `send = "PING\r\n"`, `expect = "+PONG"` and `begins = "220 "`.
fn read_stream(fields: &mut Fields<'_>, kind: &str) -> CheckKind {
    let tls = (kind == "tls").then(|| read_tls(fields));
    let mut text = |key: &'static str| {
        let bytes = fields.bytes(key);
        if bytes.as_ref().is_some_and(|bytes| bytes.is_empty() || bytes.len() > STREAM_BYTES_MAX) {
            fields.problem_with(key, format!("must have 1 to {STREAM_BYTES_MAX} bytes"));
        }
        bytes
    };
    let (send, begins, expect) = (text("send").unwrap_or_default(), text("begins"), text("expect"));
    if tls.is_none() && send.is_empty() && begins.is_none() && expect.is_none() {
        return CheckKind::Tcp;
    }
    CheckKind::Stream { send, begins, expect, tls }
}

/// Reads `status = 204` or `status = { 200, 204 }`.
fn read_status(fields: &mut Fields<'_>) -> Option<BTreeSet<u16>> {
    let value = fields.take("status")?;
    let items = match value {
        Value::Table(table) => table.only_list().filter(|list| !list.is_empty()),
        _ => None,
    };
    let items = items.unwrap_or(std::slice::from_ref(value));
    let code = |item: &Value| match item {
        Value::Int(code) => u16::try_from(*code).ok().filter(|code| (100..600).contains(code)),
        _ => None,
    };
    for wrong in items.iter().filter(|item| code(item).is_none()) {
        let hint = match wrong.text() {
            Some("2xx" | "3xx" | "2XX" | "3XX") => "remove it for 200 to 399",
            Some(_) if wrong.number().is_some() => "remove the quotes",
            _ => "",
        };
        fields.value_must("status", wrong, "be an HTTP status such as 200, or a list of them", hint);
    }
    items.iter().map(code).collect()
}

fn read_udp(fields: &mut Fields<'_>) -> CheckKind {
    let send = fields.bytes("send");
    if !fields.has("send") {
        fields.problem_here("a udp check needs a text to send: write check.udp { send = \"...\" }");
    } else if let Some(length) = send.as_ref().map(Vec::len).filter(|length| *length > DATAGRAM_BYTES_MAX) {
        fields.problem_with("send", format!("must have at most {DATAGRAM_BYTES_MAX} bytes, got {length}"));
    }
    let expect = fields.bytes("expect");
    CheckKind::Udp { send: send.unwrap_or_default(), expect }
}

/// Reads `name = "a.root-servers.net.", type = "A", rcode = "NOERROR"`.
fn read_dns(fields: &mut Fields<'_>) -> CheckKind {
    let (mut name, mut qtype, mut rcode) = dns_defaults();
    if let Some(given) = fields.text("name") {
        name = given.to_owned();
        if let Err(error) = dns::parse_name(given) {
            fields.problem_with("name", format!("must be a domain name, got {}: {error}", shown(given)));
        }
    }
    if let Some(given) = fields.text("type") {
        match dns::type_number(given) {
            Some(number) => qtype = number,
            None => fields.must("type", "be a DNS type such as \"A\" or \"TYPE65280\""),
        }
    }
    if let Some(given) = fields.text("rcode") {
        rcode = dns::rcode_number(given);
        if rcode.is_none() {
            fields.must("rcode", "be a DNS response code such as \"NOERROR\" or \"NXDOMAIN\"");
        }
    }
    CheckKind::Dns { name, qtype, rcode }
}

/// Reads `helo = "lb.example.org"`.
fn read_smtp(fields: &mut Fields<'_>) -> CheckKind {
    let helo = fields.text("helo").unwrap_or(SMTP_HELO).to_owned();
    let is_name = helo.bytes().all(|byte| byte.is_ascii_graphic()) && helo.len() <= HELO_BYTES_MAX;
    if helo.is_empty() || !is_name {
        fields.must("helo", "be a host name or an address such as \"[192.0.2.1]\"");
    }
    CheckKind::Smtp { helo }
}
