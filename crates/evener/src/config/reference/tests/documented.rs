//! The tables of docs/configuration.md.

use super::*;
use std::fmt::Write as _;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");

/// Returns the rows of a table: keys without a table of their own stand below the key that leads to them.
fn rows(table: &str, prefix: &str, keys: &dyn Fn(&Key) -> bool, documented: &[&str]) -> String {
    let mut rows = String::new();
    for key in keys_of(table).filter(|key| keys(key)) {
        let Key { name, protocols, kind, default, text, section, .. } = key;
        let protocols =
            if protocols.is_empty() { String::new() } else { format!("{}: ", protocols.join(", ")) };
        let more = if section.is_empty() { String::new() } else { format!(" [More]({section})") };
        let _ = writeln!(rows, "| `{prefix}{name}` | {kind} | {default} | {protocols}{text}{more} |");
        let below = key.path_in(table);
        if !documented.contains(&below.as_str()) && table != below {
            rows.push_str(&documented::rows(&below, &format!("{prefix}{name}."), &|_| true, documented));
        }
    }
    rows
}

/// Replaces the text between two marks.
fn replaced(page: &str, mark: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- {mark}: begin -->\n"), format!("<!-- {mark}: end -->\n"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("the mark `{mark}` is missing"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("the end of `{mark}` is missing"));
    format!("{before}{begin}{text}{end}{after}")
}

/// With `EVENER_UPDATE_DOCS=1` the test writes the tables instead.
#[test]
fn the_tables_of_keys_in_the_documentation_are_made_from_the_reference() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let marks: Vec<&str> =
        page.split("<!-- keys of ").skip(1).map(|rest| rest.split(':').next().unwrap()).collect();
    let documented: Vec<&str> = marks.iter().step_by(2).copied().collect();
    let is_of_http = |key: &Key| key.protocols == ["http"];
    let mut expected = page.clone();
    for mark in &documented {
        let (table, rows) = match *mark {
            "http services" => ("http", rows("service", "", &is_of_http, &documented)),
            "services of XDP" => ("xdp", rows("service", "", &|key| key.plane == "xdp", &documented)),
            "services of IPVS" => ("ipvs", rows("service", "", &|key| key.plane == "ipvs", &documented)),
            "service" => {
                let others = |key: &Key| !is_of_http(key) && !["xdp", "ipvs"].contains(&key.plane);
                ("service", rows("service", "", &others, &documented))
            }
            "checks" => ("checks", check_rows()),
            table => (table, rows(table, "", &|_| true, &documented)),
        };
        let header = if table == "checks" {
            "| key | of | type | default | |\n|---|---|---|---|---|\n"
        } else {
            "| key | type | default | |\n|---|---|---|---|\n"
        };
        expected = replaced(&expected, &format!("keys of {mark}"), &format!("\n{header}{rows}\n"));
    }
    expected = replaced(&expected, "words of other programs", &format!("\n{}\n", hints::words_table()));
    if std::env::var_os("EVENER_UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "the keys in docs/configuration.md are old: EVENER_UPDATE_DOCS=1 cargo test -p evener --lib"
    );
    // Each key has its row: in the table of its own table, or below the key that leads to it.
    for key in all().filter(|key| !key.tables.contains(&"")) {
        assert!(page.contains(&format!("{}` |", key.name)), "{} has no row", key.name);
        let anchor = format!("\n## {}", key.section);
        assert!(key.section.is_empty() || has_heading(&page, key.section), "{} leads to {anchor}", key.name);
    }
}

/// Returns the rows of all kinds of checks, with the kinds.
fn check_rows() -> String {
    let mut rows = String::new();
    for key in check::KEYS {
        let kinds: Vec<&str> = key.tables.iter().filter_map(|table| table.strip_prefix("check.")).collect();
        let kinds = if kinds.len() == 8 { "all".into() } else { kinds.join(", ") };
        let Key { name, kind, default, text, .. } = key;
        let _ = writeln!(rows, "| `{name}` | {kinds} | {kind} | {default} | {text} |");
    }
    rows
}

/// Returns true if a page has the heading of an anchor.
fn has_heading(page: &str, anchor: &str) -> bool {
    let slug = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        text.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect()
    };
    page.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor[1..])
}
