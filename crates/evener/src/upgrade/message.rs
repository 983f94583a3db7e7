//! The format of messages between two instances at an upgrade. A message is one datagram: a magic number, the version
//! of the format, and a JSON value. The reader takes the present version and the one before it; the new instance
//! writes the version of the running one. Descriptors travel beside a datagram, one for each record of a socket.

use super::flow::FlowRecord;
use super::relay::RelayRecord;
use super::socket::SocketRecord;
use super::state::{AccessRecord, CachedRecord, CountersRecord, ServerRecord, StickyRecord};
use serde::{Deserialize, Serialize};

/// Version of the format. A change that the version before could not read needs a new version.
pub(crate) const VERSION: u16 = 1;
/// Maximum size of a message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of descriptors beside a message (SCM_MAX_FD of Linux is 253).
pub(crate) const DESCRIPTORS_MAX: usize = 250;
/// Size above which a list continues in the next message. One entry must fit into the rest.
const CHUNK_BYTES: usize = 48 * 1024;

const MAGIC: [u8; 4] = *b"EVup";
const HEADER_BYTES: usize = MAGIC.len() + 2;

/// Reason why a message cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the other process is no instance of Evener, or sent no message of an upgrade")]
    Foreign,
    #[error(
        "the running instance writes version {0} of the hand-over, and the new binary reads version {VERSION} and the \
         one before it: restart instead"
    )]
    Version(u16),
    #[error("a message of the hand-over is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("a message of the hand-over has {0} bytes; at most {MESSAGE_BYTES_MAX} are possible")]
    TooLong(usize),
}

/// A message.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// The running instance, first.
    Hello {
        pid: u32,
        program: String,
        /// Origin of its times, in nanoseconds of the monotonic clock.
        origin: u64,
    },
    /// Sockets of the running instance, with one descriptor each.
    Sockets(Vec<SocketRecord>),
    /// There are no more sockets.
    AllSockets {},
    /// The new instance cannot start, or not continue.
    Failed { problem: String },
    /// Positions of the sockets that the new instance uses, counted from 0 in the order in which they were sent.
    Taken(Vec<u32>),
    /// The new instance can serve.
    Ready { program: String },
    /// Servers, in the order to which positions refer.
    Servers(Vec<ServerRecord>),
    /// Clients of sticky tables.
    Sticky(Vec<StickyRecord>),
    /// Counts to add.
    Counters(Vec<CountersRecord>),
    /// Access rules of operators.
    Access(Vec<AccessRecord>),
    /// Cached responses of DNS services.
    Cached(Vec<CachedRecord>),
    /// Flows of datagram services, with one descriptor each.
    Flows(Vec<FlowRecord>),
    /// The running instance serves no new clients any more: the new one may begin.
    Begin {},
    /// Services of the new instance that can continue relayed connections.
    Continues(Vec<String>),
    /// The new instance serves.
    Serving {},
    /// Relayed connections, with their descriptors.
    Relays(Vec<RelayRecord>),
}

/// Writes a message in a version of the format.
///
/// # Errors
/// The message is too long.
pub(crate) fn encode(message: &Message, version: u16) -> Result<Vec<u8>, MessageError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&version.to_be_bytes());
    serde_json::to_writer(&mut bytes, message)?;
    if bytes.len() > MESSAGE_BYTES_MAX { Err(MessageError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// Reads a message. Returns it with its version.
///
/// # Errors
/// The bytes are no message of a version that this program reads.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Message, u16), MessageError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(MessageError::TooLong(bytes.len()));
    }
    let body = bytes.get(HEADER_BYTES..).filter(|_| bytes.starts_with(&MAGIC));
    let body = body.ok_or(MessageError::Foreign)?;
    let version = u16::from_be_bytes([bytes[4], bytes[5]]);
    if version != VERSION && version.checked_add(1) != Some(VERSION) {
        return Err(MessageError::Version(version));
    }
    Ok((serde_json::from_slice(body)?, version))
}

