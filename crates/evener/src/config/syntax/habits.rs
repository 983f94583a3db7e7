//! Forms of other languages that the parser of Lua refuses: lists in brackets, keys in quotes, values without
//! quotes, blocks in braces and words that are not declarations.

use crate::config::hints::nearest;
use crate::config::raw::shown;
use crate::config::reference;

/// Words of Lua that end or begin a block.
const WORDS_OF_LUA: [&str; 8] = ["end", "else", "elseif", "then", "do", "local", "function", "return"];

/// Returns the advice about a line in which the parser failed at a token.
pub(super) fn of_line(line: &str, message: &str) -> Option<String> {
    let token =
        message.rsplit_once("near '").map_or("", |(_, token)| token.strip_suffix('\'').unwrap_or(token));
    brackets(line, token)
        .or_else(|| quoted_key(line, token))
        .or_else(|| port_behind_quotes(line, token))
        .or_else(|| declaration(line))
        .or_else(|| block_in_braces(line, message))
        .or_else(|| variable(line, token))
        .or_else(|| path_without_quotes(line, token))
        .or_else(|| key_without_equals(line, token))
}

/// Returns the message about a word that stands alone, at or before the line of the error.
pub(super) fn lone_word(text: &str, line: u32, message: &str) -> Option<String> {
    if !message.starts_with("syntax error near") {
        return None;
    }
    let lines = text.lines().take(line as usize).map(without_comment).filter(|line| !line.is_empty());
    // The parser fails at the token after the word.
    let candidates: Vec<&str> = lines.collect();
    let last = candidates.iter().rev().take(2).find_map(|line| {
        let word = line.rsplit([' ', ';', '}', ')']).next()?;
        is_name(word).then_some(word)
    })?;
    let near = nearest(last, WORDS_OF_LUA.into_iter());
    Some(match near.is_empty() {
        true => {
            format!(
                "`{last}` is not a declaration: write service \"www\" {{ ... }} or pool \"web\" {{ ... }}"
            )
        }
        false => format!("`{last}` is not a declaration{near}"),
    })
}

