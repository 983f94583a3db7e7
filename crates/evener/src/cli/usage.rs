//! Advice for wrong command lines: the words of other programs, and arguments that are missing or misplaced.

mod plain;

use super::{Cli, connections::path_with};
use crate::admin::client::Client;
use crate::config;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use evener_core::acl::Prefix;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Exit status for wrong usage.
const WRONG_USAGE: u8 = 2;
/// Maximum number of servers or services that a message lists.
const LISTED_MAX: usize = 10;

/// Words of other programs that are not commands, with the advice for each.
const OTHER_WORDS: &[(&[&str], &str)] = &[
    (
        &["start", "serve", "up", "daemon", "launch"],
        "`evener run FILE` runs a configuration in the foreground; a service manager starts it in the background",
    ),
    (
        &["stop", "kill", "quit", "shutdown", "exit", "halt", "terminate"],
        "SIGTERM stops an instance after its clients have finished (30 s at most), a second SIGTERM immediately: \
         `kill PID`, or `systemctl stop evener` for a service of systemd",
    ),
    (
        &["restart", "reload-config", "hup"],
        "`evener reload` applies a changed configuration without closing connections; to run another version of \
         the program, stop the instance with SIGTERM (`kill PID`, or `systemctl stop evener`) and start the other \
         version",
    ),
    (
        &["balance", "proxy", "lb", "listen", "load-balance", "frontend", "backend"],
        "`evener tcp|http|udp|dns LISTEN SERVER...` balances without a file, `evener run FILE` with a file",
    ),
    (&["https"], "`evener http LISTEN SERVER... --tls FILE` balances HTTPS"),
    (
        &["tls", "ssl"],
        "`evener http LISTEN SERVER... --tls FILE` uses TLS with clients; for TCP write a file",
    ),
    (
        &["list", "ls", "show", "info", "stat", "stats", "ps", "pools", "services"],
        "`evener status` shows services, pools and servers",
    ),
    (&["enable", "undrain", "resume", "online"], "`evener ready SERVER` makes a server ready again"),
    (
        &["disable", "down", "offline", "suspend"],
        "`evener drain SERVER` sends no new clients to a server, `evener maintenance SERVER` no clients at all",
    ),
    (
        &["test", "validate", "configtest", "lint", "verify", "-t", "-tt", "-T", "--test", "-c", "--check"],
        "`evener check FILE` lists the problems of a configuration",
    ),
    (&["-f", "--config", "--file", "-C", "--conf"], "`evener run FILE` runs a configuration"),
    (&["-s", "--signal"], "`evener reload` applies a changed configuration; SIGTERM stops an instance"),
    (&["-v", "version", "-version"], "`evener --version` prints the version"),
    (&["log", "logs", "journal"], "`evener events` shows what happened, `evener events --follow` continues"),
    (&["ban", "block"], "`evener deny SERVICE PREFIX --for TIME` refuses clients"),
    (&["unban", "unblock", "undeny"], "`evener forget SERVICE PREFIX` removes a rule of `evener deny`"),
    (&["allow"], "`evener permit SERVICE PREFIX` admits clients, `evener forget` removes a rule"),
    (&["sessions", "conns"], "`evener connections` lists open connections and flows"),
    (&["purge", "flush"], "`evener expunge SERVICE NAME` removes cached responses"),
    (
        &["new", "generate"],
        "`evener init FILE` writes a first configuration, and `evener http LISTEN SERVER... --print` one of a command line",
    ),
    (
        &["convert", "migrate"],
        "`evener import pen ...` and `evener import keepalived FILE` print the equivalent configuration",
    ),
];

/// Prints the error of a command line with the advice for it, and returns the exit status. Also prints the text
/// of `--help` and `--version`, which the parser returns as an error.
pub(super) async fn report(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some(advice) = Line::new(error, &words).message().await else { error.exit() };
    wrong(&advice)
}

