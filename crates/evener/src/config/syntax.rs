//! Messages for errors of the Lua parser. The parser reports the token that it expected, but not the mistake that
//! usually causes the error.

mod code;
mod habits;
mod languages;

pub(super) use languages::FOREIGN_FILE;

use super::hints::{self, values};
use code::{code_of, is_keyword};

/// Words that begin a declaration or a statement.
const BEGINNINGS: [&str; 6] = ["service", "pool", "local", "include", "for", "return"];

/// An error of the parser.
pub(super) struct Mistake<'a> {
    /// The text of the file.
    text: &'a str,
    /// The line of the error, from 1.
    line: u32,
    /// The text of the line.
    here: &'a str,
    /// The line without comments and the contents of texts, with the same length.
    code: String,
    /// The last character of code before the line.
    code_before: Option<char>,
    /// The message of the parser.
    message: &'a str,
    /// True if the line begins inside of braces.
    is_inside: bool,
}

impl<'a> Mistake<'a> {
    /// Creates an error from the text of the file, the line and the message of the parser.
    pub(super) fn new(text: &'a str, line: u32, message: &'a str, is_inside: bool) -> Self {
        let index = (line as usize).saturating_sub(1);
        let here = text.lines().nth(index).unwrap_or_default();
        let all = code_of(text);
        let code = all.lines().nth(index).unwrap_or_default().to_owned();
        let before = all.lines().take(index).filter_map(|line| line.trim_end().chars().next_back());
        let code_before = before.last();
        Self { text, line, here, code, code_before, message, is_inside }
    }

    /// Returns a better message for an error, if its cause is known.
    pub(super) fn explain(&self) -> Option<String> {
        languages::recognize(self.text)
            .or_else(|| self.quotes_and_comments())
            .or_else(|| self.keys())
            .or_else(|| habits::of_line(self.here, self.message).filter(|_| !self.is_other_program()))
            .or_else(|| self.operators())
            .or_else(|| self.declarations())
            .or_else(|| self.missing_comma_or_brace())
    }

    /// Returns true if the line sets something as another program does, for which there is a word.
    fn is_other_program(&self) -> bool {
        foreign_line(&self.code, self.near()).is_some()
    }

    /// Returns true if the parser failed at a token.
    fn is_near(&self, token: &str) -> bool {
        self.message.ends_with(&format!("near '{token}'"))
    }

