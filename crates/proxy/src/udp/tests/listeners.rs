//! Listeners that are assigned, released, leave and close; flows that are ended and listed.

use super::*;

#[test]
fn the_flows_of_a_listener_end_when_it_is_assigned_to_another_service() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    fixture.begin(&client);
    let other_server = bound();
    let other_pool = TestPool::new("other", &[target(&other_server)]);
    let other = service_with(Protocol::Udp, &other_pool, |_| {});
    fixture.udp.assign(&mut fixture.cx, ID, &other);
    assert_eq!(fixture.flows(), 0);
    fixture.send(&client, &["other"]);
    assert_eq!(text(&other_server), "other");
    assert_eq!((fixture.flows(), other.live.flows.load(Ordering::Relaxed)), (0, 1));
}

#[test]
fn a_released_listener_sends_its_queued_responses() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    let flow = fixture.begin(&client);
    fixture.servers[0].send_to(b"waits", flow).unwrap();
    let socket = fixture.sockets()[0];
    fixture.udp.on_flow_event(&mut fixture.cx, socket);
    assert_quiet(&client);
    let (listener, local) = fixture.udp.release(&mut fixture.cx, ID).expect("the listener exists");
    assert_eq!((local, text(&client).as_str(), fixture.flows()), (Local::Fixed, "waits", 0));
    assert_eq!(UdpSocket::from(listener).local_addr().unwrap(), fixture.address);
}

#[test]
fn a_smaller_table_ends_the_least_recently_used_flows() {
    let mut fixture = Fixture::new(1, |_| {});
    let clients = [fixture.client(), fixture.client(), fixture.client()];
    for client in &clients {
        fixture.pass(Duration::from_millis(1));
        fixture.begin(client);
    }
    let mut settings =
        Settings::new(fixture.service.settings.load().options.clone(), fixture.pool.published());
    settings.options.flows_max = 1;
    fixture.service.settings.store(Arc::new(settings));
    fixture.udp.refresh(&mut fixture.cx, "other", PoolChange::Same);
    assert_eq!(fixture.flows(), 3, "a refresh of another service changes nothing");
    fixture.udp.refresh(&mut fixture.cx, "service", PoolChange::Same);
    fixture.udp.reap();
    fixture.check_invariants();
    let left: Vec<SocketAddr> =
        fixture.udp.listeners[fixture.listener()].flows.iter().map(|(key, _)| key.client).collect();
    assert_eq!(left, [clients[2].local_addr().unwrap()]);
    fixture.udp.refresh(&mut fixture.cx, "service", PoolChange::Another);
    assert_eq!(fixture.flows(), 0, "flows end when the pool changes");
}

/// A fixture with a leaving listener, which has one flow.
fn leaving() -> (Fixture, UdpSocket, SocketAddr) {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    let flow = fixture.begin(&client);
    fixture.udp.unlisten(&mut fixture.cx, ID);
    assert_eq!(fixture.udp.next_sweep(), Some(Time::ZERO));
    (fixture, client, flow)
}

/// Sweeps after so many milliseconds; returns whether the listener still exists.
fn sweep_after(fixture: &mut Fixture, millis: u64) -> bool {
    fixture.pass(Duration::from_millis(millis));
    fixture.udp.sweep(&mut fixture.cx);
    fixture.udp.find(ID).is_some()
}

#[test]
fn a_listener_without_flows_closes_immediately() {
    let mut fixture = Fixture::new(1, |_| {});
    fixture.udp.unlisten(&mut fixture.cx, ID + 1);
    assert!(fixture.udp.find(ID).is_some());
    fixture.udp.unlisten(&mut fixture.cx, ID);
    assert!(fixture.udp.find(ID).is_none() && fixture.udp.next_sweep().is_none());
}

#[test]
fn datagrams_that_arrived_before_a_listener_closes_are_forwarded() {
    let mut fixture = Fixture::new(1, |_| {});
    let client = fixture.client();
    client.send(b"last").unwrap();
    wait_readable(&fixture.udp.listeners[fixture.listener()].socket);
    fixture.udp.drain(&mut fixture.cx);
    assert_eq!(text(&fixture.servers[0]), "last");
    assert!(fixture.udp.find(ID).is_some(), "the listener has a flow now");
}

