//! The text of `evener help KEY`: keys, tables and functions of a configuration, for a terminal.

use super::{Key, all, keys_of, library};
use crate::config::hints::{self, nearest};
use evener_core::spec::Policy;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Maximum width of a line.
const COLUMNS: usize = 79;
/// Width of the paths in the list of all keys.
const LIST_COLUMNS: usize = 41;
/// Width of the names in a list of keys.
const NAME_COLUMNS: usize = 22;
/// Maximum number of places that the help of one word describes in full.
const FULL_MAX: usize = 3;

/// Tables that keys begin from, with their descriptions.
pub(super) const DECLARATIONS: [(&str, &str); 19] = [
    ("service", "where clients connect: service \"NAME\" { ... }"),
    ("pool", "servers and how they are picked: pool \"NAME\" { ... }"),
    ("server", "one server: { \"10.0.0.1:80\", ... }"),
    ("xdp", "the XDP plane: xdp { ... }"),
    ("ipvs", "the IPVS plane: ipvs { ... }"),
    ("admin", "the admin API: admin { ... }"),
    ("check.tcp", "check = check.tcp { ... }"),
    ("check.tls", "check = check.tls { ... }"),
    ("check.http", "check = check.http { ... }"),
    ("check.https", "check = check.https { ... }"),
    ("check.udp", "check = check.udp { ... }"),
    ("check.dns", "check = check.dns { ... }"),
    ("check.script", "check = check.script { ... }"),
    ("check.smtp", "check = check.smtp { ... }"),
    ("check.exec", "check = check.exec { ... }"),
    ("discover.file", "servers from a file: discover.file \"FILE\" { ... }"),
    ("discover.dns", "servers from a name: discover.dns \"NAME:PORT\" { ... }"),
    ("policy.ewma", "policy = policy.ewma { ... }"),
    ("policy.maglev", "policy = policy.maglev { ... }"),
];

/// Values of keys that have the same form in all keys.
pub(super) const FORMS: [(&str, &str); 6] = [
    (
        "duration",
        "A text with a number and a unit: \"500ms\", \"2s\", \"5min\", \"1h\" or \"1h 30m\", at most 366 days. \"1m\" is a \
         minute.",
    ),
    ("size", "A text with a number of bytes and a unit: \"512B\", \"64KiB\", \"64MiB\" or \"1GiB\"."),
    ("rate", "A text with a number and a time: \"20/s\", \"100/m\" or \"1000/h\"."),
    (
        "prefix",
        "IP addresses as a text: one address such as \"192.0.2.7\", or a network such as \"192.0.2.0/24\" or \
         \"2001:db8::/32\".",
    ),
    (
        "address",
        "A host and a port as a text: \"10.0.0.1:80\", \"[2001:db8::1]:80\", \"name.example:80\" (servers only), or a \
         unix socket: a path that begins with / or ., or \"unix:PATH\".",
    ),
    ("boolean", "true or false, without quotes."),
];

/// Returns the tables of keys and the functions, for `evener help`.
pub(crate) fn overview() -> String {
    let mut out = String::from("Keys of the configuration:\n");
    for (table, text) in DECLARATIONS.iter().filter(|(table, _)| !table.contains('.')) {
        let _ = writeln!(out, "  {table:<12} {text}");
    }
    let others = DECLARATIONS.iter().map(|(table, _)| *table).filter(|table| table.contains('.'));
    let others: Vec<&str> = others.chain(["discover.srv"]).collect();
    out.push_str(&wrapped(&others.join(", "), 2));
    let functions: Vec<&str> = keys_of("").map(|key| key.name).filter(|name| !name.contains('.')).collect();
    let _ = write!(out, "\nFunctions of the configuration:\n{}", wrapped(&functions.join(", "), 2));
    out.push_str(
        "\n`evener help pool.sticky` describes a key, `evener help sticky` all keys of that\n\
         name, `evener help pool` the keys of a table, `evener help duration` a form of\n\
         values. `evener help --keys` lists all keys.\n",
    );
    out
}

