//! Messages for unknown keys. A key of another table is explained by the reference, a key of another program by
//! the table of words.

use super::{nearest, values, words};
use crate::config::raw::Value;
use crate::config::reference::{self, Key};
use std::collections::HashMap;

/// Maximum number of owners that a message proposes for a misplaced key.
const OWNERS_MAX: usize = 2;

/// Maximum number of messages that are stored during one reading.
const STORED_MAX: usize = 1000;

/// The kind of a declaration, which decides the hint about an unknown key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Context {
    /// The builder of the declaration.
    declaration: &'static str,
    /// The protocol, in the table of a service.
    protocol: Option<&'static str>,
    /// The plane, in the table of a service.
    plane: Option<&'static str>,
}

/// An unknown key.
pub(crate) struct UnknownKey<'a> {
    key: &'a str,
    /// Keys that lead from the declaration to the table, such as `dns.cache.`.
    prefix: &'a str,
    /// The value of the key.
    value: Option<&'a Value>,
    /// The pool that a service names.
    pool: Option<&'a str>,
    /// The keys that the table can have.
    known: &'a [&'static str],
}

/// Messages for the unknown keys of one reading. The same key is often wrong in each of thousands of servers.
#[derive(Default)]
pub(crate) struct KeyHints(HashMap<Misspelt, String>);

/// A key, the pool that its service names, the declaration, the keys that lead to the table, and the keys that
/// the table can have.
type Misspelt = (String, Option<String>, Context, String, Vec<&'static str>);

impl KeyHints {
    /// Returns the message for an unknown key, with the number that the configuration gives.
    pub(crate) fn unknown_key(&mut self, context: Context, unknown: &UnknownKey<'_>) -> String {
        let message = self.message(context, unknown);
        match unknown.value {
            Some(Value::Int(number)) if *number >= 0 => values::with_number(&message, *number),
            _ => message,
        }
    }

    fn message(&mut self, context: Context, unknown: &UnknownKey<'_>) -> String {
        let UnknownKey { key, prefix, pool, known, value } = *unknown;
        let depends_on_value = match value {
            None => false,
            // It can be the status of a response.
            Some(Value::Int(number)) => (100..1000).contains(number),
            Some(_) => true,
        };
        if depends_on_value {
            return context.message(unknown);
        }
        let misspelt = (key.to_owned(), pool.map(str::to_owned), context, prefix.to_owned(), known.to_vec());
        if let Some(message) = self.0.get(&misspelt) {
            return message.clone();
        }
        let message = context.message(unknown);
        if self.0.len() < STORED_MAX {
            self.0.insert(misspelt, message.clone());
        }
        message
    }
}

/// Joins the messages of keys with the same advice: several keys of another program may mean one setting, which is
/// proposed once.
pub(crate) fn joined_by_advice<'a>(
    prefix: &str,
    messages: impl Iterator<Item = (&'a str, String)>,
) -> Vec<(&'a str, String)> {
    let mut found: Vec<(Vec<&str>, String)> = Vec::new();
    let mut with_advice: HashMap<String, usize> = HashMap::new();
    for (key, message) in messages {
        if let Some((_, advice)) = message.split_once("; write ") {
            if let Some(at) = with_advice.get(advice) {
                found[*at].0.push(key);
                continue;
            }
            with_advice.insert(advice.to_owned(), found.len());
        }
        found.push((vec![key], message));
    }
    let join = |(keys, message): (Vec<&'a str>, String)| {
        let named: Vec<String> = keys.iter().map(|key| format!("`{prefix}{key}`")).collect();
        match (named.split_last(), message.split_once("; write ")) {
            (Some((last, rest)), Some((_, advice))) if !rest.is_empty() => {
                (keys[0], format!("unknown keys {} and {last}; write {advice}", rest.join(", ")))
            }
            _ => (keys[0], message),
        }
    };
    found.into_iter().map(join).collect()
}

impl<'a> UnknownKey<'a> {
    /// Creates an unknown key of a table, with the keys that lead to the table and the keys that the table can
    /// have.
    pub(crate) fn new(key: &'a str, prefix: &'a str, known: &'a [&'static str]) -> Self {
        Self { key, prefix, value: None, pool: None, known }
    }

    /// Sets the value of the key.
    pub(crate) fn with_value(self, value: Option<&'a Value>) -> Self {
        Self { value, ..self }
    }

    /// Sets the pool that the service names.
    pub(crate) fn of_pool(self, pool: Option<&'a str>) -> Self {
        Self { pool, ..self }
    }
}

impl Context {
    /// Creates the context of the table of a builder.
    pub(crate) fn of(builder: &'static str) -> Self {
        Self { declaration: builder, protocol: None, plane: None }
    }

