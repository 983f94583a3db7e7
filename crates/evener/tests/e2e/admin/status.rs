//! `evener status`: the keys of its JSON, which are those of `GET /v1/status`, and its text.

use super::access::{api, output_of};
use crate::harness::{Evener, reserved_port, wait_until};
use serde_json::{Value, json};

/// Replaces each value by the name of its type. A list becomes the shape of its first entry, and counters become
/// the type of a counter, because the list of counters grows.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
        Value::Array(entries) => Value::Array(entries.first().map(shape).into_iter().collect()),
        Value::Object(entries) => {
            let shape = |(key, value): (&String, &Value)| {
                // The counters and their descriptions have tests of their own.
                let is_opaque = ["counters", "declarations"].contains(&key.as_str()) && value.is_object();
                (key.clone(), if is_opaque { json!(key) } else { shape(value) })
            };
            Value::Object(entries.iter().map(shape).collect())
        }
    }
}

/// The keys of the status of the test's configuration.
fn documented_keys() -> Value {
    json!({
        "version": "string",
        "pid": "number",
        "uptime_s": "number",
        "workers": "number",
        "draining": "bool",
        "descriptors": {
            "limit": "number", "used": "number", "reserved": "number", "others": "number",
            "connections_max": "number",
        },
        "services": [{
            "name": "string",
            "protocol": "string",
            "plane": "string",
            "tls": "bool",
            "listen": ["string"],
            "pool": "string",
            "pools": ["string"],
            "connections_max": "number",
            "connections_active": "number",
            "connects_pending": "number",
            "warm": "number",
            "flows_active": "number",
            "cache": { "entries": "number", "bytes": "number", "hits": "number", "misses": "number" },
            "counters": "counters",
            "recent": { "seconds": "number", "counters": "counters" },
        }],
        "certificates": [],
        "pools": [{
            "name": "string",
            "policy": "string",
            "sticky_clients": "number",
            "sticky_by": "string",
            "queue": { "waiting": "number", "size": "number", "timeout_s": "number" },
            "retry_budget": { "retries": "number", "retries_max": "number" },
            "check": {
                "kind": "string", "every_s": "number", "timeout_s": "number", "rise": "number", "fall": "number",
            },
            "servers": [{
                "name": "string",
                "address": "string",
                "tier": "number",
                "weight": "number",
                "max": "number",
                "hard": "number",
                "state": "string",
                "state_since_s": "number",
                "verdict": "string",
                "reason": "string",
                "since_s": "number",
                "active": "number",
                "associations": "number",
                "warm": "number",
                "last_check": {
                    "passed": "bool", "reason": "string", "ago_s": "number", "took_s": "number",
                },
                "counters": "counters",
                "recent": { "seconds": "number", "counters": "counters" },
            }],
        }],
        "counters": "counters",
        "declarations": "declarations",
    })
}

#[test]
fn the_status_has_its_documented_keys_as_json() {
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"dns\", dns = {{ cache = true }},\n\
         sticky = {{ by = \"client_ip\" }}, check = check.tcp {{ every = \"50ms\" }},\n\
         {{ \"127.0.0.1:{}\", max = 5, hard = 9 }} }}",
        reserved_port()
    ));
    wait_until("the server to be down", || {
        (evener.status()["pools"][0]["servers"][0]["verdict"] == "down").then_some(())
    });
    let expected = documented_keys();
    let (status, body) = api(&evener, "GET", "/v1/status", None);
    assert_eq!((status, shape(&body)), (200, expected.clone()));
    let printed: Value = serde_json::from_str(&output_of(&evener, &["status", "--json"])).unwrap();
    assert_eq!(shape(&printed), expected);
}

#[test]
fn absent_values_have_no_keys() {
    let evener = Evener::run(&format!(
        "pool \"p\" {{ \"127.0.0.1:{}\" }}\n\
         service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", routes = {{ {{ host = \"a\", pool = \"p\" }} }} }}",
        reserved_port()
    ));
    let status = evener.status();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let (service, pool) = (&status["services"][0], &status["pools"][0]);
    for (value, absent) in [
        (service, &["pool", "cache"][..]),
        (pool, &["sticky_clients"]),
        (&pool["servers"][0], &["max", "hard", "reason"]),
    ] {
        assert!(keys(value).iter().all(|key| !absent.contains(&key.as_str())), "{value}");
    }
}
