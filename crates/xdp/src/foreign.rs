//! Describes XDP programs that are not the plane's own.

use crate::sys;
use std::fmt::Write;
use std::os::fd::AsFd;

/// Describes a program by all that the kernel says about it and its owner.
pub(crate) fn describe(program: u32, index: u32) -> String {
    let info = sys::program_by_id(program).and_then(|found| sys::program_info(found.as_fd()));
    let mut text = match info {
        Ok(info) => info.to_string(),
        Err(error) => format!("id {program} ({error})"),
    };
    if let Some(link) = link_of(program, index) {
        let _ = write!(text, ", attached by link {link}");
    }
    let holders = holders(program);
    if !holders.is_empty() {
        let _ = write!(text, ", in use by {}", holders.join(", "));
    }
    text
}

/// Returns the id of the link that attaches a program to an interface, if a link does.
fn link_of(program: u32, index: u32) -> Option<u32> {
    sys::link_ids().ok()?.into_iter().find(|id| {
        let info = sys::link_by_id(*id).and_then(|link| sys::link_info(link.as_fd()));
        matches!(info, Ok(Some(info)) if info.program_id == program && info.ifindex == index)
    })
}

/// Returns the processes that have a program or a link of it open.
fn holders(program: u32) -> Vec<String> {
    let line = format!("prog_id:\t{program}");
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name().to_string_lossy().into_owned();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(files) = std::fs::read_dir(process.path().join("fdinfo")) else { continue };
        let has_it = files.flatten().any(|file| {
            std::fs::read_to_string(file.path()).is_ok_and(|text| text.lines().any(|found| found == line))
        });
        if has_it {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("process {name} ({})", command.trim_end()));
        }
    }
    found
}
