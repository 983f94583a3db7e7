//! `evener help` of keys and commands, and files that are not configurations.

use crate::harness::{BINARY, Directory};
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn evener(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

fn check(arguments: &[&str], status: i32, expected: &[&str]) {
    let output = evener(arguments);
    let text = String::from_utf8_lossy(if status == 0 { &output.stdout } else { &output.stderr });
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    for part in expected {
        assert!(text.contains(part), "{arguments:?} does not print `{part}`:\n{text}");
    }
}

#[test]
fn help_describes_keys_commands_and_words_of_other_programs() {
    check(&["help", "pool.sticky"], 0, &["pool.sticky\n", "Default:   none", "    ttl ", "Keys:"]);
    check(&["help", "service", "dns", "cache"], 0, &["service.dns.cache\n", "    entries "]);
    check(&["help", "run"], 0, &["Usage: evener run", "--workers"]);
    check(&["help", "check"], 0, &["Usage: evener check", "pool.check, server.check\n", "check.http"]);
    check(&["help", "maxconn"], 0, &["evener help service.connections_max"]);
    check(&["help"], 0, &["Commands:", "Keys of the configuration:", "evener help --keys"]);
    check(&["help", "--keys"], 0, &["pool.sticky.ttl", "service.routes.host"]);
    check(
        &["help", "pool.stiky"],
        1,
        &["evener: there is no command, key or function `pool.stiky`; did you mean `pool.sticky`?"],
    );
}

#[test]
fn files_of_other_programs_are_recognized() {
    let directory = Directory::new();
    let refused = |name: &str, text: &str, expected: &str| {
        let file = directory.write(name, text).display().to_string();
        check(&["check", &file], 1, &[&file, expected]);
    };
    refused(
        "haproxy.cfg",
        "global\n  maxconn 100\nfrontend f\n  bind :80\n",
        "this looks like a configuration of HAProxy",
    );
    refused(
        "nginx.conf",
        "http {\n  upstream a { server 10.0.0.1:80; }\n}\n",
        "this looks like a configuration of nginx",
    );
    refused("Caddyfile", "example.org {\n  reverse_proxy 10.0.0.1:80\n}\n", "this looks like a Caddyfile");
    refused("traefik.yml", "entryPoints:\n  web:\n    address: ':80'\n", "this looks like YAML");
    refused("a.json", "{ \"services\": {} }", "this looks like JSON");
    let folder = directory.file("").display().to_string();
    check(&["check", &folder], 1, &["is a directory: give the file in it"]);
}

#[test]
fn check_reads_standard_input() {
    let mut child = Command::new(BINARY)
        .args(["check", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text =
        b"#!/usr/bin/env evener\nservice \"s\" { listen = \"127.0.0.1:9\", \"10.0.0.1:80\" } -- \xe9\n";
    child.stdin.take().unwrap().write_all(text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 service, 1 pool, 1 server"));
}
