//! HTTP/2 over TLS: the same answers, bounds on what one connection may ask for, and an orderly end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "clippy takes only test functions as tests, and real servers run in real time"
)]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value as Json, json};
use terrace::http::{Limits, Service};
use terrace_core::testkit::Scripted;
use terrace_core::{MemoryStore, Store};
use tokio::task::JoinHandle;

use super::server::{SOON, service};
use super::tls::{SecureServer, connect};

/// One connection of HTTP/2, and what drives it until it is closed.
struct Client {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Client {
    async fn of(secure: &SecureServer) -> Self {
        Self::with_window(secure, 65_535).await
    }

    /// One that takes so many bytes of an answer before it has read them.
    async fn with_window(secure: &SecureServer, window: u32) -> Self {
        let trusted = [secure.certificate.as_str()];
        let stream = connect(secure.server.address(), &trusted, b"h2").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut protocol = http2::Builder::new(TokioExecutor::new());
        protocol.initial_stream_window_size(window);
        let (sender, connection) = protocol.handshake(TokioIo::new(stream)).await.unwrap();
        Self { sender, driver: tokio::spawn(connection) }
    }

    fn send(&self, method: &str, path: &str, body: &str) -> JoinHandle<Response<Incoming>> {
        let request = Request::builder().method(method).uri(format!("https://localhost{path}"));
        let request = request.header("content-type", "application/json");
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let mut sender = self.sender.clone();
        tokio::spawn(async move { sender.send_request(request).await.unwrap() })
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Json) {
        whole(self.send(method, path, body).await.unwrap()).await
    }

