//! The metrics: at the address of `--metrics`, by `evener metrics`, and as Prometheus reads them.

use crate::harness::{BINARY, Directory, Evener, Server, have, local, who};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a configuration with a listener for the metrics, and returns its address.
fn run(config: &str) -> (Evener, SocketAddr) {
    let evener = Evener::run_with(config, &["--metrics", "127.0.0.1:0"]);
    evener.expect_log("metrics_listening");
    let log = evener.log();
    let address = log.split("metrics_listening address=").nth(1).unwrap().split_whitespace().next().unwrap();
    (evener, address.parse().unwrap())
}

fn get(address: SocketAddr, path: &str, accept: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn sample(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

#[test]
fn the_metrics_have_the_numbers_of_services_and_servers_and_promtool_is_content() {
    let server = Server::named("a");
    let (evener, address) = run(&format!(
        "service \"s \\\"1\\\"\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", check = \"tcp\" }}",
        server.port
    ));
    assert_eq!(who(evener.port("s \"1\"")), "a");
    let response = get(address, "/metrics", "*/*");
    let (section, text) = response.split_once("\r\n\r\n").unwrap();
    assert!(section.starts_with("HTTP/1.1 200 ") && section.contains("version=0.0.4"), "{section}");
    let of_server = format!("{{pool=\"s \\\"1\\\"\",server=\"127.0.0.1:{}\"}}", server.port);
    assert_eq!(
        sample(text, "evener_service_connections_total{service=\"s \\\"1\\\"\"}"),
        Some(1.0),
        "{text}"
    );
    assert_eq!(sample(text, &format!("evener_server_connections_total{of_server}")), Some(1.0));
    assert_eq!(sample(text, &format!("evener_server_connect_seconds_count{of_server}")), Some(1.0));
    assert_eq!(sample(text, &format!("evener_server_up{of_server}")), Some(1.0));
    let declared: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    assert_eq!(
        declared.len(),
        declared.iter().collect::<BTreeSet<_>>().len(),
        "each family is declared once"
    );

    let printed = evener.run_command(&["metrics"]);
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(sample(&printed, &format!("evener_server_connections_total{of_server}")), Some(1.0));
    if !have("promtool") {
        return;
    }
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(printed.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let reported = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success() && reported == ["", ""], "{reported:?}");
}

#[test]
fn openmetrics_is_sent_to_clients_that_accept_it() {
    let (_evener, address) = run("service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:9\" }");
    let response = get(address, "/metrics", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(
        response.contains("application/openmetrics-text; version=1.0.0") && response.ends_with("# EOF\n")
    );
}

#[test]
fn the_address_of_the_metrics_gives_nothing_else() {
    let (_evener, address) = run("service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:9\" }");
    for path in ["/", "/v1/status", "/metrics/x"] {
        let response = get(address, path, "*/*");
        assert!(response.starts_with("HTTP/1.1 404 "), "{path}: {response}");
    }
}

#[test]
fn silent_clients_do_not_keep_others_from_the_metrics() {
    let (_evener, address) = run("service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:9\" }");
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert!(get(address, "/metrics", "*/*").starts_with("HTTP/1.1 200 "));
    drop(silent);
}

#[test]
fn an_address_in_use_is_an_error() {
    let other = TcpListener::bind(local(0)).unwrap();
    let address = other.local_addr().unwrap().to_string();
    let output = Command::new(BINARY)
        .args(["tcp", "127.0.0.1:0", "127.0.0.1:9", "--metrics", &address])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&format!("--metrics {address}: no socket can listen there: Address already in use")),
        "{error}"
    );
}

/// Returns the names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    words.filter(|word| word.starts_with("evener_")).collect()
}

#[test]
fn the_alerts_and_the_dashboard_use_metrics_that_exist() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    let rules = fs::read_to_string(packaging.join("prometheus/evener.rules.yml")).unwrap();
    let dashboard = fs::read_to_string(packaging.join("grafana/evener.json")).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 15, "the dashboard has panels");

    let server = Server::named("a");
    let directory = Directory::new();
    let list = directory.write("list", "127.0.0.1:9\n").display().to_string();
    let (evener, address) = run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", queue = {{}}, check = \"tcp\", \
         discover.file \"{list}\", \"127.0.0.1:{}\" }}",
        server.port
    ));
    let mut client = TcpStream::connect(local(evener.port("s"))).unwrap();
    write!(client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let _ = client.read_to_end(&mut Vec::new());
    let text = get(address, "/metrics", "*/*");
    let mut missing = names_in(&rules);
    missing.extend(names_in(&dashboard));
    assert!(missing.len() > 20, "{missing:?}");
    // Histograms without values and certificates are absent.
    let known = names_in(&text);
    missing.retain(|name| !known.contains(name) && !name.ends_with("_seconds_bucket"));
    assert_eq!(missing, BTreeSet::from(["evener_certificate_left_seconds"]));

    if !have("promtool") {
        return;
    }
    for arguments in [["check", "rules", "evener.rules.yml"], ["test", "rules", "evener.rules.test.yml"]] {
        let mut promtool = Command::new("promtool");
        let output = promtool.args(arguments).current_dir(packaging.join("prometheus")).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
}