    /// Sets the protocol of a service.
    pub(crate) fn set_protocol(&mut self, protocol: &'static str) {
        self.protocol = Some(protocol);
    }

    /// Sets the plane of a service.
    pub(crate) fn set_plane(&mut self, plane: &'static str) {
        self.plane = Some(plane);
    }

    /// Returns the builder of the declaration.
    pub(crate) fn declaration(self) -> &'static str {
        self.declaration
    }

    /// Returns the message for an unknown key.
    fn message(self, unknown: &UnknownKey<'_>) -> String {
        let UnknownKey { key, prefix, known, .. } = *unknown;
        let table = reference::table_of(self.declaration, prefix);
        if let Some(message) = self.of_another_plane(unknown, &table) {
            return message;
        }
        if let Some(message) = self.of_another_protocol(unknown, &table) {
            return message;
        }
        let of_value = unknown.value.and_then(|value| values::of_unknown_key(&table, key, value));
        if let Some(advice) = of_value.filter(|_| key != "cache" || self.protocol == Some("dns")) {
            return format!("unknown key `{prefix}{key}`; {advice}");
        }
        let word = words::find(key, &table);
        if let Some(word) = word.filter(|word| word.is_of_table()) {
            return format!("unknown key `{prefix}{key}`; {}", self.advice(word, unknown, &table));
        }
        if let Some(owners) = self.misplaced(unknown, &table) {
            return owners;
        }
        if let Some(word) = word {
            return format!("unknown key `{prefix}{key}`; {}", self.advice(word, unknown, &table));
        }
        let near = nearest(key, known.iter().copied());
        if !near.is_empty() {
            return format!("unknown key `{prefix}{key}`{near}");
        }
        // Keys of a pool are not in the list of a service that names its pool.
        let elsewhere = nearest(key, reference::keys_of("pool").map(Key::name));
        match elsewhere.is_empty() || self.declaration != "service" || !prefix.is_empty() {
            true => format!("unknown key `{prefix}{key}`; see `evener help {table}`"),
            false => format!("unknown key `{key}`{elsewhere} It is a key of the pool"),
        }
    }

    /// Returns the message for a key that the service could have in another plane.
    fn of_another_plane(self, unknown: &UnknownKey<'_>, table: &str) -> Option<String> {
        let (key, plane) = (unknown.key, self.plane?);
        let needed = (table == "service").then(|| reference::find(table, key)).flatten()?.plane();
        match needed {
            "" if plane == "ipvs" && ["access", "allow", "deny"].contains(&key) => Some(format!(
                "{key} is not available with plane = \"ipvs\", which has no access lists: use nftables, or write plane = \"xdp\""
            )),
            "" => None,
            needed if needed == plane => None,
            "xdp" if ["forward", "tunnel"].contains(&key) => {
                Some(format!("{key} needs plane = \"xdp\" or \"ipvs\""))
            }
            "xdp" | "ipvs" => Some(format!("{key} needs plane = \"{needed}\"")),
            _ => {
                let advice = match key {
                    "connections_max" | "flows_max" if plane == "ipvs" => "remove it: servers may have max",
                    "connections_max" | "flows_max" => "write xdp { flows = 1048576 }, for all services",
                    "idle_timeout" if plane == "ipvs" => "write ipvs { timeouts = { tcp = \"15min\" } }",
                    "per_client" | "exceeded" if plane == "xdp" => "write source_rate = \"1000/s\"",
                    "tls" | "routes" => {
                        "packets are passed on unread: let the servers end TLS, or write plane = \"proxy\""
                    }
                    "denied" if plane == "xdp" => "remove it: the packets of refused clients are dropped",
                    "source" if plane == "xdp" => {
                        "write forward = \"ipip\" and tunnel = { source = \"192.0.2.1\" }, or remove it"
                    }
                    _ => "remove it, or write plane = \"proxy\"",
                };
                Some(format!("{key} is not available with plane = \"{plane}\": {advice}"))
            }
        }
    }

    /// Returns the message for a key that the service could have with another protocol or without a pool.
    fn of_another_protocol(self, unknown: &UnknownKey<'_>, table: &str) -> Option<String> {
        let protocol = self.protocol?;
        let key = unknown.key;
        if table != "service" {
            return None;
        }
        if let Some(pool) = unknown.pool.filter(|_| reference::find("pool", key).is_some()) {
            return Some(format!("{key} is a key of the pool: move it to pool `{pool}`"));
        }
        if protocol == "dns" && reference::find("service.dns", key).is_some() {
            return None;
        }
        let protocols = reference::find("service", key)?.protocols();
        Some(match protocols {
            [one] => format!("{key} needs protocol = \"{one}\""),
            _ => format!("{key} is not available with protocol = \"{protocol}\""),
        })
    }

    /// Returns the advice about a word of another program.
    fn advice(self, word: &words::Word, unknown: &UnknownKey<'_>, table: &str) -> String {
        let (owner, name) = word.key().rsplit_once('.').unwrap_or(("", word.key()));
        if let Some(needed) = self.needed_protocol(word.key()) {
            let example = reference::find(owner, name).map_or("", Key::example);
            let instead = if word.key() == "service.response_timeout" {
                "; without it, use `idle_timeout`"
            } else {
                ""
            };
            let written = match word.advice() {
                "" => format!("write {}", in_table(owner, example)),
                advice => advice.to_owned(),
            };
            return format!("{written}, which needs protocol = \"{needed}\"{instead}");
        }
        if owner == table && unknown.known.contains(&name) && word.advice().is_empty() {
            let key = reference::find(owner, name).filter(|key| key.takes_words());
            let example = key.map_or(String::new(), |key| format!(", such as {}", key.example()));
            return format!("use `{name}`{example}");
        }
        let example = reference::find(owner, name).map_or("", Key::example);
        let written = match word.advice() {
            "" if owner == table => format!("write {example}"),
            "" => format!("write {}", in_table(owner, example)),
            advice => advice.to_owned(),
        };
        let root = owner.split('.').next().unwrap_or_default();
        if !written.starts_with("write ") || !word.advice().is_empty() && table.starts_with(root) {
            return written;
        }
        match (root, unknown.pool, self.declaration) {
            ("pool" | "check", Some(pool), "service") => format!("{written} in pool `{pool}`"),
            ("pool" | "check", _, "server") => format!("{written} in the pool"),
            ("service", _, "pool" | "server") => format!("{written} in the service"),
            _ => written,
        }
    }

    /// Returns the protocol that a key of the service needs, if the service has another protocol.
    fn needed_protocol(self, key: &str) -> Option<&'static str> {
        let protocol = self.protocol?;
        let mut parts = key.split('.');
        if parts.next() != Some("service") {
            return None;
        }
        // The tables that lead to the key may need a protocol, too.
        let mut table = "service".to_owned();
        for part in parts {
            match reference::find(&table, part)?.protocols() {
                [one] if *one != protocol => return Some(one),
                _ => table = format!("{table}.{part}"),
            }
        }
        None
    }

    /// Returns the message for a key that belongs to another table.
    fn misplaced(self, unknown: &UnknownKey<'_>, table: &str) -> Option<String> {
        let UnknownKey { key, prefix, pool, .. } = *unknown;
        let is_owner = |owner: &str| owner != table && !owner.is_empty();
        let mut owners: Vec<(&str, &Key)> =
            reference::tables_with(key).filter(|(owner, _)| is_owner(owner)).collect();
        // A service or pool hardly lacks a key of the admin API, unless no other table has it.
        let is_other = |owner: &str| owner.starts_with("admin") != table.starts_with("admin");
        if owners.iter().any(|(owner, _)| !is_other(owner)) {
            owners.retain(|(owner, _)| !is_other(owner));
        }
        let kinds: Vec<&str> =
            owners.iter().map(|(owner, _)| *owner).filter(|owner| owner.starts_with("check.")).collect();
        if table.starts_with("check.") && !kinds.is_empty() {
            return Some(format!("{key} needs {}", kinds.join(" or ")));
        }
        owners.sort_by_key(|(owner, _)| distance(table, owner));
        let (nearest, _) = owners.first()?;
        if self.protocol == Some("http") && nearest.starts_with("service.dns") {
            return Some(match key {
                "rate_limit" => {
                    "unknown key `rate_limit`; write per_client = { request_rate = \"100/s\" }".into()
                }
                _ => format!("{key} is not available with protocol = \"http\": only dns services have it"),
            });
        }
        let first = distance(table, nearest);
        let mut proposals: Vec<String> = Vec::new();
        let mut nouns: Vec<String> = Vec::new();
        let mut chosen: Vec<&str> = Vec::new();
        for (owner, found) in owners {
            // Farther tables are proposed only if they are as likely.
            if distance(table, owner) > first + 1 || proposals.len() == OWNERS_MAX {
                break;
            }
            let noun = noun(owner, self.declaration);
            let is_inside = chosen.iter().any(|outer: &&str| owner.starts_with(*outer));
            if nouns.contains(&noun) || is_inside {
                continue;
            }
            chosen.push(owner);
            proposals.push(self.move_to(owner, found, table, pool));
            nouns.push(noun);
        }
        Some(format!("{prefix}{key} is a key of {}: {}", nouns.join(" or "), proposals.join(", or ")))
    }

    /// Returns the advice to write a key in another table.
    fn move_to(self, owner: &str, key: &Key, table: &str, pool: Option<&str>) -> String {
        let root = owner.split('.').next().unwrap_or_default();
        let protocols =
            reference::find(root, owner.split('.').nth(1).unwrap_or_default()).map(Key::protocols);
        let needed = match (self.protocol, protocols) {
            (Some(given), Some([one])) if root == "service" && *one != given => {
                format!("protocol = \"{one}\" and ")
            }
            _ => String::new(),
        };
        match (owner, pool) {
            (parent, _) if table.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.')) => {
                let inner = table[parent.len() + 1..].split('.').next().unwrap_or_default();
                format!("write it beside `{inner}`, not inside")
            }
            ("service", _) => "move it to the service".into(),
            ("pool", Some(pool)) => format!("move it to pool `{pool}`"),
            ("pool", None) => "move it to the pool".into(),
            _ => format!("write {needed}{}", in_table(owner, key.example())),
        }
    }
}

