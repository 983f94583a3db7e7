//! The default driver: io_uring where the system allows all its operations, else epoll.

use crate::harness::{Directory, Evener, Server, who};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the library that forbids parts of io_uring.
fn forbid_library(directory: &Directory) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/operating/driver/forbid.c");
    let library = directory.file("forbid.so");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(status.success());
    library
}

fn service(server: &Server) -> String {
    format!("service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\" }}", server.port)
}

#[test]
fn the_default_is_io_uring() {
    let server = Server::named("a");
    let evener = Evener::with_default_driver(&service(&server), &[]);
    evener.expect_log("driver=io_uring");
    assert_eq!(evener.log_count("io_uring is not available"), 0, "{}", evener.log());
    assert_eq!(who(evener.port("s")), "a");
}

#[test]
fn without_io_uring_or_one_of_its_operations_the_workers_use_epoll() {
    let directory = Directory::new();
    let library = forbid_library(&directory);
    for (forbidden, reason) in [
        ("seccomp", "(Operation not permitted"),
        ("registration 22", "(Permission denied"),
        ("operation 6", "(multishot receive: Permission denied"),
        ("operation 27", "(multishot receive: Permission denied"),
        ("operation 26", "(send: Permission denied"),
        ("operation 14", "(cancel: "),
        ("operation 16", "(connect: Permission denied"),
        ("operation 19", "(close: Permission denied"),
    ] {
        let server = Server::named("a");
        let variables = [("LD_PRELOAD", library.as_path()), ("FORBID", Path::new(forbidden))];
        let evener = Evener::with_default_driver(&service(&server), &variables);
        evener.expect_log("driver=epoll");
        let notice = format!("io_uring is not available {reason}");
        evener.expect_log(&notice);
        assert_eq!(evener.log_count("io_uring is not available"), 1, "{forbidden}: {}", evener.log());
        assert_eq!(who(evener.port("s")), "a", "{forbidden}");
    }
}
