//! What is no request gets a problem document, too.
//!
//! The HTTP library answers a head that it cannot read by itself, with a status and no body, and has
//! no place to say more. So the stream beneath it puts the whole answer where that one would go. No
//! request is under way then, which is how such an answer is told from all others.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use hyper::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::app::App;
use super::body::DISCARDED_BYTES;
use super::connection::Stage;
use super::problem::{Kind, Problem};

/// A stream whose answers of the HTTP library are replaced.
pub(crate) struct Refusing<S> {
    stream: S,
    stage: Arc<Stage>,
    app: Arc<App>,
    /// What is left of an answer of our own, which is the last one of the connection.
    own: Option<Bytes>,
    discarded: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Refusing<S> {
    /// Over a stream that tells the stage of its connection.
    pub(crate) fn new(stream: S, stage: Arc<Stage>, app: Arc<App>) -> Self {
        Self { stream, stage, app, own: None, discarded: 0 }
    }

    /// Whether these bytes go into an answer of our own. What streams on in pieces begins with the
    /// length of a piece.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.own.is_none() && !self.stage.has_request() {
            self.own = status(bytes).and_then(problem).map(|problem| self.app.refusal(problem));
        }
        self.own.is_some()
    }

    fn poll_own(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(own) = self.own.as_mut().filter(|own| !own.is_empty()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, own))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            own.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what the client still sends: closing a connection with unread bytes resets it, and the
    /// reset can overtake the answer. The limit on heads ends it.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 4096];
        while self.discarded < DISCARDED_BYTES {
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.discarded += buffer.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

/// The status of an answer that begins here and says that something is wrong with the request.
fn status(bytes: &[u8]) -> Option<StatusCode> {
    let status = bytes.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    StatusCode::from_bytes(status).ok().filter(StatusCode::is_client_error)
}

fn problem(status: StatusCode) -> Option<Problem> {
    let (kind, detail) = match status {
        StatusCode::BAD_REQUEST => (
            Kind::MalformedRequest,
            "this is no request of HTTP/1.1: check its first line and that each header is \
             `name: value`",
        ),
        StatusCode::URI_TOO_LONG => (Kind::UriTooLong, "the path and query are too long"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            (Kind::HeadersTooLarge, "the headers are too many or too long; send fewer")
        }
        _ => return None,
    };
    Some(Problem::new(kind, detail))
}

impl<S: AsyncRead + Unpin> AsyncRead for Refusing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Refusing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            ready!(self.poll_own(context))?;
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.replaces(slices.first().map_or(&[], |slice| slice)) {
            ready!(self.poll_own(context))?;
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        if self.own.is_some() {
            ready!(self.poll_discard(context));
        }
        Poll::Ready(Ok(()))
    }
}
