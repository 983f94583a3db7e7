//! The examples of docs/scripting.md.

use crate::harness::{BINARY, Directory};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn each_example_of_the_page_is_a_valid_configuration() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/scripting.md");
    let page = fs::read_to_string(page).unwrap();
    let examples: Vec<&str> =
        page.split("```lua\n").skip(1).map(|text| text.split("```").next().unwrap()).collect();
    assert!(examples.len() >= 5, "there are only {} examples", examples.len());
    let directory = Directory::new();
    for example in examples {
        let service = if example.contains("service \"") {
            ""
        } else {
            "service \"s\" { listen = \"127.0.0.1:0\", \"10.0.0.1:80\" }\n"
        };
        let file = directory.write("example.lua", &format!("{service}{example}"));
        let output = Command::new(BINARY).arg("check").arg(&file).output().unwrap();
        assert!(output.status.success(), "{example}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_page_describes_each_function() {
    let page = include_str!("../../../../../docs/scripting.md");
    for name in [
        "http.get",
        "http.post",
        "tcp.connect",
        ":send",
        ":expect",
        ":receive",
        ":line",
        ":close",
        "udp.exchange",
        "dns.query",
        "exec(",
        "json.encode",
        "json.decode",
        "json.null",
        "log.info",
        "time.now",
        "time.monotonic",
        "time.sleep",
        "pool:add",
        "pool:remove",
        "pool:drain",
        "pool:ready",
        "pool:maintenance",
        "pool:up",
        "pool:servers",
        "pool:server(",
        "#pool",
        "server.weight",
        "examples/scripts/postgres.lua",
        "examples/scripts/redis.lua",
        "examples/scripts/smtp.lua",
        "examples/scripts/mysql.lua",
        "examples/scripts/ldap.lua",
        "examples/scripts/grpc.lua",
    ] {
        assert!(page.contains(name), "docs/scripting.md does not describe {name}");
    }
}
