//! Events as JSON and as text.

use super::{Events, News, Occurrence, Selection};
use crate::observe::add_field;
use crate::output::printable;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Recent events.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct RecentEvents {
    /// The oldest first.
    events: Vec<EventView>,
    /// Number of older events, of any level above debug, that are no longer kept.
    #[serde(default)]
    dropped: u64,
}

/// An event.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct EventView {
    /// Number of the event, counted from the start of the program.
    number: u64,
    time: String,
    level: String,
    event: String,
    #[schema(value_type = Object)]
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

impl RecentEvents {
    pub(crate) fn of(events: &Events, selection: Selection) -> Self {
        let (recent, dropped) = events.recent(selection);
        Self { events: recent.iter().map(|one| EventView::new(one)).collect(), dropped }
    }

    /// Returns the number of the last event, if there is one.
    pub(crate) fn last(&self) -> Option<u64> {
        self.events.last().map(|event| event.number)
    }

    /// Returns each event with its level, as a line with the time of the day.
    pub(crate) fn short_lines(&self) -> impl Iterator<Item = (&str, String)> {
        self.events.iter().map(|event| {
            let text = event.text();
            // The date of `2026-01-31T12:00:00.000Z` is left out.
            let text = text.split_once('T').map_or(text.as_str(), |(_, rest)| rest);
            (event.level.as_str(), printable(text.trim_end()).into_owned())
        })
    }

    /// Formats the events as lines, like those of the log.
    pub(crate) fn text(&self) -> String {
        let before = match self.dropped {
            0 => String::new(),
            dropped => format!("{dropped} older events are no longer kept\n"),
        };
        std::iter::once(before).chain(self.events.iter().map(EventView::text)).collect()
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
