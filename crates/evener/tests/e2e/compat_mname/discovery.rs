//! `discover.mname` in a configuration: discovered servers in addition to configured servers, before and after
//! reloads.

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
fn a_reload_keeps_discovered_servers_and_follows_a_changed_directory() {
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
    // Both directories have a socket 5300: the second server is named by its path.
    evener.reload(&config(port, &from(&format!("{{ {old}, {new} }}")), ""));
    let path = format!("{}/5300", directory.file("old").display());
    let other = format!("{}/5300", directory.file("new").display());
    let servers = names(&evener);
    assert_eq!(servers.len(), 5, "{servers:?}");
    assert!(
        servers.contains(&"5300".into()) && (servers.contains(&path) || servers.contains(&other)),
        "{servers:?}"
    );
    evener.reload(&config(port, &from(&new), ""));
    assert_eq!(names(&evener), ["192.0.2.1:53", "5300", "a"]);
    let moved = evener.server("5300")["address"].as_str().unwrap().to_owned();
    assert_eq!(moved, other);
    // Only the new directory is watched.
    let _late = UnixListener::bind(directory.file("old").join("5307")).unwrap();
    let _more = UnixListener::bind(directory.file("new").join("5308")).unwrap();
    wait_until("the new server", || names(&evener).contains(&"5308".into()).then_some(()));
    assert!(!names(&evener).contains(&"5307".into()));
    evener.reload(&config(port, written, ""));
    assert_eq!(names(&evener), ["192.0.2.1:53"]);
}

#[test]
fn a_configured_server_is_not_discovered_again() {
    let (directory, port) = (Directory::new(), reserved_port());
    let _sockets = ["5300", "5301"].map(|name| UnixListener::bind(directory.file(name)).unwrap());
    let (path, all) =
        (directory.file("5301").display().to_string(), directory.file("").display().to_string());
    let pool = format!("{{ \"unix:{path}\", mname = true }}, discover = {{ mname = \"{all}\" }}");
    let evener = Evener::run(&config(port, &pool, ""));
    assert_eq!(names(&evener), [path, "5300".to_owned()]);
}
