//! Reports of `evener check` and `evener status` about certificates: mistakes in the files, chains that clients
//! cannot verify, and certificates that have expired or expire soon.

use crate::harness::certificates::{Authority, Issued, openssl};
use crate::harness::{BINARY, Directory, Evener, Server};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use std::process::{Command, Output};

/// Runs `evener check` for a service with some TLS settings.
fn check(directory: &Directory, tls: &str, options: &[&str]) -> Output {
    let config = format!("service \"s\" {{ listen = \"127.0.0.1:1\", \"10.0.0.1:1\",\ntls = {{ {tls} }} }}");
    let file = directory.write("c.lua", &config);
    Command::new(BINARY).arg("check").args(options).arg(file).output().unwrap()
}

fn messages(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a mistake in the files is the only message, at the line of the TLS settings.
fn check_mistake(directory: &Directory, tls: &str, expected: &str) {
    let output = check(directory, tls, &[]);
    let text = messages(&output);
    assert_eq!(output.status.code(), Some(1), "{tls}: {text}");
    assert!(text.contains("c.lua:2: service `s`: ") && text.contains(expected), "{tls}: {text}");
    assert_eq!(text.lines().count(), 1, "{tls}: {text}");
}

/// Checks the warnings about valid files.
fn check_warnings(directory: &Directory, tls: &str, expected: &[&str]) {
    let output = check(directory, tls, &[]);
    let text = messages(&output);
    assert!(output.status.success(), "{tls}: {text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{tls}: {text}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains("c.lua:2: warning: service `s`: ") && line.contains(expected), "{line}");
    }
}

#[test]
fn files_in_other_forms_are_named_with_the_command_that_converts_them() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    let issued = authority.issue(&["a.example"]);
    let (chain, key) = issued.write(&directory, "a");
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let made = |name: &str, arguments: &[&str]| {
        let path = directory.file(name).display().to_string();
        openssl(&[arguments, &["-out", &path]].concat(), "");
    };
    made("a.der", &["x509", "-in", &chain, "-outform", "der"]);
    made("key.der", &["pkey", "-in", &key, "-outform", "der"]);
    made("a.p12", &["pkcs12", "-export", "-in", &chain, "-inkey", &key, "-passout", "pass:x"]);
    made("a.p7b", &["crl2pkcs7", "-nocrl", "-certfile", &chain]);
    made("a.csr", &["req", "-new", "-key", &key, "-subj", "/CN=a.example"]);
    made("a.pub", &["pkey", "-in", &key, "-pubout"]);
    made("v1.csr", &["req", "-new", "-key", &key, "-subj", "/CN=old.example"]);
    let request = directory.file("v1.csr").display().to_string();
    made("v1.crt", &["x509", "-req", "-in", &request, "-signkey", &key, "-days", "30"]);
    made("ed448.key", &["genpkey", "-algorithm", "ed448"]);
    directory.write("cut.crt", &issued.chain[..issued.chain.len() / 2]);
    for (file, expected) in [
        ("a.der", "a.der is a certificate in DER, not PEM: convert it: openssl x509 -inform der -in"),
        ("a.p12", "a.p12 is PKCS #12 (.p12, .pfx), not PEM: convert it: openssl pkcs12 -nodes -in"),
        ("a.p7b", "a.p7b is PKCS #7, not PEM: convert it: openssl pkcs7 -print_certs -in"),
        ("a.csr", "a.csr is a certificate request (CSR), not a certificate: use the certificate that"),
        ("cut.crt", "cut.crt has a certificate that is damaged or cut off"),
        (
            "v1.crt",
            "v1.crt: the certificate of CN=old.example has version 1 of X.509, and TLS needs version 3",
        ),
    ] {
        check_mistake(&directory, &format!("certificate = \"{file}\", key = \"a.key\""), expected);
    }
    check_mistake(
        &directory,
        "certificate = \"a.crt\", key = \"a.key\", client_ca = \"a.key\"",
        "a.key is a private key: client_ca needs the certificates of the authorities that issue the clients' certificates",
    );
    check_mistake(
        &directory,
        "certificate = \"a.crt\", key = \"a.key\", issuers = \"a.key\"",
        "a.key is a private key, not a certificate",
    );
    for (file, expected) in [
        ("key.der", "key.der is in DER, not PEM: convert it: openssl pkey -inform der -in"),
        ("a.pub", "a.pub is a public key, not a private key"),
        (
            "ed448.key",
            "ed448.key: the key is Ed448, which is not supported: use RSA of 2048 bits or more, ECDSA on P-256 or P-384, or Ed25519 (key of the certificate of a.example in ",
        ),
    ] {
        check_mistake(&directory, &format!("certificate = \"a.crt\", key = \"{file}\""), expected);
    }
}