    /// Waits until the server has ended the connection.
    async fn closed(self) {
        let _ = self.driver.await.unwrap();
    }
}

async fn whole(reply: Response<Incoming>) -> (u16, Json) {
    assert_eq!(reply.version(), Version::HTTP_2);
    let status = reply.status().as_u16();
    let body = reply.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

fn over(store: Arc<dyn Store>, limits: Limits) -> SecureServer {
    SecureServer::start(Service { limits, ..service(store) })
}

fn limited(limits: Limits) -> SecureServer {
    over(Arc::new(MemoryStore::default()), limits)
}

#[tokio::test]
async fn requests_of_http2_are_answered_as_others_are() {
    let secure = limited(Limits::default());
    let client = Client::of(&secure).await;
    let written = client.ask("POST", "/write", r#"{"key":"a","value":"one"}"#).await;
    assert_eq!((written.0, &written.1["success"]), (200, &json!(true)));
    assert_eq!(client.ask("GET", "/read/a", "").await.1["value"], "one");
    let (status, problem) = client.ask("GET", "/nothing", "").await;
    assert_eq!((status, &problem["type"]), (404, &json!("/docs#unknown-path")));
    assert_eq!(client.ask("POST", "/write", "{").await.0, 422);
    let long = format!("/read/{}", "x".repeat(9000));
    assert_eq!(client.ask("GET", &long, "").await.1["type"], "/docs#uri-too-long");
}

#[tokio::test]
async fn heads_are_bounded() {
    let secure = limited(Limits::default());
    let client = Client::of(&secure).await;
    for (bytes, told) in [(40_000, true), (200_000, false)] {
        let request = Request::get("https://localhost/livez").header("x-long", "x".repeat(bytes));
        let request = request.body(Full::<Bytes>::default()).unwrap();
        match client.sender.clone().send_request(request).await {
            Ok(reply) => {
                let (status, problem) = whole(reply).await;
                assert_eq!(status, 431);
                assert_eq!(told, problem["type"] == "/docs#headers-too-large", "{problem}");
            }
            // What the server has announced not to take is not even sent.
            Err(error) => assert!(!told, "{error}"),
        }
    }
}

#[tokio::test]
async fn requests_beyond_those_that_one_connection_may_have_wait() {
    let (store, mut hand) = Scripted::new();
    let secure = over(store, Limits { streams: 2, ..Limits::default() });
    let client = Client::of(&secure).await;
    // The client has heard of the limit.
    assert_eq!(client.ask("GET", "/livez", "").await.0, 200);
    let held = [client.send("GET", "/read/a", ""), client.send("GET", "/read/b", "")];
    let calls = [hand.read().await, hand.read().await];
    let third = client.send("GET", "/read/c", "");
    let others = Client::of(&secure).await;
    for _ in 0..20 {
        assert_eq!(others.ask("GET", "/livez", "").await.0, 200);
    }
    assert!(hand.read().now_or_never().is_none(), "a third request is begun");
    let [first, second] = calls;
    first.found(&[]);
    hand.read().await.found(&[]);
    second.found(&[]);
    for reply in held.into_iter().chain([third]) {
        assert_eq!(reply.await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn stopping_lets_requests_of_http2_end() {
    let (store, mut hand) = Scripted::new();
    let mut secure = over(store, Limits::default());
    let address = secure.server.address();
    let (idle, busy) = (Client::of(&secure).await, Client::of(&secure).await);
    assert_eq!(idle.ask("GET", "/livez", "").await.0, 200);
    let held = busy.send("GET", "/read/a", "");
    let call = hand.read().await;
    secure.server.stop();
    idle.closed().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert!(!busy.driver.is_finished(), "its request is still under way");
    call.found(&[("a", "one", 7)]);
    assert_eq!(whole(held.await.unwrap()).await.1["value"], "one");
    busy.closed().await;
    assert_eq!(secure.server.ended().await, 0);
}

#[tokio::test]
async fn stopping_cuts_requests_of_http2_that_do_not_end() {
    let (store, mut hand) = Scripted::new();
    let mut secure = over(store, Limits { drain_time: SOON, ..Limits::default() });
    let busy = Client::of(&secure).await;
    let mut sender = busy.sender.clone();
    let request = Request::get("https://localhost/read/a").body(Full::<Bytes>::default()).unwrap();
    let held = tokio::spawn(async move { sender.send_request(request).await });
    let mut call = hand.read().await;
    secure.server.stop();
    assert_eq!(secure.server.ended().await, 1);
    busy.closed().await;
    call.abandoned().await;
    assert!(held.await.unwrap().is_err());
}

/// A connection is idle when no request of it is being answered, whatever else comes.
#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let (store, mut hand) = Scripted::new();
    let secure = over(store, Limits { idle_time: SOON, ..Limits::default() });
    let busy = Client::of(&secure).await;
    let held = busy.send("GET", "/read/a", "");
    let call = hand.read().await;
    // Three times as long as a connection may be idle.
    for _ in 0..3 {
        let idle = Client::of(&secure).await;
        assert_eq!(idle.ask("GET", "/livez", "").await.0, 200);
        idle.closed().await;
    }
    call.found(&[("a", "one", 7)]);
    assert_eq!(whole(held.await.unwrap()).await.1["value"], "one");
    busy.closed().await;
}

#[tokio::test]
async fn a_connection_without_a_request_ends_as_one_whose_head_trickles() {
    let secure = limited(Limits { header_time: SOON, ..Limits::default() });
    Client::of(&secure).await.closed().await;
}

#[tokio::test]
async fn a_client_that_does_not_fetch_its_answers_is_cut_off() {
    let secure = limited(Limits { idle_time: SOON, ..Limits::default() });
    let body = json!({"key": "a", "value": "x".repeat(100_000)}).to_string();
    let client = Client::with_window(&secure, 1024).await;
    assert_eq!(client.ask("POST", "/write", &body).await.0, 200);
    let reply = client.send("GET", "/read/a", "").await.unwrap();
    assert_eq!(reply.status(), 200);
    client.closed().await;
    assert!(reply.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_answer_that_is_not_fetched_is_reset_whatever_else_is_asked() {
    // Before anything of it was taken, and after a part was.
    for window in [0, 1024] {
        let limits = Limits { streams: 1, write_stall_time: SOON, ..Limits::default() };
        let secure = limited(limits);
        let body = json!({"key": "a", "value": "x".repeat(100_000)}).to_string();
        assert_eq!(Client::of(&secure).await.ask("POST", "/write", &body).await.0, 200);
        let client = Client::with_window(&secure, window).await;
        let mut held = Vec::new();
        // The second one finds room when the first is reset, and so on.
        for _ in 0..3 {
            held.push(client.send("GET", "/read/a", "").await.unwrap());
        }
        for reply in held.drain(..2) {
            assert_eq!(reply.status(), 200);
            assert!(reply.into_body().collect().await.is_err());
        }
        assert!(!client.driver.is_finished(), "the connection goes on");
    }
}

#[tokio::test]
async fn an_answer_to_head_has_no_body() {
    let secure = limited(Limits::default());
    let client = Client::of(&secure).await;
    let whole = client.send("GET", "/livez", "").await.unwrap();
    let head = client.send("HEAD", "/livez", "").await.unwrap();
    let length = |reply: &Response<Incoming>| reply.headers()["content-length"].clone();
    assert_eq!(length(&whole), length(&head));
    assert_eq!(head.into_body().collect().await.unwrap().to_bytes(), "");
}