#[test]
fn a_leaving_listener_closes_a_moment_after_the_response() {
    let (mut fixture, client, flow) = leaving();
    assert!(sweep_after(&mut fixture, 500), "no response yet");
    fixture.respond(0, flow, "response");
    assert_eq!(text(&client), "response");
    assert!(sweep_after(&mut fixture, 99));
    assert!(!sweep_after(&mut fixture, 1));
    assert_eq!(fixture.flows(), 0);
}

#[test]
fn a_leaving_listener_closes_when_its_flows_are_idle() {
    let (mut fixture, ..) = leaving();
    assert!(sweep_after(&mut fixture, 999));
    assert!(!sweep_after(&mut fixture, 1));
}

#[test]
fn flows_without_responses_keep_a_leaving_listener_open_for_five_seconds() {
    let (mut fixture, client, _) = leaving();
    for _ in 0..9 {
        assert!(sweep_after(&mut fixture, 500));
        fixture.send(&client, &["log line"]);
    }
    assert!(!sweep_after(&mut fixture, 500));
}

#[test]
fn busy_flows_keep_a_leaving_listener_open_for_half_a_minute_unless_the_program_drains() {
    for draining in [false, true] {
        let (mut fixture, client, flow) = leaving();
        fixture.cx.draining = draining;
        for _ in 0..59 {
            assert!(sweep_after(&mut fixture, 500));
            fixture.respond(0, flow, "response");
            fixture.pass(Duration::from_nanos(1));
            fixture.send(&client, &["next"]);
        }
        assert_eq!(sweep_after(&mut fixture, 500), draining);
    }
}

#[test]
fn a_flow_is_closed_by_its_number() {
    let mut fixture = Fixture::new(1, |_| {});
    let clients = [fixture.client(), fixture.client()];
    clients.iter().for_each(|client| {
        fixture.begin(client);
    });
    let number = fixture.udp.sockets[fixture.sockets()[1]].identity.number;
    assert!(!fixture.udp.close_numbered(&fixture.cx, number + 1));
    assert!(fixture.udp.close_numbered(&fixture.cx, number));
    assert!(!fixture.udp.close_numbered(&fixture.cx, number), "the flow is closed already");
    fixture.udp.reap();
    assert_eq!((fixture.count("closed.operator"), fixture.flows()), (1, 1));
    fixture.check_invariants();
}

#[test]
fn the_flows_of_a_server_end_together() {
    for (reason, counter) in
        [(EndReason::Operator, "closed.operator"), (EndReason::Down, "closed.server_down")]
    {
        let mut fixture = Fixture::new(2, |_| {});
        let clients = [fixture.client(), fixture.client(), fixture.client()];
        clients.iter().for_each(|client| fixture.send(client, &["begin"]));
        let snapshot = fixture.pool.published().load_full();
        let ending = Ending::new(&snapshot.servers()[0], reason, |_| {});
        assert_eq!(fixture.udp.end_server(&fixture.cx, &ending), 2);
        assert_eq!((fixture.count(counter), fixture.flows()), (2, 1));
        fixture.check_invariants();
    }
}

fn list(fixture: &Fixture, service: Option<&str>, most: usize) -> Listing {
    let listing = Arc::new(Mutex::new(Listing::default()));
    let done = Arc::clone(&listing);
    let filter = ListFilter::default().of_service(service.map(Arc::from));
    let request = ListRequest::new(filter, most, move |got| *done.lock().unwrap() = got);
    let mut collector = Collector::new(&request);
    fixture.udp.list(&fixture.cx, &mut collector);
    collector.finish();
    drop(request);
    let listing = listing.lock().unwrap();
    listing.clone()
}

