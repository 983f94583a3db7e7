//! Queries that are sent again, within the retry budget of the pool.

use super::*;
use crate::dns::query::Cause;

#[test]
fn only_failures_of_servers_need_the_retry_budget() {
    #[track_caller]
    fn check(cause: Cause, next_server: Option<usize>, retries: u64) {
        let mut fixture = Fixture::with_pool(2, without_retries, |_| {});
        let client = fixture.client();
        client.send(&query(7, "a.example")).unwrap();
        assert_eq!(fixture.received().server, 0);
        let settings = fixture.service.settings.load_full();
        let keys = fixture.dns.queries.keys(|_| true);
        fixture.dns.again(&mut fixture.cx, &settings, keys[0], cause);
        match next_server {
            Some(server) => assert_eq!(fixture.received().server, server, "{cause:?}"),
            None => assert_eq!(code(&fixture.received_by(&client)), wire::SERVFAIL, "{cause:?}"),
        }
        assert_eq!(fixture.count("retries"), retries, "{cause:?}");
        let exhausted = u64::from(next_server.is_none());
        assert_eq!(fixture.count("retries_exhausted"), exhausted, "{cause:?}");
    }
    check(Cause::Refused, None, 0);
    check(Cause::Declined, None, 0);
    check(Cause::Local, Some(1), 0);
    check(Cause::Closed, Some(0), 0);
    check(Cause::CutShort, Some(0), 1);
    check(Cause::SessionLost, Some(1), 1);
}

#[test]
fn a_declined_query_without_another_server_does_not_need_the_retry_budget() {
    for (servers, exhausted) in [(1, 0), (2, 1)] {
        let mut fixture = Fixture::with_pool(servers, without_retries, |_| {});
        let client = fixture.client();
        client.send(&query(7, "a.example")).unwrap();
        let received = fixture.received();
        fixture.respond(&received, &response_with_code(&received.message, wire::SERVFAIL));
        assert_eq!(code(&fixture.received_by(&client)), wire::SERVFAIL);
        assert_eq!(fixture.count("retries_exhausted"), exhausted, "{servers} servers");
        fixture.check_idle();
    }
}

#[test]
fn a_query_whose_connection_closes_again_and_again_goes_to_another_server() {
    for cause in [Cause::CutShort, Cause::Closed] {
        let mut fixture = Fixture::new(2, |_| {});
        fixture.client().send(&query(7, "a.example")).unwrap();
        assert_eq!(fixture.received().server, 0);
        let settings = fixture.service.settings.load_full();
        let key = fixture.dns.queries.keys(|_| true)[0];
        let servers: Vec<usize> = (0..9)
            .map(|_| {
                fixture.dns.again(&mut fixture.cx, &settings, key, cause);
                fixture.received().server
            })
            .collect();
        assert_eq!(servers, [0, 0, 0, 0, 0, 0, 0, 0, 1], "{cause:?}");
    }
}

#[test]
fn the_queries_of_an_ended_server_are_sent_to_another_server() {
    // Evener closes the sockets, so no retry is needed.
    let mut fixture = Fixture::with_pool(2, without_retries, |_| {});
    let client = fixture.client();
    client.send(&query(7, "a.example")).unwrap();
    let first = fixture.received();
    let server = Arc::clone(&fixture.service.settings.load().backends[0].pool.load().servers()[0]);
    let ending = Ending::new(&server, EndReason::Operator, |_| {});
    assert_eq!(fixture.dns.end_server(&mut fixture.cx, &ending), 0, "datagrams have no streams");
    assert!(
        fixture.dns.upstreams.iter().all(|(_, upstream)| upstream.service() == fixture_service(&fixture))
    );
    let again = fixture.received();
    assert!(again.from != first.from, "the query is sent from another socket");
    fixture.respond(&again, &response(&again.message, 1));
    fixture.received_by(&client);
    assert_eq!(fixture.count("retries"), 0);
    fixture.check_idle();
}

fn fixture_service(fixture: &Fixture) -> DnsServiceKey {
    fixture.dns.listeners.iter().next().unwrap().1.service()
}

#[test]
fn a_query_that_cannot_be_sent_to_a_server_needs_no_retry() {
    let mut fixture = Fixture::with_pool(2, without_retries, |_| {});
    fixture.client().send(&query(7, "a.example")).unwrap();
    assert_eq!(fixture.received().server, 0);
    let Fixture { dns, cx, .. } = &mut fixture;
    let (key, at) = (dns.queries.keys(|_| true)[0], dns.sockets.keys(|_| true)[0]);
    dns.on_unsendable(cx, key, at);
    assert_eq!(fixture.received().server, 1);
    let counted = ["drops.unsendable", "retries", "retries_exhausted"].map(|name| fixture.count(name));
    assert_eq!(counted, [1, 0, 0]);
}
