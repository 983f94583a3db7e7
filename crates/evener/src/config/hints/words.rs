//! Words of the configurations of other programs, with the keys of Evener. The hints about unknown keys and the
//! table in docs/configuration.md use them.

mod pools;
mod services;
mod unavailable;

use super::in_table;
use crate::config::reference;

/// Words of other programs for one key.
pub(crate) struct Word {
    /// The words in lower case, with `_` between their parts, separated by spaces.
    words: &'static str,
    /// The programs that have these words; empty for words that are only mistakes.
    of: &'static str,
    /// The tables in which a word means this key, separated by spaces. Empty: all tables.
    tables: &'static str,
    /// Path of the key in the reference.
    key: &'static str,
    /// The advice in a message. Empty: the example of the key.
    advice: &'static str,
}

impl Word {
    const NONE: Self = Self { words: "", of: "", tables: "", key: "", advice: "" };

    /// Returns the path of the key in the reference.
    pub(super) fn key(&self) -> &'static str {
        self.key
    }

    /// Returns the advice in a message. It is empty if the example of the key is the advice.
    pub(super) fn advice(&self) -> &'static str {
        self.advice
    }

    /// Returns true if the word has its meaning only in some tables.
    pub(super) fn is_of_table(&self) -> bool {
        !self.tables.is_empty()
    }
}

/// Returns the meaning of a word in a table. A meaning that belongs to this table comes first.
pub(super) fn find(word: &str, table: &str) -> Option<&'static Word> {
    let mut meanings = all().filter(|one| one.words.split(' ').any(|of| same(of, word)));
    let of_table = meanings.clone().find(|one| one.tables.split(' ').any(|of| of == table));
    of_table.or_else(|| meanings.find(|one| !one.is_of_table()))
}

/// Returns how the setting of a word is written in a configuration.
pub(crate) fn written(word: &str) -> Option<String> {
    let known = |one: &&Word| one.words.split(' ').any(|of| same(of, word)) && !one.of.is_empty();
    let mut meanings = all().filter(known);
    let meaning = meanings.clone().find(|one| !one.is_of_table()).or_else(|| meanings.next())?;
    let (table, name) = meaning.key.rsplit_once('.').unwrap_or(("", meaning.key));
    match meaning.advice {
        "" => reference::find(table, name).map(|key| format!("write {}", in_table(table, key.example()))),
        advice if advice.starts_with("use `") => Some(format!("see `evener help {}`", meaning.key)),
        advice => Some(advice.to_owned()),
    }
}

fn all() -> impl Iterator<Item = &'static Word> + Clone {
    services::WORDS.iter().chain(pools::WORDS).chain(unavailable::WORDS)
}

/// Returns the paths of the keys that words mean.
#[cfg(test)]
pub(crate) fn foreign_keys() -> impl Iterator<Item = &'static str> {
    all().map(|word| word.key)
}

/// Returns the table of words for docs/configuration.md.
#[cfg(test)]
pub(crate) fn words_table() -> String {
    use std::fmt::Write as _;
    let mut table = String::from("| word | of | key | in Evener |\n|---|---|---|---|\n");
    for Word { words, of, key, advice, .. } in all().filter(|word| !word.of.is_empty()) {
        let words: Vec<String> = words.split(' ').map(|word| format!("`{word}`")).collect();
        let (owner, name) = key.rsplit_once('.').unwrap_or(("", key));
        let example = reference::find(owner, name).map_or("", reference::Key::example);
        let advice = match *advice {
            "" => format!("`{}`", in_table(owner, example)),
            advice if advice.starts_with("use `") => String::new(),
            advice => advice.to_owned(),
        };
        let _ = writeln!(table, "| {} | {of} | `{key}` | {advice} |", words.join(", "));
    }
    table
}

/// Returns the meanings of a word: the programs that have it, and the path of the key.
pub(crate) fn foreign(word: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let meanings = all().filter(move |one| one.words.split(' ').any(|of| same(of, word)));
    meanings.map(|one| (one.of, one.key))
}

/// Returns true if two words differ only in letter case and separators: `passHostHeader` and `pass-host-header`
/// are `pass_host_header`.
fn same(one: &str, other: &str) -> bool {
    fn letters(word: &str) -> impl Iterator<Item = u8> {
        word.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| byte.to_ascii_lowercase())
    }
    letters(one).eq(letters(other))
}
