//! Writes Lua source. Values are quoted so that they are read back unchanged. A table is on one line if it
//! fits, else on several lines, indented by two spaces per level. The meaning of tables is defined elsewhere.

use crate::config::scalar::size_text;
use std::borrow::Cow;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Maximum length of a line, unless it is one long text.
const COLUMNS_MAX: usize = 100;
const INDENT: usize = 2;
/// Minimum length in bytes of a text that is written on several lines.
const LONG_TEXT: usize = 60;

/// Lua source of a value.
pub(super) enum Node {
    /// Source code.
    Source(String),
    /// A table, or a call with a table.
    Table(Table),
}

impl Node {
    /// Returns the call of a function with this source as its name, and with a table unless it is empty.
    pub(super) fn called(self, function: &str, mut table: Table) -> Self {
        let Self::Source(name) = self else { return self };
        let call = format!("{function} {name}");
        if table.is_empty() {
            return Self::Source(call);
        }
        table.heading = call;
        Self::Table(table)
    }
}

/// A table that is being written.
pub(super) struct Table {
    /// The function that is called with the table, such as `pool "web"`; empty for a table without a call.
    heading: String,
    items: Vec<(Option<&'static str>, Node)>,
    layout: Layout,
    /// Index of the item that follows a blank line. There is no blank line before the first and after the last
    /// item.
    gap: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One item per line.
    Lines,
    /// As many items on a line as fit.
    Filled,
}

impl Table {
    pub(super) fn new() -> Self {
        Self::of("")
    }

    /// Creates a call: `heading { ... }`.
    pub(super) fn of(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), items: Vec::new(), layout: Layout::Lines, gap: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds an item to the list part.
    pub(super) fn item(&mut self, node: impl Into<Node>) {
        self.items.push((None, node.into()));
    }

    /// Adds `key = node`.
    pub(super) fn key(&mut self, key: &'static str, node: impl Into<Node>) {
        self.items.push((Some(key), node.into()));
    }

    /// Adds a key with its value.
    pub(super) fn set<T: Say + ?Sized>(&mut self, key: &'static str, value: &T) {
        self.key(key, value.say());
    }

    /// Adds a key unless it has its default value.
    pub(super) fn unless<T: Say + PartialEq>(&mut self, key: &'static str, value: &T, default: &T) {
        if value != default {
            self.set(key, value);
        }
    }

    /// Adds a key if it has a value.
    pub(super) fn some<T: Say>(&mut self, key: &'static str, value: Option<&T>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Adds the items of another table.
    pub(super) fn extend(&mut self, other: Self) {
        self.items.extend(other.items);
    }

    /// Adds a blank line before the next item.
    pub(super) fn gap(&mut self) {
        self.gap = self.items.len();
    }

    /// Returns the source of a statement.
    pub(super) fn statement(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0, 0);
        out.push('\n');
        out
    }

    /// Returns the table on one line, unless a text in it takes several lines.
    fn flat(&self) -> Option<String> {
        let mut line = self.heading.clone();
        if !line.is_empty() {
            line.push(' ');
        }
        if self.items.is_empty() {
            return Some(line + "{}");
        }
        for (at, (key, node)) in self.items.iter().enumerate() {
            line.push_str(if at == 0 { "{ " } else { ", " });
            if let Some(key) = key {
                line.push_str(key);
                line.push_str(" = ");
            }
            match node {
                Node::Source(source) if source.contains('\n') => return None,
                Node::Source(source) => line.push_str(source),
                Node::Table(table) => line.push_str(&table.flat()?),
            }
        }
        Some(line + " }")
    }

    /// Writes the table, which begins in `column` of a line that is indented by `indent`.
    fn write(&self, out: &mut String, indent: usize, column: usize) {
        // One column is for the comma that follows.
        if let Some(line) = self.flat().filter(|line| column + line.chars().count() < COLUMNS_MAX) {
            return out.push_str(&line);
        }
        self.write_expanded(out, indent);
    }

    fn write_expanded(&self, out: &mut String, indent: usize) {
        out.push_str(&self.heading);
        out.push_str(if self.heading.is_empty() { "{" } else { " {" });
        // If the only item is a key with a table, the braces of both tables are on the same lines.
        if let ([(Some(key), Node::Table(only))], true) = (&self.items[..], self.heading.is_empty()) {
            out.push_str(&format!(" {key} = "));
            only.write_expanded(out, indent);
            return out.push_str(" }");
        }
        out.push('\n');
        match self.layout {
            Layout::Lines => self.write_lines(out, indent + INDENT),
            Layout::Filled => self.write_filled(out, indent + INDENT),
        }
        out.extend(std::iter::repeat_n(' ', indent));
        out.push('}');
    }

