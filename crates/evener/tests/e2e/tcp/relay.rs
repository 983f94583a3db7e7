//! TCP relay: bytes arrive unchanged, and failing servers are skipped.

use crate::harness::{
    BINARY, DEADLINE, Directory, Evener, Server, connect, have, have_root, line, local, reserved_port,
    wait_until, who,
};
use crate::tcp::pending::Silent;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

fn service(listen: u16, servers: &[&Server], more: &str) -> String {
    let servers: String = servers.iter().map(|server| format!("\"127.0.0.1:{}\", ", server.port)).collect();
    format!("service \"s\" {{ listen = \"127.0.0.1:{listen}\", {servers} {more} }}")
}

#[test]
fn the_one_liner_balances_round_robin() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let [a_at, b_at] = [a.port, b.port].map(|port| format!("127.0.0.1:{port}"));
    let evener = Evener::one_liner(&["tcp", "127.0.0.1:0", &a_at, &b_at]);
    let listen = evener.port("tcp");
    let servers: Vec<String> = (0..6).map(|_| who(listen)).collect();
    assert_eq!(servers, ["a", "b", "a", "b", "a", "b"]);
}

#[test]
fn a_refused_connection_is_retried_on_the_next_server() {
    let (mut a, b) = (Server::named("a"), Server::named("b"));
    let evener = Evener::run(&service(0, &[&a, &b], "passive = { down_for = \"1s\" }"));
    let listen = evener.port("s");
    assert_eq!([who(listen), who(listen)], ["a", "b"]);
    a.stop();
    let servers: Vec<String> = (0..20).map(|_| who(listen)).collect();
    assert!(servers.iter().all(|name| name == "b"), "{servers:?}");
    let name = format!("127.0.0.1:{}", a.port);
    let server = evener.server(&name);
    assert_eq!((server["verdict"].as_str(), server["reason"].as_str()), (Some("down"), Some("refused")));
    // One refusal marks the server down. On a busy machine a few more clients try it before the next snapshot;
    // without a mark, ten of twenty would.
    assert!(
        (1..10).contains(&server["counters"]["connect_failures"]["refused"].as_u64().unwrap()),
        "{server}"
    );
    let _a = Server::named_at("a", a.port);
    wait_until("a to be used again", || (who(listen) == "a").then_some(()));
    assert_eq!(evener.server(&name)["verdict"], "up");
}

#[test]
fn a_connection_attempt_that_times_out_is_retried_on_the_next_server() {
    let (silent, b) = (Silent::new(), Server::named("b"));
    let more = format!("\"127.0.0.1:{}\", connect_timeout = \"300ms\"", silent.port());
    let evener = Evener::run(&service(0, &[&b], &more));
    let listen = evener.port("s");
    assert_eq!([who(listen), who(listen), who(listen)], ["b", "b", "b"]);
    let server = evener.server(&format!("127.0.0.1:{}", silent.port()));
    // Another client may try the server in the milliseconds between the timeout and the next snapshot.
    assert!((1..=2).contains(&server["counters"]["connect_failures"]["timeout"].as_u64().unwrap()));
    assert_eq!(server["reason"], "connect timeout");
}

#[test]
fn a_client_without_a_usable_server_is_closed_and_the_reason_is_logged() {
    let mut a = Server::named("a");
    a.stop();
    let evener = Evener::run(&service(0, &[&a], ""));
    let listen = evener.port("s");
    assert_eq!([who(listen), who(listen)], ["", ""]);
    assert_eq!(evener.service_counter("s", "no_server"), 2);
    evener.expect_log("no_server service=s reason=\"every usable server failed\"");
}

/// Fills a block of a stream with contents that differ at each position, cheap to write and to compare.
fn block(number: u64, buffer: &mut [u8]) {
    for (at, chunk) in buffer.chunks_exact_mut(4096).enumerate() {
        chunk[..8].copy_from_slice(&(number * 1_000_003 + at as u64).to_le_bytes());
    }
}

