//! Associations of clients with servers, and the choice.

use crate::director::{Director, PORT, SERVICE, XDP_DROP, for_each_family, request, service};
use crate::packet::{Packet, TCP, UDP};
use evener_xdp::contract::*;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::sync::atomic::{AtomicU32, Ordering};

/// Moves this thread to a CPU, whose turns it takes. Returns false if there is no such CPU.
fn move_to_cpu(cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).is_ok()
}

#[test]
fn the_first_clients_of_two_cpus_get_different_servers() {
    for_each_family(service(), |director, family| {
        let client = |port| Packet::new(UDP, (family.client, port), (family.vip, PORT));
        let server = |director: &mut Director, port| director.server_of(&client(port), family);
        if move_to_cpu(0) {
            let first = server(director, 1000);
            if move_to_cpu(1) {
                assert_ne!(server(director, 1001), first);
            }
        }
    });
}

#[test]
fn without_failover_a_client_whose_server_takes_no_clients_is_dropped() {
    let by_client = Service { choose_by: CHOOSE_BY_CLIENT, ..service() };
    for flags in [0, SERVICE_ONE_SLOT] {
        for_each_family(Service { flags, ..by_client }, |director, family| {
            director.set_table("tables", SERVICE, &[1]);
            let known = request(family, UDP);
            assert_eq!(director.server_of(&known, family), 0);
            // The slot of the client has server 1, and most other slots have server 2.
            let hash = evener_core::hash::of_client(family.client.parse().unwrap());
            let mut slots = [2; 31];
            slots[(hash % 31) as usize] = 1;
            director.set_table("tables", SERVICE, &slots);
            let new = Packet::new(UDP, (family.client, 41000), (family.vip, PORT));
            director.change_server(1, |server| server.takes = TAKES_NONE);
            if flags == 0 {
                assert_eq!(director.server_of(&new, family), 1);
                assert_eq!(director.server_of(&known, family), 1);
                return;
            }
            director.leaves(&new.frame(), XDP_DROP);
            director.leaves(&known.frame(), XDP_DROP);
            assert_eq!(director.count(SERVICE, REASON_NO_SERVER), 2);
            director.change_server(1, |server| server.takes = TAKES_NEW);
            assert_eq!(director.server_of(&new, family), 0);
        });
    }
}

#[test]
fn clients_get_servers_in_turn_and_keep_them() {
    // Each CPU has its own turn.
    move_to_cpu(0);
    for_each_family(service(), |director, family| {
        let mut servers = Vec::new();
        for port in 0..300 {
            let client = Packet::new(UDP, (family.client, 1000 + port), (family.vip, PORT));
            let server = director.server_of(&client, family);
            assert_eq!(director.server_of(&client, family), server, "the association is kept");
            servers.push(server);
        }
        for server in 0..3 {
            assert_eq!(servers.iter().filter(|other| **other == server).count(), 100);
        }
        assert_eq!(director.count(SERVICE, REASON_FLOW_NEW), 300);
    });
}

#[test]
fn a_client_has_one_server_on_all_ports_of_the_service() {
    for_each_family(service(), |director, family| {
        for port in 0..9 {
            let client = Packet::new(UDP, (family.client, 1000 + port), (family.vip, PORT));
            let server = director.server_of(&client, family);
            assert_eq!(director.server_of(&client.to(family.vip, PORT + 1), family), server);
        }
    });
}

#[test]
fn an_association_may_be_for_all_ports_of_the_client() {
    let by_address = Service { flags: SERVICE_BY_ADDRESS, ..service() };
    for_each_family(by_address, |director, family| {
        let server = director.server_of(&request(family, UDP), family);
        for port in 0..9 {
            let client = Packet::new(UDP, (family.client, 1000 + port), (family.vip, PORT));
            assert_eq!(director.server_of(&client, family), server);
            let response = Packet::new(UDP, (family.servers[server], PORT), (family.client, 1000 + port));
            director.sends(&response, &response.returned().from(family.vip, PORT));
        }
    });
}

