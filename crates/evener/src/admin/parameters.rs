//! Parameters of requests: from the query of the URI, or from a body of JSON. A request whose parameters are
//! invalid gets a failure with the reason, before its handler is called: 422 for invalid values, 400 for a body that is
//! not JSON, 413 for one that is too long, and 415 for one of another type.

use super::failed;
use axum::Json;
use axum::body::HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::de::DeserializeOwned;

/// Parameters in the query of the URI.
pub(super) struct Parameters<T>(T);

/// Parameters in the body.
pub(super) struct Body<T>(T);

/// Parameters in the path.
pub(super) struct Names<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Names<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let path = Path::from_request_parts(parts, state).await;
        let refused = |error: axum::extract::rejection::PathRejection| invalid(error.body_text());
        path.map(|Path(names)| Self(names)).map_err(refused)
    }
}

impl<T> Parameters<T> {
    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Body<T> {
    pub(super) fn into_inner(self) -> T {
        self.0
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let query = Query::from_request_parts(parts, state).await;
        let refused = |error: axum::extract::rejection::QueryRejection| invalid(error.body_text());
        query.map(|Query(parameters)| Self(parameters)).map_err(refused)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        if request.body().size_hint().lower() > super::BODY_BYTES_MAX as u64 {
            let why = format!("a body has at most {} bytes", super::BODY_BYTES_MAX);
            return Err(failed(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let body = Json::from_request(request, state).await;
        let refused =
            |error: axum::extract::rejection::JsonRejection| failed(error.status(), error.body_text());
        body.map(|Json(parameters)| Self(parameters)).map_err(refused)
    }
}

fn invalid(why: String) -> Response {
    failed(StatusCode::UNPROCESSABLE_ENTITY, why)
}
