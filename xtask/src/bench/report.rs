//! The table of a case: what each program adds, its norm, CPU time and rate; the ratios of Evener to the peers; and the
//! goal for the ratio to the best peer.

use super::load::Sample;
use super::peers::{AGAINST, Case, Peer};
use std::fmt::Write;

/// Measurements of a case.
pub(super) struct Results {
    case: Case,
    names: Vec<&'static str>,
    samples: Vec<Vec<Sample>>,
    /// CPU time of client and backend for a request without a proxy, in microseconds.
    direct: Vec<f64>,
}

impl Results {
    pub(super) fn new(case: Case, peers: &[Peer]) -> Self {
        Self {
            case,
            names: peers.iter().map(|peer| peer.name).collect(),
            samples: vec![Vec::new(); peers.len()],
            direct: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, at: usize, sample: Sample) {
        self.samples[at].push(sample);
    }

    pub(super) fn add_direct(&mut self, micros: f64) {
        self.direct.push(micros);
    }

    pub(super) fn table(&self) -> String {
        let direct = median(self.direct.iter().copied());
        let mut text = format!(
            "### {}\n\nWithout a proxy, client and backend take {direct:.1} µs of CPU time for a request.\n\n\
             | | added µs (range) | evener / it | CPU µs | norm | rate/s |\n|---|---|---|---|---|---|\n",
            title(self.case)
        );
        let added = |at: usize| median(self.samples[at].iter().map(|sample| sample.added(direct)));
        let mut best: Option<(&str, f64)> = None;
        for (at, (name, samples)) in self.names.iter().zip(&self.samples).enumerate() {
            let each = || samples.iter().map(|sample| sample.added(direct));
            let (least, most) = (each().fold(f64::MAX, f64::min), each().fold(f64::MIN, f64::max));
            let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
            let ratio = if at == 0 { String::new() } else { format!("{:.2}", added(0) / added(at)) };
            let _ = writeln!(
                text,
                "| {name} | {:.1} ({least:.1}-{most:.1}) | {ratio} | {:.1} | {:.3} | {:.0} |",
                added(at),
                of(|sample| sample.micros),
                of(|sample| sample.norm),
                of(|sample| sample.rate),
            );
            let is_peer = !name.starts_with("evener");
            if is_peer && best.is_none_or(|(_, least)| added(at) < least) {
                best = Some((name, added(at)));
            }
        }
        if let (Some((name, least)), Some(goal)) = (best, goal(self.case)) {
            let ratio = added(0) / least;
            let outcome = if ratio <= goal { "met" } else { "missed" };
            let _ =
                writeln!(text, "\nevener / {name}, the best peer: {ratio:.2}; goal <= {goal:.2}: {outcome}.");
        }
        if let Some(at) = self.names.iter().position(|name| *name == AGAINST) {
            let _ = writeln!(text, "\nevener / the other binary: {:.2}.", added(0) / added(at));
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

/// Returns the goal for the ratio of what Evener adds to what the best peer adds.
fn goal(case: Case) -> Option<f64> {
    Some(match case {
        Case::Tiny | Case::Close | Case::Dns => 0.65,
        Case::Mib => 0.60,
        Case::DnsCache => 0.45,
        Case::Many
        | Case::Http
        | Case::HttpMib
        | Case::Https
        | Case::HttpsMib
        | Case::Handshake
        | Case::Http2 => 0.70,
        Case::Udp | Case::Idle => return None,
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
