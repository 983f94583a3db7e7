//! The admin API: HTTP on a unix socket, `/v1`. This is the one place where it grows.

pub(crate) mod client;
pub(crate) mod view;

use crate::supervisor::{Handle, Supervisor};
use anyhow::{Context, bail};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use evener_core::spec::AdminState;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// The socket of an instance without `--admin`: `/run/evener`, else XDG_RUNTIME_DIR, else a directory of one's own.
pub(crate) fn socket_directory() -> PathBuf {
    let user = rustix::process::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR") {
        _ if user.is_root() => "/run/evener".into(),
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("evener"),
        _ => format!("/tmp/evener-{}", user.as_raw()).into(),
    }
}

/// The admin socket, removed at the end.
pub(crate) struct AdminSocket {
    listener: UnixListener,
    path: SocketPath,
}

struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl AdminSocket {
    /// Opens it for its owner alone.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
                format!("the admin socket's directory {} cannot be made", directory.display())
            })?;
        }
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!(
                    "{} is in use: another instance runs there; give this one --admin PATH",
                    path.display()
                );
            }
            fs::remove_file(path)
                .with_context(|| format!("{} is left over and cannot be removed", path.display()))?;
        }
        let listener = UnixListener::bind(path).with_context(|| {
            format!("the admin socket {} cannot be made; give --admin PATH", path.display())
        })?;
        let path = SocketPath(path.to_owned());
        fs::set_permissions(&path.0, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path.0
    }

    /// Answers until the program ends; dropping the task's handle's guard removes the socket.
    pub(crate) async fn serve(self, supervisor: Handle) {
        let router = Router::new()
            .route("/v1/status", get(status))
            .route("/v1/reload", post(reload))
            .route("/v1/servers/state", post(set_state))
            .route("/v1/explain", get(explain))
            .fallback(|| async { failed(StatusCode::NOT_FOUND, "there is no such path; see docs/api.md") })
            .with_state(supervisor);
        let _path = self.path;
        let _ = axum::serve(self.listener, router).await;
    }
}

/// What is said when something cannot be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) errors: Vec<String>,
}

fn failed(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(Failed { errors: vec![why.into()] })).into_response()
}

fn gone() -> Response {
    failed(StatusCode::SERVICE_UNAVAILABLE, "this instance is about to end")
}

async fn status(State(supervisor): State<Handle>) -> Response {
    match supervisor.look(view::status).await {
        Some(status) => Json(status).into_response(),
        None => gone(),
    }
}

/// What a reload changed.
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

/// Which server should be in which state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StateWanted {
    pub(crate) server: String,
    pub(crate) state: String,
}

async fn set_state(State(supervisor): State<Handle>, Json(wanted): Json<StateWanted>) -> Response {
    let Some(state) = AdminState::ALL.into_iter().find(|state| state.name() == wanted.state) else {
        let why = format!("`{}` is not a state: ready, drain or maintenance", wanted.state);
        return failed(StatusCode::UNPROCESSABLE_ENTITY, why);
    };
    match supervisor.set_state(wanted.server, state).await {
        Some(Ok(server)) => Json(json!({ "server": server, "state": state.name() })).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}

#[derive(Debug, Deserialize)]
struct WhoAsks {
    service: String,
    client: IpAddr,
}

async fn explain(State(supervisor): State<Handle>, Query(who): Query<WhoAsks>) -> Response {
    let look = move |supervisor: &Supervisor| view::explain(supervisor, &who.service, who.client);
    match supervisor.look(look).await {
        Some(Ok(explanation)) => Json(explanation).into_response(),
        Some(Err(why)) => failed(StatusCode::NOT_FOUND, why),
        None => gone(),
    }
}
