//! What testssl.sh (Debian's) says of an https service with the default settings: nothing above LOW that is about us.

use crate::harness::certificates::{Authority, mirror};
use crate::harness::{Directory, Evener, have};
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// What it finds that is not about us, and why.
const NOT_OURS: &[(&str, &str)] = &[
    ("cert_revocation", "the test's authority has neither CRL nor OCSP responder"),
    ("cert_expirationStatus", "the test's certificates have no end worth the name"),
    ("cert_validityPeriod", "the same"),
    ("cert_extlifeSpan", "the same"),
    ("cert_trust", "the name is a test's"),
    ("cert_chain_of_trust", "the authority is a test's, should --add-ca not be taken"),
    ("certificate_transparency", "the authority is a test's"),
    ("DNS_CAArecord", "the name is in no DNS"),
    ("engine_problem", "the openssl that it looks with may be without GOST"),
    // In TLS 1.3 tickets come after the handshake, when its `openssl s_client </dev/null` is gone already, so that it
    // has no session to resume with. `tls_sessions` looks at that itself.
    ("sessionresumption_ticket", "it does not wait for the tickets of TLS 1.3"),
];

/// The checks in two parts that take about as long as each other (about 25 s together with two cores): vulnerabilities; and
/// protocols, ciphers, forward secrecy, preferences, defaults. Left out: headers (-h), which are the application's, and
/// simulated clients (-c), which find only who gets in.
const PARTS: [&[&str]; 2] = [&["-U"], &["-p", "-s", "-f", "-P", "-S"]];

/// A check that was not made finds nothing: these have to be among what was found.
const MADE: &[&str] = &[
    "heartbleed",
    "CCS",
    "ticketbleed",
    "ROBOT",
    "secure_renego",
    "secure_client_renego",
    "CRIME_TLS",
    "BREACH",
    "POODLE_SSL",
    "fallback_SCSV",
    "SWEET32",
    "FREAK",
    "DROWN",
    "LOGJAM",
    "BEAST",
    "LUCKY13",
    "RC4",
    "SSLv2",
    "SSLv3",
    "TLS1",
    "TLS1_1",
    "TLS1_2",
    "TLS1_3",
    "cipherlist_NULL",
    "cipherlist_3DES_IDEA",
    "PFS",
    "cipher_order",
    "cert_keySize",
    "cert_signatureAlgorithm",
];

fn start(directory: &Directory, part: &[&str], file: &str, port: u16) -> Child {
    let printed = std::fs::File::create(directory.file(&format!("{file}.said"))).unwrap();
    let mut command = Command::new("timeout");
    command
        .args(["300", "testssl", "--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1"])
        .arg("--add-ca")
        .arg(directory.file("ca.crt"))
        .arg("--jsonfile")
        .arg(directory.file(file))
        .args(part)
        .arg(format!("https://a.example:{port}"));
    command.stdin(Stdio::null()).stdout(printed.try_clone().unwrap()).stderr(printed).spawn().unwrap()
}

#[test]
fn testssl_finds_nothing_above_low() {
    if !have("testssl") {
        return;
    }
    let (directory, authority, a) = (Directory::new(), Authority::new("test ca"), mirror("a"));
    let keys = authority.issue(&["a.example"]).keys(&directory, "a");
    authority.write(&directory, "ca");
    let evener = Evener::run(&format!(
        "service \"s\" {{ protocol = \"http\", listen = \"127.0.0.1:0\", \"127.0.0.1:{}\", tls = {{ {keys} }} }}",
        a.port
    ));
    let listen = evener.port("s");
    let files = ["vulnerabilities.json", "settings.json"];
    let parts: Vec<Child> =
        PARTS.iter().zip(files).map(|(part, file)| start(&directory, part, file, listen)).collect();
    for mut part in parts {
        part.wait().unwrap();
    }
    let mut found: Vec<Value> = Vec::new();
    for file in files {
        let printed = std::fs::read_to_string(directory.file(&format!("{file}.said"))).unwrap();
        let text = std::fs::read_to_string(directory.file(file)).unwrap_or_default();
        let part: Vec<Value> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {printed}"));
        found.extend(part);
    }
    let id = |finding: &Value| finding["id"].as_str().unwrap_or_default().to_owned();
    let missing: Vec<_> = MADE.iter().filter(|made| !found.iter().any(|one| id(one) == **made)).collect();
    assert!(missing.is_empty(), "not looked at: {missing:?}");
    // Below are OK, INFO and LOW; WARN says that a check failed, FATAL that nothing was checked.
    let worse = |finding: &&Value| !matches!(finding["severity"].as_str(), Some("OK" | "INFO" | "LOW"));
    let is_ours = |finding: &&Value| {
        let id = id(finding);
        !NOT_OURS.iter().any(|(known, _)| id == *known || id.starts_with(&format!("{known} ")))
    };
    let ours: Vec<String> = found
        .iter()
        .filter(worse)
        .filter(is_ours)
        .map(|finding| format!("{} {}: {}", finding["severity"], finding["id"], finding["finding"]))
        .collect();
    assert!(ours.is_empty(), "{ours:#?}");
}
