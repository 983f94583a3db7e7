//! How it is found out whether a server is well.

use std::collections::BTreeSet;
use std::time::Duration;

/// How a failed connect, or an ICMP refusal, counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassiveSpec {
    /// So many failures in a row take a server out; 0 turns it off.
    pub failures: u32,
    /// For so long, or until a check finds it well.
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
    /// What is asked.
    pub kind: CheckKind,
    /// How often.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many successes in a row bring a server up.
    pub rise: u32,
    /// So many failures in a row take it down.
    pub fall: u32,
    /// The share of `every` by which each probe is moved at random, so that many instances do not ask at once.
    pub jitter: f64,
    /// Another port than the server's.
    pub port: Option<u16>,
}

impl CheckSpec {
    /// A check of this kind with the defaults.
    #[must_use]
    pub fn new(kind: CheckKind) -> Self {
        Self {
            kind,
            every: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter: 0.1,
            port: None,
        }
    }
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// A connection that is accepted is enough.
    Tcp,
    /// A connection on which the response is as it should be, over TLS when `tls` is given. Without `begins` and `expect`
    /// any response to what is sent is well, and where nothing is sent the connection (and the handshake) is enough.
    Stream {
        /// Bytes to send; nothing when empty.
        send: Vec<u8>,
        /// Bytes with which the response begins.
        begins: Option<Vec<u8>>,
        /// A text that the response's first 64 KiB must have.
        expect: Option<Vec<u8>>,
        /// Settings of TLS; `None` is a connection in the clear.
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
        /// The statuses that mean well.
        status: BTreeSet<u16>,
        /// A text that the body's first 64 KiB must have.
        body: Option<String>,
        /// Settings of TLS; `None` is a connection in the clear.
        tls: Option<CheckTls>,
    },
    /// A question over UDP is answered.
    Dns {
        /// The name, as it is written.
        name: String,
        /// The type (RFC 1035, section 3.2.2).
        qtype: u16,
        /// The code that the answer must have; `None` any.
        rcode: Option<u8>,
    },
    /// A datagram is sent; an answer that begins with `expect` is well. Without an expectation any answer is.
    Udp {
        /// The datagram.
        send: Vec<u8>,
        /// How the answer begins.
        expect: Option<Vec<u8>>,
    },
}

impl CheckKind {
    /// The word of the configuration.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp | Self::Stream { tls: None, .. } => "tcp",
            Self::Stream { tls: Some(_), .. } => "tls",
            Self::Http { tls: None, .. } => "http",
            Self::Http { tls: Some(_), .. } => "https",
            Self::Udp { .. } => "udp",
            Self::Dns { .. } => "dns",
        }
    }
}

/// TLS of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckTls {
    /// The name that is sent and verified; the Host header's or the server's when absent.
    pub sni: Option<String>,
    /// Whether any certificate will do.
    pub insecure: bool,
    /// The file with the authorities to trust; the system's when absent.
    pub ca_file: Option<String>,
}
