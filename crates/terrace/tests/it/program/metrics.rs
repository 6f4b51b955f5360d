//! `/metrics` as Prometheus reads it: valid, equal to the statistics, as many series as before whatever
//! clients send, and all that the dashboard and the alerts of `ops/` ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::{Output, Stdio};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::memory::memory;
use super::{Program, Stores, free_port, terrace};

/// Figures by name and labels, as one line has them: `name{label="value"}`.
type Figures = BTreeMap<String, f64>;

impl Program {
    async fn metrics(&self) -> String {
        let answer = self.get("/metrics").await;
        assert_eq!(answer.status(), 200);
        let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        answer.text().await.expect("a body")
    }

    async fn statistics(&self) -> Value {
        self.get("/stats").await.json().await.expect("a body")
    }

    async fn asked(&self, method: Method, path: &str) -> u16 {
        let request = self.client.request(method, format!("{}{path}", self.url));
        request.send().await.expect("an answer").status().as_u16()
    }
}

fn figures(text: &str) -> Figures {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let figures = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        (name.to_owned(), value.parse::<f64>().expect(line))
    });
    let figures: Vec<_> = figures.collect();
    let count = figures.len();
    let figures = Figures::from_iter(figures);
    assert_eq!(figures.len(), count, "a series is there twice");
    figures
}

/// The names without labels.
fn names(figures: &Figures) -> BTreeSet<&str> {
    figures.keys().map(|name| name.split('{').next().expect("a name")).collect()
}

async fn embedded(level: u8, environment: &[(&str, &str)]) -> (Program, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let environment = [&[("AUTH_ENABLED", "false")], environment].concat();
    (Program::serve_with(level, &stores, &[], &environment).await, directory)
}

/// Some of everything that level 10 measures.
async fn used(program: &Program) {
    for number in 0..10 {
        assert!(program.write(&format!("shard_test_{number}"), "v").await);
        program.read(&format!("shard_test_{number}")).await.expect("an answer");
        program.read(&format!("missing_{number}")).await.expect("an answer");
    }
    assert_eq!(program.asked(Method::GET, "/secret-path").await, 404);
    assert_eq!(program.asked(Method::PATCH, "/write").await, 405);
    assert_eq!(program.asked(Method::HEAD, "/read/shard_test_1").await, 200);
}

async fn promtool(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = command.spawn();
    let mut child = started.expect("promtool is missing: install Prometheus, or run ./verify");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).await.expect("it reads");
    drop(stdin);
    child.wait_with_output().await.expect("it ends")
}

