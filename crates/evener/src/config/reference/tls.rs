//! Keys of TLS with clients and with servers.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["service.tls", "service.tls.certificates", "pool.tls"],
        name: "certificate",
        kind: "file",
        text: "PEM: the chain, the server's own certificate first. In a pool's `tls`: the client \
               certificate for servers that request one.",
        example: "certificate = \"site.crt\", key = \"site.key\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls", "service.tls.certificates", "pool.tls"],
        name: "key",
        kind: "file",
        default: "the file of `certificate`",
        text: "PEM: the private key.",
        example: "certificate = \"site.crt\", key = \"site.key\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls", "service.tls.certificates", "pool.tls"],
        name: "ocsp",
        kind: "file",
        default: "none",
        text: "DER: an OCSP response to staple.",
        example: "certificate = \"site.pem\", ocsp = \"site.ocsp\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls", "service.tls.certificates", "pool.tls"],
        name: "issuers",
        kind: "file",
        default: "none",
        text: "PEM: certificates that complete the chain if it does not lead to an authority.",
        example: "certificate = \"site.pem\", issuers = \"chain.pem\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "certificates",
        kind: "list",
        default: "none",
        text: "More certificates: files, or tables with the keys above. A client gets the \
               certificate with the host name that it sends; without a host name, or with an unknown \
               one, it gets the first certificate. Several certificates with the same name have \
               different kinds of keys.",
        example: "certificates = { \"a.pem\", { certificate = \"b.crt\", key = \"b.key\" } }",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "directory",
        kind: "directory or list",
        default: "none",
        text: "Every `name.crt` with `name.key`, and `name.ocsp` and `name.ca` (issuers).",
        example: "directory = \"certificates\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "client_ca",
        kind: "file, directory, or a list of them",
        default: "none",
        text: "Authorities of client certificates.",
        example: "certificate = \"site.pem\", client_ca = \"clients.pem\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "client_certificate",
        kind: "`\"required\"`, `\"optional\"`",
        default: "`\"required\"`",
        text: "Whether clients must have a certificate, with `client_ca`.",
        example: "certificate = \"site.pem\", client_ca = \"clients.pem\", client_certificate = \
                  \"optional\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "min_version",
        kind: "`\"1.2\"`, `\"1.3\"`",
        default: "`\"1.2\"`",
        text: "Oldest version of TLS.",
        example: "certificate = \"site.pem\", min_version = \"1.3\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "alpn",
        protocols: &["tcp"],
        kind: "text or list",
        default: "none",
        text: "Application protocols to negotiate. http services negotiate h2 and http/1.1 by \
               themselves.",
        example: "certificate = \"site.pem\", alpn = \"http/1.1\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "handshake_timeout",
        kind: "duration",
        default: "`\"10s\"`",
        text: "Time for the handshake of a client.",
        example: "certificate = \"site.pem\", handshake_timeout = \"5s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.tls"],
        name: "handshakes_max",
        kind: "1 to 1000000",
        default: "4096",
        text: "Concurrent handshakes; connections of further clients are closed.",
        example: "certificate = \"site.pem\", handshakes_max = 1000",
        ..Key::NONE
    },
    Key {
        tables: &["pool.tls"],
        name: "ca",
        kind: "file or directory",
        default: "the system's",
        text: "Trusted authorities of the servers' certificates.",
        example: "ca = \"ca.pem\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool.tls"],
        name: "sni",
        kind: "host name",
        default: "the server's name or address",
        text: "Another name to send and verify.",
        example: "sni = \"app.example.org\"",
        ..Key::NONE
    },
    Key {
        tables: &["pool.tls"],
        name: "verify",
        kind: "boolean",
        default: "`true`",
        text: "`false` accepts any certificate.",
        example: "verify = false",
        ..Key::NONE
    },
];
