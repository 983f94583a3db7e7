//! The syntax of keepalived.conf: statements of words, some with a block in braces. Nothing is skipped: a brace
//! without its partner is a problem with its line, because keepalived itself reads such a file as another
//! configuration without a word.

use crate::config::{Location, Problem};
use std::fs;
use std::path::{Path, PathBuf};

/// Maximum depth of blocks. keepalived has four levels.
const DEPTH_MAX: usize = 16;
/// Maximum depth of files that include each other.
const INCLUDES_MAX: usize = 8;
/// Maximum number of files.
const FILES_MAX: usize = 1000;

/// A statement: words, and the statements of its block.
#[derive(Debug)]
pub(super) struct Statement {
    location: Location,
    words: Vec<String>,
    block: Option<Vec<Statement>>,
}

impl Statement {
    /// Returns the first word.
    pub(super) fn keyword(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Returns the words after the first word.
    pub(super) fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    /// Returns the statements of the block.
    pub(super) fn block(&self) -> &[Self] {
        self.block.as_deref().unwrap_or_default()
    }

    /// Returns the file and the line.
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Returns the words as they are written.
    pub(super) fn shown(&self) -> String {
        self.words.join(" ")
    }

    /// Creates a problem with this statement.
    pub(super) fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::at(&self.location, message.into())
    }
}

/// Reads a file and the files that it includes.
pub(super) fn read(path: &Path) -> Result<Vec<Statement>, Vec<Problem>> {
    let mut files = Files::default();
    let statements = files.read(path, None, 0);
    if files.problems.is_empty() { Ok(statements) } else { Err(files.problems) }
}

/// Reads a text without the files that it includes.
#[cfg(test)]
pub(super) fn read_text(name: &str, text: &str) -> Result<Vec<Statement>, Vec<Problem>> {
    let parsed = parse(name, text);
    if parsed.problems.is_empty() { Ok(parsed.statements) } else { Err(parsed.problems) }
}

#[derive(Default)]
struct Files {
    read: usize,
    problems: Vec<Problem>,
}

impl Files {
    fn read(&mut self, path: &Path, by: Option<&Statement>, depth: usize) -> Vec<Statement> {
        let name = path.display().to_string();
        let problem = |message: String| match by {
            Some(statement) => statement.problem(message),
            None => Problem::new(message),
        };
        self.read += 1;
        if depth > INCLUDES_MAX || self.read > FILES_MAX {
            self.problems.push(problem(format!("{name}: too many files are included: check for a loop")));
            return Vec::new();
        }
        match fs::read(path) {
            Ok(bytes) => {
                let parsed = parse(&name, &String::from_utf8_lossy(&bytes));
                self.problems.extend(parsed.problems);
                self.with_includes(parsed.statements, path, depth)
            }
            Err(error) => {
                self.problems.push(problem(format!("{name}: {error}")));
                Vec::new()
            }
        }
    }

    /// Replaces `include FILE` by the statements of the file.
    fn with_includes(&mut self, statements: Vec<Statement>, path: &Path, depth: usize) -> Vec<Statement> {
        let mut all = Vec::new();
        for mut statement in statements {
            if statement.keyword() == "include" {
                let found = included(&statement, path);
                let files = found.unwrap_or_else(|problem| {
                    self.problems.push(problem);
                    Vec::new()
                });
                for file in files {
                    all.extend(self.read(&file, Some(&statement), depth + 1));
                }
                continue;
            }
            let block = statement.block.take();
            statement.block = block.map(|block| self.with_includes(block, path, depth));
            all.push(statement);
        }
        all
    }
}

