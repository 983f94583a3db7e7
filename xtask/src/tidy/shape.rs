//! The shape of the code: fields that are open to the crate, functions that take the whole worker, indices
//! without a type. Signatures are read from tokens; macros are not expanded.

use super::rust::{Kind, Token};
use super::{Finding, Measure};
use std::ops::Range;

/// Names of `usize` parameters that identify something instead of counting it.
const HANDLES: &[&str] = &["index", "slot", "at", "number", "id", "key", "serial"];
/// Last parts of the names of `usize` parameters that count something.
const QUANTITIES: &[&str] = &[
    "bytes", "capacity", "count", "length", "len", "limit", "limits", "max", "maximum", "min", "minimum",
    "needed", "offset", "position", "room", "size", "start", "end", "total", "many", "used", "free", "most",
    "least",
];

/// Appends the findings of one Rust file. `worker` adds the rules of `crates/proxy/src`.
pub(super) fn check(file: &str, tokens: &[Token], worker: bool, findings: &mut Vec<Finding>) {
    let code: Vec<Token> =
        tokens.iter().filter(|token| !matches!(token.kind, Kind::Doc | Kind::Comment)).copied().collect();
    let mut find =
        |measure, line, what: String| findings.push(Finding { measure, file: file.into(), line, what });
    open_fields(&code, |line, name| {
        find(Measure::OpenFields, line, format!("field `{name}` is open to the crate"));
    });
    if !worker {
        return;
    }
    let of_worker = impls_of_worker(&code);
    for at in (0..code.len()).filter(|at| code[*at].text == "fn") {
        let Some(function) = Function::parse(&code, at) else { continue };
        let method = of_worker.iter().any(|body| body.contains(&at));
        if function.takes_worker(method) {
            find(Measure::WholeWorker, function.line, format!("`{}` takes the whole worker", function.name));
        }
        let indices = function.raw_indices();
        if !indices.is_empty() {
            let what = format!("`{}` takes {} as usize: use a `Key`", function.name, indices.join(", "));
            find(Measure::RawIndices, function.line, what);
        }
    }
}

/// Reports fields with `pub(..)`, and fields with `pub` in a struct that is not `pub` itself.
fn open_fields(code: &[Token], mut find: impl FnMut(usize, &str)) {
    let mut private = 0..0;
    for at in 0..code.len() {
        if code[at].text == "struct" && (at == 0 || code[at - 1].text != "pub") {
            private = body(code, at).unwrap_or(private);
        }
        if code[at].text != "pub" {
            continue;
        }
        let restricted = code.get(at + 1).is_some_and(|token| token.text == "(");
        let name = if restricted { closing(code, at + 1) + 1 } else { at + 1 };
        let is_field = code.get(name).is_some_and(|token| token.kind == Kind::Word)
            && code.get(name + 1).is_some_and(|token| token.text == ":");
        if is_field && (restricted || private.contains(&at)) {
            find(code[name].line, code[name].text);
        }
    }
}

/// Returns the bodies of the `impl` blocks of `Worker`.
fn impls_of_worker(code: &[Token]) -> Vec<Range<usize>> {
    let blocks = (0..code.len()).filter(|at| code[*at].text == "impl" && begins_item(code, *at));
    blocks
        .filter_map(|at| {
            let body = body(code, at)?;
            let header = &code[at + 1..body.start - 1];
            let header =
                &header[..header.iter().position(|token| token.text == "where").unwrap_or(header.len())];
            let target = header.iter().position(|token| token.text == "for").map_or(0, |found| found + 1);
            path_ends_in_worker(&header[target..]).then_some(body)
        })
        .collect()
}

/// Returns true if the token at `at` can begin an item: `impl` in a type does not.
fn begins_item(code: &[Token], at: usize) -> bool {
    at == 0 || matches!(code[at - 1].text, "}" | ";" | "{" | "]" | "unsafe")
}

fn path_ends_in_worker(path: &[Token]) -> bool {
    let simple = path.iter().all(|token| token.kind == Kind::Word || token.text == "::");
    simple && path.last().is_some_and(|token| token.text == "Worker")
}

/// Returns the tokens between the next pair of braces, or `None` if the item ends before a brace.
fn body(code: &[Token], from: usize) -> Option<Range<usize>> {
    let open = (from..code.len()).find(|at| matches!(code[*at].text, "{" | ";"))?;
    (code[open].text == "{").then(|| open + 1..closing(code, open))
}

/// Returns the index of the token that closes the bracket at `open`.
fn closing(code: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in code.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The signature of a function: its name and its parameters.
#[derive(Debug)]
struct Function<'a> {
    name: &'a str,
    line: usize,
    parameters: Vec<&'a [Token<'a>]>,
}

