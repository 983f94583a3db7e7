//! Keys of the XDP plane: the table `xdp`, and keys of the services that the plane serves.

use super::Key;

pub(super) const KEYS: &[Key] = &[
    Key {
        tables: &["service"],
        name: "interface",
        plane: "xdp",
        kind: "name or list",
        text: "The network interface that the packets come from. With NAT the packets of the servers \
               come from it, too.",
        example: "interface = \"eth0\"",
        section: "#the-xdp-plane",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "interfaces",
        plane: "xdp",
        kind: "list of names",
        text: "Another name of `interface`: the interfaces of clients and, with NAT, of servers.",
        example: "interfaces = { \"eth0\", \"eth1\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "ports",
        plane: "xdp",
        kind: "port or list",
        default: "none",
        text: "Ports of the addresses of `listen` that have none: numbers, and ranges such as \
               `\"6000-6010\"`.",
        example: "ports = { 5683, 5684 }, listen = \"192.0.2.1\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "forward",
        plane: "xdp",
        kind: "`\"nat\"`, `\"direct\"`, `\"ipip\"`, `\"gue\"`, `\"gre\"`",
        default: "`\"nat\"`",
        text: "The way to the servers: NAT replaces the destination address, and responses pass the \
               balancer. With the others the servers have the virtual address and respond to the \
               client themselves; they get packets on their network (`\"direct\"`), or through a tunnel (`\"gre\"` with \
               `plane = \"ipvs\"` only).",
        example: "forward = \"direct\"",
        section: "#ways-to-the-servers",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "next_hop",
        plane: "xdp",
        kind: "`\"route\"`, `\"sender\"`",
        default: "`\"route\"`",
        text: "Next hop of packets: by the routing table, or the host that the packet came from \
               (a router that knows the way to servers and clients).",
        example: "next_hop = \"sender\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "tunnel",
        plane: "xdp",
        kind: "table",
        default: "none",
        text: "The tunnel of `forward = \"ipip\"` and `\"gue\"`.",
        example: "forward = \"gue\", tunnel = { source = \"192.0.2.9\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service.tunnel"],
        name: "source",
        kind: "IP address or list",
        default: "an address of the interface",
        text: "Source address of the tunnel: one, or one of each family.",
        example: "source = { \"192.0.2.9\", \"2001:db8::9\" }",
        ..Key::NONE
    },
    Key {
        tables: &["service.tunnel"],
        name: "port",
        kind: "1 to 65535",
        default: "6080",
        text: "Port to which the packets of `\"gue\"` are sent.",
        example: "port = 6080",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "source_rate",
        plane: "xdp",
        kind: "rate or table",
        default: "none",
        text: "Limit of the packets of each source address or network. Packets above it are dropped.",
        example: "source_rate = \"1000/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.source_rate"],
        name: "rate",
        kind: "rate",
        text: "Number of packets a second.",
        example: "rate = \"1000/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.source_rate"],
        name: "burst",
        kind: "1 and up",
        default: "packets of one second",
        text: "Number of packets that may come at the same time after a pause.",
        example: "burst = 2000, rate = \"1000/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.source_rate"],
        name: "v4",
        kind: "1 to 32",
        default: "32",
        text: "Length of the IPv4 prefixes that are limited.",
        example: "v4 = 24, rate = \"1000/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service.source_rate"],
        name: "v6",
        kind: "1 to 128",
        default: "64",
        text: "Length of the IPv6 prefixes that are limited.",
        example: "v6 = 56, rate = \"1000/s\"",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "syn_cookies",
        protocols: &["tcp"],
        plane: "xdp",
        kind: "1 and up",
        default: "none",
        text: "Number of new connections a second, for each core, above which clients must prove their \
               address by a SYN cookie.",
        example: "syn_cookies = 10000",
        ..Key::NONE
    },
    Key {
        tables: &["service"],
        name: "quic_id_length",
        protocols: &["udp"],
        plane: "xdp",
        kind: "1 to 15",
        default: "none",
        text: "Length of the `quic_id` in the connection IDs of QUIC, in bytes. A client that changes \
               its address keeps its server.",
        example: "quic_id_length = 2",
        ..Key::NONE
    },
    Key {
        tables: &["server"],
        name: "quic_id",
        kind: "text",
        default: "none",
        text: "The server in connection IDs of QUIC, as hexadecimal digits, for services with \
               `quic_id_length`.",
        example: "quic_id = \"a01f\"",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "flows",
        kind: "1 to 67108864",
        default: "1048576",
        text: "Maximum number of associations of clients with servers, for IPv4 and for IPv6. A full \
               table replaces those that are unused the longest.",
        example: "flows = 4000000",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "mode",
        kind: "`\"auto\"`, `\"native\"`, `\"generic\"`",
        default: "`\"auto\"`",
        text: "The place of the program: the driver of the interface (`\"native\"`), the network stack \
               (`\"generic\"`), or the driver if it can.",
        example: "mode = \"native\"",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "pin",
        kind: "path",
        default: "`\"/sys/fs/bpf/evener\"`",
        text: "Directory in a BPF file system that keeps the program and its associations while \
               Evener is not running.",
        example: "pin = \"/sys/fs/bpf/evener\"",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "events",
        kind: "`\"critical\"`, `\"error\"`, `\"warning\"`, `\"info\"`, `\"debug\"`, `\"trace\"`",
        default: "`\"error\"`",
        text: "Decisions about packets are logged up to this level: no server (`\"error\"`), malformed \
               packets (`\"warning\"`), refused packets of servers (`\"info\"`), associations \
               (`\"debug\"`), packets for others (`\"trace\"`).",
        example: "events = \"info\"",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "events_per_second",
        kind: "1 and up",
        default: "1000",
        text: "Maximum number of logged decisions a second, for each core.",
        example: "events_per_second = 100",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "tarpit",
        kind: "prefix or list",
        default: "none",
        text: "Addresses without a host. The plane responds for them, so that scanners lose time.",
        example: "tarpit = \"192.0.2.128/25\"",
        ..Key::NONE
    },
    Key {
        tables: &["xdp"],
        name: "tarpit_interfaces",
        kind: "name or list",
        default: "none",
        text: "Interfaces of the tarpit, besides the interfaces of services.",
        example: "tarpit_interfaces = \"eth1\", tarpit = \"192.0.2.128/25\"",
        ..Key::NONE
    },
];
