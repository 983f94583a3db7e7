//! Matching of Lua's patterns with a bound on the number of steps.

/// Maximum number of captures (`LUA_MAXCAPTURES`).
const CAPTURES_MAX: usize = 32;
/// Maximum depth of the recursion (`MAXCCALLS`).
const DEPTH_MAX: u32 = 200;
/// Maximum number of steps at one position of the text. It takes some milliseconds.
const STEPS_MAX: u32 = 500_000;
/// Number of steps after which a search is interrupted, to be continued at the next position.
const STEPS_BEFORE_PAUSE: u32 = 100_000;
const ESCAPE: u8 = b'%';

/// A capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capture {
    /// The text between two positions.
    Text(usize, usize),
    /// A position, from 1.
    Position(usize),
}

/// Result of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Search {
    /// The match begins and ends at these positions, and has these captures.
    Found(usize, usize, Vec<Capture>),
    /// There is no match.
    Nothing,
    /// The search has to continue at this position.
    Continue(usize),
}

#[derive(Clone, Copy)]
enum Length {
    Open,
    Position,
    Bytes(usize),
}

struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    level: usize,
    captures: [(usize, Length); CAPTURES_MAX],
    depth: u32,
    steps: u32,
}

type Matched = Result<Option<usize>, String>;

/// Searches for a pattern in a text, beginning at a position from 0. In `gmatch`, `^` has no meaning.
pub(super) fn search(
    text: &[u8],
    pattern: &[u8],
    from: usize,
    caret_is_anchor: bool,
) -> Result<Search, String> {
    let (pattern, is_anchored) = match pattern {
        [b'^', rest @ ..] if caret_is_anchor => (rest, true),
        _ => (pattern, false),
    };
    let mut matcher = Matcher {
        text,
        pattern,
        level: 0,
        captures: [(0, Length::Open); CAPTURES_MAX],
        depth: DEPTH_MAX,
        steps: 0,
    };
    let mut total = 0;
    for start in from..=text.len() {
        (matcher.level, matcher.depth, matcher.steps) = (0, DEPTH_MAX, 0);
        if let Some(end) = matcher.run(start, 0)? {
            return Ok(Search::Found(start, end, matcher.all_captures()?));
        }
        if is_anchored {
            break;
        }
        total += matcher.steps + 1;
        if total > STEPS_BEFORE_PAUSE {
            return Ok(Search::Continue(start + 1));
        }
    }
    Ok(Search::Nothing)
}

