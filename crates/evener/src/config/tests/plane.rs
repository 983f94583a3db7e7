//! The key `plane`, and what services of the XDP plane can and cannot have.

use super::*;
use evener_core::spec::{Forward, NextHop, Plane, XdpEventLevel};

const MISTAKES: &str = r#"
plane = "userspace"
    service `s`: plane must be "proxy", "xdp" or "ipvs", got "userspace"
plane = "lvs"
    service `s`: plane must be "proxy", "xdp" or "ipvs", got "lvs": write plane = "ipvs"
plane = 1
    service `s`: plane must be "proxy", "xdp" or "ipvs", got 1
plane = proxy
    `proxy` is not defined: write plane = "proxy"
plane = xdp
    service `s`: plane must be "proxy", "xdp" or "ipvs", got a function: call it with braces or parentheses: write the name in quotes
interface = "eth0"
    service `s`: interface needs plane = "xdp"
forward = "nat"
    service `s`: forward needs plane = "xdp" or "ipvs"
fwmark = 7
    service `s`: fwmark needs plane = "ipvs"
"#;

#[test]
fn other_planes_are_refused() {
    let service = |key: &str| format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", {key} }}");
    for key in ["", "plane = \"proxy\""] {
        assert_eq!(load_text(&service(key)).unwrap().spec.services[0].plane, Plane::Proxy, "{key}");
    }
    check_cases(MISTAKES, service);
}

/// Returns a service of the XDP plane, with the usual keys unless `keys` has them.
fn xdp_service(keys: &str) -> String {
    let unless = |key: &str, text: &str| if keys.contains(key) { String::new() } else { format!("{text}, ") };
    let listen = unless("listen =", "listen = \"192.0.2.1:80\"");
    let interface = unless("interface", "interface = \"eth0\"");
    let servers = unless("10.", "\"10.0.0.4:80\"");
    format!("service \"s\" {{ plane = \"xdp\", {listen}{interface}{servers}{keys} }}")
}

const XDP_MISTAKES: &str = r#"
interface = {}
    service `s`: plane = "xdp" needs the interface that the packets come from: add interface = "eth0"
interface = "a-name-that-is-too-long"
    service `s`: "a-name-that-is-too-long" is not the name of an interface: a name has 1 to 15 bytes, without spaces and `/` (`ip link` lists them)
interfaces = { "eth0", "eth0" }
    service `s`: interface `eth0` is listed twice: remove one of them
interface = "eth0", interfaces = { "eth1" }
    service `s`: interface cannot be combined with `interfaces`: remove one of them
listen = "0.0.0.0:80"
    service `s`: `0.0.0.0:80` is not one address: with plane = "xdp" write the virtual address to which clients send
listen = "192.0.2.1:0"
    service `s`: `192.0.2.1:0` has the port 0: with plane = "xdp" the system does not choose a port; write the port
listen = "/run/s.sock"
    service `s`: `/run/s.sock` is a unix socket: plane = "xdp" needs an IP address and a port
listen = "192.0.2.1"
    service `s`: `192.0.2.1` has no port: write it as 192.0.2.1:80
ports = { 80 }
    service `s`: each address of listen has a port: remove the ports there, or `ports`
listen = "192.0.2.1", ports = { 80, "70-60" }
    service `s`: ports must be a port, or a list of ports and ranges such as { 5683, "6000-6010" }, got "70-60"
listen = "192.0.2.1", ports = { 80, "79-81" }, "10.0.0.4"
    service `s`: port 80 is listed twice: remove one of them
listen = "192.0.2.1", ports = 0
    service `s`: ports must be a port, or a list of ports and ranges such as { 5683, "6000-6010" }, got 0
listen = "192.0.2.1", ports = "1-2000"
    service `s`: a service must have at most 1024 ports, got 2000
protocol = "http"
    service `s`: protocol = "http" is not available with plane = "xdp", which forwards packets: write protocol = "tcp", or plane = "proxy"
protocol = "dns"
    service `s`: protocol = "dns" is not available with plane = "xdp", which forwards packets: write protocol = "udp", or plane = "proxy"
policy = "least_conn"
    service `s`: policy = "least_conn" of pool `s` is not available with plane = "xdp", which counts no connections: write policy = "round_robin", "weighted", "hash" or "maglev", or plane = "proxy"
policy = "ewma"
    service `s`: policy = "ewma" of pool `s` is not available with plane = "xdp", which measures no latency: write policy = "round_robin", "weighted", "hash" or "maglev", or plane = "proxy"
policy = "first"
    service `s`: policy = "first" of pool `s` is not available with plane = "xdp", which does not know when a server is full: write policy = "round_robin", and tier = 2 for the other servers, or plane = "proxy"
