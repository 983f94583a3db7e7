//! Lines of a web server's log, and their times.

use time::{Date, Month, OffsetDateTime, UtcOffset};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A line of a web server's log: `client - - [time] "request" 200 1`, cut at its brackets and quotation marks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WebLine {
    /// Seconds since 1970.
    time: i64,
    /// Text between the client and the time.
    before: Box<[u8]>,
    /// Text between the time and the request.
    between: Box<[u8]>,
    request: Box<[u8]>,
    /// The rest, without the newline.
    after: Box<[u8]>,
}

impl WebLine {
    /// Parses a line. No part may be empty.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let (_client, rest) = until(line, b' ')?;
        let (before, rest) = until(rest.trim_ascii_start(), b'[')?;
        let (time, rest) = until(rest, b']')?;
        let (between, rest) = until(rest, b'"')?;
        let (request, rest) = until(rest, b'"')?;
        let after = rest.strip_suffix(b"\n").unwrap_or(rest);
        let time = parse_time(str::from_utf8(time).ok()?)?;
        (!after.is_empty()).then(|| Self {
            time,
            before: before.into(),
            between: between.into(),
            request: request.into(),
            after: after.into(),
        })
    }

    /// Returns the time, in seconds since 1970.
    pub(super) fn time(&self) -> i64 {
        self.time
    }

    /// Returns the time, in the zone of this machine without daylight saving time.
    ///
    /// pen's own mergelogs treats the times of web servers as local, and `-t` corrects that.
    pub(super) fn standard_local_time(&self) -> i64 {
        self.time - standard_offset(self.time)
    }

    /// Returns the key of the line in pen's log.
    pub(super) fn key(&self, server: &[u8]) -> Box<[u8]> {
        super::pen_log::key(server, &self.request)
    }

    /// Replaces the contents of `line` by this line, with a newline.
    pub(super) fn emit(&self, client: &[u8], line: &mut Vec<u8>) {
        let time = emit_time(self.time);
        let parts: [&[u8]; 11] = [
            client,
            b" ",
            &self.before,
            b"[",
            time.as_bytes(),
            b"]",
            &self.between,
            b"\"",
            &self.request,
            b"\"",
            &self.after,
        ];
        line.clear();
        parts.iter().for_each(|part| line.extend_from_slice(part));
        line.push(b'\n');
    }
}

/// Returns the text before a mark, which must not be empty, and the text after it.
fn until(text: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == mark).filter(|at| *at > 0)?;
    Some((&text[..at], &text[at + 1..]))
}

/// Parses a time such as `09/Jan/2002:00:28:50 +0100`.
fn parse_time(text: &str) -> Option<i64> {
    let (time, zone) = text.split_once(' ').unwrap_or((text, ""));
    let (date, time) = time.split_once(':')?;
    let [day, month, year] = three(date, '/')?;
    let [hour, minute, second] = three(time, ':')?;
    let month = MONTHS.iter().position(|name| *name == month)?;
    let month = Month::try_from(u8::try_from(month + 1).ok()?).ok()?;
    let date = Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
    let (hour, minute, second) = (below(hour, 24)?, below(minute, 60)?, below(second, 61)?);
    let time = date.midnight().assume_utc().unix_timestamp() + hour * 3600 + minute * 60 + second;
    Some(time - seconds_east(zone.trim()))
}

fn three(text: &str, mark: char) -> Option<[&str; 3]> {
    let mut parts = text.split(mark);
    let three = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(three)
}

fn below(text: &str, bound: u8) -> Option<i64> {
    let number: u8 = text.parse().ok()?;
    (number < bound).then_some(i64::from(number))
}

/// Parses a zone such as `+0130`. Other text counts as UTC.
fn seconds_east(zone: &str) -> i64 {
    let (sign, digits) = match zone.split_at_checked(1) {
        Some(("-", digits)) => (-1, digits),
        Some(("+", digits)) => (1, digits),
        _ => return 0,
    };
    match digits.split_whitespace().next().unwrap_or_default().parse::<u16>() {
        Ok(number @ 0..=9999) => sign * (i64::from(number / 100) * 3600 + i64::from(number % 100) * 60),
        _ => 0,
    }
}

