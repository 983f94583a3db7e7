//! Finds the lines of keys. Lua reports only the line of a call, so the source is searched for the key or
//! text.

use super::{Location, syntax};
use std::collections::HashMap;
use std::sync::Arc;

/// If the first token with a text is a value, at most this number of later tokens with the same text are
/// searched for a key.
const VALUES_MAX: usize = 4;

/// A file of the configuration as a list of the relevant tokens. An index makes searches fast: a file may have
/// a hundred thousand servers, each with its own line.
#[derive(Debug)]
pub(super) struct Source {
    file: Arc<str>,
    text: Box<str>,
    tokens: Vec<Token>,
    /// Positions in `tokens` of each word and text, ascending.
    named: HashMap<String, Vec<usize>>,
    /// For each opening brace, in order: its position and the position behind the closing brace.
    tables: Vec<(usize, usize)>,
}

#[derive(Debug, PartialEq)]
struct Token {
    line: u32,
    kind: Kind,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Word(String),
    Text(String),
    Open,
    Close,
    Equals,
    Other,
}

impl Source {
    pub(super) fn new(file: Arc<str>, text: &str) -> Self {
        let tokens = tokens(text);
        let mut named: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, token) in tokens.iter().enumerate() {
            if let Kind::Word(name) | Kind::Text(name) = &token.kind {
                named.entry(name.clone()).or_default().push(at);
            }
        }
        let tables = tables(&tokens);
        Self { file, text: text.into(), tokens, named, tables }
    }

    /// Returns true if this is the source of `file`.
    pub(super) fn is(&self, file: &str) -> bool {
        *self.file == *file
    }

    /// Returns the location of the first line.
    pub(super) fn beginning(&self) -> Location {
        Location::new(Arc::clone(&self.file), 1)
    }

    /// Returns a hint for an error of the Lua parser.
    pub(super) fn explain(&self, line: u32, message: &str) -> Option<String> {
        syntax::hint(&self.text, line, message)
    }

    /// Returns the line of the last element of `path` (keys or texts, each inside or behind the previous one)
    /// in the first table that begins on `line` or later.
    pub(super) fn find(&self, line: u32, path: &[&str]) -> Option<u32> {
        let first = self.tables.partition_point(|(open, _)| self.tokens[*open].line < line);
        let (mut from, end) = *self.tables.get(first)?;
        let mut found = None;
        for wanted in path {
            let locations = self.named.get(*wanted)?;
            let later = &locations[locations.partition_point(|at| *at < from)..];
            let mut named = later.iter().copied().take_while(|at| *at < end).filter(|at| self.names(*at));
            let first = named.next()?;
            let at = match self.is_value(first) {
                // A key is preferred to a value: in `protocol = "dns", dns = { ... }`, `dns` is the key.
                true => named.take(VALUES_MAX).find(|at| self.is_key(*at)).unwrap_or(first),
                false => first,
            };
            found = Some(self.tokens[at].line);
            from = at + 1;
        }
        found
    }

    /// Returns true if the token is a text or a key.
    fn names(&self, at: usize) -> bool {
        matches!(self.tokens[at].kind, Kind::Text(_)) || self.is_key(at)
    }

    /// Returns true if the token is a word followed by `=`.
    fn is_key(&self, at: usize) -> bool {
        let followed = || self.tokens.get(at + 1).is_some_and(|next| next.kind == Kind::Equals);
        matches!(self.tokens[at].kind, Kind::Word(_)) && followed()
    }

    /// Returns true if the token is a text that follows `=`.
    fn is_value(&self, at: usize) -> bool {
        let before = || at.checked_sub(1).is_some_and(|before| self.tokens[before].kind == Kind::Equals);
        matches!(self.tokens[at].kind, Kind::Text(_)) && before()
    }
}

/// Pairs braces. A table without a closing brace extends to the end of the file.
fn tables(tokens: &[Token]) -> Vec<(usize, usize)> {
    let (mut tables, mut open) = (Vec::new(), Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => {
                open.push(tables.len());
                tables.push((at, tokens.len()));
            }
            Kind::Close => {
                if let Some(table) = open.pop() {
                    tables[table].1 = at + 1;
                }
            }
            _ => {}
        }
    }
    tables
}

