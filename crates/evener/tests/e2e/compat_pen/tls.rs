//! TLS by pen's options and commands, with curl and openssl as clients.

use crate::compat_pen::tcp::at;
use crate::harness::certificates::{Authority, Issued, curl, mirror, openssl, s_client};
use crate::harness::pen::{Pen, refused};
use crate::harness::{Directory, Server, have, reserved_port, wait_until};
use std::fs;
use std::process::Command;

/// An authority, its files, a server that mirrors requests, and a port to listen on.
struct Fixture {
    directory: Directory,
    authority: Authority,
    server: Server,
    listen: u16,
}

impl Fixture {
    fn new() -> Option<Self> {
        if !have("curl") || !have("openssl") {
            return None;
        }
        let (directory, authority) = (Directory::new(), Authority::new("test ca"));
        authority.write(&directory, "ca");
        Some(Self { directory, authority, server: mirror("a"), listen: reserved_port() })
    }

    fn file(&self, name: &str) -> String {
        self.directory.file(name).display().to_string()
    }

    fn issue(&self, name: &str) -> [String; 2] {
        let (chain, key) = self.authority.issue(&[name]).write(&self.directory, name);
        [chain, key].map(|path| path.display().to_string())
    }

    /// Runs pen with these options before its listen address and its server.
    fn pen(&self, options: &[&str]) -> Pen {
        let (listen, server) = (format!("127.0.0.1:{}", self.listen), at(&self.server));
        Pen::run(&[options, &[&listen, &server]].concat())
    }

    /// Sends a request to a host name, with a client certificate if given.
    fn request(&self, name: &str, client: Option<&Issued>) -> (u16, String) {
        let ca = self.file("ca.crt");
        let mut words = vec!["--cacert".to_owned(), ca];
        if let Some(issued) = client {
            let (chain, key) = issued.write(&self.directory, "client");
            words.extend(["--cert".into(), chain.display().to_string()]);
            words.extend(["--key".into(), key.display().to_string()]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        curl(self.listen, name, "https", &words)
    }

    /// Returns the subject of the certificate that a client gets for this host name.
    fn subject(&self, name: &str) -> String {
        let printed = s_client(self.listen, &["-servername", name], "");
        printed.lines().find_map(|line| line.strip_prefix("subject=")).unwrap_or_default().to_owned()
    }
}

#[test]
fn a_key_is_read_from_its_file_or_from_the_file_of_the_certificate() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("a.example");
    let both = fs::read_to_string(&chain).unwrap() + &fs::read_to_string(&key).unwrap();
    let both = fixture.directory.write("both.pem", &both).display().to_string();
    for options in [&["-E", &chain, "-K", &key][..], &["-E", &both], &["-Z", "-L", "ssl23", "-E", &both]] {
        let _pen = fixture.pen(options);
        let (status, body) = fixture.request("a.example", None);
        assert!(status == 200 && body.starts_with("a\nGET / HTTP/1.1"), "{options:?}: {status} {body}");
        assert!(!body.to_lowercase().contains("x-forwarded"), "without -H nothing is added: {body}");
    }
    let _pen = fixture.pen(&["-E", &both]);
    for (version, is_accepted) in [("-tls1_3", true), ("-tls1_2", true), ("-tls1_1", false), ("-tls1", false)]
    {
        let printed = s_client(fixture.listen, &[version, "-cipher", "ALL:@SECLEVEL=0"], "");
        assert_eq!(printed.contains("subject="), is_accepted, "{version}: {printed}");
    }
}

#[test]
fn forwarded_headers_name_https_behind_tls() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("a.example");
    let _pen = fixture.pen(&["-H", "-E", &chain, "-K", &key]);
    let ca = fixture.file("ca.crt");
    let spoofed = ["--cacert", &ca, "-H", "X-Forwarded-For: 10.6.6.6", "-H", "X-Forwarded-Proto: http"];
    let (status, body) = curl(fixture.listen, "a.example", "https", &spoofed);
    let fields: Vec<String> = body
        .lines()
        .map(str::to_lowercase)
        .filter(|line| line.starts_with("x-forwarded-for") || line.starts_with("x-forwarded-proto"))
        .collect();
    assert_eq!((status, fields.len()), (200, 2), "{body}");
    assert!(fields.contains(&"x-forwarded-for: 127.0.0.1".into()), "{body}");
    assert!(fields.contains(&"x-forwarded-proto: https".into()), "{body}");
}

