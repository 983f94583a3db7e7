//! Hints for unknown keys and words: the table to which the key belongs, the name of the key in Evener, or the
//! most similar known key or word.

mod keys;
pub(super) mod values;
mod words;

pub(super) use keys::{Context, KeyHints, UnknownKey, in_table, joined_by_advice};
pub(super) use words::{foreign, written};
#[cfg(test)]
pub(super) use words::{foreign_keys, words_table};

use super::Location;
use super::raw::Run;
use super::reference;
use evener_core::spec::{Plane, Policy};

/// Words that are values of keys, and are easily written without quotes.
const WORDS: &[(&str, &[&str])] = &[
    ("policy", &Policy::NAMES),
    ("check", &super::check::KINDS),
    ("protocol", &["tcp", "udp", "http", "dns"]),
    ("plane", &Plane::NAMES),
    ("state", &["ready", "drain", "maintenance"]),
    ("denied", &["drop", "reject", "tarpit"]),
    ("exceeded", &["drop", "reject", "tarpit"]),
    ("forwarded", &["replace", "append", "off"]),
    ("redirect", &["https"]),
    ("by", &["client_ip", "cookie"]),
    ("on_down", &["keep", "close"]),
    ("send_proxy", &["v1", "v2"]),
    ("resolve", &["required", "optional"]),
];

/// An undefined name that the configuration uses.
pub(super) struct Undefined<'a> {
    /// `check.`, `policy.`, or empty for globals.
    namespace: &'a str,
    name: &'a str,
    /// The key whose value the name is.
    key: Option<&'a str>,
    is_called: bool,
    /// True if a pool has the name.
    is_pool: bool,
    /// The names that the file declares with `local`.
    locals: Vec<&'a str>,
    /// The text that the name begins if it is a file or host name without quotes, such as `a.crt`.
    file: Option<String>,
}

impl<'a> Undefined<'a> {
    /// Creates an undefined name that a line of the configuration uses.
    pub(super) fn new(namespace: &'a str, name: &'a str, run: &'a Run, location: &Location) -> Self {
        let source = run.source(location);
        Self {
            namespace,
            name,
            key: source.and_then(|source| source.key_of(location.line(), name)),
            is_called: source.is_some_and(|source| source.calls(location.line(), name)),
            is_pool: run.pools().iter().any(|pool| pool.name() == name),
            locals: source.map(|source| source.locals().collect()).unwrap_or_default(),
            file: source.and_then(|source| source.dotted(location.line(), name)),
        }
    }

    /// Returns true if the name may be a misspelt function. A global function of that name is only meant if it
    /// is called.
    pub(super) fn may_be_function(&self) -> bool {
        self.is_called || !self.namespace.is_empty()
    }

    /// Returns a hint with the punctuation before it. `defined` are the names that the name could mean.
    pub(super) fn hint(&self, defined: &[String]) -> String {
        let near = || nearest(self.name, defined.iter().map(String::as_str));
        match self.namespace {
            "" if reference::find("", self.name).is_some() => {
                ": the file has set it to nil or to an undefined value: give that variable another name"
                    .into()
            }
            "" => self.global_hint().unwrap_or_else(near),
            "policy." => self.policy_hint(defined).unwrap_or_else(near),
            "check." => check_hint(self.name).map_or_else(near, str::to_owned),
            _ => near(),
        }
    }

    /// Returns a hint for a policy without settings. Policies with settings are defined, as functions.
    fn policy_hint(&self, defined: &[String]) -> Option<String> {
        let known = Policy::NAMES.into_iter().chain(defined.iter().map(String::as_str));
        let policy = nearest_of(self.name, known).filter(|near| !defined.iter().any(|name| name == near))?;
        Some(format!(": write policy = \"{policy}\""))
    }

