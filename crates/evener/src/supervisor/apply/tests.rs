//! Applying a configuration to a running instance gives what starting with it gives: the same pools, services
//! and listening sockets. Random configurations are applied one after another.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::*;
use crate::config::random_spec;
use crate::events::Events;
use crate::inputs::gather;
use crate::observe::{Log, LogFormat, LogLevel};
use crate::supervisor::{ConfigSource, Setting};
use evener_core::pool::Pool;
use evener_core::spec::{
    AdminSpec, CertificateFiles, Plane, Policy, PoolSpec, Protocol, ServerSpec, ServerTlsSpec, StickySpec,
    TlsSpec, Transport, Verification, XdpSpec,
};
use evener_core::{Endpoint, Random};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Number of configurations that are applied.
const STEPS: u64 = 40;
/// Number of addresses that services listen on.
const ADDRESSES: usize = 10;
const DEADLINE: Duration = Duration::from_secs(30);
/// Name of the service and of the pool that every configuration has.
const ANCHOR: &str = "anchor";

/// A directory that is removed at the end of its test, with two certificates.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("evener-apply-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for name in ["one.pem", "two.pem"] {
            let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
            std::fs::write(path.join(name), made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
        }
        Self(path)
    }

    fn certificate(&self, random: &mut Random) -> CertificateFiles {
        let file = self.0.join(["one.pem", "two.pem"][random.below(2)]).display().to_string();
        CertificateFiles { chain: file.clone(), key: file, ocsp: None, issuers: None }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns loopback addresses that only this process uses: `host` distinguishes sets of addresses.
fn loopback(host: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 32 + high % 64, low, host)
}

fn listen_address(host: u8, number: usize) -> SocketAddr {
    (loopback(host), 20_000 + number as u16).into()
}

/// Generates configurations that one process can run.
struct Generator<'a> {
    random: Random,
    scratch: &'a Scratch,
    live: SocketAddr,
}

