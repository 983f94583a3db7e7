//! Descriptions of the libraries for functions, taken from docs/scripting.md.

const PAGE: &str = include_str!("../../../../../docs/scripting.md");

/// Returns the forms of a function of the libraries, such as `http.get`, and of those described with it, and their
/// description in Markdown.
pub(super) fn describe(word: &str) -> Option<(Vec<&'static str>, String)> {
    let section = PAGE.split_once("\n## Library\n")?.1.split("\n## ").next()?;
    let paragraph =
        section.split("\n\n").find(|paragraph| titles(paragraph).any(|title| name(title) == word))?;
    let (_, text) = paragraph.split_once("\n: ")?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Some((titles(paragraph).collect(), text))
}

/// Returns the forms of the functions that a paragraph describes, such as `http.get(url, options)`.
fn titles(paragraph: &str) -> impl Iterator<Item = &str> {
    let line = paragraph.trim_start().lines().next().unwrap_or_default();
    line.split("**`").skip(1).filter_map(|rest| rest.split("`**").next())
}

fn name(title: &str) -> &str {
    title.split('(').next().unwrap_or(title)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn each_library_is_described() {
        for word in
            ["http.get", "http.post", "tcp.connect", "udp.exchange", "dns.query", "exec", "json.decode"]
        {
            let (titles, text) = describe(word).unwrap();
            assert!(titles.iter().any(|title| title.starts_with(&format!("{word}("))), "{titles:?}: {text}");
        }
        assert_eq!(describe("http.put"), None);
        assert!(describe("log.info").unwrap().1.contains("Writes the event"));
    }
}