#[test]
fn clients_without_a_valid_certificate_are_refused_if_one_is_required() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("a.example");
    let trusted = fixture.authority.issue_client("someone");
    let foreign = Authority::new("x").issue_client("someone");
    let (ca, hashed) = (fixture.file("ca.crt"), Directory::new());
    let hash = openssl(&["x509", "-noout", "-hash", "-in", &ca], "");
    fs::copy(&ca, hashed.file(&format!("{}.0", hash.trim()))).unwrap();
    let hashed = hashed.file("").display().to_string();
    for authorities in [["-G", &ca], ["-A", &hashed]] {
        let _pen = fixture.pen(&[&["-R", "-E", &chain, "-K", &key], &authorities[..]].concat());
        let requested =
            [Some(&trusted), Some(&foreign), None].map(|client| fixture.request("a.example", client).0);
        assert_eq!(requested, [200, 0, 0], "{authorities:?}");
    }
    // Without -R no certificate is required.
    let _pen = fixture.pen(&["-E", &chain, "-K", &key, "-G", &ca]);
    assert_eq!(fixture.request("a.example", None).0, 200);
}

/// Writes a certificate that was signed with the intermediate certificate in `NAME.ca`. Clients that trust only
/// `root.pem` need the intermediate certificate as well.
fn chain_of_three(directory: &Directory, name: &str) {
    let script = format!(
        "key='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
         openssl req -x509 $key -subj /CN=root -keyout root.key -out root.pem -days 30
         openssl req $key -subj /CN=between -keyout between.key -out between.csr
         echo basicConstraints=critical,CA:TRUE > between.ext
         openssl x509 -req -in between.csr -CA root.pem -CAkey root.key -CAcreateserial -extfile between.ext -days 30 -out {name}.ca
         openssl req $key -subj /CN={name} -keyout {name}.key -out leaf.csr
         echo subjectAltName=DNS:{name} > leaf.ext
         openssl x509 -req -in leaf.csr -CA {name}.ca -CAkey between.key -CAcreateserial -extfile leaf.ext -days 30 -out {name}.crt"
    );
    let output = Command::new("sh").args(["-ec", &script]).current_dir(directory.file("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn each_host_name_gets_its_certificate() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("default.example");
    let names = Directory::new();
    fixture.authority.issue(&["one.example"]).write(&names, "one.example");
    // The intermediate certificate is in a file in the same directory.
    chain_of_three(&names, "two.example");
    let pen =
        fixture.pen(&["-E", &chain, "-K", &key, "-o", &format!("ssl_sni_path {}", names.file("").display())]);
    assert_eq!(fixture.subject("one.example"), "CN = one.example");
    assert_eq!(fixture.subject("other.example"), "CN = default.example");
    let printed = s_client(fixture.listen, &["-servername", "two.example", "-showcerts"], "");
    assert_eq!(printed.matches("BEGIN CERTIFICATE").count(), 2, "{printed}");
    let root = names.file("root.pem").display().to_string();
    assert_eq!(curl(fixture.listen, "two.example", "https", &["--cacert", &root]).0, 200);
    // A certificate that is added while pen runs is loaded on HUP.
    fixture.authority.issue(&["three.example"]).write(&names, "three.example");
    pen.hang_up();
    assert_eq!(fixture.subject("three.example"), "CN = three.example");
}

#[test]
fn an_ocsp_response_is_stapled() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("a.example");
    let (ca, ca_key) = (fixture.file("ca.crt"), fixture.file("ca.key"));
    let serial = openssl(&["x509", "-noout", "-serial", "-in", &chain], "");
    let serial = serial.trim().trim_start_matches("serial=");
    let index = format!("V\t350101000000Z\t\t{serial}\tunknown\t/CN=a.example\n");
    let index = fixture.directory.write("index", &index).display().to_string();
    let make = |name: &str| {
        let out = fixture.file(name);
        openssl(
            &[
                "ocsp", "-index", &index, "-CA", &ca, "-rsigner", &ca, "-rkey", &ca_key, "-issuer", &ca,
                "-cert", &chain, "-ndays", "3", "-respout", &out,
            ],
            "",
        );
        assert!(fs::metadata(&out).is_ok_and(|meta| meta.len() > 100));
        out
    };
    let response = make("ocsp.der");
    let pen = fixture.pen(&["-E", &chain, "-K", &key, "-G", &ca]);
    let stapled = || {
        s_client(fixture.listen, &["-status", "-servername", "a.example"], "").contains("Cert Status: good")
    };
    assert!(!stapled());
    pen.order(&format!("ssl_ocsp_response {response}"));
    assert!(stapled());
    assert!(pen.ctl("ssl_ocsp_response /nowhere").contains("/nowhere"));
    assert!(stapled(), "the old OCSP response stays in use");
}

#[test]
fn ssl_options_are_applied_and_the_cipher_list_is_ignored() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("a.example");
    let pen = fixture.pen(&["-E", &chain, "-K", &key]);
    let accepts = |version: &str| s_client(fixture.listen, &[version], "").contains("subject=");
    assert!(accepts("-tls1_2") && accepts("-tls1_3"));
    pen.order("ssl_option no_tlsv1.2");
    assert!(!accepts("-tls1_2") && accepts("-tls1_3"));
    pen.order("ssl_ciphers HIGH");
    pen.expect_log("the list is not used");
    assert!(pen.ctl("ssl_option no_tlsv9").contains("no_tlsv9"));
    // A key that does not belong to the certificate changes nothing.
    let [_, other] = fixture.issue("b.example");
    assert!(!pen.ctl(&format!("ssl_key {other}")).is_empty());
    assert!(accepts("-tls1_3"));
    pen.order(&format!("ssl_ca {}", fixture.file("ca.crt")));
    pen.order("ssl_require_peer");
    wait_until("certificates to be required", || (fixture.request("a.example", None).0 == 0).then_some(()));
}

