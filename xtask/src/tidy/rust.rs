//! Splits Rust source into the tokens that the rules inspect: words, punctuation, strings and comments, each
//! with its line. Any text is accepted; source that does not compile gives arbitrary tokens.

/// One token and the line that it begins on, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An identifier or a keyword.
    Word,
    /// One character, or one of `::`, `->` and `=>`.
    Punctuation,
    /// A string literal of any kind, with its quotes.
    Text,
    /// A comment that documents the next item (`///`) or the enclosing module (`//!`).
    Doc,
    /// Any other comment.
    Comment,
    /// A number, a character or a lifetime.
    Other,
}

/// Returns the tokens of `source` in order.
pub(super) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (source, 1);
    while let Some(first) = rest.chars().next() {
        let (kind, length) = if first.is_whitespace() { (None, first.len_utf8()) } else { next(rest, first) };
        let (text, after) = rest.split_at(length);
        if let Some(kind) = kind {
            tokens.push(Token { kind, text, line });
        }
        line += text.matches('\n').count();
        rest = after;
    }
    tokens
}

/// Returns the kind and length of the token that `rest` begins with.
fn next(rest: &str, first: char) -> (Option<Kind>, usize) {
    if rest.starts_with("//") {
        let doc = (rest.starts_with("///") && !rest.starts_with("////")) || rest.starts_with("//!");
        return (Some(if doc { Kind::Doc } else { Kind::Comment }), rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Some(Kind::Comment), block_comment(rest));
    }
    if let Some(length) = string(rest) {
        return (Some(Kind::Text), length);
    }
    if first == '\'' {
        return (Some(Kind::Other), character_or_lifetime(rest));
    }
    if first.is_alphanumeric() || first == '_' {
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        return (Some(if first.is_ascii_digit() { Kind::Other } else { Kind::Word }), length);
    }
    let pair = ["::", "->", "=>"].iter().any(|pair| rest.starts_with(pair));
    (Some(Kind::Punctuation), if pair { 2 } else { first.len_utf8() })
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(found) = rest[at..].find(['/', '*']) {
        at += found;
        let step = &rest[at..];
        if step.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if step.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Returns the length of the string literal that `rest` begins with, if any: `"x"`, `b"x"`, `c"x"`, `r#"x"#`.
fn string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| rest.starts_with(prefix))?;
    let after = &rest[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = after.len() - after.trim_start_matches('#').len();
        let body = after[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let length = body.find(&end).map_or(body.len(), |found| found + end.len());
        return Some(prefix.len() + hashes + 1 + length);
    }
    let body = after.strip_prefix('"')?;
    let mut escaped = false;
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return Some(prefix.len() + 1 + at + 1),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    Some(rest.len())
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    match characters.next() {
        Some((at, '\\')) => {
            let escaped = at + 1 + rest[at + 1..].chars().next().map_or(0, char::len_utf8);
            rest[escaped..].find('\'').map_or(rest.len(), |found| escaped + found + 1)
        }
        Some((at, first)) if rest[at + first.len_utf8()..].starts_with('\'') => at + first.len_utf8() + 1,
        _ => rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(rest.len(), |found| found + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, expected: &[(Kind, &str)]) {
        let seen: Vec<_> = tokens(source).iter().map(|token| (token.kind, token.text)).collect();
        assert_eq!(seen, expected, "{source}");
    }

    #[test]
    fn comments_strings_and_names_are_distinguished() {
        check("/// a \"b\"\nx", &[(Kind::Doc, "/// a \"b\""), (Kind::Word, "x")]);
        check("//// a", &[(Kind::Comment, "//// a")]);
        check("/* a /* b */ c */d", &[(Kind::Comment, "/* a /* b */ c */"), (Kind::Word, "d")]);
        check(r#"b"a\"// b"c"#, &[(Kind::Text, r#"b"a\"// b""#), (Kind::Word, "c")]);
        check("r#\"a\" b\"#", &[(Kind::Text, "r#\"a\" b\"#")]);
        check("a::b", &[(Kind::Word, "a"), (Kind::Punctuation, "::"), (Kind::Word, "b")]);
    }

    #[test]
    fn a_quote_begins_a_character_or_a_lifetime() {
        check("'\"'", &[(Kind::Other, "'\"'")]);
        check(r"'\''a", &[(Kind::Other, r"'\''"), (Kind::Word, "a")]);
        check("'a b", &[(Kind::Other, "'a"), (Kind::Word, "b")]);
    }

    #[test]
    fn lines_are_counted_through_strings_of_several_lines() {
        let lines: Vec<_> = tokens("a \"\n\n\" b\nc").iter().map(|token| token.line).collect();
        assert_eq!(lines, [1, 1, 3, 4]);
    }

    #[test]
    fn text_that_ends_early_is_accepted() {
        for source in ["\"a", "r#\"a", "/* a", "'", "'\\", "b'", "é'é"] {
            tokens(source);
        }
    }
}