/// Returns a measure of how unlikely it is that a key of a table is written in another one.
fn distance(table: &str, owner: &str) -> u32 {
    let root = |table: &str| table.split('.').next().unwrap_or_default().to_owned();
    let is_below = |table: &str, of: &str| table.strip_prefix(of).is_some_and(|rest| rest.starts_with('.'));
    let roots = (root(table), root(owner));
    let depth = owner.matches('.').count() as u32;
    match (roots.0.as_str(), roots.1.as_str()) {
        // A table inside this table, or around it.
        _ if is_below(owner, table) => 0,
        _ if is_below(table, owner) => 0,
        ("service", "service") | ("pool", "pool") => 2 + depth,
        ("service" | "pool", "check") | ("pool", "server") | ("server", "pool") => 1,
        ("service", "server" | "pool") | ("pool" | "server", "service") => 2 + depth,
        ("check", "check") | ("discover", "discover") => 1,
        ("check", "pool") => 2 + depth,
        _ => 6 + depth,
    }
}

/// Returns the name of a table in a message.
fn noun(table: &str, declaration: &str) -> String {
    match table.split_once('.') {
        Some((root @ ("pool" | "service"), keys))
            if ["pool", "server"].contains(&declaration) && root != declaration =>
        {
            format!("`{keys}` of {}", if root == "pool" { "the pool" } else { "a service" })
        }
        None if table == "pool" => "the pool".into(),
        None => format!("a {table}"),
        Some(("check", _)) => "a check".into(),
        Some(("service" | "server", "routes")) => "a route".into(),
        Some(("service" | "server" | "pool", keys)) => format!("`{keys}`"),
        Some(_) => table.to_owned(),
    }
}

