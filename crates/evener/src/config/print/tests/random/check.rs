//! Random probes of checks.

use super::Chance;
use evener_core::spec::{CheckKind, CheckTls, ServerTlsSpec, Verification};

impl Chance<'_> {
    pub(super) fn stream_check(&mut self, tls: Option<CheckTls>) -> CheckKind {
        let expect = self.maybe(|chance| [chance.bytes(), b"x".to_vec()].concat());
        let begins = self.maybe(|chance| [chance.bytes(), b"x".to_vec()].concat());
        let send = if self.one_in(2) { self.bytes() } else { Vec::new() };
        match (tls, send.is_empty() && expect.is_none() && begins.is_none()) {
            (None, true) => CheckKind::Tcp,
            (tls, _) => CheckKind::Stream { send, begins, expect, tls },
        }
    }

    pub(super) fn http_check(&mut self, tls: Option<CheckTls>) -> CheckKind {
        let usual = (200..400).collect();
        CheckKind::Http {
            method: self.pick(&["GET", "HEAD", "OPTIONS"]).into(),
            path: self.or("/".into(), |chance| format!("/{}", chance.word().replace(' ', "?"))),
            host: self.maybe(|chance| chance.pick(&["a.example", "\"\\[["]).into()),
            status: self.or(usual, |c| c.some(1..=90, |c| c.within(100..=599) as u16).into_iter().collect()),
            body: self.maybe(Self::prose),
            regex: self.maybe(|chance| chance.pick(&["^ok$", "a{2,3}|\\\\d", "\\u{e4}"]).to_owned()),
            digest: self.maybe(|chance| {
                let length = chance.pick(&[32, 64]);
                chance.pick(&["0", "9f"]).repeat(64)[..length].to_owned()
            }),
            tls,
        }
    }
}

/// Adds the TLS settings that a check inherits from its pool.
pub(super) fn inherited(nested: CheckTls, pool: Option<&ServerTlsSpec>) -> CheckTls {
    let Some(pool) = pool else { return nested };
    CheckTls {
        sni: nested.sni.or_else(|| pool.name.clone()),
        insecure: nested.insecure || pool.verification == Verification::Off,
        ca_file: nested.ca_file.or_else(|| pool.authorities.clone()),
    }
}
