//! Settings of health checks.

use super::ProgramSpec;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Effect of a failed connection attempt or an ICMP error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassiveSpec {
    /// Number of consecutive failures that mark a server down; 0 turns passive checks off.
    pub failures: u32,
    /// Time for which the server is down, unless a check passes earlier.
    pub down_for: Duration,
}

impl Default for PassiveSpec {
    fn default() -> Self {
        Self { failures: 1, down_for: Duration::from_secs(30) }
    }
}

/// An active check.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckSpec {
    /// Kind of the probe.
    pub kind: CheckKind,
    /// Interval.
    pub every: Duration,
    /// Timeout of a response.
    pub timeout: Duration,
    /// Number of consecutive successes that mark a server up.
    pub rise: u32,
    /// Number of consecutive failures that mark a server down.
    pub fall: u32,
    /// Maximum share of `every` by which each probe is shifted at random, so that many instances do not probe
    /// at the same time.
    pub jitter: f64,
    /// Maximum of the random delay before the first probe of a server.
    pub warm_up: Duration,
    /// Port of the probe; `None` for the server's port.
    pub port: Option<u16>,
}

impl CheckSpec {
    /// Creates a check of this kind with the defaults.
    #[must_use]
    pub fn new(kind: CheckKind) -> Self {
        Self {
            kind,
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter: 0.1,
            warm_up: Duration::ZERO,
            port: None,
        }
    }
}

/// Kind of a probe.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// An established connection passes.
    Tcp,
    /// The response on a connection passes if it is as expected; over TLS when `tls` is given. Without
    /// `begins` and `expect` any response passes, and if nothing is sent, an established connection
    /// (after the handshake) passes.
    Stream {
        /// Bytes to send; nothing when empty.
        send: Vec<u8>,
        /// Bytes with which the response begins.
        begins: Option<Vec<u8>>,
        /// Text in the first 64 KiB of the response.
        expect: Option<Vec<u8>>,
        /// TLS settings; `None` for plaintext.
        tls: Option<CheckTls>,
    },
    /// An HTTP/1.1 request, over TLS when `tls` is given.
    Http {
        /// The method.
        method: String,
        /// The path with its query.
        path: String,
        /// The Host header; the server's name or address when absent.
        host: Option<String>,
        /// Statuses that pass.
        status: BTreeSet<u16>,
        /// Text in the first 64 KiB of the body.
        body: Option<String>,
        /// Regular expression that the first 64 KiB of the body match.
        regex: Option<String>,
        /// Digest of the whole body in lower-case hexadecimal digits: MD5 if it has 32, SHA-256 if it has 64.
        digest: Option<String>,
        /// TLS settings; `None` for plaintext.
        tls: Option<CheckTls>,
    },
    /// An SMTP server passes if it responds with the expected codes to the connection (220), to EHLO or HELO
    /// (250) and to QUIT (221) (RFC 5321).
    Smtp {
        /// Name of the client in EHLO and HELO.
        helo: String,
    },
    /// A program that ends with the status 0 passes.
    Exec {
        /// The program.
        program: ProgramSpec,
    },
    /// A response to a query over UDP passes.
    Dns {
        /// Name in textual form.
        name: String,
        /// The type (RFC 1035, section 3.2.2).
        qtype: u16,
        /// Required RCODE of the response; `None` for any.
        rcode: Option<u8>,
    },
    /// A datagram is sent, and a response that begins with `expect` passes. Without `expect` any response
    /// passes.
    Udp {
        /// The datagram.
        send: Vec<u8>,
        /// First bytes of the response.
        expect: Option<Vec<u8>>,
    },
    /// A function of the configuration decides.
    Script {
        /// The function.
        function: ScriptFunction,
        /// Effect of an error of the function.
        on_error: OnScriptError,
    },
}

/// A function of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptFunction {
    /// Number among the functions of the configuration.
    pub number: usize,
    /// File and line.
    pub location: Arc<str>,
    /// Lines of the file that define the function.
    pub source: Arc<str>,
}

/// Effect of an error of a script that checks a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnScriptError {
    /// The server keeps its verdict.
    #[default]
    Keep,
    /// The error counts like a failed check.
    Down,
}

impl OnScriptError {
    /// All effects, the default first.
    pub const ALL: [Self; 2] = [Self::Keep, Self::Down];

    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Down => "down",
        }
    }
}

impl CheckKind {
    /// Returns the name in the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp | Self::Stream { tls: None, .. } => "tcp",
            Self::Stream { tls: Some(_), .. } => "tls",
            Self::Http { tls: None, .. } => "http",
            Self::Http { tls: Some(_), .. } => "https",
            Self::Udp { .. } => "udp",
            Self::Dns { .. } => "dns",
            Self::Script { .. } => "script",
            Self::Smtp { .. } => "smtp",
            Self::Exec { .. } => "exec",
        }
    }
}

/// TLS settings of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckTls {
    /// Name that is sent and verified; the name in the Host header or the server's name if absent.
    pub sni: Option<String>,
    /// Any certificate is accepted.
    pub insecure: bool,
    /// File of the trusted authorities; the system's authorities if absent.
    pub ca_file: Option<String>,
}
