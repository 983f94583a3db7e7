//! Events about requests, connections, queries and datagrams that were not served.

use evener_core::event::{Event, Similar};
use evener_core::reason::Detail;
use evener_proxy::{Status, Traffic, Unserved};
use std::sync::Arc;

/// Returns the event for a report of a worker.
pub(super) fn event_of(service: Arc<str>, unserved: Unserved, similar_not_logged: Similar) -> Event {
    let Unserved { traffic, cause, client, status, pool, server } = unserved;
    let reason = cause.reason();
    let detail = match cause.detail() {
        Detail::None => cause.reason().text().into(),
        detail => format!("{}: {detail}", cause.reason().text()).into(),
    };
    // A client of a unix socket has no address.
    let client = Some(client.to_canonical()).filter(|address| !address.is_unspecified());
    let http_status = match status {
        Some(Status::Http(status)) => Some(status),
        _ => None,
    };
    match traffic {
        Traffic::Request => Event::RequestFailed {
            service,
            client,
            status: http_status,
            pool,
            server,
            reason,
            detail,
            similar_not_logged,
        },
        Traffic::Handshake => Event::TlsFailed { service, client, reason, detail, similar_not_logged },
        Traffic::Connection => {
            Event::ConnectionFailed { service, client, pool, server, reason, detail, similar_not_logged }
        }
        Traffic::Query => {
            let status = match status {
                Some(Status::Dns(status)) => Some(status),
                _ => None,
            };
            Event::QueryFailed { service, client, status, pool, server, reason, detail, similar_not_logged }
        }
        Traffic::Datagram => {
            Event::DatagramDropped { service, client, pool, reason, detail, similar_not_logged }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::event::Level;
    use evener_core::reason::{Cause, Reason};

    fn line(cause: Cause, similar: Similar) -> String {
        let unserved = Unserved {
            traffic: Traffic::Request,
            cause,
            client: "::ffff:192.0.2.1".parse().unwrap(),
            status: Some(Status::Http(400)),
            pool: None,
            server: None,
        };
        let event = event_of("web".into(), unserved, similar);
        let mut line = format!("{} {}", event.level().name(), event.name());
        event.fields(&mut |name, value| line += &format!(" {name}={value}"));
        line
    }

    #[test]
    fn a_failure_is_an_info_event_with_the_number_of_similar_ones_or_a_debug_event() {
        let cause = Cause::with(Reason::RequestInvalid, "malformed field name");
        let fields = "request_failed service=web client=192.0.2.1 status=400 reason=request_invalid \
                      detail=the request is not valid: malformed field name";
        assert_eq!(line(cause, Similar::Sampled(0)), format!("info {fields}"));
        assert_eq!(line(cause, Similar::Sampled(3)), format!("info {fields} similar_not_logged=3"));
        assert_eq!(line(cause, Similar::Further), format!("debug {fields}"));
        assert_eq!(Level::Debug.name(), "debug");
    }
}
