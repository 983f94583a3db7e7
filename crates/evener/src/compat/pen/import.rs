//! `evener import pen`: the configuration in Lua that does what a command line of pen does, or a file of its commands.

use super::command::Step;
use super::front::read_again;
use super::line::{Line, Wanted, parse};
use super::lists::{Entry, List, Who};
use super::spec;
use super::state::State;
use crate::config;
use anyhow::bail;
use evener_core::acl::{Access, Acl};
use evener_core::spec::Spec;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

/// The configuration as text; what it cannot say is in its comments.
pub(in crate::compat) fn import(arguments: Vec<OsString>) -> anyhow::Result<String> {
    let line = match &arguments[..] {
        [] => bail!("what is to be imported? Give pen's options and servers, or a file of its commands"),
        [file] if Path::new(file).is_file() => from_file(Path::new(file))?,
        _ => from_options(arguments)?,
    };
    let state = &line.state;
    let whole = spec::config(state).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(lines.join("\n"))
    })?;
    let mut out = comments(&line);
    if let Some(file) = state.geoip.as_ref().filter(|_| state.lists.iter().any(has_countries)) {
        let _ = writeln!(out, "geoip {:?}\n", file.display().to_string());
    }
    out += &config::print(&named_by_address(whole.spec), &|acl| access(state, acl));
    Ok(out)
}

/// pen's servers are called by their numbers; without pen an address says more, where it is one server's alone.
fn named_by_address(mut spec: Spec) -> Spec {
    for pool in &mut spec.pools {
        let names: Vec<String> = pool.servers.iter().map(|server| server.endpoint.to_string()).collect();
        for (server, name) in pool.servers.iter_mut().zip(&names) {
            if names.iter().filter(|other| *other == name).count() == 1
                && server.name.parse::<usize>().is_ok()
            {
                server.name = name.as_str().into();
            }
        }
    }
    spec
}

fn from_options(arguments: Vec<OsString>) -> anyhow::Result<Line> {
    let Wanted::Run(line) = parse(arguments).map_err(anyhow::Error::msg)? else {
        bail!("there is nothing to import: these options only show something");
    };
    let mut line = *line;
    if let Some(file) = line.state.config_file.clone() {
        read(&mut line, &file)?;
    }
    Ok(line)
}

/// A file that `write` wrote begins with the command line that it belongs to.
fn from_file(file: &Path) -> anyhow::Result<Line> {
    let text = String::from_utf8_lossy(&std::fs::read(file)?).into_owned();
    let of_line = text.lines().take(5).find_map(|line| line.strip_prefix("# pen "));
    let words = of_line.map(unquoted).unwrap_or_default();
    let Ok(Wanted::Run(line)) = parse(words) else {
        bail!("{}: its second line is no command line of pen", file.display());
    };
    let mut line = *line;
    read(&mut line, file)?;
    Ok(line)
}

fn read(line: &mut Line, file: &Path) -> anyhow::Result<()> {
    let read = read_again(&mut line.state, file).map_err(|problems| anyhow::anyhow!(problems.join("\n")))?;
    line.steps.extend(read);
    Ok(())
}

/// pen writes paths in single quotes.
fn unquoted(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(|word| word.trim_matches('\'').into()).collect()
}

/// What the configuration does not say.
fn comments(line: &Line) -> String {
    let mut out = String::from(
        "-- What pen did, as `evener import pen` understood it. Look it through: `evener check FILE`.\n",
    );
    let mut say = |text: &str| out.extend(["-- ", text, "\n"]);
    let state = &line.state;
    if state.control.is_some() {
        say(
            "Instead of the control port (-C): `evener status`, `evener drain` and others, over the admin socket.",
        );
    }
    if state.web_stats.is_some() {
        say(
            "Instead of the status page (-w): `evener status --json`, or GET /v1/status at the admin socket.",
        );
    }
    if line.user.is_some() || line.jail.is_some() || line.pid_file.is_some() || !line.foreground {
        say(
            "Users, roots and the background (-u, -j, -p, no -f) are the business of whoever starts it, such as systemd.",
        );
    }
    if state.transparent {
        say("source = \"client\" takes CAP_NET_ADMIN and routes: docs/operating.md, \"Transparent\".");
    }
    for step in &line.steps {
        if let Step::Warn(text) = step {
            say(&format!("Left out: {text}"));
        }
    }
    out.push('\n');
    out
}

