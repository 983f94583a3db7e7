//! Random sources of servers.

use super::Chance;
use evener_core::limits::Limits;
use evener_core::spec::*;
use std::net::SocketAddr;

impl Chance<'_> {
    pub(super) fn source(&mut self) -> DiscoverSpec {
        let soft = self.maybe(|chance| chance.within(1..=u32::MAX));
        let limits = Limits { soft, hard: self.maybe(|chance| chance.within(soft.unwrap_or(1)..=u32::MAX)) };
        let settings = FoundSettings {
            weight: self.or(1, |chance| chance.within(0..=WEIGHT_MAX)),
            tier: self.or(1, |chance| chance.within(1..=255) as u8),
            limits,
        };
        let number = self.unique();
        match self.below(3) {
            0 => DiscoverSpec::File {
                path: format!("/run/{} {number}", self.word()).into(),
                port: self.maybe(|chance| chance.within(1..=65_535) as u16),
                settings,
            },
            1 => {
                let port = self.within(1..=65_535) as u16;
                DiscoverSpec::Dns { name: format!("app{number}.example"), port, settings }
            }
            _ => DiscoverSpec::Srv { name: format!("_http._tcp.x{number}.example"), limits },
        }
    }

    pub(super) fn resolver(&mut self) -> SocketAddr {
        let ip = self.pick(&["127.0.0.1", "::1"]);
        SocketAddr::new(ip.parse().unwrap(), self.or(53, |chance| chance.within(1..=65_535) as u16))
    }
}
