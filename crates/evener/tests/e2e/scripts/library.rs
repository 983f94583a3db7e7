//! The library for functions: exec, dns, udp and tcp.

use crate::harness::certificates::Authority;
use crate::harness::dns::Nameserver;
use crate::harness::{BINARY, Directory, Evener, Server, local, reserved_port, wait_until};
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::thread;

/// Runs a function at an interval, with declarations before it.
fn run(declarations: &str, body: &str) -> Evener {
    Evener::run(&format!(
        "{declarations}
         service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:1\" }}
         every(\"100ms\", function()
           {body}
         end)"
    ))
}

#[test]
fn exec_runs_programs_with_arguments_and_input() {
    let evener = run(
        "exec { allow = { \"/bin/sh\", \"/bin/cat\", \"/usr/bin/env\" } }",
        "log.info(\"cat\", exec(\"/bin/cat\", {}, { stdin = \"some input\" }).output)
         local ran = exec(\"/bin/sh\", { \"-c\", \"echo $1; echo bad >&2; exit 3\", \"sh\", \"argument\" })
         log.info(\"sh\", ran.ok, ran.status, ran.output, ran.errors)
         log.info(\"env\", exec(\"/usr/bin/env\").output)
         log.info(\"signal\", exec(\"/bin/sh\", { \"-c\", \"kill -9 $$\" }).signal)",
    );
    evener.expect_log("cat some input");
    evener.expect_log("sh false 3 argument");
    evener.expect_log("env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    evener.expect_log("signal 9");
}

#[test]
fn exec_inherits_no_descriptors() {
    let directory = Directory::new();
    let file = directory.write(
        "evener.lua",
        "exec { allow = { \"/bin/ls\" } }
         service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:1\" }
         every(\"100ms\", function()
           log.info(\"open\", (exec(\"/bin/ls\", { \"-x\", \"/proc/self/fd\" }).output:gsub(\"%s+\", \",\")))
         end)",
    );
    // The shell leaves a descriptor open to the instance.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "exec 9< /dev/null; exec \"$0\" \"$@\"", BINARY]);
    let evener = Evener::start(shell, directory, &["run", &file.display().to_string()]);
    assert!(Path::new(&format!("/proc/{}/fd/9", evener.pid())).exists());
    // The last one is the folder that ls reads.
    evener.expect_log("open 0,1,2,3,");
}

#[test]
fn exec_refuses_programs_that_are_not_allowed() {
    let evener = run("exec { allow = { \"/bin/cat\" } }", "exec(\"/bin/ls\")");
    evener.expect_log("exec must not run /bin/ls");
}

#[test]
fn the_end_of_a_call_kills_its_programs_and_their_children() {
    let directory = Directory::new();
    let file = directory.file("pid");
    let evener = run(
        "exec { allow = { \"/bin/sh\" } }",
        &format!(
            "local ran = exec(\"/bin/sh\", {{ \"-c\", \"sleep 3600 & echo $! > {}; wait\" }}, {{ timeout = \"300ms\" }})
             log.info(\"ended\", ran.ok, ran.error)",
            file.display()
        ),
    );
    let child = wait_until("the child", || fs::read_to_string(&file).ok()?.trim().parse::<u32>().ok());
    evener.expect_log("ended false no response within 300ms");
    let state = || fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    // The child is gone, or a zombie until its new parent waits for it.
    wait_until("the end of the child", || {
        (!Path::new(&format!("/proc/{child}")).exists() || state().contains(") Z ")).then_some(())
    });
}

#[test]
fn dns_query_returns_records_and_errors() {
    let server = Nameserver::of(7);
    let silent = Nameserver::silent();
    let evener = run(
        "",
        &format!(
            "local found = dns.query(\"app.example\", \"A\", {{ server = \"{}\" }})
             log.info(\"dns\", found.ok, found.rcode, found.records[1])
             local none = dns.query(\"app.example\", \"A\", {{ server = \"{}\", timeout = \"100ms\" }})
             log.info(\"silent\", none.ok, none.error)",
            server.name(),
            silent.name()
        ),
    );
    evener.expect_log("dns true NOERROR 192.0.2.7");
    evener.expect_log("silent false no response within 100ms");
}

#[test]
fn udp_exchange_returns_the_response() {
    let socket = UdpSocket::bind(local(0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&[b"re: ", &bytes[..length]].concat(), from);
        }
    });
    let body = format!("log.info(\"udp\", udp.exchange(\"127.0.0.1:{port}\", \"ping\"))");
    run("", &body).expect_log("udp re: ping");
}

#[test]
fn tcp_connect_can_use_tls() {
    let (directory, server) = (Directory::new(), Server::named("behind tls"));
    let keys = Authority::new("root").issue(&["a.example"]).keys(&directory, "a");
    let port = reserved_port();
    let evener = run(
        &format!(
            "service \"t\" {{ listen = \"127.0.0.1:{port}\", tls = {{ {keys} }}, \"127.0.0.1:{}\" }}",
            server.port
        ),
        &format!(
            "local verified, why = tcp.connect(\"127.0.0.1:{port}\", {{ tls = true, sni = \"a.example\" }})
             log.info(\"verified\", verified, why)
             local connection = assert(tcp.connect(\"127.0.0.1:{port}\", {{ tls = true, verify = false }}))
             log.info(\"tls\", (connection:line():gsub(\"%s+$\", \"\")))"
        ),
    );
    evener.expect_log("tls behind tls 127.0.0.1");
    evener.expect_log("verified nil");
}
