//! One connection that speaks HTTP/1.1: a request out, an answer in, buffers kept.

use std::fmt;
use std::io;
use std::ops::Range;

use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// More than an answer of the API can be: a page of values, with their envelope.
const MOST_BYTES: usize = 32 * 1024 * 1024;
const HEADERS: usize = 40;

/// Why there is no answer.
#[derive(Debug)]
pub enum Broken {
    /// The connection ended or failed.
    Lost(io::Error),
    /// What came was no answer in HTTP/1.1.
    Protocol,
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// What an answer says, beside its body.
#[derive(Debug, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Where it came from: `Terrace-Origin`, empty when there is none.
    pub origin: Vec<u8>,
    /// How safe a write is: `Terrace-Durability`.
    pub durability: Vec<u8>,
    /// Proof of what was seen: `Terrace-Token`.
    pub token: Vec<u8>,
    body: Range<usize>,
    closes: bool,
}

/// How the body's end is told.
enum Length {
    Bytes(usize),
    Chunked,
    UntilTheEnd,
}

/// A connection with its buffers. `request` is what [`Connection::exchange`] sends.
pub struct Connection<S> {
    stream: S,
    /// The request to send.
    pub request: Vec<u8>,
    /// The last answer.
    pub answer: Answer,
    buffer: Vec<u8>,
    filled: usize,
}

