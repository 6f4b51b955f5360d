//! Bodies that no client should send: whatever comes, the answer is one of the API.

use std::sync::Arc;

use terrace_core::MemoryStore;
use terrace_core::testkit::{bytes_like, fuzzed};

use super::server::Server;

const LIKE: &[&str] = &[
    r#"{"key":"a","value":"b"}"#,
    r#"{"value":"\u00e9\ud83d\ude00"}"#,
    r#"{"keys":["a","b","a"]}"#,
    r#"{"writes":[{"op":"put","key":"a","value":"1","if_version":7},{"op":"delete","key":"b"}]}"#,
];

const TARGETS: [(&str, &str); 5] = [
    ("POST", "/write"),
    ("PUT", "/write"),
    ("PUT", "/v1/records/a"),
    ("POST", "/v1/batch/read"),
    ("POST", "/v1/batch/write"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzzed_bodies_are_taken_or_refused() {
    let server = Server::level(7, "7-cqrs", Arc::new(MemoryStore::default()));
    let handle = tokio::runtime::Handle::current();
    let tried = tokio::task::spawn_blocking(move || {
        fuzzed(&bytes_like(LIKE), |body| {
            handle.block_on(async {
                let mut client = server.connect().await;
                for (method, path) in TARGETS {
                    let head = format!(
                        "{method} {path} HTTP/1.1\r\nhost: terrace\r\ncontent-type: application/json\r\n\
                         content-length: {}\r\n\r\n",
                        body.len()
                    );
                    client.write([head.as_bytes(), &body].concat()).await;
                    let reply = client.reply_to(method).await;
                    assert!(matches!(reply.status, 200 | 201 | 422), "{method} {path}: {}", reply.text());
                }
            });
        })
    });
    println!("{} inputs were tried", tried.await.unwrap());
}