/// Prints a message about a wrong command line and returns the exit status.
pub(super) fn wrong(message: &str) -> ExitCode {
    message.lines().for_each(|line| eprintln!("evener: {line}"));
    ExitCode::from(WRONG_USAGE)
}

/// Returns the message about a one-liner with a word after `--check` or `--sticky` that is meant as the value of
/// the option. The parser would accept the word as a server.
pub(super) fn misplaced(words: &[OsString]) -> Option<String> {
    let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap_or_default()).collect();
    let (command, rest) = words.get(1).zip(words.get(2..))?;
    let pair = rest.windows(2).find(|pair| is_value(pair[1]) && value_advice(command, pair).is_some())?;
    value_advice(command, pair)
}

/// Returns true for a path or a word that cannot be an address with a port.
fn is_value(word: &str) -> bool {
    if word.starts_with('/') {
        return !std::fs::metadata(word).is_ok_and(|file| file.file_type().is_socket());
    }
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Returns the message about a value of an option that takes none, given as the option and the value.
fn value_advice(command: &str, pair: &[&str]) -> Option<String> {
    let [option, value] = pair else { return None };
    Some(match (command, *option) {
        ("http", "--check") => {
            let path = if value.starts_with('/') { (*value).to_owned() } else { format!("/{value}") };
            format!(
                "--check takes no path, got `{value}`: it sends GET /. For another path write a file with --print, \
                 then check = check.http {{ path = \"{path}\" }}"
            )
        }
        ("tcp", "--check") => format!(
            "--check takes no value, got `{value}`: it checks that the servers accept connections. For another check \
             write a file with --print > FILE, and change its check to check.http {{ path = \"/health\" }}"
        ),
        ("http", "--sticky") => format!(
            "--sticky takes no value, got `{value}`: it is by the client's address. For a cookie write a file with \
             --print, then sticky = {{ by = \"cookie\" }}"
        ),
        ("tcp" | "udp" | "dns", "--sticky") => {
            format!("--sticky takes no value, got `{value}`: it is by the client's address")
        }
        _ => return None,
    })
}

/// A wrong command line.
struct Line<'a> {
    error: &'a clap::Error,
    /// The first word after the name of the program.
    command: &'a str,
    /// The words after the command.
    rest: &'a [String],
}

impl<'a> Line<'a> {
    fn new(error: &'a clap::Error, words: &'a [String]) -> Self {
        let command = words.get(1).map_or("", String::as_str);
        Self { error, command, rest: words.get(2..).unwrap_or_default() }
    }

    /// Returns the message, or `None` for the text of `--help` and `--version`.
    async fn message(&self) -> Option<String> {
        let advice = match self.error.kind() {
            // The command exists; a command of it, as of `xdp`, does not.
            ErrorKind::InvalidSubcommand if self.is_command() => None,
            ErrorKind::InvalidSubcommand => Some(self.unknown_command().await),
            ErrorKind::UnknownArgument => self.unexpected_argument(),
            ErrorKind::MissingRequiredArgument => self.missing_argument().await,
            ErrorKind::InvalidValue => self.invalid_value(),
            ErrorKind::TooManyValues => self.unexpected_value(),
            _ => None,
        };
        advice.or_else(|| plain::message(self.error, self.command))
    }

    /// Returns true if the first word is a command.
    fn is_command(&self) -> bool {
        Cli::command().get_subcommands().any(|command| command.get_name() == self.command)
    }

    async fn unknown_command(&self) -> String {
        let word = self.command;
        let advice = OTHER_WORDS.iter().find(|(words, _)| words.contains(&word)).map(|(_, advice)| *advice);
        if let Some(mut advice) = advice.map(|advice| self.with_file(advice)) {
            if advice.contains("PID")
                && let Some(pid) = self.status().await["pid"].as_u64()
            {
                advice = advice.replace("PID", &pid.to_string());
            }
            return format!("`{word}` is not a command: {advice}");
        }
        let is_file =
            word.contains('/') || Path::new(word).extension().is_some() || Path::new(word).is_file();
        if is_file {
            return format!(
                "`{word}` is not a command: `evener run {word}` runs a configuration, `evener check {word}` lists its problems"
            );
        }
        let commands = Cli::command();
        let near = config::nearest(word, commands.get_subcommands().map(clap::Command::get_name));
        let near = if near.is_empty() { "; `evener --help` lists the commands".into() } else { near };
        format!("`{word}` is not a command{near}")
    }