#[test]
fn packets_of_a_new_client_on_two_cpus_go_to_one_server() {
    const CLIENTS: u16 = 2000;
    let by_address = Service { flags: SERVICE_BY_ADDRESS, ..service() };
    for_each_family(by_address, |director, family| {
        // The CPUs have different turns.
        director.server_of(&request(family, UDP), family);
        let (director, arrived) = (&*director, &AtomicU32::new(0));
        let server_of = |client: u16, port| {
            let prefix = if family.number == 4 { "198.18" } else { "2001:db8:7:" };
            let [high, low] = client.to_be_bytes();
            let address = match family.number {
                4 => format!("{prefix}.{high}.{low}"),
                _ => format!("{prefix}:{client:x}"),
            };
            let frame = Packet::new(UDP, (&address, port), (family.vip, PORT)).frame();
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * (u32::from(client) + 1) {
                std::thread::yield_now();
            }
            let (action, out) = director.run(&frame);
            let destination = if family.number == 4 { 30..34 } else { 38..54 };
            (action, out[destination].to_vec())
        };
        let all = |port| (0..CLIENTS).map(|client| server_of(client, port)).collect::<Vec<_>>();
        let (first, second) = std::thread::scope(|scope| {
            let other = scope.spawn(|| all(2000));
            (all(1000), other.join().unwrap())
        });
        let differ = first.iter().zip(&second).filter(|(one, other)| one != other).count();
        assert_eq!(differ, 0, "clients with two servers");
    });
}

#[test]
fn clients_of_a_server_that_is_gone_move_with_their_next_packet() {
    for_each_family(service(), |director, family| {
        let request = request(family, UDP);
        let before = director.server_of(&request, family);
        let slot = before as u32 + 1;
        director.change_server(slot, |server| server.takes = TAKES_NONE);
        let after = director.server_of(&request, family);
        assert_ne!(after, before);
        director.change_server(slot, |server| server.takes = TAKES_NEW);
        assert_eq!(director.server_of(&request, family), after, "the client does not move back");
        assert_eq!(director.count(SERVICE, REASON_FLOW_MOVED), 1);
    });
}

#[test]
fn a_slot_with_another_server_is_another_server() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let request = request(family, UDP);
        director.server_of(&request, family);
        director.change_server(1, |server| server.id = 7777);
        director.set_table("tables", SERVICE, &[2]);
        assert_eq!(director.server_of(&request, family), 1);
    });
}

#[test]
fn an_association_with_a_server_of_another_pool_ends() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let first = request(family, UDP);
        assert_eq!(director.server_of(&first, family), 0);
        // The service gets another pool. The server stays alive in the pool of another service.
        director.set("services", SERVICE, Service { group: 5, ..service() });
        director.change_server(2, |server| server.group = 5);
        director.set_table("tables", SERVICE, &[2]);
        assert_eq!(director.server_of(&first, family), 1, "by a packet of the client");
        director.change_flows(family, |flow| flow.server = 1 | 1001 << FLOW_SLOT_BITS);
        let response = Packet::new(TCP, (family.servers[1], PORT), (family.client, 40000));
        director.sends(&response, &response.returned().from(family.vip, PORT));
        assert_eq!(director.count(SERVICE, REASON_FLOW_BY_SERVER), 1, "by a packet of the server");
    });
}

#[test]
fn a_draining_server_keeps_its_clients_and_gets_no_new_ones() {
    for_each_family(service(), |director, family| {
        let known = request(family, UDP);
        let server = director.server_of(&known, family);
        director.change_server(server as u32 + 1, |server| server.takes = TAKES_KNOWN);
        assert_eq!(director.server_of(&known, family), server);
        for port in 0..30 {
            let client = Packet::new(UDP, (family.client, 1000 + port), (family.vip, PORT));
            assert_ne!(director.server_of(&client, family), server);
        }
    });
}

