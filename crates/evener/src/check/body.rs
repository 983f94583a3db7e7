//! Requirements that the body of an HTTP response must meet: a text, a regular expression and a digest.

use md5::Context as Md5;
use regex::bytes::{Regex, RegexBuilder};
use ring::digest::{Context as Sha256, SHA256};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Number of bytes at the beginning of a body that are searched.
pub(super) const SEARCHED_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of bytes of a body whose digest is computed.
const DIGESTED_BYTES_MAX: u64 = 64 << 20;
/// Maximum size of a compiled regular expression.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Maximum number of compiled regular expressions in memory.
const COMPILED_MAX: usize = 1024;

/// Compiles a regular expression. Matching takes time in proportion to the body, for every expression.
///
/// # Errors
/// The reason why the expression cannot be used.
pub(crate) fn compile(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).unicode(false).size_limit(REGEX_BYTES_MAX).build();
    built.map_err(|error| error.to_string().lines().last().unwrap_or_default().trim().to_owned())
}

/// Returns a compiled regular expression, which stays in memory for the next check.
fn compiled(text: &str) -> Result<Regex, String> {
    static KNOWN: LazyLock<Mutex<BTreeMap<String, Regex>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(regex) = known.get(text) {
        return Ok(regex.clone());
    }
    let regex = compile(text)?;
    if known.len() >= COMPILED_MAX {
        known.clear();
    }
    known.insert(text.to_owned(), regex.clone());
    Ok(regex)
}

/// Requirements for a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpectedBody<'a> {
    /// Text that the beginning of the body must contain.
    pub(super) text: Option<&'a str>,
    /// Regular expression that the beginning of the body must match.
    pub(super) regex: Option<&'a str>,
    /// Digest of the whole body, in hexadecimal digits.
    pub(super) digest: Option<&'a str>,
}

/// The part of a body that was received.
pub(super) struct Received<'a> {
    expected: ExpectedBody<'a>,
    beginning: Vec<u8>,
    length: u64,
    digest: Option<Digest>,
}

enum Digest {
    Md5(Md5),
    Sha256(Sha256),
}

impl Digest {
    fn wanted(digits: &str) -> Self {
        if digits.len() == 32 { Self::Md5(Md5::new()) } else { Self::Sha256(Sha256::new(&SHA256)) }
    }

    fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(context) => context.consume(bytes),
            Self::Sha256(context) => context.update(bytes),
        }
    }

    fn digits(self) -> String {
        let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Md5(context) => hexadecimal(&context.finalize().0),
            Self::Sha256(context) => hexadecimal(context.finish().as_ref()),
        }
    }
}

impl<'a> Received<'a> {
    pub(super) fn new(expected: ExpectedBody<'a>) -> Self {
        Self { expected, beginning: Vec::new(), length: 0, digest: expected.digest.map(Digest::wanted) }
    }

