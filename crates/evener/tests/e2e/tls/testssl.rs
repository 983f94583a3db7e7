//! testssl.sh (Debian's) on an https service with the default settings: no finding above LOW that concerns Evener.

use crate::harness::certificates::{Authority, mirror};
use crate::harness::{Directory, Evener, have};
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// Findings that do not concern Evener, and why.
const UNRELATED: &[(&str, &str)] = &[
    ("cert_revocation", "the test's authority has neither CRL nor OCSP responder"),
    ("cert_expirationStatus", "the test's certificates expire in the far future"),
    ("cert_validityPeriod", "the test's certificates expire in the far future"),
    ("cert_extlifeSpan", "the test's certificates expire in the far future"),
    ("cert_trust", "the server name exists only in this test"),
    ("cert_chain_of_trust", "the authority exists only in this test, if --add-ca has no effect"),
    ("certificate_transparency", "the authority exists only in this test"),
    ("DNS_CAArecord", "the name is in no DNS"),
    ("engine_problem", "the openssl of testssl may have no GOST"),
    // In TLS 1.3 tickets arrive after the handshake. The `openssl s_client </dev/null` of testssl has ended by that time,
    // and has no session to resume. `tls::sessions` tests resumption itself.
    ("sessionresumption_ticket", "testssl does not wait for the tickets of TLS 1.3"),
];

/// The checks in two parts that take about the same time (about 25 s together with two cores): vulnerabilities; and
/// protocols, ciphers, forward secrecy, preferences, defaults. Not included are headers (-h), which belong to the
/// application, and simulated clients (-c), which only find the clients that can connect.
const PARTS: [&[&str]; 2] = [&["-U"], &["-p", "-s", "-f", "-P", "-S"]];

/// Checks that must be among the findings, because a check that did not run finds nothing.
const REQUIRED: &[&str] = &[
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
    let output = std::fs::File::create(directory.file(&format!("{file}.output"))).unwrap();
    let mut command = Command::new("timeout");
    command
        .args(["300", "testssl", "--quiet", "--color", "0", "--warnings", "batch", "--ip", "127.0.0.1"])
        .arg("--add-ca")
        .arg(directory.file("ca.crt"))
        .arg("--jsonfile")
        .arg(directory.file(file))
        .args(part)
        .arg(format!("https://a.example:{port}"));
    command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap()
}

#[test]
fn testssl_has_no_finding_above_low() {
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
        let printed = std::fs::read_to_string(directory.file(&format!("{file}.output"))).unwrap();
        let text = std::fs::read_to_string(directory.file(file)).unwrap_or_default();
        let part: Vec<Value> =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {printed}"));
        found.extend(part);
    }
    let id = |finding: &Value| finding["id"].as_str().unwrap_or_default().to_owned();
    let missing: Vec<_> =
        REQUIRED.iter().filter(|check| !found.iter().any(|one| id(one) == **check)).collect();
    assert!(missing.is_empty(), "checks that did not run: {missing:?}");
    // OK, INFO and LOW are lower. WARN means that a check failed, FATAL that nothing was checked.
    let worse = |finding: &&Value| !matches!(finding["severity"].as_str(), Some("OK" | "INFO" | "LOW"));
    let concerns_evener = |finding: &&Value| {
        let id = id(finding);
        !UNRELATED.iter().any(|(known, _)| id == *known || id.starts_with(&format!("{known} ")))
    };
    let failures: Vec<String> = found
        .iter()
        .filter(worse)
        .filter(concerns_evener)
        .map(|finding| format!("{} {}: {}", finding["severity"], finding["id"], finding["finding"]))
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
}