/// Returns the files that `include PATTERN` names: the last part may have one `*`.
fn included(statement: &Statement, by: &Path) -> Result<Vec<PathBuf>, Problem> {
    let [pattern] = statement.arguments() else {
        return Err(statement.problem("include takes one file"));
    };
    let path = by.parent().unwrap_or(Path::new("")).join(pattern);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some((begin, end)) = name.split_once('*') else { return Ok(vec![path]) };
    let directory = path.parent().unwrap_or(Path::new("."));
    if [begin, end, &*directory.to_string_lossy()].iter().any(|part| part.contains(['*', '?', '['])) {
        let message = "only one * in the name of the file is read: include the files one by one";
        return Err(statement.problem(message));
    }
    let entries = fs::read_dir(directory);
    let entries = entries.map_err(|error| statement.problem(format!("{}: {error}", directory.display())))?;
    let matches =
        |name: &str| name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end);
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| matches(&name.to_string_lossy())))
        .collect();
    files.sort();
    Ok(files)
}

/// Statements and problems of a text.
#[derive(Default)]
struct Parsed {
    statements: Vec<Statement>,
    problems: Vec<Problem>,
}

/// A word of a line, or a brace.
struct Word {
    text: String,
    is_quoted: bool,
}

impl Word {
    fn is(&self, brace: &str) -> bool {
        !self.is_quoted && self.text == brace
    }
}

/// Parses a text. `name` is the name of its file in problems.
fn parse(name: &str, text: &str) -> Parsed {
    let mut parser = Parser { name, open: Vec::new(), pending: None, parsed: Parsed::default() };
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let mut line = line.trim_end().to_owned();
        // A backslash at the end joins the next line.
        while line.ends_with('\\') {
            line.pop();
            line += lines.next().map_or("", |(_, next)| next.trim_end());
        }
        parser.line(&Location::new(name, number), &line);
    }
    parser.finish()
}

struct Parser<'a> {
    name: &'a str,
    /// Statements whose blocks are open, the innermost last, with the statements that follow in the block.
    open: Vec<(Statement, Vec<Statement>)>,
    /// The last statement: a brace on the next line begins its block.
    pending: Option<Statement>,
    parsed: Parsed,
}

impl Parser<'_> {
    fn line(&mut self, location: &Location, line: &str) {
        let words = match words(line) {
            Ok(words) => words,
            Err(message) => return self.parsed.problems.push(Problem::at(location, message)),
        };
        let mut continues = false;
        for word in words {
            if word.is("{") {
                self.open_block(location);
                continues = false;
            } else if word.is("}") {
                self.close_block(location);
                continues = false;
            } else if continues && let Some(statement) = &mut self.pending {
                statement.words.push(word.text);
            } else {
                self.flush();
                if !word.is_quoted {
                    self.refuse_preprocessor(location, &word.text);
                }
                self.pending =
                    Some(Statement { location: location.clone(), words: vec![word.text], block: None });
                continues = true;
            }
        }
    }

    /// keepalived replaces these before it reads the statements.
    fn refuse_preprocessor(&mut self, location: &Location, word: &str) {
        let message = match word.chars().next() {
            Some('@') => {
                "lines for one machine (`@name ...`) are not read: keep the lines of this machine only"
            }
            Some('$') => "definitions (`$NAME=value`) are not read: write the values where they are used",
            Some('~') => "sequences (`~SEQ(...)`) are not read: write the statements one by one",
            _ => return,
        };
        self.parsed.problems.push(Problem::at(location, message));
    }

    fn flush(&mut self) {
        let Some(statement) = self.pending.take() else { return };
        match self.open.last_mut() {
            Some((_, block)) => block.push(statement),
            None => self.parsed.statements.push(statement),
        }
    }

    fn open_block(&mut self, location: &Location) {
        let statement = self.pending.take().unwrap_or_else(|| {
            let message = "this { follows no statement: remove it, or the } before it";
            self.parsed.problems.push(Problem::at(location, message));
            Statement { location: location.clone(), words: Vec::new(), block: None }
        });
        if self.open.len() == DEPTH_MAX {
            let message = format!("more than {DEPTH_MAX} blocks are open: a }} is missing above");
            self.parsed.problems.push(Problem::at(location, message));
        }
        self.open.push((statement, Vec::new()));
    }

    fn close_block(&mut self, location: &Location) {
        self.flush();
        let Some((mut statement, block)) = self.open.pop() else {
            let message = "this } closes no block: remove it, or add the { that is missing above";
            return self.parsed.problems.push(Problem::at(location, message));
        };
        statement.block = Some(block);
        self.pending = Some(statement);
        self.flush();
    }

    fn finish(mut self) -> Parsed {
        self.flush();
        for (statement, _) in &self.open {
            let message = format!("the block of `{}` is not closed: add the missing }}", statement.shown());
            self.parsed.problems.push(statement.problem(message));
        }
        if self.parsed.problems.is_empty() && self.parsed.statements.is_empty() {
            self.parsed.problems.push(Problem::new(format!("{}: the file has no statements", self.name)));
        }
        self.parsed
    }
}