    /// Returns the token at which the parser failed. It is empty at the end of the file.
    fn near(&self) -> &'a str {
        self.message.rsplit_once("near '").map_or("", |(_, token)| token.strip_suffix('\'').unwrap_or(token))
    }

    /// Returns true if the parser failed at a typographic quote, or at a text that only a typographic quote
    /// closes.
    fn has_typographic_quotes(&self) -> bool {
        let double = ['\u{201c}', '\u{201d}', '\u{201e}', '\u{ab}', '\u{bb}'];
        let single = ['\u{2018}', '\u{2019}'];
        if self.is_near("<\\226>") || self.is_near("<\\194>") {
            return self.code.contains(double) || self.code.contains(single);
        }
        let near = self.near();
        self.message.starts_with("unfinished string")
            && match near.starts_with('"') {
                true => near.matches(double).count() % 2 == 1,
                false => near.matches(single).count() % 2 == 1,
            }
    }

    /// Returns the message for an operator in front of the brace at which the parser failed.
    fn operator_without_value(&self) -> Option<String> {
        let before = |at: usize| self.code[..at].trim_end().chars().next_back().or(self.code_before);
        let operators = self.code.match_indices('}').filter_map(|(at, _)| before(at));
        let operator = operators.into_iter().find(|c| "=%*/+-<>&|~^#.".contains(*c))?;
        Some(match operator {
            '%' => "a value is missing between % and }: a number has no %, so write 100, not 100%".into(),
            _ => format!("a value is missing between {operator} and }}"),
        })
    }

    fn quotes_and_comments(&self) -> Option<String> {
        let Self { here, message, .. } = *self;
        if self.has_typographic_quotes() {
            return Some("the quotes are typographic: use straight quotes, \"...\"".into());
        }
        let begins = ["#", "//", "/*", ";"].into_iter().find(|begin| here.trim_start().starts_with(begin));
        let found = begins.or_else(|| ["#", "//"].into_iter().find(|token| self.is_near(token)));
        if let Some(comment) = found {
            return Some(format!("comments begin with --, not {comment}"));
        }
        if (self.is_near("/") || self.is_near("*")) && self.code.contains("/*") {
            return Some("comments begin with --, not /*".into());
        }
        if message.starts_with("unfinished string") {
            return Some("the text that begins on this line has no closing quote".into());
        }
        if message.starts_with("unfinished long") {
            return Some(format!("{message}: a ]] is missing"));
        }
        message
            .starts_with("malformed number")
            .then(|| format!("{message}: is a quote missing? Addresses, durations and sizes are in quotes"))
    }

    fn keys(&self) -> Option<String> {
        let is_near_colon = self.is_near(":") || self.message.starts_with("<name> expected");
        let mut colons = self.code.match_indices(':').map(|(at, _)| at).filter(|_| is_near_colon);
        if let Some((key, value)) = colons.find_map(|at| colon_key(self.here, &self.code, at)) {
            return Some(format!("keys are written with =: write {key} = {value}, not {key}: {value}"));
        }
        if self.is_near(">") && self.code.contains("=>") {
            return Some("keys are written with =, not =>".into());
        }
        assignment_to_a_declaration(self.here).filter(|_| self.is_near("="))
    }

    fn operators(&self) -> Option<String> {
        if self.is_near("=") && self.message.starts_with("'then' expected") {
            return Some("a comparison is written ==, not =".into());
        }
        if self.code.contains("!=") && (self.is_near("!") || self.is_near("=")) {
            return Some("\"not equal\" is written ~=, not !=".into());
        }
        if self.is_near("!") {
            return Some("a negation is written not, not !".into());
        }
        let words = [("&", "and"), ("|", "or")];
        let used = |(token, _): &(&str, &str)| self.is_near(token) && self.code.contains(&token.repeat(2));
        let (token, word) = words.into_iter().find(used)?;
        Some(format!("write {word}, not {}", token.repeat(2)))
    }

    fn declarations(&self) -> Option<String> {
        let message = self.message;
        if message.starts_with("<eof> expected near '}'")
            || self.is_near("}") && message.starts_with("unexpected")
        {
            let closes_nothing = || "this } closes no { before it: remove it, or add a {".into();
            return Some(self.operator_without_value().unwrap_or_else(closes_nothing));
        }
        if self.is_near("{") && message.starts_with("'(' expected") {
            return Some(
                "a function has parentheses and an end, not braces: write function f() ... end".into(),
            );
        }
        if let Some((word, name)) = bare_name(&self.code).filter(|(_, name)| self.is_near(name)) {
            return Some(format!("names are texts in quotes: write {word} \"{name}\" {{"));
        }
        if let Some(advice) = foreign_line(&self.code, self.near()) {
            return Some(advice);
        }
        if let Some(advice) = habits::lone_word(self.text, self.line, message) {
            return Some(advice);
        }
        let is_end = message.starts_with("'end'") && message.ends_with("near <eof>");
        is_end.then(|| format!("{message} (is an end missing?)"))
    }

    fn missing_comma_or_brace(&self) -> Option<String> {
        let Self { text, line, here, message, .. } = *self;
        if !message.starts_with("'}' expected") || message.ends_with("near <eof>") {
            return None;
        }
        let token = self.near();
        if self.is_inside && begins_declaration(here, token) {
            return Some(match opened_at(message) {
                Some(opened) => {
                    format!("a }} is missing before this line: the {{ of line {opened} is not closed")
                }
                None => "a } is missing on this line or before it".into(),
            });
        }
        let index = line.checked_sub(1)? as usize;
        let position = match line_before(text, index, token) {
            Some(number) => format!("at the end of line {number}"),
            None => "on this line".into(),
        };
        Some(format!("a comma is missing {position}, before `{token}`"))
    }
}

/// Returns the line in `(to close '{' at line 1)`.
fn opened_at(message: &str) -> Option<u32> {
    message.split_once("at line ")?.1.split(')').next()?.parse().ok()
}

/// Returns the key and the value of a line such as `listen: "0.0.0.0:80"`, with a colon at a position. `code` is
/// the line without comments and the contents of texts.
fn colon_key<'a>(line: &'a str, code: &str, colon: usize) -> Option<(&'a str, String)> {
    let before = &line[..colon];
    let rest = &code[colon + 1..];
    let end = rest.find([',', '}']).unwrap_or(rest.trim_end().len());
    let after = &line[colon + 1..];
    let value = after[..end].trim();
    let key = before.trim_end().rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    let after = after.trim();
    let begins_value = after.starts_with(|c: char| c == '"' || c == '{' || c.is_ascii_digit());
    let is_word = matches!(value, "true" | "false");
    if !key.starts_with(char::is_alphabetic) || !(begins_value || is_word) {
        return None;
    }
    let value = if after.starts_with('{') { "{ ... }" } else { value };
    Some((key, value.to_owned()))
}

