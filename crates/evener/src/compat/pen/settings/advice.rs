//! Warnings about settings that work but are probably mistakes.

use super::{PenSettings, Slot};

impl PenSettings {
    /// Returns warnings, each about one setting.
    pub(in crate::compat::pen) fn advice(&self) -> Vec<String> {
        let log = self.log.as_ref().filter(|_| self.udp);
        [
            (!self.servers.iter().any(Slot::is_used)).then(|| {
                "there is no server yet, so clients are refused: give servers after the port, or `server N address A port P` \
                 in a file (-F) or by penctl (-C)"
                    .into()
            }),
            self.tls.lacks_certificate().then(|| {
                "-K, -G, -A, -R and ssl_sni_path have no effect without -E: clients are served without TLS".into()
            }),
            (self.udp && self.http).then(|| "-H has no effect with -U: HTTP goes over TCP".into()),
            log.map(|log| format!("-l {log} has no effect with -U: only connections have requests to log")),
            self.loop_warning(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Returns a warning if a server is a listen address of this program, which would send every client back to
    /// the program.
    fn loop_warning(&self) -> Option<String> {
        let listen = self.listen.as_ref()?;
        let number = self.servers.iter().position(|slot| slot.is_at(listen));
        number.map(|number| {
            format!("server {number} is this program itself: clients would be forwarded without end")
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::compat::pen::run::{PenAction, parse};

    #[track_caller]
    fn check(line: &str, expected: &[&str]) {
        let Ok(PenAction::Run(parsed)) = parse(line.split(' ').map(Into::into).collect()) else {
            panic!("{line}")
        };
        let warnings = parsed.settings().advice();
        assert_eq!(warnings.len(), expected.len(), "{line}: {warnings:?}");
        expected
            .iter()
            .zip(&warnings)
            .for_each(|(part, text)| assert!(text.contains(part), "{line}: {text}"));
    }

    #[test]
    fn only_probable_mistakes_cause_warnings() {
        check("80 10.0.0.1", &[]);
        check("-E x -K y -R 80 10.0.0.1", &[]);
        check("80", &["no server yet"]);
        check("-R 80 10.0.0.1", &["without TLS"]);
        check("-UH -l x 80 10.0.0.1", &["-H has no effect", "-l x has no effect"]);
        check("80 10.0.0.1 127.0.0.1", &["server 1 is this program itself"]);
        check("10.0.0.1:80 127.0.0.1", &[]);
        check("127.0.0.1:80 127.0.0.1:81", &[]);
        check(":::80 [::1]", &["server 0 is this program itself"]);
    }
}
