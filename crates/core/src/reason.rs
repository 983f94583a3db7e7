//! Reasons why Evener responded itself, or did not serve a request, a connection, a query or a datagram to its
//! end. A reason is declared once: its code, its words, its status in HTTP, and its counter come from here.
//!
//! A code is stable; scripts and dashboards depend on it. The words may change.

use crate::counters::{Counter, LabelValue, Numbers};
use crate::snapshot::NoServer;
use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $variant:ident $code:literal $status:tt $text:literal,)*) => {
        /// Reason why Evener responded itself, or did not serve a request, a connection, a query or a datagram
        /// to its end.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $variant),* }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the stable name, in snake_case.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),* }
            }

            /// Returns the description for an operator: one line, without a full stop.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// Returns the status of the response in HTTP; `None` if the client gets no response, or the
            /// configuration sets the status.
            #[must_use]
            pub const fn status(self) -> Option<u16> {
                match self { $(Self::$variant => reasons!(@status $status)),* }
            }
        }

        /// The values of the label of [`ReasonCounters`].
        pub(crate) const LABEL_VALUES: &[LabelValue] =
            &[$(LabelValue { name: $code, help: concat!($($doc),*).trim_ascii() }),*];
    };
    (@status -) => { None };
    (@status $status:literal) => { Some($status) };
}

