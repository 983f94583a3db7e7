//! Packets of servers.

use crate::director::{PORT, SERVICE, XDP_DROP, for_each_family, request, service};
use crate::packet::{Packet, UDP};
use evener_xdp::contract::*;

#[test]
fn a_server_may_begin_and_the_client_then_belongs_to_it() {
    for_each_family(service(), |director, family| {
        for (at, server) in family.servers.iter().enumerate() {
            let port = 2000 + at as u16;
            let packet = Packet::new(UDP, (server, PORT), (family.client, port));
            director.sends(&packet, &packet.returned().from(family.vip, PORT));
            let response = Packet::new(UDP, (family.client, port), (family.vip, PORT));
            assert_eq!(director.server_of(&response, family), at);
        }
        assert_eq!(director.count(SERVICE, REASON_FLOW_BY_SERVER), 3);
    });
}

#[test]
fn a_server_does_not_reach_clients_of_another_server() {
    for_each_family(service(), |director, family| {
        let request = request(family, UDP);
        let server = director.server_of(&request, family);
        let other = (server + 1) % 3;
        let packet = Packet::new(UDP, (family.servers[other], PORT), (family.client, 40000));
        director.leaves(&packet.frame(), XDP_DROP);
        assert_eq!(director.count(SERVICE, REASON_REFUSED_EGRESS), 1);
        director.change_server(server as u32 + 1, |server| server.takes = TAKES_NONE);
        director.sends(&packet, &packet.returned().from(family.vip, PORT));
        assert_eq!(director.server_of(&request, family), other, "the association moved to the other server");
    });
}

#[test]
fn a_server_of_two_services_responds_for_the_one_that_the_client_uses() {
    for_each_family(service(), |director, family| {
        let (second_vip, address) =
            if family.number == 4 { ("10.0.0.200", "10.1.0.9") } else { ("2001:db8::200", "2001:db8:1::9") };
        director.add_service(2, Service { id: 101, pool: 2, ..service() }, second_vip, &[PORT]);
        director.add_server(9, address, 0);
        director.set_table("tables", 1, &[9]);
        director.set_table("tables", 2, &[9]);
        director.add_return(9, address, 9, 1);
        director.set(
            "returning",
            9,
            Returns { service: 1, vip: 1, server: 9, next: 10, ..Returns::default() },
        );
        director.set("returning", 10, Returns { service: 2, vip: 2, server: 9, ..Returns::default() });
        for (port, vip) in [(3000, family.vip), (3001, second_vip)] {
            let request = Packet::new(UDP, (family.client, port), (vip, PORT));
            director.sends(&request, &request.returned().to(address, PORT));
            let response = Packet::new(UDP, (address, PORT), (family.client, port));
            director.sends(&response, &response.returned().from(vip, PORT));
        }
        let unknown = Packet::new(UDP, (address, PORT), (family.client, 3002));
        director.sends(&unknown, &unknown.returned().from(family.vip, PORT));
    });
}
