//! The admin API: HTTP on a unix socket and, if configured, over TCP, under `/v1`. The only module that adds routes.

pub(crate) mod access;
pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod clients;
pub(crate) mod configuration;
pub(crate) mod connections;
mod dashboard;
#[cfg(test)]
mod documented;
mod events;
pub(crate) mod explain;
mod gate;
mod guard;
mod instances;
mod metrics;
mod openapi;
mod parameters;
mod permissions;
pub(crate) mod plan;
mod problem;
mod serve;
pub(crate) mod server_state;
pub(crate) mod servers;
pub(crate) mod sticky;
pub(crate) mod upgrade;

pub(crate) use metrics::MetricsListener;
pub(crate) use permissions::Permissions;
pub(crate) use serve::serve_endpoints;

use crate::runtime_directory::{SYSTEM_DIRECTORY, runtime_directory};
use crate::state::{View, ViewScope};
use crate::supervisor::Handle;
use crate::unix_socket::{self, PathInUse, SocketFile, remove_left_over};
use crate::upgrade::EndpointPhase;
use anyhow::{Context, bail};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use guard::Audit;
use parameters::Parameters;
use problem::{Failures, Problem, failed};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// Maximum number of files of the directory that are checked for left-over sockets.
const LEFT_OVER_MAX: usize = 1000;
/// Maximum size of the body of a request.
const BODY_BYTES_MAX: usize = 2 << 20;

/// The admin socket. Its file is removed when serving ends.
pub(crate) struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Creates the default directory if it is missing, and returns it. Other users may enter the directory of root's
/// instances, so that their commands find the sockets there; the sockets have modes of their own. Fails if another
/// user owns the directory or can write to it: in /tmp, any user could have created it earlier.
fn user_directory(permissions: Permissions) -> anyhow::Result<PathBuf> {
    let directory = runtime_directory();
    let is_open = directory == Path::new(SYSTEM_DIRECTORY) || permissions.admits_others();
    let mode = if is_open { 0o755 } else { 0o700 };
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&directory);
    made.with_context(|| format!("{} cannot be created; give --admin PATH", directory.display()))?;
    let meta = fs::symlink_metadata(&directory)?;
    let user = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || meta.uid() != user || meta.mode() & 0o022 != 0 {
        bail!(
            "{} must be a directory that only this user can access; give --admin PATH",
            directory.display()
        );
    }
    // An earlier version, or an instance without a group, has created it for its owner only.
    if is_open && meta.mode() & 0o055 != 0o055 {
        let opened = fs::set_permissions(&directory, fs::Permissions::from_mode(meta.mode() | 0o055));
        opened.with_context(|| format!("the mode of {} cannot be set", directory.display()))?;
    }
    Ok(directory)
}

impl AdminSocket {
    /// Opens the socket at its default path.
    pub(crate) fn open_default(permissions: Permissions) -> anyhow::Result<Self> {
        Self::open(&user_directory(permissions)?.join("evener.sock"), permissions)
    }

    /// Opens the socket at its default path. If that fails, for example because another instance uses the path,
    /// opens it at a path with the process id.
    pub(crate) fn open_any(permissions: Permissions) -> anyhow::Result<Self> {
        let directory = user_directory(permissions)?;
        // Earlier instances may have left their sockets: an instance that dropped its privileges cannot remove
        // its own. Sockets in use are not removed.
        for entry in fs::read_dir(&directory)?.flatten().take(LEFT_OVER_MAX) {
            let _ = remove_left_over(&entry.path());
        }
        let other = directory.join(format!("evener-{}.sock", std::process::id()));
        Self::open(&directory.join("evener.sock"), permissions).or_else(|_| Self::open(&other, permissions))
    }

