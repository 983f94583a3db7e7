//! Translation of ICMP errors.

use crate::director::{
    Director, Family, PORT, SERVICE, XDP_DROP, XDP_PASS, assert_sent, for_each_family, request, service,
};
use crate::packet::{DESTINATION_OPTIONS, IcmpError, Packet, TCP, UDP};
use evener_xdp::contract::*;

/// Types and codes of errors: too big, and port unreachable.
fn kinds(family: Family) -> [(u8, u8); 2] {
    if family.number == 4 { [(3, 4), (3, 3)] } else { [(2, 0), (1, 4)] }
}

/// An error about a packet, from a router to an address.
fn error(family: Family, from: &str, to: &str, kind: (u8, u8), quoted: Vec<u8>) -> IcmpError {
    let _ = family;
    IcmpError::new(Packet::new(UDP, (from, 0), (to, 0)), kind, 1280, quoted)
}

/// Packets before and behind the balancer, with each length of quotation that has ports.
fn check(director: &mut Director, before: &IcmpError, after: &IcmpError) {
    for length in [28, 40, 48, 60, 61] {
        let (sent, expected) = (before.quoting(length), after.quoting(length));
        assert_sent(director.run(&sent.frame()), &expected.frame());
    }
}

#[test]
fn errors_about_responses_reach_the_server_with_its_packet() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        for protocol in [UDP, TCP] {
            director.run(&request(family, protocol).frame());
            for kind in kinds(family) {
                let response = Packet::new(protocol, (family.servers[0], PORT), (family.client, 40000));
                let translated = response.from(family.vip, PORT);
                let before = error(family, family.router, family.vip, kind, translated.ip());
                let after = error(family, family.router, family.servers[0], kind, response.ip()).returned();
                check(director, &before, &after);
            }
        }
    });
}

#[test]
fn errors_about_requests_reach_the_client_as_if_from_the_virtual_address() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        for protocol in [UDP, TCP] {
            let request = request(family, protocol);
            director.run(&request.frame());
            for kind in kinds(family) {
                let translated = request.to(family.servers[0], PORT);
                for from in [family.servers[0], family.router] {
                    let before = error(family, from, family.client, kind, translated.ip());
                    let after = error(family, family.vip, family.client, kind, request.ip()).returned();
                    check(director, &before, &after);
                }
            }
        }
    });
}

#[test]
fn ports_in_quotations_are_translated() {
    for_each_family(service(), |director, family| {
        director.add_server(1, family.servers[0], 8080);
        director.set_table("tables", SERVICE, &[1]);
        director.set(
            "returning",
            9,
            Returns { service: SERVICE, vip: SERVICE, server: 1, port: PORT.to_be(), ..Returns::default() },
        );
        director.add_endpoint(family.servers[0], 8080, UDP, (ENDPOINT_REAL, 9, 0));
        let request =
            request(family, UDP).with_options(vec![1; 8]).with_extensions(vec![(DESTINATION_OPTIONS, 0)]);
        director.run(&request.frame());
        let kind = kinds(family)[0];
        let before =
            error(family, family.router, family.client, kind, request.to(family.servers[0], 8080).ip());
        let after = error(family, family.vip, family.client, kind, request.ip()).returned();
        assert_sent(director.run(&before.frame()), &after.frame());
        let response = Packet::new(UDP, (family.servers[0], 8080), (family.client, 40000)).without_checksum();
        let before = error(family, family.router, family.vip, kind, response.from(family.vip, PORT).ip());
        let after = error(family, family.router, family.servers[0], kind, response.ip()).returned();
        assert_sent(director.run(&before.frame()), &after.frame());
    });
}

#[test]
fn errors_about_unknown_clients_are_dropped_and_other_icmp_passes() {
    for_each_family(service(), |director, family| {
        let response = Packet::new(UDP, (family.vip, PORT), (family.client, 40000));
        let unknown = error(family, family.router, family.vip, kinds(family)[0], response.ip());
        director.leaves(&unknown.frame(), XDP_DROP);
        assert_eq!(director.count(SERVICE, REASON_ICMP_UNKNOWN), 1);
        let echo = if family.number == 4 { (8, 0) } else { (128, 0) };
        director.leaves(&error(family, family.client, family.vip, echo, vec![0; 40]).frame(), XDP_PASS);
        let other = error(family, family.router, family.client, kinds(family)[0], request(family, UDP).ip());
        director.leaves(&other.frame(), XDP_PASS);
        let forged = error(family, family.router, family.client, kinds(family)[0], response.ip());
        director.leaves(&forged.frame(), XDP_PASS);
    });
}
