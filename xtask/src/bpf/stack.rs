//! The stack of a BPF program: Linux 6.1 adds up the frames of a chain of calls more strictly than newer kernels.

use anyhow::{Context, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Maximum of all frames of a chain of calls (`MAX_BPF_STACK`).
const STACK_MAX: u32 = 512;
/// Unit of a frame in Linux 6.1; newer kernels have 16.
const UNIT: u32 = 32;
/// Offset of a variable on the stack at most: a larger number in an addition is none.
const OFFSET_MAX: u32 = 512;

#[derive(Debug, Default)]
struct Function {
    stack: u32,
    calls: BTreeSet<String>,
}

/// Checks that no chain of calls of an object needs more stack than Linux 6.1 has.
pub(super) fn check(object: &Path, name: &str) -> anyhow::Result<()> {
    let mut dump = Command::new("llvm-objdump-19");
    dump.args(["-d", "-r", "--no-show-raw-insn"]).arg(object);
    let output = dump.output().context("llvm-objdump-19 cannot be run")?;
    let functions = parse(&String::from_utf8_lossy(&output.stdout));
    for function in functions.keys() {
        let (stack, chain) = deepest(&functions, function, 0);
        if stack > STACK_MAX {
            bail!("{name}: {stack} bytes of stack, Linux 6.1 has {STACK_MAX}: {}", chain.join(" > "));
        }
    }
    Ok(())
}

/// Reads functions from the output of llvm-objdump.
fn parse(text: &str) -> BTreeMap<String, Function> {
    let mut functions = BTreeMap::new();
    let (mut current, mut section) = (String::new(), String::new());
    // Calls of static functions name the section, and the function by its offset there.
    let (mut offsets, mut target) = (BTreeMap::new(), None);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            name.trim_end_matches(':').clone_into(&mut section);
            continue;
        }
        if let Some((address, label)) = line.strip_suffix(">:").and_then(|line| line.split_once('<')) {
            if !label.starts_with("LBB") {
                label.clone_into(&mut current);
                let address = u64::from_str_radix(address.trim(), 16).unwrap_or(u64::MAX);
                offsets.insert(format!("{section}+{address:#x}"), current.clone());
            }
            continue;
        }
        if let Some((_, number)) = line.split_once("call 0x") {
            // The number of the instruction before the function.
            target = u64::from_str_radix(number.trim(), 16).ok().map(|number| (number + 1) * 8);
        }
        let function: &mut Function = functions.entry(current.clone()).or_default();
        for offset in ["(r10 - ", " += -"].into_iter().filter_map(|mark| offset(line, mark)) {
            function.stack = function.stack.max(offset);
        }
        if let Some((_, callee)) = line.split_once("R_BPF_64_32") {
            let callee = callee.trim();
            let by_offset = target.filter(|_| callee.starts_with('.'));
            let callee = by_offset.map_or(callee.to_owned(), |offset| format!("{callee}+{offset:#x}"));
            function.calls.insert(callee);
        }
    }
    for function in functions.values_mut() {
        let calls = std::mem::take(&mut function.calls).into_iter();
        function.calls = calls.map(|callee| offsets.get(&callee).cloned().unwrap_or(callee)).collect();
    }
    functions
}

/// Returns the number behind a mark, if it can be an offset in the stack.
fn offset(line: &str, mark: &str) -> Option<u32> {
    let digits = line.split_once(mark)?.1.strip_prefix("0x")?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    u32::from_str_radix(&digits[..end], 16).ok().filter(|offset| *offset <= OFFSET_MAX)
}

/// Returns the chain of calls from a function that needs the most stack.
fn deepest(functions: &BTreeMap<String, Function>, name: &str, depth: usize) -> (u32, Vec<String>) {
    let Some(function) = functions.get(name).filter(|_| depth < functions.len()) else {
        return (0, Vec::new());
    };
    let below = function.calls.iter().map(|callee| deepest(functions, callee, depth + 1));
    let (stack, chain) = below.max_by_key(|(stack, _)| *stack).unwrap_or_default();
    let frame = function.stack.next_multiple_of(UNIT).max(UNIT);
    (stack + frame, std::iter::once(format!("{name} {}", function.stack)).chain(chain).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_a_chain_are_rounded_and_added_up() {
        let text = "\n0000000000000000 <main>:\n       0:\t*(u64 *)(r10 - 0x28) = r1\n       1:\tcall -0x1\n\t\t0000000000000008:  R_BPF_64_32\tinner\n\n0000000000000000 <inner>:\n       0:\tr2 = r10\n       1:\tr2 += -0x21\n0000000000000010 <LBB1_2>:\n       2:\texit\n";
        let functions = parse(text);
        assert_eq!(deepest(&functions, "main", 0), (128, vec!["main 40".to_owned(), "inner 33".to_owned()]));
        assert_eq!(deepest(&functions, "inner", 0).0, 64);
    }

    #[test]
    fn a_static_function_is_called_by_its_offset() {
        let text = "Disassembly of section .text:\n\n0000000000000000 <outer>:\n       0:\tcall 0x1\n\t\t0000000000000000:  R_BPF_64_32\t.text\n\n0000000000000010 <inner>:\n       2:\t*(u64 *)(r10 - 0x48) = r1\n\nDisassembly of section xdp:\n\n0000000000000000 <main>:\n       0:\tcall -0x1\n\t\t0000000000000000:  R_BPF_64_32\touter\n";
        let chain = ["main 0", "outer 0", "inner 72"].map(str::to_owned).to_vec();
        assert_eq!(deepest(&parse(text), "main", 0), (160, chain));
    }
}