impl<'a> Function<'a> {
    /// Parses the function whose `fn` is at `at`. Returns `None` for a function pointer, which has no name.
    fn parse(code: &'a [Token<'a>], at: usize) -> Option<Self> {
        let name = code.get(at + 1).filter(|token| token.kind == Kind::Word)?;
        let (mut open, mut angles) = (at + 2, 0usize);
        while angles > 0 || code.get(open)?.text != "(" {
            match code.get(open)?.text {
                "<" => angles += 1,
                ">" => angles -= 1,
                _ if angles == 0 => return None,
                _ => {}
            }
            open += 1;
        }
        let list = &code[open + 1..closing(code, open)];
        Some(Self { name: name.text, line: name.line, parameters: parameters(list) })
    }

    fn takes_worker(&self, method_of_worker: bool) -> bool {
        let receiver = self.parameters.first().filter(|_| method_of_worker);
        receiver.is_some_and(|first| first.iter().any(|token| token.text == "self"))
            || self.parameters.iter().any(|parameter| {
                let of_type = typed(parameter).map_or(&[][..], |(_, of_type)| of_type);
                let mut words = of_type
                    .iter()
                    .skip_while(|token| matches!(token.text, "&" | "mut") || token.text.starts_with('\''));
                let path = &of_type[of_type.len() - words.by_ref().count()..];
                of_type.first().is_some_and(|first| first.text == "&") && path_ends_in_worker(path)
            })
    }

    /// Returns the names of the `usize` parameters that identify something. These are all parameters that are
    /// not named as a quantity, if there are two or more of them or one of them is named as a handle.
    fn raw_indices(&self) -> Vec<&'a str> {
        let names = self.parameters.iter().filter_map(|parameter| {
            let (name, of_type) = typed(parameter)?;
            matches!(of_type, [only] if only.text == "usize").then_some(name)
        });
        let last = |name: &'a str| name.rsplit('_').next().unwrap_or(name);
        let unclear: Vec<&str> = names.filter(|name| !QUANTITIES.contains(&last(name))).collect();
        if unclear.len() >= 2 || unclear.iter().any(|name| HANDLES.contains(&last(name))) {
            unclear
        } else {
            Vec::new()
        }
    }
}

/// Splits a list of parameters at the commas outside brackets.
fn parameters<'a>(list: &'a [Token<'a>]) -> Vec<&'a [Token<'a>]> {
    let mut depth = 0i32;
    let parts = list.split(|token| {
        match token.text {
            "(" | "[" | "{" | "<" => depth += 1,
            ")" | "]" | "}" | ">" => depth -= 1,
            _ => {}
        }
        depth == 0 && token.text == ","
    });
    parts.filter(|part| !part.is_empty()).collect()
}

/// Returns the name and the type of a parameter, or `None` for a parameter without a type, such as `self`.
fn typed<'a>(parameter: &'a [Token<'a>]) -> Option<(&'a str, &'a [Token<'a>])> {
    let colon = parameter.iter().position(|token| token.text == ":")?;
    Some((parameter[..colon].last()?.text, &parameter[colon + 1..]))
}

#[cfg(test)]
mod tests {
    use super::super::rust;
    use super::*;

    #[track_caller]
    fn check_all(source: &str, expected: &[(Measure, usize)]) {
        let mut findings = Vec::new();
        check("a.rs", &rust::tokens(source), true, &mut findings);
        let seen: Vec<_> = findings.iter().map(|finding| (finding.measure, finding.line)).collect();
        assert_eq!(seen, expected, "{source}");
    }

    #[test]
    fn fields_open_to_the_crate_are_counted() {
        check_all(
            "pub struct S {\npub(crate) a: u8,\npub(in x::y) b: u8,\npub c: u8,\nd: u8 }",
            &[(Measure::OpenFields, 2), (Measure::OpenFields, 3)],
        );
        check_all(
            "pub(crate) struct S {\npub a: u8 }\npub struct T {\npub b: u8 }",
            &[(Measure::OpenFields, 2)],
        );
        check_all("pub(crate) fn f() {} pub(crate) const A: u8 = 1; pub(crate) struct U(u8);", &[]);
    }

    #[test]
    fn functions_that_take_the_worker_are_counted() {
        for taken in ["w: &mut Worker", "w: &'a Worker", "a: u8, w: &mut crate::worker::Worker"] {
            check_all(&format!("fn f<F: Fn() -> u8>({taken}) {{}}"), &[(Measure::WholeWorker, 1)]);
        }
        for other in ["w: &mut WorkerId", "w: Worker", "f: fn(&mut Worker)", "w: &mut Vec<Worker>"] {
            check_all(&format!("fn f({other}) {{}}"), &[]);
        }
    }

    #[test]
    fn methods_of_the_worker_count_as_taking_the_worker() {
        check_all(
            "impl Worker {\nfn a(&self) {}\nfn new(x: u8) {} }\nfn b(&self) {}",
            &[(Measure::WholeWorker, 2)],
        );
        check_all("impl Drop for super::Worker {\nfn drop(&mut self) {} }", &[(Measure::WholeWorker, 2)]);
        check_all("impl From<Worker> for Other { fn a(self) {} } impl Worker2 { fn a(self) {} }", &[]);
    }

    #[test]
    fn indices_without_a_type_are_counted() {
        for raw in ["index: usize", "mut flow_index: usize", "client: usize, server: usize"] {
            check_all(&format!("fn f({raw}) {{}}"), &[(Measure::RawIndices, 1)]);
        }
        for other in
            ["length: usize, bytes_max: usize", "client: usize", "index: Key<Flow>", "at: Option<usize>"]
        {
            check_all(&format!("fn f({other}) {{}}"), &[]);
        }
    }
}
