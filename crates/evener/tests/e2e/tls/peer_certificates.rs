//! Certificates of clients, of servers, and of Evener as a client of servers.

use crate::harness::certificates::{ANY, Authority, Issued, curl, line_of, mirror, shake, tls_echo};
use crate::harness::peers::Peer;
use crate::harness::{Directory, Evener, Server, connect, have, line, reserved_port, wait_until};
use crate::tls::clients::check_echo;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

/// An https service, and clients with certificates.
struct Gate {
    directory: Directory,
    authority: Authority,
    server: Server,
    keys: String,
    listen: u16,
}

impl Gate {
    fn new() -> Self {
        let (directory, authority) = (Directory::new(), Authority::new("test ca"));
        let keys = authority.issue(&["a.example"]).keys(&directory, "a");
        authority.write(&directory, "ca");
        Self { directory, authority, server: mirror("a"), keys, listen: reserved_port() }
    }

    fn config(&self, tls: &str, more: &str) -> String {
        format!(
            "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:{}\", \"127.0.0.1:{}\",\n  tls = {{ {}, {tls} }}, {more} }}",
            self.listen, self.server.port, self.keys
        )
    }

    fn file(&self, name: &str) -> String {
        self.directory.file(name).display().to_string()
    }

    /// Sends a request with curl, with or without a client certificate.
    fn request(&self, client: Option<(&str, &Issued)>, more: &[&str]) -> (u16, String) {
        let ca = self.file("ca.crt");
        let mut arguments = vec!["--cacert", &ca];
        arguments.extend(more);
        let Some((name, issued)) = client else {
            return curl(self.listen, "a.example", "https", &arguments);
        };
        let (chain, key) = issued.write(&self.directory, name);
        let (chain, key) = (chain.display().to_string(), key.display().to_string());
        arguments.extend(["--cert", &chain, "--key", &key]);
        curl(self.listen, "a.example", "https", &arguments)
    }
}

/// The values of a field that the server received.
fn values(body: &str, name: &str) -> Vec<String> {
    let fields = body.lines().filter_map(|line| line.split_once(':'));
    fields.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned()).collect()
}

#[test]
fn clients_need_a_valid_certificate_when_one_is_required() {
    if !have("curl") {
        return;
    }
    let gate = Gate::new();
    let (trusted, foreign) =
        (gate.authority.issue_client("someone"), Authority::new("x").issue_client("someone"));
    let for_servers = gate.authority.issue(&["not.a.client"]);
    let ca = gate.file("ca.crt");
    // A directory of authorities may have other files.
    let authorities = Directory::new();
    std::fs::copy(&ca, authorities.file("one.pem")).unwrap();
    Authority::new("another").write(&authorities, "two");
    authorities.write("README", "not a certificate");
    let directory = authorities.file("").display().to_string();
    let evener = Evener::run(&gate.config(&format!("client_ca = \"{ca}\""), ""));
    for (number, authority) in [ca.as_str(), directory.trim_end_matches('/')].into_iter().enumerate() {
        evener.reload(&gate.config(&format!("client_ca = \"{authority}\""), ""));
        let failed = evener.service_counter("s", "tls_failed");
        for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
            assert_eq!(gate.request(Some(("trusted", &trusted)), version).0, 200, "{number} {version:?}");
            assert_eq!(gate.request(Some(("foreign", &foreign)), version).0, 0, "{number} {version:?}");
            assert_eq!(gate.request(Some(("server", &for_servers)), version).0, 0, "{number} {version:?}");
            assert_eq!(gate.request(None, version).0, 0, "{number} {version:?}");
        }
        wait_until("failures to be counted", || {
            (evener.service_counter("s", "tls_failed") - failed == 6).then_some(())
        });
    }
}

#[test]
fn an_optional_client_certificate_may_be_absent_but_not_invalid() {
    if !have("curl") {
        return;
    }
    let gate = Gate::new();
    let (trusted, foreign) =
        (gate.authority.issue_client("someone"), Authority::new("x").issue_client("someone"));
    let ca = gate.file("ca.crt");
    let evener = Evener::run(&gate.config(
        &format!("client_ca = \"{ca}\", client_certificate = \"optional\""),
        "certificate_header = \"X-Client-Subject\"",
    ));
    let (status, body) = gate.request(Some(("trusted", &trusted)), &[]);
    assert_eq!((status, values(&body, "x-client-subject")), (200, vec!["CN=someone".to_owned()]), "{body}");
    let (status, body) = gate.request(None, &[]);
    assert_eq!((status, values(&body, "x-client-subject")), (200, Vec::new()), "{body}");
    assert_eq!(gate.request(Some(("foreign", &foreign)), &[]).0, 0);
    assert!(evener.service_counter("s", "tls_failed") >= 1);
}