/// Returns a line for each key.
pub(crate) fn list() -> String {
    let mut out = String::new();
    for key in all() {
        for table in key.tables {
            let values = wrapped(&code(key.kind), LIST_COLUMNS);
            let path = key.path_in(table);
            let _ = match path.chars().count() < LIST_COLUMNS {
                true => write!(out, "{path:<LIST_COLUMNS$}{}", values.trim_start()),
                false => write!(out, "{path}\n{values}"),
            };
        }
    }
    out
}

/// Returns true if the word names a key, a table or a function.
pub(crate) fn describes(word: &str) -> bool {
    is_table(word) || !found(word).is_empty() || form(word).is_some()
}

/// Returns the description of a key, a table or a function, or a message with the most similar name.
pub(crate) fn describe(word: &str) -> Result<String, String> {
    let found = found(word);
    if found.is_empty() && !is_table(word) {
        let other = of_library(word).or_else(|| form(word)).or_else(|| value(word));
        let other = other.or_else(|| foreign(word)).or_else(|| of_function(word));
        return other.ok_or_else(|| unknown(word));
    }
    let mut out = String::new();
    if let [(key, paths)] = &found[..] {
        write_key(&mut out, key, paths);
    } else if found.len() > FULL_MAX {
        let _ = writeln!(out, "`{word}` is a key of several tables:\n");
        for (key, paths) in &found {
            let _ = writeln!(out, "{}", paths.join(", "));
            out.push_str(&wrapped(&first_sentence(key.text), 4));
        }
        let (_, paths) = &found[0];
        let _ = writeln!(out, "\n`evener help {}` describes one of them.", paths[0]);
    } else {
        for (index, (key, paths)) in found.iter().enumerate() {
            out.push_str(if index > 0 { "\n" } else { "" });
            write_key(&mut out, key, paths);
        }
    }
    if is_table(word) {
        write_table(&mut out, word);
    }
    if let Some(form) = form(word) {
        out.push_str(&format!("\n{form}"));
    }
    let members: Vec<&str> = keys_of("")
        .map(|key| key.name)
        .filter(|name| name.starts_with(&format!("{}.", last(word))))
        .collect();
    if !members.is_empty() {
        let _ = write!(out, "\n    {:<11}{}", "See also:", wrapped(&members.join(", "), 15).trim_start());
    }
    Ok(out)
}

/// Returns the description of a function that functions of the file can call, such as `http.get`.
fn of_library(word: &str) -> Option<String> {
    let (forms, text) = library::describe(word)?;
    let text = wrapped(&plain(&text), 4);
    let where_to_call = wrapped("Functions that run later can call it: see docs/scripting.md.", 4);
    Some(format!("{}\n{text}\n{where_to_call}", forms.join("\n")))
}

/// Returns the description of the function whose argument a word names, such as `exec.allow`.
fn of_function(word: &str) -> Option<String> {
    let (function, argument) = word.rsplit_once('.')?;
    let found = found(function);
    let [(key, paths)] = &found[..] else { return None };
    let is_named = key.kind.contains(&format!("{argument} = "));
    let mut out = String::new();
    is_named.then(|| write_key(&mut out, key, paths))?;
    Some(out)
}

/// Returns the keys that a word names, each with its paths: the key of a path, or all keys of a name.
fn found(word: &str) -> Vec<(&'static Key, Vec<String>)> {
    let paths_of = |key: &'static Key| {
        let paths: Vec<String> = key.tables.iter().map(|table| key.path_in(table)).collect();
        let is_named = key.name == word && !key.tables.contains(&"");
        let is_end = |path: &String| word.contains('.') && path.ends_with(&format!(".{word}"));
        let given = paths.iter().any(|path| path == word || is_end(path));
        let is_of_checks = word.strip_prefix("check.") == Some(key.name)
            && paths.iter().any(|path| path.starts_with("check."));
        let alias = in_service(word).is_some_and(|word| paths.contains(&word));
        (is_named || given || is_of_checks || alias).then_some((key, paths))
    };
    all().filter_map(paths_of).collect()
}

