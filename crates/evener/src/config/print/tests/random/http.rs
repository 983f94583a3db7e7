//! Random settings that only HTTP services have.

use super::Chance;
use evener_core::spec::*;
use evener_core::wire::http::HeaderLimits;

impl Chance<'_> {
    pub(super) fn http(&mut self) -> HttpSpec {
        let defaults = HttpSpec::default();
        let limits = HeaderLimits {
            bytes_max: self.or(defaults.limits.bytes_max, |chance| chance.within(1024..=65_536) as usize),
            fields_max: self.or(defaults.limits.fields_max, |chance| chance.within(8..=10_000) as usize),
        };
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
            redirect: self.maybe(|chance| RedirectSpec {
                status: chance.pick(&[301, 302, 307, 308]),
                port: chance.or(443, |chance| chance.within(1..=65_535) as u16),
            }),
            respond: self.maybe(|chance| RespondSpec {
                status: chance.or(200, |chance| chance.within(200..=599) as u16),
                content_type: chance.or("text/plain; charset=utf-8".into(), Self::word),
                body: chance.prose(),
            }),
            health: self.maybe(|chance| format!("/{}", chance.word().replace(' ', ""))),
            subject_field: self.maybe(|chance| chance.pick(&["X-Client", "S_1"]).into()),
            http2: self.pick(&[Http2::On, Http2::Off]),
        }
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
