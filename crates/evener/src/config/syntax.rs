//! Hints for errors of the Lua parser. The parser reports the token that it expected, but not the mistake that
//! usually causes the error.

/// Words that begin a declaration or a statement.
const BEGINNINGS: [&str; 6] = ["service", "pool", "local", "include", "for", "return"];

/// Returns a hint for an error in a line, from its message and the text of the file.
pub(super) fn hint(text: &str, line: u32, message: &str) -> Option<String> {
    let index = line.checked_sub(1)? as usize;
    let here = text.lines().nth(index).unwrap_or_default();
    let hint = if here.contains(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}']) {
        "use straight quotes".to_owned()
    } else if message.ends_with("near '#'") || message.ends_with("near '//'") || begins_comment(here) {
        "comments begin with --".to_owned()
    } else if message.starts_with("unfinished string") || message.starts_with("malformed number") {
        "is a quote missing?".to_owned()
    } else if has_colon_key(here) {
        "keys are written key = value".to_owned()
    } else if let Some(name) = bare_name(here) {
        format!("names are strings: \"{name}\"")
    } else if message.ends_with("near <eof>")
        && ["'end'", "syntax"].iter().any(|word| message.starts_with(word))
    {
        "is an end missing?".to_owned()
    } else if message.starts_with("'}' expected") && begins_declaration(here, message) {
        format!("is a }} missing before line {line}?")
    } else if message.starts_with("'}' expected") && !message.ends_with("near <eof>") {
        let number = line_before(text, index, message).unwrap_or(line as usize);
        format!("is a comma missing on line {number}?")
    } else {
        return None;
    };
    Some(format!(" ({hint})"))
}

fn begins_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with('#') || line.starts_with("//")
}

/// Returns true for a line such as `listen: "0.0.0.0:80"`.
fn has_colon_key(line: &str) -> bool {
    let Some((before, after)) = line.split_once(':') else { return false };
    let key = before.trim_end().rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
    let begins_value = after.trim_start().starts_with(|c: char| c == '"' || c == '{' || c.is_ascii_digit());
    let quoted = before.matches('"').count() % 2 == 1;
    key.starts_with(char::is_alphabetic) && begins_value && !quoted
}

/// Returns the name of a declaration such as `upstream web {`.
fn bare_name(line: &str) -> Option<&str> {
    let mut words = line.split('{').next()?.split_whitespace();
    let (first, second) = (words.next()?, words.next()?);
    let is_word = |word: &str| word.chars().all(|c| c.is_alphanumeric() || c == '_');
    let is_declaration = is_word(first) && is_word(second) && words.next().is_none() && line.contains('{');
    (is_declaration && !["return", "local", "do", "then"].contains(&first)).then_some(second)
}

/// Returns true if a line begins with the token that the message names, and that begins a declaration. Before
/// `=` it is a key.
fn begins_declaration(line: &str, message: &str) -> bool {
    let token = message.rsplit_once("near '").map(|(_, token)| token.trim_end_matches('\''));
    let token = token.filter(|token| BEGINNINGS.contains(token));
    let rest = token.and_then(|token| line.trim_start().strip_prefix(token));
    rest.is_some_and(|rest| !rest.trim_start().starts_with('='))
}

/// Returns the number of the last line with code before the line at `index`, if that begins with the token
/// that the message names.
fn line_before(text: &str, index: usize, message: &str) -> Option<usize> {
    let token = message.rsplit_once("near '")?.1.trim_end_matches('\'');
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
        assert_eq!(hint(text, line, message).unwrap_or_default(), expected, "{text}");
    }

    #[test]
    fn usual_mistakes_have_a_hint() {
        let comma = "pool \"w\" {\n  \"10.0.0.1:80\" -- one\n\n  \"10.0.0.2:80\",\n}";
        check(
            comma,
            4,
            "'}' expected (to close '{' at line 1) near '\"10.0.0.2:80\"'",
            " (is a comma missing on line 2?)",
        );
        check("p { a = 1 b = 2 }", 1, "'}' expected near 'b'", " (is a comma missing on line 1?)");
        check("s { listen: \"0.0.0.0:80\" }", 1, "'}' expected near ':'", " (keys are written key = value)");
        check("s { listen: 80 }", 1, "<name> expected near '80'", " (keys are written key = value)");
        check("# note", 1, "unexpected symbol near '#'", " (comments begin with --)");
        check("x = 1 // note", 1, "unexpected symbol near '//'", " (comments begin with --)");
        check("s { \"10.0.0.1:80 }", 1, "unfinished string near '\"10'", " (is a quote missing?)");
        check("s { 10.0.0.1:80 }", 1, "malformed number near '10.0.0.1'", " (is a quote missing?)");
        check("upstream web {", 1, "syntax error near 'web'", " (names are strings: \"web\")");
        check("pool \u{201c}w\u{201d} {", 1, "unexpected symbol near '<\\226>'", " (use straight quotes)");
        check("p {\n\nservice \"s\" {", 3, "'}' expected near 'service'", " (is a } missing before line 3?)");
        check("s { a = 1\npool = web }", 2, "'}' expected near 'pool'", " (is a comma missing on line 1?)");
        check("p {}\nendd", 2, "syntax error near <eof>", " (is an end missing?)");
        check("for i = 1, 2 do", 1, "'end' expected near <eof>", " (is an end missing?)");
        check("x = = 1", 1, "unexpected symbol near '='", "");
    }
}
