//! `/v1/records`.

use serde_json::json;
use terrace_core::testkit::Scripted;

use super::server::{Reply, Server};

async fn put(server: &Server, key: &str, headers: &[(&str, &str)], value: &str) -> Reply {
    let path = format!("/v1/records/{key}");
    server.send_with("PUT", &path, headers, &json!({"value": value})).await
}

async fn with(server: &Server, method: &str, headers: &[(&str, &str)]) -> Reply {
    server.call(method, "/v1/records/a", headers, "").await
}

#[tokio::test]
async fn a_record_is_created_read_replaced_and_removed() {
    let server = Server::start();
    server.get("/v1/records/a").await.problem(404, "record-missing");
    let created = put(&server, "a", &[], "one").await;
    assert_eq!(created.status, 201);
    assert_eq!(created.fields(), ["key", "version", "durability", "token"]);
    assert_eq!(created.header("etag"), Some("\"1\""));
    assert_eq!(created.header("terrace-durability"), Some("accepted"));
    assert_eq!(created.json()["token"], created.header("terrace-token").unwrap());

    let read = server.get("/v1/records/a").await;
    assert_eq!(read.fields(), ["key", "value", "version", "created_at", "updated_at"]);
    assert_eq!(read.header("etag"), Some("\"1\""));
    assert_eq!(read.header("age"), Some("0"));
    assert_eq!(read.header("cache-control"), Some("no-cache"));
    assert!(read.header("last-modified").unwrap().ends_with(" GMT"));
    assert!(read.json()["created_at"].as_str().unwrap().ends_with('Z'));

    assert_eq!(put(&server, "a", &[], "two").await.status, 200);
    let removed = with(&server, "DELETE", &[]).await;
    assert_eq!((removed.status, removed.body.len()), (204, 0));
    assert_eq!(removed.header("terrace-durability"), Some("accepted"));
    with(&server, "DELETE", &[]).await.problem(404, "record-missing");
}

#[tokio::test]
async fn head_answers_the_headers_alone() {
    let server = Server::start();
    put(&server, "a", &[], "one").await;
    let get = server.get("/v1/records/a").await;
    let mut client = server.connect().await;
    // The next answer on the same connection shows that no body followed.
    for _ in 0..2 {
        client.request("HEAD", "/v1/records/a", &[], "").await;
        let head = client.reply_to("HEAD").await;
        assert_eq!(head.status, 200);
        for name in ["etag", "content-length", "last-modified", "content-type"] {
            assert_eq!(head.header(name), get.header(name), "{name}");
        }
    }
    client.request("HEAD", "/v1/records/none", &[], "").await;
    assert_eq!(client.reply_to("HEAD").await.status, 404);
}

#[tokio::test]
async fn a_client_that_has_the_version_gets_304() {
    let server = Server::start();
    put(&server, "a", &[], "one").await;
    for tags in ["\"1\"", "W/\"1\"", "\"9\", \"1\"", "*"] {
        let reply = with(&server, "GET", &[("if-none-match", tags)]).await;
        assert_eq!((reply.status, reply.body.len()), (304, 0), "{tags}");
        assert_eq!(reply.header("etag"), Some("\"1\""));
    }
    assert_eq!(with(&server, "GET", &[("if-none-match", "\"2\"")]).await.status, 200);
    assert_eq!(with(&server, "GET", &[("if-match", "\"1\"")]).await.status, 200);
    with(&server, "GET", &[("if-match", "\"2\"")]).await.problem(412, "precondition-failed");
}

