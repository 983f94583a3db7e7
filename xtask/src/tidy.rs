//! `cargo xtask tidy`: rules of style that a machine can check. The rules of `layout` hold without exception.
//! The findings of all other rules are counted, and no count may exceed its ceiling. Ceilings only go down.

mod ceilings;
mod layout;
mod rooms;
mod rust;
mod shape;
mod words;

use crate::shell;
use anyhow::{Context, bail};
use ceilings::Counts;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Maximum number of findings that are printed for a count above its ceiling; `--list` prints all.
const OFFENDERS_MAX: usize = 60;
/// A count that is at least this far below its ceiling is worth a hint.
const HINT_BELOW: usize = 10;
/// The only source file that has to contain banned words.
const EXEMPT: &str = "xtask/src/tidy/words.rs";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// List the offenders of a measure, with file and line, instead of checking
    #[arg(long, value_name = "MEASURE")]
    list: Option<Measure>,
    /// With --list: only files whose path contains this
    #[arg(long, value_name = "PATH", default_value = "")]
    path: String,
    /// Lower the ceilings in xtask/tidy.toml to the present numbers
    #[arg(long)]
    lower: bool,
}

/// A number that has a ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Measure {
    /// Doc comments with a banned first word
    Openers,
    /// Banned words in comments and in the prose of Markdown
    Comments,
    /// Banned words in string literals
    Strings,
    /// Banned words in names, and in code that comments and Markdown quote
    Names,
    /// Fields with pub(crate), or pub in a struct that is not
    OpenFields,
    /// Functions of the proxy that take &Worker or &mut Worker
    WholeWorker,
    /// Functions of the proxy that take an index as usize
    RawIndices,
    /// Uses of a room of the proxy that is not below the user's
    UpwardUses,
}

impl Measure {
    const ALL: [Self; 8] = [
        Self::Openers,
        Self::Comments,
        Self::Strings,
        Self::Names,
        Self::OpenFields,
        Self::WholeWorker,
        Self::RawIndices,
        Self::UpwardUses,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Openers => "openers",
            Self::Comments => "comments",
            Self::Strings => "strings",
            Self::Names => "names",
            Self::OpenFields => "open-fields",
            Self::WholeWorker => "whole-worker",
            Self::RawIndices => "raw-indices",
            Self::UpwardUses => "upward-uses",
        }
    }
}

/// One place in the workspace that counts towards a measure.
#[derive(Debug)]
struct Finding {
    measure: Measure,
    file: String,
    line: usize,
    what: String,
}

/// Checks the workspace. With `--list`, prints the findings instead; with `--lower`, also lowers the ceilings.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (mut problems, mut findings) = (Vec::new(), Vec::new());
    let files = survey(&mut problems, &mut findings)?;
    if let Some(measure) = options.list {
        let listed =
            findings.iter().filter(|found| found.measure == measure && found.file.contains(&options.path));
        let lines = listed.map(|found| format!("{}:{}: {}\n", found.file, found.line, found.what));
        // The reader may close the pipe early.
        let _ = std::io::stdout().write_all(lines.collect::<String>().as_bytes());
        return Ok(());
    }
    let path = shell::root().join("xtask/tidy.toml");
    let ceilings = ceilings::parse(&fs::read_to_string(&path).context("xtask/tidy.toml")?)?;
    let counts = count(&findings, |found| part(&found.file));
    print_table(&counts, &count(&findings, |found| rooms::of(&found.file).unwrap_or_default().into()));
    if options.lower {
        fs::write(&path, ceilings::emit(&ceilings::lowered(&ceilings, &counts)))?;
    }
    hold(&counts, &ceilings, &findings, &mut problems);
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    if !problems.is_empty() {
        bail!("{} problems of style", problems.len());
    }
    println!("tidy: {files} files keep the rules");
    Ok(())
}

