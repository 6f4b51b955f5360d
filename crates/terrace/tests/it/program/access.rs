//! Keys of clients: the first one, what each may do, and how one ends.

use std::path::Path;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use super::{Program, Stores, terrace};

/// `terrace keys`, as JSON.
async fn keys(stores: &Stores<'_>, arguments: &[&str]) -> Value {
    let mut command = terrace(&["keys"]);
    stores.tell(&mut command);
    let said = command.args(arguments).arg("--json").output().await.expect("it runs");
    let error = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{arguments:?}: {error}");
    serde_json::from_slice(&said.stdout).expect("JSON")
}

/// The secret of a new key, and its id.
pub(super) async fn created(stores: &Stores<'_>, arguments: &[&str]) -> (String, String) {
    let made = keys(stores, arguments).await;
    let text = |name: &str| made[name].as_str().expect("text").to_owned();
    (text("key"), text("id"))
}

impl Program {
    fn asks(&self, method: Method, path: &str, key: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).header("X-API-Key", key)
    }

    async fn reads(&self, path: &str, key: &str) -> StatusCode {
        self.asks(Method::GET, path, key).send().await.expect("an answer").status()
    }

    /// Waits until a key is answered so.
    pub(super) async fn comes_to(&self, key: &str, wanted: StatusCode, within: Duration) {
        let until = tokio::time::Instant::now() + within;
        while self.reads("/read/a", key).await != wanted {
            assert!(tokio::time::Instant::now() < until, "{key} is not answered {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How long a new key, or the end of an old one, may take to be known.
pub(super) const KNOWN: Duration = Duration::from_secs(5);

fn first_key(program: &Program) -> Option<String> {
    program
        .said
        .iter()
        .find_map(|line| line.trim().strip_prefix("trc_"))
        .map(|it| format!("trc_{it}"))
}

fn embedded(directory: &Path) -> Stores<'_> {
    Stores::Embedded(directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_shows_a_key_once_and_nobody_passes_without_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = embedded(directory.path());
    let program = Program::serve(10, &stores).await;
    let key = first_key(&program).expect("a first key");
    let refused = program.get("/read/a").await;
    assert_eq!(refused.status(), 401);
    assert_eq!(refused.headers()["www-authenticate"], "Bearer realm=\"terrace\"");
    let wanted = refused.json::<Value>().await.expect("a problem");
    assert!(wanted["detail"].as_str().expect("text").starts_with("Invalid API key"), "{wanted}");
    // One answer for every failure.
    let (_, other) = created(&stores, &["create", "other"]).await;
    let wrong = format!("trc_{other}_{}", &key[15..]);
    for wrong in ["x", "trc_0123456789_0", &key[..key.len() - 1], &wrong] {
        let answer = program.asks(Method::GET, "/read/a", wrong).send().await.expect("an answer");
        assert_eq!(answer.status(), 401, "{wrong}");
        let problem = answer.json::<Value>().await.expect("a problem");
        assert_eq!(problem["detail"], wanted["detail"]);
    }
    let body = json!({"key": "a", "value": "1"});
    let written = program.asks(Method::POST, "/write", &key).json(&body).send().await;
    assert_eq!(written.expect("an answer").status(), 200);
    let read = program.client.get(format!("{}/read/a", program.url)).bearer_auth(&key).send().await;
    let read = read.expect("an answer");
    assert_eq!(read.headers()["cache-control"], "private, no-cache");
    assert_eq!(read.json::<Value>().await.expect("a body")["value"], "1");
    assert_eq!(
        program.asks(Method::POST, "/clear-cache", &key).send().await.expect("it").status(),
        404
    );
    for open in ["/health", "/livez", "/readyz", "/stats", "/docs", "/openapi.json", "/"] {
        assert_eq!(program.get(open).await.status(), 200, "{open}");
    }
    assert!(program.terminate().await.success());
    let again = Program::serve(10, &stores).await;
    assert_eq!(first_key(&again), None);
    assert_eq!(again.reads("/read/a", &key).await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_does_what_it_is_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = embedded(directory.path());
    let environment = [("API_KEY", "somebody has made this up"), ("AUTH_PROTECT_FIGURES", "")];
    let program = Program::serve_with(10, &stores, &[], &environment).await;
    assert_eq!(first_key(&program), None, "the one of the settings is enough");
    let fixed = environment[0].1;
    let (reads, _) = created(&stores, &["create", "reader", "--scopes", "read"]).await;
    let (writes, _) = created(&stores, &["create", "writer", "--scopes", "write"]).await;
    program.comes_to(&reads, StatusCode::OK, KNOWN).await;
    program.comes_to(&writes, StatusCode::FORBIDDEN, KNOWN).await;
    let body = json!({"key": "a", "value": "1"});
    for (key, wanted) in [(&*reads, 403), (&writes, 200), (fixed, 200)] {
        let answer = program.asks(Method::POST, "/write", key).json(&body).send().await;
        assert_eq!(answer.expect("an answer").status(), wanted, "{key}");
        let one = program.asks(Method::PUT, "/v1/records/a", key).json(&json!({"value": "1"}));
        assert_eq!(one.send().await.expect("an answer").status(), wanted, "{key}");
        let one = program.asks(Method::DELETE, "/v1/records/a", key).send().await;
        assert_eq!(
            one.expect("an answer").status(),
            if wanted == 200 { 204 } else { 403 },
            "{key}"
        );
    }
    // A batch of reads is read, though it is sent.
    let batch = json!({"keys": ["a"]});
    for (key, wanted) in [(&*reads, 200), (&writes, 403), (fixed, 200)] {
        let answer = program.asks(Method::POST, "/v1/batch/read", key).json(&batch).send().await;
        assert_eq!(answer.expect("an answer").status(), wanted, "{key}");
    }
}

/// Everything that has a meaning in a URL.
const UNSAFE: &AsciiSet = &CONTROLS.add(b'/').add(b'?').add(b'#').add(b'%').add(b' ');

/// Rights are judged on the decoded key, however it is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_touches_the_records_it_is_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = embedded(directory.path());
    let program =
        Program::serve_with(10, &stores, &[], &[("API_KEY", "all of it, for a test")]).await;
    let all = "all of it, for a test";
    let (key, _) = created(&stores, &["create", "app", "--prefix", "app/", "--prefix", "x:"]).await;
    program.comes_to(&key, StatusCode::FORBIDDEN, KNOWN).await;
    let names = [
        "app/1", "app/..", "app/../b", "x:1", "a", "app", "APP/1", "../app/1", "b/app/1", "%61pp/1",
    ];
    for name in names {
        let mine = name.starts_with("app/") || name.starts_with("x:");
        let body = json!({"key": name, "value": "1"});
        let wanted = if mine { 200 } else { 403 };
        let written = program.asks(Method::POST, "/write", &key).json(&body).send().await;
        assert_eq!(written.expect("an answer").status(), wanted, "{name}");
        let written = program.asks(Method::POST, "/write", all).json(&body).send().await;
        assert_eq!(written.expect("an answer").status(), 200, "{name}");
        for set in [NON_ALPHANUMERIC, UNSAFE] {
            let path = utf8_percent_encode(name, set);
            for path in [format!("/read/{path}"), format!("/v1/records/{path}")] {
                // Such a path is resolved before it is sent.
                if !path.contains("/..") {
                    assert_eq!(program.reads(&path, &key).await, wanted, "{path}");
                    assert_eq!(program.reads(&path, all).await, 200, "{path}");
                }
            }
        }
        let batch = json!({"keys": ["app/1", name]});
        let read = program.asks(Method::POST, "/v1/batch/read", &key).json(&batch).send().await;
        assert_eq!(read.expect("an answer").status(), wanted, "{name}");
        let batch = json!({"writes": [{"op": "put", "key": "app/1", "value": "1"},
            {"op": "delete", "key": name}]});
        let write = program.asks(Method::POST, "/v1/batch/write", &key).json(&batch).send().await;
        assert_eq!(write.expect("an answer").status(), wanted, "{name}");
        let put = json!({"value": "1"});
        let path = format!("/v1/records/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        let written = program.asks(Method::PUT, &path, &key).json(&put).send().await;
        assert_eq!(written.expect("an answer").status().is_success(), mine, "{name}");
    }
    for (query, wanted) in [
        ("?prefix=app%2F", 200),
        ("?prefix=app%2F1", 200),
        ("?prefix=x%3A", 200),
        ("?prefix=app", 403),
        ("?prefix=", 403),
        ("", 403),
    ] {
        assert_eq!(program.reads(&format!("/v1/records{query}"), &key).await, wanted, "{query}");
    }
    let (one, _) =
        created(&stores, &["create", "admin of app", "--scopes", "admin", "--prefix", "app/"])
            .await;
    program.comes_to(&one, StatusCode::FORBIDDEN, KNOWN).await;
}

/// A revoked key is refused by every instance, within the time that the page promises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_hears_how_a_key_ends() {
    let database = terrace_lab::testing::fresh_database();
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Servers { database: &database, cache: &cache };
    let programs = [Program::serve(10, &stores).await, Program::serve(10, &stores).await];
    let shown = programs.each_ref().map(first_key);
    assert_eq!(shown.iter().flatten().count(), 1, "the first key is made once: {shown:?}");
    let (old, id) = created(&stores, &["create", "app"]).await;
    let each = async |key: &str, wanted: StatusCode| {
        for program in &programs {
            program.comes_to(key, wanted, KNOWN).await;
        }
    };
    each(&old, StatusCode::OK).await;
    let (new, new_id) = created(&stores, &["rotate", &id, "--grace", "1h"]).await;
    each(&new, StatusCode::OK).await;
    each(&old, StatusCode::OK).await;
    let (newer, newer_id) = created(&stores, &["rotate", &new_id, "--now"]).await;
    each(&new, StatusCode::UNAUTHORIZED).await;
    each(&newer, StatusCode::OK).await;
    keys(&stores, &["revoke", &newer_id]).await;
    each(&newer, StatusCode::UNAUTHORIZED).await;
    let listed = keys(&stores, &["list"]).await;
    let state = |id: &str| {
        let found = listed.as_array().expect("a list").iter().find(|it| it["id"] == id);
        found.expect("it is listed")["state"].as_str().expect("text").to_owned()
    };
    assert_eq!([state(&id), state(&new_id), state(&newer_id)], ["active", "revoked", "revoked"]);
    assert!(!listed.to_string().contains(&old) && !listed.to_string().contains("digest"));
    let (short, _) = created(&stores, &["create", "short", "--expires-in", "4s"]).await;
    each(&short, StatusCode::OK).await;
    each(&short, StatusCode::UNAUTHORIZED).await;
}

/// What one key has used an Idempotency-Key for is nothing to another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_is_of_its_own_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = embedded(directory.path());
    let program =
        Program::serve_with(10, &stores, &[], &[("API_KEY", "all of it, for a test")]).await;
    let (one, _) = created(&stores, &["create", "one", "--prefix", "a/"]).await;
    let (other, _) = created(&stores, &["create", "other", "--prefix", "b/"]).await;
    program.comes_to(&one, StatusCode::FORBIDDEN, KNOWN).await;
    program.comes_to(&other, StatusCode::FORBIDDEN, KNOWN).await;
    let put = async |key: &str, path: &str, value: &str| {
        let request = program.asks(Method::PUT, path, key).header("Idempotency-Key", "order-1");
        let answer = request.json(&json!({"value": value})).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json::<Value>().await.expect("a body")["version"].clone())
    };
    let (status, version) = put(&one, "/v1/records/a%2F1", "1").await;
    assert_eq!(status, 201);
    assert_eq!(put(&one, "/v1/records/a%2F1", "1").await, (201, version), "the first result");
    assert_eq!(put(&one, "/v1/records/a%2F2", "1").await.0, 422, "another request");
    assert_eq!(put(&other, "/v1/records/b%2F1", "1").await.0, 201, "of nobody else");
}
