//! The table of a case: medians and ranges of the norms, the ratios of Evener's norms to the peers' norms, and
//! the goals for these ratios.

use super::load::Sample;
use super::peers::{Case, Peer};
use std::fmt::Write;

/// Measurements of a case.
pub(super) struct Results {
    case: Case,
    names: Vec<&'static str>,
    samples: Vec<Vec<Sample>>,
}

impl Results {
    pub(super) fn new(case: Case, peers: &[Peer]) -> Self {
        Self {
            case,
            names: peers.iter().map(|peer| peer.name).collect(),
            samples: vec![Vec::new(); peers.len()],
        }
    }

    pub(super) fn add(&mut self, at: usize, sample: Sample) {
        self.samples[at].push(sample);
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "### {}\n\n| | norm (range) | CPU µs | rate/s | epoll / it | io_uring / it | goal |\n|---|---|---|---|---|---|---|\n",
            title(self.case)
        );
        let norm_of = |name: &str| {
            let at = self.names.iter().position(|other| *other == name)?;
            Some(median(self.samples[at].iter().map(|sample| sample.norm)))
        };
        let ours = [norm_of("evener"), norm_of("evener-io_uring")];
        for (name, samples) in self.names.iter().zip(&self.samples) {
            let norms = || samples.iter().map(|sample| sample.norm);
            let (least, most) = (norms().fold(f64::MAX, f64::min), norms().fold(0.0, f64::max));
            let norm = median(norms());
            let (micros, rate) =
                (median(samples.iter().map(|s| s.micros)), median(samples.iter().map(|s| s.rate)));
            let goal = goal(self.case, name).map_or(String::new(), |goal| format!("<= {goal:.2}"));
            let ratio = |ours: Option<f64>| match ours {
                Some(ours) if !name.starts_with("evener") => format!("{:.2}", ours / norm),
                _ => String::new(),
            };
            let [epoll, ring] = ours.map(ratio);
            let _ = writeln!(
                text,
                "| {name} | {norm:.3} ({least:.3}-{most:.3}) | {micros:.1} | {rate:.0} | {epoll} | {ring} | {goal} |"
            );
        }
        text
    }
}

fn title(case: Case) -> &'static str {
    match case {
        Case::Tiny => "Small responses, keep-alive, 64 connections",
        Case::Mib => "Responses of 1 MiB, keep-alive, 64 connections",
        Case::Close => "A connection for each request, 64 at once",
        Case::Many => "Small responses, 1000 connections",
        Case::Udp => "DNS queries over UDP by flows, 32 clients",
        Case::Dns => "DNS queries over UDP, 32 clients",
        Case::DnsCache => "DNS queries over UDP, 32 clients, cached responses",
        Case::Http => "HTTP: small responses, keep-alive, 64 connections",
        Case::HttpMib => "HTTP: responses of 1 MiB, keep-alive, 64 connections",
        Case::Https => "HTTP over TLS: small responses, keep-alive, 64 connections",
        Case::HttpsMib => "HTTP over TLS: responses of 1 MiB, keep-alive, 64 connections",
        Case::Handshake => "HTTP over TLS: a connection and a full handshake for each request, 64 at once",
        Case::Http2 => "HTTP/2 over TLS: small responses, 8 connections with 16 streams",
        Case::Idle => "10 000 idle connections",
    }
}

/// Returns the design's goal for the ratio of Evener's norm to the norm of a peer.
fn goal(case: Case, peer: &str) -> Option<f64> {
    Some(match (case, peer) {
        (Case::Tiny, "pen") => 0.90,
        (Case::Tiny, "haproxy" | "nginx") => 0.80,
        (Case::Mib, "pen") => 0.30,
        (Case::Mib, "haproxy") => 0.25,
        (Case::Mib, "haproxy-splice") => 0.80,
        (Case::Mib, "nginx") => 0.28,
        (Case::Close, "pen") => 0.85,
        (Case::Close, "haproxy") => 0.82,
        (Case::Close, "nginx") => 0.88,
        (Case::Dns, "pen") => 0.75,
        (Case::Dns, "nginx") => 0.65,
        (Case::Dns, "dnsdist") => 0.55,
        _ => return None,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
