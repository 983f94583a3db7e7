//! Services of the IPVS plane: what they have, and what the plane cannot do.

use super::*;
use evener_core::spec::{IpvsForward, IpvsScheduler, IpvsSyncRole, IpvsTransport, Plane, ServiceSpec};
use std::time::Duration;

/// Returns a service of the IPVS plane, with the usual keys unless `keys` has them.
fn ipvs_service(keys: &str) -> String {
    let unless = |key: &str, text: &str| if keys.contains(key) { String::new() } else { format!("{text}, ") };
    let listen = if keys.contains("fwmark = 1") {
        String::new()
    } else {
        unless("listen =", "listen = \"192.0.2.1:80\"")
    };
    let servers = unless("10.", "\"10.0.0.4:80\"");
    format!("service \"s\" {{ plane = \"ipvs\", {listen}{servers}{keys} }}")
}

fn load_service(keys: &str) -> ServiceSpec {
    let config = load_text(&ipvs_service(keys)).unwrap();
    config.spec.services[0].clone()
}

const MISTAKES: &str = r#"
scheduler = "wllc"
    service `s`: scheduler must be "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh" or "twos", got "wllc"; did you mean "wlc"?
forward = "dr"
    service `s`: forward must be "nat", "direct", "ipip", "gue" or "gre", got "dr": write forward = "direct"
forward = "tunnel"
    service `s`: forward must be "nat", "direct", "ipip", "gue" or "gre", got "tunnel": write forward = "ipip"
tunnel = { port = 5 }
    service `s`: tunnel needs forward = "gue"
protocol = "http"
    service `s`: protocol = "http" is not available with plane = "ipvs", which forwards packets: write protocol = "tcp", or plane = "proxy"
protocol = "icmp"
    service `s`: protocol must be "tcp", "udp" or "sctp", got "icmp"
listen = "0.0.0.0:80"
    service `s`: `0.0.0.0:80` is not one address: with plane = "ipvs" write the virtual address to which clients send
listen = "192.0.2.1"
    service `s`: 192.0.2.1 has no port, which means every port and needs persistence: write a port, or add persistence = "5min"
    service `s`: server `10.0.0.4:80` has the port 80, and the service has every port: write "10.0.0.4", without a port
listen = "192.0.2.1:80", fwmark = 7
    service `s`: listen cannot be combined with fwmark: remove one of them
    service `s`: server `10.0.0.4:80` has the port 80, and the service has every port: write "10.0.0.4", without a port
fwmark = 0
    service `s`: fwmark must be between 1 and 4294967295, got 0
fwmark = 1, address_on = "lo", "10.0.0.4"
    service `s`: address_on needs listen addresses, and a service with fwmark has none: remove it
one_packet = true
    service `s`: one_packet needs protocol = "udp"
    service `s`: one_packet loses the responses with forward = "nat": write forward = "direct"
persistence = "1ms"
    service `s`: persistence must be between 1s and 31days, in whole seconds, got "1ms"
persistence = { engine = "sip" }
    service `s`: persistence.engine = "sip" needs protocol = "udp"
forward = "direct", "10.0.0.4:81"
    service `s`: server `10.0.0.4:81` has the port 81 and the service 80: forward = "direct" does not change ports; write "10.0.0.4", without a port, or forward = "nat"
"[2001:db8::10.0.0.4]:80"
    service `s`: server `[2001:db8::a00:4]:80` has an IPv6 address and the service listens on 192.0.2.1:80: forward = "nat" does not change the family; declare a service for IPv4, or write forward = "ipip"
"/run/10.sock"
    service `s`: server `/run/10.sock` is a unix socket: plane = "ipvs" needs IP servers
sticky = true
    service `s`: sticky of pool `s` is not available with plane = "ipvs": write persistence = "5min" in the service, or plane = "proxy"
policy = "first"
    service `s`: policy = "first" of pool `s` is not available with plane = "ipvs", whose servers have no order: write scheduler = "fo" and give the first server the highest weight, or plane = "proxy"
policy = "p2c"
    service `s`: policy = "p2c" of pool `s` is not available with plane = "ipvs", which has no policy of this name: write scheduler = "twos", or policy = "least_conn", or plane = "proxy"
policy = "weighted", scheduler = "sed"
    service `s`: policy = "weighted" of pool `s` has no effect with scheduler = "sed": remove one of them, or plane = "proxy"
tls = { certificate = "a.pem" }
    service `s`: tls is not available with plane = "ipvs": packets are passed on unread: let the servers end TLS, or write plane = "proxy"
