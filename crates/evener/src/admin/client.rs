//! Client of the admin API: sends one request over the unix socket of a running instance.

use super::{ErrorBody, instances};
use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// Time limit of a request. A reload may read a file for 20 s and resolve names for 5 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit of a connection attempt to an instance whose queue of waiting connections is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two connection attempts.
const CONNECT_EVERY: Duration = Duration::from_millis(20);

/// A request that the instance refused.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Refused {
    status: StatusCode,
    reason: String,
}

impl Refused {
    /// Returns true if the instance has nothing of the name or at the path that was requested.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }
}

/// Client of one running instance.
pub(crate) struct Client(PathBuf);

impl Client {
    /// Finds the instance at `socket`. Without `socket`, finds the only running instance that this user may use.
    pub(crate) fn find(socket: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self(match socket {
            Some(socket) => instances::at(socket),
            None => instances::find()?,
        }))
    }

    /// Sends a GET request.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends a GET request whose response is text.
    pub(crate) async fn text(&self, path: &str) -> anyhow::Result<String> {
        let body = self.request(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&self.collected(body).await?).into_owned())
    }

    /// Sends a DELETE request.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    /// Sends a POST request with a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.send(Method::POST, path, serde_json::to_vec(body)?.into()).await
    }

    /// Sends a POST request whose body is text.
    pub(crate) async fn post_text<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<T> {
        self.send(Method::POST, path, body.into()).await
    }

    /// Sends a GET request for a stream of JSON lines, and calls `on_line` for each line. Ends with an error: the
    /// stream has no end while the instance runs.
    pub(crate) async fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        on_line: impl Fn(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut body = self.request(Method::GET, path, Bytes::new()).await?;
        let mut waiting = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            waiting.extend_from_slice(&data);
            let complete = waiting.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            for line in waiting[..complete].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                on_line(self.parsed(line)?)?;
            }
            waiting.drain(..complete);
            if waiting.len() > RESPONSE_BYTES_MAX {
                bail!("{}: a line of the response has no end", self.0.display());
            }
        }
        bail!("{}: the instance has ended", self.0.display());
    }

    /// Connects to the instance. Waits while its queue of waiting connections is full.
    async fn connect(&self) -> io::Result<UnixStream> {
        let end = Instant::now() + CONNECT_TIMEOUT;
        loop {
            match UnixStream::connect(&self.0).await {
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < end => {
                    tokio::time::sleep(CONNECT_EVERY).await;
                }
                connected => return connected,
            }
        }
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T> {
        let body = self.request(method, path, body).await?;
        self.parsed(&self.collected(body).await?)
    }

    fn parsed<T: DeserializeOwned>(&self, json: &[u8]) -> anyhow::Result<T> {
        serde_json::from_slice(json).with_context(|| {
            let socket = self.0.display();
            format!("{socket} sent an unknown response; use the `evener` of the same version")
        })
    }

    async fn collected(&self, body: Incoming) -> anyhow::Result<Bytes> {
        let body = Limited::new(body, RESPONSE_BYTES_MAX).collect();
        let body = tokio::time::timeout(REQUEST_TIMEOUT, body).await.with_context(|| {
            format!("{}: the response is incomplete after {REQUEST_TIMEOUT:?}", self.0.display())
        })?;
        let body = body
            .map_err(|error| anyhow::anyhow!("{}: the response is incomplete: {error}", self.0.display()))?;
        Ok(body.to_bytes())
    }

    /// Sends a request and returns the body of the response. A response that reports a failure is an error.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Incoming> {
        let socket = self.0.display();
        let stream = self.connect().await;
        let stream = stream.map_err(|error| anyhow::anyhow!(instances::failure(&self.0, &error)))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "evener")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = tokio::time::timeout(REQUEST_TIMEOUT, sender.send_request(request)).await;
        let response =
            response.with_context(|| format!("{socket} did not respond within {REQUEST_TIMEOUT:?}"))?;
        let response = response.with_context(|| format!("{socket} did not respond"))?;
        let status = response.status();
        if !status.is_success() {
            let body = self.collected(response.into_body()).await?;
            let message = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.message());
            let message = message.unwrap_or_else(|_| format!("{status}: {}", String::from_utf8_lossy(&body)));
            return Err(Refused { status, reason: instances::escaped(&message) }.into());
        }
        Ok(response.into_body())
    }
}