#[test]
fn clients_cannot_spoof_the_field_with_the_certificate_subject() {
    if !have("curl") {
        return;
    }
    let gate = Gate::new();
    let ca = gate.file("ca.crt");
    let _evener = Evener::run(&gate.config(
        &format!("client_ca = \"{ca}\", client_certificate = \"optional\""),
        "certificate_header = \"X-Client-Subject\"",
    ));
    let spoofed = ["-H", "X-Client-Subject: CN=root", "-H", "x-client-SUBJECT: CN=admin"];
    let (status, body) = gate.request(None, &spoofed);
    assert_eq!((status, values(&body, "x-client-subject")), (200, Vec::new()), "{body}");
    let trusted = gate.authority.issue_client("someone");
    let (_, body) = gate.request(Some(("trusted", &trusted)), &spoofed);
    assert_eq!(values(&body, "x-client-subject"), ["CN=someone"], "{body}");
    // A client cannot remove the field by naming it in `Connection`.
    let (_, body) = gate.request(Some(("trusted", &trusted)), &["-H", "Connection: X-Client-Subject"]);
    assert_eq!(values(&body, "x-client-subject"), ["CN=someone"], "{body}");
    // A subject cannot inject another field.
    let injecting = gate.authority.issue_client("injecting\r\nX-Admin: 1\r\n\u{e9}");
    let (status, body) = gate.request(Some(("injecting", &injecting)), &[]);
    assert_eq!(status, 200, "{body}");
    assert!(values(&body, "x-admin").is_empty(), "{body}");
    assert_eq!(values(&body, "x-client-subject").len(), 1, "{body}");
}

#[test]
fn the_field_with_the_certificate_subject_is_removed_without_tls() {
    if !have("curl") {
        return;
    }
    let gate = Gate::new();
    let config = format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:{}\", \"127.0.0.1:{}\", certificate_header = \"X-Client-Subject\" }}",
        gate.listen, gate.server.port
    );
    let _evener = Evener::run(&config);
    let (status, body) = curl(gate.listen, "a.example", "http", &["-H", "X-Client-Subject: CN=root"]);
    assert_eq!((status, values(&body, "x-client-subject")), (200, Vec::new()), "{body}");
}

/// A service whose pool uses TLS to this server.
fn to_server(listen: u16, port: u16, protocol: &str, tls: &str) -> String {
    format!(
        "local p = pool \"p\" {{ {{ \"127.0.0.1:{port}\", name = \"one\" }}, tls = {tls} }}\n\
         service \"s\" {{ protocol = \"{protocol}\", listen = \"127.0.0.1:{listen}\", pool = p }}"
    )
}

#[test]
fn servers_are_verified_by_name_and_authority() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (ca, _) = authority.write(&directory, "ca");
    let (foreign, _) = Authority::new("foreign").write(&directory, "foreign");
    let [ca, foreign] = [ca, foreign].map(|path| path.display().to_string());
    let server = tls_echo("a", &authority.issue(&["web.example"]));
    let by_address = tls_echo("b", &authority.issue(&["127.0.0.1"]));
    let connect_to = |port: u16, tls: &str| {
        let evener = Evener::run(&to_server(0, port, "tcp", tls));
        let response = line(&mut connect(evener.port("s")));
        (response, evener.server("one")["counters"]["tls_failed"].as_u64().unwrap())
    };
    let right = format!("{{ ca = \"{ca}\", sni = \"web.example\" }}");
    assert_eq!(connect_to(server.port, &right), ("a web.example".to_owned(), 0));
    let wrong = format!("{{ ca = \"{ca}\", sni = \"other.example\" }}");
    assert_eq!(connect_to(server.port, &wrong), (String::new(), 1));
    let unknown = format!("{{ ca = \"{foreign}\", sni = \"web.example\" }}");
    assert_eq!(connect_to(server.port, &unknown), (String::new(), 1));
    // The system does not trust the authority of a test.
    assert_eq!(connect_to(server.port, "{ sni = \"web.example\" }"), (String::new(), 1));
    assert_eq!(connect_to(server.port, "{ verify = false, sni = \"other.example\" }").0, "a other.example");
    assert_eq!(
        connect_to(server.port, "{ verify = false }").0,
        "a -",
        "an address must not be sent as a server name"
    );
    // Without `sni` the address has to be in the certificate.
    let without_sni = format!("{{ ca = \"{ca}\" }}");
    assert_eq!(connect_to(by_address.port, &without_sni).0, "b -");
    assert_eq!(connect_to(server.port, &without_sni), (String::new(), 1));
}

#[test]
fn a_client_of_http_gets_502_when_the_servers_certificate_has_another_name() {
    if !have("curl") || !have("nginx") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (ca, _) = authority.write(&directory, "ca");
    let ca = ca.display().to_string();
    let port = reserved_port();
    let (chain, key) = authority.issue(&["web.example"]).write(&directory, "web");
    let _nginx = Peer::nginx(
        port,
        &format!(
            "http {{ access_log off; server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {};\n\
             location / {{ return 200 \"$ssl_server_name $ssl_protocol $http_host\\n\"; }} }} }}",
            chain.display(),
            key.display()
        ),
    );
    let tls = |name: &str| format!("{{ ca = \"{ca}\", sni = \"{name}\" }}");
    let evener = Evener::run(&to_server(0, port, "http", &tls("other.example")));
    let listen = evener.port("s");
    let (status, body) = curl(listen, "www.example", "http", &[]);
    assert_eq!(status, 502, "{body}");
    assert_eq!(evener.service_counter("s", "requests_failed"), 1);
    evener.reload(&to_server(0, port, "http", &tls("web.example")));
    wait_until("the server to be used again", || {
        (curl(listen, "www.example", "http", &[]).0 == 200).then_some(())
    });
    let (_, body) = curl(listen, "www.example", "http", &[]);
    assert_eq!(body.trim(), format!("web.example TLSv1.3 www.example:{listen}"));
}

