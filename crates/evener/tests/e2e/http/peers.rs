//! HTTP with real peers and under load: WebSocket between a client and a server of PyPI's `websockets`, many mixed
//! requests whose bodies are all compared, and slowhttptest.

use crate::harness::origin::{Message, Origin, Wire, chunked, pattern, run_http};
use crate::harness::{Directory, Evener, Server, have, local, python, reserved_port, wait_until};
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

const WEBSOCKET_SERVER: &str = r#"
import asyncio, sys
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosedError

async def echo(socket):
    try:
        async for message in socket:
            if message == "close":
                await socket.close(4001, "as requested")
            else:
                await socket.send(message)
    except ConnectionClosedError:
        pass
    print(socket.close_code, socket.close_reason, flush=True)

async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1]), max_size=None):
        print("ready", flush=True)
        await asyncio.get_running_loop().create_future()

asyncio.run(main())
"#;

const WEBSOCKET_CLIENT: &str = r#"
import asyncio, os, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

async def one(number):
    compression = "deflate" if number % 2 else None
    async with connect(sys.argv[1], max_size=None, compression=compression) as socket:
        for turn in range(20):
            text = f"{number} {turn} \u00e9\u20ac"
            await socket.send(text)
            assert await socket.recv() == text
        blob = os.urandom(1 << 20)
        await socket.send(blob)
        assert await socket.recv() == blob
        assert await (await socket.ping(b"are you there")) < 10
        # Several messages in flight at the same time.
        for turn in range(50):
            await socket.send(bytes([turn]) * 3000)
        for turn in range(50):
            assert await socket.recv() == bytes([turn]) * 3000
        if number % 2:
            await socket.close(4002, "enough")
            assert socket.close_code == 4002
        else:
            await socket.send("close")
            try:
                await socket.recv()
                assert False, "the connection is still open"
            except ConnectionClosedError as end:
                assert (end.rcvd.code, end.rcvd.reason) == (4001, "as requested"), end
    return 1

async def main():
    async with asyncio.timeout(60):
        print(sum(await asyncio.gather(*(one(number) for number in range(20)))))

asyncio.run(main())
"#;

/// A program that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn websocket_server(python: &PathBuf, directory: &Directory, port: u16) -> Running {
    let script = directory.write("server.py", WEBSOCKET_SERVER);
    let output = std::fs::File::create(directory.file("output")).unwrap();
    let errors = output.try_clone().unwrap();
    let mut command = Command::new(python);
    let child = command.arg(script).arg(port.to_string()).stdout(output).stderr(errors).spawn().unwrap();
    wait_until("the server", || std::net::TcpStream::connect(local(port)).ok());
    Running(child)
}

#[test]
fn websocket_texts_large_messages_pings_and_close_codes_are_forwarded() {
    let Some(python) = python() else { return };
    let (directory, port) = (Directory::new(), reserved_port());
    let _server = websocket_server(&python, &directory, port);
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{port}\" }}"
    ));
    let listen = evener.port("s");
    let script = directory.write("client.py", WEBSOCKET_CLIENT);
    let mut client = Command::new(&python);
    let output: Output = client.arg(script).arg(format!("ws://127.0.0.1:{listen}/chat")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "20");
    let printed = || std::fs::read_to_string(directory.file("output")).unwrap();
    wait_until("every close code to reach the server", || {
        let count = |text: &str| printed().matches(text).count();
        (count("4001 as requested") == 10 && count("4002 enough") == 10).then_some(())
    });
    assert_eq!(evener.service_counter("s", "upgrades"), 20);
    wait_until("every connection to end", || {
        (evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
}

static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(1, 300_000));

/// The body that belongs to a number. Most are small, some up to 100 KiB.
fn body_of(number: usize) -> &'static [u8] {
    let size = match number % 16 {
        0 => 0,
        1..=11 => number % 701,
        12..=14 => number * 37 % 8192,
        _ => number * 7919 % (100 << 10),
    };
    let start = number * 13 % 190_000;
    &DATA[start..start + size]
}

const METHODS: [&str; 6] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH"];

fn sends_body(method: &str) -> bool {
    ["POST", "PUT", "PATCH"].contains(&method)
}

/// Sends a message with its body in one of the two framings.
fn send_framed(wire: &Wire, start: &str, body: &[u8], number: usize) -> io::Result<()> {
    if number.is_multiple_of(3) {
        let header = format!("{start}Transfer-Encoding: chunked\r\n\r\n");
        let size = [1000, 16_384, 70_000][number / 3 % 3];
        wire.send([header.into_bytes(), chunked(body, size)].concat())
    } else {
        let header = format!("{start}Content-Length: {}\r\n\r\n", body.len());
        wire.send([header.as_bytes(), body].concat())
    }
}

