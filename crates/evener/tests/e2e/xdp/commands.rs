//! `evener xdp check`, `status` and `detach` beside running and stopped instances, and the messages of a plane that cannot
//! start.

use crate::harness::xdp::{CLIENT_V4, Echo, Traffic, UdpClient, VIP_V4, XdpNetwork, pass_all, server_v4};
use crate::harness::{BINARY, Directory, Evener, have, wait_until};
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const PORT: u16 = 5683;
const PIN: &str = "/sys/fs/bpf/evener";

/// Returns a configuration with one service, and keys of the plane and the service.
fn config(plane: &str, service: &str) -> String {
    format!(
        "xdp {{ flows = 4096, {plane} }}
         pool \"p\" {{ \"{}:{PORT}\" }}
         service \"coap\" {{ plane = \"xdp\", {service}, protocol = \"udp\", listen = \"{VIP_V4}:{PORT}\", \
                             pool = \"p\" }}",
        server_v4(11)
    )
}

const ETH0: &str = "interface = \"eth0\"";

/// Exit status and output of a command.
#[derive(Debug)]
struct Outcome {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Outcome {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Returns the standard output of a command that succeeded.
    fn expect_success(self) -> String {
        assert_eq!((self.status, &*self.stderr), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// Checks that the command failed with one line on standard error, which has all parts.
    fn expect_line(&self, parts: &[&str]) {
        assert_eq!((self.status, self.stderr.lines().count()), (Some(1), 1), "{self:?}");
        assert!(self.stderr.starts_with("evener: "), "{self:?}");
        assert!(parts.iter().all(|part| self.stderr.contains(part)), "expected {parts:?}: {self:?}");
    }
}

/// Runs `evener xdp` on the director.
fn xdp(network: &XdpNetwork, words: &[&str]) -> Outcome {
    Outcome::of(network.evener_command().arg("xdp").args(words))
}

fn xdp_json(network: &XdpNetwork, words: &[&str]) -> Value {
    serde_json::from_str(&xdp(network, words).expect_success()).unwrap()
}

/// Returns the line of a report about a topic.
fn line<'a>(report: &'a str, topic: &str) -> &'a str {
    let found = report.lines().find(|line| line.split_whitespace().nth(1) == Some(topic));
    found.unwrap_or_else(|| panic!("expected a line about {topic}: {report}"))
}

fn is_attached(network: &XdpNetwork) -> bool {
    network.director().run("ip -details link show eth0").contains("prog/xdp")
}

fn client(network: &XdpNetwork) -> UdpClient {
    UdpClient::bind(network.client(), CLIENT_V4, 0)
}

#[test]
fn a_check_names_silent_peers_foreign_programs_and_missing_interfaces() {
    let Some(network) = XdpNetwork::new() else { return };
    let director = network.director();
    director.run("ip link add veth0 type veth peer name veth1; ip link set veth0 up; ip link set veth1 up");
    let report = xdp(&network, &["check", "veth0"]).expect_success();
    assert!(line(&report, "peer").starts_with("warning"), "{report}");
    assert!(line(&report, "peer").contains("veth1 has no XDP program"), "{report}");
    assert!(line(&report, "program").starts_with("ok"), "{report}");
    assert!(line(&report, "driver").ends_with(" veth"), "{report}");

    pass_all(director, "veth1");
    let report = xdp_json(&network, &["check", "veth0", "--json"]);
    assert_eq!((&report["interface"], &report["usable"]), (&"veth0".into(), &true.into()), "{report}");
    let finding = |report: &Value, topic: &str| {
        let findings = report["findings"].as_array().unwrap().clone();
        findings.into_iter().find(|one| one["topic"] == topic).unwrap_or_else(|| panic!("{topic}: {report}"))
    };
    assert_eq!(finding(&report, "peer")["verdict"], "ok");

    let foreign = xdp(&network, &["check", "veth1"]);
    foreign.expect_line(&["veth1", "see the problem above"]);
    let programs = line(&foreign.stdout, "programs");
    assert!(programs.starts_with("problem"), "{programs}");
    assert!(programs.contains("`pass`") && programs.contains("native mode"), "{programs}");
    let foreign = xdp(&network, &["check", "veth1", "--json"]);
    foreign.expect_line(&["veth1"]);
    let report: Value = serde_json::from_str(&foreign.stdout).unwrap();
    assert_eq!(
        (&report["usable"], &finding(&report, "programs")["verdict"]),
        (&false.into(), &"problem".into())
    );

    let missing = xdp(&network, &["check", "eth7"]);
    missing.expect_line(&["eth7"]);
    assert!(line(&missing.stdout, "interface").contains("there is no interface eth7"), "{missing:?}");
    let missing: Value = serde_json::from_str(&xdp(&network, &["check", "eth7", "--json"]).stdout).unwrap();
    assert_eq!(finding(&missing, "interface")["verdict"], "problem");
}

#[test]
fn status_and_detach_work_beside_running_and_stopped_instances() {
    let Some(network) = XdpNetwork::new() else { return };
    let _servers = Echo::udp(network.servers(), &[server_v4(11)], &[PORT]);
    let _director = Echo::udp(network.director(), &[VIP_V4], &[PORT, 9]);
    let (to, beside) = (SocketAddr::new(VIP_V4, PORT), SocketAddr::new(VIP_V4, 9));
    let nothing = format!("nothing is pinned at {PIN}\n");
    assert_eq!(xdp(&network, &["status"]).expect_success(), nothing);
    assert_eq!(xdp(&network, &["detach"]).expect_success(), nothing);
    assert_eq!(xdp_json(&network, &["status", "--json"])["links"], Value::Array(Vec::new()));
    let known = client(&network);
    assert_eq!(known.server(to), VIP_V4, "the kernel receives packets without the plane");

    let mut evener = network.evener(&config("", ETH0));
    evener.expect_log("xdp_attached");
    let forwarded = |when: &str| {
        let client = client(&network);
        assert_eq!(client.ask_until_reply(to).server(), server_v4(11), "{when}");
        assert_eq!(client.server(beside), VIP_V4, "{when}: another port of the address is not in the plane");
    };
    forwarded("running");
    let process = format!("process {} (evener)", evener.pid());
    let status = xdp(&network, &["status"]).expect_success();
    assert!(status.starts_with(&format!("{PIN}: ")) && status.contains(&process), "{status}");
    assert!(status.lines().any(|line| line.starts_with("eth0 ") && line.contains(" native ")), "{status}");
    assert!(status.lines().any(|line| line.starts_with("flows_v4 ")), "{status}");
    let check = xdp(&network, &["check", "eth0"]).expect_success();
    assert!(line(&check, "programs").starts_with("note") && check.contains("`evener`"), "{check}");
    xdp(&network, &["detach"]).expect_line(&[PIN, "in use by", &process]);
    xdp(&network, &["detach", "eth0"]).expect_line(&["in use by", &process]);
    forwarded("after a refused detach");

    evener.signal("TERM");
    assert_eq!(evener.end(), 0);
    forwarded("stopped");
    let status = xdp_json(&network, &["status", "--json"]);
    assert_eq!((&status["owner"], &status["pin"]), (&Value::Null, &PIN.into()), "{status}");
    let link = &status["links"][0];
    assert_eq!((&link["interface"], &link["mode"]), (&"eth0".into(), &"native".into()), "{status}");
    xdp(&network, &["detach", "eth9"]).expect_line(&[PIN, "not attached to eth9"]);
    forwarded("after a detach from another interface");

    assert_eq!(xdp(&network, &["detach", "eth0"]).expect_success(), "detached from eth0\n");
    assert!(!is_attached(&network), "expected no program at the interface");
    assert_eq!(known.server(to), VIP_V4, "the kernel receives packets after the end of the plane");
    let status = xdp_json(&network, &["status", "--json"]);
    assert_eq!(status["links"], Value::Array(Vec::new()), "{status}");
    assert!(status["maps"].as_array().is_some_and(|maps| !maps.is_empty()), "maps stay: {status}");

    // Another instance attaches again, with the maps that stayed.
    let mut evener = network.evener(&config("", ETH0));
    evener.expect_log("xdp_attached");
    forwarded("started again");
    evener.signal("KILL");
    evener.end();
    let removed = xdp(&network, &["detach"]).expect_success();
    assert!(removed.starts_with("detached from eth0\nremoved "), "{removed}");
    assert!(!is_attached(&network), "expected no program at the interface");
    let pins = network.director().run("find /sys/fs/bpf -name 'evener*'");
    assert_eq!(pins, "", "expected no pin to stay");
    assert_eq!(known.server(to), VIP_V4, "the kernel receives packets after the end of the plane");
    assert_eq!(known.server(beside), VIP_V4);
}

/// Runs a configuration that cannot start, with a command in front of the program.
fn refused(network: &XdpNetwork, prefix: &[&str], config: &str) -> Outcome {
    let directory = Directory::new();
    fs::set_permissions(directory.file("."), fs::Permissions::from_mode(0o777)).unwrap();
    let file = directory.write("evener.lua", config);
    let mut command = network.director().command("timeout");
    command.arg("20").args(prefix).args([BINARY, "run"]).arg(file);
    command.arg("--admin").arg(directory.file("admin.sock"));
    Outcome::of(&mut command)
}

#[test]
fn a_plane_that_cannot_start_says_why_in_one_line() {
    let Some(network) = XdpNetwork::new() else { return };
    if !have("setpriv") {
        return;
    }
    let run = |prefix: &[&str], config: &str| refused(&network, prefix, config);
    run(&[], &config("", "interface = \"eth7\"")).expect_line(&["there is no interface eth7"]);
    run(&[], &config("pin = \"/run/evener\"", ETH0))
        .expect_line(&["/run/evener", "not in a BPF file system"]);

    let unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let permission = ["no permission", "CAP_BPF", "CAP_NET_ADMIN"];
    run(&unprivileged, &config("", ETH0)).expect_line(&permission);
    let mut command = network.director().command("setpriv");
    command.args(&unprivileged[1..]).args([BINARY, "xdp", "check", "eth0"]);
    let check = Outcome::of(&mut command);
    check.expect_line(&["cannot work on eth0"]);
    assert!(line(&check.stdout, "capabilities").starts_with("problem"), "{check:?}");

    // The plane mounts the file system of pins if it may.
    network.director().run("umount /sys/fs/bpf");
    let without_mount = ["setpriv", "--bounding-set=-sys_admin"];
    run(&without_mount, &config("", ETH0))
        .expect_line(&["no BPF file system at /sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf"]);
    let check = xdp(&network, &["check", "eth0"]).expect_success();
    assert!(line(&check, "bpffs").contains("not mounted at /sys/fs/bpf"), "{check}");
    assert!(!is_attached(&network), "expected no program at the interface");
    let evener = network.evener(&config("", ETH0));
    evener.expect_log("xdp_attached");

    let foreign = config(&format!("pin = \"{PIN}-other\""), ETH0);
    run(&[], &foreign).expect_line(&["eth0", "another XDP program", "`evener`", "detach it first"]);
    run(&[], &config("", ETH0)).expect_line(&["in use by", &format!("process {} (evener)", evener.pid())]);
}

#[test]
fn a_wrong_configuration_at_a_reload_changes_nothing() {
    let Some(network) = XdpNetwork::new() else { return };
    let _servers = Echo::udp(network.servers(), &[server_v4(11)], &[PORT]);
    network.director().run("ip link add veth0 type veth peer name veth1");
    pass_all(network.director(), "veth0");
    let evener = network.evener(&config("", ETH0));
    let to = SocketAddr::new(VIP_V4, PORT);
    client(&network).ask_until_reply(to);
    let traffic = Traffic::start(network.client(), CLIENT_V4, to, 16, 2000);
    traffic.wait_for(200);
    for (wrong, part) in [
        ("service \"coap\" {".to_owned(), "evener.lua:1"),
        (config("", "interface = \"eth0\", sticky = \"ip\""), "sticky"),
        (config("", "interfaces = { \"eth0\", \"veth0\" }"), "another XDP program: `pass`"),
        (config("", "interfaces = { \"eth7\" }"), "there is no interface eth7"),
        (config("", ETH0).replace("4096", "0"), "flows"),
    ] {
        refuse_reload(&evener, &wrong, part);
        traffic.wait_for(200);
    }
    assert!(is_attached(&network), "expected the program at the interface");
    evener.reload(&format!("{}\n-- the same again", config("", ETH0)));
    traffic.wait_for(200);
    traffic.stop().expect_unhurt();
    assert_eq!(evener.service_counter("coap", "flows_moved"), 0);
}

/// Reloads a configuration that is refused, with a reason in the log.
fn refuse_reload(evener: &Evener, wrong: &str, part: &str) {
    let before = evener.log().len();
    evener.write_config(wrong);
    evener.signal("HUP");
    wait_until(&format!("a reload to be refused: {part}"), || {
        let log = evener.log();
        assert!(!log[before..].contains(" reloaded changes="), "expected a refusal of {wrong}");
        log[before..].lines().any(|line| line.contains("reload_failed") && line.contains(part)).then_some(())
    });
}