send_proxy = "v2"
    service `s`: send_proxy of pool `s` is not available with plane = "xdp": the servers see the addresses of the clients; remove it, or plane = "proxy"
sticky = { rebalance = "1m" }
    service `s`: sticky of pool `s` is not available with plane = "xdp": clients are not moved for a balance, so remove sticky.rebalance; remove it, or plane = "proxy"
tls = {}
    service `s`: tls is not available with plane = "xdp": packets are passed on unread: let the servers end TLS, or write plane = "proxy"
routes = {}
    service `s`: routes is not available with plane = "xdp": packets are passed on unread: let the servers end TLS, or write plane = "proxy"
connections_max = 5
    service `s`: connections_max is not available with plane = "xdp": write xdp { flows = 5 }, for all services
per_client = { connections = 3 }
    service `s`: per_client is not available with plane = "xdp": write source_rate = "1000/s"
denied = "reject"
    service `s`: denied is not available with plane = "xdp": remove it: the packets of refused clients are dropped
spread = 5, protocol = "udp"
    service `s`: spread is not available with plane = "xdp": remove it, or write plane = "proxy"
{ "10.0.0.4:80", max = 5 }
    service `s`: server `10.0.0.4:80` has max or hard: plane = "xdp" does not count the flows of a server; remove it, or write plane = "proxy"
{ "10.0.0.4:80", deny = "10.0.0.9" }
    service `s`: server `10.0.0.4:80` has an access list: with plane = "xdp" only services have one; move it to the service, or write plane = "proxy"
"10.0.0.4:80", "/run/a.sock"
    service `s`: server `/run/a.sock` is a unix socket: plane = "xdp" needs IP servers
"10.0.0.4:80", "[2001:db8::4]:80"
    service `s`: server `[2001:db8::4]:80` has an IPv6 address and the service listens on 192.0.2.1:80: forward = "nat" does not change the family; declare a service for IPv4, or write forward = "ipip"
"10.0.0.4:8080", forward = "direct"
    service `s`: server `10.0.0.4:8080` has the port 8080 and the service 80: forward = "direct" does not change ports; write "10.0.0.4", without a port, or forward = "nat"
forward = "tunnel"
    service `s`: forward must be "nat", "direct", "ipip" or "gue", got "tunnel"
forward = "direct", next_hop = "sender"
    service `s`: next_hop cannot be "sender" with forward = "direct", whose packets go to the servers: remove next_hop
tunnel = { source = "192.0.2.9" }
    service `s`: tunnel needs forward = "ipip" or "gue"
forward = "ipip", tunnel = { port = 6080 }
    service `s`: tunnel.port needs forward = "gue": packets of ipip have no port
forward = "gue", tunnel = { source = "eth0" }
    service `s`: tunnel.source must be an IP address of this machine, or an IPv4 and an IPv6 address, got "eth0"
idle_timeout = "1500ms"
    service `s`: idle_timeout must be 2s or more, in whole seconds, got "1500ms"
idle_timeout = "27d"
    service `s`: idle_timeout must be 26d or less; without it, associations do not end, got "27d"
listen = "192.0.2.1", ports = { 80, 81 }, check = false, "10.0.0.4:8080"
    service `s`: server `10.0.0.4:8080` has the port 8080 and the service 80 and 81: with several ports, servers need the ports of the clients; write one service for each port, or the server without a port
source_rate = "100/m"
    service `s`: source_rate must be a number of packets a second, such as "1000/s", got "100/m"
source_rate = 1000
    service `s`: source_rate must be a rate such as "1000/s", or { rate = "1000/s" }, got 1000: write "1000/s"
source_rate = { burst = 5 }
    service `s`: source_rate has no rate: write source_rate = { rate = "1000/s" }
protocol = "udp", syn_cookies = 5
    service `s`: syn_cookies needs protocol = "tcp"
quic_id_length = 2
    service `s`: quic_id_length needs protocol = "udp"
protocol = "udp", quic_id_length = 2, { "10.0.0.4:80", quic_id = "a0" }
    service `s`: server `10.0.0.4:80` has the quic_id a0 of 1 bytes, and the service has quic_id_length = 2: change one of them
protocol = "udp", quic_id_length = 1, { "10.0.0.4:80", quic_id = "a0" }, { "10.0.0.5:80", quic_id = "a0" }
    service `s`: server `10.0.0.5:80` has the quic_id a0 of server `10.0.0.4:80`: give it another one
{ "10.0.0.4:80", quic_id = "xyz" }
    server `10.0.0.4:80`: quic_id must be 1 to 15 bytes in hexadecimal, such as "a01f", got "xyz"
