//! Connections: limits on their time and number, pipelining, and an orderly end.

use std::time::Duration;

use serde_json::json;
use terrace::http::{Limits, Service, bind};
use terrace_core::testkit::Scripted;

use super::server::{SOON, Server, service};

#[tokio::test]
async fn a_head_that_trickles_is_cut_off() {
    let limits = Limits { header_time: SOON, ..Limits::default() };
    let server = Server::limited(limits);
    let mut silent = server.connect().await;
    assert_eq!(silent.closed().await, b"");
    let mut trickling = server.connect().await;
    trickling.write("GET /read/a HTTP/1.1\r\nx-").await;
    assert_eq!(trickling.closed().await, b"");
    // Also when the first request on the connection was a good one.
    let mut second = server.connect().await;
    second.request("GET", "/livez", &[], "").await;
    assert_eq!(second.reply_to("GET").await.status, 200);
    second.write("GET /re").await;
    assert_eq!(second.closed().await, b"");
}

#[tokio::test]
async fn an_idle_connection_outlives_the_limit_on_heads() {
    let limits = Limits { header_time: SOON, idle_time: 3 * SOON, ..Limits::default() };
    let server = Server::limited(limits);
    let mut idle = server.connect().await;
    idle.request("GET", "/livez", &[], "").await;
    idle.reply_to("GET").await;
    // A connection opened now and left silent is closed first.
    let mut silent = server.connect().await;
    silent.closed().await;
    idle.request("GET", "/livez", &[], "").await;
    assert_eq!(idle.reply_to("GET").await.status, 200);
    assert_eq!(idle.closed().await, b"");
}

