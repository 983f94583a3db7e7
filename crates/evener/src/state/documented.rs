//! The examples of docs/api.md are records of this module, with all keys of the example and no others.

use super::{ClientsView, ConnectionsView, Explanation, RuleView, StickyView, View};
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
}

/// The sections of docs/api.md whose examples contain all fields of their responses.
const SECTIONS: [&str; 6] = ["status", "access", "clients", "connections", "sticky", "explain"];
/// Counters and their declarations have names of their own.
const OPAQUE: [&str; 2] = ["counters", "declarations"];

/// Adds the paths of the fields of a value, such as `status.pools[].name`.
fn add_paths(value: &Value, path: &str, paths: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                if !OPAQUE.contains(&name.as_str()) {
                    add_paths(value, &path, paths);
                }
                paths.insert(path);
            }
        }
        Value::Array(entries) => {
            entries.iter().for_each(|entry| add_paths(entry, &format!("{path}[]"), paths));
        }
        _ => {}
    }
}

/// Adds the names of the counters of a set, such as `counters.service.drops.no_server`.
fn add_counters(set: &str, declared: &[Declaration], paths: &mut BTreeSet<String>) {
    for declaration in declared {
        let path = format!("counters.{set}.{}", declaration.name);
        let values = declaration.label.iter().flat_map(|label| label.values);
        paths.extend(values.map(|value| format!("{path}.{}", value.name)));
        paths.insert(path);
    }
}

/// With `EVENER_UPDATE_DOCS=1` the test adds new fields to the list. Only a person can remove a line, which breaks
/// the programs of users: see "What is stable" in docs/api.md.
#[test]
fn no_stable_field_is_removed() {
    let mut present = BTreeSet::new();
    for section in SECTIONS {
        add_paths(&example(&format!("`GET /v1/{section}")), section, &mut present);
    }
    add_counters("service", ServiceCounters::DECLARED, &mut present);
    add_counters("server", &[ServerCounters::DECLARED, CheckCounters::DECLARED].concat(), &mut present);
    add_counters("instance", EventCounters::DECLARED, &mut present);
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/src/state/stable_fields.txt");
    let stable: BTreeSet<String> =
        std::fs::read_to_string(list).unwrap_or_default().lines().map(str::to_owned).collect();
    let removed: Vec<&String> = stable.difference(&present).collect();
    assert!(removed.is_empty(), "stable fields must not be removed or renamed: {removed:?}");
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
