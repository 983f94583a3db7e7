//! Certificates that change on disk while the program runs: they are loaded without a signal, and the old
//! certificates stay in use when the new ones are invalid.

use crate::harness::certificates::{ANY, Authority, Issued, line_of, mirror, s_client, shake, tls_echo};
use crate::harness::{BINARY, Directory, Evener, Server, wait_until};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
/// Files are checked every 5 s.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

fn service(listen: u16, server: &Server, tls: &str) -> String {
    format!(
        "service \"s\" {{ listen = \"127.0.0.1:{listen}\", \"127.0.0.1:{}\", tls = {{ {tls} }} }}",
        server.port
    )
}

/// The configuration of a client that never resumes a session.
fn without_resumption(authority: &Authority) -> Arc<ClientConfig> {
    let mut config = authority.client(ANY);
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The certificate that a client receives, unless the handshake fails.
fn served(listen: u16, name: &str, config: &Arc<ClientConfig>) -> Option<CertificateDer<'static>> {
    let client = shake(listen, name, config).ok()?;
    Some(client.conn.peer_certificates().unwrap()[0].clone())
}

/// Waits until clients receive this certificate.
fn wait_for(listen: u16, name: &str, issued: &Issued, config: &Arc<ClientConfig>) {
    let what = format!("the new certificate of {name}");
    wait_until(&what, || (served(listen, name, config)? == issued.der()).then_some(()));
}

/// The number of times that certificates were reloaded.
fn reload_count(evener: &Evener) -> usize {
    evener.log_count(" certificates_reloaded")
}

#[test]
fn a_changed_certificate_is_loaded_without_a_signal() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let evener = Evener::run(&service(0, &a, &authority.issue(&["a.example"]).keys(&directory, "a")));
    let listen = evener.port("s");
    let client = without_resumption(&authority);
    let mut old_client = shake(listen, "a.example", &client).unwrap();
    assert_eq!(line_of(&mut old_client), "a 127.0.0.1");
    for turn in 1..3 {
        let issued = authority.issue(&["a.example"]);
        let began = Instant::now();
        issued.write(&directory, "a");
        wait_for(listen, "a.example", &issued, &client);
        assert!(began.elapsed() < CHECK_INTERVAL * 2, "{:?}", began.elapsed());
        wait_until("the reload to be logged", || (reload_count(&evener) >= turn).then_some(()));
    }
    // ACME clients write a new file and rename it over the old one.
    let issued = authority.issue(&["a.example"]);
    issued.write(&directory, "new");
    for end in ["key", "crt"] {
        let [from, to] = ["new", "a"].map(|name| directory.file(&format!("{name}.{end}")));
        std::fs::rename(from, to).unwrap();
    }
    wait_for(listen, "a.example", &issued, &client);
    // Open connections stay open, and the configuration is not reloaded.
    std::io::Write::write_all(&mut old_client, b"still\n").unwrap();
    assert_eq!(line_of(&mut old_client), "still");
    assert!(!evener.log().contains(" reloaded changes="), "the configuration must not be reloaded");
}

#[test]
fn certificates_are_loaded_when_a_symbolic_link_points_to_another_file() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let (first, second) = (authority.issue(&["a.example"]), authority.issue(&["a.example"]));
    first.write(&directory, "first");
    second.write(&directory, "second");
    let link = |name: &str| {
        for end in ["crt", "key"] {
            let created = directory.file(&format!("created.{end}"));
            std::os::unix::fs::symlink(directory.file(&format!("{name}.{end}")), &created).unwrap();
            std::fs::rename(created, directory.file(&format!("live.{end}"))).unwrap();
        }
    };
    link("first");
    let [chain, key] = ["live.crt", "live.key"].map(|name| directory.file(name).display().to_string());
    let evener = Evener::run(&service(0, &a, &format!("certificate = \"{chain}\", key = \"{key}\"")));
    let listen = evener.port("s");
    let client = without_resumption(&authority);
    wait_for(listen, "a.example", &first, &client);
    link("second");
    wait_for(listen, "a.example", &second, &client);
}

