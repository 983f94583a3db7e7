//! Header sections as they are written: requests for servers, responses for clients, and local responses.

use crate::service::hops::HOPS_MAX;
use evener_core::spec::{ForwardedMode, ForwardedSpec, RedirectSpec, RespondSpec};
use evener_core::wire::forwarded::{self, Client, Lists, Syntax};
use evener_core::wire::http::{Framing, Kind, Request, Response, Target};
use std::borrow::Cow;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

/// Facts about the client of a request that is passed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    /// The client's address, as the connection or a PROXY header tells.
    pub(super) client: IpAddr,
    /// Address that the client connected to.
    pub(super) local: Option<SocketAddr>,
    /// The client uses TLS.
    pub(super) secure: bool,
    /// The client may be an instance that passes on what it got from this one.
    pub(super) may_loop: bool,
    /// The field for the subject of its certificate, and that subject.
    pub(super) subject: Option<(&'a str, Option<&'a str>)>,
}

impl Sender<'_> {
    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// Parts of a request that do not depend on the version of HTTP.
pub(super) struct RequestParts<'a> {
    method: &'a [u8],
    target: Cow<'a, [u8]>,
    authority: &'a [u8],
    framing: Option<Framing>,
    upgrade: Option<&'a [u8]>,
}

/// Fields of a request that tell where it came from.
#[derive(Debug, Default)]
pub(super) struct ForwardedFields<'a> {
    addresses: Vec<&'a [u8]>,
    proto: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
    standard: Vec<&'a [u8]>,
    /// Returns the number of instances of Evener that passed it on, as far as it shows.
    pub(super) hops: u8,
}

impl<'a> ForwardedFields<'a> {
    /// Collects it from the fields of a request.
    pub(super) fn of(fields: impl Iterator<Item = (Kind, &'a [u8])>) -> Self {
        let mut forwarded = Self::default();
        for (kind, value) in fields {
            match kind {
                Kind::ForwardedFor => forwarded.addresses.push(value),
                Kind::ForwardedProto => forwarded.proto = Some(value),
                Kind::ForwardedHost => forwarded.host = Some(value),
                Kind::ForwardedPort => forwarded.port = Some(value),
                Kind::Forwarded => forwarded.standard.push(value),
                Kind::Hops => forwarded.hops = forwarded.hops.max(parse_hops(value)),
                _ => {}
            }
        }
        forwarded
    }

    /// Returns the number of instances that passed it on, this one included. Nothing is sent of the first one where the next one sees from other fields
    /// that a proxy stands before it, unless it may go round without those.
    fn next_hop(&self, sender: &Sender<'_>, spec: &ForwardedSpec) -> Option<u8> {
        let comes_from_another = !self.addresses.is_empty() || !self.standard.is_empty();
        let is_reported = comes_from_another && spec.mode != ForwardedMode::Off;
        (self.hops > 0 || is_reported || sender.may_loop).then(|| self.hops.saturating_add(1))
    }

    /// The client as far as trusted proxies tell, by the fields that the service is configured to read.
    pub(super) fn client(&self, peer: IpAddr, spec: &ForwardedSpec) -> Client {
        self.lists(spec).client(peer, |address| spec.trusts(address))
    }

    /// The lists that count: a field that is not configured says nothing, for its proxies pass it on as it came.
    fn lists(&self, spec: &ForwardedSpec) -> Lists<'_> {
        Lists {
            forwarded: if spec.standard { &self.standard } else { &[] },
            forwarded_for: if spec.classic { &self.addresses } else { &[] },
        }
    }
}

/// A value that no instance writes ends the round at once.
fn parse_hops(text: &[u8]) -> u8 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(HOPS_MAX)
}

fn field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn number(name: &str, value: u64, out: &mut Vec<u8>) {
    let _ = write!(out, "{name}: {value}\r\n");
}

/// The target as it goes to a server.
pub(super) fn target_bytes<'a>(target: &Target<'a>) -> Cow<'a, [u8]> {
    match target {
        Target::Path(bytes) | Target::Authority(bytes) => Cow::Borrowed(bytes),
        Target::Query(query) => Cow::Owned([b"/", *query].concat()),
        Target::Asterisk => Cow::Borrowed(b"*"),
    }
}

