//! SRV records, with dnsmasq as the name server.

use crate::admin::status_text::unwrapped_status;
use crate::harness::dnsmasq::Dnsmasq;
use crate::harness::{Evener, Server, reserved_port, wait_until, who};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

#[test]
fn srv_records_have_the_ports_weights_and_tiers_of_servers() {
    let ports: [u16; 3] = std::array::from_fn(|_| reserved_port());
    let [mut a, mut b, _c] =
        [("a", ports[0]), ("b", ports[1]), ("c", ports[2])].map(|(name, port)| Server::named_at(name, port));
    let record = |target: &str, port: u16, priority: u16, weight: u16| {
        format!("--srv-host=_app._tcp.test,{target}.test,{port},{priority},{weight}")
    };
    let options =
        [record("one", ports[0], 10, 3), record("one", ports[1], 10, 0), record("two", ports[2], 20, 5)];
    let Some(mut dnsmasq) = Dnsmasq::prepare(&options) else { return };
    let loopback: [IpAddr; 1] = [Ipv4Addr::LOCALHOST.into()];
    dnsmasq.write(&[("one.test", &loopback), ("two.test", &loopback)]);
    dnsmasq.run();
    let evener = Evener::run_with(
        &format!(
            "service \"s\" {{ listen = \"127.0.0.1:0\", discover.srv \"_app._tcp.test\" {{ max = 9 }}, \
             policy = \"weighted\", resolver = \"{}\" }}",
            dnsmasq.address()
        ),
        &["--workers", "1"],
    );
    for (port, weight, tier) in [(ports[0], 3, 1), (ports[1], 1, 1), (ports[2], 5, 2)] {
        let server = evener.server(&format!("127.0.0.1:{port}"));
        assert_eq!((&server["weight"], &server["tier"]), (&weight.into(), &tier.into()), "{server}");
        assert_eq!((&server["max"], &server["source"]), (&9.into(), &"discover.srv _app._tcp.test".into()));
    }
    let listen = evener.port("s");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..40 {
        *counts.entry(who(listen)).or_default() += 1;
    }
    assert_eq!(counts, BTreeMap::from([("a".into(), 30), ("b".into(), 10)]));
    a.stop();
    b.stop();
    assert_eq!(who(listen), "c", "expected the servers of the second priority");
    drop(evener);
}

#[test]
fn a_target_without_an_address_is_left_out_and_reported() {
    let server = Server::named("a");
    let record = |target: &str| format!("--srv-host=_app._tcp.test,{target}.test,{},10,1", server.port);
    let Some(mut dnsmasq) = Dnsmasq::prepare(&[record("one"), record("missing")]) else { return };
    let loopback: [IpAddr; 1] = [Ipv4Addr::LOCALHOST.into()];
    dnsmasq.write(&[("one.test", &loopback)]);
    dnsmasq.run();
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", discover.srv \"_app._tcp.test\", resolver = \"{}\" }}",
        dnsmasq.address()
    ));
    assert_eq!(who(evener.port("s")), "a");
    assert!(evener.log().contains("its target `missing.test` has no address"), "{}", evener.log());
    // Without any target the last servers stay.
    dnsmasq.change(&[]);
    wait_until("the second problem", || {
        let text = unwrapped_status(&evener);
        text.contains("its target `").then_some(())
    });
    assert_eq!(who(evener.port("s")), "a");
}