    fn global_hint(&self) -> Option<String> {
        let name = self.name;
        if let (Some(file), Some(key)) = (self.file.as_ref().filter(|_| name != "os"), self.key) {
            return Some(format!(": texts need quotes: write {key} = \"{file}\""));
        }
        let fixed = match name {
            "os" => ": the environment is read by env \"NAME\"",
            "upstream" | "backend" | "cluster" if self.is_called => "; use `pool`",
            "frontend" | "listener" | "entrypoint" if self.is_called => "; use `service`",
            "require" | "dofile" | "import" | "loadfile" if self.is_called => ": write include \"FILE.lua\"",
            "True" | "TRUE" | "yes" | "Yes" | "on" | "On" => ": write true",
            "False" | "FALSE" | "no" | "No" | "off" | "Off" => ": write false",
            "null" | "None" | "none" | "NULL" | "undefined" => ": omit the key, or write nil",
            "elif" | "elsif" | "elseIf" => ": write elseif",
            _ => "",
        };
        if !fixed.is_empty() {
            return Some(fixed.into());
        }
        if let Some(policy) = values::policy(name).filter(|_| self.key == Some("policy")) {
            return Some(format!(": write policy = \"{policy}\""));
        }
        let is_of_pool = self.key.is_some_and(|key| ["pool", "denied", "exceeded"].contains(&key));
        let near = nearest(name, self.locals.iter().copied());
        if is_of_pool && !self.is_called && !self.is_pool && !near.is_empty() {
            return Some(near);
        }
        if is_of_pool
            && !self.is_called
            && !self.is_pool
            && WORDS.iter().all(|(_, words)| !words.contains(&name))
        {
            let key = self.key.unwrap_or_default();
            return Some(format!(
                ": write {key} = \"{name}\" if a pool has this name, or local {name} = pool \"{name}\" {{ ... }} above it"
            ));
        }
        if self.is_called
            && self.key.is_none()
            && reference::tables_with(name).any(|(table, _)| !table.is_empty())
        {
            return Some(format!(": a key needs a =: write {name} = ..."));
        }
        if let Some(advice) = written(name).filter(|_| self.is_called) {
            return Some(format!("; {advice}"));
        }
        let fits =
            |key: &str, words: &[&str]| self.key.is_none_or(|given| given == key) && words.contains(&name);
        let word = WORDS.iter().find(|(key, words)| !self.is_called && fits(key, words));
        let key = word.map(|(key, _)| format!(": write {key} = \"{name}\""));
        let pool = || format!(": write \"{name}\" in quotes, or local {name} = pool \"{name}\" {{ ... }}");
        key.or_else(|| self.is_pool.then(pool))
    }
}

/// Returns the hint for a kind of check that other programs have.
fn check_hint(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "grpc" => {
            ": gRPC health checks are not available: write check = \"tcp\", or check = check.http { ... }"
        }
        "ping" | "icmp" => ": ping is not available: write check = \"tcp\"",
        "redis" => ": write check.tcp { send = \"PING\\r\\n\", expect = \"+PONG\" }",
        "smtp" => ": write check.tcp { begins = \"220 \" }",
        "mysql" | "pgsql" | "postgres" | "ldap" => ": write check = \"tcp\"",
        "ssl" => ": write check = \"tls\"",
        "script" | "exec" | "command" => ": commands are not run: write check = check.http { ... }",
        _ => return None,
    })
}

/// Returns the advice about a global that is never used: it may be meant as a key.
pub(super) fn unused_global(name: &str) -> String {
    if let Some(advice) = written(name) {
        return advice;
    }
    // A short name is similar to too many keys.
    let is_certain = |key: &&str| *key == name || name.len() >= 6;
    let near = ["service", "pool"].into_iter().find_map(|table| {
        let names = reference::keys_of(table).map(reference::Key::name);
        Some((table, nearest_of(name, names).filter(is_certain)?))
    });
    match near {
        Some((table, key)) => {
            format!("`{key}` is a key of a {table}: write it inside its braces")
        }
        None => format!("write local {name} if it is meant, or remove it"),
    }
}

/// Returns `; did you mean "X"?` if a word is similar enough.
pub(super) fn nearest_text<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest_of(word, known).map(|known| format!("; did you mean \"{known}\"?")).unwrap_or_default()
}

/// Returns `; did you mean `X`?` if a known word is similar enough. Letter case does not matter.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest_of(word, known).map(|known| format!("; did you mean `{known}`?")).unwrap_or_default()
}

fn nearest_of<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let near = |known: &'a str| (strsim::damerau_levenshtein(&word, &known.to_lowercase()), known);
    let close =
        known.map(near).filter(|(distance, known)| *distance <= 1 + known.len().min(word.len()) / 4).min();
    close.map(|(_, known)| known)
}

/// Returns words in quotes and other possible values: `"tcp", "udp" or a table`.
pub(super) fn one_of(words: &[&str], others: &str) -> String {
    let mut all: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    all.extend((!others.is_empty()).then(|| others.to_owned()));
    match all.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => all.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_listed_in_quotes() {
        assert_eq!(one_of(&["a", "b"], ""), "\"a\" or \"b\"");
        assert_eq!(one_of(&["a", "b"], "a pool"), "\"a\", \"b\" or a pool");
        assert_eq!(one_of(&["a"], ""), "\"a\"");
    }
}
