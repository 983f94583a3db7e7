//! The annotations for editors and the manual page, which are made from the reference.

use super::*;
use crate::config::lua::names;
use crate::config::reference::annotations::{annotations, type_of};
use crate::config::reference::manual::manual;

#[test]
fn the_values_of_each_key_have_a_type_in_the_annotations() {
    for key in all() {
        for table in key.tables.iter().filter(|table| !table.is_empty()) {
            let path = key.path_in(table);
            assert!(
                type_of(table, key).is_some(),
                "add the values of {path} to annotations.rs: {}",
                key.kind
            );
        }
    }
    let check = |path: &str, expected: &str| {
        let (table, name) = path.rsplit_once('.').unwrap();
        assert_eq!(type_of(table, find(table, name).unwrap()).as_deref(), Some(expected), "{path}");
    };
    check("pool.check", "evener.Check|evener.CheckFunction|string");
    check("service.pool", "evener.Pool|string");
    check("service.listen", "evener.address|evener.address[]");
    check("service.allow", "evener.prefix|evener.prefix[]");
    check("service.routes", "evener.service.routes[]");
    check("service.protocol", "\"tcp\"|\"udp\"|\"http\"|\"dns\"");
    check("pool.sticky", "true|evener.pool.sticky");
    check("server.weight", "integer");
    check("check.http.jitter", "number");
}

#[test]
fn the_annotations_declare_the_functions_of_the_language() {
    let lua = mlua::Lua::new_with(mlua::StdLib::NONE, mlua::LuaOptions::new()).unwrap();
    let before = names::of(&lua);
    lua.load(annotations()).exec().unwrap();
    let declared: BTreeSet<String> = names::of(&lua).difference(&before).cloned().collect();
    let expected = names::of_language();
    let missing: Vec<_> = expected.difference(&declared).collect();
    assert!(missing.is_empty(), "functions without annotations: {missing:?}");
    let unknown: Vec<_> = declared.difference(&expected).collect();
    assert!(unknown.is_empty(), "annotations of functions that the language does not have: {unknown:?}");
}

#[test]
fn the_annotations_describe_every_key() {
    let text = annotations();
    for key in all() {
        for table in key.tables.iter().filter(|table| !table.is_empty()) {
            let class = format!("---@class evener.{table}");
            let mut classes = text.split(&class).skip(1);
            let class = classes.find(|rest| rest.starts_with(['\n', ':'])).unwrap_or_default();
            let class = class.split("\n\n").next().unwrap_or_default();
            let path = key.path_in(table);
            assert!(class.contains(&format!("---@field {}? ", key.name)), "{path} is missing:\n{class}");
        }
    }
    // Each class of a type is declared.
    for class in text.split("evener.").skip(1) {
        let end = class.find(|c: char| !c.is_alphanumeric() && !"._".contains(c)).unwrap_or(class.len());
        let name = class[..end].trim_end_matches('.');
        if ["meta", "lua"].contains(&name) || name.starts_with("lua") {
            continue;
        }
        let is_declared = ["class", "class (exact)", "alias"].iter().any(|kind| {
            let declaration = format!("---@{kind} evener.{name}");
            text.split(&declaration).skip(1).any(|rest| rest.starts_with(['\n', ' ', ':']))
        });
        assert!(is_declared, "evener.{name} is not declared");
    }
}

#[test]
fn the_manual_page_describes_every_key_and_function() {
    let page = manual();
    for key in all() {
        let name = key.name.replace('-', "\\-");
        assert!(page.contains(&name) && !key.text.is_empty(), "{name} is missing");
    }
    for line in page.lines().filter(|line| line.starts_with('.')) {
        let request = line[1..].split(' ').next().unwrap();
        let known = ["TH", "SH", "SS", "PP", "TP", "B", "BR", "RS", "RE", "nf", "fi", "br"];
        assert!(known.contains(&request), "not a request of man(7): {line}");
    }
    assert!(!page.contains('`') && !page.contains("]("), "Markdown is left");
}
