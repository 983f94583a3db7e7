//! The IPVS plane without a kernel that has it, or without permission: one line, and nothing else changes.

use crate::harness::{BINARY, Directory, Evener, Server, connect, have, have_root, line, wait_until, who};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const CONFIG: &str = "service \"192.0.2.1:80\" { plane = \"ipvs\", \"10.0.0.1:80\" }";
const NO_IPVS: &str = "the kernel has no IPVS: run `modprobe ip_vs`, or take a kernel that has it";

/// Returns the reason why this machine has no IPVS, or `None` if it has.
fn missing() -> Option<&'static str> {
    let output = Command::new(BINARY).args(["ipvs", "list"]).output().unwrap();
    if output.status.success() {
        return None;
    }
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
    let reasons = [NO_IPVS, "not permitted; CAP_NET_ADMIN is needed"];
    let reason = reasons.into_iter().find(|reason| error.contains(reason));
    Some(reason.unwrap_or_else(|| panic!("expected the reason: {error}")))
}

/// Runs a configuration that cannot start, with a command in front of the program, and expects one line with a reason.
fn expect_refusal(prefix: &[&str], reason: &str) {
    let directory = Directory::new();
    fs::set_permissions(directory.file("."), fs::Permissions::from_mode(0o777)).unwrap();
    let file = directory.write("evener.lua", CONFIG);
    let mut command = Command::new("timeout");
    command.arg("20").args(prefix).args([BINARY, "run"]).arg(file);
    let output = command.arg("--admin").arg(directory.file("admin.sock")).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "expected one line: {output:?}");
    for part in ["plane = \"ipvs\" is not available: ", reason] {
        assert!(error.contains(part), "expected {part}: {error}");
    }
    assert!(!directory.file("admin.sock").exists(), "expected no socket");
}

#[test]
fn a_start_without_ipvs_is_refused_with_one_line() {
    if let Some(reason) = missing() {
        expect_refusal(&[], reason);
    }
}

#[test]
fn a_start_without_permission_is_refused_with_one_line() {
    if !have_root() || !have("setpriv") {
        return;
    }
    let prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    match missing() {
        Some(reason) => expect_refusal(&prefix, reason),
        None => expect_refusal(&prefix, "not permitted; CAP_NET_ADMIN is needed"),
    }
}

#[test]
fn a_reload_without_ipvs_leaves_other_services_alone() {
    let Some(reason) = missing() else { return };
    let server = Server::named("a");
    let proxied = format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", server.port);
    let evener = Evener::run(&proxied);
    let listen = evener.port("s");
    let mut client = connect(listen);
    assert_eq!(line(&mut client), "a 127.0.0.1");
    let changed = proxied.replace("listen", r#"idle_timeout = "7min", listen"#);
    evener.write_config(&format!("{changed}\n{CONFIG}"));
    evener.signal("HUP");
    let is_refused = |line: &str| line.contains(" reload_failed ") && line.contains(reason);
    wait_until("the reload to be refused", || evener.log().lines().any(is_refused).then_some(()));
    client.write_all(b"still").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    assert_eq!((evener.port("s"), who(listen)), (listen, "a".into()));
    let reloads = evener.log_count(" reloaded changes=");
    assert_eq!(reloads, 0, "expected no change of the services: {}", evener.log());
    evener.reload(&format!("{proxied}\n-- the same again"));
}
