//! `discover.mname` in a configuration: what is found stands beside what is written, and lives across reloads.

use crate::harness::{Directory, Evener, reserved_port, wait_until};
use std::fs;
use std::os::unix::net::UnixListener;

fn config(port: u16, pool: &str, more: &str) -> String {
    format!(
        "service \"dns\" {{ protocol = \"dns\", listen = \"127.0.0.1:{port}\", pool = \"binder\", {more} }}\n\
         pool \"binder\" {{ {pool}, sticky = {{ by = \"client_ip\", failback = true }} }}"
    )
}

fn names(evener: &Evener) -> Vec<String> {
    let status = evener.status();
    let servers = status["pools"][0]["servers"].as_array().unwrap().iter();
    servers.map(|server| server["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_reload_keeps_what_was_found_and_follows_the_directory_that_it_names() {
    let (directory, port) = (Directory::new(), reserved_port());
    let [old, new] = ["old", "new"].map(|name| directory.file(name));
    fs::create_dir(&old).unwrap();
    fs::create_dir(&new).unwrap();
    let _sockets = [old.join("5301"), old.join("5300"), new.join("5300"), new.join("a")]
        .map(|path| UnixListener::bind(path).unwrap());
    let written = "\"192.0.2.1:53\"";
    let from = |path: &str| format!("{written}, discover = {{ mname = {path} }}");
    let [old, new] = [old, new].map(|path| format!("\"{}\"", path.display()));
    let evener = Evener::run(&config(port, &from(&old), ""));
    assert_eq!(names(&evener), ["192.0.2.1:53", "5300", "5301"]);
    evener.reload(&config(port, &from(&old), "idle_timeout = \"20s\""));
    assert_eq!((names(&evener).len(), evener.log_count("server_removed")), (3, 0));
    // Both have a 5300: the second one is called by its path.
    evener.reload(&config(port, &from(&format!("{{ {old}, {new} }}")), ""));
    let path = format!("{}/5300", directory.file("old").display());
    let other = format!("{}/5300", directory.file("new").display());
    let seen = names(&evener);
    assert_eq!(seen.len(), 5, "{seen:?}");
    assert!(seen.contains(&"5300".into()) && (seen.contains(&path) || seen.contains(&other)), "{seen:?}");
    evener.reload(&config(port, &from(&new), ""));
    assert_eq!(names(&evener), ["192.0.2.1:53", "5300", "a"]);
    let moved = evener.server("5300")["address"].as_str().unwrap().to_owned();
    assert_eq!(moved, other);
    // The old directory is nobody's any more, the new one is.
    let _late = UnixListener::bind(directory.file("old").join("5307")).unwrap();
    let _more = UnixListener::bind(directory.file("new").join("5308")).unwrap();
    wait_until("the new one", || names(&evener).contains(&"5308".into()).then_some(()));
    assert!(!names(&evener).contains(&"5307".into()));
    evener.reload(&config(port, written, ""));
    assert_eq!(names(&evener), ["192.0.2.1:53"]);
}

#[test]
fn a_server_that_is_written_is_not_found_again() {
    let (directory, port) = (Directory::new(), reserved_port());
    let _sockets = ["5300", "5301"].map(|name| UnixListener::bind(directory.file(name)).unwrap());
    let (path, all) =
        (directory.file("5301").display().to_string(), directory.file("").display().to_string());
    let pool = format!("{{ \"unix:{path}\", mname = true }}, discover = {{ mname = \"{all}\" }}");
    let evener = Evener::run(&config(port, &pool, ""));
    assert_eq!(names(&evener), [path, "5300".to_owned()]);
}
