//! Upgrades that fail: the running instance goes on, and says why.

use super::{serving, upgrade};
use crate::harness::{Directory, Evener, Server, connect, line, reserved_port, who};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

fn script(directory: &Directory, name: &str, text: &str) -> String {
    let path = directory.write(name, text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_broken_binary_or_file_leaves_the_instance_unhurt() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let evener = Evener::run(&config);
    let mut idle = connect(listen);
    line(&mut idle);
    let pid = serving(&evener);
    let ends = script(&directory, "ends", "#!/bin/sh\nexit 3\n");
    let hangs = script(&directory, "hangs", "#!/bin/sh\nexec sleep 1000\n");
    let damaged = script(&directory, "damaged", "\x7fELF but not a program");
    let missing = directory.file("missing").display().to_string();
    let cases: [(&[&str], &str); 5] = [
        (&["--binary", &ends], "exit status: 3"),
        (&["--binary", &hangs, "--timeout", "300ms"], "did not respond in time"),
        (&["--binary", &damaged], "damaged"),
        (&["--binary", &missing], "cannot be started: No such file"),
        (&[], "evener.lua"),
    ];
    for (options, expected) in cases {
        if options.is_empty() {
            evener.write_config("nonsense = 'here");
        }
        let output = upgrade(&evener, options);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(expected), "{options:?}: {text}");
        assert_eq!((serving(&evener), who(listen)), (pid, "a".to_owned()));
    }
    assert_eq!(evener.log_count(" upgrade_failed "), cases.len());
    idle.write_all(b"x").unwrap();
    let mut byte = [0];
    idle.read_exact(&mut byte).unwrap();
    evener.write_config(&config);
    drop(super::upgraded(&evener));
}

#[test]
fn a_new_process_that_fails_after_it_was_ready_gives_the_listeners_back() {
    let (a, listen, directory) = (Server::named("a"), reserved_port(), Directory::new());
    let config = format!("service 's' {{ listen = '127.0.0.1:{listen}', '127.0.0.1:{}' }}", a.port);
    let evener = Evener::run(&config);
    let pid = serving(&evener);
    // A process that takes every socket, reports that it is ready, and ends as soon as it may begin.
    let program = "#!/usr/bin/python3\n\
         import socket, json\n\
         channel, count = socket.socket(fileno=0), 0\n\
         while True:\n\
         \x20   data, sockets, _, _ = socket.recv_fds(channel, 65536, 250)\n\
         \x20   count += len(sockets)\n\
         \x20   if 'all_sockets' in json.loads(data[6:]): break\n\
         def send(message): channel.send(b'EVup\\0\\1' + json.dumps(message).encode())\n\
         send({'taken': list(range(count))})\n\
         send({'ready': {'program': 'x'}})\n\
         channel.recv(65536)\n";
    let path = script(&directory, "fails", program);
    let output = upgrade(&evener, &["--binary", &path]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("ended before it served"), "{text}");
    assert_eq!((serving(&evener), who(listen)), (pid, "a".to_owned()));
    drop(super::upgraded(&evener));
}
