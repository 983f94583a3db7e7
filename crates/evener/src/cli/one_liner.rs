//! `evener tcp|udp|http|dns LISTEN SERVER...`: a service without a configuration file, and `--print`, which
//! writes its configuration file.

use super::RunOptions;
use super::usage::needs_file;
use crate::certificates::TlsSettings;
use crate::config::{self, Config, failure};
use crate::inputs::gather;
use crate::scope;
use anyhow::bail;
use clap::Args;
use clap::builder::PossibleValuesParser;
use evener_core::Endpoint;
use evener_core::address::AddressError;
use evener_core::spec::{
    CheckKind, CheckSpec, DnsCacheSpec, DnsSpec, Policy, PoolSpec, Protocol, ServerSpec, ServiceSpec, Spec,
    StickyBy, StickySpec, TlsSpec, Transport,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The arguments that all protocols have.
#[derive(Args, Debug)]
pub(super) struct OneLiner {
    /// Listen address with its port, such as 127.0.0.1:8080
    listen: String,
    /// Servers, each with its port, such as 10.0.0.1:80 or app.example:80
    #[arg(required = true)]
    servers: Vec<String>,
    /// Policy that chooses a server
    #[arg(long, default_value = "round_robin", value_parser = PossibleValuesParser::new(Policy::NAMES))]
    policy: String,
    /// Keep each client on the same server
    #[arg(long)]
    sticky: bool,
    /// Print the equivalent configuration file instead of running it
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    options: RunOptions,
}

/// `evener tcp`
#[derive(Args, Debug)]
pub(super) struct TcpLine {
    #[command(flatten)]
    line: OneLiner,
    /// Check every 2 s that the servers accept connections
    #[arg(long)]
    check: bool,
}

/// `evener http`
#[derive(Args, Debug)]
pub(super) struct HttpLine {
    #[command(flatten)]
    line: OneLiner,
    /// Check every 2 s that the servers respond to GET / with status 200 to 399
    #[arg(long)]
    check: bool,
    /// Use TLS with clients, with the certificate and key in this PEM file
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
}

/// `evener udp`
#[derive(Args, Debug)]
#[command(
    mut_arg("listen", |listen| listen.help("Listen address with its port, such as 127.0.0.1:5683")),
    mut_arg("servers", |servers| servers.help("Servers, each with its port, such as 10.0.0.1:5683"))
)]
pub(super) struct UdpLine {
    #[command(flatten)]
    line: OneLiner,
    /// Send this text every 2 s and check that the servers respond to it
    #[arg(long, value_name = "TEXT")]
    check: Option<String>,
}

/// `evener dns`
#[derive(Args, Debug)]
#[command(
    mut_arg("listen", |listen| listen.help("Listen address with its port, such as 127.0.0.1:5353")),
    mut_arg("servers", |servers| servers.help("Servers, each with its port, such as 10.0.0.1:53"))
)]
pub(super) struct DnsLine {
    #[command(flatten)]
    line: OneLiner,
    /// Check every 2 s that the servers respond to a query for the addresses of this name, which must exist
    #[arg(long, value_name = "NAME")]
    check: Option<String>,
    /// Cache responses (at most 100000, 64 MiB)
    #[arg(long)]
    cache: bool,
}

impl TcpLine {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let check = self.check.then(|| CheckSpec::new(CheckKind::Tcp));
        self.line.run(self.line.spec(Protocol::Tcp, check)?).await
    }
}

impl HttpLine {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut spec = self.line.spec(Protocol::Http, self.check.then(config::http_check))?;
        for service in &mut spec.services {
            service.tls = self.tls.as_deref().map(|file| self.tls_of(file));
        }
        self.line.run(spec).await
    }

    /// Returns the settings of TLS. A printed path is absolute, so that the printed file can be moved.
    fn tls_of(&self, file: &Path) -> Arc<TlsSpec> {
        let absolute = if self.line.print { std::path::absolute(file).ok() } else { None };
        config::tls_from_file(absolute.as_deref().unwrap_or(file))
    }
}

impl UdpLine {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let check = self.check.as_deref().map(|text| {
            if text.is_empty() {
                bail!("--check needs a text to send, such as --check ping");
            }
            Ok(CheckSpec::new(CheckKind::Udp { send: text.into(), expect: None }))
        });
        self.line.run(self.line.spec(Protocol::Udp, check.transpose()?)?).await
    }
}