    /// Puts the file of the command line into advice about a file.
    fn with_file(&self, advice: &str) -> String {
        match self.rest {
            [file] if file.ends_with(".lua") => advice.replace("FILE", file),
            _ => advice.into(),
        }
    }

    fn unexpected_argument(&self) -> Option<String> {
        let ContextValue::String(given) = self.error.get(ContextKind::InvalidArg)? else { return None };
        let is_option = given.starts_with('-');
        let known = OTHER_WORDS.iter().find(|(words, _)| words.contains(&given.as_str()));
        let given = given.as_str();
        let (command, file) = (self.command, self.rest.iter().find(|word| word.ends_with(".lua")));
        match command {
            "reload" if !is_option => Some(format!(
                "reload takes no file: it applies the file that the instance was started with; `evener check {given}` \
                 lists the problems of a file without applying it"
            )),
            "reload" if ["--check", "--test", "--dry-run", "-t", "-c", "-n"].contains(&given) => {
                Some(format!(
                    "`{given}` is not an option of `evener reload`, which changes nothing if the file has problems; \
                 `evener check FILE` lists them without a reload"
                ))
            }
            "run" if !is_option => {
                Some(format!("run takes one file, got also `{given}`: a file may have several services"))
            }
            "run" if ["-d", "-D", "-b", "--daemon", "--detach", "--background"].contains(&given) => {
                let file = file.map_or("FILE", String::as_str);
                Some(format!(
                    "`{given}` is not an option of `evener run`, which stays in the foreground: a service manager runs \
                     it in the background, or `systemd-run evener run {file}`"
                ))
            }
            "run" | "tcp" | "udp" | "http" | "dns" if given == "--socket" => Some(format!(
                "`--socket` is an option of commands for a running instance; `evener {command}` takes the path of its \
                 admin socket as --admin PATH"
            )),
            "status" if ["-w", "-f", "--watch", "--follow", "--interval"].contains(&given) => Some(format!(
                "`{given}` is not an option of `evener status`: `watch evener status` repeats it, and \
                 `evener events --follow` shows changes as they occur"
            )),
            "drain" | "ready" | "maintenance" if !is_option || given == "--all" => Some(format!(
                "`evener {command}` takes one server{}: run it for each server; `evener status` lists the servers",
                if is_option { String::new() } else { format!(", got also `{given}`") }
            )),
            "check" if !is_option => {
                Some(format!("check takes one file, got also `{given}`: run it for each file"))
            }
            "check" if ["-q", "--quiet", "-s", "--silent"].contains(&given) => Some(format!(
                "`{given}` is not an option of `evener check`: the exit status is 0 if the configuration is valid, and \
                 `> /dev/null 2>&1` discards the output"
            )),
            "tcp" | "udp" | "http" | "dns" if ["-w", "--weight", "--weights"].contains(&given) => {
                Some(needs_file("weights", command, "{ \"10.0.0.1:80\", weight = 3 }"))
            }
            "tcp" | "udp" | "http" | "dns" if matches!(given, "-p" | "--port" | "-l" | "--listen" | "-b") => {
                Some(format!(
                    "`{given}` is not an option: the listen address is the first argument: {}",
                    example(command)
                ))
            }
            command if command == given => {
                known.map(|(_, advice)| format!("`{given}` is not an option: {}", self.with_file(advice)))
            }
            _ => None,
        }
    }