/// Formats a time in UTC.
fn emit_time(time: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(time).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let month = MONTHS[usize::from(u8::from(at.month())) - 1];
    let (hour, minute, second) = at.to_hms();
    format!("{:02}/{month}/{:04}:{hour:02}:{minute:02}:{second:02} +0000", at.day(), at.year())
}

/// Returns the offset of this machine's zone from UTC in the year of `time`, in seconds, without daylight
/// saving time.
fn standard_offset(time: i64) -> i64 {
    let year = OffsetDateTime::from_unix_timestamp(time).map_or(1970, OffsetDateTime::year);
    let of = |month| {
        let date = Date::from_calendar_date(year, month, 1).ok()?;
        UtcOffset::local_offset_at(date.midnight().assume_utc()).ok()
    };
    // January or July is winter, depending on the hemisphere.
    let offsets = [of(Month::January), of(Month::July)];
    offsets.into_iter().flatten().map(UtcOffset::whole_seconds).min().map_or(0, i64::from)
}

#[cfg(test)]
mod tests {
    use super::WebLine;

    const CASES: &[(&str, Option<&str>)] = &[
        (
            "x - - [09/Jan/2002:00:28:50 +0000] \"GET / HTTP/1.0\" 200 1\n",
            Some("C - - [09/Jan/2002:00:28:50 +0000] \"GET / HTTP/1.0\" 200 1\n"),
        ),
        (
            "x - bob [09/Jan/2002:01:28:50 +0100] \"G\" 2 \"r\" \"a\"",
            Some("C - bob [09/Jan/2002:00:28:50 +0000] \"G\" 2 \"r\" \"a\"\n"),
        ),
        (
            "x  -  - [9/Jan/2002:0:28:50   -0330 zz] \"G\\\" 2",
            Some("C -  - [09/Jan/2002:03:58:50 +0000] \"G\\\" 2\n"),
        ),
        (
            "x - - [29/Feb/2024:23:59:60 GMT] \"G\" 1\r\n",
            Some("C - - [01/Mar/2024:00:00:00 +0000] \"G\" 1\r\n"),
        ),
        ("x - - [01/Jan/2002:00:00:00] \"G\" 1", Some("C - - [01/Jan/2002:00:00:00 +0000] \"G\" 1\n")),
        ("", None),
        ("\n", None),
        ("x [09/Jan/2002:00:28:50 +0000] \"G\" 1\n", None),
        (" x - [09/Jan/2002:00:28:50 +0000] \"G\" 1\n", None),
        ("x - - [09/Jan/2002:00:28:50 +0000] \"\" 1\n", None),
        ("x - - [09/Jan/2002:00:28:50 +0000]\"G\" 1\n", None),
        ("x - - [09/Jan/2002:00:28:50 +0000] \"G\"\n", None),
        ("x - - [09/jan/2002:00:28:50 +0000] \"G\" 1\n", None),
        ("x - - [31/Feb/2002:00:28:50 +0000] \"G\" 1\n", None),
        ("x - - [09/Jan/2002:24:28:50 +0000] \"G\" 1\n", None),
        ("x - - [09/Jan/99999:00:28:50 +0000] \"G\" 1\n", None),
        (
            "x - - [31/Dec/9999:23:59:59 -9999] \"G\" 1\n",
            Some("C - - [01/Jan/1970:00:00:00 +0000] \"G\" 1\n"),
        ),
    ];

    #[test]
    fn lines_of_web_servers_are_parsed_and_written_in_utc() {
        for (line, expected) in CASES {
            let mut out = Vec::new();
            let parsed = WebLine::parse(line.as_bytes());
            let parsed = parsed.map(|parsed| {
                parsed.emit(b"C", &mut out);
                String::from_utf8_lossy(&out).into_owned()
            });
            assert_eq!(parsed.as_deref(), *expected, "{line}");
            (0..line.len()).for_each(|length| drop(WebLine::parse(&line.as_bytes()[..length])));
        }
    }
}