fn has_countries(list: &List) -> bool {
    list.entries().any(|entry| matches!(entry.who, Who::Country(_)))
}

/// The text of a list with countries, whose networks nobody would want to read.
fn access(state: &State, acl: &Arc<Acl>) -> Option<String> {
    let compiled =
        |list: &&List| list.compile(state.geoip.as_deref()).ok().flatten().is_some_and(|own| own == *acl);
    let list = state.lists.iter().filter(|list| has_countries(list)).find(compiled)?;
    let item = |entry: &Entry| {
        let access = if entry.access == Access::Permit { "permit" } else { "deny" };
        let who = match &entry.who {
            Who::Country(code) => format!("country {code:?}"),
            who => {
                let prefixes = who.prefixes(None).unwrap_or_default();
                let prefixes: Vec<String> = prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect();
                format!("{{ {} }}", prefixes.join(", "))
            }
        };
        format!("{{ {access} = {who} }}")
    };
    let items: Vec<String> = list.entries().map(item).collect();
    let otherwise = if list.otherwise() == Access::Permit { "permit" } else { "deny" };
    Some(format!("{{ {}, otherwise = \"{otherwise}\" }}", items.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is imported is what would run.
    #[track_caller]
    fn check(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let text = import(words.clone()).expect(line);
        let file = std::env::temp_dir().join(format!(
            "evener-import-{}-{:x}.lua",
            std::process::id(),
            evener_core::hash::of_name(line, 0)
        ));
        std::fs::write(&file, &text).expect("a file");
        let loaded = config::load(&file).unwrap_or_else(|problems| panic!("{line}: {problems:?}\n{text}"));
        let wanted = spec::config(&from_options(words).expect(line).state).expect(line);
        assert_eq!(loaded.spec, named_by_address(wanted.spec), "{line}\n{text}");
        std::fs::remove_file(&file).expect("the file");
        text
    }

    #[test]
    fn what_is_imported_is_what_would_run() {
        check("80 10.0.0.1:8000:10 10.0.0.2:80:10 10.0.0.3");
        check("-dfU 53 8.8.8.8:53");
        check("-r -H -x 256 -w /tmp/w -p /tmp/p -l /tmp/log 80 10.0.0.51:80 10.0.0.52:80");
        check("-h -s -b 7 -T 60 -c 100 -t 9 -e 10.0.0.9 -B 10.0.0.8 :::80 [::1]:81:1:2:3:4");
        check("-W -o prio 127.0.0.1:80 10.0.0.1:80:1:2:3:4 10.0.0.2:80:1:2:3:-4");
        check("-E /etc/x.pem -K /etc/x.key -G /etc/ca.pem -A /etc/ca -R 443 10.0.0.1:80");
        check("-N -o dummy -C 127.0.0.1:99 /run/pen.sock 10.0.0.1:80");
    }

    #[test]
    fn what_cannot_be_said_is_in_the_comments() {
        let text = check("-C 99 -u nobody -w /tmp/w -Z 80 10.0.0.1");
        for part in ["evener status", "/v1/status", "systemd", "Left out: -Z"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_file_that_pen_wrote_is_imported_with_its_command_line() {
        let file = std::env::temp_dir().join(format!("evener-import-file-{}", std::process::id()));
        let text = "# Generated by pen 2026-11-23 04:45:02\n# pen -U -u 'root' -F '/tmp/w1' -C 127.0.0.1:9109 127.0.0.1:9100\n\
            no acl 0\nblacklist 30\nserver 0 acl 0 address 127.0.0.1 port 9101 max 10 hard 20\n";
        std::fs::write(&file, text).expect("a file");
        let text = import(vec![file.clone().into()]).expect("a configuration");
        assert!(text.contains("protocol = \"udp\"") && text.contains("127.0.0.1:9101"), "{text}");
        std::fs::remove_file(&file).expect("the file");
    }
}
