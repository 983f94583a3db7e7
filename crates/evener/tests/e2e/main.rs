//! End-to-end tests with the real binary, real sockets and real peers. Each test has its own directory, ports and processes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod admin {
    pub(crate) mod access;
    mod clients;
    mod connections;
    mod damaged;
    mod dashboard;
    mod events;
    mod explain;
    mod openapi;
    mod permissions;
    pub(crate) mod remote;
    mod servers;
    mod status;
    pub(crate) mod status_text;
}

mod checks {
    mod first_check;
    mod http;
    mod on_down;
    mod programs;
    mod quorum;
    mod verdicts;
}

mod compat_mname {
    mod balancer;
    mod discovery;
    mod traffic;
    mod tsig;
}

mod compat_pen {
    mod control;
    mod differential;
    mod dns;
    mod import;
    mod init;
    mod logs;
    mod running;
    mod tcp;
    mod tls;
    mod udp;
    mod usage;
}

mod config {
    pub(crate) mod access_lists;
    mod link_addresses;
    mod listen_addresses;
    mod loops;
    mod moved_servers;
    mod plan;
    mod reload;
}

mod discovery {
    mod files;
    mod names;
    mod optional;
    mod srv;
}

mod dns {
    mod bind;
    mod cache;
    mod coalesced;
    mod commands;
    mod failures;
    mod fairness;
    mod hostile;
    mod late_responses;
    mod limits;
    mod malformed;
    mod mname;
    mod options;
    mod peers;
    mod proxy;
    mod queries;
    mod reloads;
    mod retry_on;
    mod streams;
    mod tcp;
    mod transfers;
    mod transports;
}

mod harness;

mod http {
    mod aborts;
    mod cookies;
    mod early_responses;
    mod failures;
    mod forwarded;
    pub(crate) mod http2;
    mod large_bodies;
    mod limits;
    mod messages;
    mod peers;
    mod request_log;
    mod respond;
    mod routes;
    mod slow_clients;
    mod smuggling;
    mod tolerated_responses;
    pub(crate) mod wrk;
}

mod operating {
    mod access_logs;
    mod broken_pipes;
    mod commands;
    mod documents;
    mod drain_wait;
    mod driver;
    mod help;
    mod histograms;
    mod incidents;
    mod ipvs_unavailable;
    mod metrics;
    mod one_liner;
    mod packages;
    mod reasons;
    mod recorded;
    mod restart;
    mod retry_budget;
    mod service_manager;
    mod shortage;
    mod stray_signals;
    mod top;
    mod upgrade;
    mod watch;
    mod wrong_command_lines;
}

mod scripts {
    mod changes;
    mod commands;
    mod documents;
    mod errors;
    mod library;
    mod recipes;
}

mod tcp {
    mod attempts;
    mod fast_close;
    mod half_closed;
    mod limits;
    pub(crate) mod pending;
    pub(crate) mod proxy_from;
    pub(crate) mod proxy_protocol;
    mod queues;
    mod relay;
    pub(crate) mod transparent;
    mod warm;
}

mod tls {
    mod certificate_checks;
    mod certificate_reloads;
    pub(crate) mod clients;
    mod close_notify;
    mod handshakes;
    mod passthrough;
    mod peer_certificates;
    mod sessions;
    mod testssl;
    mod trust;
}

mod udp {
    mod drained_addresses;
    pub(crate) mod flows;
    mod proxy_peers;
    mod proxy_protocol;
    mod spread;
}

mod xdp {
    mod commands;
    mod defence;
    mod pen;
    mod plane;
    mod sbulb;
    mod sbulb_command;
    mod sbulb_dtls;
    mod sbulb_servers;
    mod seeing;
    mod topology;
    mod tunnels;
}
