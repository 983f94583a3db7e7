//! The chunked transfer coding (RFC 9112, section 7.1): a strict decoder and an encoder. A body is passed on
//! decoded or encoded anew: chunk extensions and trailers are parsed and dropped, which RFC 9110, section
//! 6.5.1, allows intermediaries to do.

use super::http::is_token;

/// Maximum size of the extensions of one chunk, and of one trailer line.
const LINE_BYTES_MAX: u32 = 4096;
/// Maximum size of all trailers.
const TRAILER_BYTES_MAX: u32 = 16 * 1024;

/// Decodes a body that arrives in pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    state: State,
    /// Number of bytes left in the current chunk; while the size is read, the size so far.
    left: u64,
    /// Bytes of the current line.
    line: u32,
    /// Bytes of all trailers so far.
    trailers: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of the size.
    #[default]
    SizeBegin,
    Size,
    /// After the size: spaces before an extension, or the extension.
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerBegin,
    TrailerName,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

/// Result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Bytes of the body.
    Data(&'a [u8]),
    /// All bytes are consumed, and more are needed.
    More,
    /// The body is complete.
    Done,
}

/// Error of a malformed coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunked body")]
pub struct Malformed;

impl Decoder {
    /// Decodes the next bytes. Returns the number of consumed bytes and the result. Call this method with the
    /// remaining bytes until the result is [`Step::More`] or [`Step::Done`].
    pub fn step<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Step<'a>), Malformed> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Data => {
                    let length = self.left.min((bytes.len() - at) as u64) as usize;
                    self.left -= length as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok((at + length, Step::Data(&bytes[at..at + length])));
                }
                State::Done => break,
                _ => self.state = self.after(byte)?,
            }
            at += 1;
        }
        Ok((at, if self.state == State::Done { Step::Done } else { Step::More }))
    }

    /// Returns the number of data bytes that come next, before any other byte of the coding.
    #[must_use]
    pub fn data_left(&self) -> u64 {
        if self.state == State::Data { self.left } else { 0 }
    }

    /// Records that the next `count` bytes of data were consumed elsewhere. `count` is at most
    /// [`Decoder::data_left`].
    pub fn skip_data(&mut self, count: u64) {
        debug_assert!(count <= self.data_left(), "only data is skipped");
        if self.state == State::Data {
            self.left = self.left.saturating_sub(count);
            if self.left == 0 {
                self.state = State::DataCr;
            }
        }
    }

    /// Returns true if the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    fn after(&mut self, byte: u8) -> Result<State, Malformed> {
        let digit = char::from(byte).to_digit(16).map(u64::from);
        Ok(match (self.state, byte) {
            (State::SizeBegin | State::Size, _) if digit.is_some() => {
                let shifted = self.left.checked_mul(16).ok_or(Malformed)?;
                self.left = shifted + digit.unwrap_or(0);
                State::Size
            }
            (State::Size | State::Extension, b'\r') => State::SizeLf,
            // Space before an extension is bad style, but the grammar allows it (RFC 9112, section 7.1.1).
            (State::Size, b';' | b' ' | b'\t') => self.in_line(State::Extension)?,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.in_line(State::Extension)?,
            (State::SizeLf, b'\n') => {
                self.line = 0;
                if self.left == 0 { State::TrailerBegin } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeBegin,
            (State::TrailerBegin, b'\r') => State::EndLf,
            (State::TrailerBegin | State::TrailerName, _) if is_token(byte) => {
                self.in_trailer(State::TrailerName)?
            }
            (State::TrailerName, b':') => self.in_trailer(State::Trailer)?,
            (State::Trailer, b'\t' | b' '..=b'~' | 0x80..) => self.in_trailer(State::Trailer)?,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerLf, b'\n') => {
                self.line = 0;
                State::TrailerBegin
            }
            (State::EndLf, b'\n') => State::Done,
            _ => return Err(Malformed),
        })
    }

    fn in_trailer(&mut self, state: State) -> Result<State, Malformed> {
        self.trailers += 1;
        if self.trailers > TRAILER_BYTES_MAX { Err(Malformed) } else { self.in_line(state) }
    }

    fn in_line(&mut self, state: State) -> Result<State, Malformed> {
        self.line += 1;
        if self.line > LINE_BYTES_MAX { Err(Malformed) } else { Ok(state) }
    }
}

/// Writes the size line of a chunk of `length` bytes. `length` must not be 0, which would end the body.
pub fn emit_size(length: usize, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    (0..digits).rev().for_each(|digit| out.push(DIGITS[length >> (digit * 4) & 0xf]));
    out.extend_from_slice(b"\r\n");
}

