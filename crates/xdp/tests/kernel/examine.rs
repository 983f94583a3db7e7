//! `evener xdp check`: findings about interfaces.

use crate::harness::{add_pair, alone, attach_foreign, run};
use evener_xdp::check::{Report, Verdict};

/// Returns the verdict and the text of a topic.
fn find(report: &Report, topic: &str) -> (Verdict, String) {
    let found = report.findings().iter().find(|found| found.topic == topic);
    let found = found.unwrap_or_else(|| panic!("no {topic} in {report:?}"));
    (found.verdict, found.text.clone())
}

#[test]
fn findings_follow_the_state_of_the_interface() {
    alone(|| {
        add_pair();
        let report = Report::of("eth0");
        assert!(report.is_usable(), "{report:?}");
        assert_eq!(find(&report, "driver"), (Verdict::Good, "veth".to_owned()));
        assert_eq!(find(&report, "program").0, Verdict::Good);
        assert_eq!(find(&report, "peer").0, Verdict::Warning);
        assert_eq!(
            find(&report, "offloads").0,
            Verdict::Warning,
            "the peer leaves checksums to the receiver"
        );
        assert_eq!(find(&report, "MTU").0, Verdict::Good);

        run("ethtool -K eth1 tx off gso off tso off; ip link set eth0 mtu 3500");
        let _peer = attach_foreign("eth1");
        let _second = attach_foreign("eth0");
        let report = Report::of("eth0");
        assert_eq!(find(&report, "offloads").0, Verdict::Good);
        assert_eq!(find(&report, "peer").0, Verdict::Good);
        assert_eq!(find(&report, "MTU").0, Verdict::Warning);
        let (verdict, text) = find(&report, "programs");
        assert!(verdict == Verdict::Problem && text.contains("native mode: `foreign`"), "{text}");
        assert!(!report.is_usable());
    });
}

#[test]
fn a_missing_interface_is_a_problem() {
    alone(|| {
        let report = Report::of("none");
        assert!(!report.is_usable());
        assert_eq!(find(&report, "interface"), (Verdict::Problem, "there is no interface none".to_owned()));
    });
}
