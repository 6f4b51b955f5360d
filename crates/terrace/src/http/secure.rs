//! Connections over TLS: the handshake, then HTTP/1.1 as everywhere, or HTTP/2.
//!
//! HTTP/2 is spoken over TLS alone, where the handshake names it. Without TLS the version would have to be
//! guessed from the first bytes of every connection, which would cost those of HTTP/1.1 something.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::Method;
use hyper::body::Body as _;
use hyper::header::CONTENT_LENGTH;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::app::App;
use super::connection::{Stage, Watched};
use super::fetched::{Fetched, while_fetched};
use super::reply::{Reply, full};
use super::server::{Life, connection, drive};
use super::tls::{HTTP_2, Tls};

/// Serves one connection.
///
/// Its limits are kept beneath TLS, on what the network sends: from the first byte of the handshake to the
/// end of the first head is one wait for a head.
pub(super) async fn connection_over_tls(
    stream: Watched<TcpStream>,
    tls: &Tls,
    peer: Option<IpAddr>,
    app: Arc<App>,
    mut life: watch::Receiver<Life>,
) {
    let stage = stream.stage();
    let stream = tokio::select! {
        biased;
        stream = tls.acceptor().accept(stream) => stream,
        // Who has not asked for anything by now is not waited for.
        _ = life.wait_for(|life| *life >= Life::Draining) => return,
    };
    match stream {
        Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(HTTP_2) => {
            connection_of_http2(stream, stage, peer, app, life).await;
        }
        Ok(stream) => connection(stream, stage, peer, app, life).await,
        // Whoever scans the port causes it, too.
        Err(error) => tracing::debug!(%error, ?peer, "no connection over TLS"),
    }
}

async fn connection_of_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    stage: Arc<Stage>,
    peer: Option<IpAddr>,
    app: Arc<App>,
    life: watch::Receiver<Life>,
) {
    let service = service_fn(|request| {
        let (open, app) = (stage.opens(), Arc::clone(&app));
        let is_head = request.method() == Method::HEAD;
        async move {
            let mut reply = app.answer(request, peer).await;
            drop(open);
            if is_head {
                leave_out_body(&mut reply);
            }
            Ok::<_, Infallible>(reply.map(Fetched::new))
        }
    });
    let protocol = protocol(&app);
    drive(protocol.serve_connection(TokioIo::new(stream), service), &app, life).await;
}

/// What the library does for HTTP/1.1 alone: the answer to HEAD is that to GET without the body.
fn leave_out_body(reply: &mut Reply) {
    if let Some(length) = reply.body().size_hint().exact() {
        reply.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
    }
    *reply.body_mut() = full("");
}

/// HTTP/2 as strict as the library has it: it bounds continued heads, and requests that are taken back.
fn protocol(app: &Arc<App>) -> http2::Builder<Tasks> {
    let limits = &app.limits;
    let mut builder = http2::Builder::new(Tasks(Arc::clone(app)));
    let heads = 2 * limits.header_bytes + limits.uri_bytes;
    builder.max_concurrent_streams(limits.streams);
    builder.max_header_list_size(u32::try_from(heads).unwrap_or(u32::MAX));
    builder
}

/// Runs each request of a connection in a task of its own, until its answer was fetched or is given up.
#[derive(Clone)]
struct Tasks(Arc<App>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, request: F) {
        let (runtime, limit) = (self.0.runtime.clone(), self.0.limits.write_stall_time);
        let work = while_fetched(request, limit, runtime);
        self.0.runtime.spawn("http request", work).detach();
    }
}