    /// Advises on a value of an option that takes none.
    fn unexpected_value(&self) -> Option<String> {
        let ContextValue::String(option) = self.error.get(ContextKind::InvalidArg)? else { return None };
        let ContextValue::String(given) = self.error.get(ContextKind::InvalidValue)? else { return None };
        value_advice(self.command, &[option, given])
    }

    /// Advises on a value that an option or argument does not take, or on an option without its value.
    fn invalid_value(&self) -> Option<String> {
        let ContextValue::String(option) = self.error.get(ContextKind::InvalidArg)? else { return None };
        let ContextValue::String(given) = self.error.get(ContextKind::InvalidValue)? else { return None };
        match (self.command, option.split(' ').next()?) {
            ("udp", "--check") if given.is_empty() => Some(
                "--check needs a text to send, such as --check ping, because UDP has no connections; a server that does \
                 not respond is down"
                    .into(),
            ),
            ("dns", "--check") if given.is_empty() => {
                Some("--check needs a name to query, such as --check www.example.org".into())
            }
            ("import", _) if !given.is_empty() => Some(format!(
                "`{given}` cannot be imported: only configurations of pen, keepalived and ipvsadm can. Write a first file with \
                 `evener http LISTEN SERVER... --print`; `evener help WORD` translates words of other programs, such \
                 as `evener help upstream`"
            )),
            _ => None,
        }
    }

    async fn missing_argument(&self) -> Option<String> {
        let command = self.command;
        let missing = match self.error.get(ContextKind::InvalidArg)? {
            ContextValue::Strings(names) => names.concat(),
            _ => return None,
        };
        match command {
            "tcp" | "udp" | "http" | "dns" if missing.contains("LISTEN") => {
                Some(format!("give a listen address and servers: {}", example(command)))
            }
            "tcp" | "udp" | "http" | "dns" => Some(format!("the servers are missing: {}", example(command))),
            "drain" | "maintenance" if missing.contains("--wait") => {
                Some(format!("--timeout is the time of a wait: evener {command} SERVER --wait --timeout TIME"))
            }
            "drain" | "ready" | "maintenance" => {
                let servers = listed("its servers", self.names("servers").await);
                Some(format!("the server is missing: evener {command} POOL/SERVER{servers}"))
            }
            "deny" | "permit" | "forget" => {
                let given = self.rest.iter().find(|word| word.parse::<Prefix>().is_ok());
                let (what, prefix) = match given {
                    Some(prefix) => ("the service is missing", prefix.as_str()),
                    None if self.rest.iter().all(|word| word.starts_with('-')) => {
                        ("the service and the clients are missing", "192.0.2.0/24")
                    }
                    None => ("the clients are missing", "192.0.2.0/24"),
                };
                let services = listed("its services", self.names("services").await);
                Some(format!("{what}: evener {command} SERVICE {prefix}{services}"))
            }
            "explain" => {
                let services = listed("its services", self.names("services").await);
                Some(format!("give a service and the address of a client: evener explain SERVICE 192.0.2.7{services}"))
            }
            "close" => Some(
                "give the number of a connection, which `evener connections` shows: evener close 17\n\
                 or close all connections of a server or client: evener close --server POOL/SERVER, \
                 evener close --client 192.0.2.7"
                    .into(),
            ),
            "expunge" => Some(
                "give a DNS service and a name: evener expunge SERVICE www.example.org; --all instead of a name removes \
                 all responses"
                    .into(),
            ),
            _ => None,
        }
    }

    /// Returns the state of the running instance; null if it cannot be found.
    async fn status(&self) -> Value {
        let given = self.rest.iter().skip_while(|word| *word != "--socket").nth(1);
        let socket =
            given.map(PathBuf::from).or_else(|| std::env::var_os("EVENER_SOCKET").map(PathBuf::from));
        let Ok(client) = Client::find(socket.as_deref()) else { return Value::Null };
        client.get::<Value>(&path_with("/v1/status", &[], None)).await.unwrap_or_default()
    }