#[test]
fn a_changed_certificate_is_not_used_before_its_key_changes() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let (old, new) = (authority.issue(&["a.example"]), authority.issue(&["a.example"]));
    let evener = Evener::run(&service(0, &a, &old.keys(&directory, "a")));
    let listen = evener.port("s");
    let client = without_resumption(&authority);
    directory.write("a.crt", &new.chain);
    evener.expect_log(" certificates_refused ");
    assert!(evener.log().contains("a.key is not the key of"), "{}", evener.log());
    // The files are checked repeatedly, and the problem is logged once.
    let until = Instant::now() + CHECK_INTERVAL * 2 + Duration::from_secs(1);
    while Instant::now() < until {
        assert!(served(listen, "a.example", &client) == Some(old.der()), "the old certificate must stay");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!((evener.log_count(" certificates_refused "), reload_count(&evener)), (1, 0));
    // Another problem is logged, too.
    std::fs::remove_file(directory.file("a.key")).unwrap();
    wait_until("the other problem to be logged", || {
        (evener.log_count(" certificates_refused ") == 2).then_some(())
    });
    assert!(evener.log().contains("a.key does not exist"), "{}", evener.log());
    directory.write("a.key", &new.key);
    wait_for(listen, "a.example", &new, &client);
    evener.expect_log(" certificates_reloaded");
    assert_eq!(evener.service_counter("s", "tls_failed"), 0);
    // The same problem is logged again after a success.
    directory.write("a.crt", &old.chain);
    wait_until("the problem to be logged again", || {
        (evener.log_count(" certificates_refused ") == 3).then_some(())
    });
}

#[test]
fn added_and_removed_files_of_a_directory_are_noticed() {
    let (directory, certificates, authority) =
        (Directory::new(), Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let default = authority.issue(&["default.example"]).keys(&directory, "default");
    let first = authority.issue(&["one.example"]);
    first.write(&certificates, "one.example");
    let tls = format!("{default}, directory = \"{}\"", certificates.file("").display());
    let evener = Evener::run(&service(0, &a, &tls));
    let listen = evener.port("s");
    let client = without_resumption(&authority);
    wait_for(listen, "one.example", &first, &client);
    assert!(
        served(listen, "two.example", &client).is_none(),
        "the default certificate must not be valid for this name"
    );
    let second = authority.issue(&["two.example"]);
    certificates.write("two.example.crt", &second.chain);
    evener.expect_log(" certificates_refused ");
    assert!(served(listen, "one.example", &client) == Some(first.der()));
    certificates.write("two.example.key", &second.key);
    wait_for(listen, "two.example", &second, &client);
    // An existing certificate changes.
    let changed = authority.issue(&["one.example"]);
    changed.write(&certificates, "one.example");
    wait_for(listen, "one.example", &changed, &client);
    for end in ["crt", "key"] {
        std::fs::remove_file(certificates.file(&format!("two.example.{end}"))).unwrap();
    }
    wait_until("the second certificate to be removed", || {
        served(listen, "two.example", &client).is_none().then_some(())
    });
    assert!(served(listen, "one.example", &client) == Some(changed.der()));
}

/// Connects with `openssl s_client` and options for the session, and returns its output.
fn s_client_output(listen: u16, version: &str, session: &[&str], certificate: &[String]) -> String {
    let more = certificate.iter().map(String::as_str);
    let arguments: Vec<&str> = ["-servername", "a.example", version]
        .into_iter()
        .chain(session.iter().copied())
        .chain(more)
        .collect();
    s_client(listen, &arguments, REQUEST)
}

/// Options that make `openssl s_client` send this certificate.
fn certificate_options(issued: &Issued, directory: &Directory, name: &str) -> Vec<String> {
    let (chain, key) = issued.write(directory, name);
    vec!["-cert".into(), chain.display().to_string(), "-key".into(), key.display().to_string()]
}

#[test]
fn a_changed_client_authority_applies_to_new_connections_and_to_tickets() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let a = mirror("a");
    let (ca, _) = first.write(&directory, "ca");
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let config = service(0, &a, &format!("{keys}, client_ca = \"{}\"", ca.display()));
    let evener = Evener::run(&config.replace("listen", "protocol = \"http\", listen"));
    let listen = evener.port("s");
    let one = certificate_options(&first.issue_client("one"), &directory, "one");
    let two = certificate_options(&second.issue_client("two"), &directory, "two");
    let versions = ["-tls1_2", "-tls1_3"].map(|version| (version, directory.file(version)));
    let versions = versions.map(|(version, file)| (version, file.display().to_string()));
    for (version, file) in &versions {
        assert!(s_client_output(listen, version, &["-sess_out", file], &one).contains("HTTP/1.1 200"));
        assert!(!s_client_output(listen, version, &[], &two).contains("HTTP/1.1 200"));
        let resumed = s_client_output(listen, version, &["-sess_in", file], &[]);
        assert!(resumed.contains("Reused") && resumed.contains("HTTP/1.1 200"), "{resumed}");
    }
    // When the service's certificate changes, the client's ticket stays valid.
    authority.issue(&["a.example"]).write(&directory, "a");
    wait_until("the certificate to be reloaded", || (reload_count(&evener) > 0).then_some(()));
    for (version, file) in &versions {
        let resumed = s_client_output(listen, version, &["-sess_in", file, "-sess_out", file], &[]);
        assert!(resumed.contains("Reused") && resumed.contains("HTTP/1.1 200"), "{version}: {resumed}");
    }
    let before = reload_count(&evener);
    directory.write("ca.crt", second.pem());
    wait_until("the authority to be reloaded", || (reload_count(&evener) > before).then_some(()));
    for (version, file) in &versions {
        assert!(s_client_output(listen, version, &[], &two).contains("HTTP/1.1 200"), "{version}");
        assert!(!s_client_output(listen, version, &[], &one).contains("HTTP/1.1 200"), "{version}");
        for certificate in [&one[..], &[]] {
            let printed = s_client_output(listen, version, &["-sess_in", file], certificate);
            assert!(
                !printed.contains("HTTP/1.1 200"),
                "{version}: the ticket must not bypass the new authority: {printed}"
            );
        }
    }
}