/// Sends a stream of blocks and shuts down the write side.
fn send_stream(mut stream: &TcpStream, salt: u64, blocks: u64) {
    let mut buffer = vec![salt as u8; 1 << 20];
    for number in 0..blocks {
        block(number + salt, &mut buffer);
        stream.write_all(&buffer).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Checks that the stream of `send_stream` arrives.
fn check_stream(mut stream: &TcpStream, salt: u64, blocks: u64) {
    let mut expected = vec![salt as u8; 1 << 20];
    let mut received = vec![0; 1 << 20];
    for number in 0..blocks {
        block(number + salt, &mut expected);
        stream.read_exact(&mut received).unwrap();
        assert!(received == expected, "block {number} differs");
    }
    assert_eq!(stream.read(&mut received).unwrap(), 0, "the stream must end after the last block");
}

#[test]
fn a_gibibyte_in_both_directions_arrives_unchanged() {
    const BLOCKS: u64 = 1024;
    let server = Server::start(|stream| {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| send_stream(&stream, 7, BLOCKS));
            check_stream(&stream, 99, BLOCKS);
        });
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("s");
    let client = connect(listen);
    std::thread::scope(|scope| {
        scope.spawn(|| send_stream(&client, 99, BLOCKS));
        check_stream(&client, 7, BLOCKS);
    });
    wait_until("the connection to end", || {
        (evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
    for name in ["bytes_in", "bytes_out"] {
        assert_eq!(evener.service_counter("s", name), BLOCKS << 20);
    }
}

#[test]
fn small_and_large_writes_of_many_clients_arrive_unchanged() {
    let a = Server::named("a");
    let evener = Evener::run(&service(0, &[&a], ""));
    let listen = evener.port("s");
    std::thread::scope(|scope| {
        for client in 0..40_u32 {
            scope.spawn(move || {
                let mut stream = connect(listen);
                line(&mut stream);
                let mut random = u64::from(client) + 1;
                for _ in 0..40 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let size = [1, 100, 4096, 65_536, 65_537, 300_000][(random >> 33) as usize % 6];
                    let sent: Vec<u8> = (0..size).map(|at| (at as u64 ^ random) as u8).collect();
                    let mut reader = stream.try_clone().unwrap();
                    let writing = std::thread::spawn({
                        let (sent, mut stream) = (sent.clone(), stream.try_clone().unwrap());
                        move || stream.write_all(&sent).unwrap()
                    });
                    let mut received = vec![0; size];
                    reader.read_exact(&mut received).unwrap();
                    writing.join().unwrap();
                    assert!(received == sent);
                }
            });
        }
    });
}

#[test]
fn half_closed_connections_stay_open_in_both_directions() {
    let server = Server::start(|mut stream| {
        // The server receives up to the client's end, then sends.
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        stream.write_all(format!("received {received}").as_bytes()).unwrap();
    });
    let first_sender = Server::start(|mut stream| {
        // The server sends and shuts down its write side, then receives up to the client's end.
        stream.write_all(b"I am done").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = String::new();
        stream.read_to_string(&mut received).unwrap();
        assert_eq!(received, "still here");
    });
    let evener = Evener::run(&service(0, &[&server, &first_sender], ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(b"everything").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert_eq!(response, "received everything");
    let mut client = connect(listen);
    let mut response = String::new();
    client.read_to_string(&mut response).unwrap();
    assert_eq!(response, "I am done");
    client.write_all(b"still here").unwrap();
}

#[test]
fn a_response_before_the_request_is_read_reaches_the_client() {
    // Like a web server that refuses a large upload, the server responds and closes with unread bytes, which causes a reset.
    let server = Server::start(|mut stream| {
        let mut some = [0; 10];
        stream.read_exact(&mut some).unwrap();
        stream.write_all(&vec![b'4'; 100_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    let mut writer = client.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for _ in 0..200 {
            if writer.write_all(&[0; 65_536]).is_err() {
                return;
            }
        }
    });
    let mut response = Vec::new();
    let _ = client.read_to_end(&mut response);
    assert_eq!(response.len(), 100_000);
    drop(client);
    writing.join().unwrap();
}

#[test]
fn unix_sockets_are_relayed_on_both_sides_and_ipv6_clients_reach_an_ipv4_server() {
    let directory = Directory::new();
    let (front, back) = (directory.file("front.sock"), directory.file("back.sock"));
    let listener = UnixListener::bind(&back).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"unix\n");
        }
    });
    let (a, listen) = (Server::named("a"), reserved_port());
    // A stale socket file, without a listener, is replaced.
    drop(UnixListener::bind(&front).unwrap());
    let evener = Evener::run(&format!(
        "service \"u\" {{ listen = {{ \"{0}\", \"127.0.0.1:{listen}\" }}, \"{1}\", unix_mode = \"0621\" }}\n\
         service \"six\" {{ listen = \"[::1]:{listen}\", \"127.0.0.1:{2}\" }}",
        front.display(),
        back.display(),
        a.port
    ));
    let mut text = String::new();
    UnixStream::connect(&front).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "unix\n");
    assert_eq!(who(listen), "unix");
    let mut six = TcpStream::connect(("::1", listen)).unwrap();
    assert_eq!(line(&mut six), "a 127.0.0.1");
    let mode = std::fs::metadata(&front).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o621);
    drop(evener);
}

#[test]
fn keepalive_is_set_on_client_and_server_sockets_as_configured() {
    if !have("ss") {
        return;
    }
    let a = Server::named("a");
    let evener = Evener::run(&service(0, &[&a], "keepalive = \"4000s\", server_keepalive = \"8000s\""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    line(&mut client);
    // The timer of an idle connection with keepalive: `timer:(keepalive,66min,0)`.
    let timer = |filter: String| {
        let output = Command::new("ss").args(["-tnoH", "state", "established", &filter]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (front, back) = (timer(format!("sport = :{listen}")), timer(format!("dport = :{}", a.port)));
    assert!(front.contains("timer:(keepalive,66min"), "{front}");
    assert!(back.contains("timer:(keepalive,133min") || back.contains("timer:(keepalive,2h"), "{back}");
}

#[test]
fn a_sticky_client_keeps_its_server_across_workers_and_a_reload() {
    let (a, b, c) = (Server::named("a"), Server::named("b"), Server::named("c"));
    let evener = Evener::run_with(&service(0, &[&a, &b, &c], "sticky = true"), &["--workers", "2"]);
    let listen = evener.port("s");
    let from = |address: &str| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&format!("{address}:0").parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.connect(&local(listen).into()).unwrap();
        line(&mut socket.into()).split(' ').next().unwrap().to_owned()
    };
    let first: Vec<String> = (2..8).map(|n| from(&format!("127.0.0.{n}"))).collect();
    assert!(["a", "b", "c"].iter().all(|name| first.contains(&(*name).to_owned())), "{first:?}");
    for turn in 0..8 {
        let again: Vec<String> = (2..8).map(|n| from(&format!("127.0.0.{n}"))).collect();
        assert_eq!(again, first, "turn {turn}");
        if turn == 3 {
            evener.reload(&service(
                listen,
                &[&c, &a, &b],
                "sticky = { size = 100 }, policy = \"least_conn\"",
            ));
        }
    }
    assert_eq!(evener.status()["pools"][0]["sticky_clients"], 6);
}

#[test]
fn servers_see_the_configured_source_address() {
    let a = Server::named("a");
    let evener = Evener::run(&service(0, &[&a], "source = \"127.0.0.9\""));
    let listen = evener.port("s");
    assert_eq!(line(&mut connect(listen)), "a 127.0.0.9");
}

#[test]
fn a_client_denied_by_an_access_list_is_closed_without_a_byte() {
    let a = Server::named("a");
    let evener = Evener::run(&service(0, &[&a], "deny = \"127.0.0.0/8\", allow = \"127.0.0.2\""));
    let listen = evener.port("s");
    assert_eq!(who(listen), "");
    assert_eq!(evener.service_counter("s", "denied"), 1);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.2:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&local(listen).into()).unwrap();
    assert_eq!(line(&mut socket.into()), "a 127.0.0.1");
}

#[test]
fn a_reset_by_the_server_is_forwarded_after_the_bytes_before_it() {
    let server = Server::start(|mut stream| {
        stream.write_all(b"last words").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let socket = socket2::Socket::from(stream);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    let mut response = [0; 10];
    client.read_exact(&mut response).unwrap();
    assert_eq!(&response, b"last words");
    let end = client.read(&mut response);
    assert!(
        end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
        "the client must see a reset"
    );
    let name = format!("127.0.0.1:{}", server.port);
    wait_until("the reset to be counted", || (evener.server(&name)["counters"]["resets"] == 1).then_some(()));
}

#[test]
fn bytes_behind_an_urgent_mark_in_bulk_data_are_not_lost() {
    let received = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let server_received = std::sync::Arc::clone(&received);
    let server = Server::start(move |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        *server_received.lock().unwrap() = all;
        let _ = stream.write_all(b"done\n");
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(&[1; 400_000]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    client.write_all(&[2; 300_000]).unwrap();
    socket2::SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(&[3; 50_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(line(&mut client), "done");
    let received = received.lock().unwrap();
    let count = |byte| received.iter().filter(|other| **other == byte).count();
    assert_eq!((count(1), count(2), count(3)), (400_000, 300_000, 50_000));
}

#[test]
fn a_reset_by_the_client_is_forwarded_as_a_reset() {
    let (sender, resets) = std::sync::mpsc::channel();
    let server = Server::start(move |mut stream| {
        let mut all = Vec::new();
        let _ = sender.send(stream.read_to_end(&mut all).is_err());
    });
    let evener = Evener::run(&service(0, &[&server], ""));
    let listen = evener.port("s");
    let mut client = connect(listen);
    client.write_all(b"half of an upload").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(resets.recv_timeout(DEADLINE).unwrap(), "the server must see a reset");
}

#[test]
fn a_full_backlog_of_a_unix_server_does_not_mark_it_down() {
    let directory = Directory::new();
    let path = directory.file("busy.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(1).unwrap();
    let b = Server::named("b");
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", {{ \"{}\", name = \"busy\" }}, {{ \"127.0.0.1:{}\", tier = 2 }} }}",
        path.display(),
        b.port
    ));
    let listen = evener.port("s");
    let mut clients: Vec<_> = (0..6).map(|_| connect(listen)).collect();
    // Two workers accept the clients in any order. Some wait in the backlog of the busy server, others get the next server.
    let mut passed_on = 0;
    for client in &mut clients {
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        passed_on += usize::from(line(client) == "b 127.0.0.1");
    }
    assert!(
        (3..=5).contains(&passed_on),
        "expected 3 to 5 of six clients at the next server, got {passed_on}"
    );
    let busy = evener.server("busy");
    assert_eq!(
        (busy["verdict"].as_str(), busy["counters"]["connect_failures"]["error"].as_u64() > Some(0)),
        (Some("up"), true)
    );
}

#[test]
fn clients_that_never_read_use_bounded_memory_and_do_not_delay_others() {
    let flood = Server::start(|mut stream| {
        let mut hello = [0; 1];
        if stream.read_exact(&mut hello).is_ok() && hello[0] == b'f' {
            while stream.write_all(&[0; 65_536]).is_ok() {}
        }
        let _ = stream.write_all(b"calm\n");
    });
    let evener = Evener::run(&service(0, &[&flood], ""));
    let listen = evener.port("s");
    let mut stuck: Vec<TcpStream> = (0..20).map(|_| connect(listen)).collect();
    stuck.iter_mut().for_each(|client| client.write_all(b"f").unwrap());
    std::thread::sleep(Duration::from_millis(500));
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", evener.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
        line.trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    };
    let before = memory();
    let mut calm = connect(listen);
    calm.write_all(b"c").unwrap();
    assert_eq!(line(&mut calm), "calm");
    std::thread::sleep(Duration::from_millis(500));
    assert!(memory() < before + 8 * 1024, "{} KiB, then {} KiB", before, memory());
}

#[test]
fn a_server_without_a_network_route_is_skipped() {
    if !have("ip") || !have_root() {
        return;
    }
    // The new namespace has only loopback, so there is no route to 192.0.2.1. The next server is used.
    let directory = Directory::new();
    let back = directory.file("back.sock").display().to_string();
    let listener = UnixListener::bind(&back).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"here\n");
        }
    });
    let front = directory.file("front.sock").display().to_string();
    let mut inside = Command::new("unshare");
    inside.args(["--net", "--", BINARY]);
    let evener = Evener::start(inside, directory, &["tcp", &front, "192.0.2.1:80", &back]);
    for _ in 0..4 {
        let mut text = String::new();
        UnixStream::connect(&front).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "here\n");
    }
    assert_eq!(evener.server("192.0.2.1:80")["reason"], "unreachable");
}

#[test]
fn clients_that_disconnect_at_any_point_leave_no_connections_or_descriptors_open() {
    let a = Server::named("a");
    let evener = Evener::run(&service(0, &[&a], ""));
    let listen = evener.port("s");
    let until = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                let mut turn = 0;
                while Instant::now() < until {
                    turn += 1;
                    let mut stream = connect(listen);
                    match turn % 4 {
                        0 => drop(stream),
                        1 => drop(socket2::Socket::from(stream).set_linger(Some(Duration::ZERO))),
                        2 => drop(stream.write_all(&[1; 9000])),
                        _ => drop(line(&mut stream)),
                    }
                }
            });
        }
    });
    wait_until("every connection to end", || {
        let status = evener.status();
        let server = &status["pools"][0]["servers"][0];
        (status["services"][0]["connections_active"] == 0 && server["active"] == 0).then_some(())
    });
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", evener.pid())).unwrap().count();
    assert!(descriptors < 200, "{descriptors} descriptors are open");
    assert_eq!(who(listen), "a");
}
