//! Keys of the IPVS plane: the table `ipvs`, and keys of the services that the plane serves.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["service"],
        name: "fwmark",
        plane: "ipvs",
        kind: "1 and up",
        default: "none",
        text: "Firewall mark of the packets of the service, which nftables sets, instead of listen \
               addresses.",
        example: "fwmark = 7",
        section: "#the-ipvs-plane",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "scheduler",
        plane: "ipvs",
        kind: "name",
        default: "by the policy",
        text: "Scheduler of the kernel, such as `\"sed\"`. Without it, the policy of the pool chooses: \
               `round_robin` is `rr`, `weighted` is `wrr`, `least_conn` is `wlc`, `hash` is `sh`, \
               `maglev` is `mh`.",
        example: "scheduler = \"sed\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "scheduler_flags",
        plane: "ipvs",
        kind: "`\"fallback\"`, `\"port\"`, or a list",
        default: "none",
        text: "Options of the schedulers `sh` and `mh`: another server if the client's server is not \
               available, and the client's port as part of the hash.",
        example: "scheduler_flags = { \"fallback\", \"port\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "one_packet",
        protocols: &["udp"],
        plane: "ipvs",
        kind: "true or false",
        default: "`false`",
        text: "Each datagram gets a server of its own. Needs `forward = \"direct\"` or a tunnel.",
        example: "one_packet = true, forward = \"direct\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "persistence",
        plane: "ipvs",
        kind: "duration or table",
        default: "none",
        text: "Clients keep their server until they have had no connection for this time.",
        example: "persistence = \"5min\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.persistence"],
        name: "timeout",
        kind: "duration",
        default: "5min",
        text: "Time without a connection after which a client may get another server.",
        example: "timeout = \"10min\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.persistence"],
        name: "v4",
        kind: "1 to 32",
        default: "32",
        text: "Length of the IPv4 prefixes that count as one client.",
        example: "v4 = 24",
        ..Key::NONE
    },
    Key {
        tables: &["service.persistence"],
        name: "v6",
        kind: "1 to 128",
        default: "128",
        text: "Length of the IPv6 prefixes that count as one client.",
        example: "v6 = 64",
        ..Key::NONE
    },
    Key {
        tables: &["service.persistence"],
        name: "engine",
        protocols: &["udp"],
        kind: "`\"sip\"`",
        default: "none",
        text: "Engine that recognizes clients by their packets: `\"sip\"` by the Call-ID.",
        example: "engine = \"sip\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "address_on",
        plane: "ipvs",
        kind: "name",
        default: "none",
        text: "Interface that gets the listen addresses while servers are available, for routing \
               daemons and VRRP to announce. They are removed when no server is available or the pool is \
               below its `quorum`.",
        example: "address_on = \"lo\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "drain_timeout",
        plane: "ipvs",
        kind: "duration",
        default: "15min",
        text: "Maximum time for which a removed server keeps its connections.",
        example: "drain_timeout = \"1min\"",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs"],
        name: "own_table",
        kind: "true or false",
        default: "`false`",
        text: "The table of the kernel belongs to this configuration: services and servers that \
               another program adds are removed.",
        example: "own_table = true",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs"],
        name: "sync",
        kind: "table",
        default: "none",
        text: "Synchronization of connections with other machines.",
        example: "sync = { role = \"master\", interface = \"eth0\" }",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs.sync"],
        name: "role",
        kind: "`\"master\"`, `\"backup\"`, `\"both\"`",
        text: "Direction: connections are sent, received, or both.",
        example: "role = \"master\", interface = \"eth0\"",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs.sync"],
        name: "interface",
        kind: "name",
        text: "Interface of the messages.",
        example: "interface = \"eth0\", role = \"backup\"",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs.sync"],
        name: "id",
        kind: "0 to 255",
        default: "0",
        text: "Identity of the group of machines.",
        example: "id = 7, role = \"both\", interface = \"eth0\"",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs"],
        name: "timeouts",
        kind: "table",
        default: "of the kernel",
        text: "Lifetimes of idle connections, for all services of the kernel's table.",
        example: "timeouts = { tcp = \"15min\", tcp_fin = \"2min\", udp = \"5min\" }",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs.timeouts"],
        name: "tcp",
        kind: "duration",
        default: "of the kernel",
        text: "Of established TCP connections.",
        example: "tcp = \"15min\"",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs.timeouts"],
        name: "tcp_fin",
        kind: "duration",
        default: "of the kernel",
        text: "Of TCP connections that a side closed.",
        example: "tcp_fin = \"2min\"",
        ..Key::NONE
    },
    Key {
        tables: &["ipvs.timeouts"],
        name: "udp",
        kind: "duration",
        default: "of the kernel",
        text: "Of UDP flows.",
        example: "udp = \"5min\"",
        ..Key::NONE
    },
];
