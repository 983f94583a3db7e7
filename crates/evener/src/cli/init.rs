//! `evener init`: writes a first configuration, whose comments show the keys that are needed next.

use super::one_liner::{listen_address, server_of};
use super::shell;
use anyhow::{Context, bail};
use clap::{Args, ValueHint};
use evener_core::Endpoint;
use evener_core::spec::Protocol;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

/// Annotations for editors that the package installs.
const INSTALLED_ANNOTATIONS: &str = "/usr/share/evener/evener.meta.lua";

#[derive(Args, Debug)]
pub(super) struct InitCommand {
    /// The file to write, or - for the standard output
    #[arg(default_value = "evener.lua", value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Protocol of the service
    #[arg(long, default_value = "http", value_parser = ["tcp", "udp", "http", "dns"])]
    protocol: String,
    /// Listen address with its port (default: 127.0.0.1 with a port of the protocol)
    #[arg(long, value_name = "ADDRESS", value_hint = ValueHint::Other)]
    listen: Option<String>,
    /// A server with its port, such as 10.0.0.1:80; may be repeated (default: two examples)
    #[arg(long = "server", value_name = "ADDRESS", value_hint = ValueHint::Other)]
    servers: Vec<String>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

impl InitCommand {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let text = self.text()?;
        if self.file == Path::new("-") {
            print!("{text}");
            return Ok(());
        }
        self.write(&text)?;
        print!("{}", next_steps(&self.file));
        Ok(())
    }

    /// Writes the file. Without `--force` an existing file is never changed.
    fn write(&self, text: &str) -> anyhow::Result<()> {
        let file = self.file.display();
        let mut options = OpenOptions::new();
        match self.force {
            true => options.create(true).truncate(true),
            false => options.create_new(true),
        };
        let mut opened = options.write(true).open(&self.file).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                anyhow::anyhow!(
                    "{file} exists and stays as it is: give another file, or --force to replace it"
                )
            }
            ErrorKind::NotFound => {
                anyhow::anyhow!("cannot write {file}: its directory does not exist")
            }
            _ => anyhow::anyhow!("cannot write {file}: {error}"),
        })?;
        opened.write_all(text.as_bytes()).with_context(|| format!("cannot write {file}"))
    }

    /// Returns the text of the configuration.
    fn text(&self) -> anyhow::Result<String> {
        let protocol = match &*self.protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "dns" => Protocol::Dns,
            _ => Protocol::Http,
        };
        let starter = Starter::of(protocol);
        let listen = self.listen.as_deref().unwrap_or(starter.listen);
        let mut servers: Vec<&str> = self.servers.iter().map(String::as_str).collect();
        if servers.is_empty() {
            servers.extend(starter.servers);
        }
        let is_datagram = matches!(protocol, Protocol::Udp | Protocol::Dns);
        let endpoint = listen_address(listen)?;
        if is_datagram && matches!(endpoint, Endpoint::Unix(_)) {
            bail!("`{listen}` is a unix socket: {} must listen on IP addresses", self.protocol);
        }
        let mut names = BTreeSet::new();
        for text in &servers {
            let server = server_of(text, protocol)?;
            if is_datagram && matches!(server.endpoint, Endpoint::Unix(_)) {
                bail!("server `{text}` is a unix socket: {} needs IP servers", self.protocol);
            }
            if !names.insert(server.name) {
                bail!("server `{text}` is given twice");
            }
        }
        Ok(starter.text(listen, &servers))
    }
}

/// The parts of a first configuration that depend on the protocol.
struct Starter {
    protocol: &'static str,
    listen: &'static str,
    servers: [&'static str; 2],
    /// Name of the pool.
    pool: &'static str,
    /// Name of the service.
    service: &'static str,
    check: &'static str,
    /// Lines in the pool, which are comments.
    pool_keys: &'static [&'static str],
    /// Lines in the service; those with `--` are comments.
    service_keys: &'static [&'static str],
}

