//! Finds keys that a table of the source has twice. Lua keeps one of the values and silently drops the other.

use super::{Kind, Source};
use crate::config::Location;
use std::collections::HashMap;
use std::sync::Arc;

impl Source {
    /// Returns a message for each repetition of a key in a table, with its location.
    pub(in crate::config) fn repeated_keys(&self) -> Vec<(Location, String)> {
        let mut found = Vec::new();
        for (index, table) in self.tables.iter().enumerate() {
            let mut lines: HashMap<&str, u32> = HashMap::new();
            for (key, line) in table.keys.iter().filter_map(|at| self.key_at(*at)) {
                let Some(first) = lines.insert(key, line) else { continue };
                let first =
                    if first == line { "on this line".to_owned() } else { format!("on line {first}") };
                let message = format!(
                    "{}{key} is already set {first}, and Lua keeps only one of the values: remove one of them",
                    self.subject_of(index)
                );
                found.push((Location::new(Arc::clone(&self.file), line), message));
            }
        }
        found
    }

    /// Returns the key that begins at a token, and its line: a word, or a text in brackets.
    fn key_at(&self, at: usize) -> Option<(&str, u32)> {
        let name = match &self.tokens[at].kind {
            Kind::Word(name) => name,
            Kind::Symbol('[') => match self
                .tokens
                .get(at + 1..at + 4)
                .map(|next| [&next[0].kind, &next[1].kind, &next[2].kind])?
            {
                [Kind::Text(name), Kind::Symbol(']'), Kind::Equals] => name,
                _ => return None,
            },
            _ => return None,
        };
        Some((name, self.tokens[at].line))
    }

    /// Returns the declaration that a table belongs to, such as ``service `www`: ``; empty if it belongs to none.
    fn subject_of(&self, table: usize) -> String {
        let mut around = Some(table);
        while let Some(index) = around {
            let open = self.tables[index].open;
            // `service "www" {`, or `service("www", {`.
            let before = self.tokens[..open].iter().rev().map(|token| &token.kind);
            let mut before = before.filter(|kind| !matches!(kind, Kind::Symbol('(' | ',')));
            if let (Some(Kind::Text(name)), Some(Kind::Word(builder))) = (before.next(), before.next())
                && ["service", "pool", "server"].contains(&builder.as_str())
            {
                return format!("{builder} `{name}`: ");
            }
            around = self.around[open];
        }
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks the lines and messages of the repeated keys of a text.
    fn check(text: &str, expected: &[&str]) {
        let found = Source::new("x".into(), text).repeated_keys();
        let found: Vec<String> = found.iter().map(|(at, message)| format!("{at}: {message}")).collect();
        assert_eq!(found.len(), expected.len(), "{text}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found} instead of {expected}");
        }
    }

    #[test]
    fn a_key_twice_in_one_table_is_found() {
        check("service \"w\" { a = 1, a = 2 }", &["x:1: service `w`: a is already set on this line"]);
        check(
            "pool('p', {\n a = 1;\n b = { a = 2 },\n a = 3 })",
            &["x:4: pool `p`: a is already set on line 2"],
        );
        check(
            "service \"w\" { check = {\nc = 1,\n['c'] = 2 } }",
            &["x:3: service `w`: c is already set on line 2"],
        );
        check(
            "local t = { a = 1,\na = 2, a = 3 }",
            &["x:2: a is already set on line 1", "x:2: a is already set on this"],
        );
        check("f { a = function() return { b = 1, b = 2 } end }", &["x:1: b is already"]);
        check("f { a = 'x', -- a\n a = [[ y ]] }", &["x:2: a is already set on line 1"]);
        check("f { a = g(1, 2), a = 1 }", &["x:1: a is already set on this line"]);
        check("f { a = \"1\\\n2\", a = 2 }", &["x:2: a is already set on line 1"]);
    }

    #[test]
    fn other_repetitions_are_not_found() {
        check("f { a = 1 } g { a = 1 }", &[]);
        check("f { a = 1, { a = 1 }, { a = 2 }, b = { a = 3 } }", &[]);
        check("f { [x] = 1, [x] = 2, [1] = 1, [1] = 2 }", &[]);
        check("f { a = 1, \"a\", a, 'a', a == 1, a == 2, a <= 1, a >= 1, a ~= 1 }", &[]);
        check("f { a = 1 --[[, a = 2 ]], b = 1 -- , a = 3\n }", &[]);
        check("f { a = ', a = 1', b = [==[ , a = 2 ]==], c = \"\\\", a = 1\" }", &[]);
        check("f { a = function() local x = 1, 2; x = 3; x = 4 end, x = 1 }", &[]);
        check(
            "f { a = function() if b then x = 1; x = 2 end; x = 3; for i = 1, 2 do x = 4; end x = 5, 6; x = 7 end, x = 1 }",
            &[],
        );
        check(
            "f { a = function() repeat x = 1; x = 2 until y; while z do x = 1; end x = 3; end, x = 1 }",
            &[],
        );
        check("f { a = function(x, x, y) x = 1 end, x = 1 }", &[]);
        check("a = 1; a = 2; local t = {}; t.a = 1; t.a = 2", &[]);
        check("f { a = \"x\\z\n   , a = 1\", b = 2 }", &[]);
        check("f { a = 1, b =", &[]);
    }
}
