//! `POST /v1/cache/expunge`: removes responses from the cache of a DNS service.

use super::{failed, shutting_down};
use crate::planes::RunningService;
use crate::supervisor::{Handle, Supervisor};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::dns::{Cache, ExpungeScope};
use evener_core::wire::dns::parse_name;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Body of the request: a name whose cached responses are removed, or `all`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpungeRequest {
    service: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Includes all names below `name`.
    #[serde(default)]
    below: bool,
    #[serde(default)]
    all: bool,
}

/// Set of cached responses to remove.
#[derive(Debug, PartialEq, Eq)]
enum Extent {
    All,
    /// A name in wire form and lower case, and the scope of the removal.
    Name(Vec<u8>, ExpungeScope),
}

impl ExpungeRequest {
    /// Creates a request for the responses of a name, and of all names below it if `below` is true.
    pub(crate) fn name(service: String, name: String, below: bool) -> Self {
        Self { service, name: Some(name), below, all: false }
    }

    /// Creates a request for all responses of a service.
    pub(crate) fn all(service: String) -> Self {
        Self { service, name: None, below: false, all: true }
    }

    fn extent(&self) -> Result<Extent, String> {
        match (&self.name, self.all) {
            (None, true) if self.below => Err("`below` needs a `name`".into()),
            (None, true) => Ok(Extent::All),
            (Some(name), false) => {
                let mut name =
                    parse_name(name).map_err(|error| format!("`{name}` is not a domain name: {error}"))?;
                // This does not change the length bytes of labels: they are at most 63 (RFC 1035, section 3.1),
                // less than any letter.
                name.make_ascii_lowercase();
                Ok(Extent::Name(name, if self.below { ExpungeScope::Below } else { ExpungeScope::Name }))
            }
            (None, false) | (Some(_), true) => Err("give either `name` or `all`".into()),
        }
    }
}

/// Number of responses that were removed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExpungedView {
    service: String,
    expunged: usize,
}

impl ExpungedView {
    /// Formats the result in one line.
    pub(crate) fn text(&self) -> String {
        let responses = if self.expunged == 1 { "response" } else { "responses" };
        format!("{}: {} {responses} expunged\n", self.service, self.expunged)
    }
}

pub(super) async fn expunge(
    State(supervisor): State<Handle>,
    wanted: Result<Json<ExpungeRequest>, JsonRejection>,
) -> Response {
    let wanted = match wanted {
        Ok(Json(wanted)) => wanted,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let extent = match wanted.extent() {
        Ok(extent) => extent,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let service = wanted.service.clone();
    let cache = match supervisor.inspect(move |supervisor| cache_of(supervisor, &service)).await {
        Some(Ok(cache)) => cache,
        Some(Err((status, why))) => return failed(status, why),
        None => return shutting_down(),
    };
    // The whole cache may be searched, which takes time, so the control thread does not wait for it.
    let expunged = tokio::task::spawn_blocking(move || match extent {
        Extent::All => cache.clear(),
        Extent::Name(name, scope) => cache.expunge(&name, scope),
    });
    match expunged.await {
        Ok(expunged) => Json(ExpungedView { service: wanted.service, expunged }).into_response(),
        Err(_) => shutting_down(),
    }
}

fn cache_of(supervisor: &Supervisor, service: &str) -> Result<Arc<Cache>, (StatusCode, String)> {
    let running = supervisor.find_service(service).map_err(|why| (StatusCode::NOT_FOUND, why))?;
    let RunningService::Proxy(proxied) = running;
    let cache = proxied.settings.load().dns.as_ref().and_then(|dns| dns.cache.clone());
    cache.ok_or_else(|| {
        let why = format!("service `{service}` has no cache: give it dns = {{ cache = true }}");
        (StatusCode::UNPROCESSABLE_ENTITY, why)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn a_request_must_have_either_a_name_or_all() {
        let check = |body: &str, expected: Result<Extent, &str>| {
            let wanted: ExpungeRequest = serde_json::from_str(body).unwrap();
            assert_eq!(wanted.extent(), expected.map_err(str::to_owned), "{body}");
        };
        let name = || b"\x07example\x03org\0".to_vec();
        check(r#"{"service": "s", "all": true}"#, Ok(Extent::All));
        check(r#"{"service": "s", "name": "Example.ORG"}"#, Ok(Extent::Name(name(), ExpungeScope::Name)));
        check(
            r#"{"service": "s", "name": "example.org.", "below": true}"#,
            Ok(Extent::Name(name(), ExpungeScope::Below)),
        );
        check(r#"{"service": "s", "all": true, "below": true}"#, Err("`below` needs a `name`"));
        let either = "give either `name` or `all`";
        check(r#"{"service": "s"}"#, Err(either));
        check(r#"{"service": "s", "name": "a", "all": true}"#, Err(either));
        let wrong: ExpungeRequest = serde_json::from_str(r#"{"service": "s", "name": "a..b"}"#).unwrap();
        assert!(wrong.extent().unwrap_err().contains("a..b"));
        assert!(serde_json::from_str::<ExpungeRequest>(r#"{"service": "s", "nmae": "a"}"#).is_err());
    }
}