/// Applies all rules to all files and returns the number of files.
fn survey(problems: &mut Vec<String>, findings: &mut Vec<Finding>) -> anyhow::Result<usize> {
    let banned_path = shell::root().join("xtask/words.txt");
    let banned = fs::read_to_string(&banned_path).context("xtask/words.txt")?;
    let banned = words::Words::parse(&banned)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(shell::root())? {
        let path = entry?.path();
        files.extend((path.extension() == Some("md".as_ref())).then_some(path));
    }
    for folder in ["crates", "xtask", "docs", "fuzz/fuzz_targets"] {
        collect(&shell::root().join(folder), &mut files)?;
    }
    files.sort();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(shell::root()).unwrap_or(file).display().to_string();
        if name.ends_with(".md") {
            banned.check_markdown(&name, &text, findings);
            continue;
        }
        let tokens = rust::tokens(&text);
        layout::check(&name, &text, problems);
        shape::check(&name, &tokens, name.starts_with(rooms::ROOT), findings);
        rooms::check(&name, &tokens, findings);
        if name != EXEMPT {
            banned.check_rust(&name, &tokens, findings);
        }
    }
    Ok(files.len())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            files.push(path);
        }
    }
    Ok(())
}

/// Returns the part of the workspace that a file belongs to: a crate, the tests of a crate, or the documents.
fn part(file: &str) -> String {
    let mut steps = file.split('/');
    match (steps.next(), steps.next(), steps.next()) {
        (Some("crates"), Some(name), Some("tests")) => format!("{name}-tests"),
        (Some("crates"), Some(name), _) => name.into(),
        (Some(folder @ ("xtask" | "fuzz")), ..) => folder.into(),
        _ => "docs".into(),
    }
}

fn count(findings: &[Finding], key: impl Fn(&Finding) -> String) -> Counts {
    let mut counts = Counts::new();
    findings.iter().for_each(|found| *counts.entry((found.measure, key(found))).or_default() += 1);
    counts
}

/// Prints a row for each part of the workspace, and one for each room of the proxy.
fn print_table(parts: &Counts, rooms: &Counts) {
    print!("{:<16}", "");
    Measure::ALL.iter().for_each(|measure| print!("{:>13}", measure.name()));
    println!();
    print_rows(parts, "");
    println!("of the proxy");
    print_rows(rooms, "  ");
}

fn print_rows(counts: &Counts, indent: &str) {
    let names: BTreeSet<&String> =
        counts.keys().map(|(_, name)| name).filter(|name| !name.is_empty()).collect();
    for name in names {
        print!("{:<16}", format!("{indent}{name}"));
        Measure::ALL.iter().for_each(|measure| {
            print!("{:>13}", counts.get(&(*measure, name.clone())).unwrap_or(&0));
        });
        println!();
    }
}

/// Appends a problem for each count above its ceiling, and prints the findings.
fn hold(counts: &Counts, ceilings: &Counts, findings: &[Finding], problems: &mut Vec<String>) {
    for ((measure, of), count) in counts {
        let ceiling = ceilings.get(&(*measure, of.clone())).copied().unwrap_or(0);
        if *count <= ceiling {
            continue;
        }
        let offenders = findings.iter().filter(|found| found.measure == *measure && part(&found.file) == *of);
        for found in offenders.take(OFFENDERS_MAX) {
            eprintln!("{}:{}: {}", found.file, found.line, found.what);
        }
        let name = measure.name();
        problems.push(format!("{of}: {count} {name}, more than {ceiling} (all of them: --list {name})"));
    }
    let slack = ceilings
        .iter()
        .filter(|(key, ceiling)| counts.get(key).copied().unwrap_or(0) + HINT_BELOW <= **ceiling);
    let slack: Vec<String> = slack.map(|((measure, of), _)| format!("{of} {}", measure.name())).collect();
    if !slack.is_empty() {
        println!("far below the ceiling (`cargo xtask tidy --lower`): {}", slack.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_belongs_to_a_part_of_the_workspace() {
        assert_eq!(part("crates/core/src/dns/cache.rs"), "core");
        assert_eq!(part("crates/evener/tests/e2e/main.rs"), "evener-tests");
        assert_eq!(part("xtask/src/main.rs"), "xtask");
        assert_eq!(part("docs/api.md"), "docs");
        assert_eq!(part("README.md"), "docs");
    }

    #[test]
    fn a_count_above_its_ceiling_is_a_problem() {
        let found = |line| Finding {
            measure: Measure::Openers,
            file: "xtask/a.rs".into(),
            line,
            what: String::new(),
        };
        let findings = [found(1), found(2)];
        let counts = count(&findings, |found| part(&found.file));
        for (ceiling, expected) in [(1, 1), (2, 0), (3, 0)] {
            let ceilings = Counts::from([((Measure::Openers, "xtask".into()), ceiling)]);
            let mut problems = Vec::new();
            hold(&counts, &ceilings, &findings, &mut problems);
            assert_eq!(problems.len(), expected, "{ceiling}");
        }
    }
}
