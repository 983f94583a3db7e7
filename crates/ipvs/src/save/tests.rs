//! Text that is read and written again, and errors with their lines.

use super::*;
use crate::model::{DestinationState, ServiceState, Statistics};

fn table(saved: &[SavedService]) -> Vec<Entry> {
    let state = |destination: &Destination| DestinationState {
        destination: *destination,
        active: 0,
        inactive: 0,
        persistent: 0,
        statistics: Statistics::default(),
    };
    let entry = |saved: &SavedService| Entry {
        service: ServiceState { service: saved.service.clone(), statistics: Statistics::default() },
        destinations: saved.destinations.iter().map(state).collect(),
    };
    saved.iter().map(entry).collect()
}

#[test]
fn text_is_written_as_it_was_read() {
    let saved = "\
-A -t 10.0.0.1:80 -s wlc -p 300 -M 255.255.255.0 --pe sip
-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 3 -x 9 -y 5
-a -t 10.0.0.1:80 -r 10.0.0.3:80 -i -w 1 --tun-type gue --tun-port 6080 --tun-remcsum
-A -u [fd00::1]:53 -s sh -o -b sh-fallback,sh-port
-a -u [fd00::1]:53 -r [fd00::2]:53 -g -w 0
-A --sctp-service 10.0.0.1:99 -s rr
-A -f 7 -6 -s mh -p 60 -M 64 -b mh-port
-a -f 7 -6 -r 10.0.0.9:0 -i -w 1 --tun-type gre --tun-csum
";
    let services = parse(saved).unwrap();
    assert_eq!(text(&table(&services)), saved);
    for length in 0..saved.len() {
        let _ = parse(&saved[..length]);
    }
}

#[test]
fn long_options_and_defaults_are_read() {
    let short = parse("-A -t 10.0.0.1:80 -s wlc -p 300\n-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 1").unwrap();
    let long = "# saved\n--add-service --tcp-service 10.0.0.1:80 --persistent\n\
                --add-server --tcp-service 10.0.0.1:80 --real-server 10.0.0.2:80";
    let mut long = parse(long).unwrap();
    assert_eq!(long[0].line, 2);
    long[0].line = 1;
    assert_eq!(long, short);
}

#[test]
fn errors_have_the_line() {
    let check = |line: &str, expected: &str| {
        let text = format!("-A -t 10.0.0.1:80 -s rr\n\n{line}\n");
        assert_eq!(parse(&text).unwrap_err().to_string(), format!("line 3: {expected}"), "{line}");
    };
    check("-A -t 10.0.0.1:80", "service TCP 10.0.0.1:80 is added on line 1, too");
    check(
        "-A -t 10.0.0.1:http",
        "not an address with a numeric port: `10.0.0.1:http`; save with `ipvsadm -Sn`",
    );
    check("-a -t 10.0.0.9:80 -r 10.0.0.2:80", "no line before adds service TCP 10.0.0.9:80");
    check("-a -t 10.0.0.1:80 -r 10.0.0.2:80 -w many", "-w needs a number in range, got `many`");
    check("-a -t 10.0.0.1:80 -m", "-r is missing");
    check("-A -f 0", "not a firewall mark: `0`");
    check("-A -u 10.0.0.1:1 -p 5 -M 255.0.255.0", "not a netmask: `255.0.255.0`");
    check("-A -u 10.0.0.1:1 -w 5", "options of a destination on the line of a service");
    check("-D -t 10.0.0.1:80", "expected -A or -a, got `-D`");
    check("-A -t 10.0.0.1:81 -z", "unknown option `-z`");
    check("-A -s rr", "-t, -u, --sctp-service or -f is missing");
}
