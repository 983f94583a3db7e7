//! The examples of docs/api.md are records of this module, with all keys of the example and no others.

use super::{ClientsView, ConnectionsView, Explanation, RuleView, StickyView};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    check::<Vec<RuleView>>("`GET /v1/access`");
    check::<ClientsView>("`GET /v1/clients");
    check::<ConnectionsView>("`GET /v1/connections");
    check::<StickyView>("`GET /v1/sticky");
    check::<Explanation>("`GET /v1/explain");
}
