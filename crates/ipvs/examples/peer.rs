//! The peers of a balancer, for the tests in the virtual machine of xtask: servers, clients, and a watch that
//! measures how soon services notice that a server is gone.
//!
//! ```text
//! peer serve ADDRESS NAME                  an HTTP server that responds with its name
//! peer ask ADDRESS COUNT [PAUSE [PORT]]    requests, with a pause of milliseconds, from a source port
//! peer react ROUNDS INTERVAL COMMANDS SERVER NAME=SERVICE ...
//! ```
#![allow(clippy::expect_used, reason = "a test program may end where it stands")]

use evener_ipvs::model::{DestinationKey, ServiceKey};
use evener_ipvs::{Client, Kernel as _};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// Time for a connection attempt, and for a response.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for a change of the table.
const PATIENCE_TABLE: Duration = Duration::from_secs(60);
/// Interval at which the table is read.
const POLL: Duration = Duration::from_millis(10);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address, name] => serve(parse(address), name),
        ["ask", address, count, ref rest @ ..] => {
            let number = |at: usize| rest.get(at).map_or(0, |word| word.parse().expect("a number"));
            let pause = Duration::from_millis(number(0));
            let port = u16::try_from(number(1)).expect("a port");
            println!("{}", ask(parse(address), count.parse().expect("a number"), pause, port));
        }
        ["react", rounds, interval, commands, server, ref services @ ..] => {
            let interval = Duration::from_millis(interval.parse().expect("a number"));
            let services = services.iter().map(|word| word.split_once('=').expect("NAME=SERVICE"));
            let services: Vec<Watched> =
                services.map(|(name, service)| Watched::new(name, service)).collect();
            react(rounds.parse().expect("a number"), interval, commands, parse(server), services);
        }
        _ => panic!("serve, ask or react is expected"),
    }
}

fn parse(address: &str) -> SocketAddr {
    address.parse().expect("an address and port")
}

/// Responds to each client with the name, in a thread for each connection.
fn serve(address: SocketAddr, name: &str) {
    let listener = TcpListener::bind(address).expect("a listener");
    let response = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    for stream in listener.incoming() {
        let (Ok(stream), response) = (stream, response.clone()) else { continue };
        std::thread::spawn(move || respond(stream, &response));
    }
}

fn respond(mut stream: TcpStream, response: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            // A check that connects and closes gets no response.
            0 => return Ok(()),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    stream.write_all(response.as_bytes())
}

/// Sends requests one after another. Returns how often each server responded, and the number of failures.
fn ask(address: SocketAddr, count: u32, pause: Duration, port: u16) -> String {
    let (mut names, mut failures) = (BTreeMap::<String, u32>::new(), Vec::new());
    for number in 0..count {
        if number > 0 {
            std::thread::sleep(pause);
        }
        match request(address, port) {
            Ok(name) => *names.entry(name).or_default() += 1,
            Err(error) => failures.push(format!("request {number}: {error}")),
        }
    }
    let names: String = names.iter().map(|(name, count)| format!("{name}={count} ")).collect();
    failures.iter().for_each(|failure| eprintln!("{failure}"));
    format!("{names}failed={}", failures.len())
}

/// Sends one request from a source port; with 0 the kernel chooses it. Returns the name of the server.
fn request(address: SocketAddr, port: u16) -> io::Result<String> {
    let (family, any) = match address.ip() {
        IpAddr::V4(_) => (AddressFamily::INET, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => (AddressFamily::INET6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    let stream = socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&stream, true)?;
    // Linux limits the connection attempt by this timeout, too.
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Send, Some(PATIENCE))?;
    bind(&stream, &SocketAddr::new(any, port))?;
    connect(&stream, &address)?;
    let mut stream = TcpStream::from(stream);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (_, name) = response.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(name.to_owned())
}

/// A service that is watched, and the times after which it noticed.
struct Watched {
    name: String,
    key: ServiceKey,
    leaving: Vec<Duration>,
    returning: Vec<Duration>,
}

impl Watched {
    fn new(name: &str, service: &str) -> Self {
        let key = ServiceKey::tcp(parse(service));
        Self { name: name.to_owned(), key, leaving: Vec::new(), returning: Vec::new() }
    }
}

/// Takes a server away and brings it back, by the commands `sh COMMANDS down` and `sh COMMANDS up`. Prints how soon each
/// service notices. The rounds begin at different moments of the checks' interval.
fn react(rounds: u32, interval: Duration, commands: &str, server: SocketAddr, mut services: Vec<Watched>) {
    let run = |word: &str| {
        let status = Command::new("/bin/sh").args([commands, word]).status().expect("sh runs");
        assert!(status.success(), "{commands} {word}: {status}");
        Instant::now()
    };
    let mut kernel = Client::open().expect("IPVS");
    let mut last = Instant::now();
    for round in 0..rounds {
        wait(&mut kernel, &services, server, true, last);
        std::thread::sleep(interval * 3 + interval * round / rounds);
        last = run("down");
        let times = wait(&mut kernel, &services, server, false, last);
        services.iter_mut().zip(times).for_each(|(service, time)| service.leaving.push(time));
        std::thread::sleep(interval * 3 + interval * round / rounds);
        last = run("up");
        let times = wait(&mut kernel, &services, server, true, last);
        services.iter_mut().zip(times).for_each(|(service, time)| service.returning.push(time));
    }
    for service in &mut services {
        for (what, times) in [("leaves", &mut service.leaving), ("returns", &mut service.returning)] {
            times.sort_unstable();
            let seconds = |at: usize| times[at].as_secs_f64();
            let middle = f64::midpoint(seconds((times.len() - 1) / 2), seconds(times.len() / 2));
            let (least, most) = (seconds(0), seconds(times.len() - 1));
            let mean = times.iter().sum::<Duration>().as_secs_f64() / f64::from(rounds);
            println!(
                "react: {:<24} {what:<7} median {middle:.2} s, mean {mean:.2} s, from {least:.2} to {most:.2} s, {rounds} rounds",
                service.name,
            );
        }
    }
}

/// Waits until all services have the server, or none has. Returns the time after which each has changed.
fn wait(
    kernel: &mut Client,
    services: &[Watched],
    server: SocketAddr,
    is_wanted: bool,
    begin: Instant,
) -> Vec<Duration> {
    let mut times: Vec<Option<Duration>> = vec![None; services.len()];
    let deadline = Instant::now() + PATIENCE_TABLE;
    while times.iter().any(Option::is_none) {
        for (service, time) in services.iter().zip(&mut times).filter(|(_, time)| time.is_none()) {
            let key = DestinationKey::from(server);
            let found = kernel.destinations(&service.key).expect("the table");
            let mut found = found.iter().map(|state| state.destination);
            if found.any(|one| one.key == key && one.weight > 0) == is_wanted {
                *time = Some(begin.elapsed());
            }
        }
        let name = |(service, _): (&Watched, _)| service.name.clone();
        let late = || services.iter().zip(&times).filter(|(_, time)| time.is_none()).map(name);
        assert!(Instant::now() < deadline, "no change of {:?}", late().collect::<Vec<_>>());
        std::thread::sleep(POLL);
    }
    times.into_iter().flatten().collect()
}
