//! Commands for TLS, obsolete commands, and options that pen has only on its command line (so that a file can
//! express everything).

use super::{Step, Words};
use crate::compat::pen::state::{Slot, State};
use crate::config::nearest;
use std::path::PathBuf;

/// The commands of this file and of `command.rs`, for suggestions.
pub(super) const ALL: [&str; 69] = [
    "abort_on_error",
    "abuse",
    "acl",
    "ascii",
    "backlog",
    "blacklist",
    "block",
    "client_acl",
    "clients_max",
    "close",
    "conn_max",
    "connection",
    "control",
    "control_acl",
    "debug",
    "delayed_forward",
    "dsr_if",
    "dsr_ip",
    "dummy",
    "emergency",
    "epoll",
    "exit",
    "forget",
    "geoip",
    "hash",
    "http",
    "idle_timeout",
    "idlers",
    "include",
    "keepalive",
    "kqueue",
    "listen",
    "log",
    "mode",
    "no",
    "peek",
    "pending_max",
    "pid",
    "poll",
    "prio",
    "recent",
    "roundrobin",
    "select",
    "server",
    "servers",
    "socket",
    "source",
    "ssl_ca",
    "ssl_ca_directory",
    "ssl_certificate",
    "ssl_ciphers",
    "ssl_client_renegotiation_interval",
    "ssl_key",
    "ssl_ocsp_response",
    "ssl_option",
    "ssl_require_peer",
    "ssl_sni_path",
    "status",
    "stubborn",
    "tarpit_acl",
    "tcp_fastclose",
    "tcp_nodelay",
    "timeout",
    "tracking",
    "transparent",
    "udp",
    "web_stats",
    "weight",
    "write",
];

/// Beginning of an error that the control port reports in pen's own words.
pub(in crate::compat::pen) const UNKNOWN: &str = "there is no command ";

/// Options of OpenSSL in `ssl_option`, with their meaning here.
const SSL_OPTIONS: [&str; 6] =
    ["no_sslv2", "no_sslv3", "no_tlsv1", "no_tlsv1.1", "no_tlsv1.2", "cipher_server_preference"];

pub(super) fn run(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    let tls = &mut state.tls;
    let path = |words: &Words<'_>| words.one("a file").map(|path| Some(PathBuf::from(path)));
    match words.verb {
        "ssl_ciphers" => {
            tls.ciphers = words.optional()?.map(str::to_owned);
            let why = "ssl_ciphers: the list is not used; all supported cipher suites are strong";
            return Ok(vec![Step::Warn(why.into())]);
        }
        "ssl_option" => return ssl_option(state, words.one("an option")?),
        "ssl_ocsp_response" => tls.ocsp = path(words)?,
        "ssl_sni_path" => tls.sni_path = path(words)?,
        "ssl_certificate" => tls.certificate = path(words)?,
        "ssl_key" => tls.key = path(words)?,
        "ssl_ca" => tls.ca_file = path(words)?,
        "ssl_ca_directory" => tls.ca_directory = path(words)?,
        "ssl_require_peer" => words.none().map(|()| tls.required = true)?,
        "geoip" => {
            state.geoip = path(words)?;
            state.countries.renew(state.geoip.as_deref()).map_err(|error| format!("geoip: {error}"))?;
        }
        "udp" => words.none().map(|()| state.udp = true)?,
        "forget" => words.none().map(|()| state.forget = true)?,
        "emergency" => state.emergency = Some(special(state, words)?),
        "abuse" => state.abuse = Some(special(state, words)?),
        "tarpit_acl" => return tarpit(words),
        "dsr_if" => {
            let why = "dsr_if: direct server return is not supported yet; without it servers respond through this \
                       program, which is not the same";
            return Err(why.into());
        }
        verb => {
            let hint = nearest(verb, ALL.into_iter());
            return Err(format!("{UNKNOWN}'{verb}'{hint}"));
        }
    }
    Ok(Vec::new())
}

/// Executes `no WORD` for the commands of this file.
pub(super) fn no(state: &mut State, words: &Words<'_>) -> Result<Vec<Step>, String> {
    words.none()?;
    let tls = &mut state.tls;
    match words.verb {
        "abuse" => state.abuse = None,
        "emergency" => state.emergency = None,
        "forget" => state.forget = false,
        "geoip" => state.geoip = None,
        "ssl_ca" => tls.ca_file = None,
        "ssl_ca_directory" => tls.ca_directory = None,
        "ssl_certificate" => tls.certificate = None,
        "ssl_key" => tls.key = None,
        "ssl_ocsp_response" => tls.ocsp = None,
        "ssl_option" => tls.options.clear(),
        "ssl_require_peer" => tls.required = false,
        "ssl_sni_path" => tls.sni_path = None,
        "udp" => state.udp = false,
        verb => {
            let hint = nearest(verb, ALL.into_iter());
            return Err(format!("no {verb}: there is nothing of that name to turn off{hint}"));
        }
    }
    Ok(Vec::new())
}

/// Parses the emergency server or the abuse server.
fn special(state: &State, words: &Words<'_>) -> Result<Slot, String> {
    Slot::parse(words.one("an address")?, state.listen.as_ref().and_then(super::Listen::port))
}

fn ssl_option(state: &mut State, option: &str) -> Result<Vec<Step>, String> {
    if !SSL_OPTIONS.contains(&option) {
        let all = SSL_OPTIONS.join(", ");
        return Err(format!(
            "ssl_option: `{option}` is not one of {all}{}",
            nearest(option, SSL_OPTIONS.into_iter())
        ));
    }
    if !state.tls.options.iter().any(|known| known == option) {
        state.tls.options.push(option.to_owned());
    }
    Ok(Vec::new())
}

/// Executes `tarpit_acl`. pen's tarpit sends raw frames from unused addresses.
fn tarpit(words: &Words<'_>) -> Result<Vec<Step>, String> {
    match words.optional()? {
        None => Ok(vec![Step::Say("tarpit_acl = -1".into())]),
        Some("-1") => Ok(vec![Step::Say("tarpit_acl = -1".into())]),
        Some(_) => Err("tarpit_acl: it needs direct server return, which is not supported yet".into()),
    }
}
