//! Attaching to interfaces: modes, foreign programs, interfaces that go and come.

use crate::harness::{PIN, add_pair, alone, attach_foreign, open, run, set};
use evener_core::spec::XdpMode;
use evener_xdp::attach::{AttachError, Change, WantedInterface};
use evener_xdp::installation::{Installation, detach};
use evener_xdp::interface::{AttachMode, Interface};
use std::path::Path;

/// Returns the programs of an interface.
fn programs(interface: &str) -> Vec<(AttachMode, u32)> {
    Interface::by_name(interface).unwrap().unwrap().programs
}

#[test]
fn a_foreign_program_stays_and_is_named() {
    alone(|| {
        add_pair();
        let foreign = attach_foreign("eth0");
        let before = programs("eth0");
        let mut installed = open(1024);
        let error = set(&mut installed, "eth0", XdpMode::Auto).unwrap_err().to_string();
        let begin = format!("interface eth0 has another XDP program: `foreign`, id {}, tag ", before[0].1);
        assert!(error.starts_with(&begin), "{error}");
        let owner = format!("process {} (", std::process::id());
        assert!(error.contains(&owner) && error.contains("loaded by user 0, attached by link "), "{error}");
        assert_eq!(programs("eth0"), before, "the foreign program still runs");
        drop(foreign);
        set(&mut installed, "eth0", XdpMode::Auto).unwrap();
    });
}

#[test]
fn generic_mode_is_used_if_the_driver_refuses_and_the_kernel_says_why() {
    alone(|| {
        add_pair();
        run("ip link set eth0 mtu 9000; ip link set eth1 mtu 9000");
        let mut installed = open(1024);
        let attached = set(&mut installed, "eth0", XdpMode::Auto).unwrap();
        assert_eq!(attached.mode, AttachMode::Generic);
        let reason = attached.not_native.expect("a reason");
        assert!(reason.contains("MTU"), "the reason is in the kernel's words: {reason}");
        assert_eq!(programs("eth0"), [(AttachMode::Generic, installed.links.program_id())]);
        let error = set(&mut installed, "eth0", XdpMode::Native).unwrap_err().to_string();
        let begin = "interface eth0 does not take the program in native mode: ";
        assert_eq!(error.strip_prefix(begin), Some(&*reason));
        let runs = programs("eth0");
        assert_eq!(runs, [(AttachMode::Generic, installed.links.program_id())], "the mode before stays");
    });
}

#[test]
fn the_mode_changes() {
    alone(|| {
        add_pair();
        let mut installed = open(1024);
        for (wanted, mode, change) in [
            (XdpMode::Generic, AttachMode::Generic, Change::Attached),
            (XdpMode::Auto, AttachMode::Generic, Change::None),
            (XdpMode::Native, AttachMode::Native, Change::Attached),
            (XdpMode::Auto, AttachMode::Native, Change::None),
        ] {
            let attached = set(&mut installed, "eth0", wanted).unwrap();
            assert_eq!((attached.mode, attached.change), (mode, change), "{wanted:?}");
            assert_eq!(programs("eth0"), [(mode, installed.links.program_id())]);
        }
    });
}

#[test]
fn an_interface_that_returns_under_its_name_is_attached_anew() {
    alone(|| {
        add_pair();
        let mut installed = open(1024);
        set(&mut installed, "eth0", XdpMode::Auto).unwrap();
        run("ip link delete eth0");
        let gone = set(&mut installed, "eth0", XdpMode::Auto);
        assert!(matches!(&gone, Err(AttachError::NoInterface(name)) if name == "eth0"), "{gone:?}");
        assert_eq!(installed.links.names().count(), 0);
        add_pair();
        assert_eq!(set(&mut installed, "eth0", XdpMode::Auto).unwrap().change, Change::Attached);
        // Away and back between two calls.
        run("ip link delete eth0");
        add_pair();
        assert_eq!(set(&mut installed, "eth0", XdpMode::Auto).unwrap().change, Change::Attached);
        assert_eq!(programs("eth0").len(), 1);
    });
}