/// Returns the message for `pool "web" = {`.
fn assignment_to_a_declaration(line: &str) -> Option<String> {
    let (before, _) = line.split_once('=')?;
    let mut words = before.split_whitespace();
    let (word, name) = (words.next()?, words.next()?);
    let is_declaration = ["pool", "service", "server"].contains(&word) && name.starts_with(['"', '\'']);
    (is_declaration && words.next().is_none())
        .then(|| format!("a declaration has no =: write {word} {name} {{ ... }}"))
}

/// Returns the advice for a line such as `balance roundrobin`, in which another program sets something. `near` is
/// the token at which the parser failed.
fn foreign_line(line: &str, near: &str) -> Option<String> {
    let line = line.trim().trim_end_matches([';', '{']).trim_end();
    let mut words = line.split_whitespace();
    let (first, second) = (words.next()?, words.next()?);
    let is_word = first.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
    if !is_word || second.starts_with(['=', '"', '\'', '[', '{', '(']) {
        return None;
    }
    if near.is_empty() || !second.starts_with(near) {
        return None;
    }
    let two = format!("{first}_{second}");
    let advice = hints::written(&two).or_else(|| hints::written(first))?;
    let advice = values::with_value(&advice, second);
    Some(format!("`{first} {second}` is not Evener's language: {advice}"))
}

/// Returns the word and the name of a declaration such as `upstream web {` or `pool web = {`.
fn bare_name(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split('{').next()?.split_whitespace();
    let (first, second) = (words.next()?, words.next()?);
    let is_word = |word: &str| word.chars().all(|c| c.is_alphanumeric() || c == '_');
    let follows = words.next().is_none_or(|third| third == "=") && words.next().is_none();
    let is_declaration = is_word(first) && is_word(second) && follows && line.contains('{');
    (is_declaration && !is_keyword(first) && !is_keyword(second)).then_some((first, second))
}

/// Returns true if a line begins with a token that begins a declaration. Before `=` it is a key.
fn begins_declaration(line: &str, token: &str) -> bool {
    let rest = Some(token).filter(|token| BEGINNINGS.contains(token));
    let rest = rest.and_then(|token| line.trim_start().strip_prefix(token));
    rest.is_some_and(|rest| !rest.trim_start().starts_with('='))
}

