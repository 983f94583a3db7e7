//! Settings of the kernel for all services: the synchronization daemons and timeouts of the configuration, and advice about
//! sysctls, which this program does not change.

use super::Setup;
use evener_core::spec::{IpvsSpec, IpvsSyncRole, IpvsTimeouts};
use evener_ipvs::Kernel;
use evener_ipvs::model::{Daemon, DaemonRole, Forwarding, Timeouts};
use std::collections::BTreeSet;
use std::time::Duration;

/// Settings that this process applied.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Daemons that this process started.
    daemons: BTreeSet<DaemonRole>,
    /// Advice that was given.
    advice: BTreeSet<String>,
}

impl Applied {
    /// Returns true for advice that was not given before.
    pub(super) fn is_new(&mut self, advice: &str) -> bool {
        self.advice.insert(advice.to_owned())
    }

    /// Applies the daemons and timeouts. Returns the problems.
    pub(super) fn apply(&mut self, kernel: &mut dyn Kernel, spec: &IpvsSpec) -> Vec<String> {
        let timeouts = apply_timeouts(kernel, &spec.timeouts).err();
        let daemons = self.apply_daemons(kernel, spec).err();
        [timeouts, daemons].into_iter().flatten().map(|error| error.to_string()).collect()
    }

    fn apply_daemons(&mut self, kernel: &mut dyn Kernel, spec: &IpvsSpec) -> evener_ipvs::Result<()> {
        if spec.sync.is_none() && self.daemons.is_empty() {
            return Ok(());
        }
        let running = kernel.daemons()?;
        for role in [DaemonRole::Master, DaemonRole::Backup] {
            let wanted = spec.sync.as_ref().filter(|sync| match role {
                DaemonRole::Master => sync.role != IpvsSyncRole::Backup,
                DaemonRole::Backup => sync.role != IpvsSyncRole::Master,
            });
            let found = running.iter().find(|daemon| daemon.role == role);
            let is_same = found.zip(wanted).is_some_and(|(found, wanted)| {
                *found.interface == *wanted.interface && found.sync_id == u32::from(wanted.id)
            });
            if let Some(found) =
                found.filter(|_| !is_same && (wanted.is_some() || self.daemons.contains(&role)))
            {
                kernel.stop_daemon(role, found.sync_id)?;
                self.daemons.remove(&role);
            }
            if let Some(wanted) = wanted.filter(|_| !is_same) {
                kernel.start_daemon(&Daemon::new(role, &wanted.interface, wanted.id.into()))?;
            }
            if wanted.is_some() {
                self.daemons.insert(role);
            }
        }
        Ok(())
    }
}

fn apply_timeouts(kernel: &mut dyn Kernel, wanted: &IpvsTimeouts) -> evener_ipvs::Result<()> {
    if *wanted == IpvsTimeouts::default() {
        return Ok(());
    }
    let found = kernel.timeouts()?;
    let changed = |wanted: Option<Duration>, found: Duration| wanted.filter(|wanted| *wanted != found);
    let (tcp, tcp_fin, udp) = (
        changed(wanted.tcp, found.tcp),
        changed(wanted.tcp_fin, found.tcp_fin),
        changed(wanted.udp, found.udp),
    );
    if tcp.or(tcp_fin).or(udp).is_none() {
        return Ok(());
    }
    // The kernel does not change a timeout of zero.
    let timeout = |wanted: Option<Duration>| wanted.unwrap_or_default();
    kernel.set_timeouts(&Timeouts { tcp: timeout(tcp), tcp_fin: timeout(tcp_fin), udp: timeout(udp) })
}

/// Returns advice about sysctls whose values do not fit the services.
pub(super) fn advice(setup: &Setup) -> Vec<String> {
    if setup.wanted.is_empty() {
        return Vec::new();
    }
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?;
        text.trim().parse::<i64>().ok()
    };
    let services = || setup.wanted.values();
    let has_nat = services()
        .flat_map(|service| service.destinations.values())
        .any(|one| one.forwarding == Forwarding::Nat && one.key.address.is_ipv4());
    let is_persistent = services().any(|service| service.service.persistence.is_some());
    let conntrack = read("vs/conntrack");
    let reuse = read("vs/conn_reuse_mode");
    let cases = [
        (
            reuse == Some(0),
            "net.ipv4.vs.conn_reuse_mode is 0: a client that uses a source port again keeps a server that drains; set it to 1",
        ),
        (
            conntrack == Some(1) && reuse == Some(1),
            "net.ipv4.vs.conntrack is 1: with conn_reuse_mode = 1 some kernels delay clients that use a source port again by 1 s; set it to 0, unless nftables needs the connections",
        ),
        (
            read("vs/expire_nodest_conn") == Some(0),
            "net.ipv4.vs.expire_nodest_conn is 0: packets of connections whose server was deleted are dropped until the client gives up, and with forward = \"direct\" or a tunnel, a client that uses a source port again keeps a server that drains; set it to 1",
        ),
        (
            is_persistent && read("vs/expire_quiescent_template") == Some(0),
            "net.ipv4.vs.expire_quiescent_template is 0: persistent clients keep a server that drains; set it to 1 to move them",
        ),
        (
            has_nat && read("ip_forward") == Some(0),
            "net.ipv4.ip_forward is 0: responses of servers with forward = \"nat\" do not reach the clients; set it to 1",
        ),
    ];
    cases.into_iter().filter(|(applies, _)| *applies).map(|(_, text)| text.to_owned()).collect()
}
