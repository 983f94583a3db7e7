//! Imports between the top-level modules of the program, which must not form a cycle.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules, each with the modules that it imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// All files in a directory and its subdirectories.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The modules that code names by `crate::module` or `crate::{module, other::item}`.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        // This is another path that ends in `crate::`, like `not_crate::`.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + path.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut begins = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => begins = true,
                _ if c.is_whitespace() => {}
                _ if begins => {
                    found.insert(word(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn graph(source: &Path) -> Graph {
    let mut graph = Graph::new();
    for file in files(source) {
        let relative = file.strip_prefix(source).unwrap().with_extension("");
        let module = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let imported = imports(&lines.join("\n")).into_iter().filter(|other| *other != module);
        graph.entry(module.clone()).or_default().extend(imported);
    }
    graph
}

/// Finds a cycle that begins with the modules of `path`.
fn cycle<'a>(graph: &'a Graph, path: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> Option<String> {
    let last = *path.last().unwrap();
    for next in graph.get(last).into_iter().flatten() {
        if let Some(at) = path.iter().position(|module| module == next) {
            return Some([&path[at..], &[next]].concat().join(" -> "));
        }
        if done.contains(next.as_str()) {
            continue;
        }
        path.push(next);
        let found = cycle(graph, path, done);
        path.pop();
        if found.is_some() {
            return found;
        }
    }
    done.insert(last);
    None
}

fn first_cycle(graph: &Graph) -> Option<String> {
    let mut done = BTreeSet::new();
    graph.keys().find_map(|module| cycle(graph, &mut vec![module], &mut done))
}

#[test]
fn imports_between_modules_have_no_cycle() {
    let graph = graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(graph["cli"].contains("instance") && graph["instance"].contains("supervisor"), "{graph:?}");
    assert_eq!(first_cycle(&graph), None);
}

#[test]
fn a_cycle_is_found() {
    let code = "use crate::{b::{self, X}, c};\nfn f() { $crate::d::g(); not_crate::e() }";
    assert_eq!(imports(code), ["b", "c", "d"].map(str::to_owned).into());
    let imported = |modules: &[&str]| modules.iter().map(|module| (*module).to_owned()).collect();
    let mut graph: Graph = [("a", &["b", "c"][..]), ("b", &["c"]), ("c", &[])]
        .map(|(module, others)| (module.to_owned(), imported(others)))
        .into();
    assert_eq!(first_cycle(&graph), None);
    graph.get_mut("c").unwrap().insert("a".to_owned());
    assert_eq!(first_cycle(&graph).as_deref(), Some("a -> b -> c -> a"));
}