impl Matcher<'_> {
    fn all_captures(&self) -> Result<Vec<Capture>, String> {
        self.captures[..self.level]
            .iter()
            .map(|(start, length)| match length {
                Length::Open => Err("unfinished capture".into()),
                Length::Position => Ok(Capture::Position(start + 1)),
                Length::Bytes(length) => Ok(Capture::Text(*start, start + length)),
            })
            .collect()
    }

    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(format!("the pattern needs more than {STEPS_MAX} steps: make it simpler"));
        }
        Ok(())
    }

    fn at(&self, p: usize) -> Option<u8> {
        self.pattern.get(p).copied()
    }

    fn run(&mut self, s: usize, p: usize) -> Matched {
        if self.depth == 0 {
            return Err("pattern too complex".into());
        }
        self.depth -= 1;
        let matched = self.run_here(s, p);
        self.depth += 1;
        matched
    }

    fn run_here(&mut self, mut s: usize, mut p: usize) -> Matched {
        loop {
            self.step()?;
            let Some(byte) = self.at(p) else { return Ok(Some(s)) };
            match (byte, self.at(p + 1)) {
                (b'(', Some(b')')) => return self.start_capture(s, p + 2, Length::Position),
                (b'(', _) => return self.start_capture(s, p + 1, Length::Open),
                (b')', _) => return self.end_capture(s, p + 1),
                (b'$', None) => return Ok((s == self.text.len()).then_some(s)),
                (ESCAPE, Some(b'b')) => match self.balance(s, p + 2)? {
                    Some(end) => {
                        (s, p) = (end, p + 4);
                        continue;
                    }
                    None => return Ok(None),
                },
                (ESCAPE, Some(b'f')) => {
                    p += 2;
                    if self.at(p) != Some(b'[') {
                        return Err("missing '[' after '%f' in pattern".into());
                    }
                    let end = self.class_end(p)?;
                    let before = if s == 0 { 0 } else { self.text[s - 1] };
                    let after = self.text.get(s).copied().unwrap_or(0);
                    if !self.in_set(before, p, end - 1)? && self.in_set(after, p, end - 1)? {
                        p = end;
                        continue;
                    }
                    return Ok(None);
                }
                (ESCAPE, Some(digit)) if digit.is_ascii_digit() => match self.back_reference(s, digit)? {
                    Some(end) => {
                        (s, p) = (end, p + 2);
                        continue;
                    }
                    None => return Ok(None),
                },
                _ => {}
            }
            let end = self.class_end(p)?;
            match self.at(end) {
                Some(b'?') => {
                    if self.single(s, p, end)?
                        && let Some(found) = self.run(s + 1, end + 1)?
                    {
                        return Ok(Some(found));
                    }
                    p = end + 1;
                }
                Some(b'+') => {
                    return if self.single(s, p, end)? { self.most(s + 1, p, end) } else { Ok(None) };
                }
                Some(b'*') => return self.most(s, p, end),
                Some(b'-') => return self.fewest(s, p, end),
                _ if self.single(s, p, end)? => (s, p) = (s + 1, end),
                _ => return Ok(None),
            }
        }
    }

    fn most(&mut self, s: usize, p: usize, end: usize) -> Matched {
        let mut count = 0;
        while self.single(s + count, p, end)? {
            // A character here is quicker than a step of other kinds.
            if count % 4 == 0 {
                self.step()?;
            }
            count += 1;
        }
        loop {
            if let Some(found) = self.run(s + count, end + 1)? {
                return Ok(Some(found));
            }
            if count == 0 {
                return Ok(None);
            }
            count -= 1;
        }
    }

    fn fewest(&mut self, mut s: usize, p: usize, end: usize) -> Matched {
        loop {
            if let Some(found) = self.run(s, end + 1)? {
                return Ok(Some(found));
            }
            if !self.single(s, p, end)? {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn start_capture(&mut self, s: usize, p: usize, length: Length) -> Matched {
        if self.level >= CAPTURES_MAX {
            return Err("too many captures".into());
        }
        self.captures[self.level] = (s, length);
        self.level += 1;
        let found = self.run(s, p)?;
        if found.is_none() {
            self.level -= 1;
        }
        Ok(found)
    }

    fn end_capture(&mut self, s: usize, p: usize) -> Matched {
        let open = self.captures[..self.level].iter().rposition(|(_, length)| matches!(length, Length::Open));
        let index = open.ok_or("invalid pattern capture")?;
        self.captures[index].1 = Length::Bytes(s - self.captures[index].0);
        let found = self.run(s, p)?;
        if found.is_none() {
            self.captures[index].1 = Length::Open;
        }
        Ok(found)
    }

    fn back_reference(&mut self, s: usize, digit: u8) -> Matched {
        let index = usize::from(digit).wrapping_sub(usize::from(b'1'));
        let capture = self.captures[..self.level].get(index);
        let Some((start, Length::Bytes(length))) = capture.copied() else {
            return Err(format!("invalid capture index %{}", index.wrapping_add(1)));
        };
        // A long comparison counts like the steps that it replaces.
        self.steps = self.steps.saturating_add((length / 16) as u32);
        let (text, captured) = (self.text, &self.text[start..start + length]);
        Ok(text[s..].starts_with(captured).then_some(s + length))
    }

    fn balance(&mut self, s: usize, p: usize) -> Matched {
        let (Some(open), Some(close)) = (self.at(p), self.at(p + 1)) else {
            return Err("malformed pattern (missing arguments to '%b')".into());
        };
        if self.text.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1;
        for at in s + 1..self.text.len() {
            self.step()?;
            let byte = self.text[at];
            if byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    /// Returns the position behind the class that begins at `p`.
    fn class_end(&self, p: usize) -> Result<usize, String> {
        match self.at(p) {
            Some(ESCAPE) if self.at(p + 1).is_none() => Err("malformed pattern (ends with '%')".into()),
            Some(ESCAPE) => Ok(p + 2),
            Some(b'[') => {
                let mut at = p + 1;
                if self.at(at) == Some(b'^') {
                    at += 1;
                }
                loop {
                    // A `]` at the beginning is a member of the set.
                    let byte = self.at(at).ok_or("malformed pattern (missing ']')")?;
                    at += 1;
                    if byte == ESCAPE {
                        at += 1;
                    }
                    if self.at(at) == Some(b']') {
                        return Ok(at + 1);
                    }
                }
            }
            _ => Ok(p + 1),
        }
    }

    /// Returns true if the byte at `s` matches the class between `p` and `end`.
    fn single(&mut self, s: usize, p: usize, end: usize) -> Result<bool, String> {
        let Some(byte) = self.text.get(s).copied() else { return Ok(false) };
        Ok(match self.at(p) {
            Some(b'.') => true,
            Some(ESCAPE) => in_class(byte, self.at(p + 1).unwrap_or_default()),
            Some(b'[') => self.in_set(byte, p, end - 1)?,
            other => other == Some(byte),
        })
    }

    /// Returns true if a byte is in the set that begins at `p` with `[` and ends at `close` with `]`.
    fn in_set(&mut self, byte: u8, p: usize, close: usize) -> Result<bool, String> {
        let mut at = p + 1;
        let is_positive = self.at(at) != Some(b'^');
        if !is_positive {
            at += 1;
        }
        // A long set counts like several steps.
        self.steps = self.steps.saturating_add(((close - at) / 8) as u32);
        if self.steps > STEPS_MAX {
            self.step()?;
        }
        while at < close {
            let first = self.pattern[at];
            if first == ESCAPE {
                if in_class(byte, self.at(at + 1).unwrap_or_default()) {
                    return Ok(is_positive);
                }
                at += 2;
            } else if self.at(at + 1) == Some(b'-') && at + 2 < close {
                if (first..=self.pattern[at + 2]).contains(&byte) {
                    return Ok(is_positive);
                }
                at += 3;
            } else {
                if first == byte {
                    return Ok(is_positive);
                }
                at += 1;
            }
        }
        Ok(!is_positive)
    }
}

/// Returns true if a byte is in the class `%class`.
fn in_class(byte: u8, class: u8) -> bool {
    let is_member = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'g' => byte.is_ascii_graphic(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => byte.is_ascii_whitespace() || byte == 0x0b,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        _ => return class == byte,
    };
    is_member != class.is_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_explodes_is_stopped() {
        let text = b"a".repeat(40);
        let why = search(&text, b"a*a*a*a*a*a*a*a*a*a*a*a*b", 0, true).unwrap_err();
        assert!(why.contains("steps"), "{why}");
    }

    #[test]
    fn a_long_search_is_continued() {
        let text = b"a".repeat(1 << 20);
        let Ok(Search::Continue(at)) = search(&text, b"b", 0, true) else { panic!("it was not interrupted") };
        assert!(at > 1000 && at < text.len());
    }
}