reasons! {
    // The service responds itself, as its configuration says.
    /// The service redirects the request.
    Redirect "redirect" - "the service redirects the request",
    /// The configured response (`respond`).
    Respond "respond" - "the service sends its configured response",
    /// The health path of the service.
    Health "health" - "the request is for the health path",

    // The request is at fault.
    /// The header section of the request is malformed or ambiguous.
    RequestInvalid "request_invalid" 400 "the request is not valid",
    /// The body of the request is malformed.
    BodyInvalid "body_invalid" 400 "the body of the request is not valid",
    /// The header section of the request exceeds `header_bytes_max` or `header_fields_max`. See
    /// `headers_too_large` for requests of HTTP/2 that are not counted.
    HeaderTooLarge "header_too_large" 431 "the header section of the request is too large",
    /// The header section of the request was not complete within `header_timeout`.
    RequestTimeout "request_timeout" 408 "the request did not arrive in time",
    /// No byte of the request's body arrived during `stall_timeout`.
    RequestStalled "request_stalled" 408 "the body of the request stalled",
    /// The body of the request arrived below `min_rate`.
    RequestSlow "request_slow" 408 "the body of the request arrived below min_rate",
    /// The method is not supported, such as CONNECT over HTTP/2.
    MethodUnsupported "method_unsupported" 501 "the method is not supported",
    /// The transfer coding is not `chunked`.
    CodingUnsupported "coding_unsupported" 501 "the transfer coding is not supported",
    /// The version of HTTP is not supported.
    VersionUnsupported "version_unsupported" 505 "the version of HTTP is not supported",
    /// The request is unencrypted, and the port expects TLS.
    PlainHttp "plain_http" 400 "plain HTTP on a port that expects TLS",
    /// The client began TLS, and the service has no `tls`.
    TlsOnPlainPort "tls_on_plain_port" 400 "TLS on a port without TLS",
    /// The request loops between instances of Evener.
    Loop "loop" 508 "the request loops between instances",

    // The client is refused.
    /// The access list refuses the client.
    ClientDenied "client_denied" 403 "the access list refuses the client",
    /// The client reached a limit of `per_client`.
    ClientLimited "client_limited" 429 "the client reached a limit of per_client",
    /// No route matches, and the service has no default pool.
    NoRoute "no_route" 404 "no route matches",

    // No server takes the request.
    /// The pool has no servers.
    PoolEmpty "pool_empty" 503 "the pool has no servers",
    /// No server of the pool is up and ready.
    NoServerUp "no_server_up" 503 "no server is up and ready",
    /// Every usable server is at its limit, and the pool has no queue.
    ServersFull "servers_full" 503 "every usable server is at its limit",
    /// Every usable server is at its limit, and the queue is full.
    QueueFull "queue_full" 503 "every usable server is at its limit, and the queue is full",
    /// No server took the request before the timeout of the queue.
    QueueTimeout "queue_timeout" 503 "no server took the request before the timeout of the queue",
    /// The access lists of the servers refuse the client.
    NoServerAdmits "no_server_admits" 503 "the access lists of the servers refuse the client",
    /// The client's server cannot take it, and `failover` is off.
    NoFailover "no_failover" 503 "the server of the client cannot take it, and failover is off",
    /// The process has no descriptor for a connection to a server.
    NoDescriptor "no_descriptor" 503 "no descriptor is left for a connection to a server",
    /// Every server that was tried could not be reached.
    ConnectFailed "connect_failed" 502 "no server could be reached",
    /// A server failed, and the retry budget of the pool permits no other.
    RetriesExhausted "retries_exhausted" 502 "a server failed, and the retry budget is used up",

    // The server is at fault.
    /// The server sent something that is not a valid response.
    ResponseInvalid "response_invalid" 502 "the server sent no valid response",
    /// The header section of the response exceeds `header_bytes_max` or `header_fields_max`.
    ResponseTooLarge "response_too_large" 502 "the header section of the response is too large",
    /// The server closed the connection before its response was complete or had begun.
    ServerClosed "server_closed" 502 "the server closed the connection before its response",
    /// The response broke off, so the client got only a part of it.
    ResponseIncomplete "response_incomplete" - "the response of the server broke off",
    /// The response did not begin within `response_timeout`.
    ResponseTimeout "response_timeout" 504 "the server did not respond in time",
    /// The server read the request's body too slowly.
    ServerStalled "server_stalled" 504 "the server does not read the body of the request",

    // The connection ended.
    /// The client closed before it had the response.
    ClientClosed "client_closed" - "the client closed the connection",
    /// The response stalled during `stall_timeout`.
    ResponseStalled "response_stalled" - "the response stalled",
    /// The client received the response below `min_rate`.
    ResponseSlow "response_slow" - "the client received the response below min_rate",
    /// No byte moved on an upgraded connection or in a CONNECT tunnel during `idle_timeout` or
    /// `half_closed_timeout`.
    IdleTimeout "idle_timeout" - "no byte moved during the idle timeout",
    /// The drain timeout passed.
    Drain "drain" - "the drain timeout passed",
    /// An operator closed it.
    Operator "operator" - "an operator closed it",
    /// A check marked its server down (`on_down`).
    ServerDown "server_down" 502 "a check marked the server down",
    /// An operator closed the connections of its server.
    ServerEnded "server_ended" 502 "an operator closed the connections of the server",

    // TLS with clients.
    /// The client offers no version of TLS that the service accepts.
    TlsVersion "tls_version" - "no TLS version in common with the client",
    /// The client offers no cipher suite that the service accepts.
    TlsCipher "tls_cipher" - "no cipher suite in common with the client",
    /// The client does not accept the certificate of the service.
    TlsNotTrusted "tls_not_trusted" - "the client does not trust the certificate",
    /// The client ended the handshake with another alert.
    TlsAlert "tls_alert" - "the client ended the handshake with an alert",
    /// The client has no certificate, and the service requires one.
    TlsClientCertificateMissing "tls_client_certificate_missing" - "the client sent no certificate",
    /// The certificate of the client is not valid: expired, from an unknown authority, or revoked.
    TlsClientCertificateInvalid "tls_client_certificate_invalid" - "the certificate of the client is not valid",
    /// No application protocol (ALPN) in common.
    TlsProtocol "tls_protocol" - "no application protocol in common with the client",
    /// The client sent bytes that are neither TLS nor HTTP.
    NotTls "not_tls" - "the client does not use TLS",
    /// The client closed the connection during the handshake.
    TlsClosed "tls_closed" - "the client closed the connection during the handshake",
    /// The client closed the connection before it sent a byte, such as a port check.
    Unused "unused" - "the client closed the connection without sending a byte",
    /// The handshake was not complete within `handshake_timeout`.
    TlsTimeout "tls_timeout" - "the handshake did not end in time",
    /// Too many handshakes were in progress.
    TlsBusy "tls_busy" - "too many TLS handshakes are in progress",
    /// Another fault of TLS.
    TlsOther "tls_other" - "the TLS handshake failed",

    // Preambles of connections and datagrams.
    /// The PROXY header is missing or malformed.
    ProxyHeaderInvalid "proxy_header_invalid" - "the PROXY header is missing or malformed",
    /// The PROXY header or the ClientHello did not arrive in time.
    PreambleTimeout "preamble_timeout" - "the beginning of the connection did not arrive in time",

    // Queries of DNS.
    /// The query is malformed.
    QueryInvalid "query_invalid" - "the query is malformed",
    /// The opcode of the query is not supported.
    OpcodeUnsupported "opcode_unsupported" - "the opcode of the query is not supported",
    /// The network of the client exceeds its rate.
    RateLimited "rate_limited" - "the network of the client exceeds the rate limit",
    /// No remaining server can take the query: its size, its address family, or a stuck connection.
    NoCapableServer "no_capable_server" - "no remaining server can take the query",
    /// Too many queries are outstanding.
    Outstanding "outstanding" - "too many queries are outstanding",
}

