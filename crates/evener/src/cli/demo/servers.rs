//! The embedded servers: HTTP servers that respond with their name, and a UDP echo server.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::oneshot;

/// An HTTP server that can stop and start again at its address.
pub(super) struct WebServer {
    name: &'static str,
    address: SocketAddr,
    stop: Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>,
}

impl WebServer {
    pub(super) async fn start(name: &'static str, address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let mut server = Self { name, address, stop: None };
        server.run(listener, &tokio::runtime::Handle::current());
        Ok(server)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    fn run(&mut self, listener: TcpListener, runtime: &tokio::runtime::Handle) {
        let (stop, stopped) = oneshot::channel();
        let (closed, is_closed) = oneshot::channel();
        self.stop = Some((stop, is_closed));
        let name = self.name;
        runtime.spawn(async move {
            serve(name, &listener, stopped).await;
            drop(listener);
            let _ = closed.send(());
        });
    }

    /// Stops listening. Requests of accepted connections still get responses.
    pub(super) async fn stop(&mut self) {
        if let Some((stop, closed)) = self.stop.take() {
            let _ = stop.send(());
            let _ = closed.await;
        }
    }

    /// Listens at the same address again.
    pub(super) fn restart(&mut self, runtime: &tokio::runtime::Handle) {
        let guard = runtime.enter();
        let listener = TcpSocket::new_v4().and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(self.address)?;
            socket.listen(1024)
        });
        drop(guard);
        if let Ok(listener) = listener {
            self.run(listener, runtime);
        }
    }
}

async fn serve(name: &'static str, listener: &TcpListener, mut stopped: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(respond(name, stream))),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            _ = &mut stopped => break,
        }
    }
    // Connections that wait in the queue of the listener are still served.
    while let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        tokio::spawn(respond(name, stream));
    }
}

async fn respond(name: &'static str, stream: TcpStream) {
    let hello = service_fn(move |_: Request<hyper::body::Incoming>| async move {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), hello).await;
}

/// Starts a UDP server that sends every datagram back. Returns its address.
pub(super) async fn start_echo() -> std::io::Result<SocketAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = socket.local_addr()?;
    tokio::spawn(async move {
        let mut buffer = vec![0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(&buffer[..length], client).await;
        }
    });
    Ok(address)
}
