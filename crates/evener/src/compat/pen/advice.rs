//! What can be run but is hardly meant so: whoever starts it is told.

use super::state::{ListenTo, State};

/// Sentences, each about one thing.
pub(super) fn advice(state: &State) -> Vec<String> {
    let log = state.log.as_ref().filter(|_| state.udp);
    [
        (!state.servers.iter().any(super::state::Slot::is_used)).then(|| {
            "there is no server yet, and clients are turned away: name servers after the port, or `server N address A port P` \
             in a file (-F) or by penctl (-C)"
                .into()
        }),
        state.tls.is_in_vain().then(|| {
            "-K, -G, -A, -R and ssl_sni_path mean nothing without -E: clients are served without TLS".into()
        }),
        (state.udp && state.http).then(|| "-H means nothing with -U: HTTP goes over TCP".into()),
        log.map(|log| format!("-l {} means nothing with -U: only connections have requests to log", log.text)),
        to_itself(state),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A server at which we listen ourselves gives every client back to us, until nothing is left.
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
    number.map(|number| format!("server {number} is this program itself: clients would go round in circles"))
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
    fn what_is_hardly_meant_so_is_said_and_nothing_else() {
        check("80 10.0.0.1", &[]);
        check("-E x -K y -R 80 10.0.0.1", &[]);
        check("80", &["no server yet"]);
        check("-R 80 10.0.0.1", &["without TLS"]);
        check("-UH -l x 80 10.0.0.1", &["-H means nothing", "-l x means nothing"]);
        check("80 10.0.0.1 127.0.0.1", &["server 1 is this program itself"]);
        check("10.0.0.1:80 127.0.0.1", &[]);
        check("127.0.0.1:80 127.0.0.1:81", &[]);
        check(":::80 [::1]", &["server 0 is this program itself"]);
    }
}
