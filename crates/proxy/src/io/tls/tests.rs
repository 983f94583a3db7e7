//! TLS between two transports over a pair of sockets.

use super::*;
use crate::context::registry::Readiness;
use crate::io::relay::End;
use crate::io::transport::{Buffers, Received, Transport};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{RootCertStore, SupportedProtocolVersion, version};
use std::os::unix::net::UnixStream;

const NAME: &str = "www.example";

/// Both sides of a connection, and the buffers of their worker.
struct Fixture {
    client: Transport,
    server: Transport,
    buffers: Buffers,
}

/// The configurations of a server, and of a client that trusts it.
fn configs(versions: &[&'static SupportedProtocolVersion]) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    (Arc::new(server), Arc::new(client))
}

impl Fixture {
    /// Begins TLS on both sides; the client expects the certificate of `name`.
    fn begin(versions: &[&'static SupportedProtocolVersion], name: &str) -> Self {
        let (client, server) = UnixStream::pair().unwrap();
        [&client, &server].iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let (server_config, client_config) = configs(versions);
        let mut fixture = Self {
            client: Transport::new(client.into()),
            server: Transport::new(server.into()),
            buffers: Buffers::default(),
        };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        fixture.server.begin_tls(Tls::server(&server_config).unwrap(), &mut fixture.buffers);
        fixture.client.begin_tls(Tls::client(&client_config, name).unwrap(), &mut fixture.buffers);
        fixture
    }

    fn established(versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut fixture = Self::begin(versions, NAME);
        fixture.exchange();
        assert!(fixture.client.is_established() && fixture.server.is_established());
        fixture
    }

    /// Takes the place of the loop for both sides, with more rounds than any test needs.
    fn exchange(&mut self) {
        for _ in 0..100 {
            for side in [&mut self.client, &mut self.server] {
                side.on_event(Readiness { readable: true, writable: true, ..Readiness::default() });
                side.flush(&mut self.buffers);
                while side.receive(&mut self.buffers) == Received::Some {}
            }
        }
    }
}

#[test]
fn a_handshake_establishes_the_facts_of_the_client() {
    for (version, expected) in [(&version::TLS13, "TLSv1.3"), (&version::TLS12, "TLSv1.2")] {
        let fixture = Fixture::established(&[version]);
        let facts = fixture.server.tls().unwrap().facts(Some(NAME.to_owned()));
        assert_eq!(
            (facts.version, facts.alpn.as_deref(), facts.name.as_deref()),
            (expected, Some(&b"http/1.1"[..]), Some(NAME))
        );
        assert!(facts.cipher.starts_with("TLS_") && !facts.cipher.contains("TLS13"), "{}", facts.cipher);
        assert_eq!((facts.subject, facts.is_resumed), (None, false));
    }
}

#[test]
fn bytes_of_any_length_arrive_whole_in_both_directions() {
    let mut fixture = Fixture::established(&[&version::TLS13]);
    let sent: Vec<u8> = (0..100_000_u32).map(|number| (number % 251) as u8).collect();
    for length in [1, RECORD_BYTES_MAX - 1, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, sent.len()] {
        fixture.client.send(&sent[..length], &mut fixture.buffers);
        fixture.server.send(&sent[sent.len() - length..], &mut fixture.buffers);
        fixture.exchange();
        assert!(fixture.server.unread() == &sent[..length], "{length} bytes of the client");
        assert!(fixture.client.unread() == &sent[sent.len() - length..], "{length} bytes of the server");
        for side in [&mut fixture.client, &mut fixture.server] {
            side.consume(length);
            side.settle(&mut fixture.buffers);
        }
    }
}

#[test]
fn bytes_sent_before_the_handshake_follow_it() {
    let mut fixture = Fixture::begin(&[&version::TLS13], NAME);
    fixture.client.send(b"early", &mut fixture.buffers);
    assert!(fixture.client.pending() >= 5, "the bytes are queued");
    fixture.exchange();
    assert_eq!((fixture.server.unread(), fixture.client.pending()), (&b"early"[..], 0));
}

#[test]
fn an_end_with_close_notify_is_orderly_and_one_without_is_cut() {
    for is_orderly in [true, false] {
        let mut fixture = Fixture::established(&[&version::TLS13]);
        fixture.client.send(b"last", &mut fixture.buffers);
        if is_orderly {
            fixture.client.finish(&mut fixture.buffers);
            assert!(fixture.client.is_finished());
        } else {
            rustix::net::shutdown(fixture.client.socket(), rustix::net::Shutdown::Write).unwrap();
        }
        fixture.exchange();
        assert_eq!(fixture.server.unread(), b"last");
        assert_eq!((fixture.server.end(), fixture.server.is_cut()), (Some(End::Fin), !is_orderly));
    }
}

#[test]
fn a_certificate_of_another_name_fails_on_both_sides() {
    let mut fixture = Fixture::begin(&[&version::TLS13], "other.example");
    fixture.exchange();
    assert!(!fixture.client.is_established());
    let failures = [&fixture.client, &fixture.server]
        .map(|side| side.tls_failure().cloned().expect("the handshake failed"));
    assert!(matches!(failures[0], rustls::Error::InvalidCertificate(_)), "{:?}", failures[0]);
    assert!(
        matches!(failures[1], rustls::Error::AlertReceived(_)),
        "the server got an alert: {:?}",
        failures[1]
    );
}

#[test]
fn bytes_that_are_not_tls_cause_one_failure_with_one_alert() {
    let mut fixture = Fixture::begin(&[&version::TLS13], NAME);
    let (mut plain, mut out) = (Vec::new(), Vec::new());
    let (server, _) = configs(&[&version::TLS13]);
    let mut tls = Tls::server(&server).unwrap();
    let opened = tls.open(&mut Buffer::from(&b"GET / HTTP/1.1\r\n\r\n"[..]), &mut plain, &mut out);
    assert!(opened.failure.is_some() && !opened.is_established && plain.is_empty());
    // One alert record (RFC 8446, section 5.1): its type, the version, two bytes.
    assert_eq!((out.len(), out[0]), (7, 21));
    // Half a record is not a failure.
    fixture.exchange();
    let mut half = Buffer::from(&[22, 3, 1, 0, 200, 1, 0][..]);
    let opened = Tls::server(&server).unwrap().open(&mut half, &mut plain, &mut out);
    assert!(opened.failure.is_none() && !opened.is_closed);
}

#[test]
fn names_of_certificates_are_cut_and_have_no_control_characters() {
    assert_eq!(printable("CN=a\r\nb\u{7f}"), "CN=a??b?");
    let long = printable(&"ä".repeat(SUBJECT_BYTES_MAX));
    assert!(long.len() <= SUBJECT_BYTES_MAX && long.chars().all(|letter| letter == 'ä'));
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let (subject, common_name) = subject_of(made.cert.der()).unwrap();
    assert_eq!(common_name.as_deref(), subject.strip_prefix("CN="));
    assert_eq!(subject_of(b"no certificate"), None);
}