/// Divides a list into parts that fit into messages, of at most `most` entries.
pub(crate) fn chunks<T: Serialize>(entries: Vec<T>, most: usize) -> Vec<Vec<T>> {
    let (mut parts, mut bytes) = (Vec::<Vec<T>>::new(), usize::MAX);
    for entry in entries {
        let size = serde_json::to_vec(&entry).map_or(0, |json| json.len() + 1);
        match parts.last_mut() {
            Some(part) if part.len() < most && bytes + size <= CHUNK_BYTES => {
                bytes += size;
                part.push(entry);
            }
            _ => {
                bytes = size;
                parts.push(vec![entry]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic fails the test")]

    use super::*;
    use evener_core::Random;

    /// A message of each kind, as JSON.
    const MESSAGES: [&str; 17] = [
        r#"{"hello":{"pid":7,"program":"0.1.0","origin":5}}"#,
        r#"{"sockets":[{"role":"stream","address":"127.0.0.1:0","service":"web","bound":"127.0.0.1:7"}]}"#,
        r#"{"all_sockets":{}}"#,
        r#"{"failed":{"problem":"two\nlines"}}"#,
        r#"{"taken":[0,7,4294967295]}"#,
        r#"{"ready":{"program":"0.2.0"}}"#,
        r#"{"servers":[{"pool":"web","server":"a","address":"10.0.0.1:80","state":"drain","verdict":"up"}]}"#,
        r#"{"sticky":[{"c":"192.0.2.1","h":1,"s":0,"t":18446744073709551615}]}"#,
        r#"{"counters":[{"of":"events","numbers":[["events.started",1]]}]}"#,
        r#"{"counters":[{"of":{"service":"web"},"numbers":[]}]}"#,
        r#"{"access":[{"service":"web","rule":"deny","prefix":"192.0.2.0/24","until":7}]}"#,
        r#"{"cached":[{"s":"dns","k":"AAEC","r":"","t":5}]}"#,
        r#"{"flows":[{"listener":77,"client":"192.0.2.1:5","local":"192.0.2.9","via":{"proxy":"[::1]:7","destination":"[::1]:8","hops":1},"spread":true,"server":"a","address":"10.0.0.1:53","begun_at":1,"used_at":3,"responded_at":2}]}"#,
        r#"{"begin":{}}"#,
        r#"{"continues":["web"]}"#,
        r#"{"serving":{}}"#,
        r#"{"relays":[{"service":"web","pool":"web","server":"a","address":"10.0.0.1:80","client":"192.0.2.1","active_at":1,"relayed":2,"from_client":{"done":false,"discarding":false,"piped":5},"from_server":{"end":0,"done":true,"discarding":false}}]}"#,
    ];

    fn messages() -> Vec<Message> {
        MESSAGES.iter().map(|json| serde_json::from_str(json).expect(json)).collect()
    }

    #[test]
    fn messages_survive_encoding_and_no_prefix_of_one_is_a_message() {
        for (message, json) in messages().into_iter().zip(MESSAGES) {
            let bytes = encode(&message, VERSION).unwrap();
            assert_eq!(std::str::from_utf8(&bytes[HEADER_BYTES..]), Ok(json));
            assert_eq!(decode(&bytes).unwrap(), (message, VERSION));
            for end in 0..bytes.len() {
                assert!(decode(&bytes[..end]).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn the_version_before_is_read_and_all_others_are_refused() {
        let of_version =
            |version| decode(&encode(&Message::Begin {}, version).unwrap()).map(|(_, read)| read);
        assert_eq!(of_version(VERSION - 1).unwrap(), VERSION - 1);
        for other in [VERSION + 1, VERSION + 2, u16::MAX] {
            let error = of_version(other).unwrap_err();
            assert!(matches!(error, MessageError::Version(version) if version == other), "{error}");
        }
        assert!(matches!(decode(b"GET / HTTP/1.1\r\n\r\n"), Err(MessageError::Foreign)));
    }

    #[test]
    fn unknown_fields_of_a_message_are_ignored() {
        let mut bytes = encode(&Message::Begin {}, VERSION).unwrap();
        bytes.truncate(HEADER_BYTES);
        bytes.extend_from_slice(br#"{"hello":{"pid":7,"program":"x","origin":5,"more":[1,{"a":2}]}}"#);
        assert_eq!(decode(&bytes).unwrap().0, Message::Hello { pid: 7, program: "x".into(), origin: 5 });
    }

    #[test]
    fn random_bytes_and_damaged_messages_do_no_harm() {
        let mut random = Random::seeded(16);
        let mut refused = 0;
        for round in 0..20_000 {
            let mut bytes = encode(&messages()[round % messages().len()], VERSION).unwrap();
            for _ in 0..1 + random.bits() % 4 {
                let at = random.bits() as usize % bytes.len();
                match random.bits() % 3 {
                    0 => bytes[at] = random.bits() as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, random.bits() as u8),
                }
            }
            refused += usize::from(decode(&bytes).is_err());
            let noise: Vec<u8> = (0..random.bits() % 64).map(|_| random.bits() as u8).collect();
            assert!(decode(&noise).is_err());
        }
        assert!(refused > 10_000, "most damage is noticed: {refused}");
        let long = vec![b'x'; MESSAGE_BYTES_MAX + 1];
        assert!(matches!(decode(&long), Err(MessageError::TooLong(_))));
        let deep = [&encode(&Message::Begin {}, VERSION).unwrap()[..HEADER_BYTES], &[b'['; 60_000]].concat();
        assert!(matches!(decode(&deep), Err(MessageError::Malformed(_))));
    }

    #[test]
    fn lists_are_divided_by_number_and_size_and_nothing_is_lost() {
        let short: Vec<String> = (0..5_000).map(|port| format!("127.0.0.1:{port}")).collect();
        let long: Vec<String> = (0..700).map(|number| format!("/{number:0>1000}")).collect();
        for entries in [short, long] {
            let parts = chunks(entries.clone(), DESCRIPTORS_MAX);
            assert!(parts.iter().all(|part| (1..=DESCRIPTORS_MAX).contains(&part.len())));
            assert_eq!(parts.concat(), entries);
            for part in parts {
                encode(&Message::Continues(part), VERSION).unwrap();
            }
        }
        assert!(chunks::<String>(Vec::new(), 5).is_empty());
    }
}
