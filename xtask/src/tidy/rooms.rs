//! The rooms of `crates/proxy/src` and their floors: a module may use rooms on lower floors only. Modules that
//! are not a room yet are exempt: they may use every room, and every room may use them.

use super::rust::{Kind, Token};
use super::{Finding, Measure};

/// The rooms of each floor, from the top floor down. Rooms on the same floor do not use each other.
const FLOORS: &[&[&str]] =
    &[&["plane"], &["worker"], &["tcp", "http", "udp", "dns"], &["service"], &["io"], &["context"]];

/// The folder in which the rooms lie.
pub(super) const ROOT: &str = "crates/proxy/src/";

/// Returns the top-level module that holds a file of `crates/proxy/src`.
pub(super) fn of(file: &str) -> Option<&str> {
    let module = file.strip_prefix(ROOT)?;
    let module = module.split('/').next().unwrap_or(module);
    Some(module.strip_suffix(".rs").unwrap_or(module))
}

/// Appends the uses of rooms that are not below the room of the file.
pub(super) fn check(file: &str, tokens: &[Token], findings: &mut Vec<Finding>) {
    let Some((room, floor)) = of(file).and_then(|room| Some((room, floor_of(room)?))) else { return };
    let code: Vec<Token> =
        tokens.iter().filter(|token| !matches!(token.kind, Kind::Doc | Kind::Comment)).copied().collect();
    for (target, line) in targets(&code, depth(file)) {
        if target != room && floor_of(target).is_some_and(|of_target| of_target <= floor) {
            let what = format!("`{room}` uses `{target}`, which is not below it");
            findings.push(Finding { measure: Measure::UpwardUses, file: file.into(), line, what });
        }
    }
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&room))
}

/// Returns the number of modules from the root of the crate to the module of the file.
fn depth(file: &str) -> usize {
    let module = file.trim_start_matches(ROOT).trim_end_matches(".rs").trim_end_matches("/mod");
    module.split('/').count()
}

/// Returns the first names, and their lines, of all paths that begin at the root of the crate, by `crate::` or
/// enough `super::`.
fn targets<'a>(code: &[Token<'a>], mut depth: usize) -> Vec<(&'a str, usize)> {
    let (mut found, mut braces, mut modules) = (Vec::new(), 0usize, Vec::new());
    let mut at = 0;
    while at < code.len() {
        let next = |offset: usize| code.get(at + offset).map_or("", |token: &Token| token.text);
        match code[at].text {
            "mod" if next(2) == "{" => {
                modules.push(braces);
                depth += 1;
            }
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if modules.pop_if(|outer| *outer == braces).is_some() {
                    depth -= 1;
                }
            }
            "crate" if next(1) == "::" => firsts(code, at + 2, &mut found),
            "super" if next(1) == "::" => {
                let supers = code[at..].chunks(2).take_while(|pair| pair[0].text == "super").count();
                if supers >= depth {
                    firsts(code, at + 2 * supers, &mut found);
                }
                at += 2 * supers - 1;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Appends the name at `at`, or, if a `{..}` is at `at`, the first names of its branches.
fn firsts<'a>(code: &[Token<'a>], at: usize, found: &mut Vec<(&'a str, usize)>) {
    let Some(first) = code.get(at) else { return };
    if first.text != "{" {
        found.push((first.text, first.line));
        return;
    }
    let (mut depth, mut begins) = (0usize, false);
    for token in &code[at..] {
        match token.text {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ if begins && depth == 1 => found.push((token.text, token.line)),
            _ => {}
        }
        if depth == 0 {
            return;
        }
        begins = matches!(token.text, "{" | ",");
    }
}

#[cfg(test)]
mod tests {
    use super::super::rust;
    use super::*;

    #[track_caller]
    fn check_uses(file: &str, source: &str, expected: &[usize]) {
        let mut findings = Vec::new();
        check(&format!("{ROOT}{file}"), &rust::tokens(source), &mut findings);
        let lines: Vec<_> = findings.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, expected, "{file}: {source}");
    }

    #[test]
    fn a_room_uses_lower_floors_only() {
        check_uses("worker.rs", "use crate::tcp::Tcp; use crate::{io, worker};", &[]);
        check_uses("io/tls.rs", "use crate::{\ncontext::{self, worker},\ntcp,\nworker::x};", &[3, 4]);
        check_uses("http/session.rs", "use crate::dns;", &[1]);
        check_uses("tcp.rs", "fn f() {\ncrate::worker::g() }", &[2]);
    }

    #[test]
    fn modules_that_are_not_a_room_are_exempt() {
        check_uses("session.rs", "use crate::worker::Worker;", &[]);
        check_uses("io.rs", "use crate::session::Session; pub(crate) fn worker() {}", &[]);
        check_uses("lib.rs", "use crate::plane;", &[]);
    }

    #[test]
    fn super_is_followed_to_the_root() {
        check_uses("io/tls.rs", "use super::worker; use super::super::io;\nuse super::super::worker;", &[2]);
        check_uses(
            "io.rs",
            "use super::worker;\nmod tests {\nuse super::tcp;\nuse super::super::tcp; }",
            &[1, 4],
        );
    }
}