/// Returns the contents of a table with the text around it: `check = check.http { path = "/" }`.
pub(crate) fn in_table(table: &str, contents: &str) -> String {
    let mut parts = table.split('.');
    let (root, rest): (&str, Vec<&str>) = (parts.next().unwrap_or_default(), parts.collect());
    match root {
        "service" | "pool" => rest.iter().rev().fold(contents.to_owned(), |inner, key| match *key {
            "routes" | "certificates" => format!("{key} = {{ {{ {inner} }} }}"),
            _ => format!("{key} = {{ {inner} }}"),
        }),
        "xdp" | "ipvs" | "admin" => {
            let contents =
                rest.iter().rev().fold(contents.to_owned(), |inner, key| format!("{key} = {{ {inner} }}"));
            format!("{root} {{ {contents} }}")
        }
        "server" if rest.is_empty() => format!("{{ \"10.0.0.1:80\", {contents} }}"),
        "server" => {
            format!("{{ \"10.0.0.1:80\", {} }}", in_table(&table.replacen("server", "service", 1), contents))
        }
        "check" => format!("check = {table} {{ {contents} }}"),
        "policy" => format!("policy = {table} {{ {contents} }}"),
        "discover" => match rest.first() {
            Some(&"file") => format!("discover.file \"servers.txt\" {{ {contents} }}"),
            Some(&"srv") => format!("discover.srv \"_http._tcp.example.org\" {{ {contents} }}"),
            _ => format!("discover.dns \"app.example:80\" {{ {contents} }}"),
        },
        _ => contents.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_for_the_same_mistake_is_made_once() {
        let mut hints = KeyHints::default();
        let mut message = |known| {
            let message = hints.unknown_key(Context::of("server"), &UnknownKey::new("wieght", "", known));
            (message, hints.0.len())
        };
        let near = "unknown key `wieght`; did you mean `weight`?";
        assert_eq!(message(&["weight", "tier"]), (near.into(), 1));
        assert_eq!(message(&["weight", "tier"]), (near.into(), 1));
        assert_eq!(message(&["tier"]).1, 2);
    }
}
