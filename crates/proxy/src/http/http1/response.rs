//! Responses for clients of HTTP/1: header sections are parsed and written anew.

use super::body::{Moved, download_body};
use super::{Http1, Step};
use crate::context::Context;
use crate::context::descriptors;
use crate::context::keys::{ExchangeKey, ServerConnectionKey};
use crate::http::client::Client;
use crate::http::exchange::{Exchange, ReadResponse, Shared, invalid_header, no_response};
use crate::http::message::{self, Afterwards};
use crate::io::transport::Received;
use evener_core::reason::{Cause, Reason};
use evener_core::wire::http::{Found, Response};

impl Http1 {
    /// Sends the response of the server to the client.
    pub(super) fn download(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        server_key: ServerConnectionKey,
    ) -> Step {
        loop {
            let Some(http) = shared.exchanges[exchange_key].http.as_deref_mut() else { return Step::Blocked };
            let Some(scan) = http.scan() else { break };
            let server = &mut shared.servers[server_key];
            if client.transport.is_full() {
                return Step::Blocked;
            }
            let limits = client.settings.http.as_ref().map(|spec| spec.limits).unwrap_or_default();
            match scan.find(server.transport.unread(), &limits) {
                Ok(Some(found)) => match take_header(cx, client, shared, exchange_key, server_key, found) {
                    HeaderRead::Again => {}
                    HeaderRead::Body => break,
                    HeaderRead::Relay => return self.become_relay(cx, client, shared, exchange_key),
                    HeaderRead::Invalid(cause) => {
                        return self.bad_response(cx, client, shared, exchange_key, cause);
                    }
                },
                Ok(None) => {
                    let silent = !scan.has_begun();
                    if server.transport.receive(&mut shared.buffers) == Received::Some {
                        continue;
                    }
                    if server.transport.end().is_none() && !server.transport.is_broken() {
                        return Step::Blocked;
                    }
                    let cause = no_response(server.transport.end(), server.transport.unread());
                    return if silent && shared.may_retry(cx, client, exchange_key, server_key) {
                        shared.retry(cx, client, exchange_key, cause);
                        Step::Continue
                    } else {
                        self.bad_response(cx, client, shared, exchange_key, cause)
                    };
                }
                Err(error) => {
                    let cause = invalid_header(error, server.transport.unread(), &limits);
                    return self.bad_response(cx, client, shared, exchange_key, cause);
                }
            }
        }
        match download_body(cx, client, shared, exchange_key, server_key) {
            Moved::Broken(cause) => self.bad_response(cx, client, shared, exchange_key, cause),
            _ if is_complete(shared, exchange_key) => self.complete(cx, client, shared, exchange_key),
            Moved::More => Step::Continue,
            Moved::Blocked => Step::Blocked,
        }
    }
}

fn is_complete(shared: &Shared, exchange_key: ExchangeKey) -> bool {
    shared.exchanges[exchange_key].http.as_ref().is_some_and(|http| http.is_downloaded())
}

impl Http1 {
    fn bad_response(
        &mut self,
        cx: &mut Context,
        client: &mut Client,
        shared: &mut Shared,
        exchange_key: ExchangeKey,
        cause: Cause,
    ) -> Step {
        shared.count_bad_response(cx, exchange_key);
        self.fail_exchange(cx, client, shared, exchange_key, cause)
    }
}

enum HeaderRead {
    /// Interim response: another header section follows.
    Again,
    /// The body follows.
    Body,
    /// Another protocol follows.
    Relay,
    /// Not a response to this request.
    Invalid(Cause),
}

fn take_header(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    exchange_key: ExchangeKey,
    server_key: ServerConnectionKey,
    found: Found,
) -> HeaderRead {
    let mut response = std::mem::take(&mut shared.headers.response);
    let taken = read_header(cx, client, shared, exchange_key, server_key, found, &mut response);
    shared.headers.response = response;
    taken
}

/// Reads the header section of a response, and writes it for a client of HTTP/1.
fn read_header(
    cx: &mut Context,
    client: &mut Client,
    shared: &mut Shared,
    exchange_key: ExchangeKey,
    server_key: ServerConnectionKey,
    found: Found,
    response: &mut Response,
) -> HeaderRead {
    let local = match shared.read_response(cx, client, exchange_key, server_key, found, response) {
        Ok(local) => local,
        Err(cause) => return HeaderRead::Invalid(cause),
    };
    // While other clients wait for descriptors, this connection is closed after its response: a close at that
    // time loses no request.
    let makes_room = descriptors::wanted() > 0;
    let leaves = cx.draining || makes_room;
    let Shared { exchanges, servers, buffers, headers, .. } = &mut *shared;
    let id = cx.id;
    let (exchange, server) = (&mut exchanges[exchange_key], &mut servers[server_key]);
    let Exchange { http: Some(http), .. } = &mut **exchange else {
        return HeaderRead::Invalid(Reason::ResponseInvalid.into());
    };
    let header = &server.transport.unread()[found.start..found.end];
    let taken = match local {
        ReadResponse::Interim => {
            if http.takes_interims() {
                message::write_response(response, header, None, Afterwards::Stays, None, &mut headers.out);
            }
            HeaderRead::Again
        }
        ReadResponse::Relay { cookie } => {
            let afterwards = if response.status() == 101 { Afterwards::Upgrades } else { Afterwards::Stays };
            message::write_response(response, header, None, afterwards, cookie.as_deref(), &mut headers.out);
            HeaderRead::Relay
        }
        ReadResponse::Final { framing, cookie } => {
            let would_stay = http.client_stays();
            let (framing, afterwards) = http.begin_download(response, framing, leaves);
            message::write_response(
                response,
                header,
                framing,
                afterwards,
                cookie.as_deref(),
                &mut headers.out,
            );
            if makes_room && would_stay {
                descriptors::shed(2);
                client.service.live.counters.of(id).closed.idle_shed.one();
            }
            HeaderRead::Body
        }
    };
    if !matches!(taken, HeaderRead::Body) {
        client.transport.send(&headers.out, buffers);
        headers.out.clear();
    }
    server.transport.consume(found.end);
    server.transport.settle(buffers);
    taken
}
