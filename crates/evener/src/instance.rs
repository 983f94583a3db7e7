//! A running instance: the supervisor with its workers and the admin API. The command line, the compatible
//! front ends, the demo and tests ([`Embedded`]) start their instances here. This module does not depend on the
//! command line.

mod embedded;

pub use embedded::{Embedded, Options};

use crate::activation::{Passed, Prebound};
use crate::admin::{self, AdminSocket, MetricsListener};
use crate::certificates::TlsSettings;
use crate::config::{self, Config};
use crate::inputs::{Inputs, gather};
use crate::service_manager;
use crate::signals::Signals;
use crate::supervisor::{Handle, Setting, Supervisor};
use crate::upgrade::predecessor::Predecessor;
use crate::upgrade::socket::Role;
use evener_core::event::Event;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A configured instance. It accepts clients once it is started, and handles signals and requests while
/// [`Self::run`] runs.
pub(crate) struct Instance {
    supervisor: Supervisor,
    handle: Handle,
    /// The admin API, and the messages to the service manager.
    tasks: JoinSet<()>,
}

impl Instance {
    /// Resolves names and reads certificates, then starts the workers and applies the configuration. Services use
    /// the sockets that the service manager passed for their addresses.
    pub(crate) async fn start(config: Config, setting: Setting) -> anyhow::Result<Self> {
        let resolved =
            gather(&config, TlsSettings::default()).await.map_err(|problems| config::failure(&problems))?;
        Self::begin(config, resolved, Prebound::new(), Passed::take(), setting)
    }

    /// Like [`Self::start`], with the sockets of the running instance. Nothing is accepted until [`Self::take_over`].
    pub(crate) async fn succeed(
        config: Config,
        setting: Setting,
        before: &mut Predecessor,
    ) -> anyhow::Result<Self> {
        let resolved =
            gather(&config, TlsSettings::default()).await.map_err(|problems| config::failure(&problems))?;
        raise_descriptor_limit();
        let (mut supervisor, handle) = Supervisor::start(setting.originated(before.origin()))?;
        supervisor.await_predecessor(before);
        Self::apply(supervisor, handle, config, resolved)
    }

    /// Takes over from the running instance, which then drains.
    ///
    /// # Errors
    /// The running instance goes on.
    pub(crate) fn take_over(&mut self, before: &mut Predecessor) -> anyhow::Result<()> {
        self.supervisor.take_over(before)
    }

    /// Continues the connections that the previous instance passes on while it drains.
    pub(crate) fn follow(&self, before: Predecessor) {
        self.supervisor.follow(before);
    }

    /// Starts the workers and applies a configuration. `resolved` has its inputs, and `bound` has sockets for
    /// those of its addresses that are bound already.
    pub(crate) fn start_with(
        config: Config,
        resolved: Inputs,
        bound: Prebound,
        setting: Setting,
    ) -> anyhow::Result<Self> {
        Self::begin(config, resolved, bound, Passed::default(), setting)
    }

    fn begin(
        config: Config,
        resolved: Inputs,
        mut bound: Prebound,
        passed: Passed,
        setting: Setting,
    ) -> anyhow::Result<Self> {
        raise_descriptor_limit();
        let (mut supervisor, handle) = Supervisor::start(setting)?;
        let (of_service_manager, unused) = passed.for_services(&config.spec, supervisor.workers())?;
        bound.extend(of_service_manager);
        supervisor.add_prebound(bound);
        let started = Self::apply(supervisor, handle, config, resolved)?;
        unused.iter().for_each(|event| started.supervisor.log(event));
        Ok(started)
    }

    fn apply(
        mut supervisor: Supervisor,
        handle: Handle,
        config: Config,
        resolved: Inputs,
    ) -> anyhow::Result<Self> {
        let (services, pools) = (config.spec.services.len(), config.spec.pools.len());
        supervisor.apply(config, resolved).map_err(|problems| config::failure(&problems))?;
        let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        let (workers, driver) = (supervisor.workers(), supervisor.driver());
        supervisor.log(&Event::Started { version, pid, workers, driver, services, pools });
        supervisor.warn_of_descriptors();
        Ok(Self { supervisor, handle, tasks: JoinSet::new() })
    }

    /// Returns a handle for requests to the supervisor.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns a receiver that resolves when new clients are no longer accepted.
    pub(crate) fn draining(&mut self) -> oneshot::Receiver<()> {
        self.supervisor.draining()
    }

    /// Serves the admin API on a socket while the instance runs.
    pub(crate) fn serve_admin(&mut self, admin: AdminSocket) {
        self.supervisor.log(&Event::AdminListening { socket: admin.path().display().to_string() });
        if let Ok(socket) = admin.copy() {
            self.supervisor.add_endpoint(Role::Admin, admin.path().display().to_string(), socket);
        }
        self.tasks.spawn(admin.serve(self.handle(), self.supervisor.endpoint_phase()));
        self.serve_api();
    }

    /// Serves the API over TCP on a thread of its own, because handshakes of peers without a token must not delay the
    /// supervisor and its checks. The thread ends with the supervisor.
    fn serve_api(&self) {
        let (handle, endpoints) = (self.handle(), self.supervisor.api_endpoint());
        let phase = self.supervisor.endpoint_phase();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(admin::serve_endpoints(handle, endpoints, phase));
            runtime.shutdown_background();
            std::io::Result::Ok(())
        };
        if let Err(error) = std::thread::Builder::new().name("api".into()).spawn(serve) {
            let text = format!("the API over TCP cannot be served: {error}");
            self.supervisor.log(&Event::Notice { text });
        }
    }

    /// Serves the metrics at an address while the instance runs.
    pub(crate) fn serve_metrics(&mut self, listener: MetricsListener) {
        if let Ok(address) = listener.address() {
            self.supervisor.log(&Event::MetricsListening { address: address.to_string() });
        }
        if let Some((address, socket)) = listener.address().ok().zip(listener.copy().ok()) {
            self.supervisor.add_endpoint(Role::Metrics, address.to_string(), socket);
        }
        self.tasks.spawn(listener.serve(self.handle(), self.supervisor.endpoint_phase()));
    }

    /// Runs until a signal or a request ends the instance. Before this returns, clients may finish, and the
    /// file of the admin socket is removed.
    pub(crate) async fn run(mut self, signals: Signals) {
        self.tasks.spawn(service_manager::keep_watchdog());
        service_manager::ready();
        self.supervisor.run(signals).await;
        self.tasks.shutdown().await;
    }
}

/// Raises the limit of descriptors to the maximum.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
