//! Warnings about settings that work but are probably mistakes.

use super::state::{ListenTo, State};

/// Returns warnings, each about one setting.
pub(super) fn advice(state: &State) -> Vec<String> {
    let log = state.log.as_ref().filter(|_| state.udp);
    [
        (!state.servers.iter().any(super::state::Slot::is_used)).then(|| {
            "there is no server yet, so clients are refused: give servers after the port, or `server N address A port P` \
             in a file (-F) or by penctl (-C)"
                .into()
        }),
        state.tls.is_in_vain().then(|| {
            "-K, -G, -A, -R and ssl_sni_path have no effect without -E: clients are served without TLS".into()
        }),
        (state.udp && state.http).then(|| "-H has no effect with -U: HTTP goes over TCP".into()),
        log.map(|log| format!("-l {} has no effect with -U: only connections have requests to log", log.text)),
        to_itself(state),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Returns a warning if a server is a listen address of this program, which would send every client back to
/// itself.
fn to_itself(state: &State) -> Option<String> {
    let ListenTo::Ip(address, port) = &state.listen.as_ref()?.to else { return None };
    let is_ours = |server: &std::net::IpAddr| {
        server == address
            || server.is_loopback() && address.is_unspecified() && server.is_ipv4() == address.is_ipv4()
    };
    let number = state
        .servers
        .iter()
        .position(|slot| slot.port == *port && slot.address.as_ref().is_some_and(is_ours));
    number.map(|number| {
        format!("server {number} is this program itself: clients would be forwarded without end")
    })
}

#[cfg(test)]
mod tests {
    use super::super::line::{Wanted, parse};
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &[&str]) {
        let Ok(Wanted::Run(parsed)) = parse(line.split(' ').map(Into::into).collect()) else {
            panic!("{line}")
        };
        let seen = advice(&parsed.state);
        assert_eq!(seen.len(), expected.len(), "{line}: {seen:?}");
        expected.iter().zip(&seen).for_each(|(part, text)| assert!(text.contains(part), "{line}: {text}"));
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
