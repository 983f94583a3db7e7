//! A new process takes over what an earlier process left.

use crate::harness::{PIN, add_pair, alone, open, run, set, try_open};
use evener_core::spec::XdpMode;
use evener_xdp::attach::Change;
use evener_xdp::contract::{CONTRACT_VERSION, Config, Flow, FlowKeyV4};
use evener_xdp::interface::{AttachMode, Interface};
use evener_xdp::load::Installed;
use evener_xdp::load::Sizes;
use evener_xdp::load::takeover::Origin;
use evener_xdp::pin::{Directory, PinError};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

fn key(address: u32) -> FlowKeyV4 {
    FlowKeyV4 { address, port: 7, vip: 1 }
}

fn add_flows(installed: &mut Installed, addresses: std::ops::Range<u32>) {
    for address in addresses {
        let flow = Flow { server: 3, hop_and_used: address };
        installed.maps.flows_v4.insert(key(address), flow, 0).unwrap();
    }
}

fn addresses(installed: &Installed) -> BTreeSet<u32> {
    installed.maps.flows_v4.keys().map(|key| key.unwrap().address).collect()
}

#[test]
fn maps_and_links_outlive_the_process_and_the_program_is_replaced() {
    alone(|| {
        add_pair();
        let mut first = open(1024);
        assert_eq!(first.origin, Origin::New);
        add_flows(&mut first, 1..2);
        let attached = set(&mut first, "eth0", XdpMode::Auto).unwrap();
        assert_eq!((attached.mode, attached.change), (AttachMode::Native, Change::Attached));
        let before = first.links.program_id();
        drop(first);

        let directory = Directory::open(Path::new(PIN)).unwrap();
        let mut second = Installed::open(directory, Sizes { flows_v4: 1024, flows_v6: 1024 }).unwrap();
        assert_eq!(second.origin, Origin::TakenOver);
        assert_eq!(second.maps.flows_v4.get(&key(1), 0).unwrap().server, 3);
        let attached = set(&mut second, "eth0", XdpMode::Auto).unwrap();
        assert_eq!(attached.change, Change::Replaced, "the program of the first process is replaced");
        assert_ne!(second.links.program_id(), before);
        let runs = Interface::by_name("eth0").unwrap().unwrap().programs;
        assert_eq!(runs, [(AttachMode::Native, second.links.program_id())], "the new program runs");
        assert_eq!(set(&mut second, "eth0", XdpMode::Auto).unwrap().change, Change::None);
    });
}

#[test]
fn another_size_of_the_table_keeps_its_associations() {
    alone(|| {
        add_pair();
        let mut first = open(4096);
        set(&mut first, "eth0", XdpMode::Auto).unwrap();
        add_flows(&mut first, 0..500);
        drop(first);
        for size in [65536, 2048] {
            let mut next = open(size);
            set(&mut next, "eth0", XdpMode::Auto).unwrap();
            assert_eq!(addresses(&next), (0..500).collect(), "size {size}");
            drop(next);
            assert_eq!(addresses(&open(size)), (0..500).collect(), "size {size}, opened again");
        }
    });
}

#[test]
fn associations_that_the_old_program_makes_until_it_is_replaced_are_copied() {
    alone(|| {
        add_pair();
        let mut first = open(4096);
        set(&mut first, "eth0", XdpMode::Auto).unwrap();
        add_flows(&mut first, 0..10);
        // The second process stands for the old program's packets: it has the old map open.
        let old = first.maps;
        drop(first.links);
        let mut second = open(8192);
        let mut late = old;
        late.flows_v4.insert(key(77), Flow { server: 4, ..Flow::default() }, 0).unwrap();
        late.flows_v4.insert(key(5), Flow { server: 5, ..Flow::default() }, 0).unwrap();
        second.maps.flows_v4.insert(key(6), Flow { server: 9, ..Flow::default() }, 0).unwrap();
        late.flows_v4.insert(key(6), Flow { server: 6, ..Flow::default() }, 0).unwrap();
        set(&mut second, "eth0", XdpMode::Auto).unwrap();
        let server = |address| second.maps.flows_v4.get(&key(address), 0).unwrap().server;
        assert_eq!(server(77), 4, "an association that is new is copied");
        assert_eq!(server(5), 5, "an association that moved is copied");
        assert_eq!(server(6), 9, "an association that the new program made stays");
        assert_eq!(server(1), 3);
    });
}

