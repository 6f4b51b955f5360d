//! Shared caches in front, as people run them: Varnish and nginx, with the settings of `ops/edge`.

use std::path::Path;
use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use terrace_core::Runtime;
use terrace_lab::FrontServer;

use super::access::{KNOWN, created};
use super::{Program, Stores, free_port, terrace};

const KEY: &str = "a key that somebody has made up";
/// What a cache that was told must have done by.
const PATIENCE: Duration = Duration::from_secs(60);

/// Varnish as it is shipped.
fn shipped_vcl(port: u16) -> String {
    let text = include_str!("../../../../../ops/edge/varnish.vcl");
    text.replace("\"8010\"", &format!("\"{port}\""))
}

/// Varnish with what it does by itself, and what else is said here.
fn plain_vcl(port: u16, more: &str) -> String {
    format!("vcl 4.1;\nbackend one {{ .host = \"127.0.0.1\"; .port = \"{port}\"; }}\n{more}")
}

/// nginx as it is shipped, and with what else is said of its location.
fn shipped_nginx(port: u16, more: &str) -> String {
    let text = include_str!("../../../../../ops/edge/nginx.conf");
    let text = text.replace("listen 80;", "listen LISTEN;");
    let text = text.replace("127.0.0.1:8010", &format!("127.0.0.1:{port}"));
    let text = text.replace("/var/cache/nginx/terrace", "data/cache");
    text.replace("proxy_cache terrace;", &format!("proxy_cache terrace;{more}"))
}

fn varnish(directory: &Path, name: &str, vcl: &str) -> FrontServer {
    FrontServer::varnish_blocking(directory.join(name), vcl).expect("Varnish starts")
}

fn nginx(directory: &Path, name: &str, text: &str) -> FrontServer {
    FrontServer::nginx_blocking(directory.join(name), text).expect("nginx starts")
}

/// Level 10 on a port that the caches know.
async fn level_10(port: u16, stores: &Stores<'_>, environment: &[(&str, &str)]) -> Program {
    let mut command = terrace(&["serve", "10"]);
    stores.tell(&mut command);
    command.env("RATE_LIMIT_REQUESTS", "1000000").env("API_KEY", KEY);
    command.envs(environment.iter().copied());
    Program::start_on(port, command).await
}

impl Program {
    fn through(&self, url: &str, key: Option<&str>) -> RequestBuilder {
        let request = self.client.get(url);
        key.into_iter().fold(request, |request, key| request.header("X-API-Key", key))
    }

    async fn puts(&self, place: &str, key: &str, value: &str) {
        let request = self.client.put(format!("{place}/v1/records/{key}"));
        let request = request.header("X-API-Key", KEY).json(&json!({"value": value}));
        let answer = request.send().await.expect("an answer");
        assert!(answer.status().is_success(), "{answer:?}");
    }

    /// What a record is at a place; none where there is none.
    async fn value_at(&self, place: &str, key: &str) -> Option<String> {
        let url = format!("{place}/v1/records/{key}");
        value(self.through(&url, Some(KEY)).send().await.expect("an answer")).await
    }

    /// Waits until a cache has come to this.
    async fn is_seen(&self, place: &str, key: &str, wanted: Option<&str>) {
        let runtime = Runtime::system();
        let until = runtime.now() + PATIENCE;
        while self.value_at(place, key).await.as_deref() != wanted {
            assert!(runtime.now() < until, "{key} is never {wanted:?}");
            tokio::task::yield_now().await;
        }
    }

    /// How many of these requests were answered for somebody who may not have the answer: each comes from
    /// one who may, then from one who may not and from one without a key.
    async fn crossings(&self, place: &str, [one, other]: [&str; 2], prefix: &str) -> usize {
        let mut found = 0;
        let mut paths = vec![format!("/v1/records?prefix={prefix}%2F")];
        for number in 0..10 {
            paths.push(format!("/v1/records/{prefix}%2F{number}"));
            paths.push(format!("/read/{prefix}%2F{number}"));
        }
        for path in paths {
            let url = format!("{place}{path}");
            let own = self.through(&url, Some(one)).send().await.expect("an answer");
            assert_eq!(own.status(), 200, "{path}");
            let by_bearer = self.client.get(&url).bearer_auth(other);
            for asked in [self.through(&url, Some(other)), by_bearer, self.through(&url, None)] {
                let status = asked.send().await.expect("an answer").status();
                found += usize::from(status == 200);
                let refused = [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED, StatusCode::OK];
                assert!(refused.contains(&status), "{path}: {status}");
            }
        }
        found
    }

