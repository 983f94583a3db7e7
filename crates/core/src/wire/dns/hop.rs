//! The options of EDNS that are between a client and us, or between us and a server, and not passed on from the one to the
//! other. What is signed is left as it is: its signature counts them in.

use super::options::{self, COOKIE, KEEPALIVE, add_option, retain_options};
use super::record::{Record, Records, records_start};
use super::{Query, number_at};
use std::time::Duration;

/// An OPT without options.
const OPT_BYTES: usize = 11;
/// The unit of the timeout (RFC 7828, section 3.1).
const TIMEOUT_UNIT_MS: u128 = 100;

/// Whether cookies (RFC 7873) are between clients and servers. Where answers are kept they cannot be: a client that once got a
/// cookie takes no response without it (section 5.3), and what is kept has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookies {
    /// Cookies are passed on.
    Pass,
    /// Cookies are taken out in both directions, so that clients take us for a server that does not know them.
    Remove,
}

impl Cookies {
    fn are_passed_with(self, code: u16) -> bool {
        code != KEEPALIVE && (code != COOKIE || self == Self::Pass)
    }
}

impl Query {
    /// Whether a client asks how long its TCP connection may be idle (RFC 7828, section 3.2.1).
    #[must_use]
    pub fn asks_for_keepalive(&self) -> bool {
        self.opt.is_some_and(|opt| opt.has_keepalive)
    }

    /// Takes the options out of its message that are not for its server; the query of what is left.
    #[must_use]
    pub fn without_hop_options(&self, message: &mut Vec<u8>, cookies: Cookies) -> Self {
        let has_any =
            self.opt.is_some_and(|opt| opt.has_keepalive || opt.has_cookie && cookies == Cookies::Remove);
        if has_any && retain_options(message, |code| cookies.are_passed_with(code)) {
            return Self::parse(message).unwrap_or(*self);
        }
        *self
    }
}

/// Whether a response has options that are not for the client.
#[must_use]
pub fn has_hop_options(answer: &[u8], cookies: Cookies) -> bool {
    // Most have no OPT, or an empty one at their end.
    if matches!(number_at(answer, 10), None | Some(0)) || ends_with_empty_opt(answer) {
        return false;
    }
    let Some(start) = records_start(answer) else { return false };
    let opt = Records::new(answer, start).map_while(Result::ok).find(Record::is_opt_in_place);
    opt.is_some_and(|opt| {
        options::all(answer, &opt).flatten().any(|option| !cookies.are_passed_with(option.code))
    })
}

fn ends_with_empty_opt(answer: &[u8]) -> bool {
    answer.last_chunk::<OPT_BYTES>().is_some_and(|end| end[..3] == [0, 0, 41] && end[9..] == [0, 0])
}

/// Takes out of a response the options that are not for the client. One that they cannot be taken out of stays as it is: it does
/// not walk, or is signed.
pub fn strip_hop_options(answer: &mut Vec<u8>, cookies: Cookies) {
    if has_hop_options(answer, cookies) {
        retain_options(answer, |code| cookies.are_passed_with(code));
    }
}

/// Tells a client for how long its connection may be idle (RFC 7828, section 3.3.2), where its response has an OPT at its end.
pub fn add_keepalive(answer: &mut Vec<u8>, idle: Duration) {
    let timeout = u16::try_from(idle.as_millis() / TIMEOUT_UNIT_MS).unwrap_or(u16::MAX);
    add_option(answer, KEEPALIVE, &timeout.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::samples::{opt, record, sample, with_records};
    use super::*;

    const COOKIE_OPTION: &[u8] = &[0, 10, 0, 2, 7, 7];
    const KEEPALIVE_OPTION: &[u8] = &[0, 11, 0, 2, 1, 44];
    const OTHER_OPTION: &[u8] = &[0, 3, 0, 1, 9];

    /// A message of the samples with an OPT that has these options.
    fn with(name: &str, options: &[&[u8]]) -> Vec<u8> {
        with_records(sample(name), 3, &[opt(1232, 0x8000, &options.concat())])
    }

    #[test]
    fn options_that_are_not_for_the_other_side_are_taken_out() {
        let all = [COOKIE_OPTION, OTHER_OPTION, KEEPALIVE_OPTION];
        let check = |cookies: Cookies, kept: &[&[u8]]| {
            let mut message = with("question", &all);
            let query = Query::parse(&message).unwrap();
            let left = query.without_hop_options(&mut message, cookies);
            assert_eq!(message, with("question", kept));
            assert_eq!(left, Query::parse(&message).unwrap());
            assert!(query.asks_for_keepalive() && !left.asks_for_keepalive());
            let mut answer = with("answer", &all);
            assert!(has_hop_options(&answer, cookies));
            strip_hop_options(&mut answer, cookies);
            assert_eq!(answer, with("answer", kept));
            assert!(!has_hop_options(&answer, cookies));
        };
        check(Cookies::Pass, &[COOKIE_OPTION, OTHER_OPTION]);
        check(Cookies::Remove, &[OTHER_OPTION]);
    }

    #[test]
    fn what_has_none_of_them_or_is_signed_stays() {
        let check = |message: Vec<u8>, expected: bool| {
            let mut stripped = message.clone();
            assert_eq!(has_hop_options(&message, Cookies::Remove), expected);
            strip_hop_options(&mut stripped, Cookies::Remove);
            assert_eq!(stripped, message);
        };
        check(sample("answer"), false);
        check(with("answer", &[]), false);
        check(with("answer", &[OTHER_OPTION]), false);
        check(vec![0; 12], false);
        check(vec![0; 5], false);
        let tsig = record(&[1, b'k', 0], 250, 255, 0, &[0; 16]);
        check(with_records(with("answer", &[COOKIE_OPTION]), 3, std::slice::from_ref(&tsig)), true);
        let mut question = with_records(with("question", &[COOKIE_OPTION]), 3, &[tsig]);
        let (before, query) = (question.clone(), Query::parse(&question).unwrap());
        assert_eq!(query.without_hop_options(&mut question, Cookies::Remove), query);
        assert_eq!(question, before);
    }

    #[test]
    fn a_response_without_a_question_is_stripped_too() {
        let header = || [&[0, 7, 0x80, 0][..], &[0; 8]].concat();
        let mut answer = with_records(header(), 3, &[opt(1232, 0, COOKIE_OPTION)]);
        strip_hop_options(&mut answer, Cookies::Remove);
        assert_eq!(answer, with_records(header(), 3, &[opt(1232, 0, &[])]));
    }

    #[test]
    fn the_idle_time_is_told_in_tenths_of_seconds() {
        let check = |idle: Duration, option: &[u8]| {
            let mut answer = with("answer", &[OTHER_OPTION]);
            add_keepalive(&mut answer, idle);
            assert_eq!(answer, with("answer", &[OTHER_OPTION, option]));
        };
        check(Duration::from_secs(30), KEEPALIVE_OPTION);
        check(Duration::ZERO, &[0, 11, 0, 2, 0, 0]);
        check(Duration::MAX, &[0, 11, 0, 2, 255, 255]);
        // Where there is no OPT, or something after it, nothing is told.
        for message in
            [sample("answer"), with_records(with("answer", &[]), 3, &[record(&[0], 16, 1, 0, &[])])]
        {
            let mut answer = message.clone();
            add_keepalive(&mut answer, Duration::from_secs(30));
            assert_eq!(answer, message);
        }
    }
}
