//! The configuration as Lua, with a comment for each virtual server that names its line.

use super::{Check, Imported, Probe, RealServer, VirtualServer};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Returns the configuration as text.
pub(super) fn print(file: &str, imported: &Imported) -> String {
    let mut out = format!("-- Imported from {file}.\n");
    if !imported.notes.is_empty() {
        out += "--\n-- Not taken over:\n";
        for note in &imported.notes {
            let _ = writeln!(out, "--   {}", note.replace('\n', " "));
        }
    }
    if uses_success(imported) {
        out += "\n-- keepalived takes each status of success.\n";
        out += "local success = {}\nfor status = 200, 299 do success[#success + 1] = status end\n";
    }
    let programs: Vec<String> = programs(imported).into_iter().cloned().collect();
    if !programs.is_empty() {
        let _ = writeln!(out, "\nexec {{ allow = {{ {} }} }}", quoted(&programs));
    }
    for server in &imported.servers {
        out += "\n";
        print_server(server, &mut out);
    }
    out
}

fn print_server(server: &VirtualServer, out: &mut String) {
    let mut keys = vec!["plane = \"ipvs\"".to_owned()];
    if let Some(mark) = server.mark {
        keys.push(format!("fwmark = {mark}"));
    }
    keys.extend(list("listen", &server.listen));
    if server.protocol != "tcp" {
        keys.push(format!("protocol = {:?}", server.protocol));
    }
    keys.push(format!("forward = {:?}, scheduler = {:?}", server.forward, server.scheduler));
    if let Some(port) = server.tunnel_port {
        keys.push(format!("tunnel = {{ port = {port} }}"));
    }
    let flags: Vec<String> = ["fallback", "port"]
        .into_iter()
        .filter(|flag| server.scheduler_flags.contains(flag))
        .map(str::to_owned)
        .collect();
    keys.extend(list("scheduler_flags", &flags));
    if server.is_one_packet {
        keys.push("one_packet = true".into());
    }
    keys.extend(persistence(server));
    if server.inhibits {
        keys.push("inhibit_on_failure = true".into());
    }
    if let Some(quorum) = server.quorum {
        // keepalived ignores a hysteresis that is not less than the quorum.
        let hysteresis = server.hysteresis.filter(|hysteresis| (1..quorum).contains(hysteresis));
        let hysteresis = hysteresis.map(|weight| format!(", hysteresis = {weight}")).unwrap_or_default();
        keys.push(format!("quorum = {quorum}{hysteresis}"));
    }
    if !server.hooks.is_empty() {
        let hooks: Vec<String> =
            server.hooks.iter().map(|(key, program)| format!("{key} = {{ {} }}", quoted(program))).collect();
        keys.push(format!("notify = {{ {} }}", hooks.join(", ")));
    }
    keys.extend(shared_check(server));
    let _ = writeln!(out, "-- {}", server.location);
    let _ = writeln!(out, "service {:?} {{", server.name);
    for key in keys {
        let _ = writeln!(out, "  {key},");
    }
    for real in &server.servers {
        let mut keys = Vec::new();
        keys.extend(real.weight.filter(|weight| *weight != 1).map(|weight| match weight {
            0 => "state = \"drain\"".to_owned(),
            weight => format!("weight = {weight}"),
        }));
        keys.extend(real.upper.map(|upper| match real.lower.filter(|lower| (1..upper).contains(lower)) {
            Some(lower) => format!("max = {lower}, hard = {upper}"),
            None => format!("max = {upper}"),
        }));
        keys.extend(single_check(server, real));
        let braces = if keys.is_empty() { String::new() } else { format!(" {{ {} }}", keys.join(", ")) };
        let address = if has_ports(server) { &real.address } else { host_of(&real.address).0 };
        let _ = writeln!(out, "  server {address:?}{braces},{}", line_of(real));
    }
    if let Some(sorry) = &server.sorry {
        let address = if has_ports(server) { sorry } else { host_of(sorry).0 };
        let _ = writeln!(out, "  sorry = {address:?},");
    }
    out.push_str("}\n");
}

fn line_of(real: &RealServer) -> String {
    real.line.map(|line| format!(" -- line {line}")).unwrap_or_default()
}

/// Returns true if the addresses of the service have ports; otherwise its servers have none, either.
fn has_ports(server: &VirtualServer) -> bool {
    server.listen.iter().any(|address| host_of(address).1.is_some())
}

/// Splits an address into its host and its port.
fn host_of(address: &str) -> (&str, Option<u16>) {
    let is_with_port = address.parse::<std::net::SocketAddr>().is_ok();
    match address.rsplit_once(':').filter(|_| is_with_port) {
        Some((host, port)) => (host.trim_matches(['[', ']']), port.parse().ok()),
        None => (address, None),
    }
}

fn list(key: &str, values: &[String]) -> Option<String> {
    let shown: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    match &shown[..] {
        [] => None,
        [one] => Some(format!("{key} = {one}")),
        several => Some(format!("{key} = {{ {} }}", several.join(", "))),
    }
}

fn persistence(server: &VirtualServer) -> Option<String> {
    let given = server.persistence.as_ref()?;
    let mut keys = vec![format!("timeout = \"{}s\"", given.seconds.unwrap_or(360))];
    let is_v6 = server.listen.iter().any(|address| address.matches(':').count() > 1);
    keys.extend(given.prefix.map(|length| format!("{} = {length}", if is_v6 { "v6" } else { "v4" })));
    if given.is_sip {
        keys.push("engine = \"sip\"".into());
    }
    Some(format!("persistence = {{ {} }}", keys.join(", ")))
}