#[tokio::test]
async fn writes_keep_their_preconditions() {
    let server = Server::start();
    let (none_match, matches) = ("if-none-match", "if-match");
    put(&server, "a", &[(matches, "*")], "x").await.problem(412, "precondition-failed");
    put(&server, "a", &[(matches, "\"1\"")], "x").await.problem(412, "precondition-failed");
    assert_eq!(put(&server, "a", &[(none_match, "*")], "one").await.status, 201);
    let again = put(&server, "a", &[(none_match, "*")], "x").await;
    assert!(again.problem(412, "precondition-failed").contains("version 1"));
    assert_eq!(again.header("etag"), Some("\"1\""));
    assert_eq!(put(&server, "a", &[(matches, "\"1\"")], "two").await.status, 200);
    put(&server, "a", &[(matches, "\"1\"")], "x").await.problem(412, "precondition-failed");
    assert_eq!(put(&server, "a", &[(matches, "\"1\", \"2\"")], "three").await.status, 200);
    assert_eq!(put(&server, "a", &[(matches, "*")], "four").await.status, 200);
    // A weak tag never matches, and a client's own tag matches nothing.
    put(&server, "a", &[(matches, "W/\"4\"")], "x").await.problem(412, "precondition-failed");
    put(&server, "a", &[(matches, "\"mine\"")], "x").await.problem(412, "precondition-failed");
    put(&server, "a", &[(none_match, "\"4\"")], "x").await.problem(412, "precondition-failed");
    assert_eq!(put(&server, "a", &[(none_match, "\"3\"")], "five").await.status, 200);
    put(&server, "a", &[(matches, "4")], "x").await.problem(422, "invalid-input");
    with(&server, "DELETE", &[(matches, "\"4\"")]).await.problem(412, "precondition-failed");
    assert_eq!(with(&server, "DELETE", &[(matches, "\"5\"")]).await.status, 204);
}

#[tokio::test]
async fn a_write_that_comes_in_between_is_not_overwritten() {
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    let (reply, ()) =
        tokio::join!(put(&server, "a", &[("if-match", "\"6\", \"7\"")], "x"), async {
            hand.read().await.found(&[("a", "one", 7)]);
            let call = hand.write().await;
            let pinned = terrace_core::Precondition::Version(terrace_core::Version::new(7));
            assert_eq!(call.batch[0].precondition, pinned);
            call.answer(Ok(vec![failed_at(8)]));
        });
    assert!(reply.problem(412, "precondition-failed").contains("version 8"));
}

