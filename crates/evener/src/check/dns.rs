//! DNS checks: one query over UDP with a random port and ID. Datagrams that do not match the query are ignored
//! (RFC 5452, section 9.1). A response may be truncated.

use super::{CheckedServer, ProbeError, unspecified};
use evener_core::Target;
use evener_core::spec::CheckKind;
use evener_core::wire::dns::{self, Query};
use evener_core::wire::proxy::{self, Extras, Transport};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use tokio::net::UdpSocket;

/// Size of the largest datagram (RFC 768).
const RESPONSE_BYTES_MAX: usize = 65_536;

/// Sends a query to a server and judges the response. `Err` describes the failure.
pub(super) async fn probe(
    target: &Target,
    server: &CheckedServer,
    kind: &CheckKind,
) -> Result<(), ProbeError> {
    let CheckKind::Dns { name, qtype, rcode } = kind else { return Ok(()) };
    let Target::Ip(address) = target else { return Err("a dns check needs an IP address".to_owned().into()) };
    let name = dns::parse_name(name).map_err(|error| format!("dns: {error}"))?;
    let mut query = Vec::new();
    dns::emit_query(any_id(), &name, *qtype, &mut query);
    let response = exchange(*address, &query, server.send_proxy.is_some()).await;
    let response = response.map_err(|error| ProbeError::by_system("dns", &error))?;
    let seen = dns::rcode(&response);
    match rcode {
        Some(wanted) if *wanted != seen => Err(format!("dns: {}", dns::rcode_name(seen)).into()),
        _ => Ok(()),
    }
}

/// Returns an ID that cannot be guessed: the standard library seeds its hashers from the entropy of the
/// system.
fn any_id() -> u16 {
    RandomState::new().hash_one(()) as u16
}

/// Sends the query and waits for its response.
async fn exchange(address: SocketAddr, query: &[u8], with_proxy: bool) -> io::Result<Vec<u8>> {
    let parsed = Query::parse(query).map_err(io::Error::other)?;
    let socket = UdpSocket::bind(unspecified(address)).await?;
    // A connected socket receives only datagrams from this server, and ICMP errors about datagrams to this
    // server.
    socket.connect(address).await?;
    let mut datagram = Vec::new();
    if with_proxy {
        proxy::emit_v2(None, Transport::Datagram, &Extras::default(), &mut datagram);
    }
    datagram.extend_from_slice(query);
    socket.send(&datagram).await?;
    let mut response = vec![0; RESPONSE_BYTES_MAX];
    loop {
        let length = socket.recv(&mut response).await?;
        let seen = &response[..length];
        if dns::id(seen) == dns::id(query) && parsed.matches_response(query, seen) {
            return Ok(seen.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use crate::check::probe;
    use evener_core::health::Probe;
    use evener_core::spec::CheckSpec;
    use evener_core::wire::http::HeaderLimits;
    use evener_core::wire::proxy::Version;
    use std::time::Duration;

    /// Probes a server that sends the datagrams that `respond` returns for the query.
    async fn seen(
        rcode: Option<u8>,
        send_proxy: Option<Version>,
        respond: impl Fn(&[u8]) -> Vec<Vec<u8>>,
    ) -> Probe {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let target = Target::Ip(address);
        let server = CheckedServer {
            endpoint: address.to_string().parse().unwrap(),
            target,
            send_proxy,
            limits: HeaderLimits::default(),
        };
        let kind = CheckKind::Dns { name: "WWW.Example.org".into(), qtype: 28, rcode };
        let spec = CheckSpec { timeout: Duration::from_millis(300), ..CheckSpec::new(kind) };
        let serve = async {
            let mut query = [0; 512];
            let (length, client) = socket.recv_from(&mut query).await.unwrap();
            for response in respond(&query[..length]) {
                socket.send_to(&response, client).await.unwrap();
            }
        };
        tokio::join!(probe(&server, &spec), serve).0
    }

    /// Returns a response to the query, without records and with these flags.
    fn response(query: &[u8], flags: u16) -> Vec<u8> {
        let mut response = query.to_vec();
        response[2..4].copy_from_slice(&flags.to_be_bytes());
        response
    }

    const WELL: u16 = 0x8180;
    const TRUNCATED: u16 = 0x8380;
    const NXDOMAIN: u16 = 0x8183;

    #[tokio::test]
    async fn a_probe_passes_if_the_response_has_the_expected_code() {
        let check = async |flags: u16, rcode: Option<u8>, expected: Result<(), &str>| {
            let expected = expected.map_or_else(|why| Probe::Fail(why.into()), |()| Probe::Pass);
            let seen = seen(rcode, None, |query| vec![response(query, flags)]).await;
            assert_eq!(seen, expected, "{flags:04x} {rcode:?}");
        };
        check(WELL, Some(0), Ok(())).await;
        check(WELL, None, Ok(())).await;
        check(TRUNCATED, Some(0), Ok(())).await;
        check(NXDOMAIN, None, Ok(())).await;
        check(NXDOMAIN, Some(3), Ok(())).await;
        check(NXDOMAIN, Some(0), Err("dns: NXDOMAIN")).await;
        check(WELL, Some(3), Err("dns: NOERROR")).await;
    }

    #[tokio::test]
    async fn datagrams_that_do_not_match_the_query_are_ignored() {
        let wrong = |query: &[u8]| {
            let right = response(query, NXDOMAIN);
            let flipped = |at: usize, bit: u8| {
                let mut wrong = right.clone();
                wrong[at] ^= bit;
                wrong
            };
            // Another ID, name and type; the query itself; too few bytes.
            vec![flipped(0, 1), flipped(1, 0x80), flipped(14, 1), flipped(30, 1), query.to_vec(), vec![0; 3]]
        };
        let never = Probe::Fail("dns check: no response within 300ms".into());
        assert_eq!(seen(None, None, wrong).await, never);
        let late = |query: &[u8]| wrong(query).into_iter().chain([response(query, WELL)]).collect();
        assert_eq!(
            seen(Some(0), None, late).await,
            Probe::Pass,
            "a matching response must pass after datagrams that do not match"
        );
    }

    #[tokio::test]
    async fn a_server_that_expects_a_proxy_header_receives_a_header_without_a_client() {
        let respond = |datagram: &[u8]| {
            assert_eq!(
                &datagram[..14],
                b"\r\n\r\n\0\r\nQUIT\n\x20\0",
                "the header must be of version 2 and LOCAL"
            );
            let length = 16 + usize::from(u16::from_be_bytes([datagram[14], datagram[15]]));
            vec![response(&datagram[length..], WELL)]
        };
        assert_eq!(seen(None, Some(Version::V2), respond).await, Probe::Pass);
    }

    #[tokio::test]
    async fn a_probe_of_a_closed_port_fails_and_query_ids_differ() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let endpoint = address.to_string().parse().unwrap();
        let server = CheckedServer {
            endpoint,
            target: Target::Ip(address),
            send_proxy: None,
            limits: HeaderLimits::default(),
        };
        let kind = CheckKind::Dns { name: ".".into(), qtype: 2, rcode: None };
        assert_eq!(probe(&server, &CheckSpec::new(kind)).await, Probe::Fail("dns: refused".into()));
        let ids: std::collections::BTreeSet<u16> = (0..100).map(|_| any_id()).collect();
        assert!(ids.len() > 90, "{ids:?}");
    }
}