/// Returns the check that the servers share. Returns `None` if their checks differ, or if they have none.
fn shared_check(server: &VirtualServer) -> Option<String> {
    let Some((_, first)) = checks(server).next() else {
        return server.has_default_check.then(|| "check = \"tcp\"".to_owned());
    };
    let port = server.servers.iter().find_map(|real| host_of(&real.address).1);
    is_shared(server, first).then(|| format!("check = {}", check(server, first, port)))
}

/// Returns the check of one server, unless the servers share a check.
fn single_check(server: &VirtualServer, real: &RealServer) -> Option<String> {
    let (_, first) = checks(server).next()?;
    let check_of_real = real.check.as_ref().filter(|_| !is_shared(server, first))?;
    Some(format!("check = {}", check(server, check_of_real, host_of(&real.address).1)))
}

/// Returns true if each server has the check `first`.
fn is_shared(server: &VirtualServer, first: &Check) -> bool {
    server.servers.iter().all(|real| real.check.as_ref() == Some(first))
}

/// Returns the servers that have a check, with their checks.
fn checks(server: &VirtualServer) -> impl Iterator<Item = (&RealServer, &Check)> {
    server.servers.iter().filter_map(|real| Some((real, real.check.as_ref()?)))
}

/// Writes a check. `port` is the port of the servers that have the check.
fn check(server: &VirtualServer, check: &Check, port: Option<u16>) -> String {
    let (kind, mut keys) = match &check.probe {
        Probe::Tcp => ("tcp", Vec::new()),
        Probe::Http { is_tls, path, host, statuses, digest, regex } => {
            let mut keys = vec![format!("path = {path:?}")];
            keys.extend(host.iter().map(|host| format!("host = {host:?}")));
            keys.push(format!("status = {}", statuses_in_lua(statuses)));
            keys.extend(digest.iter().map(|digest| format!("digest = {digest:?}")));
            keys.extend(regex.iter().map(|regex| format!("regex = {regex:?}")));
            // keepalived does not verify certificates.
            keys.extend(is_tls.then(|| "verify = false".to_owned()));
            (if *is_tls { "https" } else { "http" }, keys)
        }
        Probe::Dns { name, kind } => ("dns", vec![format!("name = {name:?}, type = {kind:?}")]),
        Probe::Smtp { helo } => ("smtp", helo.iter().map(|helo| format!("helo = {helo:?}")).collect()),
        Probe::Exec(program) => ("exec", vec![quoted(program)]),
        Probe::Udp { send } => ("udp", vec![format!("send = \"{send}\"")]),
    };
    // keepalived probes a server that failed again after a shorter pause; Evener always waits the shorter one.
    let usual_retries = match kind {
        "exec" => 0,
        "tcp" => 1,
        _ => 3,
    };
    let retries = check.retries.or(server.retries).unwrap_or(usual_retries);
    let every = check.every.unwrap_or(server.every);
    let pause = check.retry_pause.or(server.retry_pause).unwrap_or(if kind == "tcp" { 1000 } else { 3000 });
    let every = if retries > 0 { every.min(pause) } else { every }.max(100);
    // A program may take the whole interval.
    let usual_timeout = if kind == "exec" { every } else { server.timeout };
    let timeout = check.timeout.unwrap_or(usual_timeout).clamp(1, 60_000);
    keys.push(format!("every = {}, timeout = {}", duration(every), duration(timeout)));
    let warm_up = check.warm_up.or(server.warm_up).filter(|delay| *delay > 0);
    keys.extend(warm_up.map(|delay| format!("warm_up = {}", duration(delay))));
    keys.push(format!("rise = 1, fall = {}", retries.saturating_add(1)));
    let of_server = port.filter(|_| !has_ports(server));
    keys.extend(check.port.or(of_server).map(|port| format!("port = {port}")));
    format!("check.{kind} {{ {} }}", keys.join(", "))
}

/// Returns the items of a list of texts.
fn quoted(texts: &[String]) -> String {
    texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(", ")
}

/// Returns the paths of the programs that a configuration runs.
fn programs(imported: &Imported) -> BTreeSet<&String> {
    let hooks = imported.servers.iter().flat_map(|server| server.hooks.values());
    let checks =
        imported.servers.iter().flat_map(|server| &server.servers).filter_map(|real| real.check.as_ref());
    let of_checks = checks.filter_map(|check| match &check.probe {
        Probe::Exec(program) => Some(program),
        _ => None,
    });
    hooks.chain(of_checks).filter_map(|program| program.first()).collect()
}

fn duration(milliseconds: u64) -> String {
    match milliseconds % 1000 {
        0 => format!("\"{}s\"", milliseconds / 1000),
        _ => format!("\"{milliseconds}ms\""),
    }
}

/// Returns true if a check takes each status of success.
fn uses_success(imported: &Imported) -> bool {
    let checks =
        imported.servers.iter().flat_map(|server| &server.servers).filter_map(|real| real.check.as_ref());
    let mut probes = checks.map(|check| &check.probe);
    probes.any(|probe| matches!(probe, Probe::Http { statuses, .. } if is_success(statuses)))
}

fn is_success(statuses: &[u16]) -> bool {
    statuses.iter().copied().eq(200..=299)
}

fn statuses_in_lua(statuses: &[u16]) -> String {
    match statuses {
        _ if is_success(statuses) => "success".into(),
        [one] => one.to_string(),
        several => {
            let shown: Vec<String> = several.iter().map(u16::to_string).collect();
            format!("{{ {} }}", shown.join(", "))
        }
    }
}