#[tokio::test]
async fn a_lost_race_is_no_failed_condition() {
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    for (headers, tries) in [(&[][..], 4), (&[("idempotency-key", "order-7")], 1)] {
        let headers = [&[("if-match", "*")], headers].concat();
        let (reply, ()) = tokio::join!(put(&server, "a", &headers, "x"), async {
            for version in 1..=tries {
                hand.read().await.found(&[("a", "one", version)]);
                hand.write().await.answer(Ok(vec![failed_at(version + 1)]));
            }
        });
        let detail = reply.problem(503, "overloaded");
        assert_eq!(detail.contains("new Idempotency-Key"), tries == 1, "{detail}");
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
}

#[tokio::test]
async fn dates_count_where_there_is_no_tag() {
    let server = Server::start();
    let (modified, unmodified) = ("if-modified-since", "if-unmodified-since");
    // Without a record there is no date to compare with.
    let old = "Sun, 06 Nov 1994 08:49:37 GMT";
    assert_eq!(put(&server, "a", &[(unmodified, old)], "one").await.status, 201);
    let read = server.get("/v1/records/a").await;
    let date = read.header("last-modified").unwrap();

    let reply = with(&server, "GET", &[(modified, date)]).await;
    assert_eq!((reply.status, reply.body.len()), (304, 0));
    for news in [old, "1994-11-06T08:49:37Z"] {
        assert_eq!(with(&server, "GET", &[(modified, news)]).await.status, 200, "{news}");
    }
    let tag = ("if-none-match", "\"9\"");
    assert_eq!(with(&server, "GET", &[(modified, date), tag]).await.status, 200);
    with(&server, "GET", &[(unmodified, old)]).await.problem(412, "precondition-failed");

    put(&server, "a", &[(unmodified, old)], "x").await.problem(412, "precondition-failed");
    let removed = with(&server, "DELETE", &[(unmodified, old)]).await;
    removed.problem(412, "precondition-failed");
    assert_eq!(put(&server, "a", &[(unmodified, date)], "two").await.status, 200);
    assert_eq!(put(&server, "a", &[(unmodified, "soon")], "three").await.status, 200);
    let tag = ("if-match", "\"3\"");
    assert_eq!(put(&server, "a", &[(unmodified, old), tag], "four").await.status, 200);
    let now = with(&server, "GET", &[]).await.header("last-modified").unwrap().to_owned();
    assert_eq!(with(&server, "DELETE", &[(unmodified, &now)]).await.status, 204);
}

#[tokio::test]
async fn a_write_under_a_date_is_pinned_and_a_lost_race_fails_it() {
    let (store, mut hand) = Scripted::new();
    let server = Server::over(store);
    let headers = [("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let (reply, ()) = tokio::join!(put(&server, "a", &headers, "x"), async {
        hand.read().await.found(&[("a", "one", 7)]);
        let call = hand.write().await;
        let pinned = terrace_core::Precondition::Version(terrace_core::Version::new(7));
        assert_eq!(call.batch[0].precondition, pinned);
        call.answer(Ok(vec![failed_at(8)]));
    });
    reply.problem(412, "precondition-failed");
}

fn failed_at(version: u64) -> terrace_core::Receipt {
    terrace_core::Receipt {
        outcome: terrace_core::Outcome::PreconditionFailed,
        version: terrace_core::Version::new(version),
        durability: terrace_core::Durability::Committed,
        token: terrace_core::Token::default(),
        origin: terrace_core::Origin::PRIMARY,
        event: None,
        cached: false,
    }
}

#[tokio::test]
async fn a_repeated_conditional_write_answers_its_first_result() {
    let server = Server::start();
    put(&server, "a", &[], "one").await;
    let headers = [("if-match", "\"1\", \"9\""), ("idempotency-key", "order-7")];
    let first = put(&server, "a", &headers, "two").await;
    let second = put(&server, "a", &headers, "two").await;
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!(first.text(), second.text());
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::start();
    for key in ["b%2F3", "b%2F1", "a", "b%2F2", "%C3%A9"] {
        put(&server, key, &[], "x").await;
    }
    let keys = |reply: &Reply| {
        let records = reply.json()["records"].as_array().unwrap().clone();
        records.iter().map(|r| r["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = server.get("/v1/records").await;
    assert_eq!(keys(&all), ["a", "b/1", "b/2", "b/3", "é"]);
    assert_eq!(all.fields(), ["records"]);
    let first = server.get("/v1/records?prefix=b%2F&limit=2").await;
    assert_eq!(keys(&first), ["b/1", "b/2"]);
    let cursor = first.json()["next_cursor"].as_str().unwrap().to_owned();
    let second = server.get(&format!("/v1/records?prefix=b%2F&limit=2&cursor={cursor}")).await;
    assert_eq!(keys(&second), ["b/3"]);
    assert_eq!(second.header("terrace-origin"), Some("primary"));
    for query in ["limit=0", "limit=1001", "cursor=x", "limt=1", "prefix=%00", "prefix=%"] {
        server.get(&format!("/v1/records?{query}")).await.problem(422, "invalid-input");
    }
}

#[tokio::test]
async fn an_etag_that_a_proxy_has_changed_is_named() {
    let server = Server::start();
    put(&server, "a", &[], "x").await;
    for tag in ["W/\"1\"", "\"1-gzip\"", "\"1;br\"", "\"7\", W/\"1\""] {
        for key in ["", "once"] {
            let mut headers = vec![("if-match", tag)];
            headers.extend((!key.is_empty()).then_some(("idempotency-key", tag)));
            let reply = put(&server, "a", &headers, "y").await;
            let detail = reply.problem(412, "precondition-failed");
            assert!(detail.contains("proxy") && detail.contains("\"1\""), "{tag}: {detail}");
            assert_eq!(reply.header("etag"), Some("\"1\""));
        }
        let read = with(&server, "GET", &[("if-match", tag)]).await;
        assert!(read.problem(412, "precondition-failed").contains("proxy"));
    }
    let other = put(&server, "a", &[("if-match", "\"7\"")], "y").await;
    assert!(!other.problem(412, "precondition-failed").contains("proxy"));
    // For a comparison of what is the same but for its form, a weak one will do.
    assert_eq!(with(&server, "GET", &[("if-none-match", "W/\"1\"")]).await.status, 304);
}