/// Returns the words of a line. `!` and `#` begin a comment.
fn words(line: &str) -> Result<Vec<Word>, &'static str> {
    let mut words = Vec::new();
    let mut characters = line.chars().peekable();
    while let Some(first) = characters.next() {
        match first {
            '!' | '#' => break,
            '"' => {
                let mut text = String::new();
                loop {
                    match characters.next() {
                        Some('"') => break,
                        Some('\\') => text.extend(characters.next().map(|escaped| match escaped {
                            'n' => '\n',
                            't' => '\t',
                            'r' => '\r',
                            other => other,
                        })),
                        Some(other) => text.push(other),
                        None => return Err("the text in quotes is not closed: add the missing \""),
                    }
                }
                words.push(Word { text, is_quoted: true });
            }
            blank if blank.is_whitespace() => {}
            first => {
                let mut text = String::from(first);
                while let Some(next) = characters.next_if(|next| !next.is_whitespace()) {
                    text.push(next);
                }
                words.push(Word { text, is_quoted: false });
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        parse("k.conf", text).problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn statements_have_words_blocks_and_lines() {
        let text = "! comment\nvirtual_server 192.0.2.1 80 { # first\n  delay_loop 6\n  real_server 10.0.0.1 80\n  {\n    TCP_CHECK { connect_timeout 3 }\n  }\n}\nquorum_up \"a b\"\n";
        let parsed = parse("k.conf", text);
        assert!(parsed.problems.is_empty(), "the text is correct: {:?}", parsed.problems);
        let [server, quorum] = &parsed.statements[..] else {
            panic!("two statements: {:?}", parsed.statements)
        };
        assert_eq!((server.shown(), server.block().len()), ("virtual_server 192.0.2.1 80".into(), 2));
        let check = &server.block()[1].block()[0];
        assert_eq!((check.keyword(), check.block()[0].shown()), ("TCP_CHECK", "connect_timeout 3".into()));
        assert_eq!(check.location().to_string(), "k.conf:6");
        assert_eq!(quorum.arguments(), ["a b"]);
    }

    #[test]
    fn braces_without_a_partner_are_problems_with_their_lines() {
        let open = "virtual_server 192.0.2.1 80 {\n  real_server 10.0.0.1 80 {\n  delay_loop 6\n}\n";
        assert_eq!(
            problems(open),
            ["k.conf:1: the block of `virtual_server 192.0.2.1 80` is not closed: add the missing }"]
        );
        let closed = "global_defs {\n}\n}\n";
        assert_eq!(
            problems(closed),
            ["k.conf:3: this } closes no block: remove it, or add the { that is missing above"]
        );
        assert_eq!(
            problems("{\n}\n"),
            ["k.conf:1: this { follows no statement: remove it, or the } before it"]
        );
    }

    #[test]
    fn preprocessor_lines_are_refused() {
        let found = problems("$A=1\n@host1 delay_loop 6\n~SEQ(i,1,3) x\nname \"open\n");
        assert_eq!(found.len(), 4, "each line has a problem: {found:?}");
        assert!(found[0].starts_with("k.conf:1: definitions"), "{found:?}");
        assert!(found[3].starts_with("k.conf:4: the text in quotes is not closed"), "{found:?}");
    }
}
