//! `write`: writes a file of commands that restores the same settings.

use super::PenSettings;
use super::command::quote;
use super::slot::Slot;

impl PenSettings {
    /// Returns the whole file. `heading` has comment lines without `#`. A setting that does not fit into a line
    /// is an error.
    pub(in crate::compat::pen) fn write(&self, heading: &[String]) -> Result<String, String> {
        let mut lines: Vec<String> = heading.iter().map(|text| format!("# {text}")).collect();
        lines.extend(texts(self)?.into_iter().map(|(name, text)| match text {
            Some(text) => format!("{name} {text}"),
            None => format!("no {name}"),
        }));
        lines.extend(self.access.command_lines());
        lines.extend(switches(self).map(|(name, on)| if on { name.into() } else { format!("no {name}") }));
        lines.extend(numbers(self).map(|(name, number)| format!("{name} {number}")));
        lines.push(format!("tcp_fastclose {}", self.fast_close.name()));
        lines.extend(self.tls.option_lines());
        lines.extend(self.servers.iter().enumerate().map(|(number, slot)| slot.command(number)));
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }
}

fn switches(settings: &PenSettings) -> [(&'static str, bool); 16] {
    [
        ("udp", settings.udp),
        ("hash", settings.hash),
        ("forget", settings.forget),
        ("roundrobin", settings.roundrobin),
        ("stubborn", settings.stubborn),
        ("weight", settings.weight),
        ("prio", settings.prio),
        ("http", settings.http),
        ("dummy", settings.dummy),
        ("ascii", settings.ascii),
        ("abort_on_error", settings.abort_on_error),
        ("peek", settings.peek),
        ("keepalive", settings.keepalive),
        ("tcp_nodelay", settings.tcp_nodelay),
        ("transparent", settings.transparent),
        ("ssl_require_peer", settings.tls.is_client_certificate_required()),
    ]
}

fn numbers(settings: &PenSettings) -> [(&'static str, u32); 12] {
    [
        ("blacklist", settings.blacklist),
        ("timeout", settings.timeout),
        ("tracking", settings.tracking),
        ("idle_timeout", settings.idle_timeout),
        ("clients_max", settings.clients_max()),
        ("conn_max", settings.conn_max()),
        ("pending_max", settings.pending_max),
        ("idlers", settings.idlers),
        ("backlog", settings.backlog),
        ("debug", settings.debug),
        ("client_acl", settings.client_acl as u32),
        ("control_acl", settings.control_acl as u32),
    ]
}

/// Name of a command, and its argument.
type NamedText = (&'static str, Option<String>);

fn texts(settings: &PenSettings) -> Result<Vec<NamedText>, String> {
    let path = |path: Option<&std::path::Path>| path.map(|path| path.display().to_string());
    let texts = [
        ("listen", settings.listen.as_ref().map(ToString::to_string)),
        ("log", settings.log.as_ref().map(ToString::to_string)),
        ("web_stats", path(settings.web_stats.as_deref())),
        ("source", settings.source.map(|address| address.to_string())),
        ("geoip", path(settings.access.geoip_file())),
        ("emergency", settings.emergency.as_ref().map(Slot::argument)),
        ("abuse", settings.abuse.as_ref().map(Slot::argument)),
        ("dsr_if", settings.dsr_if.clone()),
        ("tarpit_acl", settings.tarpit_acl.map(|number| number.to_string())),
    ];
    let written = |(name, text): NamedText| {
        let wrong = |text: &str| format!("write: {name} cannot be written in a line: {text:?}");
        let quoted = text.map(|text| quote(&text).ok_or_else(|| wrong(&text))).transpose()?;
        Ok((name, quoted))
    };
    // Without a listen address there is no `listen` line.
    let texts = texts.into_iter().chain(settings.tls.files());
    texts.filter(|(name, text)| *name != "listen" || text.is_some()).map(written).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_restores_the_same_settings() {
        let mut settings = PenSettings::default();
        let directory = std::env::temp_dir();
        let file = directory.join(format!("evener-pen-write-{}", std::process::id()));
        let lines = "listen [::1]:8080\nacl 1 permit 10.0.0.0 255.0.255.0\nacl 1 deny ::1/128\n\
            blacklist 7\ntimeout 9\ntracking 60\nidle_timeout 5\nclients_max 4000\nconn_max 20\npending_max 4\nidlers 2\n\
            debug 1\nclient_acl 1\ncontrol_acl 9\nhash\nforget\nroundrobin\nstubborn\nweight\nprio\nhttp\ndummy\nkeepalive\n\
            tcp_nodelay\ntransparent\ntcp_fastclose up\nlog '/tmp/my requests'\nweb_stats /tmp/web.html\nsource 127.0.0.9\n\
            geoip /tmp/x.mmdb\nemergency [::1]:99\nabuse 10.0.0.9:98:1:2:3:-4\nssl_certificate /c\nssl_key /k\nssl_ca /a\n\
            ssl_ca_directory /d\nssl_require_peer\nssl_sni_path /s\nssl_ocsp_response /o\nssl_option no_tlsv1.2\n\
            ssl_ciphers HIGH\ndsr_if eth1\ntarpit_acl 1\nbacklog 77\nascii\nabort_on_error\n\
            server 0 address 10.0.0.1 port 80 max 1 hard 2 weight 3 prio -4 acl 5\nserver 3 address ::2 port 81\nserver 5 max 7\n";
        std::fs::write(&file, lines).expect("a file");
        settings.read_file(&file).expect("valid");
        std::fs::write(&file, settings.write(&["a comment".into()]).expect("the settings can be written"))
            .expect("a file");
        let mut again = PenSettings::default();
        again.read_file(&file).expect("valid");
        assert_eq!(again, settings);
        let mut other = settings.clone();
        other.read_file(&file).expect("valid");
        assert_eq!(other, settings, "reading the file again changes nothing");
        std::fs::remove_file(&file).expect("the file");
    }
}
