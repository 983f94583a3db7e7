//! Failures as problem documents (RFC 9457).

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};

const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Body of a response that reports a failure.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Problem {
    /// `about:blank`: the status describes the kind of the problem.
    #[serde(rename = "type", default)]
    kind: String,
    /// Name of the status.
    #[serde(default)]
    title: String,
    /// Status of the response.
    #[serde(default)]
    status: u16,
    /// All messages, one on each line.
    #[serde(default)]
    detail: String,
    /// The messages.
    errors: Vec<String>,
}

impl Problem {
    /// Creates a problem with several messages.
    pub(super) fn new(status: StatusCode, errors: Vec<String>) -> Self {
        Self {
            kind: "about:blank".into(),
            title: status.canonical_reason().unwrap_or("Error").into(),
            status: status.as_u16(),
            detail: errors.join("\n"),
            errors,
        }
    }

    /// Returns the messages, one on each line.
    pub(super) fn message(self) -> String {
        if self.detail.is_empty() { self.errors.join("\n") } else { self.detail }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (status, [(CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}

/// The failures of every request, in the document of the API.
pub(super) struct Failures;

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description("A problem (RFC 9457)");
        let response = response.content("application/problem+json", problem).build();
        BTreeMap::from([("default".to_owned(), response.into())])
    }
}

/// Returns the response for one message.
pub(super) fn failed(status: StatusCode, why: impl Into<String>) -> Response {
    Problem::new(status, vec![why.into()]).into_response()
}

/// Gives a failure that the framework responded with the form of all others.
pub(super) fn in_form(mut response: Response) -> Response {
    let status = response.status();
    let is_failure = status.is_client_error() || status.is_server_error();
    if !is_failure || response.headers().get(CONTENT_TYPE) == Some(&MEDIA_TYPE) {
        return response;
    }
    let problem = Problem::new(status, vec![status.canonical_reason().unwrap_or("Error").to_lowercase()]);
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, MEDIA_TYPE);
    *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
    response
}
