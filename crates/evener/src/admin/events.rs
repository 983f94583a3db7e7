//! `GET /v1/events`: the recent events, and with `follow` a stream of all that come.

use super::parameters::Parameters;
use super::problem::Failures;
use super::{failed, shutting_down};
use crate::events::{Line, RecentEvents, Selection, Subscription};
use crate::supervisor::Handle;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use evener_core::event::Level;
use hyper::body::{Bytes, Frame};
use serde::Deserialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    level: Option<String>,
    after: Option<u64>,
    #[serde(default)]
    follow: bool,
}

impl EventsQuery {
    fn selection(&self) -> Result<Selection, String> {
        let level = match self.level.as_deref() {
            None => Level::Debug,
            Some(name) => Level::ALL
                .into_iter()
                .find(|level| level.name() == name)
                .ok_or_else(|| format!("`level` must be debug, info, warn or error, got {name}"))?,
        };
        Ok(Selection::new(level, self.after.unwrap_or(0)))
    }
}

#[utoipa::path(get, path = "/v1/events", params(EventsQuery), responses((status = 200, description = "Done", content((RecentEvents = "application/json"), (String = "application/x-ndjson"))), Failures))]
pub(super) async fn events(State(supervisor): State<Handle>, query: Parameters<EventsQuery>) -> Response {
    let query = query.into_inner();
    let selection = match query.selection() {
        Ok(selection) => selection,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error),
    };
    let Some(events) = supervisor.events().await else {
        return shutting_down();
    };
    if !query.follow {
        return Json(RecentEvents::of(&events, selection)).into_response();
    }
    match events.subscribe(selection) {
        Some(subscription) => {
            let lines = [(header::CONTENT_TYPE, "application/x-ndjson")];
            (lines, Body::new(Lines(subscription))).into_response()
        }
        None => {
            failed(StatusCode::SERVICE_UNAVAILABLE, "too many requests follow the events; end one of them")
        }
    }
}

/// Body with a line of JSON for each event. It ends when the client leaves.
struct Lines(Subscription);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_next(cx).map(|news| {
            let mut line = serde_json::to_vec(&Line::from(news?)).ok()?;
            line.push(b'\n');
            Some(Ok(Frame::data(line.into())))
        })
    }
}