/// End of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// End of a body.
pub const BODY_END: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes bytes in pieces of `size`. Returns the body, the number of consumed bytes, and true if the body
    /// is complete.
    fn decode(bytes: &[u8], size: usize) -> Result<(Vec<u8>, usize, bool), Malformed> {
        let (mut decoder, mut body, mut used) = (Decoder::default(), Vec::new(), 0);
        for piece in bytes.chunks(size) {
            let mut rest = piece;
            loop {
                let (taken, step) = decoder.step(rest)?;
                used += taken;
                rest = &rest[taken..];
                match step {
                    Step::Data(data) => body.extend_from_slice(data),
                    Step::More => break,
                    Step::Done => return Ok((body, used, true)),
                }
            }
        }
        Ok((body, used, false))
    }

    #[test]
    fn pieces_of_any_size_give_the_same_body() {
        let check = |bytes: &[u8], body: &[u8], used: usize| {
            for size in 1..=bytes.len() {
                assert_eq!(decode(bytes, size), Ok((body.to_vec(), used, true)), "{size}: {bytes:?}");
            }
        };
        check(b"0\r\n\r\nGET", b"", 5);
        check(b"5\r\nhello\r\n0\r\n\r\n", b"hello", 15);
        check(b"0005\r\nhello\r\n1 ;a=\"b\"\r\n!\r\n00\r\nX: y\r\nZ: 1\r\n\r\n", b"hello!", 44);
        check(b"A\r\n0123456789\r\na\r\n0123456789\r\n0;x\r\n\r\n", b"01234567890123456789", 37);
    }

    #[test]
    fn malformed_bodies_are_refused_at_the_first_wrong_byte() {
        for bytes in [
            b"\r\n".as_slice(),
            b";a\r\n",
            b"-1\r\n",
            b"+1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"g\r\n",
            b"1\nx",
            b"1\r\r\n",
            b"1;a\nb\r\n",
            b"1;\0\r\n",
            b"1\r\nxy\r\n",
            b"1\r\nx\n",
            b"1\r\nx\r\r",
            b"0\r\n\n",
            b"0\r\n\rX",
            b"0\r\nX: y\n\r\n",
            b"0\r\nX: \x01\r\n\r\n",
            b"0\r\nX y\r\n\r\n",
            b"0\r\nX\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
            b"0\r\n: y\r\n\r\n",
            b"10000000000000000\r\n",
            b"fffffffffffffffff\r\n",
        ] {
            for size in 1..=bytes.len() {
                assert_eq!(decode(bytes, size), Err(Malformed), "{size}: {bytes:?}");
            }
        }
    }

    #[test]
    fn data_can_be_skipped_but_not_the_bytes_around_it() {
        let mut decoder = Decoder::default();
        assert_eq!((decoder.data_left(), decoder.step(b"6\r").map(|(used, _)| used)), (0, Ok(2)));
        assert_eq!((decoder.data_left(), decoder.step(b"\n")), (0, Ok((1, Step::More))));
        assert_eq!((decoder.data_left(), decoder.step(b"a")), (6, Ok((1, Step::Data(b"a")))));
        decoder.skip_data(2);
        assert_eq!((decoder.data_left(), decoder.step(b"d")), (3, Ok((1, Step::Data(b"d")))));
        decoder.skip_data(2);
        assert_eq!((decoder.data_left(), decoder.step(b"\r\n0\r\n\r\n")), (0, Ok((7, Step::Done))));
        assert_eq!(decoder.data_left(), 0);
    }

    #[test]
    fn lines_and_trailers_are_bounded() {
        let extension = [b"1;".as_slice(), &[b'a'; 5000]].concat();
        assert_eq!(decode(&extension, 100), Err(Malformed));
        let trailers = [b"0\r\n".to_vec(), b"X: 12345678901234567890\r\n".repeat(2000)].concat();
        assert_eq!(decode(&trailers, 100), Err(Malformed));
    }

    #[test]
    fn an_encoded_body_is_decoded_again() {
        for length in [1, 9, 10, 15, 16, 17, 255, 256, 65_536, 70_000] {
            let data = vec![b'x'; length];
            let mut written = Vec::new();
            emit_size(length, &mut written);
            written.extend_from_slice(&data);
            written.extend_from_slice(CHUNK_END);
            written.extend_from_slice(BODY_END);
            assert_eq!(decode(&written, 1000), Ok((data, written.len(), true)));
        }
    }
}