    fn write_lines(&self, out: &mut String, indent: usize) {
        for (at, (key, node)) in self.items.iter().enumerate() {
            if at > 0 && at == self.gap {
                out.push('\n');
            }
            out.extend(std::iter::repeat_n(' ', indent));
            let mut column = indent;
            if let Some(key) = key {
                out.push_str(key);
                out.push_str(" = ");
                column += key.len() + 3;
            }
            match node {
                Node::Source(source) => out.push_str(source),
                Node::Table(table) => table.write(out, indent, column),
            }
            out.push_str(",\n");
        }
    }

    fn write_filled(&self, out: &mut String, indent: usize) {
        let mut column = 0;
        for (_, node) in &self.items {
            let Node::Source(source) = node else { continue };
            let width = source.chars().count() + 1;
            if column > 0 && column + 1 + width > COLUMNS_MAX {
                out.push('\n');
                column = 0;
            }
            out.extend(std::iter::repeat_n(' ', if column == 0 { indent } else { 1 }));
            column += width + if column == 0 { indent } else { 1 };
            out.push_str(source);
            out.push(',');
        }
        out.push('\n');
    }
}

impl From<Table> for Node {
    fn from(table: Table) -> Self {
        Self::Table(table)
    }
}

impl From<String> for Node {
    fn from(source: String) -> Self {
        Self::Source(source)
    }
}

/// Returns one value, or a list of values, for keys that accept either.
pub(super) fn one_or_list<T: Say>(values: impl IntoIterator<Item = T>) -> Node {
    let mut nodes: Vec<_> = values.into_iter().map(|value| (None, value.say())).collect();
    match nodes.pop() {
        Some((_, only)) if nodes.is_empty() => only,
        last => {
            nodes.extend(last);
            Node::Table(Table { items: nodes, layout: Layout::Filled, ..Table::new() })
        }
    }
}

/// A value that can be written in a configuration.
pub(super) trait Say {
    fn say(&self) -> Node;
}

impl<T: Say + ?Sized> Say for &T {
    fn say(&self) -> Node {
        (**self).say()
    }
}

macro_rules! say {
    ($($type:ty),*: |$value:ident| $source:expr) => {
        $(impl Say for $type {
            fn say(&self) -> Node {
                let $value = self;
                Node::Source($source)
            }
        })*
    };
}

say!(bool, u8, u16, u32, usize: |value| value.to_string());
// `{:?}` writes the fewest digits that are read back as the same number.
say!(f64: |value| format!("{value:?}"));
say!(str, String, Arc<str>, Cow<'static, str>: |text| quoted(text.as_bytes()));
say!(Duration: |value| quoted(duration(*value).as_bytes()));
say!(Option<Duration>: |value| value.map_or("false".into(), |value| quoted(duration(value).as_bytes())));
say!(IpAddr, SocketAddr, evener_core::throttle::Rate: |value| quoted(value.to_string().as_bytes()));
say!(evener_core::Endpoint: |endpoint| quoted(crate::scope::text(endpoint).as_bytes()));
say!(evener_core::route::HostPattern: |value| quoted(value.to_string().as_bytes()));
// Paths are written as absolute paths: a relative path would be relative to the file of the configuration,
// which is unknown here.
say!(Path, PathBuf: |path| {
    let absolute = if path.is_absolute() { None } else { std::path::absolute(path).ok() };
    quoted(absolute.as_deref().unwrap_or(path).to_string_lossy().as_bytes())
});

/// A number of bytes.
#[derive(PartialEq)]
pub(super) struct Size(pub(super) u64);

say!(Size: |size| quoted(size_text(size.0).as_bytes()));

/// Converts a path that is a text in the specification.
pub(super) fn path(text: &str) -> &Path {
    Path::new(text)
}

/// Quotes a string of any bytes. Unprintable characters are escaped, so that they are visible and harmless to
/// terminals.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        let mut characters = chunk.valid().chars().peekable();
        while let Some(character) = characters.next() {
            // A digit after a short escape would become part of the escape.
            let next = characters.peek().copied();
            push_character(&mut out, character, next.is_some_and(|next| next.is_ascii_digit()));
        }
        let _ = chunk.invalid().iter().try_for_each(|byte| write!(out, "\\{byte:03}"));
    }
    out.push('"');
    out
}

fn push_character(out: &mut String, character: char, before_digit: bool) {
    let _ = match character {
        '"' | '\\' => write!(out, "\\{character}"),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        _ if character.is_ascii_control() && before_digit => write!(out, "\\{:03}", u32::from(character)),
        _ if character.is_ascii_control() => write!(out, "\\{}", u32::from(character)),
        // Unprintable and combining characters are escaped, as in Rust.
        _ if !character.is_ascii() && character.escape_debug().len() > 1 => {
            write!(out, "\\u{{{:x}}}", u32::from(character))
        }
        _ => write!(out, "{character}"),
    };
}

