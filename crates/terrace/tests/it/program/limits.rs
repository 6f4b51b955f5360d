//! Limits of level 10 as clients meet them.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Program, Stores, own_redis, terrace};

const KEY: &str = "a key that somebody has made up";

/// Level 10 with the limits that it has by itself, or by this environment.
async fn limited(stores: &Stores<'_>, environment: &[(&str, &str)]) -> Program {
    let mut command = terrace(&["serve", "10"]);
    stores.tell(&mut command);
    // Long, so that a busy machine does not let the first requests pass out of the window.
    command.env("RATE_LIMIT_WINDOW", "3600").envs(environment.iter().copied());
    Program::start(command).await
}

impl Program {
    async fn asks_with(&self, headers: &[(&str, &str)]) -> Response {
        let request = self.client.get(format!("{}/read/a", self.url));
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.expect("an answer")
    }

    /// How many of so many requests are admitted; the others are refused.
    async fn admitted(&self, count: usize, headers: &[(&str, &str)]) -> usize {
        let all = (0..count).map(|_| self.asks_with(headers));
        let all = futures_util::future::join_all(all).await;
        let refused = all.iter().filter(|answer| answer.status() == 429).count();
        let admitted = all.iter().filter(|answer| answer.status() == 200).count();
        assert_eq!(admitted + refused, count);
        admitted
    }

    async fn limits(&self) -> (Value, Value) {
        let health = self.get("/health").await.json::<Value>().await.expect("a body");
        let stats = self.get("/stats").await.json::<Value>().await.expect("a body");
        (health["rate_limiter_healthy"].clone(), stats["rate_limiting"].clone())
    }
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    let value = answer.headers().get(name);
    value.unwrap_or_else(|| panic!("{name} is missing")).to_str().expect("text")
}

/// Headers of a client of the key of the settings.
fn client(name: &str) -> [(&str, &str); 2] {
    [("X-API-Key", KEY), ("X-Client-ID", name)]
}

fn number(answer: &Response, name: &str) -> u64 {
    header(answer, name).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_pass_and_each_answer_says_how_many_are_left() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let program = limited(&stores, &[("API_KEY", KEY)]).await;
    let key = [("X-API-Key", KEY)];
    for place in 1..=100 {
        let answer = program.asks_with(&key).await;
        assert_eq!(answer.status(), 200, "{place}");
        assert_eq!(header(&answer, "ratelimit-policy"), "\"default\";q=100;w=3600");
        assert_eq!(number(&answer, "x-ratelimit-limit"), 100);
        assert_eq!(number(&answer, "x-ratelimit-remaining"), 100 - place);
        let reset = number(&answer, "x-ratelimit-reset");
        assert!((3600..=3960).contains(&reset), "{reset}");
        let state = format!("\"default\";r={};t={reset}", 100 - place);
        assert_eq!(header(&answer, "ratelimit"), state);
    }
    let refused = program.asks_with(&key).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&refused, "content-type"), "application/problem+json");
    assert_eq!(number(&refused, "x-ratelimit-remaining"), 0);
    let wait = number(&refused, "retry-after");
    assert_eq!(wait, number(&refused, "x-ratelimit-reset"));
    let problem = refused.json::<Value>().await.expect("a problem");
    let begins = format!("Rate limit exceeded. Try again in {wait} seconds");
    assert_eq!((&problem["detail"], &problem["status"]), (&json!(begins), &json!(429)));
    // Who watches the installation is never refused.
    let (healthy, limits) = program.limits().await;
    assert_eq!(healthy, true);
    let wanted = json!({"enabled": true, "max_requests": 100, "window_seconds": 3600});
    assert_eq!(limits, wanted);
    let stats = program.get("/stats").await;
    assert!(!stats.headers().contains_key("ratelimit"));
    let stats = stats.json::<Value>().await.expect("a body");
    assert_eq!(stats["features"]["rate_limiting"], true);
}