impl<S> fmt::Debug for Connection<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("answer", &self.answer).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection over an open stream.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            request: Vec::with_capacity(512),
            answer: Answer::default(),
            buffer: vec![0; 4096],
            filled: 0,
        }
    }

    /// The last answer's body.
    pub fn body(&self) -> &[u8] {
        &self.buffer[self.answer.body.clone()]
    }

    /// Whether the server wants no further request on this connection.
    pub fn closes(&self) -> bool {
        self.answer.closes
    }

    /// Sends the request and reads its answer. Not cancellation safe: a connection whose exchange was
    /// dropped must be dropped, too.
    ///
    /// # Errors
    /// [`Broken`]; whether the server took the request is then unknown.
    pub async fn exchange(&mut self) -> Result<(), Broken> {
        self.stream.write_all(&self.request).await?;
        self.filled = 0;
        let (length, from) = loop {
            let head = self.head().await?;
            let length = self.parse(head)?;
            if self.answer.status >= 200 {
                break (length, head);
            }
            // An interim answer: the real one follows.
            self.buffer.copy_within(head..self.filled, 0);
            self.filled -= head;
        };
        match length {
            Length::Bytes(bytes) => {
                let end = from.checked_add(bytes).filter(|end| *end <= MOST_BYTES);
                let end = end.ok_or(Broken::Protocol)?;
                while self.filled < end {
                    self.more().await?;
                }
                self.answer.body = from..end;
                if self.filled > end { Err(Broken::Protocol) } else { Ok(()) }
            }
            Length::Chunked => self.chunks(from).await,
            Length::UntilTheEnd => {
                self.answer.closes = true;
                while self.read().await? > 0 {}
                self.answer.body = from..self.filled;
                Ok(())
            }
        }
    }

    /// Reads until the head is there; where the body begins.
    async fn head(&mut self) -> Result<usize, Broken> {
        let mut searched = 0;
        loop {
            if let Some(at) = memmem::find(&self.buffer[searched..self.filled], b"\r\n\r\n") {
                return Ok(searched + at + 4);
            }
            searched = self.filled.saturating_sub(3);
            self.more().await?;
        }
    }

    fn parse(&mut self, head: usize) -> Result<Length, Broken> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(&self.buffer[..head]).map_err(|_| Broken::Protocol)?;
        let answer = &mut self.answer;
        answer.status = response.code.ok_or(Broken::Protocol)?;
        answer.closes = response.version == Some(0);
        for kept in [&mut answer.origin, &mut answer.durability, &mut answer.token] {
            kept.clear();
        }
        let mut length = None;
        for httparse::Header { name, value } in response.headers.iter() {
            match name.len() {
                10 if name.eq_ignore_ascii_case("connection") => {
                    answer.closes |= value.eq_ignore_ascii_case(b"close");
                }
                13 if name.eq_ignore_ascii_case("terrace-token") => {
                    answer.token.extend_from_slice(value);
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    let digits = str::from_utf8(value).map_err(|_| Broken::Protocol)?;
                    let bytes = digits.trim().parse().map_err(|_| Broken::Protocol)?;
                    length = Some(Length::Bytes(bytes));
                }
                14 if name.eq_ignore_ascii_case("terrace-origin") => {
                    answer.origin.extend_from_slice(value);
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    length = Some(Length::Chunked);
                }
                18 if name.eq_ignore_ascii_case("terrace-durability") => {
                    answer.durability.extend_from_slice(value);
                }
                _ => {}
            }
        }
        Ok(match answer.status {
            100..=199 | 204 | 304 => Length::Bytes(0),
            _ => length.unwrap_or(Length::UntilTheEnd),
        })
    }

    /// Reads chunks and moves them together behind the head.
    async fn chunks(&mut self, from: usize) -> Result<(), Broken> {
        let (mut end, mut at) = (from, from);
        loop {
            let line = loop {
                if let Some(line) = memmem::find(&self.buffer[at..self.filled], b"\r\n") {
                    break at + line;
                }
                self.more().await?;
            };
            let size = self.buffer[at..line].split(|byte| *byte == b';').next().unwrap_or_default();
            let size = str::from_utf8(size).map_err(|_| Broken::Protocol)?.trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| Broken::Protocol)?;
            let next = line.checked_add(size).and_then(|next| next.checked_add(4));
            let next = next.filter(|next| *next <= MOST_BYTES).ok_or(Broken::Protocol)?;
            while self.filled < next {
                self.more().await?;
            }
            self.buffer.copy_within(line + 2..line + 2 + size, end);
            end += size;
            at = next;
            if size == 0 {
                self.answer.body = from..end;
                return Ok(());
            }
        }
    }

    /// Reads something; the end of the connection is an error here.
    async fn more(&mut self) -> Result<(), Broken> {
        match self.read().await? {
            0 => Err(Broken::Lost(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(()),
        }
    }

    async fn read(&mut self) -> Result<usize, Broken> {
        if self.filled == self.buffer.len() {
            if self.filled >= MOST_BYTES {
                return Err(Broken::Protocol);
            }
            self.buffer.resize(self.filled * 2, 0);
        }
        let read = self.stream.read(&mut self.buffer[self.filled..]).await?;
        self.filled += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client makes of these bytes, which arrive in pieces of `piece`.
    async fn receive(bytes: &[u8], piece: usize) -> Result<(u16, String, bool), Broken> {
        let (client, mut server) = tokio::io::duplex(piece);
        let mut connection = Connection::new(client);
        connection.request.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        let serve = async {
            let mut request = [0; 18];
            server.read_exact(&mut request).await.unwrap();
            // A client that has seen enough may be gone.
            let _ = server.write_all(bytes).await;
            drop(server);
        };
        let (answered, ()) = tokio::join!(connection.exchange(), serve);
        answered?;
        let body = String::from_utf8(connection.body().to_vec()).unwrap();
        Ok((connection.answer.status, body, connection.closes()))
    }

    #[tokio::test]
    async fn answers_are_read_whatever_their_framing_and_their_pieces() {
        for piece in [1, 7, 4096] {
            for (bytes, status, body, closes) in [
                (&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..], 200, "hello", false),
                (b"HTTP/1.1 204 No Content\r\n\r\n", 204, "", false),
                (
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\
                      connection: close\r\n\r\nhi",
                    200,
                    "hi",
                    true,
                ),
                (
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                      3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
                    200,
                    "abcde",
                    false,
                ),
                (b"HTTP/1.0 503 Busy\r\n\r\nuntil the end", 503, "until the end", true),
            ] {
                let seen = receive(bytes, piece).await.unwrap();
                assert_eq!(seen, (status, body.to_owned(), closes));
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_from_a_lost_connection() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: no\r\n\r\n"[..],
            b"nonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff0\r\n",
        ] {
            assert!(matches!(receive(bytes, 4096).await, Err(Broken::Protocol)));
        }
        for bytes in [&b""[..], b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"]
        {
            assert!(matches!(receive(bytes, 4096).await, Err(Broken::Lost(_))));
        }
    }

    #[tokio::test]
    async fn the_headers_that_matter_are_kept() {
        let (client, mut server) = tokio::io::duplex(4096);
        let mut connection = Connection::new(client);
        connection.request.push(b'x');
        let answer = b"HTTP/1.1 200 OK\r\nTerrace-Origin: far\r\nterrace-durability: committed\r\n\
            Terrace-Token: t1\r\nContent-Length: 0\r\n\r\n";
        server.write_all(answer).await.unwrap();
        connection.exchange().await.unwrap();
        let Answer { origin, durability, token, .. } = &connection.answer;
        assert_eq!(
            (&origin[..], &durability[..], &token[..]),
            (&b"far"[..], &b"committed"[..], &b"t1"[..])
        );
    }
}
