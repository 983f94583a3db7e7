//! Bytes of messages, and messages that are cut or unknown.

use super::attributes::text;
use super::*;
use crate::model::*;
use netlink_packet_core::Emitable;
use std::net::SocketAddr;

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn services() -> Vec<Service> {
    let persistence =
        |prefix| Persistence { timeout: Duration::from_secs(300), prefix, engine: Some("sip".to_owned()) };
    let flags = Flags { one_packet: true, scheduler_2: true, ..Flags::default() };
    vec![
        Service::new(ServiceKey::tcp(address("10.0.0.1:80"))),
        Service {
            persistence: Some(persistence(24)),
            ..Service::new(ServiceKey::udp(address("10.0.0.1:53")))
        },
        Service { persistence: Some(persistence(0)), ..Service::new(ServiceKey::tcp(address("10.0.0.1:0"))) },
        Service {
            persistence: Some(persistence(64)),
            ..Service::new(ServiceKey::udp(address("[fd00::1]:53")))
        },
        Service { flags, ..Service::new(ServiceKey::Fwmark { mark: 7, family: Family::V6 }) },
    ]
}

fn destinations() -> Vec<Destination> {
    let flags = TunnelFlags::RemoteChecksum;
    [
        Forwarding::Nat,
        Forwarding::Direct,
        Forwarding::Tunnel(Tunnel::Ipip),
        Forwarding::Tunnel(Tunnel::Gue { port: 6080, flags }),
        Forwarding::Tunnel(Tunnel::Gre { flags: TunnelFlags::Checksum }),
    ]
    .into_iter()
    .map(|forwarding| Destination::new(address("10.0.0.2:8080"), forwarding).weight(3).thresholds(5, 9))
    .collect()
}

#[test]
fn services_are_read_as_they_were_written() {
    for wanted in services() {
        let message = Message::new(command::NEW_SERVICE, vec![nested(SERVICE, &service(&wanted).unwrap())]);
        let read = Message::parse(command::NEW_SERVICE, &bytes(&message)).unwrap();
        assert_eq!(read.service().unwrap().service, wanted);
    }
}

#[test]
fn destinations_are_read_as_they_were_written() {
    for wanted in destinations() {
        let message =
            Message::new(command::NEW_DESTINATION, vec![nested(DESTINATION, &destination(&wanted))]);
        let read = Message::parse(command::NEW_DESTINATION, &bytes(&message)).unwrap();
        assert_eq!(read.destination(Family::V6).unwrap().destination, wanted);
    }
}

#[test]
fn masks_are_in_network_order_and_prefixes_in_the_machines() {
    let [_, v4, _, v6, _] = &services()[..] else { unreachable!() };
    let mask = |wanted: &Service| {
        let attributes = vec![nested(SERVICE, &service(wanted).unwrap())];
        Message::new(1, attributes).attributes().nested(SERVICE).unwrap().value(9).unwrap()
    };
    assert_eq!(mask(v4), [255, 255, 255, 0]);
    assert_eq!(mask(v6), 64u32.to_ne_bytes());
}

#[test]
fn a_cut_message_is_refused_and_never_panics() {
    let attributes = vec![nested(SERVICE, &service(&services()[1]).unwrap())];
    let whole = bytes(&Message::new(1, attributes));
    for length in 0..whole.len() {
        let result = Message::parse(1, &whole[..length]).and_then(|message| message.service());
        assert!(result.is_err(), "{length} of {} bytes", whole.len());
    }
}

#[test]
fn unknown_attributes_and_other_lengths_are_tolerated() {
    let mut attributes = destination(&destinations()[0]);
    attributes.insert(0, text(999, "from a later kernel"));
    attributes.retain(|nla| netlink_packet_core::Nla::kind(nla) != 4);
    attributes.push(nla(4, &70_000u64.to_ne_bytes()));
    let message = Message::new(1, vec![nla(77, &[1; 3]), nested(DESTINATION, &attributes)]);
    let read = Message::parse(1, &bytes(&message)).unwrap();
    assert_eq!(read.destination(Family::V4).unwrap().destination.weight, 70_000);
}

#[test]
fn wide_statistics_are_preferred() {
    let mut attributes = destination(&destinations()[0]);
    attributes.push(nested(10, &[nla(1, &1u32.to_ne_bytes())]));
    let read = |attributes: &[netlink_packet_core::DefaultNla]| {
        let message = Message::new(1, vec![nested(DESTINATION, attributes)]);
        message.destination(Family::V4).unwrap().statistics.connections
    };
    assert_eq!(read(&attributes), 1);
    attributes.push(nested(12, &[nla(1, &(1u64 << 40).to_ne_bytes())]));
    assert_eq!(read(&attributes), 1 << 40);
}

#[test]
fn daemons_are_read_as_they_were_written() {
    let wanted = Daemon {
        length_max: Some(1400),
        group: Some("ff02::81".parse().unwrap()),
        port: Some(8848),
        ttl: Some(3),
        ..Daemon::new(DaemonRole::Backup, "eth0", 7)
    };
    let message = Message::new(command::NEW_DAEMON, vec![nested(DAEMON, &daemon(&wanted))]);
    assert_eq!(parse_daemon(&message).unwrap(), wanted);
}
