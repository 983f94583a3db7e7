//! `GET /metrics`: the numbers of the status for Prometheus, at the admin socket and at an address of its own.

use super::problem::Failures;
use super::{failed, gate, shutting_down};
use crate::state::{MetricsFormat, ViewScope};
use crate::supervisor::Handle;
use crate::upgrade::EndpointPhase;
use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// Maximum number of connections at the same time.
const CONNECTIONS_MAX: usize = 16;
/// Time until the header section of a request must have arrived.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time until a connection must have ended.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to wait if no connection can be accepted, for example without descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// Responds with the metrics in the format that the client accepts.
#[utoipa::path(get, path = "/metrics", responses((status = 200, description = "Done", content((String = "text/plain"), (String = "application/openmetrics-text"))), Failures))]
pub(super) async fn metrics(State(supervisor): State<Handle>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = MetricsFormat::of_accept(accept);
    let Some(view) = supervisor.view(ViewScope::Instance).await else { return shutting_down() };
    // The metrics of 10 000 servers take long to format, and this thread also runs the supervisor.
    match tokio::task::spawn_blocking(move || view.metrics(format)).await {
        Ok(parts) => ([(CONTENT_TYPE, format.content_type())], Body::new(Parts::new(parts))).into_response(),
        Err(_) => failed(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be formatted"),
    }
}

/// A body in parts, which are not copied into one text.
struct Parts {
    rest: std::vec::IntoIter<String>,
    /// Number of bytes of the rest.
    length: u64,
}

impl Parts {
    fn new(parts: Vec<String>) -> Self {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        Self { rest: parts.into_iter(), length }
    }
}

impl HttpBody for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.rest.next();
        self.length -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

/// A listener for `GET /metrics` alone: its clients read numbers, and control nothing.
#[derive(Debug)]
pub(crate) struct MetricsListener(TcpListener);

impl MetricsListener {
    /// Opens the listener.
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let opened = TcpListener::bind(address).await;
        Ok(Self(opened.with_context(|| format!("--metrics {address}: no socket can listen there"))?))
    }

    /// Takes the listener of the previous instance.
    pub(crate) fn adopt(socket: OwnedFd) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self(TcpListener::from_std(listener)?))
    }

    /// Copies the descriptor, for the next instance.
    pub(crate) fn copy(&self) -> std::io::Result<OwnedFd> {
        use std::os::fd::AsFd;
        self.0.as_fd().try_clone_to_owned()
    }

    /// Returns the address, with the port that the system chose.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves the metrics until the program ends, or the next instance serves them.
    pub(crate) async fn serve(self, supervisor: Handle, phase: watch::Receiver<EndpointPhase>) {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .fallback(|| async { (StatusCode::NOT_FOUND, "the metrics are at /metrics\n") })
            .with_state(supervisor);
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            let Some(accepted) = gate::accept(&phase, || self.0.accept()).await else { return };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
                drop(permit);
            });
        }
    }
}
