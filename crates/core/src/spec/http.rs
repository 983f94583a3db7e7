//! HTTP settings of a service.

use crate::acl::{Access, Acl};
use crate::pace::MinRate;
use crate::wire::http::HeaderLimits;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// HTTP settings of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpSpec {
    /// Unit of balancing.
    pub balance: Balance,
    /// Information about the client for servers.
    pub forwarded: ForwardedSpec,
    /// Limits of header sections.
    pub limits: HeaderLimits,
    /// Time for the header section of a request from its first byte.
    pub header_timeout: Duration,
    /// Time for which a client connection may stay idle.
    pub keepalive_timeout: Duration,
    /// Time for which a body may make no progress, in either direction.
    pub stall_timeout: Duration,
    /// Minimum rate of bodies, if there is one.
    pub min_rate: Option<MinRate>,
    /// Requests that are aborted when their client closes.
    pub abort_on_close: AbortOnClose,
    /// Time for a server to begin its response.
    pub response_timeout: Duration,
    /// Number of times that a request without a response is retried on another server.
    pub retries: u32,
    /// Redirect to https for requests without a route.
    pub redirect: Option<RedirectSpec>,
    /// Local response to requests without a route.
    pub respond: Option<RespondSpec>,
    /// Path of the local health response.
    pub health: Option<String>,
    /// Name of the header field with the subject of the client's certificate.
    pub subject_field: Option<String>,
    /// Use of HTTP/2 (by ALPN).
    pub http2: Http2,
}

impl Default for HttpSpec {
    fn default() -> Self {
        Self {
            balance: Balance::Request,
            forwarded: ForwardedSpec::default(),
            limits: HeaderLimits::default(),
            header_timeout: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(30),
            min_rate: Some(MinRate::DEFAULT),
            abort_on_close: AbortOnClose::Idempotent,
            response_timeout: Duration::from_secs(60),
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
    /// Returns the time after which the progress of a body has to be measured.
    #[must_use]
    pub fn progress_interval(&self) -> Duration {
        self.min_rate.map_or(self.stall_timeout, |rate| rate.step().min(self.stall_timeout))
    }
}

/// Requests that are aborted when their client closes its connection or its sending side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortOnClose {
    /// None: a client may close its sending side and still wait for its response.
    Never,
    /// Requests that are safe to repeat or to abort (RFC 9110, section 9.2.2).
    Idempotent,
    /// All.
    Always,
}

/// Unit of balancing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Each request.
    Request,
    /// Each connection of a client: its requests go to one server while that server is usable.
    Connection,
}

/// Use of HTTP/2 with clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http2 {
    /// With clients that offer it.
    On,
    /// Never.
    Off,
}

/// Information about the client in requests to servers, and trust in the information of received requests.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardedSpec {
    /// Treatment of the information in a request whose sender is not trusted.
    pub mode: ForwardedMode,
    /// Trusted proxies; their information is extended.
    pub trust: Option<Arc<Acl>>,
    /// Writes `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    pub classic: bool,
    /// Writes `Forwarded` (RFC 7239).
    pub standard: bool,
}

impl ForwardedSpec {
    /// Returns true if `proxy` is trusted.
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

/// Treatment of the forwarding information in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedMode {
    /// Replaced.
    Replace,
    /// The client's address is appended to the list; the rest is replaced.
    Append,
    /// Removed, and none is added.
    Off,
}

/// Local response to every request without a route.
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
    /// Maximum size of the body.
    pub const BODY_BYTES_MAX: usize = 16 << 10;
}

/// Redirect of requests to https.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectSpec {
    /// The status, such as 308.
    pub status: u16,
    /// Port of https; 443 is omitted.
    pub port: u16,
}
