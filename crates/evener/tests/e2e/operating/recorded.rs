//! Choices that are recorded and derived again without the instance.

use crate::admin::access::{error_of, output_of};
use crate::harness::{BINARY, Evener, Server, who};
use std::fs;
use std::process::{Command, Output};

fn replay(file: &std::path::Path, more: &[&str]) -> Output {
    Command::new(BINARY).args(["explain", "--replay"]).arg(file).args(more).output().unwrap()
}

#[test]
fn a_recorded_choice_is_derived_again_without_the_instance() {
    let server = Server::named("x");
    for policy in evener_core::spec::Policy::NAMES {
        let evener = Evener::run(&format!(
            "pool \"p\" {{ policy = \"{policy}\", {{ \"127.0.0.1:{0}\", name = \"a\" }}, {{ \"127.0.0.1:{0}\", name = \"b\" }}, \
             {{ \"127.0.0.1:{0}\", name = \"c\", weight = 2 }}, {{ \"127.0.0.1:{0}\", name = \"d\" }} }}
             service \"s\" {{ listen = \"127.0.0.1:0\", pool = \"p\" }}",
            server.port
        ));
        (0..5).for_each(|_| assert_eq!(who(evener.port("s")), "x"));
        output_of(&evener, &["drain", "d"]);
        let file = evener.file("choice.json");
        let path = file.display().to_string();
        let recorded = output_of(&evener, &["explain", "s", "192.0.2.7", "--record", &path]);
        let has_scores = ["least_conn", "p2c", "ewma", "hash", "least_outstanding"].contains(&policy);
        assert_eq!(recorded.contains("SCORE"), has_scores, "{recorded}");
        assert!(recorded.contains("chosen by the policy") && recorded.contains("draining"), "{recorded}");
        let text = fs::read_to_string(&file).unwrap();
        drop(evener);
        let directory = crate::harness::Directory::new();
        let recorded_file = directory.write("choice.json", &text);
        let replayed = replay(&recorded_file, &[]);
        assert!(replayed.status.success(), "{policy}: {}", String::from_utf8_lossy(&replayed.stderr));
        assert_eq!(String::from_utf8_lossy(&replayed.stdout), recorded, "{policy}");
        let json = replay(&recorded_file, &["--json"]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["servers"].as_array().unwrap().len(), 4);
        let foreign = directory.write("foreign.json", "{}");
        let refused = replay(&foreign, &[]);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("not a recorded choice"));
    }
}

#[test]
fn a_client_without_a_choice_has_nothing_to_record() {
    let evener =
        Evener::run("service \"s\" { listen = \"127.0.0.1:0\", \"127.0.0.1:1\", deny = \"192.0.2.0/24\" }");
    let file = evener.file("choice.json").display().to_string();
    let error = error_of(&evener, &["explain", "s", "192.0.2.7", "--record", &file]);
    assert!(error.contains("nothing to record"), "{error}");
    assert!(!evener.file("choice.json").exists());
}
