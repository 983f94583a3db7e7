//! `evener check`, which validates a configuration, its certificates and its host names.

use super::run::{DEFAULT_FILE, read};
use crate::certificates::{TlsSettings, unix_time};
use crate::config::{self, Config, Warning, failure};
use crate::inputs::gather;
use crate::output::printable;
use crate::scope;
use anyhow::bail;
use clap::Args;
use evener_core::Endpoint;
use evener_core::spec::{Plane, ServiceSpec};
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(super) struct CheckCommand {
    /// File of the configuration, or - for the standard input
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Print the equivalent configuration if it is valid, with loops expanded and defaults omitted
    #[arg(long)]
    print: bool,
    /// Fail if there are warnings
    #[arg(long, visible_alias = "deny-warnings")]
    strict: bool,
}

impl CheckCommand {
    /// Prints the problems, or else the warnings and a summary.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let Self { file, print, strict } = self;
        let config = read(&file).await?;
        let inputs = gather(&config, TlsSettings::default()).await.map_err(|problems| failure(&problems))?;
        let (tls, servers) = inputs.into_parts();
        servers.notes().for_each(|note| eprintln!("evener: note: {}", printable(&note)));
        let warnings = config.warnings().iter().cloned().chain(tls.warnings(unix_time()));
        let warnings = Warning::sorted(warnings.chain(absent_addresses(&config)).collect());
        warnings.iter().for_each(|warning| eprintln!("evener: {}", printable(&warning.to_string())));
        let counted =
            |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        if strict && !warnings.is_empty() {
            bail!("{}: refused because of {} (--strict)", file.display(), counted(warnings.len(), "warning"));
        }
        if print {
            let text = config::print(&config.spec, &|_| None);
            print!("{text}");
            return Ok(());
        }
        let servers: usize = config.spec.pools.iter().map(|pool| pool.servers.len()).sum();
        let warned = match warnings.len() {
            0 => String::new(),
            count => format!("; {}", counted(count, "warning")),
        };
        println!(
            "{}: valid: {}, {}, {}{warned}",
            printable(&file.to_string_lossy()),
            counted(config.spec.services.len(), "service"),
            counted(config.spec.pools.len(), "pool"),
            counted(servers, "server")
        );
        Ok(())
    }
}

/// Returns a warning about each listen address that no interface of this machine has. The configuration may be
/// for another machine. Services of the XDP plane have no sockets.
fn absent_addresses(config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let needs_address = |service: &&ServiceSpec| !service.options.freebind && service.plane == Plane::Proxy;
    for service in config.spec.services.iter().filter(needs_address) {
        for endpoint in &service.listen {
            let Endpoint::Ip(address) = endpoint else { continue };
            if is_absent(*address) {
                let (name, shown) = (&service.name, scope::text(endpoint));
                let message = format!(
                    "service `{name}`: this machine does not have the address of {shown}, so evener cannot start here: write freebind = true if the address comes later"
                );
                warnings.push(config.warning_about_listen(name, endpoint, message));
            }
        }
    }
    warnings
}

/// Returns true if no interface has the IP address.
fn is_absent(mut address: SocketAddr) -> bool {
    address.set_port(0);
    UdpSocket::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}