listen = "192.0.2.1", ports = { 1, 2 }, check = "tcp", "10.0.0.4"
    pool `s`: the servers have no port, and the clients use several ports: write the port of the check, such as check.tcp { port = 1 }
discover = { mname = "/run/sockets" }, "10.0.0.4:80"
    service `s`: pool `s` has servers of mname, which need protocol = "dns"
"10.0.0.4:80", discover.dns "app.example" { max = 3 }
    service `s`: discover.dns app.example:0 has max or hard: plane = "xdp" does not count the flows of a server; remove it, or write plane = "proxy"
"#;

#[test]
fn what_the_xdp_plane_cannot_do_is_refused_with_the_alternative() {
    check_cases(XDP_MISTAKES, xdp_service);
}

#[test]
fn settings_of_the_xdp_plane_have_bounds_and_are_declared_once() {
    let declare = |xdp: &str| format!("{xdp} {}", xdp_service(""));
    check_cases(
        r#"
xdp { flows = 0 }
    xdp: flows must be between 1 and 67108864, got 0
xdp { mode = "driver" }
    xdp: mode must be "auto", "native" or "generic", got "driver"
xdp { events = "warn" }
    xdp: events must be "critical", "error", "warning", "info", "debug" or "trace", got "warn"
xdp { pin = "maps" }
    xdp: pin must be the absolute path of a directory in a BPF file system, got "maps": write "/sys/fs/bpf/evener"
xdp { tarpit_interfaces = "eth1" }
    xdp: tarpit_interfaces needs tarpit: add the prefixes without hosts
xdp { flow = 5 }
    xdp: unknown key `flow`; did you mean `flows`?
xdp { 5 }
    xdp: xdp has only keys, such as flows = 1048576, got 5
xdp {} xdp {}
    xdp is already declared at c.lua:1: move its keys into one table
xdp "x"
    xdp takes a table, got a string: write xdp { flows = 1048576 }
"#,
        declare,
    );
}