#[test]
fn a_renamed_interface_keeps_its_program() {
    alone(|| {
        add_pair();
        let mut installed = open(1024);
        set(&mut installed, "eth0", XdpMode::Auto).unwrap();
        run("ip link set eth0 down; ip link set eth0 name lan.7; ip link set lan.7 up");
        assert_eq!(set(&mut installed, "lan.7", XdpMode::Auto).unwrap().change, Change::None);
        drop(installed);
        let mut next = open(1024);
        assert_eq!(next.links.names().collect::<Vec<_>>(), ["lan.7"]);
        assert_eq!(set(&mut next, "lan.7", XdpMode::Auto).unwrap().change, Change::Replaced);
        // The program goes if its new name is not wanted.
        let gone = set(&mut next, "eth0", XdpMode::Auto);
        assert!(matches!(gone, Err(AttachError::NoInterface(_))), "{gone:?}");
        assert_eq!(programs("lan.7"), []);
    });
}

#[test]
fn several_interfaces_have_one_program() {
    alone(|| {
        add_pair();
        run("ip link add name eth2 type veth peer name eth3");
        let mut installed = open(1024);
        let wanted = |names: &[&str]| -> Vec<WantedInterface> {
            let wanted = |name: &&str| WantedInterface { name: (*name).to_owned(), mode: XdpMode::Auto };
            names.iter().map(wanted).collect()
        };
        let results = installed.links.set(&wanted(&["eth0", "eth1", "eth2", "none"]));
        let outcomes: Vec<bool> = results.iter().map(|(_, result)| result.is_ok()).collect();
        assert_eq!(outcomes, [true, true, true, false], "a failure does not stop the others");
        let loaded = installed.links.program_id();
        assert_eq!(programs("eth1"), [(AttachMode::Native, loaded)]);
        installed.links.set(&wanted(&["eth2"]));
        assert_eq!((programs("eth0"), programs("eth1")), (vec![], vec![]));
        assert_eq!(programs("eth2"), [(AttachMode::Native, loaded)]);
    });
}

#[test]
fn a_veth_peer_without_a_program_is_warned_about() {
    alone(|| {
        add_pair();
        let mut installed = open(1024);
        let warnings = set(&mut installed, "eth0", XdpMode::Auto).unwrap().warnings;
        assert!(warnings[0].starts_with("eth1 has no XDP program: the kernel drops"), "{warnings:?}");
        let _foreign = attach_foreign("eth1");
        assert_eq!(set(&mut installed, "eth0", XdpMode::Auto).unwrap().warnings, Vec::<String>::new());
        assert_eq!(set(&mut installed, "eth0", XdpMode::Generic).unwrap().warnings, Vec::<String>::new());
    });
}

#[test]
fn detach_takes_everything_away() {
    alone(|| {
        add_pair();
        let path = Path::new(PIN);
        assert_eq!(detach(path, None).unwrap(), None);
        let mut installed = open(1024);
        set(&mut installed, "eth0", XdpMode::Auto).unwrap();
        let found = Installation::read(path).unwrap().unwrap();
        assert!(found.owner.is_some(), "the directory is in use");
        let error = detach(path, None).unwrap_err().to_string();
        assert!(error.contains("is in use by process"), "{error}");
        drop(installed);
        let found = Installation::read(path).unwrap().unwrap();
        assert_eq!((found.links[0].interface.as_str(), found.owner), ("eth0", None));
        assert!(found.maps.iter().any(|map| map.name == "flows_v4" && map.max_entries >= 1024));
        let removed = detach(path, Some("eth0")).unwrap().unwrap();
        assert_eq!((removed.interfaces, removed.maps), (vec!["eth0".to_owned()], 0));
        assert_eq!(programs("eth0"), []);
        let removed = detach(path, None).unwrap().unwrap();
        assert_eq!(removed.maps, found.maps.len());
        assert!(!path.exists());
    });
}
