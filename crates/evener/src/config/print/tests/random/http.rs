//! Random settings that only HTTP services have.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::{Chance, Kind};
use evener_core::route::Route;
use evener_core::spec::*;
use evener_core::wire::http::HeaderLimits;
use std::collections::BTreeSet;
use std::sync::Arc;

impl Chance<'_> {
    pub(super) fn http(&mut self) -> HttpSpec {
        let defaults = HttpSpec::default();
        let limits = HeaderLimits {
            bytes_max: self.or(defaults.limits.bytes_max, |chance| chance.within(1024..=65_536) as usize),
            fields_max: self.or(defaults.limits.fields_max, |chance| chance.within(8..=10_000) as usize),
        };
        let redirect = self.maybe(|chance| RedirectSpec {
            status: chance.pick(&[301, 302, 307, 308]),
            port: chance.or(443, |chance| chance.within(1..=65_535) as u16),
        });
        let respond = self.maybe(|chance| RespondSpec {
            status: chance.or(200, |chance| chance.within(200..=599) as u16),
            content_type: chance.or("text/plain; charset=utf-8".into(), Self::word),
            body: chance.prose(),
        });
        HttpSpec {
            balance: self.pick(&[Balance::Request, Balance::Connection]),
            forwarded: self.forwarded(),
            limits,
            header_timeout: self.or(defaults.header_timeout, Self::time),
            keepalive_timeout: self.or(defaults.keepalive_timeout, Self::time),
            stall_timeout: self.or(defaults.stall_timeout, Self::time),
            min_rate: self.min_rate(),
            abort_on_close: self.abort_on_close(),
            response_timeout: self.or(defaults.response_timeout, Self::time),
            retries: self.or(defaults.retries, |chance| chance.within(0..=100)),
            respond: respond.filter(|_| redirect.is_none()),
            redirect,
            health: self.maybe(|chance| format!("/{}", chance.word().replace(' ', ""))),
            subject_field: self.maybe(|chance| chance.pick(&["X-Client", "S_1"]).into()),
            http2: self.pick(&[Http2::On, Http2::Off]),
        }
    }

    /// Returns routes. No two routes have the same host and path.
    pub(super) fn routes(&mut self, kinds: &[Kind], is_http: bool) -> Vec<Route<Arc<str>>> {
        let hosts = ["a.example", "*.b.example", "2001:db8::1", "*.example"];
        let route = |chance: &mut Self| {
            Some(Route {
                hosts: chance.some(0..=6, |chance| chance.pick(&hosts).parse().unwrap()),
                path: if is_http { chance.maybe(|chance| format!("/{}", chance.word())) } else { None },
                to: chance.pool_of(kinds)?,
            })
        };
        let mut routes: Vec<Route<_>> = self.some(0..=3, route).into_iter().flatten().collect();
        let mut taken = BTreeSet::new();
        routes.retain_mut(|route| {
            let path = route.path.clone();
            let any = route.hosts.is_empty();
            route.hosts.retain(|host| taken.insert((host.to_string(), path.clone())));
            if any { taken.insert((String::new(), path)) } else { !route.hosts.is_empty() }
        });
        routes
    }

    fn forwarded(&mut self) -> ForwardedSpec {
        let (classic, standard) = self.pick(&[(true, false), (false, true), (true, true)]);
        ForwardedSpec {
            mode: self.pick(&[ForwardedMode::Replace, ForwardedMode::Append, ForwardedMode::Off]),
            trust: self.maybe(Self::prefixes),
            classic,
            standard,
        }
    }
}