#[test]
fn options_that_have_no_effect_without_a_certificate_are_logged() {
    let Some(fixture) = Fixture::new() else { return };
    let pen = fixture.pen(&["-R", "-G", &fixture.file("ca.crt")]);
    pen.expect_log("-R and ssl_sni_path have no effect without -E: clients are served without TLS");
    assert_eq!(curl(fixture.listen, "a.example", "http", &[]).0, 200);
}

#[test]
fn invalid_tls_options_prevent_the_start() {
    let Some(fixture) = Fixture::new() else { return };
    let [chain, key] = fixture.issue("a.example");
    let [_, other] = fixture.issue("b.example");
    let nonsense = fixture.directory.write("nonsense", "no PEM\n").display().to_string();
    for (options, code, part) in [
        (&["-L", "ssl4"][..], 2, "ssl4 not known"),
        (&["-E", "/nowhere.pem"], 1, "/nowhere.pem does not exist"),
        (&["-E", &nonsense], 1, &nonsense),
        (&["-E", &chain], 1, "key"),
        (&["-E", &chain, "-K", &other], 1, "key"),
        (&["-E", &chain, "-K", &key, "-R", "-G", &nonsense], 1, &nonsense),
        (&["-U", "-E", &chain, "-K", &key], 1, "-E and -U cannot be combined"),
    ] {
        let listen = format!("127.0.0.1:{}", fixture.listen);
        let words = [options, &["-f", "-d", &listen, "127.0.0.1:9"]].concat();
        let (status, printed) = refused(&words);
        assert!(
            status == code && printed.starts_with("pen: ") && printed.contains(part),
            "{options:?}: {status} {printed}"
        );
    }
}
