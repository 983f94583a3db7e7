//! The code of a file without its comments and texts, so that a search for a mistake does not find words of a
//! comment.

/// Words that Lua reserves.
const KEYWORDS: [&str; 22] = [
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in", "local",
    "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
];

pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.contains(&word)
}

/// Returns the code of a file: comments are replaced by spaces and the contents of texts by underscores, so that
/// positions and lines stay.
pub(super) fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    while code.len() < text.len() {
        let rest = &text[code.len()..];
        let first = rest.chars().next().unwrap_or_default();
        if let Some(comment) = rest.strip_prefix("--") {
            let end = long_end(comment).or_else(|| comment.find('\n')).unwrap_or(comment.len());
            replace(&rest.as_bytes()[..end + 2], ' ', &mut code);
        } else if let Some(end) = long_end(rest) {
            code.push('"');
            replace(&rest.as_bytes()[1..end - 1], '_', &mut code);
            code.push('"');
        } else if first == '"' || first == '\'' {
            let inner = &rest[1..];
            let mut is_escaped = false;
            let end = inner.find(|c: char| {
                let ends = !is_escaped && (c == first || c == '\n');
                is_escaped = c == '\\' && !is_escaped;
                ends
            });
            code.push(first);
            replace(&inner.as_bytes()[..end.unwrap_or(inner.len())], '_', &mut code);
            // The closing quote, or the end of the line.
            code.extend(end.and_then(|end| inner[end..].chars().next()));
        } else {
            code.push(first);
        }
    }
    code
}

/// Returns the end of a long text such as `[[...]]` or `[=[...]=]` at the beginning.
fn long_end(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('[')?;
    let level = inner.len() - inner.trim_start_matches('=').len();
    inner[level..].starts_with('[').then_some(())?;
    let close = format!("]{}]", "=".repeat(level));
    Some(text[level + 2..].find(&close).map_or(text.len(), |at| level + 2 + at + close.len()))
}

/// Adds a byte for each byte of a text, except for the ends of lines.
fn replace(text: &[u8], by: char, code: &mut String) {
    code.extend(text.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { char::from(byte) } else { by }));
}

#[cfg(test)]
mod tests {
    use super::code_of;

    #[test]
    fn comments_and_texts_are_replaced_and_positions_stay() {
        let check = |text: &str, expected: &str| {
            let code = code_of(text);
            assert_eq!(code, expected);
            assert_eq!(code.len(), text.len());
        };
        check("a = \"b\\\"c\" -- d\nf", "a = \"____\"     \nf");
        check("a = 'é' é", "a = '__' é");
        check("a = [[b\n]] .. [=[ ]] ]=]", "a = \"__\n_\" .. \"________\"");
        check("--[[ a\nb ]] c", "      \n     c");
        check("'a\nb", "'_\nb");
        check("[[é", "\"__\"");
        check("[[", "\"\"");
        check("[=[", "\"_\"");
        check("\"a", "\"_");
    }
}