impl Generator<'_> {
    /// Returns a random configuration. About half of its services and pools are those of `before`.
    fn next(&mut self, before: &Spec) -> Spec {
        let mut spec = random_spec(&mut self.random, &self.scratch.0);
        // The XDP plane needs interfaces; its own tests have them.
        spec.services.retain(|service| service.plane == Plane::Proxy);
        spec.xdp = XdpSpec::default();
        for (number, pool) in spec.pools.iter_mut().enumerate() {
            self.bound(pool);
            pool.name = format!("p{number}").into();
        }
        for (number, service) in spec.services.iter_mut().enumerate() {
            self.make_startable(service);
            service.name = format!("s{number}").into();
        }
        self.keep_some(&before.pools, &mut spec.pools, |pool| &pool.name);
        self.keep_some(&before.services, &mut spec.services, |service| &service.name);
        let names: Vec<Arc<str>> = spec.pools.iter().map(|pool| pool.name.clone()).collect();
        for service in &mut spec.services {
            for pool in pools_of(service).filter(|pool| !names.contains(pool)) {
                *pool = names[self.random.below(names.len())].clone();
            }
        }
        self.add_anchor(&mut spec);
        self.listen(&mut spec.services);
        spec
    }

    fn keep_some<T: Clone>(&mut self, before: &[T], after: &mut [T], name: impl Fn(&T) -> &Arc<str>) {
        for item in after {
            let known = before.iter().find(|known| name(known) == name(item));
            if let Some(known) = known.filter(|_| self.random.below(2) == 0) {
                *item = known.clone();
            }
        }
    }

    /// Makes the servers local, and the tables small.
    fn bound(&mut self, pool: &mut PoolSpec) {
        pool.discover.clear();
        pool.resolvers.clear();
        for (number, server) in pool.servers.iter_mut().enumerate() {
            let endpoint = match server.endpoint {
                Endpoint::Unix(_) => Endpoint::Unix(self.scratch.0.join(format!("server-{number}"))),
                Endpoint::Ip(_) | Endpoint::Host { .. } => {
                    Endpoint::Ip((loopback(2), 1 + self.random.below(8) as u16).into())
                }
            };
            let chosen = ServerSpec { name: format!("n{number}").into(), ..server.clone() };
            *server = ServerSpec { endpoint, ..chosen };
        }
        if let Policy::Maglev { table } = &mut pool.policy {
            *table = 101;
        }
        if let Some(StickySpec { size, .. }) = &mut pool.sticky {
            *size = (*size).min(1000);
        }
        if pool.tls.is_some() {
            let certificate = (self.random.below(2) == 0).then(|| self.scratch.certificate(&mut self.random));
            let verification = Verification::Off;
            let tls = ServerTlsSpec { name: None, authorities: None, verification, certificate };
            pool.tls = Some(Arc::new(tls));
        }
    }

    /// Removes the settings that need files or rights, and makes the tables small.
    fn make_startable(&mut self, service: &mut ServiceSpec) {
        service.clients = service.clients.map(|size| size.min(1000));
        service.request_log = None;
        service.options.source = None;
        service.options.warm = 0;
        service.options.flows_max = service.options.flows_max.min(1000);
        service.throttle.iter_mut().for_each(|throttle| throttle.size = throttle.size.min(1000));
        if let Some(dns) = service.dns.as_mut().map(Arc::make_mut) {
            dns.cache.iter_mut().for_each(|cache| cache.entries = cache.entries.min(1000));
            dns.rate_limit.iter_mut().for_each(|rate| rate.size = rate.size.min(1000));
        }
        if let Some(tls) = service.tls.as_mut().map(Arc::make_mut) {
            let TlsSpec { certificates, directories, client, .. } = tls;
            *certificates = vec![self.scratch.certificate(&mut self.random)];
            directories.clear();
            *client = None;
        }
    }

    /// Adds a service with a living server. Its settings change, but it stays.
    fn add_anchor(&mut self, spec: &mut Spec) {
        let mut server = ServerSpec::new(Endpoint::Ip(self.live));
        server.weight = 1 + self.random.below(5) as u32;
        spec.pools.push(PoolSpec::new(ANCHOR, vec![server]));
        let mut service = ServiceSpec::new(ANCHOR, Protocol::Tcp);
        service.pool = Some(ANCHOR.into());
        service.options.backlog = 1 + self.random.below(3) as u32;
        spec.services.push(service);
    }

    /// Gives each service an address, and some services another address and a unix socket.
    fn listen(&mut self, services: &mut [ServiceSpec]) {
        let mut free: Vec<usize> = (1..ADDRESSES).collect();
        for (number, service) in services.iter_mut().enumerate() {
            if &*service.name == ANCHOR {
                service.listen = vec![Endpoint::Ip(listen_address(1, 0))];
                continue;
            }
            let wanted = if self.random.below(3) == 0 && free.len() > 4 { 2 } else { 1 };
            let mut take =
                || Endpoint::Ip(listen_address(1, free.swap_remove(self.random.below(free.len()))));
            service.listen = (0..wanted).map(|_| take()).collect();
            if service.protocol.transports() == [Transport::Stream] && self.random.below(4) == 0 {
                let path = self.scratch.0.join(format!("listen-{}", (number + self.random.below(2)) % 8));
                service.listen.push(Endpoint::Unix(path));
            }
        }
        let mut paths = BTreeSet::new();
        for service in services {
            service.listen.retain(|address| match address {
                Endpoint::Unix(path) => paths.insert(path.clone()),
                Endpoint::Ip(_) | Endpoint::Host { .. } => true,
            });
        }
    }
}

fn pools_of(service: &mut ServiceSpec) -> impl Iterator<Item = &mut Arc<str>> {
    let refused =
        [&mut service.denied, &mut service.exceeded].into_iter().filter_map(|denied| match denied {
            Denied::Pool(pool) => Some(pool),
            Denied::Drop | Denied::Reject | Denied::Tarpit(_) => None,
        });
    service.pool.iter_mut().chain(service.routes.iter_mut().map(|route| &mut route.to)).chain(refused)
}

/// Returns the configuration at other listen addresses.
fn elsewhere(spec: &Spec, host: u8) -> Spec {
    let mut spec = spec.clone();
    for endpoint in spec.services.iter_mut().flat_map(|service| &mut service.listen) {
        match endpoint {
            Endpoint::Ip(address) => address.set_ip(loopback(host).into()),
            Endpoint::Unix(path) => *path = path.with_extension(host.to_string()),
            Endpoint::Host { .. } => {}
        }
    }
    spec
}

fn start() -> Supervisor {
    let events = Events::new(Log::new(LogFormat::Text, LogLevel::Off));
    Supervisor::start(Setting::new(1, ConfigSource::None, events)).unwrap().0
}

/// Applies a configuration as a reload does. Returns the changes, one per line.
async fn apply(supervisor: &mut Supervisor, spec: &Spec) -> String {
    // The files of a random API do not exist.
    let spec = Spec { admin: AdminSpec::default(), ..spec.clone() };
    let config = Config::without_file(spec);
    let inputs = gather(&config, supervisor.certificates.tls().clone())
        .await
        .map_err(|problems| one_text(&problems))
        .unwrap();
    let changes = supervisor.apply(config, inputs).map_err(|problems| one_text(&problems)).unwrap();
    changes.iter().map(|change| format!("{change}\n")).collect()
}

