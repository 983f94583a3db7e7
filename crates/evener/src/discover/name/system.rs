//! The settings of the system for names: /etc/resolv.conf and /etc/hosts. They are read again when they change.

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Device, inode, size and time of the change of a file; `None` if it cannot be read.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The settings of the system.
#[derive(Debug)]
pub(super) struct System {
    stamps: [Stamp; 2],
    /// Absent if the system has no name servers.
    servers: Option<(ResolverConfig, ResolverOpts)>,
    hosts: Hosts,
}

impl System {
    /// Reads the settings, unless they did not change since the last call.
    pub(super) async fn read() -> Arc<Self> {
        static LAST: Mutex<Option<Arc<System>>> = Mutex::new(None);
        let read = || {
            let stamps = FILES.map(stamp);
            let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some(known) if known.stamps == stamps => Arc::clone(known),
                _ => Arc::clone(last.insert(Arc::new(Self::load(stamps)))),
            }
        };
        let empty = || Arc::new(Self { stamps: [None; 2], servers: None, hosts: Hosts::default() });
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| empty())
    }

    fn load(stamps: [Stamp; 2]) -> Self {
        let servers = hickory_resolver::system_conf::read_system_conf().ok();
        Self { stamps, servers, hosts: Hosts::from_system().unwrap_or_default() }
    }

    /// Returns a resolver that queries the name servers of the system.
    pub(super) fn resolver(&self) -> Option<TokioResolver> {
        let (config, options) = self.servers.clone()?;
        super::build(config, options)
    }

    /// Returns the addresses of a name in /etc/hosts.
    pub(super) fn hosts(&self, name: &Name) -> Option<BTreeSet<IpAddr>> {
        let of = |kind| self.hosts.lookup_static_host(&Query::query(name.to_lowercase(), kind));
        let found = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of);
        let ips: BTreeSet<IpAddr> = found
            .flat_map(|lookup| {
                lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>()
            })
            .collect();
        Some(ips).filter(|ips| !ips.is_empty())
    }
}

fn stamp(path: &str) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_hosts_file_have_all_their_addresses() {
        let mut hosts = Hosts::default();
        hosts
            .read_hosts_conf(&b"10.0.0.1 App.example app\n::1 app.example\n10.0.0.2 app.example # b\n"[..])
            .unwrap();
        let system = System { stamps: [None; 2], servers: None, hosts };
        let of = |name: &str| {
            let ips = system.hosts(&Name::from_ascii(name).unwrap()).unwrap_or_default();
            ips.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("APP.example"), ["10.0.0.1", "10.0.0.2", "::1"]);
        assert_eq!(of("app"), ["10.0.0.1"]);
        assert!(of("other").is_empty());
    }
}
