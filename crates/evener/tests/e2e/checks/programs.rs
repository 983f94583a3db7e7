//! Programs: checks by `check.exec`, and the hooks of `notify`.

use crate::harness::{Directory, Evener, Server, wait_until};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Writes an executable script.
fn script(directory: &Directory, name: &str, text: &str) -> PathBuf {
    let path = directory.write(name, &format!("#!/bin/sh\n{text}\n"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_program_decides_about_a_server_and_hooks_run_for_its_changes() {
    let (directory, server) = (Directory::new(), Server::named("a"));
    let (marker, seen) = (directory.file("bad"), directory.file("seen"));
    let probe = script(
        &directory,
        "probe",
        &format!("test \"$1$EVENER_PORT\" = \"x {}\" -a ! -e {}", server.port, marker.display()),
    );
    // Evener has sockets, and the hook has none.
    let hook = script(
        &directory,
        "hook",
        &format!(
            "echo \"$1 $EVENER_HOOK $EVENER_SERVICES $EVENER_POOL $EVENER_SERVER $EVENER_STATE $EVENER_WEIGHT $(ls -l /proc/self/fd | grep -c -e socket -e event)\" >> {}",
            seen.display()
        ),
    );
    let (probe, hook) = (probe.display(), hook.display());
    let evener = Evener::run(&format!(
        "exec {{ allow = {{ \"{probe}\", \"{hook}\", \"/bin/false\", \"/bin/sleep\" }} }}
         service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"127.0.0.1:{}\", name = \"a\" }}, quorum = 1, sorry = \"127.0.0.1:1\",
         check = check.exec {{ \"{probe}\", \"x \", every = \"50ms\", timeout = \"10s\", rise = 1, fall = 1 }},
         notify = {{ up = {{ \"{hook}\", \"1 2\" }}, down = {{ \"{hook}\", \"\" }}, quorum_down = {{ \"/bin/false\" }}, quorum_up = {{ \"/bin/sleep\", \"600\" }}, timeout = \"1s\" }} }}",
        server.port
    ));
    evener.expect_log("server_checked");
    std::fs::write(&marker, "").unwrap();
    evener.expect_log("server_down pool=s server=a reason=\"exec: status 1\"");
    evener.expect_log("notify_failed pool=s hook=quorum_down program=/bin/false problem=\"status 1\"");
    std::fs::remove_file(&marker).unwrap();
    evener.expect_log("server_up pool=s server=a");
    evener.expect_log("notify_failed pool=s hook=quorum_up program=/bin/sleep problem=\"killed after 1s\"");
    let lines = wait_until("both hooks", || {
        let text = std::fs::read_to_string(&seen).unwrap_or_default();
        (text.lines().count() == 2).then_some(text)
    });
    // Checks end quickly; a zombie would stay.
    let pid = evener.pid().to_string();
    wait_until("a moment without children", || {
        let listed = std::process::Command::new("pgrep").args(["-P", &pid]).output().unwrap();
        listed.stdout.is_empty().then_some(())
    });
    assert_eq!(lines, " down s s a ready  0\n1 2 up s s a ready  0\n");
}

#[test]
fn a_program_that_is_not_allowed_is_refused() {
    let directory = Directory::new();
    let config = directory.write(
        "c.lua",
        "exec { allow = { \"/bin/true\" } }\nservice \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:1\",\n\
         check = check.exec { \"/bin/false\" }, notify = { up = { \"/bin/true\" } } }",
    );
    let output =
        std::process::Command::new(crate::harness::BINARY).arg("check").arg(&config).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("the program \"/bin/false\" is not allowed"), "{text}");
    assert!(!text.contains("/bin/true"), "{text}");
}