    /// How often a cache answered with what it should not have any more, and how often with what it had.
    async fn stale(&self, place: &str, key: &str, bound: Duration) -> (usize, usize) {
        let runtime = Runtime::system();
        let (mut too_old, mut kept) = (0, 0);
        for round in 0..3 {
            let values = [format!("{round} old"), format!("{round} new")];
            self.puts(&self.url, key, &values[0]).await;
            let url = format!("{place}/v1/records/{key}");
            self.value_at(place, key).await;
            let stored = runtime.now();
            self.puts(&self.url, key, &values[1]).await;
            let at_once = self.value_at(place, key).await;
            kept += usize::from(at_once.as_ref() != Some(&values[1]));
            // Who asks for more than the cache can know gets past it.
            let strong = self.through(&url, Some(KEY)).header("Terrace-Consistency", "strong");
            let strong = value(strong.send().await.expect("an answer")).await;
            assert_eq!(strong.as_ref(), Some(&values[1]));
            runtime.sleep_until(stored + bound).await;
            let late = self.value_at(place, key).await;
            too_old += usize::from(late.as_ref() != Some(&values[1]));
        }
        (too_old, kept)
    }
}

async fn value(answer: Response) -> Option<String> {
    let body = answer.json::<Value>().await.expect("a body");
    body["value"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_for_one_key_comes_to_another_through_a_cache() {
    let directory = tempfile::tempdir().expect("a directory");
    let (port, stores) = (free_port(), Stores::Embedded(directory.path()));
    let program = level_10(port, &stores, &[("TERRACE_EDGE_PUBLIC", "pub/=300")]).await;
    let (a, _) = created(&stores, &["create", "a", "--prefix", "a/"]).await;
    let (b, _) = created(&stores, &["create", "b", "--prefix", "b/"]).await;
    for number in 0..10 {
        program.puts(&program.url, &format!("a%2F{number}"), "of a").await;
        program.puts(&program.url, &format!("b%2F{number}"), "of b").await;
    }
    for key in [&a, &b] {
        program.comes_to(key, StatusCode::FORBIDDEN, KNOWN).await;
    }
    let place = directory.path();
    let keeps_all = "sub vcl_backend_response { set beresp.ttl = 60s; return (deliver); }";
    let ignores = "proxy_ignore_headers Cache-Control; proxy_cache_valid 200 60s;";
    for (front, leaks) in [
        (varnish(place, "shipped", &shipped_vcl(port)), false),
        (varnish(place, "plain", &plain_vcl(port, "")), false),
        (nginx(place, "nginx", &shipped_nginx(port, "")), false),
        // What the check would find.
        (varnish(place, "broken", &plain_vcl(port, keeps_all)), true),
        (nginx(place, "broken-nginx", &shipped_nginx(port, ignores)), true),
    ] {
        let url = front.url();
        let found = program.crossings(&url, [&a, &b], "a").await
            + program.crossings(&url, [&b, &a], "b").await;
        assert_eq!(found > 0, leaks, "{:?}: {found}", front.directory());
    }
    program.puts(&program.url, "pub%2F1", "everybody's").await;
    for front in
        [varnish(place, "v", &shipped_vcl(port)), nginx(place, "n", &shipped_nginx(port, ""))]
    {
        let url = format!("{}/v1/records/pub%2F1", front.url());
        assert_eq!(program.through(&url, None).send().await.expect("an answer").status(), 401);
        let first = program.through(&url, Some(KEY)).send().await.expect("an answer");
        assert_eq!(first.status(), 200);
        let other = program.through(&url, None).send().await.expect("an answer");
        assert_eq!(other.status(), 200);
        let caching = "public, max-age=0, s-maxage=300, stale-while-revalidate=0";
        assert_eq!(other.headers()["cache-control"], caching);
        for name in ["x-request-id", "x-ratelimit-remaining", "ratelimit", "surrogate-key"] {
            assert!(!other.headers().contains_key(name), "{name}");
        }
        // Another spelling is not told of writes, so it is kept by nobody.
        let url = format!("{}/v1/records/%70ub%2F1", front.url());
        for (key, wanted) in [(Some(KEY), 200), (None, 401)] {
            let answer = program.through(&url, key).send().await.expect("an answer");
            assert_eq!(answer.status(), wanted);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_told_shows_a_write_at_once_and_hears_of_it_when_it_is_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (port, stores) = (free_port(), Stores::Embedded(directory.path()));
    let front = varnish(directory.path(), "front", &shipped_vcl(port));
    let place = front.url();
    // Longer than the test: what is seen was purged.
    let environment = [("TERRACE_EDGE_PUBLIC", "pub/=86400"), ("TERRACE_EDGE_PURGE", &*place)];
    let program = level_10(port, &stores, &environment).await;
    for number in 0..5 {
        let value = number.to_string();
        program.puts(&place, "pub%2F1", &value).await;
        program.is_seen(&place, "pub%2F1", Some(&value)).await;
    }
    let writes = json!({"writes": [
        {"op": "put", "key": "pub/1", "value": "batch"},
        {"op": "put", "key": "pub/2", "value": "batch"},
    ]});
    assert_eq!(program.value_at(&place, "pub%2F2").await, None);
    let batch = program.client.post(format!("{place}/v1/batch/write")).header("X-API-Key", KEY);
    assert_eq!(batch.json(&writes).send().await.expect("an answer").status(), 200);
    for key in ["pub%2F1", "pub%2F2"] {
        program.is_seen(&place, key, Some("batch")).await;
    }
    // What a client has costs it no body, whoever answers.
    program.puts(&program.url, "own", "private").await;
    for key in ["pub%2F1", "own"] {
        let url = format!("{place}/v1/records/{key}");
        let answer = program.through(&url, Some(KEY)).send().await.expect("an answer");
        let has =
            program.through(&url, Some(KEY)).header("If-None-Match", &answer.headers()["etag"]);
        let again = has.send().await.expect("an answer");
        assert_eq!(
            (again.status().as_u16(), &again.headers()["etag"]),
            (304, &answer.headers()["etag"])
        );
    }
    // Its process stands still, and keeps what it has.
    front.pause();
    program.puts(&program.url, "pub%2F1", "while it was away").await;
    program.becomes("degraded").await;
    let health = program.get("/health").await.json::<Value>().await.expect("a body");
    let reason = health["reason"].as_str().expect("a reason");
    assert!(reason.contains("does not hear of writes"), "{reason}");
    front.resume();
    program.is_seen(&place, "pub%2F1", Some("while it was away")).await;
    program.becomes("healthy").await;
    let url = format!("{}/v1/records/pub%2F1", program.url);
    let gone = program.client.delete(&url).header("X-API-Key", KEY).send().await;
    assert_eq!(gone.expect("an answer").status(), 204);
    program.is_seen(&place, "pub%2F1", None).await;
    assert!(program.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_hears_nothing_is_never_further_behind_than_the_bound() {
    let directory = tempfile::tempdir().expect("a directory");
    let (port, stores) = (free_port(), Stores::Embedded(directory.path()));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let environment = [("TERRACE_EDGE_PUBLIC", "pub/=2"), ("TERRACE_EDGE_PURGE", &*nobody)];
    let program = level_10(port, &stores, &environment).await;
    let place = directory.path();
    let keeps_long = "sub vcl_backend_response { set beresp.ttl = 1h; }";
    let bound = Duration::from_secs(2);
    for (front, bound, is_late) in [
        (varnish(place, "shipped", &shipped_vcl(port)), bound, false),
        (varnish(place, "plain", &plain_vcl(port, "")), bound, false),
        // It counts in whole seconds.
        (nginx(place, "nginx", &shipped_nginx(port, "")), bound + Duration::from_secs(1), false),
        // What the check would find.
        (varnish(place, "broken", &plain_vcl(port, keeps_long)), bound, true),
    ] {
        let (too_old, kept) = program.stale(&front.url(), "pub%2F1", bound).await;
        assert_eq!(too_old > 0, is_late, "{:?}: {too_old}", front.directory());
        assert!(kept > 0, "{:?} keeps nothing", front.directory());
    }
    program.becomes("degraded").await;
}