fn tokens(text: &str) -> Vec<Token> {
    let mut scanner = Scanner { rest: text, line: 1 };
    std::iter::from_fn(|| scanner.token()).collect()
}

struct Scanner<'a> {
    rest: &'a str,
    line: u32,
}

impl Scanner<'_> {
    fn token(&mut self) -> Option<Token> {
        loop {
            let first = self.rest.chars().next()?;
            if first.is_whitespace() {
                self.take(first.len_utf8());
            } else if self.rest.starts_with("--") {
                self.comment();
            } else {
                let line = self.line;
                return Some(Token { line, kind: self.kind(first) });
            }
        }
    }

    fn kind(&mut self, first: char) -> Kind {
        match first {
            '"' | '\'' => Kind::Text(self.quoted(first)),
            '{' | '}' | '=' => {
                self.take(1);
                if first == '=' && self.rest.starts_with('=') {
                    self.take(1);
                    return Kind::Other;
                }
                [Kind::Open, Kind::Close, Kind::Equals]
                    .into_iter()
                    .nth("{}=".find(first).unwrap_or(2))
                    .unwrap_or(Kind::Other)
            }
            '[' if self.long_bracket().is_some() => {
                let level = self.long_bracket().unwrap_or(0);
                Kind::Text(self.long(level))
            }
            c if c.is_alphabetic() || c == '_' => {
                let end =
                    self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                Kind::Word(self.take(end))
            }
            c => {
                self.take(c.len_utf8());
                Kind::Other
            }
        }
    }

    fn comment(&mut self) {
        self.take(2);
        match self.long_bracket() {
            Some(level) => drop(self.long(level)),
            None => drop(self.take(self.rest.find('\n').unwrap_or(self.rest.len()))),
        }
    }

    fn quoted(&mut self, quote: char) -> String {
        self.take(1);
        let mut escaped = false;
        let end = self.rest.find(|c| {
            let ends = (c == quote && !escaped) || c == '\n';
            escaped = c == '\\' && !escaped;
            ends
        });
        let text = self.take(end.unwrap_or(self.rest.len()));
        self.take(usize::from(self.rest.starts_with(quote)));
        text
    }

    /// Returns the level of a long bracket (`[[`, `[==[`) if the rest of the text begins with one.
    fn long_bracket(&self) -> Option<usize> {
        let inner = self.rest.strip_prefix('[')?;
        let level = inner.len() - inner.trim_start_matches('=').len();
        inner[level..].starts_with('[').then_some(level)
    }

    fn long(&mut self, level: usize) -> String {
        self.take(level + 2);
        let close = format!("]{}]", "=".repeat(level));
        let end = self.rest.find(&close).unwrap_or(self.rest.len());
        let text = self.take(end);
        self.take(close.len().min(self.rest.len()));
        text
    }

    fn take(&mut self, bytes: usize) -> String {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count() as u32;
        self.rest = rest;
        taken.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"-- pool "no" { policy = 1 }
local web = pool "web" {
  "10.0.0.1:80", -- policy = "comment"
  { "10.0.0.2:80",
    weight = 2 },
  [[ long
text ]], policy == 3,
  policy = "least_conn",
  sticky = {
    size = 5 },
}
service "www" { policy = 7, listen = "0.0.0.0:80" }
"#;

    #[test]
    fn keys_and_texts_are_found_on_their_lines() {
        let source = Source::new("x".into(), TEXT);
        let check = |line, path: &[&str], expected| assert_eq!(source.find(line, path), expected, "{path:?}");
        check(2, &["policy"], Some(8));
        check(2, &["10.0.0.2:80"], Some(4));
        check(2, &["10.0.0.2:80", "weight"], Some(5));
        check(2, &["sticky", "size"], Some(10));
        check(2, &["listen"], None);
        check(12, &["policy"], Some(12));
        check(99, &["policy"], None);
    }

    #[test]
    fn truncated_source_is_scanned_to_its_end() {
        for cut in 0..TEXT.len() {
            tokens(&TEXT[..cut]);
        }
        assert_eq!(tokens("\"open\\").len(), 1);
        assert_eq!(tokens("--[==[ never closed").len(), 0);
    }
}
