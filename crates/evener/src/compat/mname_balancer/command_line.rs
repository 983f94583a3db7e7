//! The command line of mname-balancer, getopt style. Options that only Evener has are long ones.

use super::{BalancerAction, CommandLine};
use crate::observe::LogLevel;
use lexopt::prelude::*;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

pub(super) const HELP: &str = "\
Balance DNS over the processes of a directory, as mname-balancer does

Usage: evener mname-balancer [-b IP] [-p PORT] [-l LEVEL] -s DIRECTORY
       mname-balancer ...          by a link of this name; or of the name bbal

  -b IP         the IPv4 address to listen on, by UDP and TCP [0.0.0.0]
  -p PORT       the port [53]
  -l LEVEL      lowest level of logged events: trace, debug, info, warn, error, fatal [info];
                LOG_LEVEL in the environment takes precedence
  -s DIRECTORY  directory with the sockets of the servers

Options that mname-balancer does not have:
  --workers N   worker threads [1]
  --admin PATH  admin socket, for `evener balstat`, `evener status` and other commands
  --help, --version";

/// Parses the command line and LOG_LEVEL. An error is one line.
pub(super) fn parse(arguments: Vec<OsString>, log_level: Option<String>) -> Result<BalancerAction, String> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut sockets = None;
    let mut line = CommandLine {
        address: Ipv4Addr::UNSPECIFIED,
        port: 53,
        level: LogLevel::Info,
        sockets: PathBuf::new(),
        workers: 1,
        admin: None,
    };
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Short('b') => line.address = address(&text(&mut parser)?)?,
            Short('p') => line.port = port(&text(&mut parser)?)?,
            Short('l') => line.level = level("-l", &text(&mut parser)?)?,
            Short('s') => sockets = Some(path(&mut parser)?),
            Long("workers") => line.workers = workers(&text(&mut parser)?)?,
            Long("admin") => line.admin = Some(path(&mut parser)?),
            Long("help") => return Ok(BalancerAction::Help),
            Long("version") => return Ok(BalancerAction::Version),
            other => {
                return Err(format!("{}; `mname-balancer --help` lists the options", other.unexpected()));
            }
        }
    }
    if let Some(given) = log_level.filter(|given| !given.is_empty()) {
        line.level = level("LOG_LEVEL", &given)?;
    }
    line.sockets = sockets.ok_or("-s is missing: give the directory with the sockets of the servers")?;
    Ok(BalancerAction::Run(line))
}

fn value(parser: &mut lexopt::Parser) -> Result<OsString, String> {
    let value = parser.value().map_err(|error| error.to_string())?;
    if value.is_empty() { Err("an option has an empty value".into()) } else { Ok(value) }
}

fn text(parser: &mut lexopt::Parser) -> Result<String, String> {
    value(parser)?.into_string().map_err(|word| format!("{} is not UTF-8", word.display()))
}

fn path(parser: &mut lexopt::Parser) -> Result<PathBuf, String> {
    value(parser).map(PathBuf::from)
}

fn address(given: &str) -> Result<Ipv4Addr, String> {
    given
        .parse()
        .map_err(|_| format!("-b: `{given}` is not an IPv4 address, which the protocol of the sockets needs"))
}

fn port(given: &str) -> Result<u16, String> {
    let port = given.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("-p: `{given}` is not a port between 1 and 65535"))
}

fn workers(given: &str) -> Result<u16, String> {
    let workers = given.parse().ok().filter(|workers| (1..=1024).contains(workers));
    workers.ok_or_else(|| format!("--workers: `{given}` is not between 1 and 1024"))
}

/// Converts a level of bunyan. Evener has no level below debug, and logs nothing as fatal: the reason of a
/// failed start is printed to stderr.
fn level(option: &str, given: &str) -> Result<LogLevel, String> {
    Ok(match given.to_ascii_lowercase().as_str() {
        "trace" | "debug" => LogLevel::Debug,
        "info" => LogLevel::Info,
        "warn" => LogLevel::Warn,
        "error" => LogLevel::Error,
        "fatal" => LogLevel::Off,
        _ => {
            return Err(format!(
                "{option}: `{given}` is not a level: trace, debug, info, warn, error or fatal"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &str, log_level: Option<&str>) -> Result<BalancerAction, String> {
        parse(words.split_whitespace().map(OsString::from).collect(), log_level.map(str::to_owned))
    }

    #[test]
    fn options_of_mname_balancer_are_accepted() {
        let check = |words: &str, log_level: Option<&str>, expected: CommandLine| {
            assert_eq!(parsed(words, log_level), Ok(BalancerAction::Run(expected)), "{words}");
        };
        let default = CommandLine {
            address: Ipv4Addr::UNSPECIFIED,
            port: 53,
            level: LogLevel::Info,
            sockets: "/s".into(),
            workers: 1,
            admin: None,
        };
        let changed = CommandLine { address: Ipv4Addr::LOCALHOST, port: 5353, ..default.clone() };
        check("-s /s", None, default.clone());
        check("-s/s -b127.0.0.1 -p 5353", None, changed.clone());
        check("-p5353 -b 127.0.0.1 -s /t -s /s", None, changed);
        check("-s /s -l trace", None, CommandLine { level: LogLevel::Debug, ..default.clone() });
        check("-s /s -l fatal", Some("WARN"), CommandLine { level: LogLevel::Warn, ..default.clone() });
        check("-s /s -l fatal", Some(""), CommandLine { level: LogLevel::Off, ..default.clone() });
        check(
            "-s /s --workers 2 --admin /a",
            None,
            CommandLine { workers: 2, admin: Some("/a".into()), ..default },
        );
        assert_eq!(parsed("--help -x", None), Ok(BalancerAction::Help));
        assert_eq!(parsed("--version", None), Ok(BalancerAction::Version));
    }

    #[test]
    fn mistakes_are_reported() {
        let check = |words: &str, log_level: Option<&str>, expected: &str| {
            let error = parsed(words, log_level).unwrap_err();
            assert!(error.contains(expected), "{words}: {error}");
        };
        check("", None, "-s is missing");
        check("-s", None, "'-s'");
        check("-s /s -b ::", None, "-b: `::` is not an IPv4 address");
        check("-s /s -b localhost", None, "-b: `localhost`");
        check("-s /s -p 0", None, "-p: `0`");
        check("-s /s -p 65536", None, "-p: `65536`");
        check("-s /s -l loud", None, "-l: `loud` is not a level");
        check("-s /s", Some("loud"), "LOG_LEVEL: `loud` is not a level");
        check("-s /s -x", None, "'-x'; `mname-balancer --help`");
        check("-s /s /t", None, "\"/t\"; `mname-balancer --help`");
        check("-s /s --workers 0", None, "--workers: `0`");
    }
}