    /// Adds bytes. Returns the verdict if it does not depend on further bytes.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Option<Result<(), String>> {
        // Bytes that were searched before are skipped, except the last bytes, in which the text may begin.
        let overlap = self.expected.text.map_or(0, str::len);
        let from = self.beginning.len().saturating_sub(overlap);
        let room = SEARCHED_BYTES_MAX - self.beginning.len();
        self.beginning.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.length += bytes.len() as u64;
        if let Some(digest) = &mut self.digest {
            digest.add(bytes);
            let too_long = || Err(format!("http: the body has more than {} MiB", DIGESTED_BYTES_MAX >> 20));
            return (self.length > DIGESTED_BYTES_MAX).then(too_long);
        }
        if self.expected.regex.is_none() && self.expected.text.is_some_and(|text| self.contains(text, from)) {
            return Some(Ok(()));
        }
        (self.beginning.len() == SEARCHED_BYTES_MAX).then(|| self.search())
    }

    /// Returns the verdict about a complete body.
    pub(super) fn end(mut self) -> Result<(), String> {
        let digest = self.digest.take().map(Digest::digits);
        self.search()?;
        match (digest, self.expected.digest) {
            (Some(digest), Some(expected)) if digest != expected => {
                Err(format!("http: the digest of the body is {digest}"))
            }
            _ => Ok(()),
        }
    }

    /// Searches the beginning of the body.
    fn search(&self) -> Result<(), String> {
        if let Some(text) = self.expected.text.filter(|text| !self.contains(text, 0)) {
            return Err(format!("http: the body does not contain {text:?}"));
        }
        if let Some(text) = self.expected.regex {
            let regex = compiled(text).map_err(|why| format!("http: {text:?}: {why}"))?;
            if !regex.is_match(&self.beginning) {
                return Err(format!("http: the body does not match {text:?}"));
            }
        }
        Ok(())
    }

    fn contains(&self, text: &str, from: usize) -> bool {
        let mut windows = self.beginning[from..].windows(text.len().max(1));
        text.is_empty() || windows.any(|window| window == text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the verdict about a body that arrives in pieces of this length, without the end of the reasons.
    fn verdict(body: &[u8], piece: usize, expected: ExpectedBody<'_>) -> String {
        let mut received = Received::new(expected);
        let early = body.chunks(piece).find_map(|bytes| received.add(bytes));
        early.unwrap_or_else(|| received.end()).map_or_else(|why| why, |()| "passes".to_owned())
    }

    const NONE: ExpectedBody<'static> = ExpectedBody { text: None, regex: None, digest: None };

    #[test]
    fn texts_and_expressions_are_searched_in_pieces_of_any_length() {
        let text = |text| ExpectedBody { text: Some(text), ..NONE };
        let regex = |regex| ExpectedBody { regex: Some(regex), ..NONE };
        for piece in [1, 2, 7, 100] {
            assert_eq!(verdict(b"all: ok", piece, text(": o")), "passes");
            assert_eq!(verdict(b"all: ok", piece, text("no")), "http: the body does not contain \"no\"");
            assert_eq!(verdict(b"peers: 12\nx", piece, regex(r"(?m)^peers: [1-9]\d*$")), "passes");
            assert_eq!(verdict(b"all", piece, regex("^b")), "http: the body does not match \"^b\"");
            let both = ExpectedBody { text: Some("a"), regex: Some("b"), digest: None };
            assert_eq!(verdict(b"a", piece, both), "http: the body does not match \"b\"");
            assert_eq!(verdict(b"\xff b a", piece, both), "passes");
        }
        let long = [&vec![b' '; SEARCHED_BYTES_MAX][..], b"ok"].concat();
        assert_eq!(verdict(&long, 1000, text("ok")), "http: the body does not contain \"ok\"");
    }

    #[test]
    fn the_number_of_digits_selects_the_digest() {
        let digest = |digest| ExpectedBody { digest: Some(digest), ..NONE };
        // RFC 1321, appendix A.5, and FIPS 180-2, appendix B.1.
        let (md5, sha256) = (
            "900150983cd24fb0d6963f7d28e17f72",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        );
        assert_eq!(verdict(b"abc", 2, digest(md5)), "passes");
        assert_eq!(verdict(b"abc", 2, digest(sha256)), "passes");
        assert_eq!(
            verdict(b"", 1, digest(md5)),
            "http: the digest of the body is d41d8cd98f00b204e9800998ecf8427e"
        );
        let long = vec![b'a'; 1_000_000];
        assert_eq!(verdict(&long, 8192, digest("7707d6ae4e027c70eea2a935c2296f21")), "passes");
    }

    #[test]
    fn an_expression_that_is_wrong_or_too_large_is_refused_and_a_costly_one_is_fast() {
        assert!(compile("(").is_err() && compile("(a{1000}){1000}").is_err() && compile(r"(a)\1").is_err());
        let body = vec![b'a'; SEARCHED_BYTES_MAX];
        let expected = ExpectedBody { regex: Some("(a*)*b"), ..NONE };
        assert!(verdict(&body, 8192, expected).starts_with("http: the body does not match"));
    }
}