/// Responds with the request's body, or with the body that belongs to the number in the path.
fn echo(wire: &mut Wire, request: &Message) -> io::Result<()> {
    let number: usize = request.target()[1..].parse().unwrap();
    let body = body_of(number);
    match request.method() {
        "DELETE" => wire.send("HTTP/1.1 204 No Content\r\n\r\n"),
        "HEAD" => wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())),
        "GET" => send_framed(wire, "HTTP/1.1 200 OK\r\n", body, number / 6),
        _ => send_framed(wire, "HTTP/1.1 200 OK\r\n", &request.body, number / 6),
    }
}

fn request_and_check(wire: &mut Wire, number: usize) {
    let method = METHODS[number % 6];
    let start = format!("{method} /{number} HTTP/1.1\r\nHost: a\r\nX-Number: {number}\r\n");
    let expected = body_of(number);
    if sends_body(method) {
        send_framed(wire, &start, expected, number / 18).unwrap();
    } else {
        wire.send(format!("{start}\r\n")).unwrap();
    }
    let response = wire.response(method).unwrap_or_else(|error| panic!("{method} /{number}: {error}"));
    let status = if method == "DELETE" { 204 } else { 200 };
    assert_eq!((response.status(), response.closes()), (status, false), "{method} /{number}");
    match method {
        "DELETE" => {}
        "HEAD" => assert_eq!(response.field("Content-Length"), expected.len().to_string()),
        _ => assert!(
            response.body == expected,
            "{method} /{number}: expected another body, got {} bytes",
            response.body.len()
        ),
    }
}

#[test]
fn each_of_a_hundred_thousand_mixed_requests_gets_its_response() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 100_000;
    let servers = [(); 2].map(|()| {
        Server::start(|stream| {
            let mut wire = Wire::new(stream);
            while let Ok(Some(request)) = wire.request() {
                if echo(&mut wire, &request).is_err() {
                    return;
                }
            }
        })
    });
    let evener = Evener::run(&format!(
        "service \"s\" {{ listen = \"127.0.0.1:0\", protocol = \"http\", \"127.0.0.1:{}\", \"127.0.0.1:{}\" }}",
        servers[0].port, servers[1].port
    ));
    let listen = evener.port("s");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut wire = Wire::to(listen);
                (client..REQUESTS).step_by(CLIENTS).for_each(|number| request_and_check(&mut wire, number));
            });
        }
    });
    println!("{REQUESTS} requests took {:?}", begun.elapsed());
    assert_eq!(evener.service_counter("s", "requests"), REQUESTS as u64);
    assert_eq!(evener.service_counter("s", "requests_failed"), 0);
    assert_eq!(evener.service_counter("s", "connections"), CLIENTS as u64);
}

/// Runs an attack for ten seconds while another client sends requests. Half of the requests of the other client
/// must be served within a second.
fn under_slow_clients(attack: &[&str], more: &str) -> Option<Evener> {
    if !have("slowhttptest") {
        return None;
    }
    let origin = Origin::start(|wire, request| match request.target() {
        "/large" => wire.reply("200 OK", "", &DATA),
        _ => wire.reply("200 OK", "", b"quick"),
    });
    let (evener, port) = run_http(&[&origin], more);
    let directory = Directory::new();
    let mut command = Command::new("slowhttptest");
    command.current_dir(directory.file("")).args(["-c", "500", "-r", "200", "-l", "10"]).args(attack);
    command.args(["-u", &format!("http://127.0.0.1:{port}/large")]);
    let mut slow = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let mut pooled = Wire::to(port);
    let (mut most, mut durations) = (0, Vec::new());
    while slow.0.try_wait().unwrap().is_none() {
        let begun = Instant::now();
        let responses = [crate::harness::origin::get(port, "/"), pooled.ask("GET", "/", "").unwrap()];
        durations.push(begun.elapsed());
        assert!(responses.iter().all(|response| response.status() == 200 && response.text() == "quick"));
        if durations.len() % 10 == 0 {
            most = most.max(evener.status()["services"][0]["connections_active"].as_u64().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // The slowest requests may have waited for a processor.
    durations.sort();
    let median = durations[durations.len() / 2];
    assert!(median < Duration::from_secs(1), "{median:?} for two requests");
    assert!(most > 100, "the attack had at most {most} concurrent connections");
    assert!(durations.len() > 50, "{} requests", durations.len() * 2);
    drop(pooled);
    wait_until("the slow connections to end", || {
        (evener.status()["services"][0]["connections_active"] == 0).then_some(())
    });
    Some(evener)
}

#[test]
fn slow_header_sections_do_not_delay_other_clients() {
    let more = "header_timeout = \"3s\"";
    let Some(evener) = under_slow_clients(&["-H", "-i", "1", "-x", "24"], more) else { return };
    assert!(evener.service_counter("s", "preamble_timeouts") > 100);
}

#[test]
fn slow_bodies_do_not_delay_other_clients() {
    let attack = ["-B", "-i", "1", "-s", "8192", "-t", "POST", "-x", "10"];
    under_slow_clients(&attack, "stall_timeout = \"3s\"");
}

#[test]
fn slow_readers_do_not_delay_other_clients() {
    let attack = ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "1"];
    under_slow_clients(&attack, "stall_timeout = \"3s\"");
}
