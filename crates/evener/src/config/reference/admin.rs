//! Keys of the admin API.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["admin"],
        name: "listen",
        kind: "address",
        default: "none",
        text: "Address of the API over TCP, beside the admin socket. It needs `token_file`, and `tls` unless it is \
               a loopback address.",
        example: "listen = \"127.0.0.1:9900\", token_file = \"/etc/evener/tokens\"",
        section: "#the-admin-api",
        ..Key::NONE
    },
    Key {
        tables: &["admin"],
        name: "token_file",
        kind: "path",
        default: "none",
        text: "File with a line `NAME TOKEN` for each client. Only its owner and group may read it.",
        example: "listen = \"127.0.0.1:9900\", token_file = \"/etc/evener/tokens\"",
        ..Key::NONE
    },
    Key {
        tables: &["admin"],
        name: "tls",
        kind: "path or table",
        default: "none",
        text: "Certificate of the API over TCP: a PEM file, or the table below.",
        example: "listen = \"192.0.2.1:9900\", token_file = \"/etc/evener/tokens\", tls = \"/etc/evener/api.pem\"",
        ..Key::NONE
    },
    Key {
        tables: &["admin.tls"],
        name: "certificate",
        kind: "path",
        text: "PEM file with the certificate and its chain.",
        example: "certificate = \"/etc/evener/api.crt\"",
        ..Key::NONE
    },
    Key {
        tables: &["admin.tls"],
        name: "key",
        kind: "path",
        default: "the certificate's file",
        text: "PEM file with the private key.",
        example: "certificate = \"/etc/evener/api.crt\", key = \"/etc/evener/api.key\"",
        ..Key::NONE
    },
    Key {
        tables: &["admin"],
        name: "hosts",
        kind: "text or list",
        default: "none",
        text: "Host names by which clients address the API, beside its address. Requests for other names get 421.",
        example: "listen = \"127.0.0.1:9900\", token_file = \"/etc/evener/tokens\", hosts = \"lb.example.org\"",
        ..Key::NONE
    },
    Key {
        tables: &["admin"],
        name: "state_file",
        kind: "path or false",
        default: "in the state directory",
        text: "File of the changes that operators made, which survive a restart with it.",
        example: "state_file = \"/var/lib/evener/www.json\"",
        ..Key::NONE
    },
];
