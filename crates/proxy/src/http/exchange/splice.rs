//! Bodies that move from one socket to the other by splice(2), without a copy in memory: those of known length,
//! the data of large chunks, and those that last until the server closes. The bytes around the data are read and
//! written as usual.

use super::{Body, HttpPart};
use crate::io::pipe::Pipe;
use crate::io::transport::{Buffers, Transport};
use evener_core::wire::chunked;

impl Body {
    /// Returns the number of data bytes that come next, before any other byte.
    fn data_ahead(&self) -> u64 {
        match self {
            Self::Length(left) => *left,
            Self::Chunked(decoder) => decoder.data_left(),
            Self::Close => u64::MAX,
            Self::Header(_) | Self::Done => 0,
        }
    }

    /// Records that `count` data bytes moved.
    fn skip_data(&mut self, count: u64) {
        match self {
            Self::Length(left) => *left = left.saturating_sub(count),
            Self::Chunked(decoder) => decoder.skip_data(count),
            Self::Close | Self::Header(_) | Self::Done => {}
        }
        if *self == Self::Length(0) {
            *self = Self::Done;
        }
    }
}

impl HttpPart {
    /// Moves the next part of the request's body from the client's socket to the server's, after the queued
    /// bytes. Returns its length, and the number of all bytes for the server; `None` if bytes must be received
    /// into memory instead. A request that moved so is never sent again.
    pub(in crate::http) fn splice_upload(
        &mut self,
        client: &mut Transport,
        server: &mut Transport,
        buffers: &mut Buffers,
    ) -> Option<(usize, usize)> {
        let ahead = self.upload.data_ahead();
        if !server.is_spliced_from(client, ahead) {
            return None;
        }
        let pipe = client.receive_pipe(ahead, buffers)?;
        let data = pipe.len();
        self.upload.skip_data(data as u64);
        self.uploaded += data as u64;
        self.replay = None;
        server.queue(&self.outgoing);
        let sent = self.outgoing.len() + queue_data(server, pipe, self.uploads_chunks);
        self.outgoing.clear();
        server.flush(buffers);
        Some((data, sent))
    }

    /// Moves the next part of the response's body from the server's socket to the client's, after the bytes of
    /// `out`; returns its length. Returns `None` if bytes must be received into memory instead.
    pub(in crate::http) fn splice_download(
        &mut self,
        server: &mut Transport,
        client: &mut Transport,
        out: &mut Vec<u8>,
        buffers: &mut Buffers,
    ) -> Option<usize> {
        let ahead = self.download.data_ahead();
        if !client.is_spliced_from(server, ahead) {
            return None;
        }
        let pipe = server.receive_pipe(ahead, buffers)?;
        let data = pipe.len();
        self.download.skip_data(data as u64);
        client.queue(out);
        out.clear();
        queue_data(client, pipe, self.downloads_chunks);
        client.flush(buffers);
        Some(data)
    }
}

/// Queues the data of a pipe, as a chunk or unframed; returns the number of queued bytes.
fn queue_data(sink: &mut Transport, pipe: Box<Pipe>, as_chunk: bool) -> usize {
    let length = pipe.len();
    let mut size = Vec::new();
    if as_chunk {
        chunked::emit_size(length, &mut size);
    }
    let end = if as_chunk { chunked::CHUNK_END } else { b"" };
    sink.queue(&size);
    sink.queue_pipe(pipe);
    sink.queue(end);
    size.len() + length + end.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use evener_core::wire::chunked::Decoder;

    #[test]
    fn a_body_of_known_length_ends_with_its_last_spliced_byte() {
        let mut body = Body::Length(100);
        body.skip_data(99);
        assert_eq!((body, body.data_ahead()), (Body::Length(1), 1));
        body.skip_data(1);
        assert_eq!((body, body.data_ahead()), (Body::Done, 0));
    }

    #[test]
    fn only_the_data_of_a_chunk_is_spliced() {
        let mut decoder = Decoder::default();
        decoder.step(b"64\r\n").unwrap();
        let mut body = Body::Chunked(decoder);
        assert_eq!(body.data_ahead(), 100);
        body.skip_data(100);
        assert_eq!(body.data_ahead(), 0);
        assert!(matches!(body, Body::Chunked(_)), "the end of the body is read");
    }

    #[test]
    fn a_body_until_the_close_has_no_limit() {
        let mut body = Body::Close;
        body.skip_data(1 << 40);
        assert_eq!((body, body.data_ahead()), (Body::Close, u64::MAX));
        assert_eq!((Body::header().data_ahead(), Body::Done.data_ahead()), (0, 0));
    }
}
