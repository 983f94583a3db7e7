//! The planes of an instance, and the services in them. A service names its plane; each command of the supervisor
//! goes to the plane of the service or listener, or to every plane. There is no trait: a new plane is a variant
//! here, and the compiler lists the commands that it has to handle.

mod ipvs;
mod listed;
mod xdp;

use arc_swap::ArcSwap;
use evener_core::service::ServiceLive;
use evener_core::snapshot::{Entry, Snapshot};
use evener_core::spec::{Plane, PoolSpec, ServiceSpec};
use evener_proxy::{
    Bound, Closed, Driver, EndReason, Lent, ListFilter, PassedFlow, PassedRelay, PlaneOptions, Service,
    Settings,
};
use evener_xdp::associations::AssociationFilter;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) use ipvs::{IpvsPlane, Report as IpvsReport, event_of_ipvs};
pub(crate) use listed::Listed;
pub(crate) use xdp::{XdpPlane, event_of};

/// The planes. The proxy is always there, because it needs nothing of the kernel.
pub(crate) struct Planes {
    proxy: evener_proxy::Plane,
    xdp: XdpPlane,
    ipvs: IpvsPlane,
}

/// A running service in its plane.
#[derive(Clone, Debug)]
pub(crate) enum RunningService {
    /// The workers serve it.
    Proxy(Arc<Service>),
    /// The XDP program forwards its packets.
    Xdp(Arc<ServiceLive>),
    /// IPVS forwards its packets.
    Ipvs(Arc<ServiceLive>),
}

/// Identity of a listener in its plane.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ListenerId {
    /// A listener of the workers.
    Proxy(u64),
}

impl RunningService {
    /// Creates a service that the workers serve.
    pub(crate) fn proxied(spec: &ServiceSpec, settings: Settings, workers: usize) -> Self {
        let live = Arc::new(ServiceLive::new(spec.name.clone(), spec.protocol, workers));
        Self::Proxy(Arc::new(Service::new(live, settings)))
    }

    /// Creates a service that the kernel forwards.
    pub(crate) fn in_kernel(spec: &ServiceSpec) -> Self {
        let live = Arc::new(ServiceLive::new(spec.name.clone(), spec.protocol, 1));
        if spec.plane == Plane::Ipvs { Self::Ipvs(live) } else { Self::Xdp(live) }
    }

    /// Returns the service of the workers, if they serve it.
    pub(crate) fn of_workers(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Proxy(service) => Some(service),
            Self::Xdp(_) | Self::Ipvs(_) => None,
        }
    }

    /// Returns the identity, the occupancy and the counters, which every plane has.
    pub(crate) fn live(&self) -> &Arc<ServiceLive> {
        match self {
            Self::Proxy(service) => &service.live,
            Self::Xdp(live) | Self::Ipvs(live) => live,
        }
    }

    /// Returns true if the service continues with this configuration. With another protocol or plane it is
    /// replaced.
    pub(crate) fn continues_as(&self, spec: &ServiceSpec) -> bool {
        self.live().protocol == spec.protocol && self.plane() == spec.plane
    }

    fn plane(&self) -> Plane {
        match self {
            Self::Proxy(_) => Plane::Proxy,
            Self::Xdp(_) => Plane::Xdp,
            Self::Ipvs(_) => Plane::Ipvs,
        }
    }
}

impl Planes {
    /// Starts the planes that every instance has.
    ///
    /// # Errors
    /// The system can create no more threads or descriptors.
    pub(crate) fn start(options: &PlaneOptions, xdp: XdpPlane, ipvs: IpvsPlane) -> std::io::Result<Self> {
        Ok(Self { proxy: evener_proxy::Plane::start(options)?, xdp, ipvs })
    }

    /// Returns the XDP plane.
    pub(crate) fn xdp(&mut self) -> &mut XdpPlane {
        &mut self.xdp
    }

    /// Returns the IPVS plane.
    pub(crate) fn ipvs(&mut self) -> &mut IpvsPlane {
        &mut self.ipvs
    }

    /// Returns the number of workers of the proxy.
    pub(crate) fn workers(&self) -> usize {
        self.proxy.workers()
    }

    /// Returns the driver of the workers of the proxy.
    pub(crate) fn driver(&self) -> Driver {
        self.proxy.driver()
    }

    /// Returns the number of commands that were sent to the workers of the proxy.
    #[cfg(test)]
    pub(crate) fn commands(&self) -> u64 {
        self.proxy.commands()
    }

    /// Publishes a snapshot of a pool and returns the previous snapshot. The workers of the proxy read `slot` at
    /// each choice; the planes of the kernel write what changed.
    pub(crate) fn publish(
        &mut self,
        spec: &PoolSpec,
        slot: &ArcSwap<Snapshot>,
        snapshot: &Arc<Snapshot>,
    ) -> Arc<Snapshot> {
        let before = slot.swap(Arc::clone(snapshot));
        self.xdp.on_pool(spec, snapshot);
        self.ipvs.on_pool(spec, snapshot);
        before
    }

