//! `evener sbulb` as a command: its errors, its messages to systemd, and what stays of it.

use super::sbulb::{Family, PORTS, refused};
use crate::harness::sbulb::Sbulb;
use crate::harness::xdp::{Echo, UdpClient, XdpNetwork};
use crate::harness::{BINARY, Directory};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_symbolic_link_named_sbulb_runs_the_program() {
    let directory = Directory::new();
    let link = directory.file("sbulb");
    std::os::unix::fs::symlink(BINARY, &link).unwrap();
    let output = Command::new(&link).arg("--version").output().unwrap();
    let expected = format!("sbulb (evener {})\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let help = Command::new(&link).arg("-h").output().unwrap();
    assert!(String::from_utf8(help.stdout).unwrap().contains("--virtual_server"));
}

#[test]
fn wrong_command_lines_are_refused_in_the_style_of_argparse() {
    let check = |words: &str, expected: &str| {
        let output = Command::new(BINARY).arg("sbulb").args(words.split_whitespace()).output().unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words}: {printed}");
        let last = printed.lines().last().unwrap();
        assert!(printed.starts_with("usage: sbulb [-h] -vs VIRTUAL_SERVER\n"), "{words}: {printed}");
        assert!(last.starts_with("sbulb: error: ") && last.contains(expected), "{words}: {last}");
    };
    check("", "the following arguments are required: ifnet, -vs/--virtual_server, -p/--port");
    check(
        "eth0 -vs 10.0.9.9 -p 5683",
        "one of the arguments -rs/--real_server -cfg/--config_file is required",
    );
    check("eth0 -vs 10.0.9.9 -rs 10.0.2.11 -cfg f -p 5683", "not allowed with argument -rs/--real_server");
    check("eth0 -vs 10.0.9.9 -rs fd00::1 -p 5683", "fd00::1 is an IPv6 address");
    check("eth0 -vs 10.0.9.9 -rs 10.0.2.11 -p 0", "'0' is not a port between 1 and 65535");
}

#[test]
fn the_program_says_why_it_cannot_attach() {
    let Some(network) = XdpNetwork::new() else { return };
    let (status, printed) = refused(&network, "eth7 -vs 10.0.9.9 -rs 10.0.2.11 -p 5683");
    assert_eq!((status, printed.lines().count()), (Some(1), 1), "{printed}");
    assert!(printed.starts_with("sbulb: ") && printed.contains("eth7"), "{printed}");
}

#[test]
fn systemd_learns_of_the_start_reloads_and_the_end() {
    let Some(network) = XdpNetwork::new() else { return };
    let mut sbulb = Sbulb::start(&network, &Family::V4.command_line());
    sbulb.signal("HUP");
    let reloading = sbulb.expect_notification("RELOADING=1");
    assert!(reloading.contains("\nMONOTONIC_USEC="), "{reloading}");
    sbulb.expect_notification("READY=1");
    assert_eq!(sbulb.end("TERM"), Some(0));
    sbulb.expect_notification("STOPPING=1");
}

#[test]
fn the_end_detaches_the_program_and_a_kill_does_not() {
    let Some(network) = XdpNetwork::new() else { return };
    let family = Family::V4;
    let _echo = Echo::udp(network.servers(), &family.servers(), &PORTS);
    let is_attached = || network.director().run("ip -details link show eth0").contains("prog/xdp");
    let mut sbulb = Sbulb::start(&network, &family.command_line());
    assert!(is_attached(), "expected a program at the interface");
    let virtual_server = family.virtual_server(PORTS[0]);
    let clients: Vec<UdpClient> =
        (0..20).map(|_| UdpClient::bind(network.client(), family.client(), 0)).collect();
    let servers: Vec<_> = clients.iter().map(|client| client.server(virtual_server)).collect();
    let seen = || clients.iter().map(|client| client.server(virtual_server)).collect::<Vec<_>>();
    sbulb.end("KILL");
    assert!(is_attached(), "expected the program to outlive its process");
    assert_eq!(seen(), servers, "expected the program to go on alone");
    sbulb.start_again();
    assert_eq!(sbulb.end("TERM"), Some(0));
    assert!(!is_attached(), "expected no program after the end");
    sbulb.start_again();
    assert!(is_attached(), "expected the program after another start");
    assert_eq!(seen(), servers, "expected the associations to outlive a restart");
}

/// Runs the commands of the migration guide in their order, on the director. The test stands in for systemd, which ends
/// the service before another command takes its place.
#[test]
fn the_commands_of_the_guide_run() {
    let Some(network) = XdpNetwork::new() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(root.join("docs/migrate-from-sbulb.md")).unwrap();
    network.add_virtual_address("10.188.7.99".parse().unwrap());
    for server in ["10.188.100.163", "10.188.100.230"] {
        network.add_server_address(server.parse().unwrap());
    }
    let directory = Directory::new();
    let lua = text.split("```lua\n").nth(1).unwrap().split("```").next().unwrap();
    let file = directory.write("evener.lua", lua).display().to_string();
    let commands = text.lines().filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        line.strip_prefix("$ ").unwrap_or(line).strip_prefix("evener ")
    });
    let mut running: Option<Sbulb> = None;
    let mut count = 0;
    for command in commands {
        count += 1;
        let command = command.replace("evener.lua", &file);
        let words: Vec<&str> = command.split_whitespace().collect();
        let is_service = matches!(words[0], "sbulb" | "run") && !words.contains(&"--print");
        if is_service || command.contains("detach") {
            running.take().into_iter().for_each(|mut before| assert_eq!(before.end("TERM"), Some(0)));
        }
        if is_service {
            running = Some(Sbulb::start_command(&network, Directory::new(), &command));
            continue;
        }
        let output = network.evener_command().args(&words).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "`evener {command}` failed: {printed}");
    }
    assert!(count >= 9, "expected the commands of the guide, got {count}");
}