/// Writes the head of a request for a server; `passed_on` are the fields that go on as they are.
pub(super) fn write_request<'a>(
    parts: &RequestParts<'_>,
    passed_on: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    forwarded: &ForwardedFields<'_>,
    sender: &Sender<'_>,
    spec: &ForwardedSpec,
    out: &mut Vec<u8>,
) {
    for part in [parts.method, b" ", &parts.target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    match (parts.authority, sender.local) {
        // HTTP/1.0 may leave it out: the address that was used is meant (RFC 9112, section 3.3).
        (b"", Some(local)) => {
            let _ = write!(out, "Host: {local}\r\n");
        }
        (authority, _) => field("Host", authority, out),
    }
    for (name, value) in passed_on {
        // The field for the client's certificate is ours alone to write.
        if sender.subject.is_some_and(|(ours, _)| is_same_name(name, ours.as_bytes())) {
            continue;
        }
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    match parts.framing {
        Some(Framing::Length(length)) => number("Content-Length", length, out),
        Some(Framing::Chunked) => field("Transfer-Encoding", b"chunked", out),
        Some(Framing::Close) | None => {}
    }
    if let Some((name, Some(subject))) = sender.subject {
        field(name, subject.as_bytes(), out);
    }
    write_forwarded(parts.authority, forwarded, sender, spec, out);
    if let Some(hops) = forwarded.next_hop(sender, spec) {
        number("X-Evener-Hops", u64::from(hops), out);
    }
    if let Some(upgrade) = parts.upgrade {
        field("Connection", b"upgrade", out);
        field("Upgrade", upgrade, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Returns whether two names are one, for servers that take `_` for `-`, too (RFC 3875, section 4.1.18).
fn is_same_name(a: &[u8], b: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (b"-_".contains(a) && b"-_".contains(b));
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// Says where the request came from (RFC 7239, and the custom that was before it).
fn write_forwarded(
    authority: &[u8],
    forwarded: &ForwardedFields<'_>,
    sender: &Sender<'_>,
    spec: &ForwardedSpec,
    out: &mut Vec<u8>,
) {
    if spec.mode == ForwardedMode::Off {
        return;
    }
    let trusted = spec.trusts(sender.client);
    // Of lists that contradict each other one is the client's own work.
    let keeps = match trusted {
        true => !forwarded.lists(spec).contradict(sender.client, |address| spec.trusts(address)),
        false => spec.mode == ForwardedMode::Append,
    };
    // Where only one of two lists came, the other one begins with the client that it gives: both say the same.
    let client = match forwarded.client(sender.client, spec) {
        Client::Known(client) if client.to_canonical() != sender.client.to_canonical() => Some(client),
        _ => None,
    };
    if spec.classic {
        out.extend_from_slice(b"X-Forwarded-For: ");
        write_list(Syntax::ForwardedFor, if keeps { &forwarded.addresses } else { &[] }, client, out);
        write_node(Syntax::ForwardedFor, sender.client.to_canonical(), out);
        out.extend_from_slice(b"\r\n");
        let scheme = sender.scheme().as_bytes();
        field("X-Forwarded-Proto", forwarded.proto.filter(|_| trusted).unwrap_or(scheme), out);
        let host = forwarded.host.filter(|_| trusted).unwrap_or(authority);
        if !host.is_empty() {
            field("X-Forwarded-Host", host, out);
        }
        match (forwarded.port.filter(|_| trusted), sender.local) {
            (Some(port), _) => field("X-Forwarded-Port", port, out),
            (None, Some(local)) => number("X-Forwarded-Port", u64::from(local.port()), out),
            (None, None) => {}
        }
    }
    if spec.standard {
        out.extend_from_slice(b"Forwarded: ");
        write_list(Syntax::Forwarded, if keeps { &forwarded.standard } else { &[] }, client, out);
        write_node(Syntax::Forwarded, sender.client.to_canonical(), out);
        if !authority.is_empty() {
            out.extend_from_slice(b";host=\"");
            out.extend_from_slice(authority);
            out.push(b'"');
        }
        let _ = write!(out, ";proto={}\r\n", sender.scheme());
    }
}

/// Writes what comes before our own element: the list that came, or else the client.
fn write_list(syntax: Syntax, lines: &[&[u8]], client: Option<IpAddr>, out: &mut Vec<u8>) {
    let empty = out.len();
    forwarded::emit_before(syntax, lines, out);
    if let Some(client) = client.filter(|_| out.len() == empty) {
        write_node(syntax, client, out);
        out.extend_from_slice(b", ");
    }
}

fn write_node(syntax: Syntax, address: IpAddr, out: &mut Vec<u8>) {
    let _ = match (syntax, address) {
        (Syntax::ForwardedFor, address) => write!(out, "{address}"),
        (Syntax::Forwarded, IpAddr::V4(address)) => write!(out, "for={address}"),
        // An IPv6 address is bracketed and quoted (RFC 7239, section 6).
        (Syntax::Forwarded, IpAddr::V6(address)) => write!(out, "for=\"[{address}]\""),
    };
}

/// State of the client's connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// The connection stays, as is usual for HTTP/1.1.
    Stays,
    /// The connection stays, which a client of HTTP/1.0 has to read.
    KeepAlive,
    /// The connection is closed.
    Closes,
    /// The connection becomes a relay.
    Upgrades,
}

impl Afterwards {
    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Stays => {}
            Self::KeepAlive => field("Connection", b"keep-alive", out),
            Self::Closes => field("Connection", b"close", out),
            Self::Upgrades => field("Connection", b"upgrade", out),
        }
    }
}

/// Writes the header section of a response for a client of HTTP/1.
pub(super) fn write_response(
    response: &Response,
    header: &[u8],
    framing: Option<Framing>,
    afterwards: Afterwards,
    cookie: Option<&str>,
    out: &mut Vec<u8>,
) {
    let _ = write!(out, "HTTP/1.1 {} ", response.status());
    out.extend_from_slice(response.reason(header));
    out.extend_from_slice(b"\r\n");
    for passed in response.passed_on(header) {
        out.extend_from_slice(passed.name.of(header));
        out.extend_from_slice(b": ");
        out.extend_from_slice(passed.value.of(header));
        out.extend_from_slice(b"\r\n");
    }
    match framing {
        Some(Framing::Length(length)) => number("Content-Length", length, out),
        Some(Framing::Chunked) => field("Transfer-Encoding", b"chunked", out),
        Some(Framing::Close) | None => {}
    }
    if let Some(upgrade) = response.upgrade(header).filter(|_| afterwards == Afterwards::Upgrades) {
        field("Upgrade", upgrade, out);
    }
    if let Some(cookie) = cookie {
        field("Set-Cookie", cookie.as_bytes(), out);
    }
    afterwards.write(out);
    out.extend_from_slice(b"\r\n");
}

/// A local response.
#[derive(Clone, Debug)]
pub(super) struct LocalResponse {
    pub(super) status: u16,
    pub(super) location: Option<Vec<u8>>,
    pub(super) body: String,
    /// The media type of the body.
    pub(super) kind: Cow<'static, str>,
}

impl LocalResponse {
    /// A small page that says what went wrong.
    pub(super) fn page(status: u16) -> Self {
        let reason = reason_of(status);
        let body = format!(
            "<!doctype html>\n<title>{status} {reason}</title>\n<h1>{status} {reason}</h1>\n<p>{}</p>\n",
            explanation_of(status)
        );
        Self { status, location: None, body, kind: "text/html; charset=utf-8".into() }
    }

    /// Health of the service.
    pub(super) fn health(usable: bool) -> Self {
        let (status, body) = if usable { (200, "ok\n") } else { (503, "no server is up\n") };
        Self { status, location: None, body: body.into(), kind: "text/plain; charset=utf-8".into() }
    }

    /// The configured response.
    pub(super) fn respond(spec: &RespondSpec) -> Self {
        Self {
            status: spec.status,
            location: None,
            // This one ends without a body, but has a length (RFC 9110, section 15.3.6).
            body: if spec.status == 205 { String::new() } else { spec.body.clone() },
            kind: spec.content_type.clone().into(),
        }
    }

    /// Returns whether a body belongs to it, and its length is sent (RFC 9110, section 8.6).
    pub(super) fn has_body(&self) -> bool {
        !matches!(self.status, 204 | 304)
    }

    /// The same, by https. `None` when the host is not known.
    pub(super) fn redirect(spec: RedirectSpec, authority: &[u8], target: &[u8]) -> Option<Self> {
        let host = match authority.iter().rposition(|&byte| byte == b':') {
            Some(colon) if !authority[colon..].contains(&b']') => &authority[..colon],
            _ => authority,
        };
        if host.is_empty() {
            return None;
        }
        let mut location = b"https://".to_vec();
        location.extend_from_slice(host);
        if spec.port != 443 {
            let _ = write!(location, ":{}", spec.port);
        }
        location.extend_from_slice(if target == b"*" { b"/" } else { target });
        Some(Self { location: Some(location), ..Self::page(spec.status) })
    }

    /// Writes it for a client of HTTP/1.
    pub(super) fn write(&self, is_head: bool, afterwards: Afterwards, out: &mut Vec<u8>) {
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason_of(self.status));
        if self.has_body() {
            field("Content-Type", self.kind.as_bytes(), out);
            number("Content-Length", self.body.len() as u64, out);
        }
        field("Cache-Control", b"no-store", out);
        if let Some(location) = &self.location {
            field("Location", location, out);
        }
        if self.status == 503 || self.status == 429 {
            field("Retry-After", b"1", out);
        }
        afterwards.write(out);
        out.extend_from_slice(b"\r\n");
        if !is_head && self.has_body() {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

/// The reason phrase (RFC 9110, section 15).
fn reason_of(status: u16) -> &'static str {
    http::StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Unassigned")
}

fn explanation_of(status: u16) -> &'static str {
    match status {
        301 | 302 | 307 | 308 => "The page is at another address.",
        403 => "You may not come in here.",
        404 => "Nobody serves this address here.",
        408 => "The request took too long.",
        421 => "This connection was made for another name.",
        429 => "Too many requests; try again in a moment.",
        431 => "The request's header fields are too large.",
        502 => "The server gave no valid answer.",
        503 => "No server is available; try again in a moment.",
        504 => "The server did not answer in time.",
        508 => "The request goes round between balancers.",
        _ => "The request was not understood.",
    }
}

/// Collects the parts of a request.
pub(super) fn parts_of<'a>(request: &Request, header: &'a [u8], target: &Target<'a>) -> RequestParts<'a> {
    RequestParts {
        method: request.method(header),
        target: target_bytes(target),
        authority: request.authority(header),
        framing: request.framing(),
        upgrade: request.upgrade(header),
    }
}