/// Returns the path of a pool's key that is written as a key of a service: `service.sticky`.
fn in_service(word: &str) -> Option<String> {
    Some(format!("pool.{}", word.strip_prefix("service.")?))
}

/// Returns the name at the end of a path.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn is_table(word: &str) -> bool {
    keys_of(word).next().is_some() && !word.is_empty()
}

/// Returns the description of a form of values, such as `duration`, with keys that take it.
fn form(word: &str) -> Option<String> {
    let (_, text) = FORMS.iter().find(|(name, _)| *name == word)?;
    let takes = |key: &&Key| code(key.kind).split([' ', ',']).any(|part| part == word);
    let keys: Vec<String> = all()
        .filter(|key| !key.tables.contains(&""))
        .filter(takes)
        .filter_map(|key| key.tables.first().map(|table| key.path_in(table)))
        .collect();
    let keys = wrapped(&keys.join(", "), 15);
    Some(format!("{word} (a form of values)\n{}\n    {:<11}{}", wrapped(text, 4), "Keys:", keys.trim_start()))
}

/// Returns the keys that take a word as a value, such as `round_robin`.
fn value(word: &str) -> Option<String> {
    let takes = |key: &&Key| {
        let policy = key.name == "policy" && Policy::NAMES.contains(&word);
        policy || key.kind.contains(&format!("\"{word}\""))
    };
    let keys = all().filter(takes).flat_map(|key| key.tables.iter().map(|table| key.path_in(table)));
    let keys: BTreeSet<String> = keys.collect();
    let list: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut out = wrapped(&format!("\"{word}\" is a value of {}. See:", list.join(", ")), 0);
    keys.iter().for_each(|key| out.push_str(&format!("    evener help {key}\n")));
    (!keys.is_empty()).then_some(out)
}

