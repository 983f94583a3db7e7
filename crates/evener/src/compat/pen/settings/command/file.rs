//! Files of commands. A file with an error changes nothing.

use super::{Step, split};
use crate::compat::pen::settings::PenSettings;
use rustix::fs::OFlags;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Maximum total size of a file and its includes.
const BYTES_MAX: u64 = 16 << 20;
/// Number of bytes that each file counts in addition to its contents.
const FILE_BYTES: u64 = 4096;
/// Maximum depth of includes.
const DEPTH_MAX: u32 = 16;

/// A problem in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileProblem {
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

impl PenSettings {
    /// Executes the commands of a file, or none if any line has an error. Each problem is one text.
    pub(in crate::compat::pen) fn read_file(&mut self, file: &Path) -> Result<Vec<Step>, Vec<String>> {
        let mut reader = Reader {
            changed: self.clone(),
            steps: Vec::new(),
            problems: Vec::new(),
            depth: 0,
            bytes_left: BYTES_MAX,
        };
        reader.file(file);
        if !reader.problems.is_empty() {
            return Err(reader.problems.iter().map(ToString::to_string).collect());
        }
        *self = reader.changed;
        Ok(reader.steps)
    }
}

/// Executes `include FILE` as a separate command.
pub(super) fn include(settings: &mut PenSettings, file: &Path) -> Result<Vec<Step>, String> {
    settings.read_file(file).map_err(|problems| problems.join("\n"))
}

/// Reads a file and its includes.
struct Reader {
    changed: PenSettings,
    steps: Vec<Step>,
    problems: Vec<FileProblem>,
    depth: u32,
    /// Number of bytes that may still be read, over all files.
    bytes_left: u64,
}

/// Reads a file. Does not block on a pipe, because all other commands would wait, too.
fn read_text(file: &Path, bytes_left: &mut u64) -> io::Result<String> {
    let opened = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    // An empty file counts, too, because files can include each other.
    *bytes_left = bytes_left.saturating_sub(FILE_BYTES);
    let mut bytes = Vec::new();
    opened.take(*bytes_left + 1).read_to_end(&mut bytes)?;
    *bytes_left = bytes_left.checked_sub(bytes.len() as u64).ok_or_else(|| {
        io::Error::other(format!("with all that it includes it is larger than {} MiB", BYTES_MAX >> 20))
    })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Reader {
    fn problem(&mut self, file: &Path, line: Option<usize>, message: impl Into<String>) {
        self.problems.push(FileProblem { file: file.to_owned(), line, message: message.into() });
    }

    fn file(&mut self, file: &Path) {
        let text = match read_text(file, &mut self.bytes_left) {
            Ok(text) => text,
            Err(error) => return self.problem(file, None, format!("it cannot be read: {error}")),
        };
        for (number, line) in text.lines().enumerate() {
            match split(line).unwrap_or_default()[..] {
                // Handled here, so that the problems of all files are listed together.
                ["include", other] if self.depth < DEPTH_MAX => {
                    self.depth += 1;
                    self.file(Path::new(other));
                    self.depth -= 1;
                }
                ["include", _] => self.problem(file, Some(number + 1), "too many files include each other"),
                _ => match self.changed.execute(line) {
                    Ok(steps) => self.steps.extend(steps),
                    Err(error) => self.problem(file, Some(number + 1), error),
                },
            }
        }
    }
}
