//! The admin API: HTTP on a unix socket, under `/v1`. The only module that adds routes.

pub(crate) mod access;
pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod clients;
pub(crate) mod connections;
mod events;
pub(crate) mod explain;
mod parameters;
pub(crate) mod server_state;
pub(crate) mod sticky;

use crate::state::ViewScope;
use crate::supervisor::Handle;
use crate::unix_socket::{self, PathInUse, SocketFile, remove_left_over};
use anyhow::{Context, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use evener_core::event::Event;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// Returns the default directory of admin sockets: `/run/evener` for root, else `evener` in XDG_RUNTIME_DIR,
/// else `/tmp/evener-UID`.
pub(crate) fn socket_directory() -> PathBuf {
    let user = rustix::process::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if user.is_root() => "/run/evener".into(),
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("evener"),
        _ => format!("/tmp/evener-{}", user.as_raw()).into(),
    }
}

/// Maximum number of files of the directory that are checked for left-over sockets.
const LEFT_OVER_MAX: usize = 1000;

/// The admin socket. Its file is removed when serving ends.
pub(crate) struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Creates the default directory if it is missing, and returns it. Fails if another user owns the directory or
/// can write to it: in /tmp, any user could have created it earlier.
fn user_directory() -> anyhow::Result<PathBuf> {
    let directory = socket_directory();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.with_context(|| format!("{} cannot be created; give --admin PATH", directory.display()))?;
    let meta = fs::symlink_metadata(&directory)?;
    let user = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != user || meta.mode() & 0o022 != 0 {
        bail!(
            "{} must be a directory that only this user can access; give --admin PATH",
            directory.display()
        );
    }
    Ok(directory)
}

impl AdminSocket {
    /// Opens the socket at its default path.
    pub(crate) fn open_default() -> anyhow::Result<Self> {
        Self::open(&user_directory()?.join("evener.sock"))
    }

    /// Opens the socket at its default path. If that fails, for example because another instance uses the path,
    /// opens it at a path with the process id.
    pub(crate) fn open_any() -> anyhow::Result<Self> {
        let directory = user_directory()?;
        // Earlier instances may have left their sockets: an instance that dropped its privileges cannot remove
        // its own. Sockets in use are not removed.
        for entry in fs::read_dir(&directory)?.flatten().take(LEFT_OVER_MAX) {
            let _ = remove_left_over(&entry.path());
        }
        Self::open(&directory.join("evener.sock"))
            .or_else(|_| Self::open(&directory.join(format!("evener-{}.sock", std::process::id()))))
    }

    /// Opens the socket with access for its owner only.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        // An instance that was killed while it drained has left its socket.
        unix_socket::draining(path).iter().for_each(|renamed| drop(remove_left_over(renamed)));
        remove_left_over(path).map_err(|error| {
            let hint = match error {
                PathInUse::Listening => "another instance listens there; give this instance --admin PATH",
                PathInUse::OtherFile | PathInUse::NotRemoved(_) => "give --admin PATH",
            };
            anyhow::anyhow!("{}: {error}; {hint}", path.display())
        })?;
        // The socket is never accessible to others, not even for a moment. No other thread creates files yet.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener.with_context(|| {
            format!("the admin socket {} cannot be created; give --admin PATH", path.display())
        })?;
        Ok(Self { listener, file: SocketFile::of(path) })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Serves the API until the program ends, and then removes the file of the socket. When the program begins
    /// to drain, the file is renamed to `PATH.draining-PID`, so that the next instance can use `PATH`.
    pub(crate) async fn serve(self, supervisor: Handle, draining: oneshot::Receiver<()>) {
        let Self { listener, mut file } = self;
        let router = router(supervisor.clone());
        let while_draining = async {
            if draining.await.is_ok() && file.make_room().is_err() {
                // The file could not be renamed. Serving ends here, so that the next instance can replace the
                // file of a socket on which no process listens.
                return;
            }
            let socket = file.path().display().to_string();
            supervisor.log(Event::AdminListening { socket }).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = axum::serve(listener, router).into_future() => {}
            () = while_draining => {}
        }
    }
}

fn router(supervisor: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/servers/state", post(server_state::set_state))
        .route("/v1/access", get(access::access).post(access::change_access))
        .route("/v1/clients", get(clients::clients))
        .route("/v1/connections", get(connections::connections).delete(connections::close_server))
        .route("/v1/connections/{number}", delete(connections::close))
        .route("/v1/events", get(events::events))
        .route("/v1/sticky", get(sticky::sticky))
        .route("/v1/cache/expunge", post(cache::expunge))
        .route("/v1/explain", get(explain::explain))
        .fallback(|| async { failed(StatusCode::NOT_FOUND, "there is no such path; see docs/api.md") })
        .method_not_allowed_fallback(|| async {
            failed(StatusCode::METHOD_NOT_ALLOWED, "this path has another method; see docs/api.md")
        })
        .with_state(supervisor)
}

/// Body of a response that reports a failure.
#[derive(Debug, Serialize, Deserialize)]
struct ErrorBody {
    errors: Vec<String>,
}

impl ErrorBody {
    /// Returns the messages, one per line.
    fn message(&self) -> String {
        self.errors.join("\n")
    }
}

fn failed(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(ErrorBody { errors: vec![why.into()] })).into_response()
}

fn shutting_down() -> Response {
    failed(StatusCode::SERVICE_UNAVAILABLE, "this instance is shutting down")
}

/// `GET /v1/status`: the state of the whole instance.
async fn status(State(supervisor): State<Handle>) -> Response {
    match supervisor.view(ViewScope::Instance).await {
        Some(view) => Json(view).into_response(),
        None => shutting_down(),
    }
}

/// Changes made by a reload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    changes: Vec<String>,
    /// Warnings about the new configuration; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    warnings: Vec<String>,
}

impl Reloaded {
    /// Returns the warnings.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Describes the changes, one per line.
    pub(crate) fn text(&self) -> String {
        if self.changes.is_empty() {
            return "reloaded; nothing changed\n".into();
        }
        self.changes.iter().map(|change| format!("{change}\n")).collect()
    }
}

async fn reload(State(supervisor): State<Handle>) -> Response {
    match supervisor.reload().await {
        Some(Ok(changes)) => {
            let warnings = supervisor.warnings().await.unwrap_or_default();
            Json(Reloaded { changes, warnings }).into_response()
        }
        Some(Err(errors)) => (StatusCode::UNPROCESSABLE_ENTITY, Json(ErrorBody { errors })).into_response(),
        None => shutting_down(),
    }
}

/// Parses `for`, the duration of a temporary change.
fn duration_of(text: Option<&str>) -> Result<Option<Duration>, String> {
    let time = text.map(humantime::parse_duration).transpose().map_err(|error| format!("`for`: {error}"))?;
    if time.is_some_and(|time| time.is_zero()) {
        return Err("`for` must be a duration above zero, such as 10m".into());
    }
    Ok(time)
}
