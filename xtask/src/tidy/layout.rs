//! Rules that no file may break: maximum lengths of the file and of its functions, a meaningful name,
//! documentation of the module, no leftovers.

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// File names that say nothing about the contents.
const BANNED_FILES: &[&str] = &["util.rs", "utils.rs", "helper.rs", "helpers.rs", "misc.rs", "common.rs"];
/// Text that must not be in a source file. The escapes keep this file free of it.
const BANNED: &[&str] =
    &["Man\u{61}ger", "Hel\u{70}er", "fn ge\u{74}_", "TOD\u{4f}", "FIXM\u{45}", "XX\u{58}", "#[igno\u{72}e"];

/// Appends the problems of one Rust file.
pub(super) fn check(name: &str, text: &str, problems: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    if !lines.first().is_some_and(|line| line.starts_with("//!")) {
        problems.push(format!("{name}:1: must begin with `//!`: what does the file own?"));
    }
    if lines.len() > FILE_LINES_MAX {
        problems.push(format!("{name}: {} lines, more than {FILE_LINES_MAX}: split it", lines.len()));
    }
    if BANNED_FILES.iter().any(|banned| name.ends_with(&format!("/{banned}"))) {
        problems.push(format!("{name}: the name says nothing about the contents"));
    }
    for (at, line) in lines.iter().enumerate() {
        // `get_mut` is allowed, because the collections of the standard library use this name.
        let line = line.replace("fn get_mut(", "");
        BANNED.iter().filter(|banned| line.contains(**banned)).for_each(|banned| {
            problems.push(format!("{name}:{}: `{banned}` must not be here", at + 1));
        });
    }
    check_functions(name, &lines, problems);
}

/// Checks the lengths of functions. rustfmt puts the last brace of a function at the indentation of its first
/// line.
fn check_functions(name: &str, lines: &[&str], problems: &mut Vec<String>) {
    let mut open: Option<(usize, usize)> = None;
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let is_function = begins_function(line);
        match open {
            None if is_function && !line.ends_with([';', '}']) => open = Some((at, indent)),
            Some((began, of)) if indent == of && line.trim() == "}" => {
                if at - began + 1 > FUNCTION_LINES_MAX {
                    let length = at - began + 1;
                    problems.push(format!(
                        "{name}:{}: a function of {length} lines, more than {FUNCTION_LINES_MAX}",
                        began + 1
                    ));
                }
                open = None;
            }
            _ => {}
        }
    }
}

/// Returns true if `line` begins a function of any visibility and qualifiers.
fn begins_function(line: &str) -> bool {
    let mut rest = line.trim_start();
    while let Some((word, after)) = rest.split_once(' ') {
        let qualifier =
            matches!(word, "pub" | "const" | "async" | "unsafe" | "extern") || word.starts_with("pub(");
        match word {
            "fn" => return true,
            _ if qualifier => rest = after,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_reports_a_file_that_breaks_it() {
        let count = |name: &str, text: &str| {
            let mut problems = Vec::new();
            check(name, text, &mut problems);
            problems.len()
        };
        for form in ["fn f()", "  pub(crate) async fn f()", "pub const unsafe fn f<T>("] {
            assert!(begins_function(form), "{form}");
        }
        assert!(!begins_function("let fn_name = 5;") && !begins_function("// fn f()"));
        let long = format!("//! x\nfn f() {{\n{}}}\n", "    x();\n".repeat(70));
        assert_eq!(count("a/b.rs", "//! fine\nfn f() {}\n"), 0);
        assert_eq!(count("a/b.rs", "fn f() {}\n"), 1);
        assert_eq!(count("a/utils.rs", "//! x\n"), 1);
        assert_eq!(count("a/b.rs", &long), 1);
        assert_eq!(count("a/b.rs", &format!("//! x\n// {}\n", BANNED[3])), 1);
        assert_eq!(count("a/b.rs", &format!("//! x\n{}", "//\n".repeat(600))), 1);
    }
}
