//! The examples of docs/api.md are the records that the API sends, with all keys of the example and no others.

use super::Reloaded;
use super::access::AccessChangedView;
use super::cache::ExpungedView;
use super::connections::{ClientsClosedView, ClosedView, ServerClosedView};
use super::plan::ConfirmedView;
use super::server_state::StateChangedView;
use super::servers::ServerChangedView;
use crate::events::RecentEvents;
use crate::state::{
    ApplyView, ClientsView, ConnectionsView, Explanation, PlanView, RuleView, StickyView, View,
};
use evener_core::counters::{CheckCounters, CounterSet, Declaration, ServerCounters, ServiceCounters};
use evener_core::event::EventCounters;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;

/// Returns the first example of a section of docs/api.md.
fn example(section: &str) -> Value {
    let page = include_str!("../../../../docs/api.md");
    let section = page.split("\n## ").find(|text| text.starts_with(section)).expect(section);
    let lines = section.lines().skip_while(|line| !line.starts_with("    "));
    let example: String = lines.take_while(|line| line.starts_with("    ")).collect();
    serde_json::from_str(&example).expect(&example)
}

fn check<T: Serialize + DeserializeOwned>(section: &str) {
    let example = example(section);
    let record: T = serde_json::from_value(example.clone()).expect(section);
    assert_eq!(serde_json::to_value(record).expect(section), example, "{section}");
}

#[test]
fn examples_of_the_documentation_have_the_keys_of_the_records() {
    check::<View>("`GET /v1/status`");
    check::<Vec<RuleView>>("`GET /v1/access`");
    check::<ClientsView>("`GET /v1/clients");
    check::<ConnectionsView>("`GET /v1/connections");
    check::<StickyView>("`GET /v1/sticky");
    check::<Explanation>("`GET /v1/explain");
    check::<Reloaded>("`POST /v1/reload`");
    check::<ServerChangedView>("`POST /v1/pools");
    check::<ServerChangedView>("`PATCH /v1/pools");
    check::<ServerChangedView>("`DELETE /v1/pools");
    check::<PlanView>("`POST /v1/plan");
    check::<ApplyView>("`POST /v1/apply");
    check::<ConfirmedView>("`POST /v1/confirm`");
    check::<StateChangedView>("`POST /v1/servers/state`");
    check::<AccessChangedView>("`POST /v1/access`");
    check::<ClosedView>("`DELETE /v1/connections/17`");
    check::<ServerClosedView>("`DELETE /v1/connections?server");
    check::<ClientsClosedView>("`DELETE /v1/connections?client");
    check::<RecentEvents>("`GET /v1/events");
    check::<ExpungedView>("`POST /v1/cache/expunge`");
}

/// The sections of docs/api.md whose examples contain all fields of their responses, and the names of the responses
/// in the list.
const RESPONSES: [(&str, &str); 18] = [
    ("`GET /v1/status`", "status"),
    ("`GET /v1/access`", "access"),
    ("`GET /v1/clients", "clients"),
    ("`GET /v1/connections", "connections"),
    ("`GET /v1/sticky", "sticky"),
    ("`GET /v1/explain", "explain"),
    ("`GET /v1/events", "events"),
    ("`POST /v1/reload`", "reload"),
    ("`POST /v1/pools", "server_changed"),
    ("`POST /v1/plan", "plan"),
    ("`POST /v1/apply", "apply"),
    ("`POST /v1/confirm`", "confirm"),
    ("`POST /v1/servers/state`", "server_state"),
    ("`POST /v1/access`", "access_changed"),
    ("`DELETE /v1/connections/17`", "close"),
    ("`DELETE /v1/connections?server", "close_server"),
    ("`DELETE /v1/connections?client", "close_clients"),
    ("`POST /v1/cache/expunge`", "expunge"),
];
/// Counters, their declarations and reasons have names of their own. Each event has its own fields.
const OPAQUE: [&str; 4] = ["counters", "declarations", "fields", "reasons"];

/// Returns the name of the type of a value. Numbers with and without a fraction have different types.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Adds the paths and types of a value and of its fields, such as `status.pools[].name string`.
fn add_fields(value: &Value, path: &str, is_opaque: bool, fields: &mut BTreeSet<String>) {
    fields.insert(format!("{path} {}", type_of(value)));
    match value {
        Value::Object(entries) if !is_opaque => {
            for (name, value) in entries {
                add_fields(value, &format!("{path}.{name}"), OPAQUE.contains(&name.as_str()), fields);
            }
        }
        Value::Array(entries) if !is_opaque => {
            entries.iter().for_each(|entry| add_fields(entry, &format!("{path}[]"), false, fields));
        }
        _ => {}
    }
}

/// Adds the names and types of the counters of a set, such as `counters.service.drops.no_server integer`.
fn add_counters(set: &str, declared: &[Declaration], paths: &mut BTreeSet<String>) {
    for declaration in declared {
        let path = format!("counters.{set}.{}", declaration.name);
        let values = declaration.label.iter().flat_map(|label| label.values);
        paths.extend(values.map(|value| format!("{path}.{} integer", value.name)));
        paths.insert(format!("{path} {}", if declaration.label.is_some() { "object" } else { "integer" }));
    }
}

/// With `EVENER_UPDATE_DOCS=1` the test adds new fields to the list. Only a person can remove a line, which breaks
/// the programs of users: see "What is stable" in docs/api.md.
#[test]
fn no_stable_field_is_removed() {
    let mut present = BTreeSet::new();
    for (section, name) in RESPONSES {
        add_fields(&example(section), name, false, &mut present);
    }
    add_counters("service", ServiceCounters::DECLARED, &mut present);
    add_counters("server", &[ServerCounters::DECLARED, CheckCounters::DECLARED].concat(), &mut present);
    add_counters("instance", EventCounters::DECLARED, &mut present);
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/stable_fields.txt");
    let stable: BTreeSet<String> =
        std::fs::read_to_string(list).unwrap_or_default().lines().map(str::to_owned).collect();
    let removed: Vec<&String> = stable.difference(&present).collect();
    assert!(
        removed.is_empty(),
        "stable fields must not be removed or renamed, or get another type: {removed:?}"
    );
    if std::env::var_os("EVENER_UPDATE_DOCS").is_some() {
        let lines: Vec<&str> = present.iter().map(String::as_str).collect();
        std::fs::write(list, lines.join("\n") + "\n").unwrap();
        return;
    }
    let added: Vec<&String> = present.difference(&stable).collect();
    assert!(
        added.is_empty(),
        "new fields are not in the list of stable fields yet: {added:?}; \
         EVENER_UPDATE_DOCS=1 cargo test -p evener --lib no_stable_field"
    );
}
