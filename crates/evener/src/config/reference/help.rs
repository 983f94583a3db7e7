//! The text of `evener help KEY`: keys, tables and functions of a configuration, for a terminal.

use super::{Key, all, keys_of};
use crate::config::hints::{self, nearest};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Maximum width of a line.
const COLUMNS: usize = 79;
/// Width of the names in a list of keys.
const NAME_COLUMNS: usize = 22;
/// Maximum number of places that the help of one word describes in full.
const FULL_MAX: usize = 3;

/// Tables that keys begin from, with their descriptions.
const DECLARATIONS: [(&str, &str); 13] = [
    ("service", "where clients connect: service \"NAME\" { ... }"),
    ("pool", "servers and how they are picked: pool \"NAME\" { ... }"),
    ("server", "one server: { \"10.0.0.1:80\", ... }"),
    ("check.tcp", "check = check.tcp { ... }"),
    ("check.tls", "check = check.tls { ... }"),
    ("check.http", "check = check.http { ... }"),
    ("check.https", "check = check.https { ... }"),
    ("check.udp", "check = check.udp { ... }"),
    ("check.dns", "check = check.dns { ... }"),
    ("discover.file", "servers from a file: discover.file \"FILE\" { ... }"),
    ("discover.dns", "servers from a name: discover.dns \"NAME:PORT\" { ... }"),
    ("policy.ewma", "policy = policy.ewma { ... }"),
    ("policy.maglev", "policy = policy.maglev { ... }"),
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
         name, `evener help pool` the keys of a table. `evener help --keys` lists all.\n",
    );
    out
}

/// Returns a line for each key.
pub(crate) fn list() -> String {
    let mut out = String::new();
    for key in all() {
        for table in key.tables {
            let _ = writeln!(out, "{:<40} {}", key.path_in(table), code(key.kind));
        }
    }
    out
}

/// Returns true if the word names a key, a table or a function.
pub(crate) fn describes(word: &str) -> bool {
    is_table(word) || !found(word).is_empty()
}

/// Returns the description of a key, a table or a function, or a message with the most similar name.
pub(crate) fn describe(word: &str) -> Result<String, String> {
    let found = found(word);
    if found.is_empty() && !is_table(word) {
        return foreign(word).ok_or_else(|| unknown(word));
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
    let members: Vec<&str> = keys_of("")
        .map(|key| key.name)
        .filter(|name| name.starts_with(&format!("{}.", last(word))))
        .collect();
    if !members.is_empty() {
        let _ = write!(out, "\n    {:<11}{}", "See also:", wrapped(&members.join(", "), 15).trim_start());
    }
    Ok(out)
}

/// Returns the keys that a word names, each with its paths: the key of a path, or all keys of a name.
fn found(word: &str) -> Vec<(&'static Key, Vec<String>)> {
    let paths_of = |key: &'static Key| {
        let paths: Vec<String> = key.tables.iter().map(|table| key.path_in(table)).collect();
        let is_named = key.name == word && !key.tables.contains(&"");
        let given = paths.iter().any(|path| path == word);
        let alias = in_service(word).is_some_and(|word| paths.contains(&word));
        (is_named || given || alias).then_some((key, paths))
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

/// Returns the keys for a word of another program.
fn foreign(word: &str) -> Option<String> {
    let meanings: Vec<(&str, &str)> = hints::foreign(word).collect();
    let keys: BTreeSet<&str> = meanings.iter().map(|(_, key)| *key).collect();
    let programs: BTreeSet<&str> = meanings
        .iter()
        .flat_map(|(programs, _)| programs.split(", "))
        .filter(|one| !one.is_empty())
        .collect();
    let programs: Vec<&str> = programs.into_iter().collect();
    let of = if programs.is_empty() { String::new() } else { format!(" ({})", programs.join(", ")) };
    // A word for something that Evener does not have leads to no key.
    if keys.iter().eq(["service"].iter())
        && let Some(advice) = hints::written(word)
    {
        let why = advice.trim_start_matches("remove it: ");
        return Some(format!("`{word}`{of} is not a word of Evener: {why}\n"));
    }
    let mut out = format!("`{word}`{of} is not a word of Evener. See:\n");
    for key in &keys {
        let _ = writeln!(out, "    evener help {key}");
    }
    (!keys.is_empty()).then_some(out)
}

/// Returns the message for a word that names nothing.
fn unknown(word: &str) -> String {
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
    let _ = writeln!(out, "{}", paths.join(", "));
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
    let _ = writeln!(out, "    {:<11}{}", "Example:", written(key));
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
fn plain(markdown: &str) -> String {
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
    out.replace("`\"", "\"").replace("\"`", "\"")
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
