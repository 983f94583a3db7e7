//! The banned openers of doc comments and the banned words (`xtask/words.txt`) in comments, strings, names and
//! Markdown. Each finding names the words to write instead.

use super::rust::{Kind, Token};
use super::{Finding, Measure};

/// First words of doc comments that postpone the subject.
const OPENERS: &[&str] = &[
    "what",
    "whatever",
    "who",
    "whoever",
    "whom",
    "whose",
    "which",
    "how",
    "it",
    "its",
    "they",
    "that",
    "those",
    "whether",
    "where",
    "wherever",
    "when",
    "whenever",
    "why",
    "nobody",
    "somebody",
    "nothing",
    "everybody",
];

/// Where a word is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Any,
    /// In sentences: comments, strings, Markdown outside code.
    Prose,
    /// In identifiers and in code that a sentence quotes.
    Name,
}

/// One line of `words.txt`.
#[derive(Debug)]
struct Rule<'a> {
    /// Alternatives, each of one word or more, in lower case.
    banned: Vec<Vec<&'a str>>,
    scope: Scope,
    instead: &'a str,
    /// Phrases in which the word is right.
    allowed: Vec<Vec<&'a str>>,
    /// Beginnings of the paths of files in which the word is right.
    allowed_in: Vec<&'a str>,
}

/// The banned words.
#[derive(Debug)]
pub(super) struct Words<'a>(Vec<Rule<'a>>);

impl<'a> Words<'a> {
    /// Parses lines of the form `banned | any, prose or name | instead | allowed phrases and @files`. `#` begins
    /// a comment.
    pub(super) fn parse(text: &'a str) -> anyhow::Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(rule).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Appends the findings of one Rust file.
    pub(super) fn check_rust(&self, file: &str, tokens: &[Token], findings: &mut Vec<Finding>) {
        let mut documented = None;
        for (at, token) in tokens.iter().enumerate() {
            let mut find =
                |measure, line, what| findings.push(Finding { measure, file: file.into(), line, what });
            match token.kind {
                Kind::Word => {
                    let owner = match tokens[..at] {
                        [.., owner, path] if path.text == "::" => owner.text,
                        _ => "",
                    };
                    self.check_name(file, owner, token.text, |what| find(Measure::Names, token.line, what));
                }
                Kind::Text => {
                    for (at, line) in token.text.split('\n').enumerate() {
                        self.check_words(file, &prose(line), Scope::Prose, |what| {
                            find(Measure::Strings, token.line + at, what);
                        });
                    }
                }
                Kind::Doc | Kind::Comment => {
                    let opens = token.kind == Kind::Doc && documented != Some(token.line - 1);
                    if let Some(word) = opens.then(|| opener(token.text)).flatten() {
                        find(Measure::Openers, token.line, format!("the comment begins with `{word}`"));
                    }
                    if token.kind == Kind::Doc {
                        documented = Some(token.line);
                    }
                    for (at, line) in token.text.split('\n').enumerate() {
                        self.check_line(file, line, |measure, what| find(measure, token.line + at, what));
                    }
                }
                Kind::Punctuation | Kind::Other => {}
            }
        }
    }

    /// Appends the findings of one Markdown file. Fenced code counts as names.
    pub(super) fn check_markdown(&self, file: &str, text: &str, findings: &mut Vec<Finding>) {
        let mut fenced = false;
        for (at, line) in text.lines().enumerate() {
            let mut find =
                |measure, what| findings.push(Finding { measure, file: file.into(), line: at + 1, what });
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            } else if fenced {
                self.check_code(file, line, |what| find(Measure::Names, what));
            } else {
                self.check_line(file, line, find);
            }
        }
    }

    /// Checks a line of prose, in which `code` between backticks counts as names.
    fn check_line(&self, file: &str, line: &str, mut find: impl FnMut(Measure, String)) {
        let mut sentence = String::with_capacity(line.len());
        for (at, part) in line.split('`').enumerate() {
            if at % 2 == 0 {
                sentence.push_str(part);
            } else {
                sentence.push_str(" ` ");
                self.check_code(file, part, |what| find(Measure::Names, what));
            }
        }
        self.check_words(file, &prose(&sentence), Scope::Prose, |what| find(Measure::Comments, what));
    }

