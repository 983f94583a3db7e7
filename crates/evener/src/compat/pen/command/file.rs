//! Files of commands: all lines count, or none.

use super::{Step, execute};
use crate::compat::pen::state::State;
use std::fmt;
use std::path::{Path, PathBuf};

/// The longest file.
const BYTES_MAX: u64 = 16 << 20;
/// Files that include files.
const DEPTH_MAX: u32 = 16;

/// What is wrong in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::compat::pen) struct FileProblem {
    file: PathBuf,
    line: Option<usize>,
    message: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            Some(line) => write!(out, "{file}:{line}: {}", self.message),
            None => write!(out, "{file}: {}", self.message),
        }
    }
}

/// Does what a file says, or nothing when something in it is wrong.
pub(in crate::compat::pen) fn read(state: &mut State, file: &Path) -> Result<Vec<Step>, Vec<FileProblem>> {
    let mut reader = Reader { changed: state.clone(), steps: Vec::new(), problems: Vec::new(), depth: 0 };
    reader.file(file);
    if !reader.problems.is_empty() {
        return Err(reader.problems);
    }
    *state = reader.changed;
    Ok(reader.steps)
}

/// `include FILE`, as a command by itself.
pub(super) fn include(state: &mut State, file: &Path) -> Result<Vec<Step>, String> {
    read(state, file).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

struct Reader {
    changed: State,
    steps: Vec<Step>,
    problems: Vec<FileProblem>,
    depth: u32,
}

impl Reader {
    fn problem(&mut self, file: &Path, line: Option<usize>, message: impl Into<String>) {
        self.problems.push(FileProblem { file: file.to_owned(), line, message: message.into() });
    }

    fn file(&mut self, file: &Path) {
        let too_large = std::fs::metadata(file).is_ok_and(|meta| meta.len() > BYTES_MAX);
        if too_large {
            return self.problem(file, None, "it is too large");
        }
        let text = match std::fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => return self.problem(file, None, format!("it cannot be read: {error}")),
        };
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> =
                line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            match words[..] {
                // Here, so that the problems of the other file are listed with these.
                ["include", other] if self.depth < DEPTH_MAX => {
                    self.depth += 1;
                    self.file(Path::new(other));
                    self.depth -= 1;
                }
                ["include", _] => self.problem(file, Some(number + 1), "too many files include each other"),
                _ => match execute(&mut self.changed, line) {
                    Ok(steps) => self.steps.extend(steps),
                    Err(error) => self.problem(file, Some(number + 1), error),
                },
            }
        }
    }
}
