//! Name servers behind pen, set up as in a published guide, with dig and nsd.

use crate::harness::pen::Pen;
use crate::harness::{Directory, have, reserved_port, wait_until};
use crate::udp::flows::Nsd;
use std::net::TcpStream;
use std::process::Command;

fn have_all() -> bool {
    have("nsd") && have("dig")
}

/// Returns the response of this address to a query by dig.
fn dig(at: &str, port: u16, name: &str, more: &[&str]) -> String {
    let output = Command::new("dig")
        .args([&format!("@{at}"), "-p", &port.to_string(), name, "A", "+short", "+time=2", "+tries=2"])
        .args(more)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    printed.lines().filter(|line| !line.starts_with(';')).collect()
}

/// Starts two name servers, and returns them with their ports when they respond.
fn name_servers(directory: &Directory) -> ([Nsd; 2], [u16; 2]) {
    let ports = [reserved_port(), reserved_port()];
    let servers = ports.map(|port| Nsd::start_in(directory, port));
    for port in ports {
        wait_until("nsd", || TcpStream::connect(("127.0.0.1", port)).ok());
        wait_until("the zone to be loaded", || {
            (dig("127.0.0.1", port, "n7.example", &[]) == "192.0.2.7").then_some(())
        });
    }
    (servers, ports)
}

#[test]
fn the_file_of_the_guide_serves_both_families() {
    if !have_all() {
        return;
    }
    let directory = Directory::new();
    let (mut servers, [a, b]) = name_servers(&directory);
    let listen = reserved_port();
    let commands = format!(
        "listen :::{listen}\nserver 0 address 127.0.0.1 port {a}\nserver 1 address 127.0.0.1 port {b}\nroundrobin\n\
         socket 4\nidle_timeout 10\ntracking 1\n"
    );
    let file = directory.write("pen_auth.conf", &commands).display().to_string();
    let pen = Pen::run_in(directory, &["-U", "-F", &file]);
    for n in 0..20 {
        let at = ["127.0.0.1", "::1"][n % 2];
        assert_eq!(dig(at, listen, &format!("n{n}.example"), &[]), format!("192.0.2.{n}"), "{at}");
    }
    let received = [pen.of_server(0, "rx"), pen.of_server(1, "rx")];
    assert_eq!(received[0], received[1], "the servers take turns: {}", pen.ctl("servers"));
    assert!(received[0] > 0);
    assert_eq!(pen.ctl("idle_timeout"), "Idle timeout: 10 seconds\n");
    assert_eq!(pen.ctl("tracking"), "1\n");
    assert!(pen.ctl("mode").contains(" roundrobin "));
    assert_eq!(pen.ctl("listen"), format!(":::{listen}\n"));
    // When a name server ends, at most the first try of dig fails.
    servers[0].end();
    for n in 0..20 {
        assert_eq!(dig("::1", listen, &format!("n{n}.example"), &[]), format!("192.0.2.{n}"));
    }
}

#[test]
fn the_command_line_of_the_guide_serves_clients() {
    if !have_all() {
        return;
    }
    let directory = Directory::new();
    let (_servers, [a, _]) = name_servers(&directory);
    let listen = reserved_port();
    let (at, server) = (listen.to_string(), format!("127.0.0.1:{a}"));
    let pen = Pen::run_in(directory, &["-dfU", &at, &server]);
    for n in 0..10 {
        assert_eq!(dig("127.0.0.1", listen, &format!("n{n}.example"), &[]), format!("192.0.2.{n}"));
    }
    // A query with EDNS, a large buffer size and a cookie.
    assert_eq!(dig("127.0.0.1", listen, "n8.example", &["+bufsize=4096", "+cookie"]), "192.0.2.8");
    assert!(pen.of_server(0, "sx") > 0);
}

#[test]
fn the_file_of_the_guide_serves_dns_over_tcp_without_the_option_for_udp() {
    if !have_all() {
        return;
    }
    let directory = Directory::new();
    let (_servers, [a, b]) = name_servers(&directory);
    let listen = reserved_port();
    let commands = format!(
        "listen :::{listen}\nserver 0 address 127.0.0.1 port {a}\nserver 1 address 127.0.0.1 port {b}\nroundrobin\n"
    );
    let file = directory.write("tcp.conf", &commands).display().to_string();
    let _pen = Pen::run_in(directory, &["-F", &file]);
    for at in ["127.0.0.1", "::1"] {
        assert_eq!(dig(at, listen, "n9.example", &["+tcp"]), "192.0.2.9");
    }
}