deny = "192.0.2.0/24"
    service `s`: deny is not available with plane = "ipvs", which has no access lists: use nftables, or write plane = "xdp"
interface = "eth0"
    service `s`: interface needs plane = "xdp"
"#;

#[test]
fn what_the_ipvs_plane_cannot_do_is_refused_with_the_alternative() {
    check_cases(MISTAKES, ipvs_service);
}

#[test]
fn settings_of_the_ipvs_plane_are_declared_once() {
    let declare = |ipvs: &str| format!("{ipvs} {}", ipvs_service(""));
    check_cases(
        r#"
ipvs { own = true }
    ipvs: unknown key `own`; see `evener help ipvs`
ipvs { 5 }
    ipvs: ipvs has only keys, such as own_table = true, got 5
ipvs { sync = { interface = "eth0" } }
    ipvs: sync has no role: add role = "master"
ipvs { timeouts = { tcp = "1ms" } }
    ipvs: timeouts.tcp must be between 1s and 24days, in whole seconds, got "1ms"
ipvs {} ipvs {}
    ipvs is already declared at c.lua:1: move its keys into one table
"#,
        declare,
    );
}

#[test]
fn a_service_has_the_settings_of_its_keys() {
    let service = load_service(
        "protocol = \"sctp\", forward = \"gue\", tunnel = { port = 7 }, scheduler = \"mh\", scheduler_flags = \"port\", persistence = \"10min\"",
    );
    let ipvs = service.ipvs.as_deref().unwrap();
    assert_eq!(
        (service.plane, ipvs.transport, ipvs.forward),
        (Plane::Ipvs, IpvsTransport::Sctp, IpvsForward::Gue(7))
    );
    assert_eq!(ipvs.scheduler.map(IpvsScheduler::name), Some("mh"));
    assert!(ipvs.scheduler_flags.port && !ipvs.scheduler_flags.fallback);
    assert_eq!(ipvs.persistence.as_ref().unwrap().timeout, Duration::from_secs(600));
    let whole = load_service("listen = \"192.0.2.1\", persistence = true, \"10.0.0.4\"");
    assert!(whole.listen[0].lacks_port());
    let config = load_text(&format!(
        "ipvs {{ own_table = true, sync = {{ role = \"both\", interface = \"eth0\", id = 3 }} }} {}",
        ipvs_service("")
    ))
    .unwrap();
    let sync = config.spec.ipvs.sync.unwrap();
    assert!(config.spec.ipvs.own_table);
    assert_eq!((sync.role, &*sync.interface, sync.id), (IpvsSyncRole::Both, "eth0", 3));
}

#[test]
fn services_of_sctp_and_tcp_can_have_the_same_address() {
    let service = |name: &str, protocol: &str| {
        format!(
            "service \"{name}\" {{ listen = \"192.0.2.1:80\", plane = \"ipvs\", protocol = \"{protocol}\", \"10.0.0.4:80\" }} "
        )
    };
    load_text(&(service("a", "tcp") + &service("b", "sctp") + &service("c", "udp"))).unwrap();
    check_problems(
        &(service("a", "sctp") + &service("b", "sctp")),
        &["c.lua:1: service `b` listens on 192.0.2.1:80, and so does service `a`: change one of them"],
    );
}

#[test]
fn weights_are_no_mistake_if_a_scheduler_of_the_kernel_chooses() {
    let warnings = |key: &str| {
        let text = format!(
            "service \"s\" {{ plane = \"ipvs\", listen = \"192.0.2.1:80\", check = \"tcp\", {key} \
             {{ \"10.0.0.1:80\", weight = 2 }}, \"10.0.0.2:80\" }}"
        );
        let config = load_text(&text).unwrap();
        config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert!(warnings("").iter().any(|warning| warning.contains("different weights")));
    assert_eq!(warnings("scheduler = \"wlc\","), Vec::<String>::new());
}

#[test]
fn a_pool_is_in_one_plane_of_the_kernel() {
    let text = "pool \"p\" { \"10.0.0.1\", check = check.tcp { port = 80 } }
        service \"a\" { plane = \"ipvs\", listen = \"192.0.2.1:80\", forward = \"direct\", pool = \"p\" }
        service \"b\" { plane = \"xdp\", interface = \"eth0\", listen = \"192.0.2.2:80\", pool = \"p\" }";
    let problems = load_text(text).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "c.lua:2: service `a`: plane = \"ipvs\" shares pool `p` with service `b` in plane = \"xdp\", whose counters would mix: write a pool for each"
    );
}
