//! A proxy before an echo server: each control does what it says, and the evidence shows it.
#![expect(clippy::disallowed_methods, reason = "sockets run in real time")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use terrace_lab::{Direction, Distance, Evidence, FaultProxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server that sends back `mark` and then what it gets.
async fn echo(mark: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                to.write_all(&[mark]).await.expect("a write");
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn connected(proxy: &FaultProxy) -> TcpStream {
    let mut socket = TcpStream::connect(proxy.address()).await.expect("a connection");
    assert_eq!(socket.read_u8().await.expect("the mark"), b'!');
    socket
}

async fn send(socket: &mut TcpStream, text: &[u8]) {
    socket.write_all(text).await.expect("a write");
}

async fn assert_gets(socket: &mut TcpStream, text: &[u8]) {
    let mut got = vec![0; text.len()];
    socket.read_exact(&mut got).await.expect("an answer");
    assert_eq!(got, text);
}

async fn assert_is_reset(socket: &mut TcpStream) {
    socket.read_u8().await.expect_err("the connection is reset");
}

/// Waits until the evidence shows it.
async fn shows(proxy: &FaultProxy, is_so: impl Fn(&Evidence) -> bool) {
    while !is_so(&proxy.evidence()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn bytes_pass_and_are_counted_until_both_ends_close() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    send(&mut socket, b"hello").await;
    assert_gets(&mut socket, b"hello").await;
    socket.shutdown().await.expect("the end");
    assert_eq!(socket.read(&mut [0]).await.expect("the end"), 0, "the end comes back, too");
    let seen = proxy.evidence();
    assert_eq!((seen.accepted, seen.request_bytes, seen.response_bytes), (1, 5, 6));
    assert_eq!((seen.reset, seen.dropped_bytes, seen.held_bytes), (0, 0, 0));
}

#[tokio::test]
async fn a_cut_resets_what_is_there_and_what_comes() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    proxy.cut();
    assert_is_reset(&mut socket).await;
    if let Ok(mut socket) = TcpStream::connect(proxy.address()).await {
        assert_is_reset(&mut socket).await;
    }
    let seen = proxy.evidence();
    assert_eq!((seen.accepted, seen.reset, seen.refused), (1, 1, 1));
    proxy.pass();
    connected(&proxy).await;
}

#[tokio::test]
async fn a_reset_ends_what_is_there_alone() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    proxy.reset();
    assert_is_reset(&mut socket).await;
    connected(&proxy).await;
    assert_eq!(proxy.evidence().reset, 1);
}

#[tokio::test]
async fn held_bytes_arrive_in_the_end() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    proxy.hold(Direction::Responses);
    send(&mut socket, b"hello").await;
    shows(&proxy, |seen| seen.held_bytes == 5).await;
    assert_eq!((proxy.evidence().request_bytes, proxy.evidence().response_bytes), (5, 1));
    proxy.pass();
    assert_gets(&mut socket, b"hello").await;
    assert_eq!(proxy.evidence().dropped_bytes, 0);
}

#[tokio::test]
async fn dropped_bytes_are_gone_and_their_connection_with_them() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    proxy.blackhole(Direction::Responses);
    send(&mut socket, b"hello").await;
    shows(&proxy, |seen| seen.dropped_bytes == 5).await;
    assert_eq!(proxy.evidence().request_bytes, 5, "requests still arrive");
    proxy.pass();
    assert_is_reset(&mut socket).await;
    connected(&proxy).await;
}

#[tokio::test]
async fn a_fault_may_concern_only_connections_that_sent_something() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let (mut first, mut second) = (connected(&proxy).await, connected(&proxy).await);
    send(&mut first, b"SUBSCRIBE x").await;
    assert_gets(&mut first, b"SUBSCRIBE x").await;
    proxy.only(b"SUBSCRIBE");
    proxy.hold(Direction::Responses);
    send(&mut first, b"hello").await;
    shows(&proxy, |seen| seen.held_bytes == 5).await;
    send(&mut second, b"hello").await;
    assert_gets(&mut second, b"hello").await;
    proxy.pass();
    assert_gets(&mut first, b"hello").await;
}

#[tokio::test]
async fn a_blackhole_accepts_and_is_silent() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    proxy.blackhole(Direction::Both);
    let mut socket = TcpStream::connect(proxy.address()).await.expect("it accepts");
    send(&mut socket, b"hello").await;
    shows(&proxy, |seen| seen.dropped_bytes == 6).await;
    assert_eq!((proxy.evidence().request_bytes, proxy.evidence().response_bytes), (0, 0));
}

#[tokio::test]
async fn a_delay_is_of_one_direction_and_of_each_byte() {
    const DELAY: Duration = Duration::from_millis(50);
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    proxy.delay(Direction::Requests, DELAY);
    let started = Instant::now();
    // Sent together, delayed together: a delay takes no throughput.
    for _ in 0..20 {
        send(&mut socket, b"x").await;
        tokio::task::yield_now().await;
    }
    assert_gets(&mut socket, &[b'x'; 20]).await;
    let took = started.elapsed();
    assert!(took >= DELAY && took < DELAY * 10, "{took:?}");
}

#[tokio::test]
async fn another_upstream_takes_over() {
    let proxy = FaultProxy::start(echo(b'!').await).await.expect("a proxy");
    let mut socket = connected(&proxy).await;
    proxy.retarget(echo(b'?').await);
    assert_is_reset(&mut socket).await;
    let mut socket = TcpStream::connect(proxy.address()).await.expect("a connection");
    assert_eq!(socket.read_u8().await.expect("the mark"), b'?');
}

#[tokio::test]
async fn a_url_of_the_upstream_becomes_one_of_the_proxy() {
    let proxy = FaultProxy::to_port(5432).await.expect("a proxy");
    let through = proxy.url("postgres://terrace:secret@127.0.0.1:5432/terrace");
    assert_eq!(through, format!("postgres://terrace:secret@{}/terrace", proxy.address()));
    let mut socket = TcpStream::connect(proxy.address()).await.expect("a connection");
    assert_is_reset(&mut socket).await;
    assert_eq!(proxy.evidence().unreachable, 1);
}

#[tokio::test]
async fn a_distance_is_waited_for_at_each_question_and_at_the_connection() {
    const ROUND_TRIP: Duration = Duration::from_micros(700);
    let server = terrace_lab::testing::redis();
    let distance = Distance::begin().expect("a distance");
    let far = distance.to(server, &server.url(), ROUND_TRIP).await.expect("a URL");
    let near = distance.to(server, &server.url(), Duration::ZERO).await.expect("a URL");
    assert_eq!(near, server.url());
    let address = far.rsplit_once('@').expect("an address").1;
    let begun = Instant::now();
    let mut socket = TcpStream::connect(address.trim_end_matches('/')).await.expect("a connection");
    for questions in 1..=5 {
        send(&mut socket, b"PING\r\n").await;
        assert_gets(&mut socket, b"-NOAUTH").await;
        let mut rest = [0; 256];
        let read = socket.read(&mut rest).await.expect("the rest");
        assert!(rest[..read].ends_with(b"\r\n"));
        let taken = begun.elapsed();
        assert!(taken >= ROUND_TRIP * (questions + 1), "{taken:?} for {questions} questions");
    }
}
