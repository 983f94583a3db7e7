//! Client of the admin API: sends one request to a running instance, over its unix socket or over TCP.

mod remote;

use super::instances;
use super::problem::Problem;
use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use remote::Remote;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
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
pub(crate) struct Client(Address);

/// Address of an instance.
enum Address {
    Socket(PathBuf),
    Remote(Box<Remote>),
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(out),
            Self::Remote(remote) => remote.fmt(out),
        }
    }
}

impl Client {
    /// Returns a client of the instance whose API has a URL such as `https://192.0.2.1:9900`.
    pub(crate) fn remote(url: &str, token_file: &Path, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self(Address::Remote(Box::new(Remote::new(url, token_file, ca_file)?))))
    }

    /// Finds the instance at `socket`. Without `socket`, finds the only running instance that this user may use.
    pub(crate) fn find(socket: Option<&Path>) -> anyhow::Result<Self> {
        Ok(Self(Address::Socket(match socket {
            Some(socket) => instances::at(socket),
            None => instances::find()?,
        })))
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

    /// Sends a PATCH request with a JSON body.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.send(Method::PATCH, path, serde_json::to_vec(body)?.into()).await
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
                bail!("{}: a line of the response has no end", self.0);
            }
        }
        bail!("{}: the instance has ended", self.0);
    }

    /// Connects to the instance. Waits while its queue of waiting connections is full.
    async fn connect(socket: &Path) -> io::Result<UnixStream> {
        let end = Instant::now() + CONNECT_TIMEOUT;
        loop {
            match UnixStream::connect(socket).await {
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
            let socket = &self.0;
            format!("{socket} sent an unknown response; use the `evener` of the same version")
        })
    }

    async fn collected(&self, body: Incoming) -> anyhow::Result<Bytes> {
        let body = Limited::new(body, RESPONSE_BYTES_MAX).collect();
        let body = tokio::time::timeout(REQUEST_TIMEOUT, body)
            .await
            .with_context(|| format!("{}: the response is incomplete after {REQUEST_TIMEOUT:?}", self.0))?;
        let body =
            body.map_err(|error| anyhow::anyhow!("{}: the response is incomplete: {error}", self.0))?;
        Ok(body.to_bytes())
    }

    /// Sends a request and returns the body of the response. A response that reports a failure is an error.
    async fn request(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<Incoming> {
        let socket = &self.0;
        let request =
            Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let response = match &self.0 {
            Address::Socket(path) => {
                let stream = Self::connect(path).await;
                let stream = stream.map_err(|error| anyhow::anyhow!(instances::failure(path, &error)))?;
                let request = request.header(header::HOST, "evener").body(Full::new(body))?;
                tokio::time::timeout(REQUEST_TIMEOUT, sent(stream, request)).await
            }
            Address::Remote(remote) => {
                let stream = tokio::time::timeout(CONNECT_TIMEOUT, remote.connect()).await;
                let stream = stream.with_context(|| format!("{socket} is not reachable"))??;
                let request = request
                    .header(header::HOST, remote.authority())
                    .header(header::AUTHORIZATION, remote.authorization()?)
                    .body(Full::new(body))?;
                tokio::time::timeout(REQUEST_TIMEOUT, sent(stream, request)).await
            }
        };
        let response =
            response.with_context(|| format!("{socket} did not respond within {REQUEST_TIMEOUT:?}"))?;
        let response = response.with_context(|| format!("{socket} did not respond"))?;
        let status = response.status();
        if !status.is_success() {
            let body = self.collected(response.into_body()).await?;
            let message = serde_json::from_slice::<Problem>(&body).map(Problem::message);
            let message = message.unwrap_or_else(|_| format!("{status}: {}", String::from_utf8_lossy(&body)));
            return Err(Refused { status, reason: instances::escaped(&message) }.into());
        }
        Ok(response.into_body())
    }
}

/// Sends a request over a connection that this client opened for it.
async fn sent(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Incoming>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}
