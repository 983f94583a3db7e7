//! Routing by server IDs in connection IDs of QUIC (draft-ietf-quic-load-balancers, plaintext).

use crate::packet::{Frame, Packet};
use crate::plane::{Plane, SERVER_MAC, VIP_V4, VIP_V6, XDP_TX, server, service};
use evener_xdp::contract::*;

const SERVERS: [&str; 3] = ["10.0.2.11", "10.0.2.12", "10.0.2.13"];

fn plane(id_length: u8) -> Option<Plane> {
    let quic = Service { flags: SERVICE_QUIC, quic_id_length: id_length, ..service(FORWARD_DIRECT) };
    let mut plane = Plane::new(quic, &SERVERS)?;
    for slot in 1..=3 {
        plane.write_quic_server(&id(id_length, slot as u8), slot);
    }
    Some(plane)
}

/// Server ID of a slot.
fn id(length: u8, slot: u8) -> Vec<u8> {
    (0..length).map(|at| slot.wrapping_mul(31).wrapping_add(at)).collect()
}

/// A connection ID with rotation bits, a server ID and a nonce.
fn connection_id(rotation: u8, id: &[u8], nonce: usize) -> Vec<u8> {
    let length = id.len() + nonce;
    let mut connection = vec![rotation << 5 | length as u8 & 0x1f];
    connection.extend(id);
    connection.extend((0..nonce).map(|at| 0xe0 ^ at as u8));
    connection
}

fn short(connection: &[u8]) -> Vec<u8> {
    [&[0x43], connection, b"a protected payload"].concat()
}

fn long(connection: &[u8]) -> Vec<u8> {
    [&[0xe3, 0, 0, 0, 1, connection.len() as u8], connection, &[4, 1, 2, 3, 4], b"a protected payload"]
        .concat()
}

/// Sends a payload and returns the slot of the server that gets it.
fn slot_of(plane: &mut Plane, source: &str, port: u16, payload: Vec<u8>) -> u8 {
    let vip = if source.contains(':') { VIP_V6 } else { VIP_V4 };
    let packet = Packet::udp(source, vip).with_ports((port, 5000)).with_payload(payload);
    let (action, out) = plane.run(&packet.frame());
    assert_eq!(action, XDP_TX, "{source} port {port}");
    let mac = Frame::parse(&out).macs()[0];
    assert_eq!(mac[..5], SERVER_MAC[..5]);
    mac[5]
}

#[test]
fn a_connection_id_leads_to_its_server_from_any_address() {
    for length in [1, 2, 8, 15] {
        let Some(mut plane) = plane(length) else { return };
        for slot in [3, 1, 2] {
            for rotation in 0..7 {
                let connection = connection_id(rotation, &id(length, slot), 4);
                for (at, source) in ["10.0.1.2", "10.0.1.77", "fd00:1::2"].into_iter().enumerate() {
                    let port = 40000 + at as u16;
                    assert_eq!(
                        slot_of(&mut plane, source, port, short(&connection)),
                        slot,
                        "short, {length} bytes"
                    );
                    assert_eq!(
                        slot_of(&mut plane, source, port, long(&connection)),
                        slot,
                        "long, {length} bytes"
                    );
                }
            }
        }
        assert_eq!(plane.count(REASON_QUIC_ROUTED), 3 * 7 * 3 * 2);
    }
}

#[test]
fn a_client_that_changes_its_address_stays() {
    let Some(mut plane) = plane(4) else { return };
    // The client chooses the connection ID of its first packet; the server's response names the server.
    let initial = connection_id(7, b"random by the client", 0);
    let slot = slot_of(&mut plane, "10.0.1.2", 40000, long(&initial));
    let connection = connection_id(0, &id(4, slot), 8);
    for (source, port) in
        [("10.0.1.2", 40000), ("10.0.1.2", 41000), ("10.0.8.8", 42000), ("fd00:1::5", 43000)]
    {
        assert_eq!(slot_of(&mut plane, source, port, short(&connection)), slot);
        // The association of the new address holds for packets without a server ID, too.
        assert_eq!(slot_of(&mut plane, source, port, long(&initial)), slot);
    }
}