fn one_text(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

/// Returns the state of a supervisor that the configuration determines, one text for each part.
fn state(supervisor: &Supervisor) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    for pool in supervisor.pools.iter() {
        let name = &pool.spec().name;
        let snapshot = supervisor.pools.slot(name).unwrap().load();
        let servers = pool.servers().iter();
        let published = snapshot.servers().iter().map(|server| (&server.name, &server.target, server.tier));
        let servers = servers.map(|server| (&server.spec.name, &server.target, server.state));
        let text = format!(
            "{:#?} {:?} {:?}",
            pool.spec(),
            servers.collect::<Vec<_>>(),
            published.collect::<Vec<_>>()
        );
        state.insert(format!("pool {name}"), text);
    }
    for (name, service) in &supervisor.services {
        let service = service.of_workers().unwrap();
        let settings = service.settings.load();
        state.insert(
            format!("service {name}"),
            format!("{:?} {}", service.live.protocol, text_of(supervisor, &settings)),
        );
    }
    for (key, text) in supervisor.listeners.describe(&supervisor.services) {
        state.insert(format!("listener {key}"), text);
    }
    state
}

/// Returns the settings of a service. A new field does not compile until it is compared, too.
fn text_of(supervisor: &Supervisor, settings: &Settings) -> String {
    let Settings {
        options,
        acl,
        denied,
        throttle,
        exceeded,
        proxy_from,
        clients,
        records_refused,
        request_log,
        tls,
        http,
        dns,
        backends,
        default_backend,
        routes,
    } = settings;
    let backend = |backend: &Backend| {
        let Backend { pool, tls, send_proxy } = backend;
        let is_of = |wanted: &&Pool| {
            supervisor.pools.slot(&wanted.spec().name).is_some_and(|slot| Arc::ptr_eq(slot, pool))
        };
        let name = &supervisor.pools.iter().find(is_of).unwrap().spec().name;
        let is_current = match (tls, supervisor.certificates.tls().connector(name)) {
            (Some(used), Some(current)) => Arc::ptr_eq(used, &current),
            (used, current) => used.is_none() && current.is_none(),
        };
        assert!(is_current, "pool {name}: the TLS settings are not the current ones");
        format!("{name} {:?} {send_proxy:?}", supervisor.certificates.tls().digests_of_pool(name))
    };
    let backends: Vec<_> = backends.iter().map(backend).collect();
    let dns = dns.as_ref().map(|Dns { spec, cache, rate_limit }| {
        let cache = cache.as_ref().map(|cache| cache.spec().clone());
        (spec, cache, rate_limit.as_ref().map(|rate_limit| rate_limit.spec().clone()))
    });
    let throttle = throttle.as_ref().map(|throttle| throttle.spec().clone());
    let clients = clients.as_ref().map(|clients| clients.size());
    format!(
        "{options:#?} {acl:?} {denied:?} {throttle:?} {exceeded:?} {proxy_from:?} {clients:?} {records_refused} {} {} {http:#?} \
         {dns:#?} {backends:?} {default_backend:?} {routes:?}",
        request_log.is_some(),
        tls.is_some()
    )
}

/// Returns the sockets of this process's loopback addresses that accept clients, from the kernel's tables.
fn sockets(host: u8) -> BTreeSet<(&'static str, u16)> {
    let address = format!("{:08X}", u32::from_le_bytes(loopback(host).octets()));
    let mut sockets = BTreeSet::new();
    // The states are numbers of the kernel: 0A is LISTEN, 07 is an open UDP socket without a peer.
    for (transport, wanted) in [("tcp", "0A"), ("udp", "07")] {
        for line in std::fs::read_to_string(format!("/proc/net/{transport}")).unwrap().lines() {
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), _, Some(state)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            if let Some((ip, port)) = local.split_once(':')
                && ip == address
                && state == wanted
            {
                sockets.insert((transport, u16::from_str_radix(port, 16).unwrap()));
            }
        }
    }
    sockets
}

fn wanted_sockets(spec: &Spec) -> BTreeSet<(&'static str, u16)> {
    let mut sockets = BTreeSet::new();
    for service in &spec.services {
        for transport in service.protocol.transports() {
            let transport = if *transport == Transport::Stream { "tcp" } else { "udp" };
            let ports = service.listen.iter().filter_map(|endpoint| match endpoint {
                Endpoint::Ip(address) => Some(address.port()),
                Endpoint::Unix(_) | Endpoint::Host { .. } => None,
            });
            sockets.extend(ports.map(|port| (transport, port)));
        }
    }
    sockets
}

