//! Accepts connections, serves each in a task of its own, and ends them in order.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulConnection;
use terrace_core::{Deadline, Error, ErrorKind, Result, Runtime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::app::App;
use super::connection::{Stage, Watched};
use super::refusals::Refusing;
use super::secure::connection_over_tls;
use super::{Limits, Service};

/// Connections that wait to be accepted; the kernel may allow fewer.
const BACKLOG: u32 = 4096;
/// How long accepting rests when the machine has no more file descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Where a service is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Life {
    Serving,
    /// Requests in flight end, no new ones begin.
    Draining,
    /// What is left is cut off.
    Over,
}

/// Listens on an address.
///
/// # Errors
/// `Unavailable` with a message that says what to do: the port is in use, needs more rights, or the
/// address is not one of this machine.
///
/// # Panics
/// Outside a tokio runtime.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    listen(address).map_err(|error| {
        let port = address.port();
        let message = match error.kind() {
            io::ErrorKind::AddrInUse => format!(
                "port {port} is in use on {}; stop the program that has it, or choose another port",
                address.ip()
            ),
            io::ErrorKind::PermissionDenied => {
                format!("port {port} needs more rights; choose one from 1024 on")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("{} is not an address of this machine; choose one that is", address.ip())
            }
            _ => format!("cannot listen on {address}; choose another address or port"),
        };
        Error::new(ErrorKind::Unavailable, message).during("listen").caused_by(error)
    })
}

/// Serves until `shutdown` ends, and for as long after that as it answers, while `/readyz` says no. Then takes no more connections, lets the requests in flight end
/// within [`Limits::drain_time`], and closes the rest. Answers how many connections it had to cut.
///
/// The store is not closed: that is for whoever built it, after this returns. Dropping the future
/// stops accepting at once and cuts every connection.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    shutdown: impl Future<Output = Duration>,
) -> usize {
    let app = Arc::new(App::new(service));
    // Every connection holds a slot, so that all slots being free means that all have ended.
    let total = app.limits.connections.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let slots = Arc::new(Semaphore::new(total));
    let (life, watcher) = watch::channel(Life::Serving);

    let accepting = {
        let (listener, app, slots) = (Arc::new(listener), Arc::clone(&app), Arc::clone(&slots));
        let all = (listener, Arc::clone(&app), slots, watcher);
        app.runtime.keep("http accept", move || {
            let (listener, app, slots, life) = all.clone();
            async move { accept(&listener, &app, &slots, &life).await }
        })
    };
    let delay = shutdown.await;
    app.draining.store(true, Ordering::Relaxed);
    app.runtime.sleep(delay).await;
    // Nobody else has the listener, which is closed with it.
    accepting.stop().await;
    life.send_replace(Life::Draining);
    let until = Deadline::at(app.runtime.now() + app.limits.drain_time);
    let all = u32::try_from(total).unwrap_or(u32::MAX);
    if app.runtime.within(until, slots.acquire_many(all)).await.is_some() {
        return 0;
    }
    let cut = total - slots.available_permits();
    tracing::warn!(connections = cut, "requests did not end in time and are cut off");
    life.send_replace(Life::Over);
    cut
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for the old connections' ports to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Never ends.
async fn accept(
    listener: &TcpListener,
    app: &Arc<App>,
    slots: &Arc<Semaphore>,
    life: &watch::Receiver<Life>,
) -> Result<()> {
    let limits = Arc::new(app.limits.clone());
    let mut failing = false;
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return Ok(()) };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "cannot accept connections; trying on (ulimit -n?)");
                }
                app.runtime.sleep(BACK_OFF).await;
                continue;
            }
        };
        if std::mem::replace(&mut failing, false) {
            tracing::info!("accepting connections again");
        }
        // Small answers leave at once; a socket that refuses is about to fail anyway.
        let _ = stream.set_nodelay(true);
        let watched = Watched::new(stream, app.runtime.clone(), Arc::clone(&limits));
        let (app, life) = (Arc::clone(app), life.clone());
        match app.tls.clone() {
            None => {
                let stage = watched.stage();
                let work = connection(watched, stage, Some(peer.ip()), Arc::clone(&app), life);
                begin(work, slot, &app.runtime);
            }
            Some(tls) => {
                let runtime = app.runtime.clone();
                let work = async move {
                    connection_over_tls(watched, &tls, Some(peer.ip()), app, life).await;
                };
                begin(work, slot, &runtime);
            }
        }
    }
}

/// Serves a connection in a task of its own, which holds a slot.
fn begin(
    work: impl Future<Output = ()> + Send + 'static,
    slot: OwnedSemaphorePermit,
    runtime: &Runtime,
) {
    let task = runtime.spawn("http connection", async move {
        work.await;
        drop(slot);
    });
    task.detach();
}

/// Failures of a connection that was gone before it was taken.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(
        error.kind(),
        E::ConnectionAborted | E::ConnectionReset | E::ConnectionRefused | E::Interrupted
    )
}