#[test]
fn changed_authorities_for_servers_are_loaded() {
    let (directory, first, second) = (Directory::new(), Authority::new("first"), Authority::new("second"));
    let server = tls_echo("b", &second.issue(&["b.example"]));
    let (ca, _) = first.write(&directory, "ca");
    let evener = Evener::run(&format!(
        "local p = pool \"p\" {{ \"127.0.0.1:{}\", tls = {{ ca = \"{}\", sni = \"b.example\" }}, passive = false }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", pool = p }}",
        server.port,
        ca.display()
    ));
    let listen = evener.port("s");
    assert_eq!(crate::harness::who(listen), "", "the server must not be trusted yet");
    directory.write("ca.crt", second.pem());
    wait_until("the server to be trusted", || (crate::harness::who(listen) == "b").then_some(()));
    assert_eq!(reload_count(&evener), 1);
}

#[test]
fn a_reload_loads_changed_files_unless_one_is_invalid() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let old = authority.issue(&["a.example"]);
    let config = service(0, &a, &old.keys(&directory, "a"));
    let evener = Evener::run(&config);
    let listen = evener.port("s");
    let client = without_resumption(&authority);
    directory.write("a.crt", &authority.issue(&["a.example"]).chain);
    let output = evener.run_command(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("service `s`") && text.contains("a.key is not the key of"), "{text}");
    assert!(served(listen, "a.example", &client) == Some(old.der()));
    let new = authority.issue(&["a.example"]);
    new.write(&directory, "a");
    evener.reload(&config);
    assert!(
        served(listen, "a.example", &client) == Some(new.der()),
        "the reload must load the new certificate"
    );
}