#[tokio::test]
async fn a_body_that_trickles_is_answered_408_and_cut_off() {
    let limits = Limits { body_time: SOON, ..Limits::default() };
    let server = Server::limited(limits);
    let mut client = server.connect().await;
    let headers = [("content-type", "application/json"), ("content-length", "100")];
    client.request("POST", "/write", &headers, "").await;
    client.write("{\"key\"").await;
    client.reply_to("POST").await.problem(408, "body-timeout");
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    // Whatever ends within an hour ends by the limit on stalls, and is not cut.
    let drain_time = Duration::from_secs(3600);
    let limits = Limits { write_stall_time: SOON, drain_time, ..Limits::default() };
    let mut server = Server::limited(limits);
    let value = json!({"key": "a", "value": "x".repeat(1_000_000)});
    server.send("POST", "/write", &value).await;
    let mut greedy = server.connect().await;
    // More than the socket's buffers hold, asked for and not read.
    for _ in 0..30 {
        greedy.request("GET", "/read/a", &[], "").await;
    }
    assert_eq!(greedy.reply_to("GET").await.status, 200);
    server.stop();
    assert_eq!(server.ended().await, 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut client = server.connect().await;
    let body = r#"{"key":"a","value":"one"}"#;
    let write = format!(
        "POST /write HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let read = "GET /read/a HTTP/1.1\r\nhost: t\r\n\r\n";
    let head = "HEAD /read/a HTTP/1.1\r\nhost: t\r\n\r\n";
    client.write(format!("{read}{write}{read}{head}{read}")).await;
    assert_eq!(client.reply_to("GET").await.json()["success"], false);
    assert_eq!(client.reply_to("POST").await.json()["success"], true);
    assert_eq!(client.reply_to("GET").await.json()["value"], "one");
    assert_eq!(client.reply_to("HEAD").await.status, 200);
    assert_eq!(client.reply_to("GET").await.json()["value"], "one");
}

#[tokio::test]
async fn chunked_bodies_are_read_whole() {
    let server = Server::start();
    let mut client = server.connect().await;
    let headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")];
    client.request("POST", "/write", &headers, "").await;
    for part in ["{\"key\":", "\"a\",\"va", "lue\":\"one\"}"] {
        client.write(format!("{:x}\r\n{part}\r\n", part.len())).await;
    }
    client.write("0\r\n\r\n").await;
    assert_eq!(client.reply_to("POST").await.status, 200);
    assert_eq!(server.get("/read/a").await.json()["value"], "one");
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_a_place() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let server = Server::limited(limits);
    let mut first = server.connect().await;
    first.request("GET", "/livez", &[], "").await;
    first.reply_to("GET").await;
    let mut second = server.connect().await;
    second.request("GET", "/livez", &[], "").await;
    drop(first);
    assert_eq!(second.reply_to("GET").await.status, 200);
}

#[tokio::test]
async fn stopping_lets_requests_in_flight_end() {
    let (store, mut hand) = Scripted::new();
    let mut server = Server::over(store);
    let address = server.address();
    let mut idle = server.connect().await;
    idle.request("GET", "/livez", &[], "").await;
    idle.reply_to("GET").await;
    let mut busy = server.connect().await;
    busy.request("GET", "/read/a", &[], "").await;
    let call = hand.read().await;
    server.stop();
    assert_eq!(idle.closed().await, b"");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    call.found(&[("a", "one", 7)]);
    let reply = busy.reply_to("GET").await;
    assert_eq!(reply.json()["value"], "one");
    assert_eq!(reply.header("connection"), Some("close"));
    assert_eq!(busy.closed().await, b"");
    assert_eq!(server.ended().await, 0);
}

#[tokio::test]
async fn stopping_cuts_what_does_not_end() {
    let (store, mut hand) = Scripted::new();
    let limits = Limits { drain_time: SOON, ..Limits::default() };
    let mut server = Server::of(Service { limits, ..service(store) });
    let mut busy = server.connect().await;
    busy.request("GET", "/read/a", &[], "").await;
    let mut call = hand.read().await;
    server.stop();
    assert_eq!(server.ended().await, 1);
    assert_eq!(busy.closed().await, b"");
    call.abandoned().await;
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_the_answer() {
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    let mut client = server.connect().await;
    client.request("GET", "/read/a", &[], "").await;
    client.ends_sending().await;
    let call = hand.read().await;
    call.found(&[("a", "one", 7)]);
    assert_eq!(client.reply_to("GET").await.json()["value"], "one");
    assert_eq!(client.closed().await, b"");
    let mut client = server.connect().await;
    let body = r#"{"key":"a","value":"one"}"#;
    client.request("POST", "/write", &[("content-type", "application/json")], body).await;
    client.ends_sending().await;
    hand.write().await.answer(Err(terrace_core::Error::invalid("seen")));
    client.reply_to("POST").await.problem(422, "invalid-input");
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_told_at_once() {
    let server = Server::start();
    let mut client = server.connect().await;
    let headers = [("content-type", "application/json"), ("content-length", "100")];
    client.request("POST", "/write", &headers, "").await;
    client.write("{\"key\"").await;
    client.ends_sending().await;
    assert!(client.reply_to("POST").await.problem(422, "invalid-input").contains("broke off"));
}

#[tokio::test]
async fn what_is_no_request_gets_a_problem_document() {
    let server = Server::start();
    let many = "x-many: 1\r\n".repeat(150);
    let long = format!("x-long: {}\r\n", "x".repeat(200_000));
    let cases = [
        ("nonsense\r\n\r\n".to_owned(), 400, "malformed-request"),
        ("GET /a b HTTP/1.1\r\nhost: t\r\n\r\n".to_owned(), 400, "malformed-request"),
        ("GET / HTTP/7.7\r\nhost: t\r\n\r\n".to_owned(), 400, "malformed-request"),
        ("GET / HTTP/1.1\r\nhost: t\r\nno colon\r\n\r\n".to_owned(), 400, "malformed-request"),
        (
            "POST /write HTTP/1.1\r\nhost: t\r\ncontent-length: x\r\n\r\n".to_owned(),
            400,
            "malformed-request",
        ),
        (format!("GET / HTTP/1.1\r\nhost: t\r\n{many}\r\n"), 431, "headers-too-large"),
        (format!("GET / HTTP/1.1\r\nhost: t\r\n{long}\r\n"), 431, "headers-too-large"),
        (format!("GET /{} HTTP/1.1\r\nhost: t\r\n\r\n", "x".repeat(70_000)), 414, "uri-too-long"),
    ];
    for (request, status, slug) in cases {
        // Alone, and after a good request on the same connection.
        for before in [false, true] {
            let mut client = server.connect().await;
            if before {
                client.request("GET", "/livez", &[], "").await;
                assert_eq!(client.reply_to("GET").await.status, 200);
            }
            client.write(&request).await;
            let reply = client.reply_to("GET").await;
            reply.problem(status, slug);
            assert_eq!(reply.header("connection"), Some("close"));
            assert!(reply.header("date").is_some());
            assert_eq!(client.closed().await, b"");
        }
    }
    // The answers before it are not touched.
    let mut client = server.connect().await;
    client.write("GET /livez HTTP/1.1\r\nhost: t\r\n\r\nnonsense\r\n\r\n").await;
    assert_eq!(client.reply_to("GET").await.status, 200);
    client.reply_to("GET").await.problem(400, "malformed-request");
}

#[tokio::test]
async fn a_request_names_one_host() {
    let server = Server::start();
    for hosts in ["", "host: a\r\nhost: a\r\n"] {
        let mut client = server.connect().await;
        client.write(format!("GET /livez HTTP/1.1\r\n{hosts}\r\n")).await;
        let detail = client.reply_to("GET").await.problem(400, "malformed-request");
        assert!(detail.contains("Host"), "{detail}");
    }
    let mut old = server.connect().await;
    old.write("GET /livez HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.reply_to("GET").await.status, 200);
}

#[tokio::test]
async fn a_port_in_use_is_told() {
    let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
    let error = bind(listener.local_addr().unwrap()).unwrap_err();
    assert!(error.message().contains("in use") && error.message().contains("another port"));
}