impl DnsLine {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let check = self.check.as_deref().map(config::dns_check).transpose().map_err(anyhow::Error::msg)?;
        let dns = DnsSpec { cache: self.cache.then(DnsCacheSpec::default), ..DnsSpec::default() };
        let mut spec = self.line.spec(Protocol::Dns, check)?;
        for service in &mut spec.services {
            service.dns = Some(Arc::new(dns.clone()));
        }
        self.line.run(spec).await
    }
}

impl OneLiner {
    /// Runs the specification, or prints it.
    async fn run(&self, spec: Spec) -> anyhow::Result<()> {
        if self.print {
            self.options.admin_permissions()?;
            let config = Config::without_file(spec);
            let checked =
                gather(&config, TlsSettings::default()).await.map_err(|problems| failure(&problems))?;
            checked.into_parts().1.notes().for_each(|note| eprintln!("evener: note: {note}"));
            print!("{}", file_of(&config.spec, &self.options.words()));
            return Ok(());
        }
        super::run::without_file(spec, &self.options).await
    }

    fn spec(&self, protocol: Protocol, check: Option<CheckSpec>) -> anyhow::Result<Spec> {
        let name = protocol.name();
        let listen = listen_address(&self.listen)?;
        let has_datagrams = protocol.transports().contains(&Transport::Datagram);
        if has_datagrams && matches!(listen, Endpoint::Unix(_)) {
            bail!("`{listen}` is a unix socket: {name} must listen on IP addresses");
        }
        let mut servers = Vec::new();
        for text in &self.servers {
            let server = server_of(text, protocol)?;
            if has_datagrams && matches!(server.endpoint, Endpoint::Unix(_)) {
                bail!("server `{}` is a unix socket: {name} needs IP servers", server.endpoint);
            }
            if servers.iter().any(|other: &ServerSpec| other.name == server.name) {
                bail!("server `{}` is listed twice", server.name);
            }
            servers.push(server);
        }
        let pool = PoolSpec {
            policy: Policy::named(&self.policy).unwrap_or(Policy::RoundRobin),
            sticky: self.sticky.then_some(StickySpec {
                by: StickyBy::ClientIp,
                size: 65_536,
                ttl: Some(Duration::from_secs(3600)),
                failback: false,
                rebalance: None,
            }),
            check,
            ..PoolSpec::new(name, servers)
        };
        let service =
            ServiceSpec { listen: vec![listen], pool: Some(name.into()), ..ServiceSpec::new(name, protocol) };
        Ok(Spec { pools: vec![pool], services: vec![service], ..Spec::default() })
    }
}

/// Returns the configuration file of a one-liner. `options` are the options of the command that runs the file.
fn file_of(spec: &Spec, options: &str) -> String {
    format!(
        "-- evener check FILE lists the problems of this file, and evener reload applies changes. It runs with\n\
         -- evener run FILE{options}\n\n{}",
        config::print(spec, &|_| None)
    )
}

pub(super) fn listen_address(text: &str) -> anyhow::Result<Endpoint> {
    let listen = scope::parse_listen(text).map_err(|error| match error {
        AddressError::NoHost(text) => {
            let port = port_of(&text);
            anyhow::anyhow!(
                "listen address `{text}` has no host: write 0.0.0.0:{port} for all IPv4 addresses, \
                 [::]:{port} for all IPv6 addresses, 127.0.0.1:{port} for this machine only"
            )
        }
        AddressError::NoPort(text) => {
            anyhow::anyhow!("listen address `{text}` has no port: write it as {text}:8080")
        }
        error => error.into(),
    })?;
    if matches!(listen, Endpoint::Host { .. }) {
        bail!(
            "`{listen}` is not a listen address: write an IP address, such as 127.0.0.1:8080 or 0.0.0.0:8080"
        );
    }
    Ok(listen)
}

fn port_of(text: &str) -> &str {
    text.trim_start_matches(['*', ':'])
}

/// Returns the message about several addresses in one word, or about a weight behind an address.
fn joined(text: &str, protocol: Protocol) -> Option<String> {
    let words: Vec<&str> = text.split([',', ';', ' ']).filter(|word| !word.is_empty()).collect();
    let is_address = |word: &&str| word.contains(':') && scope::parse(word).is_ok();
    if words.len() > 1 && words.iter().all(is_address) {
        return Some(format!("`{text}` has several servers: write them as {}", words.join(" ")));
    }
    let (address, weight) = text.split_once(['=', ' ', ';', ','])?;
    let weight = weight.rsplit('=').next().filter(|weight| weight.parse::<u16>().is_ok())?;
    let example = format!("{{ \"{address}\", weight = {weight} }}");
    is_address(&address).then(|| needs_file("weights", protocol.name(), &example))
}

