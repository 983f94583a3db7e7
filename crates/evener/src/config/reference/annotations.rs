//! Annotations of the configuration language for the language servers of editors (LuaLS), made from the reference.
//! The annotations describe keys and functions; only `evener check` validates a configuration.

use super::help::FORMS;
use super::{Key, all, keys_of};
use std::fmt::Write as _;

/// Functions with a form of their own, and the library of functions that run later.
const LIBRARY: &str = include_str!("../annotations/library.lua");

/// Returns the annotations as a file of Lua.
pub(crate) fn annotations() -> String {
    let mut out = String::from(
        "---@meta\n\n-- The configuration language of Evener, for editors with the Lua language server (LuaLS): \
         add the path of\n-- this file to workspace.library. Made by `evener annotations`; do not edit.\n\n",
    );
    // The library has an alias of its own for prefixes.
    for (name, text) in FORMS.iter().filter(|(name, _)| !["boolean", "prefix"].contains(name)) {
        let _ = write!(out, "---{text}\n---@alias evener.{name} string\n\n");
    }
    for table in tables() {
        write_class(&mut out, table);
    }
    for name in namespaces() {
        let _ = writeln!(out, "{name} = {{}}");
    }
    out.push('\n');
    keys_of("").filter_map(function).for_each(|function| out.push_str(&function));
    out + LIBRARY
}

/// Returns the tables of the reference in the order of the documentation.
fn tables() -> impl Iterator<Item = &'static str> {
    let mut seen = Vec::new();
    for table in all().flat_map(|key| key.tables).filter(|table| !table.is_empty()) {
        if !seen.contains(table) {
            seen.push(*table);
        }
    }
    seen.into_iter()
}

/// Returns the tables of functions that are not in the library: `check` and so on.
fn namespaces() -> impl Iterator<Item = &'static str> {
    let mut seen = Vec::new();
    for (name, _) in keys_of("").filter_map(|key| key.name.split_once('.')) {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen.into_iter()
}

fn write_class(out: &mut String, table: &str) {
    // A service with its own servers has the keys of a pool, too.
    let parent = if table == "service" { ": evener.pool" } else { "" };
    let _ = writeln!(out, "---@class evener.{table}{parent}");
    let items = match table {
        "pool" => Some("evener.item"),
        "server" | "check.exec" => Some("string"),
        _ => None,
    };
    if let Some(items) = items {
        let _ = writeln!(out, "---@field [integer] {items}");
    }
    for key in keys_of(table) {
        let kind = type_of(table, key).unwrap_or_else(|| "any".into());
        let _ = writeln!(out, "---{}\n---@field {}? {kind}", description(key), key.name);
    }
    out.push('\n');
}

/// Returns the description of a key or function on one line.
fn description(key: &Key) -> String {
    let mut text = key.text.to_owned();
    if !key.default.is_empty() {
        let _ = write!(text, " Default: {}.", key.default.trim_end_matches('.'));
    }
    if !key.protocols.is_empty() {
        let _ = write!(text, " Protocols: {}.", key.protocols.join(", "));
    }
    if !key.plane.is_empty() {
        let _ = write!(text, " Plane: {}.", key.plane);
    }
    // Links lead to sections of the documentation, which an editor does not have.
    text.replace("](#", "](docs/configuration.md#")
}