#[test]
fn check_reports_which_file_is_invalid() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let (a, b) = (authority.issue(&["a.example"]), authority.issue(&["b.example"]));
    a.write(&directory, "a");
    b.write(&directory, "b");
    directory.write("text", "this is not a certificate\n");
    directory.write("empty", "");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    directory.write("encrypted.key", encrypted);
    std::fs::create_dir(directory.file("empty-directory")).unwrap();
    let without_key = Directory::new();
    without_key.write("a.example.crt", &a.chain);
    let path = without_key.file("").display().to_string();
    let cases = [
        ("certificate = \"a.crt\", key = \"nowhere.key\"", "nowhere.key does not exist (the key of /"),
        ("certificate = \"nowhere.crt\", key = \"a.key\"", "nowhere.crt does not exist"),
        ("certificate = \"a.crt\", key = \"b.key\"", "b.key is not the key of"),
        ("certificate = \"a.crt\"", "a.crt has no private key: write tls = { certificate = "),
        ("certificate = \"a.key\", key = \"a.key\"", "a.key has a private key, but no certificate"),
        ("certificate = \"a.key\", key = \"a.crt\"", "a.crt a certificate: swap them"),
        ("directory = \"empty-directory\"", "empty-directory: add name.crt and name.key"),
        ("certificate = \"text\", key = \"a.key\"", "text has no certificate in PEM"),
        ("certificate = \"empty\", key = \"a.key\"", "empty is empty: write the certificate to it"),
        (
            "certificate = \"a.crt\", key = \"encrypted.key\"",
            "encrypted.key, of the certificate of a.example, is encrypted: decrypt it: openssl pkey -in",
        ),
        ("certificate = \"a.crt\", key = \"a.key\", client_ca = \"text\"", "text has no certificate in PEM"),
        ("certificate = \"a.crt\", key = \"a.key\", client_ca = \"nowhere\"", "nowhere does not exist"),
        ("certificate = \"a.crt\", key = \"a.key\", ocsp = \"nowhere.ocsp\"", "nowhere.ocsp does not exist"),
        ("directory = \"nowhere\"", "nowhere does not exist"),
        (&format!("directory = \"{path}\""), "a.example.key does not exist"),
    ];
    for (tls, expected) in cases {
        let config =
            format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", tls = {{ {tls} }} }}");
        let output =
            Command::new(BINARY).arg("check").arg(directory.write("c.lua", &config)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{tls}");
        assert!(text.contains("service `s`") && text.contains(expected), "{tls}: {text}");
        assert_eq!(text.lines().count(), 1, "{tls}: {text}");
    }
    // Every invalid file is reported, not only the first one.
    let tls = "certificates = { { certificate = \"a.crt\", key = \"b.key\" }, \"nowhere.pem\" }";
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\", tls = {{ {tls} }} }}");
    let output = Command::new(BINARY).arg("check").arg(directory.write("c.lua", &config)).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("b.key is not the key") && text.contains("nowhere.pem does not exist"), "{text}");
}

#[test]
fn certificates_that_expire_soon_are_logged() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let a = Server::named("a");
    let [soon, expired, good] = [("soon.example", 5), ("expired.example", -3), ("good.example", 30)]
        .map(|(name, days)| format!("{{ {} }}", authority.issue_until(name, days).keys(&directory, name)));
    let evener = Evener::run(&service(0, &a, &format!("certificates = {{ {good}, {soon}, {expired} }}")));
    evener.expect_log("warn  certificate_expires used_by=\"service s\" certificate=soon.example file=");
    evener.expect_log("warn  certificate_expired used_by=\"service s\" certificate=expired.example file=");
    assert!(!evener.log().contains("good.example"), "{}", evener.log());
    // A renewed certificate is not logged again. Another certificate that now expires soon is logged.
    let logged = evener.log().len();
    authority.issue(&["expired.example"]).write(&directory, "expired.example");
    authority.issue_until("good.example", 2).write(&directory, "good.example");
    evener.expect_log("certificate_expires used_by=\"service s\" certificate=good.example");
    let since = evener.log()[logged..].to_owned();
    assert!(!since.contains("expired.example"), "{since}");
}