    /// Opens the socket at `path`.
    pub(crate) fn open(path: &Path, permissions: Permissions) -> anyhow::Result<Self> {
        // An instance that was killed while it drained has left its socket.
        unix_socket::draining(path).iter().for_each(|renamed| drop(remove_left_over(renamed)));
        remove_left_over(path).map_err(|error| {
            let hint = match error {
                PathInUse::Listening => "another instance listens there; give this instance --admin PATH",
                PathInUse::OtherFile | PathInUse::NotRemoved(_) => "give --admin PATH",
            };
            anyhow::anyhow!("{}: {error}; {hint}", path.display())
        })?;
        // Others have no access before the group is set, not even for a moment. No other thread creates files yet.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener.with_context(|| {
            format!("the admin socket {} cannot be created; give --admin PATH", path.display())
        })?;
        let socket = Self { listener, file: SocketFile::of(path) };
        permissions.apply(path)?;
        Ok(socket)
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Takes the socket of the previous instance. Its file stays.
    pub(crate) fn adopt(path: &Path, socket: OwnedFd) -> anyhow::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, file: SocketFile::lent(path) })
    }

    /// Copies the descriptor, for the next instance.
    pub(crate) fn copy(&self) -> std::io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }

    /// Serves the API until the program ends, and then removes the file of the socket. When the program begins
    /// to drain, the file is renamed to `PATH.draining-PID`, so that the next instance can use `PATH`. If the next
    /// instance took the socket over, a new socket is created there.
    pub(crate) async fn serve(self, supervisor: Handle, phase: watch::Receiver<EndpointPhase>) {
        let Self { listener, mut file } = self;
        file.claim();
        let router = router(supervisor.clone());
        let at_path = serve::at_socket(listener, router.clone(), phase.clone());
        let at_path = async {
            at_path.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = at_path => {}
            () = gate::serve_at_end(file, router, supervisor, phase) => {}
        }
    }
}

fn router(supervisor: Handle) -> Router {
    let guard = guard::Guard::new(supervisor.clone());
    let api = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/reload", post(reload))
        .route("/v1/upgrade", post(upgrade::upgrade))
        .route("/v1/config", get(configuration::configuration))
        .route("/v1/pools/{pool}/servers", post(servers::add))
        .route("/v1/pools/{pool}/servers/{server}", patch(servers::change).delete(servers::remove))
        .route("/v1/servers/state", post(server_state::set_state))
        .route("/v1/access", get(access::access).post(access::change_access))
        .route("/v1/clients", get(clients::clients))
        .route("/v1/connections", get(connections::connections).delete(connections::close_all))
        .route("/v1/connections/{number}", delete(connections::close))
        .route("/v1/events", get(events::events))
        .route("/v1/sticky", get(sticky::sticky))
        .route("/v1/cache/expunge", post(cache::expunge))
        .route("/v1/explain", get(explain::explain))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/metrics", get(metrics::metrics))
        .merge(plan::routes())
        .fallback(|| async { failed(StatusCode::NOT_FOUND, "there is no such path; see docs/api.md") })
        .method_not_allowed_fallback(|| async {
            failed(StatusCode::METHOD_NOT_ALLOWED, "this path has another method; see docs/api.md")
        })
        .with_state(supervisor)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(guard, guard::guard));
    // The dashboard needs no token: it holds no data.
    dashboard::add(api)
}

/// Runs work that takes long on another thread: this one also runs the supervisor.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

fn shutting_down() -> Response {
    failed(StatusCode::SERVICE_UNAVAILABLE, "this instance is shutting down")
}

/// Query parameters of a request for the status.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct StatusParameters {
    /// The only server in the response.
    server: Option<String>,
}

/// `GET /v1/status`: the state of the whole instance, or of one server.
#[utoipa::path(get, path = "/v1/status", params(StatusParameters), responses((status = 200, description = "Done", body = View), Failures))]
async fn status(State(supervisor): State<Handle>, parameters: Parameters<StatusParameters>) -> Response {
    let server = parameters.into_inner().server;
    let scope = server.clone().map_or(ViewScope::Instance, ViewScope::Server);
    match (supervisor.view(scope).await, server) {
        (Some(view), Some(server)) if view.servers().next().is_none() => failed(
            StatusCode::NOT_FOUND,
            format!(
                "there is no server `{server}`, or several pools have it; `evener status` lists the servers"
            ),
        ),
        (Some(view), _) => {
            // The view of 10 000 servers takes long to format, and this thread also runs the supervisor.
            let json = tokio::task::spawn_blocking(move || serde_json::to_vec(&view)).await;
            match json {
                Ok(Ok(json)) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
                _ => failed(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be formatted"),
            }
        }
        (None, _) => shutting_down(),
    }
}

/// Changes made by a reload.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
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

#[utoipa::path(post, path = "/v1/reload", responses((status = 200, description = "Done", body = Reloaded), Failures))]
async fn reload(State(supervisor): State<Handle>) -> Response {
    match supervisor.reload().await {
        Some(Ok(changes)) => {
            let warnings = supervisor.warnings().await.unwrap_or_default();
            let audit = Audit::new("reload", "configuration").after(changes.join("; "));
            audit.on(Json(Reloaded { changes, warnings }).into_response())
        }
        Some(Err(errors)) => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, errors).into_response(),
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
