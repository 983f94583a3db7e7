//! The client against a kernel, each test in its own network namespace. The command guest of xtask runs these tests in
//! a virtual machine with ipvsadm.

use evener_ipvs::model::{
    Daemon, DaemonRole, Destination, DestinationKey, Family, Flags, Forwarding, Persistence, Protocol,
    Service, ServiceKey, Timeouts, Tunnel, TunnelFlags,
};
use evener_ipvs::{Change, Client, ErrorKind, Kernel, connections, save};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Opens a client in a new network namespace; `None` on a machine without IPVS, where the test is skipped.
fn client() -> Option<Client> {
    enter_namespace();
    match Client::open() {
        Ok(client) => {
            // A namespace without an IPv4 address refuses IPv4 destinations.
            run("ip", "link set lo up");
            Some(client)
        }
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// Moves the thread to a new network namespace. The thread of the test ends with the test.
fn enter_namespace() {
    // SAFETY: no memory is passed; only this thread is concerned.
    let status = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if status != 0 {
        println!("no namespace: {}", std::io::Error::last_os_error());
    }
}

/// Runs a program and returns its output.
fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {words}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Lines of `ipvsadm -Sn`.
fn saved() -> Vec<String> {
    run("ipvsadm", "-Sn").lines().map(|line| line.trim_end().to_owned()).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

fn persistent(service: Service, seconds: u64, prefix: u8, engine: Option<&str>) -> Service {
    let timeout = Duration::from_secs(seconds);
    Service {
        persistence: Some(Persistence { timeout, prefix, engine: engine.map(str::to_owned) }),
        ..service
    }
}

#[test]
fn each_service_is_as_ipvsadm_lists_it() {
    let Some(mut kernel) = client() else { return };
    let tcp = ServiceKey::tcp(address("10.0.0.1:80"));
    let sctp =
        ServiceKey::Address { protocol: Protocol::Sctp, address: address("10.0.0.1:1").ip(), port: 99 };
    let every_port = ServiceKey::tcp(address("10.0.0.9:0"));
    let v6 = ServiceKey::udp(address("[fd00::1]:53"));
    let mark = |family| ServiceKey::Fwmark { mark: 7, family };
    let flags = |one_packet, scheduler_1, scheduler_2| Flags {
        one_packet,
        scheduler_1,
        scheduler_2,
        scheduler_3: false,
    };
    let check = |kernel: &mut Client, service: Service, expected: &str| {
        kernel.add_service(&service).expect(expected);
        assert_eq!(saved(), [expected]);
        assert_eq!(kernel.service(&service.key).expect(expected).service, service);
        assert_eq!(kernel.services().expect(expected).len(), 1);
        kernel.delete_service(&service.key).expect(expected);
        assert!(saved().is_empty(), "{expected}");
    };
    check(&mut kernel, Service::new(tcp), "-A -t 10.0.0.1:80 -s wlc");
    for scheduler in ["rr", "wrr", "lc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq"] {
        check(
            &mut kernel,
            Service::new(tcp).scheduler(scheduler),
            &format!("-A -t 10.0.0.1:80 -s {scheduler}"),
        );
    }
    check(&mut kernel, Service::new(sctp), "-A --sctp-service 10.0.0.1:99 -s wlc");
    check(&mut kernel, persistent(Service::new(tcp), 300, 32, None), "-A -t 10.0.0.1:80 -s wlc -p 300");
    check(
        &mut kernel,
        persistent(Service::new(every_port), 60, 24, None),
        "-A -t 10.0.0.9:0 -s wlc -p 60 -M 255.255.255.0",
    );
    check(&mut kernel, persistent(Service::new(v6), 60, 64, None), "-A -u [fd00::1]:53 -s wlc -p 60 -M 64");
    let sip = persistent(Service::new(ServiceKey::udp(address("10.0.0.1:5060"))), 60, 32, Some("sip"));
    check(&mut kernel, sip, "-A -u 10.0.0.1:5060 -s wlc -p 60 --pe sip");
    check(&mut kernel, Service::new(mark(Family::V4)), "-A -f 7 -s wlc");
    check(&mut kernel, Service::new(mark(Family::V6)), "-A -f 7 -6 -s wlc");
    let udp = Service::new(ServiceKey::udp(address("10.0.0.1:53")));
    check(&mut kernel, Service { flags: flags(true, false, false), ..udp }, "-A -u 10.0.0.1:53 -s wlc -o");
    let hashed = Service { flags: flags(false, true, true), ..Service::new(tcp).scheduler("sh") };
    check(&mut kernel, hashed, "-A -t 10.0.0.1:80 -s sh -b sh-fallback,sh-port");
    let hashed = Service { flags: flags(false, true, false), ..Service::new(tcp).scheduler("mh") };
    check(&mut kernel, hashed, "-A -t 10.0.0.1:80 -s mh -b mh-fallback");
}

#[test]
fn each_destination_is_as_ipvsadm_lists_it() {
    let Some(mut kernel) = client() else { return };
    let key = ServiceKey::tcp(address("10.0.0.1:80"));
    kernel.add_service(&Service::new(key)).expect("a service");
    let server = address("10.0.0.2:80");
    let csum = TunnelFlags::Checksum;
    let cases = [
        (Destination::new(server, Forwarding::Nat), "-m -w 1"),
        (Destination::new(server, Forwarding::Nat).weight(0), "-m -w 0"),
        (Destination::new(server, Forwarding::Direct).weight(65_535), "-g -w 65535"),
        (Destination::new(server, Forwarding::Tunnel(Tunnel::Ipip)), "-i -w 1"),
        (
            Destination::new(
                server,
                Forwarding::Tunnel(Tunnel::Gue { port: 6080, flags: TunnelFlags::NoChecksum }),
            ),
            "-i -w 1 --tun-type gue --tun-port 6080 --tun-nocsum",
        ),
        (
            Destination::new(server, Forwarding::Tunnel(Tunnel::Gre { flags: csum })),
            "-i -w 1 --tun-type gre --tun-csum",
        ),
    ];
    for (destination, expected) in cases {
        kernel.add_destination(&key, &destination).expect(expected);
        let found = saved();
        assert!(found[1].starts_with("-a -t 10.0.0.1:80 -r 10.0.0.2:80"), "{found:?}");
        // A later ipvsadm prints more of a tunnel.
        assert!(found[1].contains(expected), "{found:?} has {expected}");
        assert_eq!(kernel.destinations(&key).expect(expected)[0].destination, destination);
        kernel.delete_destination(&key, &destination.key).expect(expected);
    }
    // `ipvsadm -Sn` of Debian 12 leaves thresholds out.
    let limited = Destination::new(server, Forwarding::Nat).thresholds(5, 9);
    kernel.add_destination(&key, &limited).expect("a destination with thresholds");
    let shown = run("ipvsadm", "-Ln --thresholds");
    let words: Vec<&str> = shown.lines().last().unwrap_or_default().split_whitespace().collect();
    assert_eq!(words[..4], ["->", "10.0.0.2:80", "9", "5"], "{shown}");
    assert_eq!(kernel.destinations(&key).expect("destinations")[0].destination, limited);
}

#[test]
fn changes_are_live_and_two_states_can_be_compared() {
    let Some(mut kernel) = client() else { return };
    let key = ServiceKey::tcp(address("10.0.0.1:80"));
    kernel.add_service(&Service::new(key)).expect("a service");
    let destination = Destination::new(address("10.0.0.2:80"), Forwarding::Nat);
    kernel.add_destination(&key, &destination).expect("a destination");
    let before = kernel.table().expect("a table");
    assert_eq!(before, kernel.table().expect("a table"));
    kernel.set_destination(&key, &destination.weight(3)).expect("another weight");
    assert_ne!(before, kernel.table().expect("a table"));
    assert_eq!(saved()[1], "-a -t 10.0.0.1:80 -r 10.0.0.2:80 -m -w 3");
    let direct = Destination::new(destination.key, Forwarding::Direct);
    kernel.set_destination(&key, &direct).expect("another forwarding method");
    assert_eq!(saved()[1], "-a -t 10.0.0.1:80 -r 10.0.0.2:80 -g -w 1");
    kernel.set_service(&Service::new(key).scheduler("rr")).expect("another scheduler");
    assert_eq!(saved()[0], "-A -t 10.0.0.1:80 -s rr");
    kernel.zero(Some(&key)).expect("zero");
    kernel.zero(None).expect("zero all");
    kernel.flush().expect("flush");
    assert!(saved().is_empty());
}

#[test]
fn each_failure_has_its_name() {
    let Some(mut kernel) = client() else { return };
    let key = ServiceKey::tcp(address("10.0.0.1:80"));
    let service = Service::new(key);
    let destination = Destination::new(address("10.0.0.2:80"), Forwarding::Nat);
    macro_rules! fails {
        ($call:expr, $kind:pat) => {
            let error = $call.expect_err("the kernel refuses it");
            println!("{error}");
            assert!(matches!(error.kind(), $kind), "{error:?}");
        };
    }
    fails!(kernel.delete_service(&key), ErrorKind::NoSuchService);
    fails!(kernel.set_service(&service), ErrorKind::NoSuchService);
    fails!(kernel.service(&key), ErrorKind::NoSuchService);
    fails!(kernel.zero(Some(&key)), ErrorKind::NoSuchService);
    fails!(kernel.add_destination(&key, &destination), ErrorKind::NoSuchService);
    fails!(kernel.add_service(&service.clone().scheduler("none-such")), ErrorKind::NoSuchScheduler { .. });
    kernel.add_service(&service).expect("a service");
    fails!(kernel.add_service(&service), ErrorKind::AlreadyExists);
    fails!(kernel.set_service(&service.clone().scheduler("none-such")), ErrorKind::NoSuchScheduler { .. });
    fails!(kernel.set_destination(&key, &destination), ErrorKind::NoSuchDestination);
    fails!(kernel.delete_destination(&key, &destination.key), ErrorKind::NoSuchDestination);
    fails!(kernel.add_destination(&key, &destination.thresholds(9, 5)), ErrorKind::ThresholdsOutOfOrder);
    kernel.add_destination(&key, &destination).expect("a destination");
    fails!(kernel.add_destination(&key, &destination), ErrorKind::AlreadyExists);
    fails!(kernel.start_daemon(&Daemon::new(DaemonRole::Master, "none0", 0)), ErrorKind::NoSuchInterface);
    fails!(kernel.stop_daemon(DaemonRole::Master, 0), ErrorKind::NoSuchDaemon);
    assert!(kernel.destinations(&ServiceKey::tcp(address("10.9.9.9:1"))).expect("an empty dump").is_empty());
}

#[test]
fn schedulers_are_found_without_a_change() {
    let Some(mut kernel) = client() else { return };
    for (scheduler, engine) in [("rr", None), ("mh", None), ("wlc", Some("sip"))] {
        kernel.find_scheduler(scheduler, engine).expect("Debian's kernel has it");
    }
    for (scheduler, engine) in [("twos", None), ("wllc", None), ("rr", Some("pis"))] {
        let error = kernel.find_scheduler(scheduler, engine).expect_err("Debian's kernel does not have it");
        assert!(matches!(error.kind(), ErrorKind::NoSuchScheduler { .. }), "{error}");
    }
    assert_eq!(saved(), Vec::<String>::new());
    // The kernel still takes IPv4 and IPv6 services.
    for service in ["10.0.0.1:80", "[2001:db8::1]:80"] {
        kernel.add_service(&Service::new(ServiceKey::tcp(address(service)))).expect("a service");
    }
}

#[test]
fn daemons_timeouts_and_info_are_as_ipvsadm_shows_them() {
    let Some(mut kernel) = client() else { return };
    run("ip", "link add veth0 type veth peer name veth1");
    run("ip", "addr add 10.7.0.1/24 dev veth0");
    run("ip", "link set veth0 up");
    run("ip", "link set veth1 up");
    kernel.start_daemon(&Daemon::new(DaemonRole::Master, "veth0", 5)).expect("a daemon");
    kernel.start_daemon(&Daemon::new(DaemonRole::Backup, "veth0", 6)).expect("a second daemon");
    let shown = run("ipvsadm", "-Ln --daemon");
    assert!(shown.contains("master sync daemon (mcast=veth0, syncid=5"), "{shown}");
    assert!(shown.contains("backup sync daemon (mcast=veth0, syncid=6"), "{shown}");
    let daemons = kernel.daemons().expect("daemons");
    let found: Vec<_> =
        daemons.iter().map(|daemon| (daemon.role, &*daemon.interface, daemon.sync_id)).collect();
    assert_eq!(found, [(DaemonRole::Master, "veth0", 5), (DaemonRole::Backup, "veth0", 6)]);
    kernel.stop_daemon(DaemonRole::Master, 5).expect("a stopped daemon");
    kernel.stop_daemon(DaemonRole::Backup, 6).expect("a stopped daemon");
    assert!(kernel.daemons().expect("no daemons").is_empty());

    let seconds = Duration::from_secs;
    let timeouts = Timeouts { tcp: seconds(100), tcp_fin: seconds(20), udp: seconds(30) };
    kernel.set_timeouts(&timeouts).expect("timeouts");
    assert_eq!(kernel.timeouts().expect("timeouts"), timeouts);
    let shown = run("ipvsadm", "-Ln --timeout");
    assert!(shown.contains("100 20 30"), "{shown}");
    let info = kernel.info().expect("info");
    let (major, minor, patch) = info.version;
    let expected = format!("version {major}.{minor}.{patch} (size={})", info.connection_table_size);
    assert!(run("ipvsadm", "-Ln").contains(&expected), "{expected}");
}

fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is that of a living variable, which the call fills.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |value: libc::timeval| {
        Duration::from_secs(u64::try_from(value.tv_sec).unwrap_or_default())
            + Duration::from_micros(u64::try_from(value.tv_usec).unwrap_or_default())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
fn two_thousand_destinations_are_set_and_read() {
    let Some(mut kernel) = client() else { return };
    let key = ServiceKey::tcp(address("10.0.0.1:80"));
    kernel.add_service(&Service::new(key).scheduler("wrr")).expect("a service");
    let changes: Vec<Change> = (0..2000u16)
        .map(|number| {
            let server = SocketAddr::from((
                [10, 1, u8::try_from(number >> 8).expect("small"), number.to_be_bytes()[1]],
                80,
            ));
            Change::AddDestination(key, Destination::new(server, Forwarding::Nat))
        })
        .collect();
    let before = cpu_time();
    let results = kernel.apply(&changes).expect("results");
    println!("2000 destinations: {:?} of CPU to add", cpu_time() - before);
    assert!(results.iter().all(Result::is_ok));
    let before = cpu_time();
    assert_eq!(kernel.destinations(&key).expect("destinations").len(), 2000);
    println!("2000 destinations: {:?} of CPU to read", cpu_time() - before);
    // The second time, each fails on its own.
    let results = kernel.apply(&changes[..100]).expect("results");
    assert!(
        results
            .iter()
            .all(|result| matches!(result, Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists)))
    );
    assert_eq!(run("ipvsadm", "-Sn").lines().count(), 2001);
}

#[test]
fn the_saved_text_is_ipvsadms() {
    let Some(mut kernel) = client() else { return };
    let key = ServiceKey::tcp(address("10.0.0.1:80"));
    kernel.add_service(&persistent(Service::new(key), 60, 24, None)).expect("a service");
    let servers = [
        Destination::new(address("10.0.0.2:80"), Forwarding::Nat).thresholds(2, 5),
        Destination::new(address("10.0.0.3:80"), Forwarding::Direct).weight(0),
        Destination::new(address("10.0.0.4:80"), Forwarding::Tunnel(Tunnel::Ipip)),
    ];
    for server in &servers {
        kernel.add_destination(&key, server).expect("a destination");
    }
    let ours = save::text(&kernel.table().expect("a table"));
    let theirs = save::parse(&run("ipvsadm", "-Sn")).expect("text of ipvsadm");
    // The order is the kernel's or the program's, and `ipvsadm -Sn` leaves thresholds out.
    let parsed = |text: &str, has_thresholds: bool| {
        let mut saved = save::parse(text).expect("text of the crate");
        let destinations = &mut saved[0].destinations;
        destinations.sort_by_key(|destination| destination.key);
        if !has_thresholds {
            destinations.iter_mut().for_each(|destination| *destination = destination.thresholds(0, 0));
        }
        saved
    };
    assert_eq!(theirs, parsed(&ours, false));
    kernel.flush().expect("flush");
    let mut restore = Command::new("ipvsadm").arg("-R").stdin(Stdio::piped()).spawn().expect("ipvsadm");
    restore.stdin.take().expect("a pipe").write_all(ours.as_bytes()).expect("ipvsadm reads");
    assert!(restore.wait().expect("ipvsadm").success());
    let restored = save::text(&kernel.table().expect("a table"));
    assert_eq!(parsed(&restored, true), parsed(&ours, true));
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Replies {
    ThroughDirector,
    Direct,
}

/// Namespaces around the director, which is the test's own: a client, and two servers on one network.
struct Network {
    names: Vec<String>,
}

impl Network {
    /// Replies go through the director, or directly from the servers to a client on their network.
    fn new(test: &str, replies: Replies) -> Self {
        let names: Vec<String> = ["c", "s1", "s2"].iter().map(|name| format!("{test}-{name}")).collect();
        run("ip", "link add br0 type bridge");
        run("ip", "addr add 10.2.0.1/24 dev br0");
        run("ip", "link set br0 up");
        for (index, name) in names.iter().enumerate() {
            let link = format!("v{index}");
            run("ip", &format!("netns add {name}"));
            run("ip", &format!("link add {link} type veth peer name eth0 netns {name}"));
            let is_apart = index == 0 && replies == Replies::ThroughDirector;
            if is_apart {
                run("ip", &format!("addr add 10.1.0.1/24 dev {link}"));
                run("ip", &format!("-n {name} addr add 10.1.0.2/24 dev eth0"));
            } else {
                run("ip", &format!("link set {link} master br0"));
                run("ip", &format!("-n {name} addr add 10.2.0.{}/24 dev eth0", ["9", "2", "3"][index]));
            }
            run("ip", &format!("link set {link} up"));
            run("ip", &format!("-n {name} link set eth0 up"));
            run("ip", &format!("-n {name} link set lo up"));
            let gateway = if is_apart { "10.1.0.1" } else { "10.2.0.1" };
            run("ip", &format!("-n {name} route add default via {gateway}"));
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        Self { names }
    }

    /// Runs a closure on a thread in a namespace.
    fn within<T: Send + 'static>(
        &self,
        index: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        use std::os::fd::AsRawFd as _;
        let file = std::fs::File::open(format!("/run/netns/{}", self.names[index])).expect("a namespace");
        std::thread::spawn(move || {
            // SAFETY: no memory is passed; only this thread is concerned.
            let status = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(status, 0, "setns: {}", std::io::Error::last_os_error());
            work()
        })
    }

    /// Starts a server in each of the two namespaces, which sends its number to each client.
    fn serve(&self) {
        for index in 1..=2u8 {
            let (ready, is_ready) = std::sync::mpsc::channel();
            self.within(index.into(), move || {
                let listener = TcpListener::bind("0.0.0.0:80").expect("a listener");
                ready.send(()).expect("the test waits");
                for stream in listener.incoming() {
                    let _ = stream.expect("a connection").write_all(&[index]);
                }
            });
            is_ready.recv().expect("a server starts");
        }
    }

    /// Connects ten times and returns how often each server responded.
    fn ask(&self) -> [usize; 2] {
        let client = self.within(0, || {
            let mut counts = [0; 2];
            for _ in 0..10 {
                let begin = Instant::now();
                let mut stream = TcpStream::connect_timeout(&address("10.9.0.1:80"), Duration::from_secs(20))
                    .unwrap_or_else(|error| panic!("no connection after {:?}: {error}", begin.elapsed()));
                let mut number = [0];
                stream.read_exact(&mut number).expect("a number");
                counts[usize::from(number[0]) - 1] += 1;
            }
            counts
        });
        client.join().expect("the client ends")
    }
}

/// Balances ten connections between two servers.
fn balances(test: &str, forwarding: Forwarding, prepare: impl Fn(&Network)) {
    let Some(mut kernel) = client() else { return };
    let replies = if forwarding == Forwarding::Nat { Replies::ThroughDirector } else { Replies::Direct };
    let network = Network::new(test, replies);
    run("ip", "addr add 10.9.0.1/32 dev lo");
    prepare(&network);
    network.serve();
    let key = ServiceKey::tcp(address("10.9.0.1:80"));
    kernel.add_service(&Service::new(key).scheduler("rr")).expect("a service");
    for server in ["10.2.0.2:80", "10.2.0.3:80"] {
        kernel.add_destination(&key, &Destination::new(address(server), forwarding)).expect("a destination");
    }
    assert_eq!(network.ask(), [5, 5]);
    let connections = connections::read(1000).expect("connections");
    let to_servers: Vec<DestinationKey> =
        connections.iter().map(|connection| connection.destination.into()).collect();
    assert_eq!(connections.len(), 10, "{connections:?}");
    assert!(to_servers.contains(&DestinationKey::from(address("10.2.0.3:80"))), "{to_servers:?}");
    println!("{test}: 10 connections, 5 to each server");
}

/// A server accepts packets to the virtual address, and does not announce it.
fn accept_virtual_address(name: &str) {
    run("ip", &format!("-n {name} addr add 10.9.0.1/32 dev lo"));
}

#[test]
fn traffic_through_nat_is_balanced() {
    balances("nat", Forwarding::Nat, |_| {});
}

#[test]
fn traffic_through_direct_routing_is_balanced() {
    balances("direct", Forwarding::Direct, |network| {
        network.names[1..].iter().for_each(|name| accept_virtual_address(name));
    });
}

#[test]
fn traffic_through_a_tunnel_is_balanced() {
    balances("tunnel", Forwarding::Tunnel(Tunnel::Ipip), |network| {
        for name in &network.names[1..] {
            accept_virtual_address(name);
            run("ip", &format!("-n {name} link set tunl0 up"));
        }
    });
}
