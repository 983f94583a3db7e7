//! A new process takes over what an earlier process left.

use crate::harness::{alone, open, run, wanted};
use evener_core::spec::XdpMode;
use evener_xdp::attach::Change;
use evener_xdp::contract::{Flow, FlowKeyV4};
use evener_xdp::interface::AttachMode;
use evener_xdp::takeover::Origin;

fn key(address: u32) -> FlowKeyV4 {
    FlowKeyV4 { address, port: 7, vip: 1 }
}

#[test]
fn maps_and_links_outlive_the_process_and_the_program_is_replaced() {
    alone(|| {
        run("ip link add name eth0 type veth peer name eth1; ip link set eth0 up; ip link set eth1 up");
        let mut first = open(1024);
        assert_eq!(first.origin, Origin::New);
        first.maps.flows_v4.insert(key(1), Flow { server: 3, ..Flow::default() }, 0).unwrap();
        let attached = first.links.set(&[wanted("eth0", XdpMode::Auto)]).remove(0).1.unwrap();
        assert_eq!((attached.mode, attached.change), (AttachMode::Native, Change::Attached));
        let before = first.links.program_id();
        drop(first);

        let mut second = open(1024);
        assert_eq!(second.origin, Origin::TakenOver);
        assert_eq!(second.maps.flows_v4.get(&key(1), 0).unwrap().server, 3);
        let attached = second.links.set(&[wanted("eth0", XdpMode::Auto)]).remove(0).1.unwrap();
        assert_eq!(attached.change, Change::Replaced, "the program of the first process is replaced");
        assert_ne!(second.links.program_id(), before);
        let again = second.links.set(&[wanted("eth0", XdpMode::Auto)]).remove(0).1.unwrap();
        assert_eq!(again.change, Change::None);
    });
}

#[test]
fn another_size_of_the_table_keeps_its_associations() {
    alone(|| {
        run("ip link add name eth0 type veth peer name eth1");
        let mut first = open(4096);
        first.links.set(&[wanted("eth0", XdpMode::Auto)]).remove(0).1.unwrap();
        for address in 0..500 {
            first.maps.flows_v4.insert(key(address), Flow { server: 3, ..Flow::default() }, 0).unwrap();
        }
        drop(first);
        let mut second = open(65536);
        second.links.set(&[wanted("eth0", XdpMode::Auto)]).remove(0).1.unwrap();
        assert_eq!(second.maps.flows_v4.keys().count(), 500);
        drop(second);
        assert_eq!(open(65536).maps.flows_v4.keys().count(), 500);
    });
}