#[test]
fn flows_are_listed_with_their_servers_and_idle_times() {
    let mut fixture = Fixture::new(1, |_| {});
    let clients = [fixture.client(), fixture.client()];
    let flow = fixture.begin(&clients[0]);
    fixture.begin(&clients[1]);
    fixture.pass(Duration::from_secs(3));
    fixture.respond(0, flow, "response");
    fixture.pass(Duration::from_secs(2));
    let listing = list(&fixture, Some("service"), 10);
    let seen: Vec<_> = listing.open.iter().map(|open| (open.client_port, open.idle.as_secs())).collect();
    let port = |client: &UdpSocket| Some(client.local_addr().unwrap().port());
    assert_eq!(seen, [(port(&clients[0]), 2), (port(&clients[1]), 5)]);
    let name = target(&fixture.servers[0]);
    assert!(listing.open.iter().all(|open| {
        let had = open.server.as_ref().unwrap();
        open.stage == "flow" && &*had.pool == "pool" && Target::Ip(had.server.parse().unwrap()) == name
    }));
    let short = list(&fixture, None, 1);
    assert_eq!((short.total, short.open.len()), (2, 1));
    assert_eq!(list(&fixture, Some("other"), 10).total, 0);
}

#[test]
fn remembered_clients_are_counted_once_per_flow() {
    let mut fixture = Fixture::new(1, |settings| settings.clients = Some(Arc::new(Clients::new(8, 1))));
    let client = fixture.client();
    let flow = fixture.begin(&client);
    fixture.begin(&client);
    fixture.respond(0, flow, "response");
    let seen: Vec<_> = fixture.service.clients().expect("the service remembers clients").collect();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].connects, seen[0].bytes_in, seen[0].bytes_out), (1, 10, 8));
    assert_eq!(&*seen[0].last_server.as_ref().unwrap().pool, "pool");
}

#[test]
fn a_listener_of_all_addresses_responds_from_the_address_that_was_used() {
    let mut fixture = Fixture::new(1, |_| {});
    let listener = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    sys::set_flag(listener.as_fd(), (libc::IPPROTO_IP, libc::IP_PKTINFO)).unwrap();
    let port = listener.local_addr().unwrap().port();
    fixture.udp.release(&mut fixture.cx, ID).expect("the listener exists");
    let socket = (listener.into(), Local::Each);
    fixture.udp.listen(&mut fixture.cx, ID, Arc::clone(&fixture.service), socket, Vec::new());
    let client = bound();
    for last in [2, 3] {
        let used = SocketAddr::from(([127, 0, 0, last], port));
        client.send_to(b"begin", used).unwrap();
        fixture.on_datagrams();
        let (_, flow) = receive(&fixture.servers[0]);
        fixture.respond(0, flow, "response");
        assert_eq!(receive(&client), (b"response".to_vec(), used));
    }
    assert_eq!(fixture.flows(), 2, "each address has its own flow");
}

#[test]
fn workers_share_the_flows_of_a_service() {
    let check = |flows_max: u32, workers: usize, expected: usize| {
        let service = service_with(Protocol::Udp, &TestPool::new("pool", &[]), |settings| {
            settings.options.flows_max = flows_max;
        });
        assert_eq!(
            table_size(&service.settings.load(), &Context::for_worker((0, workers)).0),
            expected,
            "{flows_max} / {workers}"
        );
    };
    check(100, 1, 100);
    check(100, 3, 34);
    check(1, 8, 1);
    check(0, 0, 1);
}

#[test]
fn the_access_list_determines_the_class_of_a_client() {
    let pool = TestPool::new("pool", &[]);
    let check = |refused: Option<usize>, client: &str, expected: Option<ClientClass>| {
        let service = service_with(Protocol::Udp, &pool, |settings| {
            settings.acl = permit("192.0.2.0/24", Access::Deny);
            settings.backends.push(settings.backends[0].clone());
            settings.denied = refused.map_or(Refusal::Drop, Refusal::Backend);
        });
        let class = ClientClass::of(client.parse().unwrap(), &service.settings.load());
        assert_eq!(class, expected, "{client}, {refused:?}");
    };
    check(None, "192.0.2.1", Some(ClientClass::Permitted));
    check(None, "198.51.100.1", None);
    check(Some(1), "192.0.2.1", Some(ClientClass::Permitted));
    check(Some(1), "198.51.100.1", Some(ClientClass::Refused));
    // A backend that does not exist is not a pool for refused clients.
    check(Some(9), "198.51.100.1", None);
}