const STICKY: &str = "sticky = { size = 10000, ttl = \"1h\" }, -- a client keeps its server";
const SLOW_START: &str = "slow_start = \"30s\", -- a server that comes back gets its share gradually";
const DENY: &str = "deny = { \"192.0.2.0/24\" }, -- clients that are refused";
const CLIENTS: &str = "clients = 10000, -- `evener clients` shows them";

impl Starter {
    fn of(protocol: Protocol) -> Self {
        let tcp = Self {
            protocol: "tcp",
            listen: "127.0.0.1:8080",
            servers: ["10.0.0.1:80", "10.0.0.2:80"],
            pool: "app",
            service: "tcp",
            check: "check = check.tcp { every = \"2s\", timeout = \"1s\", rise = 2, fall = 3 },",
            pool_keys: &[STICKY, SLOW_START],
            service_keys: &[
                "connections_max = 2000,",
                "per_client = { connections = 100, connection_rate = \"50/s\" },",
                DENY,
                CLIENTS,
            ],
        };
        match protocol {
            Protocol::Tcp => tcp,
            Protocol::Http => Self {
                protocol: "http",
                pool: "web",
                service: "www",
                check: "check = check.http { path = \"/\", every = \"2s\", timeout = \"1s\", rise = 2, fall = 3 },",
                pool_keys: &["sticky = { by = \"cookie\" }, -- a client keeps its server", SLOW_START],
                service_keys: &[
                    "tls = { certificate = \"site.crt\", key = \"site.key\" }, -- a changed file is applied by itself",
                    "forwarded = { trust = { \"10.0.0.0/8\" } }, -- proxies whose X-Forwarded-For is right",
                    "per_client = { connections = 100, request_rate = \"200/s\" },",
                    DENY,
                    CLIENTS,
                ],
                ..tcp
            },
            Protocol::Udp => Self {
                protocol: "udp",
                listen: "127.0.0.1:5683",
                servers: ["10.0.0.1:5683", "10.0.0.2:5683"],
                service: "udp",
                check: "-- check = check.udp { send = \"ping\", every = \"2s\" }, -- a server that responds is up",
                service_keys: &["flows_max = 100000,", DENY, CLIENTS],
                ..tcp
            },
            Protocol::Dns => Self {
                protocol: "dns",
                listen: "127.0.0.1:5353",
                servers: ["10.0.0.1:53", "10.0.0.2:53"],
                pool: "resolvers",
                service: "dns",
                check: "check = check.dns { name = \"example.org\", every = \"5s\" },",
                pool_keys: &[SLOW_START],
                service_keys: &[
                    "dns = { cache = { entries = 100000, bytes = \"64MiB\" }, rate_limit = { rate = \"100/s\" } },",
                    DENY,
                    CLIENTS,
                ],
            },
        }
    }

    fn text(&self, listen: &str, servers: &[&str]) -> String {
        let port = servers[0].rsplit(':').next().filter(|port| port.parse::<u16>().is_ok()).unwrap_or("80");
        let Self { protocol, pool, service, check, .. } = self;
        let mut out = format!(
            "-- Configuration of Evener. `evener check` lists its problems with their lines, and after a change\n\
             -- `evener reload` applies it to the running instance: an invalid file changes nothing.\n\
             -- `evener help pool.sticky` describes a key, `evener help pool` those of a table. Lines with a comment\n\
             -- sign show what is often needed.\n\n\
             local {pool} = pool \"{pool}\" {{\n"
        );
        for server in servers {
            let _ = writeln!(out, "  {},", lua_text(server));
        }
        let _ = write!(
            out,
            "  -- {{ \"10.0.0.8:{port}\", weight = 2, max = 500 }}, -- twice the share, at most 500 clients\n  \
             -- {{ \"10.0.0.9:{port}\", tier = 2 }}, -- only while no other server is usable\n\n  \
             policy = \"least_conn\", -- or \"round_robin\", \"p2c\", \"ewma\", \"hash\": `evener help pool.policy`\n  \
             {check}\n"
        );
        for key in self.pool_keys {
            let _ = writeln!(out, "  -- {key}");
        }
        let _ = write!(
            out,
            "}}\n\nservice \"{service}\" {{\n  listen = {}, -- for all addresses: {{ \"0.0.0.0:PORT\", \"[::]:PORT\" }}\n  \
             protocol = \"{protocol}\",\n  pool = {pool},\n",
            lua_text(listen)
        );
        for key in self.service_keys {
            let _ = writeln!(out, "  -- {key}");
        }
        out + "}\n"
    }
}

