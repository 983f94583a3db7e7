//! Keys of servers and of sources of servers.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["server"],
        name: "name",
        kind: "text",
        default: "the address",
        text: "Its identity across reloads. If a reload changes the address, the log says so, the \
               verdict starts anew, and its clients, flows and requests go to the new address; \
               relayed TCP connections stay at the old one until they end.",
        example: "name = \"app-1\"",
        ..Key::NONE
    },
    Key {
        tables: &["server", "discover.dns", "discover.file"],
        name: "weight",
        kind: "0 to 65535",
        default: "1",
        text: "Its share of the clients. A server with weight 0 gets no new clients.",
        example: "weight = 2",
        ..Key::NONE
    },
    Key {
        tables: &["server"],
        name: "mname",
        protocols: &["dns"],
        kind: "boolean",
        default: "`false`",
        text: "The server uses the frames of mname-balancer; its address is a unix socket.",
        example: "mname = true",
        section: "#servers-of-mname-balancer",
        ..Key::NONE
    },
    Key {
        tables: &["server", "discover.dns", "discover.file"],
        name: "tier",
        kind: "1 to 255",
        default: "1",
        text: "Used only if no server of a lower number is usable: a backup server has tier 2.",
        example: "tier = 2",
        ..Key::NONE
    },
    Key {
        tables: &["server", "discover.dns", "discover.file", "discover.srv"],
        name: "max",
        kind: "1 and up",
        default: "none",
        text: "Number of connections (flows) at which new clients go to other servers. Clients that \
               the sticky table sends to this server may exceed it.",
        example: "max = 100",
        ..Key::NONE
    },
    Key {
        tables: &["server", "discover.dns", "discover.file", "discover.srv"],
        name: "hard",
        kind: "1 and up",
        default: "none",
        text: "Number of connections (flows) that is never exceeded.",
        example: "hard = 120",
        ..Key::NONE
    },
    Key {
        tables: &["server"],
        name: "state",
        kind: "`\"ready\"`, `\"drain\"`, `\"maintenance\"`",
        default: "`\"ready\"`",
        text: "`\"drain\"`: only its former clients; `\"maintenance\"`: no clients. A command \
               overrides this key until a reload changes its value.",
        example: "state = \"drain\"",
        ..Key::NONE
    },
    Key {
        tables: &["discover.file"],
        name: "port",
        kind: "1 to 65535",
        default: "none",
        text: "Port of the addresses in the file that have none.",
        example: "port = 80",
        ..Key::NONE
    },
];