/// Returns the keys for a word of other programs, each with the programs in which it means this key.
fn foreign(word: &str) -> Option<String> {
    let mut keys: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (programs, key) in hints::foreign(word) {
        keys.entry(key).or_default().extend(programs.split(", ").filter(|one| !one.is_empty()));
    }
    // A word for something that Evener does not have leads to no key.
    if keys.keys().eq(["service"].iter())
        && let Some(advice) = hints::written(word)
    {
        let why = advice.trim_start_matches("remove it: ");
        return Some(format!("`{word}` is not a word of Evener: {why}\n"));
    }
    let mut out = format!("`{word}` is not a word of Evener. See:\n");
    for (key, programs) in &keys {
        let programs: Vec<&str> = programs.iter().copied().collect();
        // The programs are those of all similar words for the key.
        let of = match programs.split_last() {
            None => String::new(),
            Some((last, [])) => format!("(of {last})"),
            Some((last, rest)) => format!("(of {} or {last})", rest.join(", ")),
        };
        let line = format!("    evener help {key:<30} {of}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
    (!keys.is_empty()).then_some(out)
}

/// Returns the message for a word that names nothing.
fn unknown(word: &str) -> String {
    if matches!(word, "keys" | "key" | "all" | "config" | "configuration") {
        return format!("there is no command, key or function `{word}`; `evener help --keys` lists all keys");
    }
    let mut names = BTreeSet::new();
    for key in all() {
        names.insert(key.name.to_owned());
        names.extend(key.tables.iter().flat_map(|table| [(*table).to_owned(), key.path_in(table)]));
    }
    names.remove("");
    let near = nearest(word, names.iter().map(String::as_str));
    format!("there is no command, key or function `{word}`{near}\n`evener help --keys` lists all keys")
}

fn write_key(out: &mut String, key: &Key, paths: &[String]) {
    let is_function = key.tables.contains(&"");
    out.push_str(&wrapped(&paths.join(", "), 0));
    out.push_str(&wrapped(&plain(key.text), 4));
    out.push('\n');
    let mut line = |name: &str, value: &str| {
        let value = wrapped(value, 15);
        let _ = write!(out, "    {name:<11}{}", value.trim_start());
    };
    line(if is_function { "Syntax:" } else { "Values:" }, &code(key.kind));
    if !key.default.is_empty() {
        line("Default:", &code(key.default));
    }
    if !key.protocols.is_empty() {
        line("Protocols:", &key.protocols.join(", "));
    }
    if !key.plane.is_empty() {
        line("Plane:", key.plane);
    }
    line("Example:", &written(key));
    if !key.section.is_empty() {
        let _ = writeln!(out, "    {:<11}docs/configuration.md{}", "More:", key.section);
    }
    let nested: Vec<String> = paths.iter().filter(|path| !is_function && is_table(path)).cloned().collect();
    if let Some(table) = nested.first() {
        out.push_str("\n  Keys:\n");
        write_keys(out, table);
    }
}

/// Returns the example of a key in its table.
fn written(key: &Key) -> String {
    let table = key.tables.first().copied().unwrap_or_default();
    hints::in_table(table, key.example)
}

/// Writes the keys of a table, unless the description of a key of this path already has them.
fn write_table(out: &mut String, table: &str) {
    let is_function = super::find("", table).is_some();
    if !out.is_empty() && !is_function && !DECLARATIONS.iter().any(|(name, _)| *name == table) {
        return;
    }
    if out.is_empty() {
        let text = DECLARATIONS.iter().find(|(name, _)| *name == table).map(|(_, text)| *text);
        let _ = writeln!(out, "{table}\n    {}", text.unwrap_or_default());
    }
    out.push_str("\n  Keys:\n");
    write_keys(out, table);
}

fn write_keys(out: &mut String, table: &str) {
    for key in keys_of(table) {
        let protocols = match key.protocols {
            [] if ["xdp", "ipvs"].contains(&key.plane) => format!("{}: ", key.plane),
            [] => String::new(),
            protocols => format!("{}: ", protocols.join(", ")),
        };
        let values = match key.default {
            "" => code(key.kind),
            default => format!("{} (default: {})", code(key.kind), code(default)),
        };
        let text = wrapped(&values, 4 + NAME_COLUMNS)
            + &wrapped(&format!("{protocols}{}", first_sentence(key.text)), 4 + NAME_COLUMNS);
        let name = key.name;
        let _ = write!(out, "    {name:<NAME_COLUMNS$}{}", text.trim_start());
    }
}

/// Returns the first sentence of a text. A point ends a sentence if a space and a capital letter follow.
fn first_sentence(text: &str) -> String {
    let text = plain(text);
    let ends = text.match_indices(". ").map(|(at, _)| at);
    let end = ends.into_iter().find(|at| text[at + 2..].starts_with(|c: char| c.is_uppercase() || c == '`'));
    end.map_or_else(|| text.clone(), |at| text[..=at].to_owned())
}

/// Returns Markdown as plain text: without backticks at words in quotes, and without links.
pub(super) fn plain(markdown: &str) -> String {
    let mut out = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        match link.split_once("](").and_then(|(text, rest)| Some((text, rest.split_once(')')?))) {
            Some((text, (_, after))) => {
                out.push_str(before);
                out.push_str(text);
                rest = after;
            }
            None => {
                out.push_str(before);
                out.push('[');
                rest = link;
            }
        }
    }
    out.push_str(rest);
    // Every second part is between backticks.
    let parts = out.split('`').enumerate().map(|(index, part)| match index % 2 {
        0 => part.to_owned(),
        _ if part.len() > 1 && part.starts_with('"') && part.ends_with('"') => part.to_owned(),
        _ => format!("`{part}`"),
    });
    parts.collect()
}

/// Returns values or a default without backticks.
fn code(markdown: &str) -> String {
    plain(markdown).replace('`', "")
}

/// Breaks a text into lines that are indented by a number of columns. The last line ends, too.
fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    let mut column = COLUMNS + 1;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column + 1 + width > COLUMNS {
            out.push_str(if out.is_empty() { "" } else { "\n" });
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out + "\n"
}
