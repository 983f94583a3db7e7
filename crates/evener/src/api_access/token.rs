//! Tokens of clients of the admin API: `NAME TOKEN` on each line of a file. Only digests are kept.

use super::read_file;
use ring::digest::{SHA256, digest};
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq;

const FILE_BYTES_MAX: u64 = 256 << 10;
const TOKENS_MAX: usize = 1000;
const TOKEN_LENGTH: RangeInclusive<usize> = 16..=512;
const NAME_BYTES_MAX: usize = 64;

/// The tokens of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tokens(Vec<(Arc<str>, [u8; 32])>);

impl Tokens {
    /// Reads a file that only its owner and its group may read.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        Self::parse(&text_of(path)?).map_err(|why| format!("{}: {why}", path.display()))
    }

    /// Parses the lines of a file.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut tokens: Vec<(Arc<str>, [u8; 32])> = Vec::new();
        for (number, line) in lines(text) {
            let (name, token) = parse_line(line).map_err(|why| format!("line {number}: {why}"))?;
            if tokens.iter().any(|(other, _)| **other == *name) {
                return Err(format!("line {number}: another token has the name {name}"));
            }
            if tokens.len() >= TOKENS_MAX {
                return Err(format!("there are more than {TOKENS_MAX} tokens"));
            }
            tokens.push((name.into(), digest_of(token.as_bytes())));
        }
        if tokens.is_empty() {
            return Err(
                "there is no token: write a line `NAME TOKEN`, with the output of `openssl rand -hex 32`"
                    .into(),
            );
        }
        Ok(Self(tokens))
    }

    /// Returns the name of a token. The time that this takes does not depend on the tokens of the file: digests of one
    /// length are compared, each of them as a whole.
    pub(super) fn find(&self, token: &[u8]) -> Option<Arc<str>> {
        let wanted = digest_of(token);
        let mut found = None;
        for (name, digest) in &self.0 {
            if bool::from(digest.ct_eq(&wanted)) {
                found = Some(name);
            }
        }
        found.cloned()
    }
}

/// Reads the first token of a file, for a client.
pub(crate) fn read_token(path: &Path) -> Result<String, String> {
    let text = text_of(path)?;
    let (number, line) =
        lines(&text).next().ok_or_else(|| format!("{}: there is no token", path.display()))?;
    let parsed = parse_line(line).map_err(|why| format!("{}: line {number}: {why}", path.display()))?;
    Ok(parsed.1.to_owned())
}

/// Returns the text of a file whose mode protects it.
fn text_of(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let meta = fs::metadata(path).map_err(|error| format!("{shown}: {error}"))?;
    if !meta.is_file() {
        return Err(format!("{shown}: not a file"));
    }
    let (mode, user) = (meta.permissions().mode() & 0o777, rustix::process::geteuid().as_raw());
    if mode & 0o037 != 0 {
        return Err(format!(
            "{shown}: mode {mode:04o} lets others read or change the tokens: `chmod 600 {shown}`"
        ));
    }
    if ![0, user].contains(&meta.uid()) {
        return Err(format!("{shown}: the file must belong to root or to the user of this process"));
    }
    let bytes = read_file(path, FILE_BYTES_MAX).map_err(|error| format!("{shown}: {error}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{shown}: the file is not text"))
}

/// Returns the lines with a token, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// Returns the name and the token of a line. The messages do not show the token.
fn parse_line(line: &str) -> Result<(&str, &str), String> {
    let mut words = line.split_whitespace();
    let (first, second) = (words.next().unwrap_or_default(), words.next());
    let (name, token) = second.map_or(("token", first), |token| (first, token));
    if words.next().is_some() {
        return Err("write `NAME TOKEN`".into());
    }
    if name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("a name has at most {NAME_BYTES_MAX} letters, digits and signs"));
    }
    // The characters of a bearer token (RFC 6750, section 2.1).
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if !TOKEN_LENGTH.contains(&token.len()) || !token.bytes().all(is_allowed) {
        let (least, most) = TOKEN_LENGTH.into_inner();
        return Err(format!("a token has {least} to {most} letters, digits and -._~+/="));
    }
    Ok((name, token))
}

fn digest_of(token: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_names_and_a_minimum_length() {
        let text = "# tokens\n\nops 0123456789abcdef\n  ci abcdefghijklmnop \r\n";
        let tokens = Tokens::parse(text).expect("the file is valid");
        assert_eq!(tokens.find(b"abcdefghijklmnop").as_deref(), Some("ci"));
        assert_eq!(tokens.find(b"abcdefghijklmnoq"), None);
        assert_eq!(tokens.find(b""), None);
        let alone = Tokens::parse("0123456789abcdef").expect("a name is optional");
        assert_eq!(alone.find(b"0123456789abcdef").as_deref(), Some("token"));
        for (wrong, expected) in [
            ("", "there is no token"),
            ("ops short", "line 1: a token has 16 to 512"),
            ("ops 0123456789abcdef x", "line 1: write `NAME TOKEN`"),
            ("a 0123456789abcdef\na 0123456789abcdeg", "line 2: another token has the name a"),
            ("ops 0123456789abcde\u{e9}", "line 1: a token"),
        ] {
            let why = Tokens::parse(wrong).expect_err(wrong);
            assert!(why.contains(expected), "{why}");
        }
    }
}
