//! The EDNS options that apply to one hop (client to balancer, or balancer to server) and are not passed on.
//! Signed messages are not changed, because the signature covers the options.

use super::options::{self, COOKIE, KEEPALIVE, add_option, retain_options};
use super::record::{Record, Records, records_start};
use super::{Query, number_at};
use std::time::Duration;

/// Size of an OPT without options.
const OPT_BYTES: usize = 11;
/// Second byte of the type of an OPT record; the first byte is 0.
const OPT_TYPE: u8 = 41;
/// The unit of the timeout (RFC 7828, section 3.1).
const TIMEOUT_UNIT_MS: u128 = 100;

/// Treatment of cookies (RFC 7873). With a cache they cannot be passed on: a client that has received a cookie
/// accepts no response without a cookie (section 5.3), and cached responses have no cookies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookies {
    /// Cookies are passed on.
    Pass,
    /// Cookies are removed in both directions, so that clients see a server without cookies.
    Remove,
}

impl Cookies {
    fn passes_option(self, code: u16) -> bool {
        code != KEEPALIVE && (code != COOKIE || self == Self::Pass)
    }
}

impl Query {
    /// Returns true if the client requests the idle timeout of its TCP connection (RFC 7828, section 3.2.1).
    #[must_use]
    pub fn asks_for_keepalive(&self) -> bool {
        self.has_option(KEEPALIVE)
    }

    /// Removes the options that must not reach the server from `message`. Returns the query of the changed
    /// message.
    #[must_use]
    pub fn without_hop_options(&self, message: &mut Vec<u8>, cookies: Cookies) -> Self {
        let has_any =
            [KEEPALIVE, COOKIE].into_iter().any(|code| self.has_option(code) && !cookies.passes_option(code));
        if has_any && retain_options(message, |code| cookies.passes_option(code)) {
            return Self::parse(message).unwrap_or(*self);
        }
        *self
    }
}

/// Returns true if a response has options that must not reach the client.
#[must_use]
pub fn has_hop_options(response: &[u8], cookies: Cookies) -> bool {
    // Most responses have no OPT, or an OPT without options at their end. Searching for the byte 41 (the type
    // of an OPT) is faster than reading the records.
    if matches!(number_at(response, 10), None | Some(0))
        || ends_with_empty_opt(response)
        || !response.contains(&OPT_TYPE)
    {
        return false;
    }
    let Some(start) = records_start(response) else { return false };
    let opt = Records::new(response, start).map_while(Result::ok).find(Record::is_opt_in_place);
    opt.is_some_and(|opt| {
        options::all(response, &opt).flatten().any(|option| !cookies.passes_option(option.code()))
    })
}

fn ends_with_empty_opt(response: &[u8]) -> bool {
    response.last_chunk::<OPT_BYTES>().is_some_and(|end| end[..3] == [0, 0, OPT_TYPE] && end[9..] == [0, 0])
}

/// Removes the options that must not reach the client from a response. A response that is malformed or signed
/// is not changed.
pub fn strip_hop_options(response: &mut Vec<u8>, cookies: Cookies) {
    if has_hop_options(response, cookies) {
        retain_options(response, |code| cookies.passes_option(code));
    }
}

/// Adds the idle timeout of the connection (RFC 7828, section 3.3.2) to a response with an OPT at its end.
/// Other responses are not changed.
pub fn add_keepalive(response: &mut Vec<u8>, idle: Duration) {
    let timeout = u16::try_from(idle.as_millis() / TIMEOUT_UNIT_MS).unwrap_or(u16::MAX);
    add_option(response, KEEPALIVE, &timeout.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, record, sample, with_records};
    use super::*;

    const COOKIE_OPTION: &[u8] = &[0, 10, 0, 2, 7, 7];
    const KEEPALIVE_OPTION: &[u8] = &[0, 11, 0, 2, 1, 44];
    const OTHER_OPTION: &[u8] = &[0, 3, 0, 1, 9];

    /// Returns a sample message with an OPT that has these options.
    fn with(name: &str, options: &[&[u8]]) -> Vec<u8> {
        with_records(sample(name), 3, &[opt(1232, 0x8000, &options.concat())])
    }

    #[test]
    fn options_of_a_single_hop_are_removed() {
        let all = [COOKIE_OPTION, OTHER_OPTION, KEEPALIVE_OPTION];
        let check = |cookies: Cookies, remaining: &[&[u8]]| {
            let mut message = with("query", &all);
            let query = Query::parse(&message).unwrap();
            let left = query.without_hop_options(&mut message, cookies);
            assert_eq!(message, with("query", remaining));
            assert_eq!(left, Query::parse(&message).unwrap());
            assert!(query.asks_for_keepalive() && !left.asks_for_keepalive());
            let mut response = with("response", &all);
            assert!(has_hop_options(&response, cookies));
            strip_hop_options(&mut response, cookies);
            assert_eq!(response, with("response", remaining));
            assert!(!has_hop_options(&response, cookies));
        };
        check(Cookies::Pass, &[COOKIE_OPTION, OTHER_OPTION]);
        check(Cookies::Remove, &[OTHER_OPTION]);
    }

    #[test]
    fn messages_without_hop_options_and_signed_messages_are_not_changed() {
        let check = |message: Vec<u8>, expected: bool| {
            let mut stripped = message.clone();
            assert_eq!(has_hop_options(&message, Cookies::Remove), expected);
            strip_hop_options(&mut stripped, Cookies::Remove);
            assert_eq!(stripped, message);
        };
        check(sample("response"), false);
        check(with("response", &[]), false);
        check(with("response", &[OTHER_OPTION]), false);
        check(vec![0; 12], false);
        check(vec![0; 5], false);
        let tsig = record(&[1, b'k', 0], 250, 255, 0, &[0; 16]);
        check(with_records(with("response", &[COOKIE_OPTION]), 3, std::slice::from_ref(&tsig)), true);
        let mut message = with_records(with("query", &[COOKIE_OPTION]), 3, &[tsig]);
        let (before, query) = (message.clone(), Query::parse(&message).unwrap());
        assert_eq!(query.without_hop_options(&mut message, Cookies::Remove), query);
        assert_eq!(message, before);
    }

    #[test]
    fn a_response_without_a_question_section_is_stripped_too() {
        let header = || [&[0, 7, 0x80, 0][..], &[0; 8]].concat();
        let mut response = with_records(header(), 3, &[opt(1232, 0, COOKIE_OPTION)]);
        strip_hop_options(&mut response, Cookies::Remove);
        assert_eq!(response, with_records(header(), 3, &[opt(1232, 0, &[])]));
    }

    #[test]
    fn the_idle_timeout_is_in_tenths_of_seconds() {
        let check = |idle: Duration, option: &[u8]| {
            let mut response = with("response", &[OTHER_OPTION]);
            add_keepalive(&mut response, idle);
            assert_eq!(response, with("response", &[OTHER_OPTION, option]));
        };
        check(Duration::from_secs(30), KEEPALIVE_OPTION);
        check(Duration::ZERO, &[0, 11, 0, 2, 0, 0]);
        check(Duration::MAX, &[0, 11, 0, 2, 255, 255]);
        // Without an OPT, or with a record after the OPT, nothing is added.
        for message in
            [sample("response"), with_records(with("response", &[]), 3, &[record(&[0], 16, 1, 0, &[])])]
        {
            let mut response = message.clone();
            add_keepalive(&mut response, Duration::from_secs(30));
            assert_eq!(response, message);
        }
    }
}
