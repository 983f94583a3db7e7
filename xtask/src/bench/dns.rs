//! The measured programs of DNS over UDP: Evener by flows, by queries and with a cache; pen, nginx, dnsdist.

use super::peers::{DNS_PORT, Ground, Peer, alone, evener, nginx_stream};
use std::process::Command;

/// Programs that balance by flows, with a socket for each client.
pub(super) fn flows() -> Vec<Peer> {
    vec![
        Peer::new("evener", 18_200, evener_flows),
        Peer::new("pen", 18_201, pen),
        Peer::new("nginx", 18_203, nginx),
        Peer::new("dnsdist", 18_204, |ground, port| dnsdist(ground, port, Caches::Nothing)),
    ]
}

/// Programs that balance by queries.
pub(super) fn queries() -> Vec<Peer> {
    vec![
        Peer::new("evener", 18_210, |ground, port| evener_by_query(ground, port, Caches::Nothing)),
        Peer::new("pen", 18_211, pen),
        Peer::new("nginx", 18_213, nginx),
        Peer::new("dnsdist", 18_214, |ground, port| dnsdist(ground, port, Caches::Nothing)),
    ]
}

/// Programs with a cache; pen and nginx have none.
pub(super) fn cached() -> Vec<Peer> {
    vec![
        Peer::new("evener", 18_220, |ground, port| evener_by_query(ground, port, Caches::Responses)),
        Peer::new("dnsdist", 18_224, |ground, port| dnsdist(ground, port, Caches::Responses)),
    ]
}

/// Responses that a proxy caches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Caches {
    Nothing,
    /// The same maximum number of responses for both programs.
    Responses,
}

fn server() -> String {
    format!("127.0.0.1:{DNS_PORT}")
}

fn evener_flows(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    Ok(evener(ground, "udp", port, &[server()]))
}

fn evener_by_query(ground: &Ground, port: u16, caches: Caches) -> anyhow::Result<Command> {
    let cache = if caches == Caches::Responses { "cache = { entries = 100000 }" } else { "" };
    let text = format!(
        "service \"dns\" {{ protocol = \"dns\", listen = \"127.0.0.1:{port}\", \"{}\", dns = {{ sockets = 4, {cache} }} }}\n",
        server()
    );
    let file = ground.write(&format!("evener-{port}.lua"), &text)?;
    let mut command = Command::new(&ground.binary);
    command.arg("run").arg(file);
    alone(&mut command, ground, port);
    Ok(command)
}

fn pen(_: &Ground, port: u16) -> anyhow::Result<Command> {
    let mut command = Command::new("pen");
    command.args(["-U", "-r", "-f", "-x", "4096", "-c", "8192"]);
    command.args([format!("127.0.0.1:{port}"), server()]);
    Ok(command)
}

fn nginx(ground: &Ground, port: u16) -> anyhow::Result<Command> {
    nginx_stream(ground, port, "udp", &[server()])
}

fn dnsdist(ground: &Ground, port: u16, caches: Caches) -> anyhow::Result<Command> {
    let cache = match caches {
        Caches::Responses => "getPool(\"\"):setCache(newPacketCache(100000))\n",
        Caches::Nothing => "",
    };
    let text = format!(
        "setLocal(\"127.0.0.1:{port}\")\nsetACL(\"127.0.0.0/8\")\nsetSecurityPollSuffix(\"\")\n\
         newServer({{address=\"{}\", healthCheckMode=\"up\", sockets=4}})\n{cache}",
        server()
    );
    let file = ground.write(&format!("dnsdist-{port}.conf"), &text)?;
    let mut command = Command::new("dnsdist");
    command.args(["--supervised", "--disable-syslog", "-C"]).arg(file);
    Ok(command)
}
