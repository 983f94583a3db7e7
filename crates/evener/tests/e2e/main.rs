//! End to end: the real binary, real sockets, real peers. Each test has its own directory, ports and processes.
#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod access;
mod access_lists;
mod certificates;
mod certificates_live;
mod checks;
mod clients;
mod commands;
mod connections;
mod fast_close;
mod harness;
mod http;
mod http2;
mod http_failures;
mod http_limits;
mod http_peers;
mod limits;
mod one_liner;
mod origin;
mod peers;
mod pen_logs;
mod proxy_from;
mod proxy_protocol;
mod proxy_udp;
mod proxy_udp_peers;
mod reload;
mod respond;
mod smuggling;
mod tcp;
mod testssl;
mod tls;
mod tls_passthrough;
mod tls_peers;
mod tls_sessions;
mod udp;
mod web;
