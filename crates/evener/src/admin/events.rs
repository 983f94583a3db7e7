//! `GET /v1/events`: the recent events, and with `follow` a stream of all that come.

use super::{failed, shutting_down};
use crate::events::{Events, News, Occurrence, Selection, Subscription};
use crate::observe::add_field;
use crate::supervisor::{Handle, Supervisor};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use evener_core::event::Level;
use hyper::body::{Bytes, Frame};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Recent events.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventsView {
    /// The oldest first.
    events: Vec<EventView>,
}

/// An event.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EventView {
    /// Number of the event, counted from the start of the program.
    number: u64,
    time: String,
    level: String,
    event: String,
    fields: Fields,
}

/// A line of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Line {
    Event(EventView),
    /// Number of events that are missing here, because the reader was too slow.
    Lost {
        lost: u64,
    },
}

impl EventsView {
    fn of(events: &Events, selection: Selection) -> Self {
        Self { events: events.recent(selection).iter().map(|one| EventView::new(one)).collect() }
    }

    /// Formats the events as lines, like those of the log.
    pub(crate) fn text(&self) -> String {
        self.events.iter().map(EventView::text).collect()
    }
}

impl EventView {
    fn new(occurrence: &Occurrence) -> Self {
        let Occurrence { number, time, event } = occurrence;
        let mut fields = Vec::new();
        event.fields(&mut |name, value| fields.push((name.to_owned(), value.to_string())));
        Self {
            number: *number,
            time: humantime::format_rfc3339_millis(*time).to_string(),
            level: event.level().name().into(),
            event: event.name().into(),
            fields: Fields(fields),
        }
    }

    fn text(&self) -> String {
        let Self { number: _, time, level, event, fields } = self;
        let mut line = format!("{time} {level:<5} {event}");
        fields.0.iter().for_each(|(name, value)| add_field(&mut line, name, value));
        line.push('\n');
        line
    }
}

/// The fields of an event in their order, as an object.
#[derive(Debug)]
struct Fields(Vec<(String, String)>);

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

impl Line {
    /// Formats the line for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Event(event) => event.text(),
            Self::Lost { lost } => format!("{lost} events are missing here: this reader was too slow\n"),
        }
    }
}

impl From<News> for Line {
    fn from(news: News) -> Self {
        match news {
            News::Event(occurrence) => Self::Event(EventView::new(&occurrence)),
            News::Lost(lost) => Self::Lost { lost },
        }
    }
}

#[derive(Debug, Deserialize)]
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
        Ok(Selection { level, after: self.after.unwrap_or(0) })
    }
}

pub(super) async fn events(
    State(supervisor): State<Handle>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error.body_text()),
    };
    let selection = match query.selection() {
        Ok(selection) => selection,
        Err(error) => return failed(StatusCode::UNPROCESSABLE_ENTITY, error),
    };
    let Some(events) = supervisor.inspect(|supervisor: &Supervisor| supervisor.events().clone()).await else {
        return shutting_down();
    };
    if !query.follow {
        return Json(EventsView::of(&events, selection)).into_response();
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