impl Reason {
    /// Returns whether the service responds itself because its configuration says so: nothing is wrong.
    #[must_use]
    pub const fn is_configured(self) -> bool {
        matches!(self, Self::Redirect | Self::Respond | Self::Health)
    }
}

impl Reason {
    /// Returns whether the end is usual and frequent, so that only readers of debug events want it.
    #[must_use]
    pub const fn is_usual(self) -> bool {
        matches!(
            self,
            Self::ClientClosed
                | Self::IdleTimeout
                | Self::Drain
                | Self::Operator
                | Self::ServerEnded
                | Self::Unused
        )
    }
}

/// Details of a reason. They never contain bytes of a client or a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// No details.
    #[default]
    None,
    /// Fixed words.
    Words(&'static str),
    /// A limit that was exceeded, with its unit.
    Above(u64, &'static str),
}

impl fmt::Display for Detail {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Words(words) => out.write_str(words),
            Self::Above(limit, unit) => write!(out, "more than {limit} {unit}"),
        }
    }
}

/// Reason with its details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    reason: Reason,
    detail: Detail,
}

impl Cause {
    /// Creates a reason with details.
    #[must_use]
    pub const fn new(reason: Reason, detail: Detail) -> Self {
        Self { reason, detail }
    }

    /// Creates a reason with fixed words as its details.
    #[must_use]
    pub const fn with(reason: Reason, words: &'static str) -> Self {
        Self { reason, detail: Detail::Words(words) }
    }

    /// Returns the reason.
    #[must_use]
    pub const fn reason(self) -> Reason {
        self.reason
    }

    /// Returns the details.
    #[must_use]
    pub const fn detail(self) -> Detail {
        self.detail
    }
}

impl From<Reason> for Cause {
    fn from(reason: Reason) -> Self {
        Self { reason, detail: Detail::None }
    }
}

impl fmt::Display for Reason {
    /// Writes the code.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.code())
    }
}

impl From<NoServer> for Reason {
    fn from(reason: NoServer) -> Self {
        match reason {
            NoServer::Empty => Self::PoolEmpty,
            NoServer::Failed => Self::ConnectFailed,
            NoServer::Full => Self::ServersFull,
            NoServer::Denied => Self::NoServerAdmits,
            NoServer::Down => Self::NoServerUp,
            NoServer::NoDescriptor => Self::NoDescriptor,
            NoServer::NoFailover => Self::NoFailover,
            NoServer::RetryBudget => Self::RetriesExhausted,
        }
    }
}

/// One counter for each reason.
#[derive(Debug)]
pub struct ReasonCounters([Counter; Reason::ALL.len()]);

impl ReasonCounters {
    /// Returns the counter of a reason.
    #[must_use]
    pub const fn of(&self, reason: Reason) -> &Counter {
        &self.0[reason as usize]
    }
}

impl Default for ReasonCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Numbers for ReasonCounters {
    fn append_to(&self, values: &mut Vec<u64>) {
        values.extend(self.0.iter().map(Counter::read));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_in_snake_case() {
        let mut codes: Vec<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert!(codes.iter().all(|code| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len(), "two reasons have the same code");
    }

    #[test]
    fn each_reason_has_a_counter() {
        let counters = ReasonCounters::default();
        counters.of(Reason::QueueFull).one();
        let mut values = Vec::new();
        counters.append_to(&mut values);
        let counted: Vec<&str> = LABEL_VALUES
            .iter()
            .zip(values)
            .filter(|(_, value)| *value == 1)
            .map(|(label, _)| label.name)
            .collect();
        assert_eq!(counted, [Reason::QueueFull.code()]);
    }
}