#[test]
fn unroutable_connection_ids_use_the_association() {
    let Some(mut plane) = plane(4) else { return };
    let unroutable = [
        short(&connection_id(7, &id(4, 1), 4)),
        short(&connection_id(0, b"none", 4)),
        // The nonce is too short for a connection ID of a server.
        long(&connection_id(0, &id(4, 1), 3)),
        long(&connection_id(7, &id(4, 1), 4)),
        long(&[]),
        long(&connection_id(0, b"none", 12)),
        vec![0x43],
        vec![0xc3, 0, 0],
        vec![],
    ];
    for (port, payload) in (40000..).zip(unroutable) {
        let first = slot_of(&mut plane, "10.0.1.2", port, payload.clone());
        for _ in 0..3 {
            assert_eq!(slot_of(&mut plane, "10.0.1.2", port, payload.clone()), first);
        }
    }
    assert_eq!(plane.count(REASON_QUIC_ROUTED), 0);
    // Server IDs that no server has.
    assert_eq!(plane.count(REASON_QUIC_UNKNOWN), 2 * 4);
}

#[test]
fn connection_ids_cut_at_each_byte_are_not_read_behind_the_end() {
    let Some(mut plane) = plane(15) else { return };
    for whole in [short(&connection_id(1, &id(15, 2), 4)), long(&connection_id(1, &id(15, 2), 4))] {
        let needed = if whole[0] & 0x80 == 0 { 1 + 20 } else { 6 + 20 };
        for length in 0..whole.len() {
            let before = plane.count(REASON_QUIC_ROUTED);
            slot_of(&mut plane, "10.0.1.2", 40000 + length as u16, whole[..length].to_vec());
            let routed = plane.count(REASON_QUIC_ROUTED) - before;
            assert_eq!(routed, u64::from(length >= needed), "{length} bytes");
        }
    }
}

#[test]
fn a_server_that_takes_nothing_loses_its_connections() {
    let Some(mut plane) = plane(4) else { return };
    let payload = short(&connection_id(0, &id(4, 2), 8));
    assert_eq!(slot_of(&mut plane, "10.0.1.2", 40000, payload.clone()), 2);
    plane.set_server(2, Server { takes: TAKES_KNOWN, ..server(2, SERVERS[1]) });
    assert_eq!(slot_of(&mut plane, "10.0.1.3", 40000, payload.clone()), 2, "draining: its connections stay");
    plane.set_server(2, Server { takes: TAKES_NONE, ..server(2, SERVERS[1]) });
    assert_ne!(slot_of(&mut plane, "10.0.1.2", 40000, payload.clone()), 2);
    // The slot has another server, which never knew the connection.
    plane.set_server(2, Server { id: 999, ..server(2, SERVERS[1]) });
    slot_of(&mut plane, "10.0.1.4", 40000, payload);
    assert_eq!(plane.count(REASON_QUIC_ROUTED), 2);
}

#[test]
fn other_services_do_not_read_connection_ids() {
    let Some(mut plane) = plane(4) else { return };
    plane.set_service(service(FORWARD_DIRECT));
    let servers: Vec<u8> = (40000..40006)
        .map(|port| slot_of(&mut plane, "10.0.1.2", port, short(&connection_id(0, &id(4, 2), 8))))
        .collect();
    assert!(servers.iter().any(|slot| *slot != 2), "chosen in turn: {servers:?}");
}

#[test]
fn the_padding_of_a_short_frame_is_not_read_as_a_connection_id() {
    let Some(mut plane) = plane(1) else { return };
    plane.write_quic_server(&[0], 2);
    for (payload, routed) in
        [(vec![0x43], 0), (vec![0xc3, 0, 0, 0, 1, 6, 0], 0), (vec![0x43, 0, 0, 0, 0, 0, 0], 1)]
    {
        let packet = Packet::udp("10.0.1.2", VIP_V4).with_ports((40000, 5000)).with_payload(payload.clone());
        let mut frame = packet.frame();
        frame.resize(60, 0);
        let before = plane.count(REASON_QUIC_ROUTED);
        assert_eq!(plane.run(&frame).0, XDP_TX);
        assert_eq!(plane.count(REASON_QUIC_ROUTED) - before, routed, "{payload:?}");
    }
}