#[test]
fn a_packet_without_any_server_is_dropped_and_counted() {
    for_each_family(service(), |director, family| {
        for slot in 1..=3 {
            director.change_server(slot, |server| server.takes = TAKES_KNOWN);
        }
        director.leaves(&request(family, UDP).frame(), XDP_DROP);
        director.set_table("tables", SERVICE, &[]);
        director.leaves(&request(family, UDP).frame(), XDP_DROP);
        assert_eq!(director.count(SERVICE, REASON_NO_SERVER), 2);
    });
}

#[test]
fn an_association_ends_when_it_is_idle() {
    let idle = Service { flags: SERVICE_IDLE, idle_seconds: 60, ..service() };
    for_each_family(idle, |director, family| {
        let request = request(family, UDP);
        director.set_table("tables", SERVICE, &[1]);
        director.server_of(&request, family);
        director.set_table("tables", SERVICE, &[2]);
        director.change_flows(family, |flow| {
            flow.hop_and_used = flow.hop_and_used.wrapping_sub(50 << FLOW_HOP_BITS);
        });
        assert_eq!(director.server_of(&request, family), 0, "used in time");
        director.change_flows(family, |flow| {
            flow.hop_and_used = flow.hop_and_used.wrapping_sub(50 << FLOW_HOP_BITS);
        });
        assert_eq!(director.server_of(&request, family), 0, "the packet before renewed the association");
        director.change_flows(family, |flow| {
            flow.hop_and_used = flow.hop_and_used.wrapping_sub(70 << FLOW_HOP_BITS);
        });
        assert_eq!(director.server_of(&request, family), 1);
        assert_eq!(director.count(SERVICE, REASON_FLOW_EXPIRED), 1);
    });
}

#[test]
fn associations_from_before_the_idle_time_was_configured_stay() {
    for_each_family(service(), |director, family| {
        director.set_table("tables", SERVICE, &[1]);
        let request = request(family, UDP);
        assert_eq!(director.server_of(&request, family), 0);
        director.set("services", SERVICE, Service { flags: SERVICE_IDLE, idle_seconds: 60, ..service() });
        director.set_table("tables", SERVICE, &[2]);
        assert_eq!(director.server_of(&request, family), 0);
        director.change_flows(family, |flow| {
            flow.hop_and_used = flow.hop_and_used.wrapping_sub(70 << FLOW_HOP_BITS);
        });
        assert_eq!(director.server_of(&request, family), 1, "the idle time counts from the next packet on");
    });
}

#[test]
fn a_connection_in_mid_flow_gets_the_server_that_the_table_before_names() {
    let hashed = Service { choose_by: CHOOSE_BY_CLIENT, ..service() };
    for_each_family(hashed, |director, family| {
        director.set_table("tables_before", SERVICE, &[1]);
        director.set_table("tables", SERVICE, &[2]);
        let segment = request(family, TCP).with_flags(0x10);
        assert_eq!(director.server_of(&segment, family), 0);
        assert_eq!(director.count(SERVICE, REASON_SECOND_CHANCE), 1);
        let begin = Packet::new(TCP, (family.client, 41000), (family.vip, PORT)).with_flags(2);
        assert_eq!(director.server_of(&begin, family), 1, "a new connection");
        director.change_server(1, |server| server.takes = TAKES_NONE);
        let segment = segment.with_source_port(42000);
        assert_eq!(director.server_of(&segment, family), 1, "the server before is gone");
    });
}

#[test]
fn a_full_table_of_associations_forwards_all_the_same() {
    for_each_family(service(), |director, family| {
        for port in 0..20_000 {
            let client = Packet::new(UDP, (family.client, 1000 + port), (family.vip, PORT));
            assert_eq!(director.run(&client.frame()).0, 3);
        }
        let flows: u64 = (1..=3).map(|slot| director.server_counters(slot).flows).sum();
        assert_eq!(flows + director.count(SERVICE, REASON_FLOW_NOT_STORED), 20_000);
    });
}
