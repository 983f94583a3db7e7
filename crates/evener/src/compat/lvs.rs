//! `evener import keepalived` and `evener import ipvsadm`: the Lua configuration that is equivalent to a file of
//! keepalived, or to a table that ipvsadm saved. Unknown words and unbalanced braces are problems with their lines.
//! Settings without an equivalent are listed in comments.

mod ipvsadm;
mod lua;
mod read;
mod syntax;

use crate::config;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;

/// Returns the configuration that is equivalent to a file of keepalived.
pub(super) fn import_keepalived(arguments: &[OsString]) -> anyhow::Result<String> {
    let file = match arguments {
        [] => Path::new("/etc/keepalived/keepalived.conf"),
        [file] => Path::new(file),
        _ => bail!("give one file: evener import keepalived /etc/keepalived/keepalived.conf"),
    };
    let statements = syntax::read(file).map_err(|problems| config::failure(&problems))?;
    let imported = read::read(&statements).map_err(|problems| config::failure(&problems))?;
    Ok(lua::print(&file.display().to_string(), &imported))
}

/// Returns the configuration that is equivalent to the text of `ipvsadm -Sn`, from a file or from standard input.
pub(super) fn import_ipvsadm(arguments: &[OsString]) -> anyhow::Result<String> {
    let (name, text) = match arguments {
        [] if std::io::stdin().is_terminal() => {
            bail!("give a table on standard input: ipvsadm -Sn | evener import ipvsadm")
        }
        [] => ("standard input".to_owned(), std::io::read_to_string(std::io::stdin())?),
        [file] => {
            let name = Path::new(file).display().to_string();
            let text = std::fs::read_to_string(file).with_context(|| name.clone())?;
            (name, text)
        }
        _ => bail!("give one file, or a table on standard input: ipvsadm -Sn | evener import ipvsadm"),
    };
    let imported = ipvsadm::read(&name, &text).map_err(|problem| config::failure(&[problem]))?;
    Ok(lua::print(&name, &imported))
}

#[cfg(test)]
mod tests;
