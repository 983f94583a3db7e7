//! The load: HTTP clients with one request per connection, a UDP client, and their results.

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
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

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
    ended: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Ends the load after every client has finished its current request.
    pub(super) async fn end(mut self) {
        self.ended.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
    }
}

/// Starts the clients.
pub(super) fn start(runtime: &Runtime, web: SocketAddr, echo: SocketAddr, tally: &Arc<Tally>) -> Load {
    let ended = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn_on(send_requests(web, Arc::clone(tally), Arc::clone(&ended)), runtime.handle());
    }
    clients.spawn_on(send_datagrams(echo, Arc::clone(tally), Arc::clone(&ended)), runtime.handle());
    Load { ended, clients }
}

async fn send_requests(web: SocketAddr, tally: Arc<Tally>, ended: Arc<AtomicBool>) {
    while !ended.load(Ordering::Relaxed) {
        let mut response = request(web).await;
        if response.is_err() {
            // A GET whose connection broke without a response may be sent again, as HTTP clients do (RFC 9110,
            // section 9.2.2).
            tally.retried.fetch_add(1, Ordering::Relaxed);
            response = request(web).await;
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

/// Sends a request. Returns the body of the response, which is the name of the server.
async fn request(web: SocketAddr) -> anyhow::Result<String> {
    let response = async {
        let stream = TcpStream::connect(web).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/").header(header::HOST, "demo").header(header::CONNECTION, "close");
        let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(REQUEST_TIMEOUT, response).await?
}

async fn send_datagrams(echo: SocketAddr, tally: Arc<Tally>, ended: Arc<AtomicBool>) {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { return };
    if socket.connect(echo).await.is_err() {
        return;
    }
    let mut number = 0_u64;
    while !ended.load(Ordering::Relaxed) {
        number += 1;
        let mut buffer = [0; 8];
        let sent = socket.send(&number.to_be_bytes()).await;
        let received = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await;
        let is_echoed = sent.is_ok() && matches!(received, Ok(Ok(8))) && buffer == number.to_be_bytes();
        let counter = if is_echoed { &tally.echoes } else { &tally.echoes_lost };
        counter.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(PAUSE).await;
    }
}