/// Quotes a text that may have several lines, between long brackets if that is easier to read.
pub(super) fn prose(text: &str) -> Node {
    let plain = |character: char| matches!(character, '\n' | '\t') || character.escape_debug().len() == 1;
    let is_plain = text.chars().all(|character| plain(character) || "\"'\\".contains(character));
    if !is_plain || text.len() < LONG_TEXT || !text.contains('\n') {
        return text.say();
    }
    let closes = |level: &usize| !format!("{text}]").contains(&format!("]{}]", "=".repeat(*level)));
    // There is a level whose closing bracket is not in the text, because the text is finite.
    let level = "=".repeat((0..=text.len()).find(closes).unwrap_or_default());
    // Lua ignores a line break directly after the opening bracket.
    Node::Source(format!("[{level}[\n{text}]{level}]"))
}

/// Writes a duration as a whole number of the largest possible unit.
pub(super) fn duration(duration: Duration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.as_nanos());
    match duration.subsec_nanos() {
        0 if seconds == 0 => "0s".into(),
        0 if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        0 if seconds.is_multiple_of(60) => format!("{}min", seconds / 60),
        0 => format!("{seconds}s"),
        part if part.is_multiple_of(1_000_000) => format!("{}ms", nanos / 1_000_000),
        part if part.is_multiple_of(1000) => format!("{}us", nanos / 1000),
        _ => format!("{nanos}ns"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use evener_core::Random;

    #[test]
    fn values_are_written_as_in_the_documents() {
        let check = |node: Node, expected: &str| match node {
            Node::Source(source) => assert_eq!(source, expected),
            Node::Table(table) => assert_eq!(table.flat().unwrap(), expected),
        };
        check(Duration::from_millis(500).say(), "\"500ms\"");
        check(Duration::from_secs(75).say(), "\"75s\"");
        check(Duration::from_secs(300).say(), "\"5min\"");
        check(Duration::from_secs(86_400).say(), "\"24h\"");
        check(Duration::from_nanos(1_000_001).say(), "\"1000001ns\"");
        check(Duration::ZERO.say(), "\"0s\"");
        check(None::<Duration>.say(), "false");
        check(Size(64 << 20).say(), "\"64MiB\"");
        check(Size((1 << 20) + 1).say(), "\"1048577B\"");
        check(0.1_f64.say(), "0.1");
        check("a\"b\\c\n\u{7}\u{7}5".say(), r#""a\"b\\c\n\7\0075""#);
        check("é\u{202e}\u{85}".say(), r#""é\u{202e}\u{85}""#);
        check(quoted(b"\0\x01\xff1").into(), r#""\0\1\2551""#);
        check(one_or_list(["a"]), "\"a\"");
        check(one_or_list(["a", "b"]), "{ \"a\", \"b\" }");
        check(one_or_list::<&str>([]), "{}");
        let long = format!("<p>]]{}\n</p>]", "x".repeat(60));
        check(prose(&long), &format!("[=[\n{long}]=]"));
        check(prose("a\nb"), "\"a\\nb\"");
    }

    #[test]
    fn quoted_text_is_read_back_unchanged_by_lua() {
        let mut random = Random::seeded(5);
        let lua = mlua::Lua::new();
        let read = |source: &str| lua.load(format!("return {source}")).eval::<mlua::LuaString>().unwrap();
        let characters = ["]", "=", "\n", "\r", "\\", "\"", "5", "é", "\0", "\u{301}", "[", "--", "\u{2028}"];
        for _ in 0..2000 {
            let length = random.below(100);
            let bytes: Vec<u8> = (0..length).map(|_| (random.bits() % 256) as u8).collect();
            assert_eq!(read(&quoted(&bytes)).as_bytes(), bytes, "{bytes:?}");
            let kinds = 1 + random.below(characters.len());
            let text: String = (0..length).map(|_| characters[random.below(kinds)]).collect();
            let Node::Source(source) = prose(&text) else {
                panic!("a text must be written as source, not as a table")
            };
            assert_eq!(read(&source).as_bytes(), text.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn tables_that_do_not_fit_on_a_line_take_several_lines() {
        let mut inner = Table::new();
        inner.set("size", &5_u32);
        let mut table = Table::of("pool \"web\"");
        table.item("10.0.0.1:80".say());
        table.gap();
        table.key("sticky", inner);
        assert_eq!(table.statement(), "pool \"web\" { \"10.0.0.1:80\", sticky = { size = 5 } }\n");
        table.key("many", one_or_list((0..30).map(|number| 1000 + number as u32)));
        let lines = [
            "pool \"web\" {",
            "  \"10.0.0.1:80\",",
            "",
            "  sticky = { size = 5 },",
            "  many = {",
            "    1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 1015,",
            "    1016, 1017, 1018, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 1026, 1027, 1028, 1029,",
            "  },",
            "}",
        ];
        assert_eq!(table.statement(), lines.map(|line| format!("{line}\n")).concat());
        let mut outer = Table::new();
        outer.key("only", table);
        assert!(outer.statement().starts_with("{ only = pool \"web\" {\n  \"10.0.0.1:80\",\n"));
        assert!(outer.statement().ends_with("  },\n} }\n"));
    }
}
