//! Commands for options that pen has only on its command line, so that a file can express everything, and
//! commands that are not supported.

use super::{Step, Words, parse_list_number};
use crate::compat::pen::settings::{Listen, PenSettings, Slot, direct};
use crate::config::nearest;

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

/// Executes a command of this file, or one for TLS.
pub(super) fn run(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    if let Some(done) = settings.tls.execute(words) {
        return done;
    }
    match words.verb {
        "geoip" => {
            settings.access.set_geoip_file(Some(words.one("a file")?.into()));
            settings.access.renew_countries().map_err(|error| format!("geoip: {error}"))?;
        }
        "udp" => words.none().map(|()| settings.udp = true)?,
        "forget" => words.none().map(|()| settings.forget = true)?,
        "emergency" => settings.emergency = Some(special(settings, words)?),
        "abuse" => settings.abuse = Some(special(settings, words)?),
        "tarpit_acl" => return tarpit(settings, words),
        "dsr_if" => settings.dsr_if = Some(direct::interface(words.one("an interface")?)?.to_owned()),
        verb => {
            let hint = nearest(verb, ALL.into_iter());
            return Err(format!("{UNKNOWN}'{verb}'{hint}"));
        }
    }
    Ok(Vec::new())
}

/// Executes `no WORD` for the commands of this file and for TLS.
pub(super) fn no(settings: &mut PenSettings, words: &Words<'_>) -> Result<(), String> {
    words.none()?;
    if settings.tls.unset(words.verb) {
        return Ok(());
    }
    match words.verb {
        "abuse" => settings.abuse = None,
        "dsr_if" => settings.dsr_if = None,
        "tarpit_acl" => settings.tarpit_acl = None,
        "emergency" => settings.emergency = None,
        "forget" => settings.forget = false,
        "geoip" => settings.access.set_geoip_file(None),
        "udp" => settings.udp = false,
        verb => {
            let hint = nearest(verb, ALL.into_iter());
            return Err(format!("no {verb}: there is nothing of that name to turn off{hint}"));
        }
    }
    Ok(())
}

/// Parses the emergency server or the abuse server.
fn special(settings: &PenSettings, words: &Words<'_>) -> Result<Slot, String> {
    Slot::parse(words.one("an address")?, settings.listen.as_ref().and_then(Listen::port))
}

/// Executes `tarpit_acl`, for addresses that have no hosts. It has an effect together with `dsr_if`.
fn tarpit(settings: &mut PenSettings, words: &Words<'_>) -> Result<Vec<Step>, String> {
    if let Some(given) = words.optional()? {
        settings.tarpit_acl = if given == "-1" { None } else { Some(parse_list_number(given)?) };
    }
    let number = settings.tarpit_acl.map_or("-1".to_owned(), |number| number.to_string());
    Ok(vec![Step::Respond(format!("tarpit_acl = {number}"))])
}
