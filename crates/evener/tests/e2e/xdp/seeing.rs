//! Events of decisions about packets in the XDP plane, and captures of packets.

use crate::harness::xdp::{CLIENT_V4, Echo, UdpClient, VIP_V4, XdpNetwork, server_v4};
use crate::harness::{Evener, have, wait_until};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const PORT: u16 = 5683;

/// A pin directory, which is removed at the end.
struct Pin(PathBuf);

impl Drop for Pin {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Pin {
    fn new(name: &str) -> Self {
        Self(format!("/sys/fs/bpf/evener-test-{name}-{}", std::process::id()).into())
    }

    fn config(&self, events: &str) -> String {
        format!(
            "xdp {{ flows = 4096, pin = \"{}\", events = \"{events}\" }}\n\
             pool \"p\" {{ \"{}:{PORT}\" }}\n\
             service \"coap\" {{ plane = \"xdp\", interface = \"eth0\", protocol = \"udp\", \
             listen = {{ \"{VIP_V4}:{PORT}\" }}, pool = \"p\" }}\n",
            self.0.display(),
            server_v4(11)
        )
    }
}

fn service() -> SocketAddr {
    SocketAddr::new(VIP_V4, PORT)
}

#[test]
fn decisions_are_events_up_to_the_configured_level() {
    let Some(network) = XdpNetwork::new() else { return };
    let _server = Echo::udp(network.servers(), &[server_v4(11)], &[PORT]);
    let pin = Pin::new("events");
    let evener = network.evener(&pin.config("error"));
    let client = UdpClient::bind(network.client(), CLIENT_V4, 0);
    client.ask_until_reply(service());
    assert!(evener.run_command(&["maintenance", &format!("p/{}:{PORT}", server_v4(11))]).status.success());
    wait_until("the event of a packet without a server", || {
        client.send(service(), b"x");
        let line = "packet_decision decision=dropped reason=no_server service=coap protocol=udp";
        let source = format!("source={}", client.address());
        let log = evener.log();
        log.lines()
            .any(|one| one.contains(line) && one.contains(&source) && one.contains("error"))
            .then_some(())
    });
    assert_eq!(evener.log_count("decision=flow_"), 0, "associations are at the level debug");
    let events = String::from_utf8(evener.run_command(&["events"]).stdout).unwrap();
    assert!(events.contains("packet_decision"), "{events}");
}

/// Starts a capture of the service.
fn capture(evener: &Evener, network: &XdpNetwork, pin: &Pin, file: &Path, options: &[&str]) -> Child {
    let mut command: Command = network.evener_command();
    command.args(["capture", "coap", "--pin"]).arg(&pin.0).arg("--write").arg(file).args(options);
    command.env("EVENER_SOCKET", evener.admin_socket());
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    // The file begins when the capture has begun.
    wait_until("the capture", || std::fs::metadata(file).is_ok_and(|file| file.len() > 0).then_some(()));
    child
}

/// Returns the fields of the packets of a file, as tshark reads it.
fn fields(file: &Path) -> Vec<String> {
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(file).args(["-T", "fields", "-E", "separator= "]);
    for field in ["frame.interface_name", "ip.src", "ip.dst", "ip.checksum.status", "udp.checksum.status"] {
        tshark.args(["-e", field]);
    }
    let output =
        tshark.args(["-e", "frame.comment", "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]);
    let output = output.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !printed.contains("cut short"), "{printed}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_capture_has_packets_before_and_after_rewriting() {
    let Some(network) = XdpNetwork::new() else { return };
    if !have("tshark") {
        return;
    }
    let _server = Echo::udp(network.servers(), &[server_v4(11)], &[PORT]);
    let pin = Pin::new("capture");
    let evener = network.evener(&pin.config("error"));
    let client = UdpClient::bind(network.client(), CLIENT_V4, 0);
    client.ask_until_reply(service());
    let file = evener.file("packets.pcapng");
    let mut running = capture(&evener, &network, &pin, &file, &["--count", "2"]);
    client.ask(service(), b"captured");
    assert!(running.wait().unwrap().success());
    // 1: the checksum is valid.
    let (client, vip, server) = (CLIENT_V4, VIP_V4, server_v4(11));
    let comment = format!("service=coap action=tx server={server}");
    let expected = [
        format!("before {client} {vip} 1 1 {comment}"),
        format!("after {client} {server} 1 1 {comment}"),
        format!("before {server} {client} 1 1 {comment}"),
        format!("after {vip} {client} 1 1 {comment}"),
    ];
    assert_eq!(fields(&file), expected);
}

#[test]
fn the_kernel_ends_a_capture_whose_process_was_killed() {
    let Some(network) = XdpNetwork::new() else { return };
    let _server = Echo::udp(network.servers(), &[server_v4(11)], &[PORT]);
    let pin = Pin::new("killed");
    let evener = network.evener(&pin.config("error"));
    let client = UdpClient::bind(network.client(), CLIENT_V4, 0);
    client.ask_until_reply(service());
    let (file, next) = (evener.file("killed.pcapng"), evener.file("next.pcapng"));
    let mut running = capture(&evener, &network, &pin, &file, &[]);
    let mut second = network.evener_command();
    second.args(["capture", &service().to_string(), "--pin"]).arg(&pin.0).args(["--count", "1", "--write"]);
    let refused = second.arg(&next).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && message.contains("captures already"), "{message}");
    running.kill().unwrap();
    running.wait().unwrap();
    // Another capture can begin when the time limit of the killed one has passed.
    let mut running = wait_until("the end of the killed capture", || {
        let mut next_capture = network.evener_command();
        next_capture.args(["capture", &service().to_string(), "--pin"]).arg(&pin.0);
        let mut child = next_capture.args(["--count", "1", "--write"]).arg(&next).spawn().unwrap();
        let begun = wait_until("a capture", || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            std::fs::metadata(&next).is_ok_and(|file| file.len() > 0).then_some(true)
        });
        begun.then_some(child)
    });
    client.ask(service(), b"captured");
    assert!(running.wait().unwrap().success());
}

#[test]
fn associations_are_counted_listed_and_explained() {
    let Some(network) = XdpNetwork::new() else { return };
    let _server = Echo::udp(network.servers(), &[server_v4(11), server_v4(12)], &[PORT]);
    let pin = Pin::new("associations");
    let pool = format!("pool \"p\" {{ \"{}:{PORT}\", \"{}:{PORT}\" }}\n", server_v4(11), server_v4(12));
    let service = format!(
        "service \"coap\" {{ plane = \"xdp\", interface = \"eth0\", protocol = \"udp\", pool = \"p\", \
         idle_timeout = \"60s\", listen = {{ \"{VIP_V4}:{PORT}\" }} }}\n"
    );
    let config = format!("xdp {{ flows = 4096, pin = \"{}\" }}\n{pool}{service}", pin.0.display());
    let evener = network.evener(&config);
    let clients: Vec<UdpClient> = (0..4).map(|_| UdpClient::bind(network.client(), CLIENT_V4, 0)).collect();
    clients.iter().for_each(|client| drop(client.ask_until_reply(self::service())));
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = evener.run_command(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let listed = json(&["connections", "coap", "--limit", "3"]);
    assert_eq!(listed["associations_total"], 4, "{listed}");
    let associations = listed["associations"].as_array().unwrap();
    assert_eq!(associations.len(), 3, "the list is bounded: {listed}");
    for association in associations {
        assert_eq!(association["client"], CLIENT_V4.to_string());
        assert_eq!(association["pool"], "p");
        assert_eq!(association["virtual_address"], VIP_V4.to_string());
        assert!(association["idle_s"].as_f64().is_some_and(|idle| idle < 60.0), "{association}");
    }
    // Each processor gives its clients to the servers in turn.
    let of_servers = [11, 12].map(|number| {
        let listed = json(&["connections", "--server", &format!("p/{}:{PORT}", server_v4(number))]);
        listed["associations_total"].as_u64().unwrap()
    });
    assert_eq!(of_servers.iter().sum::<u64>(), 4, "{of_servers:?}");
    let other = json(&["connections", "--client", "10.0.1.3"]);
    assert_eq!(other["associations_total"], 0, "{other}");
    let explained = json(&["explain", "coap", &CLIENT_V4.to_string()]);
    let codes: Vec<&str> =
        explained["note_codes"].as_array().unwrap().iter().filter_map(|code| code.as_str()).collect();
    assert_eq!(codes, ["by_turn", "associated", "associated", "associated", "associated"], "{explained}");
    assert_eq!(explained["servers"][1]["code"], "candidate", "{explained}");
    assert_eq!(evener.log_count("xdp_attached"), 1, "the program was attached once");
    // The first numbers may be from before the packets.
    wait_until("the numbers of associations", || {
        let status = json(&["status"]);
        let servers = status["pools"][0]["servers"].as_array().unwrap().iter();
        let numbers: Vec<_> = servers.map(|server| server["associations"].as_u64().unwrap()).collect();
        (status["services"][0]["associations"] == 4 && numbers == of_servers).then_some(())
    });
    let (number, count) = if of_servers[0] > 0 { (11, of_servers[0]) } else { (12, of_servers[1]) };
    let server = format!("p/{}:{PORT}", server_v4(number));
    let output = evener.run_command(&["drain", &server, "--wait", "--timeout", "1s"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("{server} still has {count} association")), "{error}");
    assert!(error.contains(&format!("evener maintenance {server}")), "{error}");
}