#[track_caller]
fn content(output: &Output) {
    let [said, wrong] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && wrong.is_empty(), "{said}{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documented_figures_are_there_and_equal_the_statistics() {
    let (program, _directory) = embedded(10, &[]).await;
    used(&program).await;
    let stats = program.statistics().await;
    let text = program.metrics().await;
    content(&promtool(&["check", "metrics"], &text).await);
    for client in ["shard_test", "missing_", "secret", "PATCH"] {
        assert!(!text.contains(client), "{client} is in\n{text}");
    }
    let figures = figures(&text);
    let figure =
        |name: &str| *figures.get(name).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
    for (labels, wanted) in [
        ("method=\"POST\",endpoint=\"/write\",status=\"200\"", 10.0),
        ("method=\"GET\",endpoint=\"/read/{key}\",status=\"200\"", 20.0),
        ("method=\"HEAD\",endpoint=\"/read/{key}\",status=\"200\"", 1.0),
        ("method=\"GET\",endpoint=\"other\",status=\"404\"", 1.0),
        ("method=\"other\",endpoint=\"other\",status=\"405\"", 1.0),
    ] {
        assert_eq!(figure(&format!("http_requests_total{{{labels}}}")), wanted, "{labels}");
    }
    let read = "method=\"GET\",endpoint=\"/read/{key}\"";
    assert_eq!(figure(&format!("http_request_duration_seconds_count{{{read}}}")), 20.0);
    let all = format!("http_request_duration_seconds_bucket{{{read},le=\"+Inf\"}}");
    assert_eq!(figure(&all), 20.0);
    // Each record was written into both caches; each of the others was in none.
    assert_eq!(figure("cache_hits_total{cache_level=\"L1\"}"), 11.0);
    assert_eq!(figure("cache_hits_total{cache_level=\"L2\"}"), 0.0);
    assert_eq!(figure("cache_misses_total"), 10.0);
    assert_eq!(figure("rate_limit_exceeded_total"), 0.0);
    for (number, shard) in ["shard1", "shard2"].into_iter().enumerate() {
        let said = &stats["shards"][shard];
        let equal = |name: &str, field: &str| {
            let own = figure(&format!("terrace_{name}{{which=\"shard {number}\"}}"));
            assert_eq!(Some(own), said[field].as_f64(), "{shard}: {name}");
        };
        equal("shard_reads_total", "reads");
        equal("shard_writes_total", "writes");
        equal("shard_records", "records");
        equal("pool_size", "pool_size");
        let calls = figure(&format!("db_queries_total{{shard=\"{shard}\"}}"));
        let times = format!("db_query_duration_seconds_count{{shard=\"{shard}\"}}");
        assert!(calls > 0.0 && calls == figure(&times), "{calls}");
        let used = figure(&format!("active_connections{{shard=\"{shard}\"}}"));
        assert!(used <= figure(&format!("terrace_pool_size{{which=\"shard {number}\"}}")));
    }
    assert_eq!(Some(figure("terrace_near_cache_keys")), stats["cache"]["l1_size"].as_f64());
    for service in ["shard1", "shard2", "cache_l1", "cache_l2"] {
        assert_eq!(stats["circuit_breakers"][service], "closed");
        assert_eq!(figure(&format!("circuit_breaker_state{{service=\"{service}\"}}")), 0.0);
    }
    assert_eq!(figure("terrace_part_status{part=\"shard\",which=\"shard 1\"}"), 0.0);
    assert_eq!(stats["features"]["metrics"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_there_where_the_settings_want_it() {
    for (level, word, wanted) in [(10, "false", 404), (1, "auto", 404), (5, "true", 200)] {
        let (program, _directory) = embedded(level, &[("ENABLE_METRICS", word)]).await;
        assert_eq!(program.asked(Method::GET, "/metrics").await, wanted, "{level} {word}");
        let document: Value = program.get("/openapi.json").await.json().await.expect("JSON");
        assert_eq!(document["paths"].get("/metrics").is_some(), wanted == 200, "{level} {word}");
        if level == 10 {
            assert_eq!(program.statistics().await["features"]["metrics"], false);
        }
        if level == 5 {
            assert!(program.write("a", "v").await);
            for _ in 0..3 {
                program.read("a").await.expect("an answer");
            }
            let (stats, text) = (program.statistics().await, program.metrics().await);
            content(&promtool(&["check", "metrics"], &text).await);
            let figures = figures(&text);
            let hits = figures["cache_hits_total{cache_level=\"L1\"}"];
            assert_eq!(Some(hits), stats["l1_cache_hits"].as_f64());
            assert_eq!(Some(figures["cache_misses_total"]), stats["l2_cache_misses"].as_f64());
            assert!(!text.contains("db_queries"), "it has no shards");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_level_can_wear_it() {
    for level in 0..=9 {
        let (program, _directory) = embedded(level, &[("ENABLE_METRICS", "true")]).await;
        // Level 8 has no records, and counts the 404.
        assert_eq!(program.write("a", "v").await, level != 8);
        let text = program.metrics().await;
        content(&promtool(&["check", "metrics"], &text).await);
        assert!(figures(&text)["terrace_part_status{part=\"metrics\"}"] == 0.0, "{level}");
        let help = text.lines().find(|line| line.starts_with("# HELP") && line.contains("` of `"));
        assert_eq!(help, None, "what it means stands nowhere");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_its_own_serves_nothing_else() {
    let port = free_port().to_string();
    let (program, directory) = embedded(10, &[("PROMETHEUS_PORT", &port)]).await;
    used(&program).await;
    let apart = |path: &str| program.client.get(format!("http://127.0.0.1:{port}{path}")).send();
    let answer = apart("/metrics").await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let (own, other) = (figures(&answer.text().await.expect("a body")), program.metrics().await);
    let writes = "http_requests_total{method=\"POST\",endpoint=\"/write\",status=\"200\"}";
    assert_eq!((own[writes], own[writes]), (10.0, figures(&other)[writes]));
    for path in ["/read/shard_test_1", "/v1/records", "/stats"] {
        assert_eq!(apart(path).await.expect("an answer").status(), 404, "{path}");
    }
    assert!(
        !own.keys().any(|name| name.contains("endpoint=\"/metrics\"")),
        "scrapes there are not counted"
    );

    let mut both = terrace(&["up", "0", "1", "--data-dir"]);
    both.arg(directory.path().join("both"));
    both.envs([("PROMETHEUS_PORT", port.as_str()), ("ENABLE_METRICS", "true")]);
    let refused =
        both.stdout(Stdio::piped()).stderr(Stdio::piped()).output().await.expect("an end");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("2 levels are measured"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keys_keep_out_is_counted_and_the_port_asks_for_none() {
    let port = free_port().to_string();
    let guarded = [
        ("AUTH_ENABLED", "true"),
        ("TERRACE_AUTH_PROTECT_FIGURES", "true"),
        ("PROMETHEUS_PORT", port.as_str()),
    ];
    let (program, _directory) = embedded(10, &guarded).await;
    assert_eq!(program.asked(Method::GET, "/metrics").await, 401);
    assert_eq!(program.asked(Method::GET, "/read/a").await, 401);
    let answer = program.client.get(format!("http://127.0.0.1:{port}/metrics")).send().await;
    let figures = figures(&answer.expect("an answer").text().await.expect("a body"));
    for endpoint in ["/metrics", "/read/{key}"] {
        let labels = format!("method=\"GET\",endpoint=\"{endpoint}\",status=\"401\"");
        assert_eq!(figures[&format!("http_requests_total{{{labels}}}")], 1.0, "{endpoint}");
    }
}

/// Requests that no two clients would send alike: keys, paths, methods.
fn random_requests(count: usize, seed: usize) -> String {
    let mut sent = String::new();
    for number in 0..count {
        let word = format!("{seed}x{number}");
        let (method, path) = match number % 8 {
            0 => ("GET", format!("/read/{word}")),
            1 => ("HEAD", format!("/v1/records/{word}")),
            2 => ("GET", format!("/{word}/{word}")),
            3 => ("DELETE", format!("/v1/{word}")),
            4 => (["BREW", "PATCH", "OPTIONS", "X-1"][number / 8 % 4], format!("/read/{word}")),
            5 => ("PUT", format!("/read/{word}?a={word}")),
            6 => ("GET", format!("/v1/records?prefix={word}")),
            _ => ("POST", "/write".to_owned()),
        };
        let last = if number + 1 == count { "Connection: close\r\n" } else { "" };
        let _ = write!(
            sent,
            "{method} {path} HTTP/1.1\r\nHost: {word}\r\nUser-Agent: {word}\r\n{last}Content-Length: 0\r\n\r\n"
        );
    }
    sent
}

/// Sends them over one connection, and reads all answers.
async fn send(address: &str, requests: String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let (mut reader, mut writer) = stream.split();
    let mut space = vec![0; 64 * 1024];
    let read = async { while reader.read(&mut space).await.expect("answers") > 0 {} };
    let ((), written) = tokio::join!(read, writer.write_all(requests.as_bytes()));
    written.expect("taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_keys_paths_and_methods_add_no_series_and_no_memory() {
    const REQUESTS: usize = 100_000;
    const EACH: usize = 2_000;
    const ALLOWED: usize = 4 * 1024 * 1024;
    // Level 1 keeps nothing of what was asked, which a cache would.
    let (program, _directory) = embedded(1, &[("ENABLE_METRICS", "true")]).await;
    let address = program.url().strip_prefix("http://").expect("an address").to_owned();
    send(&address, random_requests(EACH, 0)).await;
    program.metrics().await;
    let (series, bytes) = (figures(&program.metrics().await), memory(&program, "VmRSS"));
    let seeds: Vec<_> = (1..=REQUESTS / EACH).collect();
    for some in seeds.chunks(5) {
        join_all(some.iter().map(|seed| send(&address, random_requests(EACH, *seed)))).await;
    }
    let (after, grown) = (figures(&program.metrics().await), memory(&program, "VmRSS"));
    let known: Vec<_> = series.keys().collect();
    assert_eq!(after.keys().collect::<Vec<_>>(), known);
    let all = |figures: &Figures| {
        let counts = figures.iter().filter(|(name, _)| name.starts_with("http_requests_total"));
        counts.map(|(_, count)| count).sum::<f64>()
    };
    assert_eq!(all(&after) - all(&series), REQUESTS as f64 + 1.0, "and a scrape");
    assert!(grown.saturating_sub(bytes) < ALLOWED, "{bytes} bytes have become {grown}");
}

/// The expressions of the dashboard.
fn asked_by_dashboard(of: &Value, into: &mut Vec<String>) {
    match of {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field.as_str() {
                    Some(text) if name == "expr" || name == "query" => into.push(text.to_owned()),
                    _ => asked_by_dashboard(field, into),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| asked_by_dashboard(item, into)),
        _ => {}
    }
}

/// The names of figures in an expression: what is no label and no function.
fn asked(expression: &str) -> BTreeSet<String> {
    let mut plain = String::new();
    let (mut depth, mut quoted) = (0_u32, false);
    for letter in expression.chars() {
        match letter {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth -= 1,
            _ if quoted || depth > 0 => {}
            letter => plain.push(letter),
        }
    }
    let is_name = |word: &&str| {
        ["terrace_", "http_", "cache_", "db_", "circuit_", "rate_limit_", "active_"]
            .iter()
            .any(|start| word.starts_with(start))
    };
    let words = plain.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    // `cache_level` is a label.
    words.filter(is_name).filter(|word| *word != "cache_level").map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dashboard_and_alerts_ask_for_what_is_there() {
    let (ten, _one) = embedded(10, &[]).await;
    used(&ten).await;
    let (seven, _other) = embedded(7, &[("ENABLE_METRICS", "true")]).await;
    assert!(seven.write("a", "v").await);
    let [ten, seven] = [ten.metrics().await, seven.metrics().await];
    content(&promtool(&["check", "metrics"], &seven).await);
    let (ten, seven) = (figures(&ten), figures(&seven));
    let known: BTreeSet<_> = names(&ten).union(&names(&seven)).copied().collect();

    let ops = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ops");
    let dashboard = std::fs::read_to_string(format!("{ops}/grafana/terrace.json")).expect("a file");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let rules = format!("{ops}/prometheus/terrace.rules.yml");
    let text = std::fs::read_to_string(&rules).expect("a file");
    let alerts: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .map(str::to_owned)
        .collect();
    let mut drawn = Vec::new();
    asked_by_dashboard(&dashboard, &mut drawn);
    assert!(alerts.len() >= 6 && drawn.len() >= 14, "{alerts:?} {drawn:?}");
    for expression in alerts.iter().chain(&drawn) {
        for name in asked(expression) {
            assert!(known.contains(name.as_str()), "{name} is not exported: {expression}");
        }
    }
    let autoscaler = format!("{ops}/../deploy/helm/terrace/templates/autoscaler.yaml");
    let autoscaler = std::fs::read_to_string(autoscaler);
    let autoscaler = autoscaler.expect("a file");
    let mut signals = autoscaler.lines().filter_map(|it| it.trim().strip_prefix("name: terrace_"));
    assert!(signals.all(|name| known.contains(format!("terrace_{name}").as_str())));
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("text");
            assert!(!asked(expression).is_empty(), "{expression}");
            assert!(!expression.contains("rate(") || expression.contains("[$__rate_interval]"));
        }
    }
    content(&promtool(&["check", "rules", &rules], "").await);
    let tests = format!("{ops}/prometheus/terrace.rules.test.yml");
    content(&promtool(&["test", "rules", &tests], "").await);
    let level = json!(asked("sum by (cache_level) (rate(cache_hits_total{a=\"b_c\"}[5m])) > x_y"));
    assert_eq!(level, json!(["cache_hits_total"]));
}
