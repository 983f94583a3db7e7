//! `evener import keepalived FILE`: the Lua configuration that is equivalent to a file of keepalived. Unknown words
//! and unbalanced braces are problems with their lines. Settings without an equivalent are listed in comments.

mod lua;
mod read;
mod syntax;

use crate::config;
use anyhow::bail;
use std::ffi::OsString;
use std::path::Path;

/// Returns the configuration as text.
pub(super) fn import(arguments: &[OsString]) -> anyhow::Result<String> {
    let file = match arguments {
        [] => Path::new("/etc/keepalived/keepalived.conf"),
        [file] => Path::new(file),
        _ => bail!("give one file: evener import keepalived /etc/keepalived/keepalived.conf"),
    };
    let statements = syntax::read(file).map_err(|problems| config::failure(&problems))?;
    let imported = read::read(&statements).map_err(|problems| config::failure(&problems))?;
    Ok(lua::print(&file.display().to_string(), &imported))
}

#[cfg(test)]
mod tests;