#[test]
fn servers_get_the_configured_client_certificate() {
    if !have("curl") || !have("nginx") {
        return;
    }
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (ca, _) = authority.write(&directory, "ca");
    let ca = ca.display().to_string();
    let (chain, key) = authority.issue(&["web.example"]).write(&directory, "web");
    let port = reserved_port();
    let _nginx = Peer::nginx(
        port,
        &format!(
            "http {{ access_log off; server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {}; ssl_certificate_key {};\n\
             ssl_client_certificate {ca}; ssl_verify_client on;\n\
             location / {{ return 200 \"$ssl_client_s_dn $ssl_client_verify\\n\"; }} }} }}",
            chain.display(),
            key.display()
        ),
    );
    let with = |keys: &str| {
        to_server(0, port, "http", &format!("{{ ca = \"{ca}\", sni = \"web.example\", {keys} }}"))
    };
    let trusted = authority.issue_client("evener").keys(&directory, "trusted");
    let evener = Evener::run(&with(&trusted));
    let listen = evener.port("s");
    let (status, body) = curl(listen, "www.example", "http", &[]);
    assert_eq!((status, body.trim()), (200, "CN=evener SUCCESS"));
    // Without a certificate nginx responds with "No required SSL certificate was sent".
    evener.reload(&with(""));
    assert_eq!(curl(listen, "www.example", "http", &[]).0, 400);
    let foreign = Authority::new("foreign").issue_client("evener").keys(&directory, "foreign");
    evener.reload(&with(&foreign));
    assert_eq!(curl(listen, "www.example", "http", &[]).0, 400);
}

#[test]
fn a_half_close_is_forwarded_through_tls_to_the_server() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (ca, _) = authority.write(&directory, "ca");
    let server = tls_echo("a", &authority.issue(&["a.example"]));
    let tls = format!("{{ ca = \"{}\", sni = \"a.example\" }}", ca.display());
    let evener = Evener::run(&to_server(0, server.port, "tcp", &tls));
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(b"everything").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    // The server receives the bytes and the end of the stream, and the client receives both back.
    assert_eq!(response, "a a.example\neverything");
}

#[test]
fn sixty_four_mebibytes_arrive_unchanged_through_tls_on_both_sides() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let (ca, _) = authority.write(&directory, "ca");
    let server = tls_echo("a", &authority.issue(&["a.example"]));
    let tls = format!("{{ ca = \"{}\", sni = \"a.example\" }}", ca.display());
    let config =
        to_server(0, server.port, "tcp", &tls).replace("pool = p", &format!("pool = p, tls = {{ {keys} }}"));
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    check_echo(listen, authority.client(ANY), 64 << 20);
}

#[test]
fn sixty_four_mebibytes_in_both_directions_arrive_unchanged_through_tls_to_the_server() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (ca, _) = authority.write(&directory, "ca");
    let server = tls_echo("a", &authority.issue(&["a.example"]));
    let tls = format!("{{ ca = \"{}\", sni = \"a.example\" }}", ca.display());
    let evener = Evener::run(&to_server(0, server.port, "tcp", &tls));
    let listen = evener.port("s");
    let sent = crate::tls::clients::noise(64 << 20);
    let mut client = connect(listen);
    let mut writer = client.try_clone().unwrap();
    std::thread::scope(|scope| {
        let sent = &sent;
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        assert_eq!(line(&mut client), "a a.example");
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert!(received == *sent, "received {} of {} bytes, or different bytes", received.len(), sent.len());
    });
}

#[test]
fn a_server_whose_handshake_fails_is_skipped() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (ca, _) = authority.write(&directory, "ca");
    let good = tls_echo("good", &authority.issue(&["a.example"]));
    let wrong = tls_echo("wrong", &authority.issue(&["b.example"]));
    let plain = Server::named("plain");
    let config = format!(
        "local p = pool \"p\" {{ \"127.0.0.1:{}\", \"127.0.0.1:{}\", \"127.0.0.1:{}\", tls = {{ ca = \"{}\", sni = \"a.example\" }} }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", pool = p, tls = {{ {} }} }}",
        plain.port,
        wrong.port,
        good.port,
        ca.display(),
        authority.issue(&["a.example"]).keys(&directory, "a")
    );
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let client = Arc::new(authority.client(ANY));
    for _ in 0..6 {
        assert_eq!(line_of(&mut shake(listen, "a.example", &client).unwrap()), "good a.example");
    }
}