    /// Returns the names of servers or services of the running instance; none if it cannot be found.
    async fn names(&self, list: &str) -> Vec<String> {
        let status = self.status().await;
        let items = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let name = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
        if list == "services" {
            return items(&status["services"]).iter().map(name).collect();
        }
        let servers = |pool: &Value| -> Vec<String> {
            items(&pool["servers"]).iter().map(|server| format!("{}/{}", name(pool), name(server))).collect()
        };
        items(&status["pools"]).iter().flat_map(servers).collect()
    }
}

/// Returns an example of a one-liner.
fn example(command: &str) -> String {
    let (listen, server) = match command {
        "udp" => (5683, 5683),
        "dns" => (5353, 53),
        _ => (8080, 80),
    };
    format!("evener {command} 127.0.0.1:{listen} 10.0.0.1:{server} 10.0.0.2:{server}")
}

/// Returns the message about settings that a one-liner does not have.
pub(super) fn needs_file(settings: &str, command: &str, example: &str) -> String {
    format!("{settings} need a file: `evener {command} ... --print > FILE` writes it, then {example}")
}

/// Returns a line about the names of the running instance, if there are any.
fn listed(what: &str, names: Vec<String>) -> String {
    if names.is_empty() {
        return String::new();
    }
    let more = names.len().saturating_sub(LISTED_MAX);
    let more =
        if more > 0 { format!(" and {more} more, which `evener status` shows") } else { String::new() };
    let shown: Vec<String> = names.into_iter().take(LISTED_MAX).collect();
    format!("\nan instance is running; {what}: {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn no_word_of_another_program_is_a_command() {
        let commands = Cli::command();
        let names: Vec<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
        let words = OTHER_WORDS.iter().flat_map(|(words, _)| *words);
        words.for_each(|word| assert!(!names.contains(word), "`{word}` is a command"));
    }

    /// Wrong command lines, with parts of their advice.
    const WRONG: &[(&str, &str)] = &[
        ("http 127.0.0.1:1 127.0.0.1:2 --check=health", "check.http { path = \"/health\" }"),
        ("run -d x.lua", "stays in the foreground"),
        ("run --socket x", "--admin PATH"),
        ("status -w", "`watch evener status`"),
        ("drain --all --socket /none", "takes one server: run it for each server"),
        ("drain web/a web/b", "takes one server, got also `web/b`"),
        ("check -q", "the exit status is 0"),
        ("check x.lua y.lua", "check takes one file, got also `y.lua`"),
        ("reload --check", "changes nothing if the file has problems"),
        (
            "import haproxy FILE",
            "`haproxy` cannot be imported: only configurations of pen, keepalived and ipvsadm can",
        ),
        ("http 127.0.0.1:1 127.0.0.1:2 --weight 3", "weights need a file"),
        ("connections --client nix", "`nix` is not a value of --client: neither an address nor a prefix"),
        ("close abc", "`abc` is not a value of NUMBER: it must be a number that `evener connections` shows"),
        ("clients --limit abc", "--limit: it must be a whole number"),
        ("tcp 127.0.0.1:1 127.0.0.1:2 --workers 0", "--workers: it must be between 1 and 1024"),
        ("demo --seconds 0", "--seconds: it must be at least 1"),
        ("drain a --for 10", "--for: the unit is missing"),
        ("tcp 127.0.0.1:1 127.0.0.1:2 --policy hsh", "did you mean `hash`?"),
        ("status --jsno", "`--jsno` is not an option of `evener status`; did you mean `--json`?"),
        ("status --frobnicate", "`evener status --help` lists the options"),
        ("status a b", "`b` is one word too many"),
        ("status --json --json", "--json is given twice"),
        ("close 1 --server a", "cannot be used together with"),
        ("explain www 192.0.2.7 --path api", "a path begins with a slash: write /api"),
        ("completions", "SHELL is missing"),
        ("start", "`evener run FILE` runs"),
        ("start web.lua", "`evener run web.lua` runs"),
        ("web.lua", "`evener run web.lua` runs"),
        ("stop", "SIGTERM stops an instance"),
        ("restart", "`evener reload` applies"),
        ("-t web.lua", "`evener check web.lua` lists"),
        ("-f web.lua", "`evener run web.lua` runs"),
        ("statsu", "did you mean `status`?"),
        ("xyzzy", "`xyzzy` is not a command; `evener --help`"),
        ("xdp statsu", "`statsu` is not a command of `evener xdp`; did you mean `status`?"),
        ("xdp frobnicate", "`evener xdp --help` lists the commands"),
        ("reload web.lua", "reload takes no file"),
        ("run a.lua b.lua", "run takes one file, got also `b.lua`"),
        ("tcp -p 23000", "the listen address is the first argument: evener tcp 127.0.0.1:8080"),
        ("dns", "give a listen address and servers: evener dns 127.0.0.1:5353 10.0.0.1:53"),
        ("tcp 127.0.0.1:1", "the servers are missing: evener tcp"),
        ("udp 127.0.0.1:1 127.0.0.1:2 --check", "--check needs a text to send"),
        ("dns 127.0.0.1:1 127.0.0.1:2 --check", "--check needs a name to query"),
        ("drain web/a --timeout 2s", "--timeout is the time of a wait: evener drain SERVER --wait"),
        ("drain --socket /none", "the server is missing: evener drain POOL/SERVER"),
        ("deny 10.0.0.0/8 --socket /none", "the service is missing: evener deny SERVICE 10.0.0.0/8"),
        ("permit www --socket /none", "the clients are missing: evener permit SERVICE 192.0.2.0/24"),
        ("explain www --socket /none", "give a service and the address of a client"),
        ("close", "evener close --client 192.0.2.7"),
        ("expunge dns", "give a DNS service and a name"),
    ];

    #[tokio::test]
    async fn wrong_command_lines_get_the_command_that_was_meant() {
        for (line, expected) in WRONG {
            let words: Vec<String> = "evener".split(' ').chain(line.split(' ')).map(str::to_owned).collect();
            let error = Cli::try_parse_from(&words).err();
            let error = error.unwrap_or_else(|| panic!("expected `evener {line}` to be wrong"));
            let advice = Line::new(&error, &words).message().await;
            assert!(
                advice.as_deref().is_some_and(|text| {
                    text.contains(expected) && !text.contains("tip:") && !text.contains("error:")
                }),
                "{line}: {advice:?}\n{error}"
            );
        }
    }

    #[test]
    fn values_after_options_without_values_are_not_servers() {
        let check = |line: &str, expected: Option<&str>| {
            let words: Vec<OsString> =
                "evener".split(' ').chain(line.split(' ')).map(OsString::from).collect();
            let seen = misplaced(&words);
            match expected {
                Some(part) => {
                    assert!(seen.as_ref().is_some_and(|text| text.contains(part)), "{line}: {seen:?}");
                }
                None => assert_eq!(seen, None, "{line}"),
            }
        };
        check("http 1.1.1.1:1 1.1.1.1:2 --check /health", Some("check.http { path = \"/health\" }"));
        check("http 1.1.1.1:1 1.1.1.1:2 --check health", Some("--check takes no path, got `health`"));
        check("http 1.1.1.1:1 1.1.1.1:2 --sticky cookie", Some("sticky = { by = \"cookie\" }"));
        check("tcp 1.1.1.1:1 1.1.1.1:2 --check /health", Some("--check takes no value"));
        check("udp 1.1.1.1:1 1.1.1.1:2 --sticky ip", Some("--sticky takes no value"));
        check("http --check 1.1.1.1:1 a.example:2", None);
        check("http 1.1.1.1:1 --sticky a.example:2 unix:/run/a.sock --check", None);
        check("udp 1.1.1.1:1 1.1.1.1:2 --check ping", None);
        check("dns 1.1.1.1:1 1.1.1.1:2 --check www", None);
    }
}