#[test]
fn a_chain_in_the_wrong_order_is_reported_with_its_first_certificate() {
    let (directory, authority, other) =
        (Directory::new(), Authority::new("test ca"), Authority::new("other ca"));
    let issued = authority.issue(&["a.example", "www.a.example"]);
    let write = |name: &str, chain: &str| {
        Issued { chain: chain.to_owned(), key: issued.key.clone() }.write(&directory, name);
    };
    write("a", &issued.chain);
    write("reversed", &format!("{}{}", authority.pem(), issued.chain));
    write("right", &format!("{}{}", issued.chain, authority.pem()));
    write("unrelated", &format!("{}{}", issued.chain, other.pem()));
    let tls = |name: &str| format!("certificate = \"{name}.crt\", key = \"{name}.key\"");
    check_mistake(
        &directory,
        &tls("reversed"),
        "reversed.crt has its certificates in the wrong order: it begins with CN=test ca, but the key belongs to the certificate of a.example, www.a.example: put that one first",
    );
    check_warnings(&directory, &tls("right"), &[]);
    let (_, authority_key) = authority.write(&directory, "authority");
    check_mistake(
        &directory,
        &format!("certificate = \"right.crt\", key = \"{}\"", authority_key.display()),
        "authority.key is the key of CN=test ca, the issuer of the certificate of a.example, www.a.example in ",
    );
    check_warnings(
        &directory,
        &tls("unrelated"),
        &["CN=other ca is not the issuer of a.example, www.a.example, which is CN=test ca"],
    );
    let without_names = authority.issue_client("no-names");
    without_names.write(&directory, "no-names");
    let output = check(&directory, &tls("no-names"), &["--strict"]);
    let text = messages(&output);
    assert!(
        text.contains("the certificate CN=no-names in ") && text.contains(" has no host names"),
        "{text}"
    );
    assert_eq!(output.status.code(), Some(1), "{text}");
}

#[test]
fn a_public_certificate_without_its_intermediate_has_a_warning() {
    let directory = Directory::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    // Certificate Transparency: only public authorities add timestamps (RFC 6962).
    let timestamps = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 11129, 2, 4, 2], vec![4, 2, 0, 0]);
    params.custom_extensions.push(timestamps);
    let chain = params.self_signed(&key).unwrap().pem();
    Issued { chain, key: key.serialize_pem() }.write(&directory, "a");
    check_warnings(
        &directory,
        "certificate = \"a.crt\", key = \"a.key\"",
        &["a.crt has only the certificate of a.example, without the intermediate certificate"],
    );
}

#[test]
fn expired_certificates_have_warnings_that_strict_refuses() {
    let (directory, authority) = (Directory::new(), Authority::new("test ca"));
    for (name, days) in [("good", 30), ("soon", 5), ("expired", -3)] {
        authority.issue_until(&format!("{name}.example"), days).write(&directory, name);
    }
    let tls = |name: &str| format!("certificate = \"{name}.crt\", key = \"{name}.key\"");
    check_warnings(&directory, &tls("good"), &[]);
    check_warnings(&directory, &tls("soon"), &["the certificate of soon.example in "]);
    check_warnings(&directory, &tls("expired"), &["the certificate of expired.example in "]);
    let path = directory.file("").display().to_string();
    let expired = ["the certificate of expired.example in ", "the certificate of soon.example in "];
    check_warnings(&directory, &format!("directory = \"{path}\""), &expired);
    let with_authority = format!("{}, client_ca = \"expired.crt\"", tls("good"));
    check_warnings(&directory, &with_authority, &["the authority CN=expired.example in "]);
    // Other authorities of the file are valid.
    let both = ["good", "expired"]
        .map(|name| std::fs::read_to_string(directory.file(&format!("{name}.crt"))).unwrap());
    directory.write("both.pem", &both.concat());
    check_warnings(&directory, &format!("{}, client_ca = \"both.pem\"", tls("good")), &[]);
    let output = check(&directory, &tls("expired"), &[]);
    assert!(messages(&output).contains(" UTC, 3 days ago: renew it"), "{}", messages(&output));
    let summary = String::from_utf8_lossy(&output.stdout);
    assert!(summary.ends_with(": valid: 1 service, 1 pool, 1 server; 1 warning\n"), "{summary}");
    for option in ["--strict", "--deny-warnings"] {
        let output = check(&directory, &tls("expired"), &[option]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            messages(&output).ends_with("c.lua: refused because of 1 warning (--strict)\n"),
            "{}",
            messages(&output)
        );
        assert!(check(&directory, &tls("good"), &[option]).status.success());
    }
}