    /// Accepts clients of a service at an address.
    pub(crate) fn listen(&mut self, service: &Arc<Service>, bound: Bound) -> ListenerId {
        ListenerId::Proxy(self.proxy.listen(service, bound))
    }

    /// Closes a listener. Connections continue.
    pub(crate) fn unlisten(&self, listener: ListenerId) {
        match listener {
            ListenerId::Proxy(id) => self.proxy.unlisten(id),
        }
    }

    /// Assigns a listener to another service of the same plane.
    pub(crate) fn assign(&self, listener: ListenerId, service: &Arc<Service>) {
        match listener {
            ListenerId::Proxy(id) => self.proxy.assign(id, service),
        }
    }

    /// Changes the settings of a service; its listeners, connections and flows stay.
    pub(crate) fn reconfigure(&self, service: &Arc<Service>, settings: Settings) {
        self.proxy.reconfigure(service, settings);
    }

    /// Opens and closes persistent connections, after servers were added or removed.
    pub(crate) fn maintain(&self) {
        self.proxy.maintain();
    }

    /// Stops accepting clients; connections and flows may finish.
    pub(crate) fn drain(&self) {
        self.proxy.drain();
    }

    /// Closes all connections and flows.
    pub(crate) fn cut(&self) {
        self.proxy.cut();
    }

    /// Lets listeners begin only after [`Self::release`].
    pub(crate) fn hold(&mut self) {
        self.proxy.hold();
    }

    /// Lets the held listeners begin, with flows of another process.
    pub(crate) fn release(&mut self, flows: Vec<PassedFlow>) {
        self.proxy.release(flows);
    }

    /// Copies the descriptors of all listeners. `done` must not block.
    pub(crate) fn lend(&self, done: impl FnOnce(std::io::Result<Vec<Lent>>) + Send + 'static) {
        self.proxy.lend(done);
    }

    /// Reads nothing more from these listeners, until [`Self::resume`]. `done` must not block.
    pub(crate) fn suspend(
        &self,
        listeners: BTreeSet<u64>,
        done: impl FnOnce(Vec<PassedFlow>) + Send + 'static,
    ) {
        self.proxy.suspend(listeners, done);
    }

    /// Continues the suspended listeners.
    pub(crate) fn resume(&self) {
        self.proxy.resume();
    }

    /// Takes the relays of these services out, those that can pass to another process. `receive` must not block.
    pub(crate) fn pass(
        &self,
        services: &Arc<BTreeSet<Arc<str>>>,
        receive: impl Fn(PassedRelay) + Send + Sync + 'static,
    ) {
        self.proxy.pass(services, receive);
    }

    /// Continues a relay of another process.
    pub(crate) fn adopt(&mut self, service: &Arc<Service>, relay: PassedRelay) {
        self.proxy.adopt(service, relay);
    }

    /// Stops the planes of the kernel, which goes on with their services, for another process.
    pub(crate) fn leave_kernel(&mut self) {
        self.xdp.leave();
        self.ipvs.leave();
    }

    /// Stops the planes. The kernel goes on with the services of its planes.
    pub(crate) fn stop(self) {
        let Self { proxy, mut xdp, mut ipvs } = self;
        proxy.stop();
        xdp.leave();
        ipvs.leave();
    }

    /// Lists connections and flows that meet the conditions: at most `most` of each worker and of the XDP plane, and
    /// the total number. `done` is called on the thread of a plane, so it must not block.
    pub(crate) fn connections(
        &self,
        filter: ListFilter,
        association_filter: AssociationFilter,
        most: usize,
        done: impl FnOnce(Listed) + Send + 'static,
    ) {
        let associations = self.xdp.associations();
        self.proxy.connections(filter, most, move |open| {
            let listed = Listed::of_workers(open);
            match associations {
                Some(associations) => associations.list(association_filter, most, listed, done),
                None => done(listed),
            }
        });
    }

    /// Lists at most `most` associations of the XDP plane that meet the conditions. `done` must not block.
    pub(crate) fn associations(
        &self,
        filter: AssociationFilter,
        most: usize,
        done: impl FnOnce(Listed) + Send + 'static,
    ) {
        match self.xdp.associations() {
            Some(associations) => associations.list(filter, most, Listed::default(), done),
            None => done(Listed::default()),
        }
    }

    /// Closes the connection or flow with this number. `done` must not block.
    pub(crate) fn close(&self, number: u64, done: impl FnOnce(Closed) + Send + 'static) {
        self.proxy.close(number, done);
    }

    /// Closes the connections and flows of a server in every plane. `done` is called with their number and must
    /// not block.
    pub(crate) fn end_server(
        &self,
        server: &Entry,
        reason: EndReason,
        done: impl FnOnce(usize) + Send + 'static,
    ) {
        self.proxy.end_server(server, reason, done);
    }
}