    fn check_code(&self, file: &str, code: &str, mut find: impl FnMut(String)) {
        let mut owner = "";
        for path in code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':') {
            for name in path.split("::") {
                self.check_name(file, owner, name, &mut find);
                owner = name;
            }
            owner = "";
        }
    }

    /// Checks a name. The owner, as in `Owner::name`, can make an allowed phrase together with the name.
    fn check_name(&self, file: &str, owner: &str, name: &str, mut find: impl FnMut(String)) {
        let mut words = parts(owner);
        let first = words.len();
        words.extend(parts(name));
        self.check_from(file, &words, first, Scope::Name, |what| find(format!("`{name}`: {what}")));
    }

    fn check_words(&self, file: &str, words: &[String], scope: Scope, find: impl FnMut(String)) {
        self.check_from(file, words, 0, scope, find);
    }

    fn check_from(
        &self,
        file: &str,
        words: &[String],
        first: usize,
        scope: Scope,
        mut find: impl FnMut(String),
    ) {
        for at in first..words.len() {
            for rule in self.0.iter().filter(|rule| rule.scope == scope || rule.scope == Scope::Any) {
                let found = rule.banned.iter().find(|banned| begins(&words[at..], banned));
                if let Some(banned) = found.filter(|banned| !rule.allows(file, words, at, banned)) {
                    let (banned, instead) = (banned.join(" "), rule.instead);
                    find(format!("`{banned}` is banned, write {instead}"));
                }
            }
        }
    }
}

impl Rule<'_> {
    /// Returns true if the file may contain the banned words, or if they are part of an allowed phrase at `at`.
    fn allows(&self, file: &str, words: &[String], at: usize, banned: &[&str]) -> bool {
        let is_exempt = self.allowed_in.iter().any(|path| file.starts_with(path));
        is_exempt
            || self.allowed.iter().any(|phrase| {
                (0..phrase.len()).any(|offset| {
                    phrase[offset..].starts_with(banned)
                        && offset <= at
                        && begins(&words[at - offset..], phrase)
                })
            })
    }
}

fn rule(line: &str) -> anyhow::Result<Rule<'_>> {
    let mut columns = line.split('|').map(str::trim);
    let mut column = || columns.next().unwrap_or_default();
    let (banned, scope, instead, allowed) = (split(column()), column(), column(), column());
    let (files, phrases): (Vec<&str>, Vec<&str>) =
        allowed.split(',').map(str::trim).partition(|allowed| allowed.starts_with('@'));
    let allowed_in = files.iter().map(|file| &file[1..]).collect();
    let allowed = phrases.iter().flat_map(|phrase| split(phrase)).collect();
    anyhow::ensure!(!banned.is_empty() && !instead.is_empty(), "xtask/words.txt: `{line}` lacks a word");
    let scope = match scope {
        "any" => Scope::Any,
        "prose" => Scope::Prose,
        "name" => Scope::Name,
        _ => anyhow::bail!("xtask/words.txt: the second column of `{line}` must be any, prose or name"),
    };
    Ok(Rule { banned, scope, instead, allowed, allowed_in })
}

/// Splits a list with commas into phrases, and the phrases into words.
fn split(list: &str) -> Vec<Vec<&str>> {
    let phrases = list.split(',').map(|phrase| phrase.split_whitespace().collect::<Vec<_>>());
    phrases.filter(|words| !words.is_empty()).collect()
}

fn begins(words: &[String], phrase: &[&str]) -> bool {
    words.len() >= phrase.len() && words.iter().zip(phrase).all(|(word, of)| word == of)
}

/// Returns the words of a sentence in lower case, and its punctuation marks, so that no phrase is found across
/// a mark.
fn prose(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for piece in text.split_whitespace() {
        for word in piece.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
            let (word, mark) = match word.char_indices().next_back() {
                Some((at, last)) if !last.is_alphanumeric() && last != '_' => (&word[..at], &word[at..]),
                _ => (word, ""),
            };
            words.extend(parts(word));
            if !matches!(mark, "" | "-" | "'" | "\"" | "(") {
                words.push(mark.into());
            }
        }
    }
    words
}

/// Returns the parts of a name in lower case: `KeptAnswer` and `kept_answer` give `kept` and `answer`.
fn parts(name: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for piece in name.split('_').filter(|piece| !piece.is_empty()) {
        let letters: Vec<char> = piece.chars().collect();
        let mut part = String::new();
        for (at, letter) in letters.iter().enumerate() {
            let after_small = at > 0 && !letters[at - 1].is_uppercase();
            let before_small = letters.get(at + 1).is_some_and(|next| next.is_lowercase());
            if letter.is_uppercase() && !part.is_empty() && (after_small || before_small) {
                parts.push(std::mem::take(&mut part));
            }
            part.extend(letter.to_lowercase());
        }
        parts.push(part);
    }
    parts
}

