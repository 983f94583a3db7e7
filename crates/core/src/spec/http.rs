//! HTTP as configured.

use crate::acl::{Access, Acl};
use crate::pace::MinRate;
use crate::wire::http::HeadLimits;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How a service understands HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSpec {
    /// What a server is chosen for.
    pub balance: Balance,
    /// What servers are told of the client.
    pub forwarded: ForwardedSpec,
    /// The limits of heads.
    pub limits: HeadLimits,
    /// How long the head of a request may take from its first byte.
    pub head_timeout: Duration,
    /// How long a client may stay without a request.
    pub keepalive_timeout: Duration,
    /// How long a body, or the taking of an answer, may stand still.
    pub stall_timeout: Duration,
    /// The rate below which a body is ended, if there is one.
    pub min_rate: Option<MinRate>,
    /// The requests that are given up when their client closes.
    pub abort_on_close: AbortOnClose,
    /// How long a server may take to begin its answer.
    pub answer_timeout: Duration,
    /// How often a request is sent again, to another server, when nothing came back.
    pub retries: u32,
    /// Every request that no route names is sent to https instead.
    pub redirect: Option<RedirectSpec>,
    /// Every request that no route names is answered by the service itself.
    pub respond: Option<RespondSpec>,
    /// The path at which the service itself tells whether it has servers.
    pub health: Option<String>,
    /// The field with the subject of the client's certificate.
    pub subject_field: Option<String>,
    /// Whether HTTP/2 is offered (by ALPN).
    pub http2: Http2,
}

impl Default for HttpSpec {
    fn default() -> Self {
        Self {
            balance: Balance::Request,
            forwarded: ForwardedSpec::default(),
            limits: HeadLimits::default(),
            head_timeout: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(30),
            min_rate: Some(MinRate::DEFAULT),
            abort_on_close: AbortOnClose::Idempotent,
            answer_timeout: Duration::from_secs(60),
            retries: 2,
            redirect: None,
            respond: None,
            health: None,
            subject_field: None,
            http2: Http2::On,
        }
    }
}

impl HttpSpec {
    /// Returns the time for which a body may be left alone before its progress is looked at.
    #[must_use]
    pub fn look_after(&self) -> Duration {
        self.min_rate.map_or(self.stall_timeout, |rate| rate.step().min(self.stall_timeout))
    }
}

/// Which requests are given up when their client closed its connection, or its side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortOnClose {
    /// None: a client may end its side and still wait for its response.
    Never,
    /// Those that do no harm twice, or half (RFC 9110, section 9.2.2).
    Idempotent,
    /// All.
    Always,
}

/// What a server is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each request.
    Request,
    /// Each connection of a client: its requests stay with one server as long as that serves.
    Connection,
}

/// Whether HTTP/2 is spoken with clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    /// With those that offer it.
    On,
    /// With nobody.
    Off,
}

/// What servers are told of the client, and whom we believe.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardedSpec {
    /// What becomes of what the request says already, when its sender is not trusted.
    pub mode: ForwardedMode,
    /// Proxies whose word counts; from them, everything is appended to.
    pub trust: Option<Arc<Acl>>,
    /// `X-Forwarded-For`, `-Proto`, `-Host` and `-Port` are written.
    pub classic: bool,
    /// `Forwarded` (RFC 7239) is written.
    pub standard: bool,
}

impl ForwardedSpec {
    /// Whether what `proxy` says is believed.
    #[must_use]
    pub fn trusts(&self, proxy: IpAddr) -> bool {
        self.trust.as_ref().is_some_and(|trust| trust.access(proxy) == Access::Permit)
    }
}

impl Default for ForwardedSpec {
    fn default() -> Self {
        Self { mode: ForwardedMode::Replace, trust: None, classic: true, standard: false }
    }
}

/// What becomes of what a request says of where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedMode {
    /// Ours comes instead.
    Replace,
    /// The client's address is added to the list; the rest is ours.
    Append,
    /// It is taken away, and nothing is added.
    Off,
}

/// What the service itself answers to every request that no route names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RespondSpec {
    /// The status, from 200 to 599.
    pub status: u16,
    /// The `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: String,
}

impl RespondSpec {
    /// The longest body.
    pub const BODY_BYTES_MAX: usize = 16 << 10;
}

/// Where requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectSpec {
    /// The status, such as 308.
    pub status: u16,
    /// The port of https; 443 is left out.
    pub port: u16,
}