#[test]
fn maps_of_another_version_are_replaced() {
    alone(|| {
        add_pair();
        let mut first = open(1024);
        add_flows(&mut first, 0..3);
        set(&mut first, "eth0", XdpMode::Auto).unwrap();
        let other = Config { version: CONTRACT_VERSION + 1, ..Config::default() };
        first.maps.settings.set(0, other, 0).unwrap();
        drop(first);
        let mut second = open(1024);
        let expected = format!("their version is {} instead of {CONTRACT_VERSION}", CONTRACT_VERSION + 1);
        assert_eq!(second.origin, Origin::Replaced(expected));
        assert!(addresses(&second).is_empty(), "associations of another version are not used");
        assert_eq!(set(&mut second, "eth0", XdpMode::Auto).unwrap().change, Change::Replaced);
        drop(second);
        assert_eq!(open(1024).origin, Origin::TakenOver);
    });
}

#[test]
fn maps_whose_pins_were_removed_are_found_through_the_program_that_uses_them() {
    alone(|| {
        add_pair();
        let mut first = open(1024);
        add_flows(&mut first, 0..3);
        set(&mut first, "eth0", XdpMode::Auto).unwrap();
        drop(first);
        for names in ["flows_v4", "settings", "flows_v4 settings servers"] {
            run(&format!("cd {PIN}; rm {names}"));
            let mut next = open(1024);
            assert_eq!(next.origin, Origin::TakenOver, "without {names}");
            assert_eq!(addresses(&next), (0..3).collect(), "without {names}");
            assert_eq!(set(&mut next, "eth0", XdpMode::Auto).unwrap().change, Change::Replaced);
        }
    });
}

#[test]
fn a_new_map_beside_a_running_program_gets_the_entries_of_its_map() {
    alone(|| {
        add_pair();
        let mut first = open(1024);
        add_flows(&mut first, 0..3);
        set(&mut first, "eth0", XdpMode::Auto).unwrap();
        let old = first.maps;
        drop(first.links);
        // A process that ended between pinning a map of another size and replacing the program.
        drop(open(2048));
        let mut old = old;
        old.flows_v4.insert(key(9), Flow::default(), 0).unwrap();
        let third = open(2048);
        assert_eq!(addresses(&third), BTreeSet::from([0, 1, 2, 9]));
    });
}

#[test]
fn a_directory_belongs_to_one_process() {
    alone(|| {
        let first = open(1024);
        let error = try_open(1024).map(|_| ()).unwrap_err().to_string();
        let owner = format!("process {} (", std::process::id());
        assert!(error.starts_with(&format!("{PIN} is in use by {owner}")), "{error}");
        drop(first);
        drop(open(1024));
    });
}

#[test]
fn directories_elsewhere_are_refused() {
    alone(|| {
        let open = |path: &str| Directory::open(Path::new(path)).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            open("/tmp/evener-xdp"),
            "/tmp/evener-xdp is not in a BPF file system; choose a directory in /sys/fs/bpf"
        );
        assert_eq!(
            open("/sys/fs/bpf/a.b"),
            "/sys/fs/bpf/a.b: names in a BPF file system cannot contain a dot"
        );
        run("umount /sys/fs/bpf");
        drop(Directory::open(Path::new(PIN)).unwrap());
        let error = Directory::open(Path::new("/sys/fs/bpf/none/evener")).unwrap_err();
        assert!(matches!(error, PinError::OtherFileSystem(_) | PinError::Io { .. }), "{error}");
    });
}

#[test]
fn half_a_million_associations_are_copied() {
    alone(|| {
        let mut first = open(1 << 20);
        add_flows(&mut first, 0..500_000);
        let before = addresses(&first);
        drop(first);
        let begin = Instant::now();
        let second = open(1 << 21);
        println!("{} associations copied in {:?}, with loading", before.len(), begin.elapsed());
        assert_eq!(before.len(), 500_000);
        assert_eq!(addresses(&second), before);
    });
}
