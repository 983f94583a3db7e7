//! `write`: writes a file of commands that restores the same settings.

use super::command::quote;
use super::lists::LISTS;
use super::state::{Slot, State};
use evener_core::acl::Access;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Returns the whole file. `heading` has comment lines without `#`. A setting that does not fit into a line is
/// an error.
pub(super) fn write(state: &State, heading: &[String]) -> Result<String, String> {
    let mut out = String::new();
    let texts = texts(state)?;
    let mut line = |text: String| out.extend([text.as_str(), "\n"]);
    heading.iter().for_each(|text| line(format!("# {text}")));
    texts.into_iter().for_each(|(name, text)| match text {
        Some(text) => line(format!("{name} {text}")),
        None => line(format!("no {name}")),
    });
    for number in 0..LISTS {
        line(format!("no acl {number}"));
        let list = &state.lists[number];
        list.entries().for_each(|entry| line(format!("acl {number} {entry}")));
        if list.entries().next().is_some() {
            let otherwise = if list.otherwise() == Access::Permit { "permit" } else { "deny" };
            line(format!("# acl {number} {otherwise} all others, the inverse of its last entry"));
        }
    }
    switches(state)
        .into_iter()
        .for_each(|(name, on)| line(if on { name.into() } else { format!("no {name}") }));
    numbers(state).into_iter().for_each(|(name, number)| line(format!("{name} {number}")));
    line(format!("tcp_fastclose {}", state.fast_close.name()));
    line("no ssl_option".into());
    state.tls.options.iter().for_each(|option| line(format!("ssl_option {option}")));
    if let Some(ciphers) = &state.tls.ciphers {
        line(format!("ssl_ciphers {ciphers}"));
    }
    for (number, slot) in state.servers.iter().enumerate() {
        line(server(number, slot));
    }
    Ok(out)
}

fn switches(state: &State) -> [(&'static str, bool); 16] {
    [
        ("udp", state.udp),
        ("hash", state.hash),
        ("forget", state.forget),
        ("roundrobin", state.roundrobin),
        ("stubborn", state.stubborn),
        ("weight", state.weight),
        ("prio", state.prio),
        ("http", state.http),
        ("dummy", state.dummy),
        ("ascii", state.ascii),
        ("abort_on_error", state.abort_on_error),
        ("peek", state.peek),
        ("keepalive", state.keepalive),
        ("tcp_nodelay", state.tcp_nodelay),
        ("transparent", state.transparent),
        ("ssl_require_peer", state.tls.required),
    ]
}

fn numbers(state: &State) -> [(&'static str, u32); 12] {
    [
        ("blacklist", state.blacklist),
        ("timeout", state.timeout),
        ("tracking", state.tracking),
        ("idle_timeout", state.idle_timeout),
        ("clients_max", state.clients_max()),
        ("conn_max", state.conn_max()),
        ("pending_max", state.pending_max),
        ("idlers", state.idlers),
        ("backlog", state.backlog),
        ("debug", state.debug),
        ("client_acl", state.client_acl as u32),
        ("control_acl", state.control_acl as u32),
    ]
}

type Named = (&'static str, Option<String>);

fn texts(state: &State) -> Result<Vec<Named>, String> {
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let tls = &state.tls;
    let texts = [
        ("listen", state.listen.as_ref().map(|listen| listen.text.clone())),
        ("log", state.log.as_ref().map(|log| log.text.clone())),
        ("web_stats", path(&state.web_stats)),
        ("source", state.source.map(|address| address.to_string())),
        ("geoip", path(&state.geoip)),
        ("emergency", state.emergency.as_ref().map(special)),
        ("abuse", state.abuse.as_ref().map(special)),
        ("ssl_certificate", path(&tls.certificate)),
        ("ssl_key", path(&tls.key)),
        ("ssl_ca", path(&tls.ca_file)),
        ("ssl_ca_directory", path(&tls.ca_directory)),
        ("ssl_sni_path", path(&tls.sni_path)),
        ("ssl_ocsp_response", path(&tls.ocsp)),
    ];
    let written = |(name, text): Named| {
        let wrong = |text: &str| format!("write: {name} cannot be written in a line: {text:?}");
        let quoted = text.map(|text| quote(&text).ok_or_else(|| wrong(&text))).transpose()?;
        Ok((name, quoted))
    };
    // Without a listen address there is no such line.
    texts.into_iter().filter(|(name, text)| *name != "listen" || text.is_some()).map(written).collect()
}

/// Formats a server as on the command line.
fn special(slot: &Slot) -> String {
    let address = match slot.address {
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        Some(address) => address.to_string(),
        None => String::new(),
    };
    format!("{address}:{}:{}:{}:{}:{}", slot.port, slot.max, slot.hard, slot.weight, slot.prio)
}

fn server(number: usize, slot: &Slot) -> String {
    let Slot { address, port, max, hard, weight, prio, acl } = slot;
    let mut text = format!("server {number} acl {acl}");
    if let Some(address) = address {
        let _ = write!(text, " address {address}");
    }
    if *port != 0 {
        let _ = write!(text, " port {port}");
    }
    let _ = write!(text, " max {max} hard {hard} weight {weight} prio {prio}");
    text
}

#[cfg(test)]
mod tests {
    use super::super::command::read;
    use super::*;

    #[test]
    fn a_written_file_restores_the_same_settings() {
        let mut state = State::default();
        let directory = std::env::temp_dir();
        let file = directory.join(format!("evener-pen-write-{}", std::process::id()));
        let lines = "listen [::1]:8080\nacl 1 permit 10.0.0.0 255.0.255.0\nacl 1 deny ::1/128\n\
            blacklist 7\ntimeout 9\ntracking 60\nidle_timeout 5\nclients_max 4000\nconn_max 20\npending_max 4\nidlers 2\n\
            debug 1\nclient_acl 1\ncontrol_acl 9\nhash\nforget\nroundrobin\nstubborn\nweight\nprio\nhttp\ndummy\nkeepalive\n\
            tcp_nodelay\ntransparent\ntcp_fastclose up\nlog '/tmp/my requests'\nweb_stats /tmp/web.html\nsource 127.0.0.9\n\
            geoip /tmp/x.mmdb\nemergency [::1]:99\nabuse 10.0.0.9:98:1:2:3:-4\nssl_certificate /c\nssl_key /k\nssl_ca /a\n\
            ssl_ca_directory /d\nssl_require_peer\nssl_sni_path /s\nssl_ocsp_response /o\nssl_option no_tlsv1.2\n\
            ssl_ciphers HIGH\nbacklog 77\nascii\nabort_on_error\n\
            server 0 address 10.0.0.1 port 80 max 1 hard 2 weight 3 prio -4 acl 5\nserver 3 address ::2 port 81\nserver 5 max 7\n";
        std::fs::write(&file, lines).expect("a file");
        read(&mut state, &file).expect("valid");
        std::fs::write(&file, write(&state, &["a comment".into()]).expect("the settings can be written"))
            .expect("a file");
        let mut again = State::default();
        read(&mut again, &file).expect("valid");
        assert_eq!(again, state);
        let mut other = state.clone();
        read(&mut other, &file).expect("valid");
        assert_eq!(other, state, "reading it over the same settings changes nothing");
        std::fs::remove_file(&file).expect("the file");
    }
}