/// Returns the first word of a doc comment if that word is a banned opener.
fn opener(comment: &str) -> Option<&str> {
    let text = comment.trim_start_matches(['/', '!']).trim_start();
    let word = text.split(|c: char| !c.is_alphanumeric()).next()?;
    OPENERS.contains(&word.to_lowercase().as_str()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::super::rust;
    use super::*;

    const RULES: &str = "question, questions | any | query | question section, a question of taste, @rfc.rs
        kept connection | prose | pooled connection
        kept | name | cached";

    #[track_caller]
    fn check(source: &str, expected: &[(Measure, usize)]) {
        let words = Words::parse(RULES).unwrap();
        let mut findings = Vec::new();
        words.check_rust("a.rs", &rust::tokens(source), &mut findings);
        let seen: Vec<_> = findings.iter().map(|finding| (finding.measure, finding.line)).collect();
        assert_eq!(seen, expected, "{source}");
    }

    #[test]
    fn the_first_word_of_a_doc_comment_is_checked_once_a_block() {
        check("/// What a server is.\n/// What it is not.\nfn f() {}", &[(Measure::Openers, 1)]);
        check("//! It is.\n\n/// How it is.\nstruct S;", &[(Measure::Openers, 1), (Measure::Openers, 3)]);
        check("/// A server.\n// What?\n/// `What` is code.\n", &[]);
    }

    #[test]
    fn words_are_found_in_comments_strings_and_parts_of_names() {
        check("// a Question", &[(Measure::Comments, 1)]);
        check("\"\n\nquestions\"", &[(Measure::Strings, 3)]);
        check("fn on_question(x: DnsQuestions)", &[(Measure::Names, 1), (Measure::Names, 1)]);
        check("// the type `DnsQuestion`", &[(Measure::Names, 1)]);
        check("// unquestioned", &[]);
    }

    #[test]
    fn allowed_phrases_are_not_findings() {
        check("// the question section, the questions", &[(Measure::Comments, 1)]);
        check("// a question of taste; a question of DNS", &[(Measure::Comments, 1)]);
        check("// the question. Section 4", &[(Measure::Comments, 1)]);
        check("let question_section = 1;", &[]);
    }

    #[test]
    fn owners_of_names_and_files_can_allow_a_word() {
        check("Question::Section; question::of", &[(Measure::Names, 1), (Measure::Names, 1)]);
        check("Section::Question", &[(Measure::Names, 1)]);
        let words = Words::parse("answer | any | response | section answer, @rfc").unwrap();
        let count = |file: &str, source: &str| {
            let mut findings = Vec::new();
            words.check_rust(file, &rust::tokens(source), &mut findings);
            findings.len()
        };
        assert_eq!(count("a.rs", "Section::Answer; // `Section::Answer`"), 0);
        assert_eq!((count("a.rs", "Answer"), count("rfc.rs", "Answer")), (1, 0));
    }

    #[test]
    fn a_scope_limits_where_a_word_is_banned() {
        check("// kept, a kept connection", &[(Measure::Comments, 1)]);
        check("let kept_connection = kept;", &[(Measure::Names, 1), (Measure::Names, 1)]);
    }

    #[test]
    fn code_in_markdown_counts_as_names() {
        let words = Words::parse(RULES).unwrap();
        let mut findings = Vec::new();
        words.check_markdown("a.md", "a question `kept`\n```\nquestion\n```\nkept", &mut findings);
        let seen: Vec<_> = findings.iter().map(|finding| (finding.measure, finding.line)).collect();
        assert_eq!(seen, [(Measure::Names, 1), (Measure::Comments, 1), (Measure::Names, 3)]);
    }

    #[test]
    fn names_are_split_into_words() {
        for name in ["kept_answer", "KeptAnswer", "keptAnswer", "KEPT_ANSWER"] {
            assert_eq!(parts(name), ["kept", "answer"], "{name}");
        }
        assert_eq!(parts("DNSQuery2"), ["dns", "query2"]);
    }

    #[test]
    fn rules_with_missing_columns_are_refused() {
        for line in ["| any | b", "a | some | b", "a | any |", "a"] {
            assert!(Words::parse(line).is_err(), "{line}");
        }
        assert!(Words::parse(include_str!("../../words.txt")).is_ok());
    }
}
