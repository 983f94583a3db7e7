//! Programs of the configuration: hooks of pools and checks by a program. Each program has to be allowed by its path.

use super::fields::Fields;
use super::raw::{Value, shown};
use evener_core::spec::{CheckKind, NotifySpec, PoolSpec, ProgramSpec};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Maximum number of arguments of a program.
const ARGUMENTS_MAX: usize = 64;
/// Maximum length of an argument.
const ARGUMENT_BYTES_MAX: usize = 4096;
const EXAMPLE: &str = "a program with its arguments, such as { \"/usr/local/bin/announce\", \"web\" }";

/// Reads `notify = { up = { "/usr/local/bin/announce", "web" } }`.
pub(super) fn read_notify(fields: &mut Fields<'_>) -> Option<Arc<NotifySpec>> {
    let Value::Table(table) = fields.take("notify")? else {
        fields.must("notify", "be a table such as { down = { \"/usr/local/bin/alert\" } }");
        return None;
    };
    let mut nested = fields.within("notify", table);
    let [up, down, quorum_up, quorum_down] =
        ["up", "down", "quorum_up", "quorum_down"].map(|key| read_hook(&mut nested, key));
    let timeout = nested.duration("timeout").unwrap_or(NotifySpec::TIMEOUT);
    let spec = NotifySpec { up, down, quorum_up, quorum_down, timeout };
    nested.finish();
    Some(Arc::new(spec))
}

fn read_hook(fields: &mut Fields<'_>, key: &'static str) -> Option<ProgramSpec> {
    let value = fields.take(key)?;
    let items = match value {
        Value::Table(table) => table.only_list().unwrap_or_default(),
        _ => std::slice::from_ref(value),
    };
    match program(items) {
        Ok(program) => {
            if let Some(problem) = not_allowed(fields, &program) {
                fields.problem(key, problem);
            }
            Some(program)
        }
        Err(why) => {
            fields.must(key, why);
            None
        }
    }
}

/// Reads the list of `check.exec { "/usr/local/bin/probe", "argument" }`.
pub(super) fn read_check(fields: &mut Fields<'_>) -> CheckKind {
    match program(fields.list()) {
        Ok(program) => {
            if let Some(problem) = not_allowed(fields, &program) {
                fields.problem_here(problem);
            }
            CheckKind::Exec { program }
        }
        Err(why) => {
            fields.problem_here(format!("an exec check must begin with {why}"));
            CheckKind::Exec { program: ProgramSpec { path: String::new(), arguments: Vec::new() } }
        }
    }
}

/// Reads a program. Returns the requirement that the values do not meet.
fn program(items: &[Value]) -> Result<ProgramSpec, String> {
    let texts: Option<Vec<&str>> = items.iter().map(Value::text).collect();
    let Some((path, arguments)) = texts.as_deref().and_then(<[_]>::split_first) else {
        return Err(EXAMPLE.to_owned());
    };
    if !path.starts_with('/') {
        return Err("the absolute path of a program, such as \"/usr/local/bin/probe\"".to_owned());
    }
    let is_fit = |text: &&str| text.len() <= ARGUMENT_BYTES_MAX && !text.contains('\0');
    if arguments.len() > ARGUMENTS_MAX || !texts.iter().flatten().all(is_fit) {
        return Err(format!(
            "a program with at most {ARGUMENTS_MAX} arguments, each of at most {ARGUMENT_BYTES_MAX} bytes without the byte 0"
        ));
    }
    let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Ok(ProgramSpec { path: (*path).to_owned(), arguments })
}

fn not_allowed(fields: &Fields<'_>, program: &ProgramSpec) -> Option<String> {
    let path = shown(&program.path);
    let is_allowed = fields.reading().run().is_allowed(&program.path);
    (!is_allowed).then(|| format!("the program {path} is not allowed: write exec {{ allow = {{ {path} }} }}"))
}

/// Returns the paths of the programs of pools, sorted.
pub(super) fn programs(pools: &[PoolSpec]) -> BTreeSet<&str> {
    let checks = pools.iter().flat_map(PoolSpec::checks).filter_map(|check| match &check.kind {
        CheckKind::Exec { program } => Some(&*program.path),
        _ => None,
    });
    let hooks = pools.iter().filter_map(|pool| pool.notify.as_deref()).flat_map(NotifySpec::programs);
    checks.chain(hooks.filter_map(|(_, program)| Some(&*program?.path))).collect()
}