/// Two windows: what is told is the one that has less left. A batch is not one request, nor is a list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_and_lists_cost_more_and_the_tightest_window_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let environment = [("API_KEY", KEY), ("RATE_LIMIT_REQUESTS", "100 30/1200")];
    let program = limited(&stores, &environment).await;
    let tells = |answer: &Response, left: u64| {
        let policy = "\"default\";q=100;w=3600, \"default-1200s\";q=30;w=1200";
        assert_eq!(header(answer, "ratelimit-policy"), policy);
        let reset = number(answer, "x-ratelimit-reset");
        let state = format!("\"default-1200s\";r={left};t={reset}");
        assert_eq!(header(answer, "ratelimit"), state);
        assert_eq!(number(answer, "x-ratelimit-limit"), 30);
        assert_eq!(number(answer, "x-ratelimit-remaining"), left);
    };
    tells(&program.asks_with(&[("X-API-Key", KEY)]).await, 29);
    let get = async |path: &str| {
        let request = program.client.get(format!("{}{path}", program.url));
        request.header("X-API-Key", KEY).send().await.expect("an answer")
    };
    tells(&get("/v1/records?limit=3").await, 24);
    let write = async |name: &str, count: usize| {
        let write = |place| json!({"op": "put", "key": format!("{name}{place}"), "value": "x"});
        let body = json!({"writes": (0..count).map(write).collect::<Vec<_>>()});
        let request = program.client.post(format!("{}/v1/batch/write", program.url));
        request.header("X-API-Key", KEY).json(&body).send().await.expect("an answer")
    };
    let written = write("a", 91).await;
    assert_eq!(written.status(), 200);
    tells(&written, 14);
    // One is paid before its body is read; what is missing is told.
    let refused = write("b", 1000).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(number(&refused, "retry-after"), number(&refused, "x-ratelimit-reset"));
    tells(&refused, 13);
    let missing = get("/v1/records/b0").await;
    assert_eq!(missing.status(), 404, "nothing of it was done");
    tells(&missing, 12);
    let read = json!({"keys": (0..111).map(|place| format!("a{place}")).collect::<Vec<_>>()});
    let request = program.client.post(format!("{}/v1/batch/read", program.url));
    let read = request.header("X-API-Key", KEY).json(&read).send().await.expect("an answer");
    assert_eq!(read.status(), 200);
    tells(&read, 0);
    assert_eq!(get("/v1/records/a0").await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_not_tried_without_end_and_clients_are_not_invented() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let environment = [
        ("API_KEY", KEY),
        ("RATE_LIMIT_REQUESTS", "5"),
        ("TERRACE_LIMITS_ADDRESS_REQUESTS", "40"),
        ("TERRACE_REGIONS_TRUSTED_PROXIES", "127.0.0.1"),
    ];
    let program = limited(&stores, &environment).await;
    // Each client of the key of the settings has a limit, and so has who names none.
    for client in ["a", "b"] {
        let headers =
            [("X-API-Key", KEY), ("X-Client-ID", client), ("X-Forwarded-For", "10.0.0.1")];
        assert_eq!(program.admitted(8, &headers).await, 5, "{client}");
    }
    let nameless = [("X-API-Key", KEY), ("X-Forwarded-For", "10.0.0.1")];
    assert_eq!(program.admitted(8, &nameless).await, 5);
    // 24 of this address are counted, also those that were refused after it. Guesses are, too.
    let guess = [("X-API-Key", "trc_guess"), ("X-Forwarded-For", "10.0.0.1")];
    for place in 0..16 {
        let answer = program.asks_with(&guess).await;
        assert_eq!(answer.status(), 401, "{place}");
        assert_eq!(header(&answer, "ratelimit-policy"), "\"address\";q=40;w=3600");
        assert_eq!(number(&answer, "x-ratelimit-remaining"), 15 - place);
    }
    assert_eq!(program.asks_with(&guess).await.status(), 429);
    let other = [("X-API-Key", "trc_guess"), ("X-Forwarded-For", "10.0.0.2")];
    assert_eq!(program.asks_with(&other).await.status(), 401, "another address");
    // The client has written the first address itself.
    let claims = [("X-API-Key", "trc_guess"), ("X-Forwarded-For", "10.9.9.9, 10.0.0.1")];
    assert_eq!(program.asks_with(&claims).await.status(), 429);
}

/// A key of `terrace keys` is one client, whatever ids come with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_of_clients_do_not_count_for_other_keys() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let program = limited(&stores, &[("RATE_LIMIT_REQUESTS", "5")]).await;
    let key = program.said.iter().find(|line| line.trim().starts_with("trc_")).expect("a key");
    let mut admitted = 0;
    for client in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        let headers = [("X-API-Key", key.trim()), ("X-Client-ID", client)];
        admitted += program.admitted(1, &headers).await;
    }
    assert_eq!(admitted, 5);
}

/// Two instances on one Redis, which is killed under them and comes back without its memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_instances_share_the_limit_and_each_has_a_part_while_redis_is_away() {
    let directory = tempfile::tempdir().expect("a directory");
    let redis = own_redis(directory.path()).await;
    let (database, limits) = (terrace_lab::testing::fresh_database(), redis.url());
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Servers { database: &database, cache: &cache };
    let environment = [
        ("API_KEY", KEY),
        ("RATE_LIMITER_URL", &*limits),
        ("TERRACE_LIMITS_INSTANCES", "2"),
        // A busy machine must not make Redis look away.
        ("TERRACE_CACHE_COMMAND_TIMEOUT_MS", "5000"),
    ];
    let programs = [limited(&stores, &environment).await, limited(&stores, &environment).await];

    let both = async |name: &str| {
        let headers = client(name);
        tokio::join!(programs[0].admitted(120, &headers), programs[1].admitted(120, &headers))
    };
    let (one, other) = both("a").await;
    assert_eq!(one + other, 100, "{one} and {other}");
    redis.kill();
    assert_eq!(both("b").await, (50, 50));
    for program in &programs {
        program.becomes("degraded").await;
        assert_eq!(program.limits().await.0, false);
    }
    redis.restart().await.expect("Redis starts again");
    for program in &programs {
        program.becomes("healthy").await;
        assert_eq!(program.limits().await.0, true);
    }
    assert_eq!(both("b").await, (0, 0), "each instance knows what Redis has forgotten");
    let refused = programs[0].asks_with(&client("b")).await;
    assert!(Duration::from_secs(number(&refused, "retry-after")) > Duration::from_secs(3000));
}
