//! The manual page evener.lua(5), made from the reference.

use super::help::{DECLARATIONS, FORMS, plain};
use super::{Key, all, keys_of};
use std::fmt::Write as _;

const DESCRIPTION: &[&str] = &[
    "A configuration of Evener is a program in Lua 5.4. It declares pools of servers, and services that listen for \
     clients. It runs once, when it is loaded; functions in it can run later.",
    "`evener check` lists the problems of a file with their lines, `evener run` runs it, and SIGHUP or `evener reload` \
     applies a changed file to the running instance. An invalid file changes nothing.",
    "`evener help pool.sticky` describes a key, as this page does. `evener init` writes a first file.",
];

const EXAMPLE: &str = "\
local web = pool \"web\" {
  \"10.0.0.1:80\",
  { \"10.0.0.2:80\", weight = 2, max = 500 },
  { \"10.0.0.9:80\", tier = 2 },
  policy = \"least_conn\",
  check = check.http { path = \"/health\", every = \"2s\" },
}

service \"www\" { listen = \"0.0.0.0:80\", protocol = \"http\", pool = web }";

/// Returns the page in the language of man(7).
pub(crate) fn manual() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = format!(".TH evener.lua 5 \"\" \"evener {version}\" \"File formats\"\n");
    out.push_str(".SH NAME\nevener.lua \\- configuration of the load balancer evener\n");
    out.push_str(".SH SYNOPSIS\n.B /etc/evener/evener.lua\n.SH DESCRIPTION\n");
    for paragraph in DESCRIPTION {
        let _ = write!(out, "{}\n.PP\n", text(paragraph));
    }
    let _ = writeln!(out, "{}.SH KEYS", code(EXAMPLE));
    out.push_str(&text("A service with its own list of servers has the keys of a pool, too."));
    out.push('\n');
    for table in tables() {
        let about = DECLARATIONS.iter().find(|(name, _)| *name == table).map(|(_, about)| *about);
        let _ = writeln!(out, ".SS {}", text(table));
        if let Some(about) = about {
            let _ = writeln!(out, "{}", text(about));
        }
        keys_of(table).for_each(|key| write_key(&mut out, key));
    }
    out.push_str(".SH FUNCTIONS\n");
    keys_of("").for_each(|key| write_function(&mut out, key));
    out.push_str(".SH VALUES\n");
    for (name, about) in FORMS {
        let _ = writeln!(out, ".TP\n.B {}\n{}", text(name), text(about));
    }
    out + ".SH SEE ALSO\n.BR evener (1),\n.BR evener\\-run (1),\n.BR evener\\-check (1)\n"
}

/// Returns the tables with keys: first the declarations in their order, each followed by the tables in it.
fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = Vec::new();
    for (declaration, _) in DECLARATIONS {
        for table in all().flat_map(|key| key.tables) {
            let is_inside = table.strip_prefix(declaration).is_some_and(|rest| rest.starts_with('.'));
            if (*table == declaration || is_inside) && !tables.contains(table) {
                tables.push(table);
            }
        }
    }
    let others: Vec<&str> =
        all().flat_map(|key| key.tables).copied().filter(|table| !table.is_empty()).collect();
    for table in others {
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables
}

fn write_key(out: &mut String, key: &Key) {
    let _ = writeln!(
        out,
        ".TP\n.BR {} \" = \" \\fI{}\\fP",
        text(key.name),
        quoted(&text(&key.kind.replace('`', "")))
    );
    let _ = writeln!(out, "{}", text(&plain(key.text)));
    if !key.default.is_empty() {
        let _ = writeln!(out, ".br\nDefault: {}.", text(&plain(key.default.trim_end_matches('.'))));
    }
    if !key.protocols.is_empty() {
        let _ = writeln!(out, ".br\nProtocols: {}.", text(&key.protocols.join(", ")));
    }
    if !key.plane.is_empty() {
        let _ = writeln!(out, ".br\nPlane: {}.", text(key.plane));
    }
    if !key.example.is_empty() {
        let _ = writeln!(out, ".br\nExample: {}", text(&format!("`{}`", key.example)));
    }
}

fn write_function(out: &mut String, key: &Key) {
    let _ = writeln!(out, ".TP\n{}\n{}", text(&format!("`{}`", key.kind)), text(&plain(key.text)));
    let _ = writeln!(out, ".br\nExample: {}", text(&format!("`{}`", key.example)));
}

/// Returns an example with its lines as they are.
fn code(example: &str) -> String {
    let lines: String = example.lines().map(|line| format!("{}\n", escaped(line))).collect();
    format!(".RS 4\n.nf\n{lines}.fi\n.RE\n")
}

/// Returns a text on one line, with code in bold.
fn text(markdown: &str) -> String {
    let parts = markdown.split('`').enumerate().map(|(index, part)| match index % 2 {
        0 => escaped(part),
        _ => format!("\\fB{}\\fP", escaped(part)),
    });
    let joined: String = parts.collect();
    // A control character at the beginning of a line would begin a request.
    if joined.starts_with(['.', '\'']) { format!("\\&{joined}") } else { joined }
}

/// Returns a text without the meanings of its characters for roff.
fn escaped(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}

/// Returns a text as one argument of a request.
fn quoted(text: &str) -> String {
    text.replace('"', "\\(dq").replace(' ', "\\ ")
}