/// Returns the number of the last line with code before the line at `index`, if that begins with the token.
fn line_before(text: &str, index: usize, token: &str) -> Option<usize> {
    let lines: Vec<&str> = text.lines().take(index + 1).map(str::trim).collect();
    let (last, before) = lines.split_last()?;
    if !last.starts_with(token) {
        return None;
    }
    before.iter().rposition(|line| !line.is_empty() && !line.starts_with("--")).map(|at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, line: u32, message: &str, expected: &str) {
        let before: String = text.lines().take(line as usize - 1).collect();
        let is_inside = before.matches('{').count() > before.matches('}').count();
        let seen = Mistake::new(text, line, message, is_inside).explain();
        assert_eq!(seen.unwrap_or_default(), expected, "{text}");
    }

    #[test]
    fn mistakes_in_keys_quotes_and_comments_are_explained() {
        let comma = "pool \"w\" {\n  \"10.0.0.1:80\" -- one\n\n  \"10.0.0.2:80\",\n}";
        check(
            comma,
            4,
            "'}' expected (to close '{' at line 1) near '\"10.0.0.2:80\"'",
            "a comma is missing at the end of line 2, before `\"10.0.0.2:80\"`",
        );
        check("p { a = 1 b = 2 }", 1, "'}' expected near 'b'", "a comma is missing on this line, before `b`");
        check(
            "pool \"p\" { } service \"a\" { listen=\"x\" pool=\"p\" }",
            1,
            "'}' expected near 'pool'",
            "a comma is missing on this line, before `pool`",
        );
        let colon = "keys are written with =: write listen = \"0.0.0.0:80\", not listen: \"0.0.0.0:80\"";
        check("s { listen: \"0.0.0.0:80\" }", 1, "'}' expected near ':'", colon);
        check(
            "s { listen: 80 }",
            1,
            "<name> expected near '80'",
            "keys are written with =: write listen = 80, not listen: 80",
        );
        check("# note", 1, "unexpected symbol near '#'", "comments begin with --, not #");
        check("x = 1 // note", 1, "unexpected symbol near '//'", "comments begin with --, not //");
        check("/* note */", 1, "unexpected symbol near '/'", "comments begin with --, not /*");
        check(
            "s { \"10.0.0.1:80 }",
            1,
            "unfinished string near '\"10'",
            "the text that begins on this line has no closing quote",
        );
        check(
            "s { 10.0.0.1:80 }",
            1,
            "malformed number near '10.0.0.1'",
            "malformed number near '10.0.0.1': is a quote missing? Addresses, durations and sizes are in quotes",
        );
        check(
            "upstream web {",
            1,
            "syntax error near 'web'",
            "names are texts in quotes: write upstream \"web\" {",
        );
        check(
            "pool \u{201c}w\u{201d} {",
            1,
            "unexpected symbol near '<\\226>'",
            "the quotes are typographic: use straight quotes, \"...\"",
        );
        check(
            "pool \"w\u{201d} {",
            1,
            "unfinished string near '\"w\u{201d} {'",
            "the quotes are typographic: use straight quotes, \"...\"",
        );
        check(
            "pool \"the \u{201c}w\u{201d} {",
            1,
            "unfinished string near '\"the \u{201c}w\u{201d} {'",
            "the text that begins on this line has no closing quote",
        );
    }

    #[test]
    fn comments_and_texts_of_the_line_do_not_change_the_advice() {
        check(
            "pool \"p\" { \"a:1\" \"b:2\", -- the \u{201c}main\u{201d} servers",
            1,
            "'}' expected near '\"b:2\"'",
            "a comma is missing on this line, before `\"b:2\"`",
        );
        check(
            "pool \"p\" { a = 1 b = 2 } -- default: 80",
            1,
            "'}' expected near 'b'",
            "a comma is missing on this line, before `b`",
        );
        check(
            "pool 'p' { 'localhost:80' 'localhost:81' }",
            1,
            "'}' expected near ''localhost:81''",
            "a comma is missing on this line, before `'localhost:81'`",
        );
        check(
            "--[[\npool p {\n]] pool \"p\" { a = 1 b = \"x: 2\" }",
            3,
            "'}' expected near 'b'",
            "a comma is missing on this line, before `b`",
        );
        check(
            "s { a = b:c(\"x: 1\"), listen: \"0.0.0.0:80\" -- x: 2",
            1,
            "<name> expected near '\"0.0.0.0:80\"'",
            "keys are written with =: write listen = \"0.0.0.0:80\", not listen: \"0.0.0.0:80\"",
        );
    }

    #[test]
    fn values_without_a_number_and_functions_with_braces_are_explained() {
        check(
            "pool \"p\" { weight = 100% }",
            1,
            "unexpected symbol near '}'",
            "a value is missing between % and }: a number has no %, so write 100, not 100%",
        );
        check(
            "pool \"p\" {\n  policy = -- x\n}",
            3,
            "unexpected symbol near '}'",
            "a value is missing between = and }",
        );
        check(
            "function f {",
            1,
            "'(' expected near '{'",
            "a function has parentheses and an end, not braces: write function f() ... end",
        );
        check(
            "pool p = { \"a:1\" }",
            1,
            "syntax error near 'p'",
            "names are texts in quotes: write pool \"p\" {",
        );
    }

    #[test]
    fn mistakes_in_declarations_and_operators_are_explained() {
        check(
            "p {\n\nservice \"s\" {",
            3,
            "'}' expected (to close '{' at line 1) near 'service'",
            "a } is missing before this line: the { of line 1 is not closed",
        );
        check(
            "s { a = 1\npool = web }",
            2,
            "'}' expected near 'pool'",
            "a comma is missing at the end of line 1, before `pool`",
        );
        check(
            "pool \"p\" = { \"a:1\" }",
            1,
            "syntax error near '='",
            "a declaration has no =: write pool \"p\" { ... }",
        );
        check("if x = 1 then", 1, "'then' expected near '='", "a comparison is written ==, not =");
        check("if x != 1 then", 1, "unexpected symbol near '!'", "\"not equal\" is written ~=, not !=");
        check("if a && b then", 1, "'then' expected near '&'", "write and, not &&");
        check("p {} }", 1, "<eof> expected near '}'", "this } closes no { before it: remove it, or add a {");
        check(
            "pool \"p\" {\n  balance roundrobin\n}",
            2,
            "'}' expected near 'roundrobin'",
            "`balance roundrobin` is not Evener's language: write policy = \"round_robin\"",
        );
        check(
            "f()\nif x then",
            2,
            "'end' expected near <eof>",
            "'end' expected near <eof> (is an end missing?)",
        );
        check("x = = 1", 1, "unexpected symbol near '='", "");
    }
}
