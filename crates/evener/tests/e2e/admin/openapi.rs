//! The OpenAPI document is valid, and the API responds to generated requests as the document says.

use super::access::api;
use super::remote::{api_port, write_tokens};
use crate::harness::{Directory, Evener, python};
use std::process::Command;

const TOKEN: &str = "0123456789abcdef-openapi";

/// Runs a module of Python that must succeed.
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn the_document_is_valid_and_generated_requests_get_documented_responses() {
    let Some(python) = python() else { return };
    let directory = Directory::new();
    let tokens = write_tokens(&directory, "tokens", &format!("ops {TOKEN}\n"), 0o600);
    let evener = Evener::run(&format!(
        "admin {{ listen = \"127.0.0.1:0\", token_file = \"{tokens}\" }}
         pool \"web\" {{ \"127.0.0.1:1\", sticky = true }}
         service \"s\" {{ listen = \"127.0.0.1:0\", pool = \"web\", clients = 100 }}"
    ));
    let (status, document) = api(&evener, "GET", "/v1/openapi.json", None);
    assert_eq!(status, 200, "{document}");
    let file = directory.write("openapi.json", &document.to_string());
    run(Command::new(&python).args(["-m", "openapi_spec_validator"]).arg(&file));

    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let url = format!("http://127.0.0.1:{}", api_port(&evener));
    let mut schemathesis = Command::new(python.with_file_name("schemathesis"));
    schemathesis.arg("run").arg(&file).args(["--url", &url]).current_dir(directory.file(""));
    schemathesis.args(["--header", &format!("Authorization: Bearer {TOKEN}"), "--checks", checks]);
    // A stream of events has no end.
    // An upgrade replaces the process.
    schemathesis.args(["--exclude-path", "/v1/upgrade"]);
    schemathesis.args(["--exclude-path", "/v1/events", "--max-examples", "20", "--max-time", "30"]);
    schemathesis.args(["--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-shrink"]);
    run(schemathesis.args(["--suppress-health-check", "all", "--request-timeout", "20"]));
}
