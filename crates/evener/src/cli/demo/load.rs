//! The load: clients with one request a connection, one client of the echo, and their results.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const CLIENTS: usize = 8;
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// Results that clients observed.
#[derive(Debug, Default)]
pub(super) struct Tally {
    responses: Mutex<BTreeMap<String, u64>>,
    failed: AtomicU64,
    retried: AtomicU64,
    echoes: AtomicU64,
    echoes_lost: AtomicU64,
}

impl Tally {
    /// Returns the number of responses of each server, by its name.
    pub(super) fn responses(&self) -> BTreeMap<String, u64> {
        self.responses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Returns a summary in one line.
    pub(super) fn summary(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let succeeded: u64 = self.responses().values().sum();
        format!(
            "{succeeded} requests succeeded, {} failed, {} retried; {} datagrams echoed, {} lost",
            self.failed(),
            count(&self.retried),
            count(&self.echoes),
            count(&self.echoes_lost)
        )
    }
}

/// The running clients.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Lets every client finish its request.
    pub(super) async fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
    }
}

/// Starts the clients.
pub(super) fn start(runtime: &Runtime, web: SocketAddr, echo: SocketAddr, tally: &Arc<Tally>) -> Load {
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn_on(ask_again(web, Arc::clone(tally), Arc::clone(&over)), runtime.handle());
    }
    clients.spawn_on(echo_again(echo, Arc::clone(tally), Arc::clone(&over)), runtime.handle());
    Load { over, clients }
}

async fn ask_again(web: SocketAddr, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::Relaxed) {
        let mut response = ask(web).await;
        if response.is_err() {
            // As HTTP clients do: a GET whose connection broke without a response may be sent again (RFC
            // 9110, 9.2.2).
            tally.retried.fetch_add(1, Ordering::Relaxed);
            response = ask(web).await;
        }
        match response {
            Ok(name) => {
                *tally.responses.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
            }
            Err(_) => drop(tally.failed.fetch_add(1, Ordering::Relaxed)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn ask(web: SocketAddr) -> anyhow::Result<String> {
    let query = async {
        let stream = TcpStream::connect(web).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/").header(header::HOST, "demo").header(header::CONNECTION, "close");
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(PATIENCE, query).await?
}

async fn echo_again(echo: SocketAddr, tally: Arc<Tally>, over: Arc<AtomicBool>) {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { return };
    if socket.connect(echo).await.is_err() {
        return;
    }
    let mut number = 0_u64;
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let mut buffer = [0; 8];
        let sent = socket.send(&number.to_be_bytes()).await;
        let came = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await;
        let well = sent.is_ok() && matches!(came, Ok(Ok(8))) && buffer == number.to_be_bytes();
        let counter = if well { &tally.echoes } else { &tally.echoes_lost };
        counter.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}
