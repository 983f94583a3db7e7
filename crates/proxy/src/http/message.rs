//! Writing of header sections: requests for servers, and responses of servers for clients.

use crate::io::tls::TlsFacts;
use crate::service::hops::HOPS_MAX;
use crate::service::preamble::Origin;
use evener_core::spec::{ForwardedMode, ForwardedSpec};
use evener_core::wire::forwarded::{self, Client, Lists, Syntax};
use evener_core::wire::http::{Framing, Kind, Request, Response, Target};
use std::borrow::Cow;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

/// Facts about the client of a request that is sent to a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    /// Address of the client, from the connection or from a PROXY header.
    client: IpAddr,
    /// Address that the client connected to.
    local: Option<SocketAddr>,
    /// The client uses TLS.
    is_secure: bool,
    loop_risk: LoopRisk,
    /// Header field for the subject of the client's certificate, and the subject.
    subject: Option<(&'a str, Option<&'a str>)>,
}

/// Risk that a request comes back to this instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopRisk {
    /// No loop is suspected, or the header fields that proxies add would reveal it.
    None,
    /// The client may be a server of the pool that passes requests of this instance on, back to this instance.
    Possible,
}

impl<'a> Sender<'a> {
    /// Collects the facts about a client. `local` is the local address of the client's connection;
    /// `subject_field` is the name of the header field for the subject of the client's certificate.
    pub(super) fn new(
        origin: &Origin,
        local: Option<SocketAddr>,
        facts: Option<&'a TlsFacts>,
        subject_field: Option<&'a str>,
        loop_risk: LoopRisk,
    ) -> Self {
        Self {
            client: origin.client().ip(),
            local: origin.destination.or(local),
            is_secure: facts.is_some() || origin.secure,
            loop_risk,
            subject: subject_field.map(|name| (name, facts.and_then(TlsFacts::subject))),
        }
    }

    fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
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

/// Header fields of a request by which proxies report its origin.
#[derive(Debug, Default)]
pub(super) struct ForwardedFields<'a> {
    addresses: Vec<&'a [u8]>,
    proto: Option<&'a [u8]>,
    host: Option<&'a [u8]>,
    port: Option<&'a [u8]>,
    standard: Vec<&'a [u8]>,
    /// Number of instances of Evener that passed the request on, according to its header fields.
    hops: u8,
}

impl<'a> ForwardedFields<'a> {
    /// Collects the values from the header fields of a request.
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

    /// Returns whether the request was passed on so often that it must be in a loop.
    pub(super) fn is_loop(&self) -> bool {
        self.hops >= HOPS_MAX
    }

    /// Returns the number of instances that passed the request on, including this instance; `None` if the
    /// number is not sent. The first instance sends the number only if header fields report an earlier proxy,
    /// or if a loop is possible that no header fields would reveal.
    fn next_hop(&self, sender: &Sender<'_>, spec: &ForwardedSpec) -> Option<u8> {
        let comes_from_another = !self.addresses.is_empty() || !self.standard.is_empty();
        let is_reported = comes_from_another && spec.mode != ForwardedMode::Off;
        (self.hops > 0 || is_reported || sender.loop_risk == LoopRisk::Possible)
            .then(|| self.hops.saturating_add(1))
    }

    /// Returns the client that trusted proxies report, in the header fields that the service is configured to
    /// read.
    pub(super) fn client(&self, peer: IpAddr, spec: &ForwardedSpec) -> Client {
        self.lists(spec).client(peer, |address| spec.trusts(address))
    }

    /// Returns the lists of the configured header fields. Other fields are not trusted: a proxy that does not
    /// use a field passes it on as the client wrote it.
    fn lists(&self, spec: &ForwardedSpec) -> Lists<'_> {
        Lists {
            forwarded: if spec.standard { &self.standard } else { &[] },
            forwarded_for: if spec.classic { &self.addresses } else { &[] },
        }
    }
}

/// Parses a number of hops. An invalid value counts as the maximum, so that the request is refused.
fn parse_hops(text: &[u8]) -> u8 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(HOPS_MAX)
}

pub(super) fn field(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn number(name: &str, value: u64, out: &mut Vec<u8>) {
    let _ = write!(out, "{name}: {value}\r\n");
}

/// Returns the target for the request line to a server.
pub(super) fn target_bytes<'a>(target: &Target<'a>) -> Cow<'a, [u8]> {
    match target {
        Target::Path(bytes) | Target::Authority(bytes) => Cow::Borrowed(bytes),
        Target::Query(query) => Cow::Owned([b"/", *query].concat()),
        Target::Asterisk => Cow::Borrowed(b"*"),
    }
}

/// Writes the header section of a request for a server; `passed_on` are the fields that are sent unchanged.
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
        // A client of HTTP/1.0 may omit Host. The address that the client connected to replaces it (RFC 9112,
        // section 3.3).
        (b"", Some(local)) => {
            let _ = write!(out, "Host: {local}\r\n");
        }
        (authority, _) => field("Host", authority, out),
    }
    for (name, value) in passed_on {
        // A client must not set the field for the subject of its certificate.
        if sender.subject.is_some_and(|(field, _)| is_same_name(name, field.as_bytes())) {
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

/// Returns whether two names are equal for servers that treat `_` like `-` (RFC 3875, section 4.1.18).
fn is_same_name(a: &[u8], b: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a.eq_ignore_ascii_case(b) || (b"-_".contains(a) && b"-_".contains(b));
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// Writes the header fields that report the origin of the request (RFC 7239, and the older X-Forwarded fields).
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
    // If the two lists contradict each other, a client wrote one of them, so neither list is passed on.
    let keeps = match trusted {
        true => !forwarded.lists(spec).contradict(sender.client, |address| spec.trusts(address)),
        false => spec.mode == ForwardedMode::Append,
    };
    // If only one of the two lists was received, the other list begins with the client that the received list
    // reports, so that both lists agree.
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

/// Writes the part of a list before the element of this instance: the received list, or else the client.
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
    /// The connection stays open, as is usual for HTTP/1.1.
    Stays,
    /// The connection stays open, and a header field announces that to a client of HTTP/1.0.
    KeepAlive,
    /// The connection is closed.
    Closes,
    /// The connection becomes a relay.
    Upgrades,
}

impl Afterwards {
    pub(super) fn write(self, out: &mut Vec<u8>) {
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

/// Collects the parts of a request that do not depend on the version of HTTP.
pub(super) fn parts_of<'a>(request: &Request, header: &'a [u8], target: &Target<'a>) -> RequestParts<'a> {
    RequestParts {
        method: request.method(header),
        target: target_bytes(target),
        authority: request.authority(header),
        framing: request.framing(),
        upgrade: request.upgrade(header),
    }
}
