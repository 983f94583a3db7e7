//! The admin API: HTTP on a unix socket, under `/v1`. The only module that adds routes.

pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod clients;
pub(crate) mod connections;
pub(crate) mod explain;
pub(crate) mod sticky;
pub(crate) mod view;

use crate::supervisor::{AccessChange, AccessRefused, Handle, StateChange, Supervisor};
use crate::unix_socket::{self, SocketFile, Taken, remove_left_over};
use anyhow::{Context, bail};
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use evener_core::acl::{Access, PrefixError};
use evener_core::event::Event;
use evener_core::spec::AdminState;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// Returns the directory of the socket of an instance without `--admin`: `/run/evener`, else XDG_RUNTIME_DIR,
/// else a directory that only this user can access.
pub(crate) fn socket_directory() -> PathBuf {
    let user = rustix::process::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if user.is_root() => "/run/evener".into(),
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("evener"),
        _ => format!("/tmp/evener-{}", user.as_raw()).into(),
    }
}

/// Maximum number of left-over sockets that are removed at a time.
const LEFT_OVER_MAX: usize = 1000;

/// The admin socket. Its file is removed at the end.
pub(crate) struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Returns the usual directory if only this user can access it. In /tmp any user could have created it
/// earlier.
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
    /// Opens the socket at its usual path.
    pub(crate) fn open_usual() -> anyhow::Result<Self> {
        Self::open(&user_directory()?.join("evener.sock"))
    }

    /// Opens the socket at its usual path, or at one with the process id when another instance uses that
    /// path.
    pub(crate) fn open_any() -> anyhow::Result<Self> {
        let directory = user_directory()?;
        // A program that gave up its rights could not remove its socket. Sockets in use stay.
        for entry in fs::read_dir(&directory)?.flatten().take(LEFT_OVER_MAX) {
            let _ = remove_left_over(&entry.path());
        }
        Self::open(&directory.join("evener.sock"))
            .or_else(|_| Self::open(&directory.join(format!("evener-{}.sock", std::process::id()))))
    }

    /// Opens the socket with access for its owner only.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        // Sockets of instances that were killed while they drained.
        unix_socket::draining(path).iter().for_each(|aside| drop(remove_left_over(aside)));
        remove_left_over(path).map_err(|taken| {
            let hint = match taken {
                Taken::InUse => "another instance listens there; give this one --admin PATH",
                Taken::NoSocket | Taken::Unchanged(_) => "give --admin PATH",
            };
            anyhow::anyhow!("{}: {taken}; {hint}", path.display())
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

    /// Serves the API until the program ends; then the file of the socket is removed. While the program
    /// drains, it serves at `PATH.draining-PID`, and the path is free for the next instance.
    pub(crate) async fn serve(self, supervisor: Handle, draining: oneshot::Receiver<()>) {
        let Self { listener, mut file } = self;
        let router = router(supervisor.clone());
        let make_room = async {
            if draining.await.is_ok() && file.step_aside().is_err() {
                // The file is not renamed: no process listens there any more, so the next instance removes
                // it.
                return;
            }
            let socket = file.path().display().to_string();
            let tell = move |supervisor: &Supervisor| {
                if !supervisor.is_over() {
                    supervisor.tell(&Event::AdminListening { socket });
                }
            };
            let _ = supervisor.inspect(tell).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = axum::serve(listener, router).into_future() => {}
            () = make_room => {}
        }
    }
}

fn router(supervisor: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/servers/state", post(set_state))
        .route("/v1/access", get(access).post(change_access))
        .route("/v1/clients", get(clients::clients))
        .route("/v1/connections", get(connections::connections).delete(connections::close_server))
        .route("/v1/connections/{number}", delete(connections::close))
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
pub(crate) struct Failed {
    pub(crate) errors: Vec<String>,
}

fn failed(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(Failed { errors: vec![why.into()] })).into_response()
}

fn gone() -> Response {
    failed(StatusCode::SERVICE_UNAVAILABLE, "this instance is shutting down")
}

async fn status(State(supervisor): State<Handle>) -> Response {
    match supervisor.inspect(view::status).await {
        Some(status) => Json(status).into_response(),
        None => gone(),
    }
}

/// Changes made by a reload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    pub(crate) changes: Vec<String>,
}

