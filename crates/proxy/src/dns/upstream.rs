//! The sockets and streams that a service of this worker has to a server.

pub(super) mod ids;
pub(super) mod persistent;
pub(super) mod socket;
pub(super) mod stream;

use self::socket::Socket;
use crate::context::Context;
use crate::context::keys::{DnsServiceKey, DnsSocketKey, DnsStreamKey, DnsUpstreamKey};
use crate::dns::{Dns, ServerOf};
use crate::service::Settings;
use crate::service::ending::Ending;
use evener_core::snapshot::{Entry, ServerLive};
use evener_core::{Target, Time};
use std::sync::Arc;
use std::time::Duration;

/// Upstreams that were unused for this time are closed.
const IDLE: Duration = Duration::from_secs(60);

/// The sockets and streams of a service to a server.
pub(super) struct Upstream {
    server: ServerOf,
    target: Target,
    live: Arc<ServerLive>,
    sockets: Vec<DnsSocketKey>,
    /// Sockets that take no new queries.
    given_up: Vec<DnsSocketKey>,
    /// Streams shared by all clients.
    streams: Vec<DnsStreamKey>,
    /// Index of the socket that takes the queries of this round.
    turn: usize,
    /// The round in which `turn` was chosen.
    round: u32,
    used_at: Time,
    /// Time of the server's last response.
    responded_at: Time,
    /// The last response arrived after the timeout of its query.
    is_late: bool,
    /// Amount of silence since the last response.
    silence: u32,
    /// The question section of the last query without a response.
    silent_to: Vec<u8>,
    reported_at: Option<Time>,
}

/// Silence added by a query without a response. A repetition of the last such query adds 1.
const SILENCE: u32 = 3;
/// Amount of silence that is a failure: three different queries, or one query and six repetitions.
const SILENCE_MAX: u32 = 9;
/// Minimum time between two reports of a failure.
const REPORTED_EVERY: Duration = Duration::from_millis(100);

impl Upstream {
    pub(super) fn service(&self) -> DnsServiceKey {
        self.server.service
    }

    /// Returns whether the last response was late.
    pub(super) fn is_late(&self) -> bool {
        self.is_late
    }

    /// Returns whether the server has sent a response since `at`.
    pub(super) fn has_responded_since(&self, at: Time) -> bool {
        self.responded_at >= at
    }

    /// Returns whether the upstream belongs to this server at its present address. Another pool may have
    /// another server with this ID.
    fn leads_to(&self, server: &Entry) -> bool {
        self.target == server.target && Arc::ptr_eq(&self.live, &server.live)
    }

    /// Records a response to a query that was sent at `sent_at`. A response that took `limit` or longer is
    /// late.
    pub(super) fn on_response(&mut self, now: Time, sent_at: Time, limit: Duration) {
        self.responded_at = now;
        self.is_late = now.since(sent_at) >= limit;
        self.silence = 0;
    }

    /// Records a query without a response, and returns whether a failure is to be reported.
    pub(super) fn on_silence(&mut self, section: &[u8], now: Time) -> bool {
        let is_known = self.silent_to == section;
        self.silence = self.silence.saturating_add(if is_known { 1 } else { SILENCE });
        if !is_known {
            self.silent_to.clear();
            self.silent_to.extend_from_slice(section);
        }
        self.silence >= SILENCE_MAX && self.may_report(now)
    }

    fn may_report(&mut self, now: Time) -> bool {
        let is_due = self.reported_at.is_none_or(|at| now.since(at) >= REPORTED_EVERY);
        if is_due {
            self.reported_at = Some(now);
        }
        is_due
    }
}

impl Dns {
    /// Returns the upstream to a server, which is created if the server is new or moved.
    pub(super) fn find_upstream(
        &mut self,
        cx: &mut Context,
        server: ServerOf,
        entry: &Entry,
    ) -> DnsUpstreamKey {
        if let Some(&at) = self.upstream_of.get(&server) {
            if self.upstreams[at].leads_to(entry) {
                return at;
            }
            self.close_upstream(cx, at);
            // A query of the closed upstream may have created the new upstream already.
            if let Some(&at) = self.upstream_of.get(&server) {
                return at;
            }
        }
        let now = cx.now;
        let at = self.upstreams.insert(Upstream {
            server,
            target: entry.target.clone(),
            live: Arc::clone(&entry.live),
            sockets: Vec::new(),
            given_up: Vec::new(),
            streams: Vec::new(),
            turn: 0,
            round: self.round.wrapping_sub(1),
            used_at: now,
            responded_at: Time::ZERO,
            is_late: false,
            silence: 0,
            silent_to: Vec::new(),
            reported_at: None,
        });
        self.upstream_of.insert(server, at);
        at
    }

    /// Closes an upstream. Its outstanding queries are sent to other servers.
    fn close_upstream(&mut self, cx: &mut Context, at: DnsUpstreamKey) {
        let Some(upstream) = self.upstreams.remove(at) else { return };
        if self.upstream_of.get(&upstream.server) == Some(&at) {
            self.upstream_of.remove(&upstream.server);
        }
        // Streams of single clients are not listed in the upstream.
        let streams = self.streams.keys(|stream| stream.upstream() == at);
        for socket in upstream.sockets.into_iter().chain(upstream.given_up) {
            self.close_socket(cx, socket, at);
        }
        for stream in streams {
            self.close_stream(cx, stream);
        }
    }

    /// Closes the sockets and streams to a server, and returns the number of streams. Outstanding
    /// queries are sent to other servers.
    pub(crate) fn end_server(&mut self, cx: &mut Context, ending: &Ending) -> usize {
        let meant = self.upstreams.keys(|upstream| ending.means(&upstream.live, &upstream.target));
        let mut ended = 0;
        for at in meant {
            let streams = self.streams.iter().filter(|(_, stream)| stream.upstream() == at).count();
            let Some(upstream) = self.upstreams.get(at) else { continue };
            let service = &self.services[upstream.server.service].service;
            ending.counter(service.live.counters.of(cx.id)).add(streams as u64);
            self.close_upstream(cx, at);
            ended += streams;
        }
        ended
    }

    /// Closes unused sockets and upstreams.
    pub(super) fn sweep_upstreams(&mut self, cx: &mut Context) {
        for (_, upstream) in self.upstreams.iter_mut() {
            socket::age(&mut self.sockets, upstream, cx.now);
            upstream.given_up.retain(|&at| {
                let waits = self.sockets.get(at).is_some_and(|socket| !socket.is_idle());
                if !waits {
                    self.sockets.remove(at);
                }
                waits
            });
        }
        let is_unused = |upstream: &Upstream| {
            let mut sockets = upstream.sockets.iter().chain(&upstream.given_up);
            cx.now.since(upstream.used_at) >= IDLE
                && sockets.all(|&at| self.sockets.get(at).is_none_or(Socket::is_idle))
        };
        // Streams of single clients, such as slow transfers, are not listed in the upstream.
        let has_queries =
            |at| self.streams.iter().any(|(_, stream)| stream.upstream() == at && !stream.is_idle());
        let unused = self.upstreams.iter().filter(|(_, upstream)| is_unused(upstream)).map(|(at, _)| at);
        let quiet: Vec<DnsUpstreamKey> = unused.filter(|&at| !has_queries(at)).collect();
        quiet.into_iter().for_each(|at| self.close_upstream(cx, at));
    }
}

/// Returns the number of sockets or streams to a server.
pub(super) fn width(settings: &Settings) -> usize {
    settings.dns.as_ref().map_or(1, |dns| dns.spec.sockets.max(1) as usize)
}