/// Starts a server that echoes the bytes of each connection.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    address
}

fn echo(stream: &mut TcpStream, byte: u8) {
    let mut echoed = [0];
    stream.write_all(&[byte]).unwrap();
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, [byte]);
}

#[tokio::test]
async fn applying_a_configuration_gives_the_state_of_starting_with_it() {
    let scratch = Scratch::new();
    let mut generator = Generator { random: Random::seeded(12), scratch: &scratch, live: echo_server() };
    let mut running = start();
    let (mut spec, mut connection) = (Spec::default(), None);
    for step in 0..STEPS {
        let before = std::mem::take(&mut spec);
        spec = generator.next(&before);
        let changes = apply(&mut running, &spec).await;
        let mut fresh = start();
        let copy = elsewhere(&spec, 3);
        apply(&mut fresh, &copy).await;
        let expected: BTreeMap<_, _> =
            state(&fresh).into_iter().map(|(part, text)| (home(&part), home(&text))).collect();
        let seen = state(&running);
        for (part, text) in &expected {
            assert_eq!(seen.get(part), Some(text), "step {step}, {part}, after the changes\n{changes}");
        }
        assert_eq!(seen.len(), expected.len(), "step {step}: something was not removed");
        let deadline = Instant::now() + DEADLINE;
        while sockets(1) != wanted_sockets(&spec) || sockets(3) != sockets(1) {
            let sockets = (sockets(1), sockets(3), wanted_sockets(&spec));
            assert!(Instant::now() < deadline, "step {step}: {sockets:?}, after the changes\n{changes}");
            std::thread::sleep(Duration::from_millis(5));
        }
        fresh.plane.stop();
        // A connection stays, and its service counts it.
        let stream = connection.get_or_insert_with(|| {
            let stream = TcpStream::connect(listen_address(1, 0)).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream
        });
        echo(stream, step as u8);
        assert_eq!(running.services[ANCHOR].live().active(), 1, "step {step}");
        assert_eq!(apply(&mut running, &spec).await, "", "step {step}: the same configuration has changes");
    }
    running.plane.stop();
}

/// Returns a text of the fresh instance with the listen addresses of the running instance.
fn home(text: &str) -> String {
    let (there, here): (IpAddr, IpAddr) = (loopback(3).into(), loopback(1).into());
    let text = text.replace(&format!("{there}:"), &format!("{here}:"));
    (0..8).fold(text, |text, n| text.replace(&format!("listen-{n}.3"), &format!("listen-{n}")))
}

/// Returns 100 services, each with a pool of 100 servers.
fn large() -> Spec {
    let server = |pool: usize, server: usize| {
        let address = Ipv4Addr::new(127, 20 + pool as u8, server as u8, 1);
        ServerSpec::new(Endpoint::Ip((address, 80).into()))
    };
    let pool = |number: usize| {
        let servers = (0..100).map(|at| server(number, at)).collect();
        PoolSpec::new(&format!("p{number}"), servers)
    };
    let service = |number: usize| ServiceSpec {
        listen: vec![Endpoint::Ip((Ipv4Addr::LOCALHOST, 0).into())],
        pool: Some(format!("p{number}").into()),
        ..ServiceSpec::new(&format!("s{number}"), Protocol::Tcp)
    };
    Spec { pools: (0..100).map(pool).collect(), services: (0..100).map(service).collect(), ..Spec::default() }
}

#[tokio::test]
async fn a_change_of_one_server_of_ten_thousand_sends_no_command_to_workers() {
    let (mut supervisor, mut spec) = (start(), large());
    apply(&mut supervisor, &spec).await;
    let commands = supervisor.plane.commands();
    let published = |supervisor: &Supervisor| -> Vec<_> {
        let pools = supervisor.pools.iter().map(|pool| pool.spec().name.clone());
        pools.map(|name| supervisor.pools.slot(&name).unwrap().load_full()).collect()
    };
    let before = published(&supervisor);
    spec.pools[7].servers[3].weight = 3;
    assert_eq!(apply(&mut supervisor, &spec).await, "~ server p7/127.27.3.1:80: weight 1 -> 3\n");
    assert_eq!(supervisor.plane.commands(), commands, "workers read the new weight in the snapshot");
    let after = published(&supervisor);
    let changed = before.iter().zip(&after).filter(|(before, after)| !Arc::ptr_eq(before, after)).count();
    assert_eq!(changed, 1, "one pool is published");
    // A change of one service is one command to the worker.
    spec.services[7].options.backlog = 9;
    apply(&mut supervisor, &spec).await;
    assert_eq!(supervisor.plane.commands(), commands + 1);
    supervisor.plane.stop();
}
