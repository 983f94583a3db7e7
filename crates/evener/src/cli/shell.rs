//! Words of command lines that an operator can copy into a shell.

/// Returns a text as one word of a shell, in quotes if it needs them.
pub(super) fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if !text.chars().any(char::is_control) {
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    let escaped = |c: char| match c {
        '\'' | '\\' => format!("\\{c}"),
        c if c.is_control() => {
            let bytes = c.to_string().into_bytes();
            bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
        }
        c => c.to_string(),
    };
    format!("$'{}'", text.chars().map(escaped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_special_characters_are_quoted() {
        assert_eq!(word("web/10.0.0.1:80"), "web/10.0.0.1:80");
        assert_eq!(word("web/a b"), "'web/a b'");
        assert_eq!(word("[::1]:80"), "'[::1]:80'");
        assert_eq!(word("it's $x"), "'it'\\''s $x'");
        assert_eq!(word("a\nb'"), "$'a\\x0ab\\''");
        assert_eq!(word(""), "''");
    }
}
