//! `POST /v1/cache/expunge`: removes responses from the cache of a DNS service.

use super::guard::Audit;
use super::parameters::Body;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::supervisor::{ExpungeError, ExpungeExtent, Handle};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use evener_core::dns::ExpungeScope;
use evener_core::wire::dns::parse_name;
use serde::{Deserialize, Serialize};

/// Body of the request: a name whose cached responses are removed, or `all`.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
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

impl ExpungeRequest {
    /// Creates a request for the responses of a name, and of all names below it if `below` is true.
    pub(crate) fn name(service: String, name: String, below: bool) -> Self {
        Self { service, name: Some(name), below, all: false }
    }

    /// Creates a request for all responses of a service.
    pub(crate) fn all(service: String) -> Self {
        Self { service, name: None, below: false, all: true }
    }

    fn extent(&self) -> Result<ExpungeExtent, String> {
        match (&self.name, self.all) {
            (None, true) if self.below => Err("`below` needs a `name`".into()),
            (None, true) => Ok(ExpungeExtent::All),
            (Some(name), false) => {
                let mut name =
                    parse_name(name).map_err(|error| format!("`{name}` is not a domain name: {error}"))?;
                // This does not change the length bytes of labels: they are at most 63 (RFC 1035, section 3.1),
                // less than any letter.
                name.make_ascii_lowercase();
                Ok(ExpungeExtent::Name(
                    name,
                    if self.below { ExpungeScope::Below } else { ExpungeScope::Name },
                ))
            }
            (None, false) | (Some(_), true) => Err("give either `name` or `all`".into()),
        }
    }
}

/// Number of responses that were removed.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
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

#[utoipa::path(post, path = "/v1/cache/expunge", request_body = ExpungeRequest, responses((status = 200, description = "Done", body = ExpungedView), Failures))]
pub(super) async fn expunge(State(supervisor): State<Handle>, wanted: Body<ExpungeRequest>) -> Response {
    let wanted = wanted.into_inner();
    let extent = match wanted.extent() {
        Ok(extent) => extent,
        Err(why) => return failed(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    match supervisor.expunge(wanted.service.clone(), extent).await {
        Some(Ok(expunged)) => {
            let name = wanted.name.as_deref().unwrap_or("all");
            let below = if wanted.below { " and below" } else { "" };
            let audit = Audit::new("expunge", format!("service {}: {name}{below}", wanted.service));
            let audit = audit.after(format!("{expunged} removed"));
            audit.on(Json(ExpungedView { service: wanted.service, expunged }).into_response())
        }
        Some(Err(error)) => {
            let status = match error {
                ExpungeError::NoService(_) => StatusCode::NOT_FOUND,
                ExpungeError::NoCache(_) => StatusCode::UNPROCESSABLE_ENTITY,
            };
            failed(status, error.to_string())
        }
        None => shutting_down(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;

    #[test]
    fn a_request_must_have_either_a_name_or_all() {
        let check = |body: &str, expected: Result<ExpungeExtent, &str>| {
            let wanted: ExpungeRequest = serde_json::from_str(body).unwrap();
            assert_eq!(wanted.extent(), expected.map_err(str::to_owned), "{body}");
        };
        let name = || b"\x07example\x03org\0".to_vec();
        check(r#"{"service": "s", "all": true}"#, Ok(ExpungeExtent::All));
        check(
            r#"{"service": "s", "name": "Example.ORG"}"#,
            Ok(ExpungeExtent::Name(name(), ExpungeScope::Name)),
        );
        check(
            r#"{"service": "s", "name": "example.org.", "below": true}"#,
            Ok(ExpungeExtent::Name(name(), ExpungeScope::Below)),
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