/// Returns the declaration of a function, or none if the library declares it.
fn function(key: &Key) -> Option<String> {
    let name = key.name;
    let call = key.kind.strip_prefix(name)?;
    let keys = if keys_of(name).next().is_some() { format!("evener.{name}") } else { "table".into() };
    let class = match name.split('.').next()? {
        "check" => "evener.Check",
        "policy" => "evener.Policy",
        "prefixes" | "country" => "evener.Prefixes",
        "pool" => "evener.Pool",
        "server" | "discover" => "evener.Source",
        _ => "",
    };
    let returned = |class: &str| match class {
        "" => String::new(),
        class => format!("---@return {class}\n"),
    };
    let text = description(key);
    match (call.starts_with(" \""), call.contains('{')) {
        // The braces are optional.
        (true, true) if class == "evener.Source" => Some(format!(
            "---@class evener.Source.{name}: evener.Source\n---@overload fun(keys: {keys}): evener.Source\n\n\
             ---{text}\n---@param name string\n---@return evener.Source.{name}\nfunction {name}(name) end\n\n"
        )),
        (true, true) => {
            let result = if class.is_empty() { String::new() } else { format!(": {class}") };
            Some(format!(
                "---{text}\n---@param name string\n---@return fun(keys: {keys}){result}\nfunction {name}(name) end\n\n"
            ))
        }
        (true, false) => Some(format!(
            "---{text}\n---@param name string\n{}function {name}(name) end\n\n",
            returned(class)
        )),
        (false, true) if name != "exec" => {
            let optional = if name.contains('.') { "?" } else { "" };
            Some(format!(
                "---{text}\n---@param keys{optional} {keys}\n{}function {name}(keys) end\n\n",
                returned(class)
            ))
        }
        _ => None,
    }
}

/// Returns the type of a key in a table, from the description of its values, or none if it is not understood.
pub(super) fn type_of(table: &str, key: &Key) -> Option<String> {
    let kind = match key.kind {
        "file, directory, or a list of them" => "file or list",
        "prime, at most 5000011" | "0 and up, less than the quorum" => "1 and up",
        "text such as `\"0660\"`" | "`\"0%\"` to `\"100%\"`" => "text",
        "list of `\"servfail\"`, `\"refused\"`" => return Some("(\"servfail\"|\"refused\")[]".into()),
        // A share.
        "0 to 1" | "0.000001 to 1" => return Some("number".into()),
        kind => kind,
    };
    let mut types: Vec<String> = Vec::new();
    for part in kind.replace(", or ", " or ").replace(", ", " or ").split(" or ") {
        let one = match type_of_word(table, key, part)? {
            Word::Type(one) => one,
            // A list of words is not limited to the words before it.
            Word::List => match types.last() {
                Some(item) if !item.starts_with('"') => format!("{item}[]"),
                _ => "string[]".into(),
            },
        };
        if !types.contains(&one) {
            types.push(one);
        }
    }
    Some(types.join("|"))
}

/// A part of the description of the values of a key.
enum Word {
    Type(String),
    /// A list of values of the part before it.
    List,
}

fn type_of_word(table: &str, key: &Key, word: &str) -> Option<Word> {
    if let Some(literal) = word.strip_prefix('`').and_then(|word| word.strip_suffix('`')) {
        return Some(Word::Type(match literal {
            "check.*" => "evener.Check|evener.CheckFunction".into(),
            "policy.*" => "evener.Policy".into(),
            "server" => "evener.Source".into(),
            "true" | "false" => literal.into(),
            quoted if quoted.starts_with('"') => quoted.into(),
            word => format!("\"{word}\""),
        }));
    }
    let below = || {
        let path = key.path_in(table);
        let has_class = keys_of(&path).next().is_some();
        if has_class { format!("evener.{path}") } else { "table".into() }
    };
    let is_number =
        word.split(' ').all(|part| part.parse::<u64>().is_ok() || ["to", "and", "up"].contains(&part));
    Some(Word::Type(match word {
        "list" | "a list" => return Some(Word::List),
        _ if word.starts_with("list of up to") => return Some(Word::List),
        "list of names" => "string[]".into(),
        "list of tables" => format!("{}[]", below()),
        "table" => below(),
        "boolean" | "true" | "false" => "boolean".into(),
        "function" => "evener.CheckFunction".into(),
        "a pool" => "evener.Pool".into(),
        "duration" | "size" | "rate" | "prefix" | "address" => format!("evener.{word}"),
        "port" | "status" | "bytes a second" => "integer".into(),
        "text" | "word" | "name" | "its name" | "host name" | "domain name" | "file" | "path"
        | "directory" | "a text" | "IP address" => "string".into(),
        _ if is_number => "integer".into(),
        _ => return None,
    }))
}
