//! The endpoints of the instance around its end: new connections wait while the next instance is about to take a socket
//! over; the admin socket has another path while the instance drains; and if the next instance took it over, this one
//! serves its last requests at a socket of its own.

use super::serve;
use crate::supervisor::Handle;
use crate::unix_socket::SocketFile;
use crate::upgrade::EndpointPhase;
use axum::Router;
use evener_core::event::Event;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// Accepts the next connection while the socket belongs to this instance. Returns `None` after the next instance took it
/// over.
pub(super) async fn accept<Accepted: Future>(
    phase: &watch::Receiver<EndpointPhase>,
    accept: impl Fn() -> Accepted,
) -> Option<Accepted::Output> {
    loop {
        let is_decided = |phase: EndpointPhase| phase.accepts() || phase == EndpointPhase::PassedOn;
        if EndpointPhase::wait(phase.clone(), is_decided).await == EndpointPhase::PassedOn {
            return None;
        }
        tokio::select! {
            biased;
            _ = EndpointPhase::wait(phase.clone(), |phase| !phase.accepts()) => {}
            accepted = accept() => return Some(accepted),
        }
    }
}

/// The file of the admin socket. At the end of this process it stays if the next instance took the socket over.
struct AdminFile {
    file: SocketFile,
    /// This process created the file at its present path after the next instance took over.
    is_local: bool,
    phase: watch::Receiver<EndpointPhase>,
}

impl Drop for AdminFile {
    fn drop(&mut self) {
        if !self.is_local && *self.phase.borrow() == EndpointPhase::PassedOn {
            self.file.leave();
        }
    }
}

/// Waits until the instance drains, and keeps the API reachable then. Returns if that is not possible.
pub(super) async fn serve_at_end(
    file: SocketFile,
    router: Router,
    supervisor: Handle,
    phase: watch::Receiver<EndpointPhase>,
) {
    let is_over = |phase| matches!(phase, EndpointPhase::Draining | EndpointPhase::PassedOn);
    let mut admin = AdminFile { file, is_local: false, phase: phase.clone() };
    let phase = EndpointPhase::wait(phase, is_over).await;
    let replacement = match phase {
        EndpointPhase::PassedOn => {
            let listener = admin.file.pass_on().ok();
            admin.is_local = listener.is_some();
            listener
        }
        _ if admin.file.make_room().is_err() => {
            // The file could not be renamed. Serving ends, so that the next instance can replace the file of a
            // socket on which no process listens.
            return;
        }
        _ => None,
    };
    if phase == EndpointPhase::Draining || replacement.is_some() {
        let socket = admin.file.path().display().to_string();
        supervisor.log(Event::AdminListening { socket }).await;
    }
    if let Some(Ok(listener)) = replacement.map(UnixListener::from_std) {
        serve::at_socket(listener, router, EndpointPhase::open()).await;
    }
    // Requests in progress continue.
    std::future::pending::<()>().await;
}