/// Serves HTTP/1.1 over a stream whose limits are kept by a [`Watched`] with this stage.
pub(super) async fn connection<S>(
    stream: S,
    stage: Arc<Stage>,
    peer: Option<IpAddr>,
    app: Arc<App>,
    life: watch::Receiver<Life>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        stage.busy();
        let (app, stage) = (Arc::clone(&app), Arc::clone(&stage));
        async move {
            let reply = app.answer(request, peer).await;
            stage.answered();
            Ok::<_, Infallible>(reply)
        }
    });
    let stream = Refusing::new(stream, Arc::clone(&stage), Arc::clone(&app));
    let connection = protocol(&app.limits).serve_connection(TokioIo::new(stream), service);
    drive(connection, &app, life).await;
}

/// Serves a connection to its end, which comes in order when the service drains.
pub(super) async fn drive(
    connection: impl GracefulConnection,
    app: &App,
    mut life: watch::Receiver<Life>,
) {
    let mut connection = pin!(connection);
    let mut over = life.clone();
    let ended = {
        let mut draining = pin!(life.wait_for(|life| *life >= Life::Draining));
        let mut registered = false;
        poll_fn(|context| {
            // Polling the watch takes a lock that all connections share. Once registered it wakes
            // this task, and a flag tells why.
            if !registered || app.draining.load(Ordering::Relaxed) {
                registered = true;
                if draining.as_mut().poll(context).is_ready() {
                    return Poll::Ready(false);
                }
            }
            connection.as_mut().poll(context).map(|_| true)
        })
        .await
    };
    if !ended {
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            _ = connection => {}
            _ = over.wait_for(|life| *life >= Life::Over) => {}
        }
    }
}

/// HTTP/1.1 as strict as the library has it. Its header timer is off: [`Watched`] has a better one.
/// A client that closes its sending side after its request gets the answer. So one that goes away
/// is not told from it, and its request is ended by its deadline.
/// The number of headers stays at the library's 100, which it keeps on the stack.
fn protocol(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    let buffer = (2 * limits.header_bytes + limits.uri_bytes).max(8 * 1024);
    builder.keep_alive(true).half_close(true).header_read_timeout(None).max_buf_size(buffer);
    builder
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::{StreamExt as _, stream};
    use http_body_util::combinators::UnsyncBoxBody;
    use http_body_util::{Either, StreamBody};
    use hyper::Response;
    use hyper::body::Frame;
    use std::sync::Mutex;
    use terrace_core::{BoxFuture, MemoryStore, Store};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    use super::*;
    use crate::http::call::Call;
    use crate::http::middleware::{Guards, Middleware, Next};
    use crate::http::reply::Answer;

    /// Answers every request with what comes out of a channel.
    #[derive(Debug)]
    struct Pieces(Mutex<Option<mpsc::Receiver<Bytes>>>);

    impl Middleware for Pieces {
        fn handle<'a>(&'a self, _: &'a mut Call, _: Next<'a>) -> BoxFuture<'a, Answer> {
            let pieces = self.0.lock().expect("no panic").take().expect("one request");
            let pieces = stream::unfold(pieces, async |mut pieces| {
                pieces.recv().await.map(|piece| (Ok::<_, Infallible>(Frame::data(piece)), pieces))
            });
            let body = UnsyncBoxBody::new(StreamBody::new(pieces.boxed()));
            Box::pin(async { Ok(Response::new(Either::Right(body))) })
        }
    }

    #[tokio::test]
    async fn a_body_streams_as_its_pieces_come() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let (send, pieces) = mpsc::channel(1);
        let pieces = Arc::new(Pieces(Mutex::new(Some(pieces))));
        let service = Service {
            name: "0-single-db",
            faces: Vec::new(),
            whole: Arc::new(store),
            guards: Guards::new(vec![pieces]),
            limits: Limits::default(),
            tls: None,
            runtime: Runtime::system(),
        };
        let app = Arc::new(App::new(service));
        let (mut client, server) = tokio::io::duplex(4096);
        let limits = Arc::new(app.limits.clone());
        let watched = Watched::new(server, app.runtime.clone(), limits);
        let (_life, watcher) = watch::channel(Life::Serving);
        let stage = watched.stage();
        let served = connection(watched, stage, None, app, watcher);
        let talk = async {
            client.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
            let mut seen = String::new();
            for (piece, until) in [("first", "5\r\nfirst\r\n"), ("second", "6\r\nsecond\r\n")] {
                // The one is read before the other is there.
                send.send(Bytes::from(piece)).await.expect("taken");
                while !seen.ends_with(until) {
                    seen.push(char::from(client.read_u8().await.expect("a byte")));
                }
            }
            drop(send);
            let mut end = [0; 5];
            client.read_exact(&mut end).await.expect("an end");
            assert!(seen.contains("transfer-encoding: chunked"), "{seen}");
            assert_eq!(&end, b"0\r\n\r\n");
            drop(client);
        };
        tokio::join!(served, talk);
    }
}