fn without_comment(line: &str) -> &str {
    line.split("--").next().unwrap_or_default().trim()
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn brackets(line: &str, token: &str) -> Option<String> {
    let is_list =
        line.contains("=[") || line.contains("= [") || line.contains("{[\"") || line.contains("{ [\"");
    (is_list && ["[", "]", ","].contains(&token))
        .then(|| "lists are written with braces: { \"a\", \"b\" }, not [ ]".into())
}

/// Returns the advice about `"listen" = ...` and `tls-cert = ...`.
fn quoted_key(line: &str, token: &str) -> Option<String> {
    if token != "=" {
        return None;
    }
    line.match_indices('=').find_map(|(at, _)| {
        let before = line[..at].trim_end();
        let quote = before.chars().last().filter(|last| matches!(last, '"' | '\''));
        if let Some(quote) = quote {
            let key = before[..before.len() - 1].rsplit(quote).next()?;
            let written =
                if is_name(key) { format!("{key} = ...") } else { format!("[{}] = ...", shown(key)) };
            return Some(format!("keys have no quotes: write {written}"));
        }
        let key = before.rsplit([' ', ',', '{', '\t', ';']).next()?;
        let right = key.replace('-', "_");
        let is_dashed = key.contains('-') && is_name(&right);
        is_dashed.then(|| format!("keys have _, not -: write {right} = ..."))
    })
}

/// Returns the advice about `"10.0.0.1":80`.
fn port_behind_quotes(line: &str, token: &str) -> Option<String> {
    if token != ":" {
        return None;
    }
    let (before, after) = line.split_once("\":").or_else(|| line.split_once("':"))?;
    let address = before.rsplit(['"', '\'']).next()?;
    let digits = after.trim_start().find(|c: char| !c.is_ascii_digit()).unwrap_or(after.trim_start().len());
    let port = &after.trim_start()[..digits];
    (!port.is_empty())
        .then(|| format!("the port belongs inside the quotes: write {}", shown(&format!("{address}:{port}"))))
}

/// Returns the advice about `service "w": {` and `service "w" [`.
fn declaration(line: &str) -> Option<String> {
    let line = line.trim_start();
    let word =
        ["service", "pool", "server"].into_iter().find(|word| line.starts_with(&format!("{word} ")))?;
    let rest = line[word.len()..].trim_start();
    let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    let (name, after) = rest[1..].split_once(quote)?;
    let wrong = after.trim_start().chars().next().filter(|next| matches!(next, ':' | '[' | '<'))?;
    Some(format!("write {word} {} {{ ... }}, without `{wrong}` before the braces", shown(name)))
}

/// Returns the advice about `for i = 1, 3 {`.
fn block_in_braces(line: &str, message: &str) -> Option<String> {
    if !message.ends_with("near '{'") {
        return None;
    }
    let word = line.split_whitespace().next()?;
    Some(match word {
        "for" | "while" => format!("a block of Lua has no braces: write {word} ... do ... end"),
        "if" | "elseif" => "a block of Lua has no braces: write if ... then ... end".into(),
        _ => return None,
    })
}

/// Returns the advice about `let x = 1`.
fn variable(line: &str, token: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let (first, name) = (words.next()?, words.next()?);
    let is_declared = ["let", "var", "const", "set", "def", "my"].contains(&first) && is_name(name);
    (is_declared && name == token)
        .then(|| format!("a variable is declared with local: write local {name} = ..."))
}

/// Returns the advice about `path = /health`.
fn path_without_quotes(line: &str, token: &str) -> Option<String> {
    if !["/", "//", "~", "*"].contains(&token) {
        return None;
    }
    line.match_indices('=').find_map(|(at, _)| {
        let value = line[at + 1..].trim_start();
        let value = value.split([' ', ',', '}', ';']).next()?;
        let key = line[..at].trim_end().rsplit([' ', ',', '{', '\t']).next()?;
        (value.starts_with(token) && is_name(key))
            .then(|| format!("texts need quotes: write {key} = {}", shown(value)))
    })
}

/// Returns the advice about `listen 80;`.
fn key_without_equals(line: &str, token: &str) -> Option<String> {
    let at = line.find(token).filter(|_| !token.is_empty())?;
    let key = line[..at].trim_end().rsplit([' ', ',', '{', '\t', ';']).next()?;
    let is_key = reference::tables_with(key).any(|(table, _)| !table.is_empty());
    // A key that follows `=` is a value.
    let before = line[..at].trim_end().strip_suffix(key)?.trim_end();
    if !is_key
        || before.ends_with('=')
        || token == "="
        || token.starts_with(['}', ')', ']', ',', ';', ':', '{', '.'])
    {
        return None;
    }
    let value = line[at..].split([',', ';', '}']).next().unwrap_or_default().trim();
    let is_literal = value.starts_with(['"', '\'']) || value == "true" || value == "false";
    let written = match value {
        port if key == "listen" && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("\"0.0.0.0:{port}\"")
        }
        _ if is_literal || value.parse::<f64>().is_ok() => value.to_owned(),
        _ => shown(value),
    };
    Some(format!("a key needs a =: write {key} = {written}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_other_languages_are_explained() {
        let check = |line: &str, message: &str, expected: &str| {
            assert_eq!(of_line(line, message).as_deref().unwrap_or_default(), expected, "{line}");
        };
        let lists = "lists are written with braces: { \"a\", \"b\" }, not [ ]";
        check("service 'w' { servers=['10.0.0.1:80'] }", "unexpected symbol near '['", lists);
        check("  allow = [\"10.0.0.0/8\"]", "unexpected symbol near '['", lists);
        check("  listen 80;", "'}' expected near '80'", "a key needs a =: write listen = \"0.0.0.0:80\"");
        check("  policy hash,", "'}' expected near 'hash'", "a key needs a =: write policy = \"hash\"");
        check("  \"listen\" = \"x\"", "'}' expected near '='", "keys have no quotes: write listen = ...");
        check("  tls-cert=\"x\"", "'}' expected near '='", "keys have _, not -: write tls_cert = ...");
        check(
            "  \"10.0.0.1\":80",
            "'}' expected near ':'",
            "the port belongs inside the quotes: write \"10.0.0.1:80\"",
        );
        check(
            "service \"w\": {",
            "<name> expected near '{'",
            "write service \"w\" { ... }, without `:` before the braces",
        );
        check(
            "for i=1,3 {",
            "'do' expected near '{'",
            "a block of Lua has no braces: write for ... do ... end",
        );
        check("let x = 1", "syntax error near 'x'", "a variable is declared with local: write local x = ...");
        check("path = /health", "unexpected symbol near '/'", "texts need quotes: write path = \"/health\"");
        check("p { \"10.0.0.1:80\" \"10.0.0.2:80\" }", "'}' expected near '\"10.0.0.2:80\"'", "");
        check("p { listen = a b }", "'}' expected near 'b'", "");
    }

    #[test]
    fn a_word_that_stands_alone_is_not_a_declaration() {
        let check = |text: &str, line, message: &str, expected: &str| {
            assert_eq!(lone_word(text, line, message).as_deref().unwrap_or_default(), expected, "{text}");
        };
        let declaration = "is not a declaration: write service \"www\" { ... } or pool \"web\" { ... }";
        check("nonsense", 1, "syntax error near <eof>", &format!("`nonsense` {declaration}"));
        check("p {};;; foo\n", 2, "syntax error near <eof>", &format!("`foo` {declaration}"));
        check(
            "nonsense -- one\nservice \"w\" {}",
            2,
            "syntax error near 'service'",
            &format!("`nonsense` {declaration}"),
        );
        check("p {}\nendd", 2, "syntax error near <eof>", "`endd` is not a declaration; did you mean `end`?");
        check("p {}\nendd", 2, "'end' expected near <eof>", "");
    }
}