/// Returns a text as a literal of Lua.
fn lua_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Returns the commands that usually follow.
fn next_steps(file: &Path) -> String {
    let name = file.display();
    let word = shell::word(&name.to_string());
    let width = word.len() + "evener check ".len();
    let annotations = match Path::new(INSTALLED_ANNOTATIONS).exists() {
        true => format!("add {INSTALLED_ANNOTATIONS} to workspace.library"),
        false => "write them with `evener annotations > evener.meta.lua` beside the file".into(),
    };
    format!(
        "{name}: written. Write your addresses into it, then:\n\n  \
         {:<width$}  lists its problems with their lines\n  \
         {:<width$}  runs it\n  \
         {:<width$}  shows services, pools and servers\n  \
         {:<width$}  applies a changed file\n\n\
         For an editor with the Lua language server there are annotations of all keys: {annotations}.\n",
        format!("evener check {word}"),
        format!("evener run {word}"),
        "evener status",
        "evener reload",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use crate::config;

    fn command(protocol: &str, listen: Option<&str>, servers: &[&str]) -> InitCommand {
        InitCommand {
            file: "-".into(),
            protocol: protocol.into(),
            listen: listen.map(str::to_owned),
            servers: servers.iter().map(ToString::to_string).collect(),
            force: false,
        }
    }

    fn load(text: &str) -> Result<config::Config, String> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("evener-init-{}-{number}.lua", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let loaded = config::load(&file);
        std::fs::remove_file(&file).unwrap();
        loaded.map_err(|problems| format!("{problems:?}\n{text}"))
    }

    #[test]
    fn each_protocol_has_a_valid_first_file() {
        for protocol in ["tcp", "udp", "http", "dns"] {
            let text = command(protocol, None, &[]).text().unwrap();
            let config = load(&text).unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(config.spec.services[0].protocol.name(), protocol);
            assert_eq!(config.spec.pools[0].servers.len(), 2);
            assert!(config.warnings().is_empty(), "{:?}", config.warnings());
            assert!(text.lines().all(|line| line.len() <= 110), "{text}");
        }
    }

    #[test]
    fn each_key_in_a_comment_is_valid() {
        let mut tried = 0;
        for protocol in ["tcp", "udp", "http", "dns"] {
            let text = command(protocol, None, &[]).text().unwrap();
            for line in text.lines().filter(|line| line.starts_with("  -- ")) {
                let with = text.replacen(line, &line.replacen("-- ", "", 1), 1);
                let config = load(&with).unwrap_or_else(|problems| panic!("{line}: {problems}"));
                assert!(config.warnings().is_empty(), "{line}: {:?}", config.warnings());
                tried += 1;
            }
        }
        assert!(tried > 20, "{tried}");
    }

    #[test]
    fn given_addresses_are_in_the_file() {
        let text = command("tcp", Some("[::1]:443"), &["app.example:8443", "/run/app.sock"]).text().unwrap();
        let config = load(&text).unwrap();
        assert_eq!(config.spec.services[0].listen[0].to_string(), "[::1]:443");
        let servers: Vec<&str> = config.spec.pools[0].servers.iter().map(|server| &*server.name).collect();
        assert_eq!(servers, ["app.example:8443", "/run/app.sock"]);
    }

    #[test]
    fn addresses_that_cannot_be_used_are_refused() {
        let check = |listen: Option<&str>, servers: &[&str], protocol: &str, expected: &str| {
            let error = command(protocol, listen, servers).text().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(None, &["10.0.0.1"], "tcp", "has no port");
        check(None, &["10.0.0.1:80", "10.0.0.1:80"], "tcp", "given twice");
        check(None, &["/run/a.sock"], "udp", "needs IP servers");
        check(Some("8080"), &[], "tcp", "has no host");
        check(Some("/run/a.sock"), &[], "dns", "must listen on IP addresses");
    }
}