async fn reload(State(supervisor): State<Handle>) -> Response {
    match supervisor.reload().await {
        Some(Ok(changes)) => Json(Reloaded { changes }).into_response(),
        Some(Err(errors)) => (StatusCode::UNPROCESSABLE_ENTITY, Json(Failed { errors })).into_response(),
        None => gone(),
    }
}

/// Body of a request to change the state of a server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StateWanted {
    pub(crate) server: String,
    pub(crate) state: String,
    /// Duration of the state, such as `10m`. The state is permanent when absent.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
}

impl StateWanted {
    fn change(self) -> Result<StateChange, String> {
        let state = AdminState::ALL.into_iter().find(|state| state.name() == self.state);
        let state =
            state.ok_or_else(|| format!("`{}` is not a state: ready, drain or maintenance", self.state))?;
        let time = parse_time(self.time.as_deref())?;
        if time.is_some() && state == AdminState::Ready {
            return Err("state `ready` has no time limit: remove `for`".into());
        }
        Ok(StateChange { server: self.server, state, time })
    }
}

/// Parses `for`, the duration of a temporary change.
fn parse_time(text: Option<&str>) -> Result<Option<Duration>, String> {
    let time = text.map(humantime::parse_duration).transpose().map_err(|error| format!("`for`: {error}"))?;
    if time.is_some_and(|time| time.is_zero()) {
        return Err("`for` must be a duration above zero, such as 10m".into());
    }
    Ok(time)
}

async fn set_state(
    State(supervisor): State<Handle>,
    wanted: Result<Json<StateWanted>, JsonRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Json(wanted)) => wanted,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let change = match wanted.change() {
        Ok(change) => change,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let state = change.state.name();
    match supervisor.set_state(change).await {
        Some(Ok(server)) => Json(json!({ "server": server, "state": state })).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}

async fn access(State(supervisor): State<Handle>) -> Response {
    match supervisor.inspect(view::access).await {
        Some(rules) => Json(rules).into_response(),
        None => gone(),
    }
}

/// Body of a request to change the access rules of a service.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AccessWanted {
    pub(crate) service: String,
    pub(crate) prefix: String,
    /// `permit`, `deny` or `forget`.
    pub(crate) action: String,
    /// Duration of the rule, such as `10m`. The rule is permanent when absent.
    #[serde(default, rename = "for")]
    pub(crate) time: Option<String>,
}

impl AccessWanted {
    fn change(&self) -> Result<AccessChange, String> {
        let prefix = self.prefix.parse().map_err(|error: PrefixError| error.to_string())?;
        let time = parse_time(self.time.as_deref())?;
        match self.action.as_str() {
            "permit" => Ok(AccessChange::Say(Access::Permit, prefix, time)),
            "deny" => Ok(AccessChange::Say(Access::Deny, prefix, time)),
            "forget" => Ok(AccessChange::Forget(prefix)),
            other => Err(format!("`{other}` is not an action: use permit, deny or forget")),
        }
    }
}

async fn change_access(
    State(supervisor): State<Handle>,
    wanted: Result<Json<AccessWanted>, JsonRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Json(wanted)) => wanted,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let change = match wanted.change() {
        Ok(change) => change,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.change_access(wanted.service.clone(), change).await {
        Some(Ok(done)) => Json(json!({ "service": wanted.service, "done": done })).into_response(),
        Some(Err(AccessRefused::Unknown(why))) => failed(StatusCode::NOT_FOUND, why),
        Some(Err(AccessRefused::Impossible(why))) => failed(StatusCode::UNPROCESSABLE_ENTITY, why),
        None => gone(),
    }
}