pub(super) fn server_of(text: &str, protocol: Protocol) -> anyhow::Result<ServerSpec> {
    if config::CHECK_KINDS.contains(&text) {
        bail!(
            "`{text}` is not a server: for checks of the servers by HTTP use `evener http LISTEN SERVER... --check`, \
             by DNS `evener dns LISTEN SERVER... --check NAME`, for others a file (`--print` writes one to begin with)"
        );
    }
    if let Some(message) = joined(text, protocol) {
        bail!("{message}");
    }
    scope::server(text).map_err(|error| match error {
        AddressError::NoHost(text) => {
            let port = port_of(&text);
            anyhow::anyhow!(
                "server `{text}` has no host: write 127.0.0.1:{port} for a server on this machine"
            )
        }
        AddressError::NoPort(text)
            if !text.starts_with('[') && text.parse::<std::net::Ipv6Addr>().is_err() =>
        {
            let port = match protocol {
                Protocol::Dns => "53",
                Protocol::Udp => "PORT",
                Protocol::Tcp | Protocol::Http => "80",
            };
            anyhow::anyhow!("server `{text}` has no port: write it as {text}:{port}")
        }
        error => {
            let usual = if protocol == Protocol::Dns { 53 } else { 80 };
            anyhow::anyhow!(config::server_problem(text, &error, usual))
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    impl OneLiner {
        fn for_test(servers: &[&str]) -> Self {
            use clap::Parser;
            #[derive(Parser)]
            struct Line {
                #[command(flatten)]
                line: OneLiner,
            }
            let words = ["evener", "127.0.0.1:8080"].iter().chain(servers);
            Line::parse_from(words.chain(&["--sticky"])).line
        }
    }

    #[test]
    fn a_printed_one_liner_is_read_back_unchanged() {
        let directory = std::env::temp_dir().join(format!("evener-one-liner-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("printed.lua");
        let certificate = directory.join("site.pem");
        for (protocol, check, tls) in [
            (Protocol::Tcp, Some(CheckSpec::new(CheckKind::Tcp)), false),
            (Protocol::Udp, None, false),
            (Protocol::Http, Some(config::http_check()), true),
            (Protocol::Dns, Some(config::dns_check("www.example").unwrap()), false),
        ] {
            let line = OneLiner::for_test(&["10.0.0.1:80", "[2001:db8::1]:80"]);
            let mut spec = line.spec(protocol, check).unwrap();
            let service = &mut spec.services[0];
            service.tls = tls.then(|| config::tls_from_file(&certificate));
            let dns = DnsSpec { cache: Some(DnsCacheSpec::default()), ..DnsSpec::default() };
            service.dns = (protocol == Protocol::Dns).then(|| Arc::new(dns));
            let text = file_of(&spec, " --workers 2");
            std::fs::write(&file, &text).unwrap();
            let read = config::load(&file).unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
            assert_eq!(read.spec, spec, "{text}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn problems_of_addresses_have_advice_for_listeners_and_servers() {
        let server = |text: &str, protocol| server_of(text, protocol).unwrap_err().to_string();
        let listen = |text: &str| listen_address(text).unwrap_err().to_string();
        assert!(server("24601", Protocol::Tcp).contains("write 127.0.0.1:24601 for a server"));
        assert!(server("9.9.9.9", Protocol::Dns).ends_with("write it as 9.9.9.9:53"));
        assert!(server("10.0.0.1", Protocol::Http).ends_with("write it as 10.0.0.1:80"));
        let several = server("10.0.0.1:80,10.0.0.2:80", Protocol::Http);
        assert_eq!(
            several,
            "`10.0.0.1:80,10.0.0.2:80` has several servers: write them as 10.0.0.1:80 10.0.0.2:80"
        );
        for weighted in ["10.0.0.1:80=3", "10.0.0.1:80 weight=3"] {
            assert!(
                server(weighted, Protocol::Http).ends_with("then { \"10.0.0.1:80\", weight = 3 }"),
                "{weighted}"
            );
        }
        let url = server("http://10.0.0.7/x", Protocol::Http);
        assert_eq!(url, "`http://10.0.0.7/x` is a URL; write only its host and port, 10.0.0.7:80");
        assert!(server("http", Protocol::Tcp).contains("`http` is not a server"));
        assert!(listen("8080").contains("write 0.0.0.0:8080 for all IPv4 addresses, [::]:8080 for"));
        assert!(listen("127.0.0.1").contains("127.0.0.1:8080"));
    }
}