#[test]
fn the_status_shows_the_certificates_of_a_service() {
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), Server::named("a"));
    let [good, expired] = [("good", 30), ("expired", -3)].map(|(name, days)| {
        format!("{{ {} }}", authority.issue_until(&format!("{name}.example"), days).keys(&directory, name))
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", tls = {{ certificates = {{ {good}, {expired} }} }} }}",
        a.port
    ));
    let status = evener.status();
    let certificates = &status["certificates"];
    assert_eq!(certificates.as_array().unwrap().len(), 2, "{certificates}");
    assert_eq!(certificates[0]["names"], serde_json::json!(["expired.example"]));
    assert_eq!((&certificates[0]["state"], &certificates[1]["state"]), (&"expired".into(), &"valid".into()));
    assert_eq!(certificates[1]["problem"], serde_json::Value::Null);
    assert_eq!((&certificates[0]["service"], &certificates[0]["role"]), (&"s".into(), &"certificate".into()));
    assert_eq!(certificates[0]["pool"], serde_json::Value::Null);
    let file = certificates[0]["file"].as_str().unwrap();
    assert!(file.ends_with("expired.crt"), "{file}");
    for key in ["not_before", "not_after"] {
        let time = certificates[0][key].as_str().unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{key}: {time}");
    }
    let text = String::from_utf8_lossy(&evener.run_command(&["status"]).stdout).into_owned();
    assert!(
        text.contains("certificate of service s: expired.example expired on ") && text.contains("3 days ago"),
        "{text}"
    );
    assert!(!text.contains("good.example"), "{text}");
    let text = String::from_utf8_lossy(&evener.run_command(&["status", "s"]).stdout).into_owned();
    for part in
        ["  certificate of service s: expired.example expired on ", "  certificate good.example valid until "]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn warnings_are_logged_at_the_start_and_at_a_reload() {
    let config = |keys: &str| {
        format!("service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:1\",\n{keys} }}")
    };
    let evener = Evener::run(&config("http2 = true"));
    evener.expect_log("warn  config_warning warning=\"");
    assert!(
        evener.log().contains("evener.lua:2: service `s`: http2 has no effect without tls"),
        "{}",
        evener.log()
    );
    let logged = evener.log().len();
    evener.reload(&config("deny = \"192.0.2.1/24\""));
    evener.expect_log("`192.0.2.1/24` means the whole network 192.0.2.0/24");
    let since = evener.log()[logged..].to_owned();
    assert!(!since.contains("http2 has no effect"), "{since}");
    // The command prints the warnings, too.
    let output = evener.run_command(&["reload"]);
    assert!(output.status.success());
    let expected = "evener.lua:2: warning: service `s`: `192.0.2.1/24` means the whole network 192.0.2.0/24";
    assert!(messages(&output).contains(expected), "{}", messages(&output));
    let json = evener.run_command(&["reload", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(json["warnings"][0].as_str().unwrap().contains(expected), "{json}");
}

#[test]
fn a_warning_about_a_renewed_certificate_is_logged() {
    let (directory, authority, other) =
        (Directory::new(), Authority::new("test ca"), Authority::new("other ca"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", \"127.0.0.1:1\", tls = {{ {keys} }} }}"
    ));
    assert!(!evener.log().contains("config_warning"), "{}", evener.log());
    let renewed = authority.issue(&["a.example"]);
    let chain = format!("{}{}", renewed.chain, other.pem());
    Issued { chain, key: renewed.key }.write(&directory, "a");
    evener.expect_log("CN=other ca is not the issuer of a.example, which is CN=test ca");
}
