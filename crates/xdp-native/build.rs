//! Compiles the headers of the XDP program for this machine, and derives the layout test from the contract.

use std::fmt::Write;
use std::path::{Path, PathBuf};

const BPF: &str = "../xdp/bpf";

fn main() {
    println!("cargo:rerun-if-changed={BPF}");
    println!("cargo:rerun-if-changed=c/native.c");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let header = std::fs::read_to_string(Path::new(BPF).join("contract.h")).expect("the contract");
    let contract = Contract::parse(&without_comments(&header));
    let layout = out.join("layout.c");
    std::fs::write(&layout, contract.c_tables()).expect("the output directory can be written");
    std::fs::write(out.join("layout.rs"), contract.rust_tables())
        .expect("the output directory can be written");
    cc::Build::new()
        .files([Path::new("c/native.c"), &layout])
        .include(BPF)
        .warnings(false)
        .opt_level(1)
        .compile("evener_xdp_native");
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut clean = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        clean.push_str(before);
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    clean + rest
}

/// Names in the contract.
#[derive(Default)]
struct Contract {
    /// Structs with their fields.
    structs: Vec<(String, Vec<String>)>,
    /// Defined numbers and values of enums.
    constants: Vec<String>,
}

impl Contract {
    fn parse(text: &str) -> Self {
        let mut contract = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix("#define ")) {
            // The include guard has no value.
            let mut words = line.split_whitespace();
            if let (Some(name), Some(_)) = (words.next(), words.next()) {
                contract.constants.push(name.to_owned());
            }
        }
        for (name, body) in blocks(text, "struct ") {
            let fields = body.split(';').filter_map(|field| field.split_whitespace().last());
            let fields = fields.map(|field| field.split('[').next().unwrap_or(field).to_owned());
            contract.structs.push((name, fields.collect()));
        }
        for (_, body) in blocks(text, "enum ") {
            let values =
                body.split(',').filter_map(|value| value.split('=').next()?.split_whitespace().next());
            contract.constants.extend(values.map(str::to_owned));
        }
        contract
    }

    /// Returns C source with a table of constants and one of sizes and offsets.
    fn c_tables(&self) -> String {
        let mut text =
            "#include <stddef.h>\n#include \"contract.h\"\n\nconst long long evener_constants[] = {\n"
                .to_owned();
        for name in &self.constants {
            let _ = writeln!(text, "\t{name},");
        }
        text.push_str("};\n\nconst size_t evener_layout[] = {\n");
        for (name, fields) in &self.structs {
            let _ = writeln!(text, "\tsizeof(struct {name}),");
            for field in fields {
                let _ = writeln!(text, "\toffsetof(struct {name}, {field}),");
                let _ = writeln!(text, "\tsizeof(((struct {name} *)0)->{field}),");
            }
        }
        text + "};\n"
    }

    /// Returns Rust expressions in the order of the tables.
    fn rust_tables(&self) -> String {
        let (constants, structs) = (self.constants.len(), &self.structs);
        let entries: usize = structs.iter().map(|(_, fields)| 1 + 2 * fields.len()).sum();
        let mut text = format!("pub(crate) const CONSTANTS: [(&str, i64); {constants}] = [\n");
        for name in &self.constants {
            let _ = writeln!(text, "    (\"{name}\", contract::{name} as i64),");
        }
        let _ = writeln!(text, "];\n\npub(crate) const LAYOUT: [(&str, usize); {entries}] = [");
        for (name, fields) in structs {
            let kind = format!("contract::{}", camel_case(name));
            let _ = writeln!(text, "    (\"size of {name}\", size_of::<{kind}>()),");
            for field in fields {
                let _ = writeln!(
                    text,
                    "    (\"offset of {name}.{field}\", std::mem::offset_of!({kind}, {field})),\n    \
                     (\"size of {name}.{field}\", size_of_field(|value: &{kind}| std::ptr::from_ref(&value.{field}))),"
                );
            }
        }
        text + "];\n"
    }
}

/// Returns the names and bodies of all definitions that begin with a keyword.
fn blocks(text: &str, keyword: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in text.split(&format!("\n{keyword}")).skip(1) {
        if let Some((name, rest)) = part.split_once(" {") {
            let body = rest.split_once("};").map_or("", |(body, _)| body);
            found.push((name.to_owned(), body.to_owned()));
        }
    }
    found
}

fn camel_case(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(word).collect()
}
