//! Finds the lines of keys. Lua reports only the line of a call, so the source is searched for the key or
//! text.

mod repeated;

use super::Location;
use super::syntax::Mistake;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Maximum number of lines between a call and its table.
const LINES_TO_TABLE_MAX: u32 = 2;

/// A step from a table to a key, text or item inside it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    /// A key, or a text.
    Named(&'a str),
    /// The item at an index of the list part, from 0. The text is the item itself or the first item of its
    /// table, if known.
    Item(usize, Option<&'a str>),
}

/// A file of the configuration as a list of the relevant tokens. An index makes searches fast: a file may have
/// a hundred thousand servers, each with its own line.
#[derive(Debug)]
pub(super) struct Source {
    file: Arc<str>,
    text: Box<str>,
    tokens: Vec<Token>,
    /// Positions in `tokens` of each word and text, ascending.
    named: HashMap<String, Vec<usize>>,
    /// All tables, in the order of their opening braces.
    tables: Vec<Table>,
    /// For each token, the index of the innermost table around it.
    around: Vec<Option<usize>>,
}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.file.hash(state);
        self.text.hash(state);
    }
}

/// A table of the source.
#[derive(Debug)]
struct Table {
    /// Position of the opening brace.
    open: usize,
    /// Position behind the closing brace.
    end: usize,
    /// Positions of the first tokens of the items without keys.
    items: Vec<usize>,
    /// Positions of the first tokens of the items with keys.
    keys: Vec<usize>,
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
    Symbol(char),
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
        let (tables, around) = tables(&tokens);
        Self { file, text: text.into(), tokens, named, tables, around }
    }

    /// Returns lines of the file, both inclusive, counted from 1.
    pub(super) fn lines(&self, first: u32, last: u32) -> String {
        let count = (last.max(first) - first + 1) as usize;
        let lines = self.text.lines().skip(first.saturating_sub(1) as usize).take(count);
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Returns true if this is the source of `file`.
    pub(super) fn is(&self, file: &str) -> bool {
        *self.file == *file
    }

    /// Returns the location of the first line.
    pub(super) fn beginning(&self) -> Location {
        Location::new(Arc::clone(&self.file), 1)
    }

    /// Returns a better message for an error of the Lua parser.
    pub(super) fn explain(&self, line: u32, message: &str) -> Option<String> {
        let is_at_end = ["'}' expected", "unexpected symbol"].iter().any(|begin| message.starts_with(begin))
            && message.ends_with("near <eof>");
        match self.unclosed().filter(|_| is_at_end) {
            Some(opened) => Some(format!("the file ends inside the '{{' of line {opened}: is a }} missing?")),
            None => Mistake::new(&self.text, line, message, self.is_inside_braces(line)).explain(),
        }
    }

    /// Returns true if a line begins inside of braces.
    fn is_inside_braces(&self, line: u32) -> bool {
        let before = self.tokens.partition_point(|token| token.line < line);
        let open = self.tables.iter().take_while(|table| table.open < before);
        open.into_iter().any(|table| table.end > before)
    }

    /// Returns the line on which the nesting of braces and parentheses reaches a depth.
    pub(super) fn line_of_depth(&self, depth_max: usize) -> Option<u32> {
        let mut depth = 0_usize;
        for token in &self.tokens {
            match token.kind {
                Kind::Open | Kind::Symbol('(') => depth += 1,
                Kind::Close | Kind::Symbol(')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth >= depth_max {
                return Some(token.line);
            }
        }
        None
    }

    /// Returns the line of the last opening brace that is never closed.
    fn unclosed(&self) -> Option<u32> {
        let mut to_end = self.tables.iter().rev().filter(|table| table.end == self.tokens.len());
        // The innermost of these tables may be closed by the last token.
        let is_closed = self.tokens.last().is_some_and(|last| last.kind == Kind::Close);
        to_end.nth(usize::from(is_closed)).map(|table| self.tokens[table.open].line)
    }

    /// Returns true if a word on a line is called: a text, a table or an argument follows.
    pub(super) fn calls(&self, line: u32, word: &str) -> bool {
        let is_argument = |kind: &Kind| matches!(kind, Kind::Text(_) | Kind::Open | Kind::Symbol('('));
        self.words(line, word).any(|at| self.tokens.get(at + 1).is_some_and(|next| is_argument(&next.kind)))
    }

    /// Returns the key whose value is a word on a line.
    pub(super) fn key_of(&self, line: u32, word: &str) -> Option<&str> {
        let key = |at: usize| match &self.tokens[at.checked_sub(2)?..at] {
            [Token { kind: Kind::Word(key), .. }, Token { kind: Kind::Equals, .. }] => Some(key.as_str()),
            _ => None,
        };
        self.words(line, word).find_map(key)
    }

    /// Returns the names that the file declares with `local`.
    pub(super) fn locals(&self) -> impl Iterator<Item = &str> {
        self.tokens.windows(2).filter_map(|pair| match pair {
            [Token { kind: Kind::Word(local), .. }, Token { kind: Kind::Word(name), .. }]
                if local == "local" =>
            {
                Some(name.as_str())
            }
            _ => None,
        })
    }

    /// Returns true if a word may be read: it is somewhere not followed by `=`.
    pub(super) fn may_read(&self, word: &str) -> bool {
        let positions = self.named.get(word).map_or(&[][..], |positions| positions);
        positions.iter().any(|at| matches!(self.tokens[*at].kind, Kind::Word(_)) && !self.is_key(*at))
    }

    /// Returns the location of the first assignment to a word outside of tables.
    pub(super) fn assignment_of(&self, word: &str) -> Option<Location> {
        let positions = self.named.get(word)?;
        let at = positions.iter().find(|at| self.is_key(**at) && self.around[**at].is_none())?;
        Some(Location::new(Arc::clone(&self.file), self.tokens[*at].line))
    }

    /// Returns the words joined by dots that begin with a word on a line, such as `site.crt`, unless they are
    /// called.
    pub(super) fn dotted(&self, line: u32, word: &str) -> Option<String> {
        let at = self.words(line, word).next()?;
        let mut text = word.to_owned();
        let mut rest = self.tokens[at + 1..].iter().map(|token| &token.kind);
        loop {
            match (rest.next(), &text) {
                (Some(Kind::Symbol('.')), _) => match rest.next() {
                    Some(Kind::Word(next)) => text = format!("{text}.{next}"),
                    _ => return None,
                },
                (None | Some(Kind::Close | Kind::Symbol(',' | ';')), text) if text.len() > word.len() => {
                    return Some(text.clone());
                }
                _ => return None,
            }
        }
    }

    /// Returns the positions of a word on a line.
    fn words(&self, line: u32, word: &str) -> impl Iterator<Item = usize> {
        let positions = self.named.get(word).map_or(&[][..], |positions| positions);
        let first = positions.partition_point(|at| self.tokens[*at].line < line);
        let on_line = move |at: &usize| self.tokens[*at].line == line;
        let is_word = |at: &usize| matches!(self.tokens[*at].kind, Kind::Word(_));
        positions[first..].iter().copied().take_while(on_line).filter(is_word)
    }

    /// Returns the line of the last step of `path` that is in the source, each step inside the previous one.
    /// The path begins in the table that follows `line`.
    pub(super) fn find(&self, line: u32, path: &[Step<'_>]) -> Option<u32> {
        let first = self.tables.partition_point(|table| self.tokens[table.open].line < line);
        let begins = self.tokens[self.tables.get(first)?.open].line;
        let mut table = Some(first).filter(|_| begins <= line.saturating_add(LINES_TO_TABLE_MAX));
        let mut found = None;
        for step in path {
            let next = table.and_then(|table| match *step {
                Step::Named(name) => self.named_in(table, name),
                Step::Item(index, text) => self.item_of(table, index, text),
            });
            let Some((at, inner)) = next else { break };
            found = Some(self.tokens[at].line);
            table = inner;
        }
        found
    }

    /// Returns the position of a key or text in a table, and the table that the next step begins in. Names of
    /// the table itself come before names in the tables inside it, and keys before texts.
    fn named_in(&self, table: usize, name: &str) -> Option<(usize, Option<usize>)> {
        let Table { open, end, .. } = self.tables[table];
        let positions = self.named.get(name)?;
        let positions = &positions[positions.partition_point(|at| *at < open)..];
        let within = || positions.iter().copied().take_while(|at| *at < end).filter(|at| self.names(*at));
        let direct = || within().filter(|at| self.around[*at] == Some(table));
        let at =
            direct().find(|at| self.is_key(*at)).or_else(|| direct().next()).or_else(|| within().next())?;
        let inner = if self.is_key(at) { self.table_at(at + 2) } else { self.around[at] };
        Some((at, inner))
    }

    /// Returns the position of an item of a table, and the table that the item is. An item of another text is
    /// searched for by its text: the list may have been computed.
    fn item_of(&self, table: usize, index: usize, text: Option<&str>) -> Option<(usize, Option<usize>)> {
        let item = self.tables[table].items.get(index).copied();
        let inner = item.and_then(|at| self.table_at(at));
        let Some(text) = text else { return Some((item?, inner)) };
        let begins = inner.map_or(item, |inner| self.tables[inner].items.first().copied());
        match begins.filter(|at| self.tokens[*at].kind.is_text(text)) {
            Some(at) => Some((at, inner)),
            None => self.named_in(table, text),
        }
    }

    /// Returns the table whose opening brace is at a position.
    fn table_at(&self, at: usize) -> Option<usize> {
        self.tables.binary_search_by_key(&at, |table| table.open).ok()
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
}

impl Kind {
    fn is_text(&self, text: &str) -> bool {
        matches!(self, Self::Text(content) if content == text)
    }
}

/// A table whose closing brace was not found yet.
struct OpenTable {
    index: usize,
    /// Number of parentheses open in it.
    parentheses: usize,
    /// Number of blocks of functions open in it.
    blocks: usize,
    /// True if the next token begins an item.
    at_item: bool,
}

impl OpenTable {
    /// Counts the parentheses and blocks that a token opens or closes.
    fn advance(&mut self, kind: &Kind) {
        match kind {
            Kind::Symbol('(') => self.parentheses += 1,
            Kind::Symbol(')') => self.parentheses = self.parentheses.saturating_sub(1),
            // `while` and `for` are followed by `do`.
            Kind::Word(word) if ["function", "if", "do", "repeat"].contains(&word.as_str()) => {
                self.blocks += 1;
            }
            Kind::Word(word) if ["end", "until"].contains(&word.as_str()) => {
                self.blocks = self.blocks.saturating_sub(1);
            }
            Kind::Symbol(',' | ';') => self.at_item = self.parentheses == 0 && self.blocks == 0,
            _ => {}
        }
    }
}

/// Pairs braces, and finds the items of each table and the table around each token. A brace that is never
/// closed reaches to the end.
fn tables(tokens: &[Token]) -> (Vec<Table>, Vec<Option<usize>>) {
    let (mut tables, mut around) = (Vec::new(), Vec::with_capacity(tokens.len()));
    let mut open: Vec<OpenTable> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if token.kind == Kind::Close
            && let Some(table) = open.pop()
        {
            let table: &mut Table = &mut tables[table.index];
            table.end = at + 1;
        }
        around.push(open.last().map(|table| table.index));
        if let Some(table) = open.last_mut() {
            let begins_item = std::mem::replace(&mut table.at_item, false);
            table.advance(&token.kind);
            let is_word = matches!(token.kind, Kind::Word(_));
            let has_key = is_word && tokens.get(at + 1).is_some_and(|next| next.kind == Kind::Equals);
            // `["key"] = value` has a key too.
            if begins_item && (has_key || token.kind == Kind::Symbol('[')) {
                tables[table.index].keys.push(at);
            } else if begins_item && token.kind != Kind::Close {
                tables[table.index].items.push(at);
            }
        }
        if token.kind == Kind::Open {
            open.push(OpenTable { index: tables.len(), parentheses: 0, blocks: 0, at_item: true });
            tables.push(Table { open: at, end: tokens.len(), items: Vec::new(), keys: Vec::new() });
        }
    }
    (tables, around)
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
                match first {
                    '{' => Kind::Open,
                    '}' => Kind::Close,
                    _ if self.rest.starts_with('=') => {
                        self.take(1);
                        Kind::Symbol('=')
                    }
                    _ => Kind::Equals,
                }
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
                Kind::Symbol(c)
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
        let (mut escaped, mut skips_space) = (false, false);
        let end = self.rest.find(|c: char| {
            // The string continues after `\` at the end of a line, and after the space that follows `\z`.
            skips_space = (skips_space && c.is_whitespace()) || (escaped && c == 'z');
            let ends = !escaped && (c == quote || (c == '\n' && !skips_space));
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
        let check = |line, path: &[&str], expected| {
            let steps: Vec<Step<'_>> = path.iter().map(|name| Step::Named(name)).collect();
            assert_eq!(source.find(line, &steps), expected, "{path:?}");
        };
        check(2, &["policy"], Some(8));
        check(2, &["10.0.0.2:80"], Some(4));
        check(2, &["10.0.0.2:80", "weight"], Some(5));
        check(2, &["sticky", "size"], Some(10));
        check(2, &["listen"], None);
        check(12, &["policy"], Some(12));
        check(99, &["policy"], None);
    }

    #[test]
    fn items_are_found_by_their_index() {
        let text = "pool \"p\" {\n \"a:1\",\n f(1, 2); [\"k\"] = { 1 },\n { \"a:1\", weight = 2 },\n {\n \"a:1\",\n weight = 3 },\n routes = {\n {},\n { host = 1 } } }\n";
        let source = Source::new("x".into(), text);
        let check = |path: &[Step<'_>], expected| assert_eq!(source.find(1, path), expected, "{path:?}");
        let same = |index| Step::Item(index, Some("a:1"));
        let weight = Step::Named("weight");
        check(&[same(0)], Some(2));
        check(&[same(2)], Some(4));
        check(&[same(3)], Some(6));
        check(&[same(3), weight], Some(7));
        check(&[same(2), weight], Some(4));
        // The list was computed.
        check(&[same(9)], Some(2));
        check(&[Step::Item(1, None), weight], Some(3));
        check(&[Step::Named("routes"), Step::Item(1, None), Step::Named("host")], Some(10));
        check(&[Step::Named("routes"), Step::Item(7, None), Step::Named("host")], Some(8));
    }

    #[test]
    fn an_unclosed_brace_is_reported_with_its_line() {
        let check = |text: &str, message: &str, expected: &str| {
            let explained = Source::new("x".into(), text).explain(4, message).unwrap_or_default();
            assert_eq!(explained, expected, "{text}");
        };
        let at = |line: u32| format!("the file ends inside the '{{' of line {line}: is a }} missing?");
        let expected = "'}' expected (to close '{' at line 2) near <eof>";
        check("a {}\nb {\n c = { 1 }", expected, &at(2));
        check("a {}\nb { c = {\n1", expected, &at(2));
        check("a {},\n\nb { 1,", "unexpected symbol near <eof>", &at(3));
        check("a { {} }\nb = ", "unexpected symbol near <eof>", "");
        check(
            "a {",
            "unfinished string near '\"a'",
            "the text that begins on this line has no closing quote",
        );
    }

    #[test]
    fn every_text_is_scanned_to_its_end() {
        for cut in 0..TEXT.len() {
            tokens(&TEXT[..cut]);
        }
        assert_eq!(tokens("\"open\\").len(), 1);
        assert_eq!(tokens("--[==[ never closed").len(), 0);
    }
}
