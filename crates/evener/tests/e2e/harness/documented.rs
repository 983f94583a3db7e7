//! Outputs of commands in the documentation, which tests produce: `EVENER_UPDATE_DOCS=1` writes them, and without it they
//! are compared. Numbers, times and widths of columns may differ between two runs; words may not.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

/// Tests that update the same page wait for each other.
static UPDATE: Mutex<()> = Mutex::new(());

/// Compares the output of commands with the block `<!-- output: NAME -->` of a page of docs.
#[track_caller]
pub(crate) fn check_output(page: &str, name: &str, output: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let block = format!("```console\n{}\n```\n", output.trim_end());
    if std::env::var_os("EVENER_UPDATE_DOCS").is_some() {
        let _guard = UPDATE.lock();
        let text = fs::read_to_string(&path).unwrap();
        let (before, _, after) = split(&text, name, &path);
        fs::write(&path, format!("{before}\n{block}\n{after}")).unwrap();
        return;
    }
    let text = fs::read_to_string(&path).unwrap();
    let (_, documented, _) = split(&text, name, &path);
    let advice = "update it with EVENER_UPDATE_DOCS=1 cargo test -p evener --test e2e -- incidents";
    let (expected, printed) = (shapes(documented), shapes(&block));
    assert_eq!(printed, expected, "docs/{page} has an old output for {name} ({advice}); printed:\n{block}");
}

/// Returns the text up to and including the beginning of a block, the block, and the rest.
fn split<'a>(text: &'a str, name: &str, path: &Path) -> (&'a str, &'a str, &'a str) {
    let begin = format!("<!-- output: {name} -->\n");
    let at = text.find(&begin).unwrap_or_else(|| panic!("{}: no {begin}", path.display())) + begin.len();
    let length = text[at..].find("<!-- output: end -->").expect("an end of the output");
    (&text[..at], &text[at..at + length], &text[at + length..])
}

/// Returns the shapes of the lines. A line that is repeated, such as an event that occurs each second, counts once.
fn shapes(text: &str) -> Vec<String> {
    let mut shapes: Vec<String> = text.trim().lines().map(shape).collect();
    shapes.dedup();
    shapes
}

/// Returns a line with `#` for each number, time and absent value, and single spaces.
fn shape(line: &str) -> String {
    line.split_whitespace().map(shape_of_word).collect::<Vec<_>>().join(" ")
}

fn shape_of_word(word: &str) -> String {
    const UNITS: &[&str] = &[
        "us", "µs", "ms", "s", "m", "min", "h", "d", "B", "KiB", "MiB", "GiB", "%", "k", "K", "M", "G", "ago",
    ];
    let is_time = word.contains('T') && word.ends_with('Z');
    if is_time || word == "-" || UNITS.contains(&word.trim_end_matches("/s")) {
        return "#".into();
    }
    let is_clock_time = word.len() == 5 && word.chars().all(|one| one.is_ascii_digit() || one == ':');
    let is_address = word.matches('.').count() > 1 || (word.contains(':') && !is_clock_time);
    if is_address {
        return word.into();
    }
    let mut shape = String::new();
    for part in word.split_inclusive(|one: char| !one.is_ascii_digit() && one != '.') {
        let rest = part.trim_start_matches(|one: char| one.is_ascii_digit() || one == '.');
        if rest.len() < part.len() && !shape.ends_with('#') {
            shape.push('#');
        }
        shape.push_str(rest);
    }
    for unit in UNITS {
        if let Some(value) = shape.strip_suffix("/s").unwrap_or(&shape).strip_suffix(&format!("#{unit}")) {
            return format!("{value}#");
        }
    }
    // A date, or a number of a limit.
    if shape.chars().all(|one| "#-/:".contains(one)) { "#".into() } else { shape }
}

#[test]
fn lines_have_the_same_shape_if_only_numbers_differ() {
    assert_eq!(shape("  10.0.0.1:80  up 3m   12/40  1.5K  -"), shape("  10.0.0.1:80 up 12s 1/40 7B 9"));
    assert_ne!(shape("10.0.0.1:80 up 12s 1 2 3"), shape("10.0.0.1:80 up 12s 1 2"));
    assert_eq!(shapes("a 1\na 2\nb"), shapes("a 7\nb"));
    assert_ne!(shape("  10.0.0.1:80  up"), shape("  10.0.0.2:80  up"));
    assert_ne!(shape("10.0.0.1:80  up"), shape("10.0.0.1:80  down"));
    assert_eq!(
        shape("expired on 2026-11-25 22:27 UTC, 3 days ago"),
        shape("expired on 2026-12-01 09:00 UTC, 4 days ago")
    );
    assert_eq!(shape("p95 3ms 900/s limit=3/7"), shape("p95 1.5s 1/s limit=12/99"));
    assert_eq!(shape("2026-11-28T21:17:07.143Z warn pid=3"), shape("2026-12-01T00:00:00.000Z warn pid=44"));
}