fn load_valid(text: &str) -> Config {
    load_text(text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

#[test]
fn a_service_of_the_xdp_plane_has_each_port_at_each_address() {
    let text = xdp_service(
        r#"protocol = "udp", listen = { "192.0.2.1", "192.0.2.2:9", "192.0.2.3" }, ports = { 5683, "6000-6001" },
           interfaces = { "eth0", "eth1" }, "10.0.0.4", "10.0.0.5", sticky = true"#,
    );
    let config = load_valid(&text);
    let service = &config.spec.services[0];
    let listen: Vec<String> = service.listen.iter().map(ToString::to_string).collect();
    assert_eq!(
        listen,
        [
            "192.0.2.1:5683",
            "192.0.2.1:6000",
            "192.0.2.1:6001",
            "192.0.2.2:9",
            "192.0.2.3:5683",
            "192.0.2.3:6000",
            "192.0.2.3:6001"
        ]
    );
    let xdp = service.xdp.as_deref().unwrap();
    assert_eq!((service.plane, xdp.forward, xdp.next_hop), (Plane::Xdp, Forward::Nat, NextHop::Route));
    assert_eq!((xdp.idle_timeout, xdp.interfaces.len()), (None, 2));
    let names: Vec<&str> = config.spec.pools[0].servers.iter().map(|server| &*server.name).collect();
    assert_eq!(names, ["10.0.0.4", "10.0.0.5"]);
    assert!(config.spec.pools[0].servers[0].endpoint.lacks_port());
}

#[test]
fn the_name_of_a_service_can_be_its_virtual_address() {
    let config = load_valid(r#"service "192.0.2.1:80" { plane = "xdp", interface = "eth0", "10.0.0.4" }"#);
    assert_eq!(config.spec.services[0].listen, ["192.0.2.1:80".parse().unwrap()]);
}

#[test]
fn a_check_of_servers_without_a_port_uses_the_port_of_the_service() {
    let port = |keys: &str| load_valid(&xdp_service(keys)).spec.pools[0].check.as_ref().unwrap().port;
    assert_eq!(port("\"10.0.0.4\", check = \"tcp\""), Some(80));
    assert_eq!(port("\"10.0.0.4\", check = check.tcp { port = 22 }"), Some(22));
    assert_eq!(port("\"10.0.0.4:8080\", check = \"tcp\""), None);
    assert_eq!(port("discover.file \"10.txt\", check = \"tcp\""), Some(80));
}

#[test]
fn only_servers_of_the_xdp_plane_may_have_no_port() {
    check_problems(
        "service \"s\" { listen = \"127.0.0.1:1\", \"10.0.0.4\" }",
        &["c.lua:1: service `s`: `10.0.0.4` has no port: write it as 10.0.0.4:80"],
    );
    let shared = "pool \"p\" { \"10.0.0.4\" }
        service \"x\" { plane = \"xdp\", interface = \"eth0\", listen = \"192.0.2.1:80\", pool = \"p\", }
        service \"s\" { listen = \"127.0.0.1:1\", pool = \"p\" }";
    check_problems(
        shared,
        &[
            "c.lua:1: pool `p`: server `10.0.0.4` has no port, which only plane = \"xdp\" and \"ipvs\" allow, and service `s` uses the pool, too: write the port",
        ],
    );
}

#[test]
fn the_addresses_of_xdp_services_differ_and_a_proxy_may_have_the_same() {
    let service = |name: &str, keys: &str| {
        format!(
            "service \"{name}\" {{ listen = \"192.0.2.1:80\", \"10.0.0.4:80\", check = \"tcp\", {keys} }}\n"
        )
    };
    let xdp = "plane = \"xdp\", interface = \"eth0\"";
    check_problems(
        &(service("a", xdp) + &service("b", xdp)),
        &["c.lua:2: service `b` listens on 192.0.2.1:80, and so does service `a`: change one of them"],
    );
    let config = load_valid(&(service("a", xdp) + &service("b", "")));
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("service `a`: service `b` listens on 192.0.2.1:80, too"), "{warnings:?}");
}

#[test]
fn with_nat_a_server_responds_behind_a_bounded_number_of_virtual_addresses() {
    let services = |count: usize, forward: &str| {
        let listen: Vec<String> = (1..=count).map(|at| format!("\"192.0.2.{at}:80\"")).collect();
        xdp_service(&format!("listen = {{ {} }}, \"10.0.0.4\", forward = \"{forward}\"", listen.join(", ")))
    };
    assert!(load_text(&services(8, "nat")).is_ok());
    assert!(load_text(&services(9, "direct")).is_ok());
    check_problems(
        &services(9, "nat"),
        &[
            "c.lua:1: service `s`: with forward = \"nat\" a server can respond behind 8 virtual addresses, and 10.0.0.4:80 has 9: ",
        ],
    );
}

#[test]
fn settings_without_effect_in_the_xdp_plane_have_a_warning() {
    let check = |keys: &str, expected: &str| {
        let config = load_valid(&xdp_service(keys));
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), usize::from(!expected.is_empty()), "{keys}: {warnings:?}");
        assert!(warnings.concat().contains(expected), "{keys}: {warnings:?}");
    };
    check("check = \"tcp\"", "");
    check("protocol = \"udp\"", "");
    check("", "pool `s` has no check, and plane = \"xdp\" does not see failed connections");
    check("check = \"tcp\", queue = { size = 5 }", "queue of pool `s` has no effect with plane = \"xdp\"");
    check("check = \"tcp\", queue = false, passive = false", "");
    check("check = \"tcp\", passive = {}", "passive of pool `s` has no effect with plane = \"xdp\"");
    check("check = \"tcp\", sticky = { size = 5 }", "sticky.size has no effect with plane = \"xdp\"");
    check("check = \"tcp\", sticky = { ttl = \"5m\" }", "sticky.ttl has no effect with plane = \"xdp\"");
    check("protocol = \"udp\", quic_id_length = 2", "quic_id_length has no effect: no server has a quic_id");
}

#[test]
fn the_keys_of_the_plane_are_read() {
    let text = format!(
        "xdp {{ flows = 5, mode = \"generic\", pin = \"/run/bpf\", events = \"debug\", events_per_second = 7, tarpit = \"192.0.2.128/25\" }} {}",
        xdp_service(
            r#"forward = "gue", tunnel = { source = { "192.0.2.9", "2001:db8::9" }, port = 7 }, idle_timeout = "1h",
               source_rate = { rate = "1000/s", burst = 5, v4 = 24, v6 = 48 }, syn_cookies = 100"#
        )
    );
    let spec = load_valid(&text).spec;
    assert_eq!((spec.xdp.flows, spec.xdp.events, spec.xdp.events_per_second), (5, XdpEventLevel::Debug, 7));
    let xdp = spec.services[0].xdp.as_deref().unwrap();
    let (source, port) = xdp.forward.tunnel().unwrap();
    assert!(source.v4.is_some() && source.v6.is_some() && port == Some(7));
    assert_eq!((xdp.idle_timeout, xdp.syn_cookies), (Some(Duration::from_secs(3600)), Some(100)));
    let rate = xdp.rate.unwrap();
    assert_eq!((rate.packets_per_second, rate.burst, rate.prefix_v4, rate.prefix_v6), (1000, 5, 24, 48));
}
