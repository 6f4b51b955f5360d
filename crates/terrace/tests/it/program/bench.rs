//! `terrace bench` as people run it: a run, a server of another kind, Ctrl-C, mistakes.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::{Program, Stores, free_port, terrace};

pub(super) const SHORT: [&str; 6] = ["--duration", "500ms", "--warmup", "1s", "--keys", "300"];

/// Runs `terrace bench` in a folder: exit code, output, errors, the figures.
async fn bench(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String, Value) {
    let mut command = terrace(&["bench", "--json", "figures.json"]);
    let output = command.args(arguments).current_dir(folder).output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let figures = std::fs::read(folder.join("figures.json")).unwrap_or_default();
    let figures = serde_json::from_slice(&figures).unwrap_or_default();
    (output.status.code(), text(output.stdout), text(output.stderr), figures)
}

/// Every phase of a target, which must have answered something and nothing wrongly.
fn sound(target: &Value) -> usize {
    let phases = target["phases"].as_array().expect("phases");
    for phase in phases {
        assert!(phase["done"].as_u64() > Some(0), "{phase}");
        let findings = &phase["findings"];
        for kind in ["stale", "missing", "swapped", "made_up"] {
            assert_eq!(findings[kind], 0, "{findings}");
        }
    }
    assert_eq!((&target["check"]["lost"], &target["check"]["wrong"]), (&0.into(), &0.into()));
    assert_eq!(target["check"]["read"], target["check"]["of"]);
    phases.len()
}

#[tokio::test]
async fn levels_are_started_measured_and_cleared_away() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["1", "5", "--repeat", "2"];
    let arguments: Vec<_> = arguments.into_iter().chain(SHORT).collect();
    let (exit, table, progress, figures) = bench(folder.path(), &arguments).await;
    assert_eq!(exit, Some(0), "{progress}");
    assert_eq!((&figures["format"], &figures["cut_short"]), (&1.into(), &false.into()));
    let targets = figures["targets"].as_array().expect("targets");
    assert_eq!(targets.iter().map(sound).collect::<Vec<_>>(), [4, 4]);
    let near = &targets[1]["phases"][0];
    assert!(near["origins"]["near"].as_u64() > Some(0), "{}", near["origins"]);
    assert!(near["durabilities"]["committed"].as_u64() > Some(0));
    assert!(near["cpu_us"]["terrace"].as_f64() > Some(0.0), "{}", near["cpu_us"]);
    assert!(table.contains("MOST/s") && table.contains("terrace-bench.html"), "{table}");
    let narrow = table.lines().skip_while(|line| !line.contains("MOST/s")).take(3);
    assert!(narrow.into_iter().all(|line| line.chars().count() <= 80), "{table}");
    assert!(progress.contains("flat after"), "{progress}");
    let page = std::fs::read_to_string(folder.path().join("terrace-bench.html")).expect("a page");
    assert!(page.contains("Multi-tier cache"));
    let left = std::fs::read_dir(folder.path().join(".terrace")).expect("the folder").count();
    assert_eq!(left, 0, "the levels' data is removed");
    // The same again, with the first run to compare with.
    let old = folder.path().join("old.json");
    std::fs::copy(folder.path().join("figures.json"), &old).expect("a copy");
    let again: Vec<_> =
        ["1", "--repeat", "1", "--compare", "old.json"].into_iter().chain(SHORT).collect();
    let (exit, table, _, _) = bench(folder.path(), &again).await;
    assert!(exit == Some(0) && table.contains("not judged: one turn only"), "{table}");
}

#[tokio::test]
async fn every_workload_is_answered_rightly() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let program = Program::serve(2, &Stores::Embedded(&data)).await;
    for workload in ["ycsb-d", "ycsb-e", "ycsb-f"] {
        let arguments =
            ["--workload", workload, "--url", &program.url, "--repeat", "1", "--tokens"];
        let arguments: Vec<_> = arguments.into_iter().chain(SHORT).collect();
        let (exit, _, progress, figures) = bench(folder.path(), &arguments).await;
        assert_eq!(exit, Some(0), "{workload}: {progress}");
        assert_eq!(sound(&figures["targets"][0]), 2, "{workload}");
    }
    program.terminate().await;
}

#[tokio::test]
async fn level_8_is_measured_with_documents_and_transactions() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments: Vec<_> = ["8", "--repeat", "1"].into_iter().chain(SHORT).collect();
    let (exit, _, progress, figures) = bench(folder.path(), &arguments).await;
    assert_eq!(exit, Some(0), "{progress}");
    assert_eq!(figures["settings"]["workload"]["name"], "polyglot");
    let level = &figures["targets"][0];
    assert_eq!(sound(level), 2);
    let operations = &level["phases"][1]["operations"];
    for operation in ["read", "update", "post", "statement"] {
        assert!(operations[operation]["count"].as_u64() > Some(0), "{operation}: {operations}");
    }
    assert!(level["check"]["of"].as_u64() > Some(300), "statements too: {}", level["check"]);
    let scans = ["8", "--repeat", "1", "--workload", "ycsb-e"];
    let scans: Vec<_> = scans.into_iter().chain(SHORT).collect();
    let (exit, _, progress, figures) = bench(folder.path(), &scans).await;
    assert_eq!(exit, Some(0), "{progress}");
    assert_eq!(sound(&figures["targets"][0]), 2);
}

#[tokio::test]
async fn what_a_cache_is_worth_shows_at_a_distance() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments =
        ["1", "2", "--stores", "local", "--database-rtt", "20ms", "--cache-rtt", "0.2ms"];
    let arguments: Vec<_> = arguments.into_iter().chain(["--repeat", "1"]).chain(SHORT).collect();
    let (exit, _, progress, figures) = bench(folder.path(), &arguments).await;
    assert_eq!(exit, Some(0), "{progress}");
    assert_eq!(figures["settings"]["database_rtt_ms"], 20.0);
    assert_eq!(figures["settings"]["cache_rtt_ms"], 0.2);
    let targets = figures["targets"].as_array().expect("targets");
    let median = |at: usize| {
        assert_eq!(sound(&targets[at]), 2);
        targets[at]["phases"][1]["operations"]["read"]["p50"].as_f64().expect("a latency")
    };
    // Every read of level 1 crosses the distance; most of level 2 do not.
    let (all, cached) = (median(0), median(1));
    assert!(all >= 20.0 && cached < 20.0, "{all} ms, {cached} ms");
    let page = std::fs::read_to_string(folder.path().join("terrace-bench.html")).expect("a page");
    assert!(page.contains("databases 20 ms away, caches 0.2 ms away"));
    let (exit, _, told, _) = bench(folder.path(), &["1", "--database-rtt", "2ms"]).await;
    assert!(exit == Some(2) && told.contains("--stores local"), "{told}");
}

/// A server with the documents' API alone, as a few lines of any language would make it.
async fn another_server() -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let records = std::sync::Arc::new(std::sync::Mutex::new(std::collections::HashMap::new()));
    let serve = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let records = std::sync::Arc::clone(&records);
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let request = String::from_utf8_lossy(&buffer[..read]).into_owned();
                    let (status, body) = answer(&request, &records);
                    let head =
                        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                    if stream.write_all((head + &body).as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, serve)
}

fn answer(
    request: &str,
    records: &std::sync::Mutex<std::collections::HashMap<String, Value>>,
) -> (&'static str, String) {
    let mut records = records.lock().expect("no panic");
    if let Some(rest) = request.strip_prefix("GET /read/") {
        let key = rest.split(' ').next().unwrap_or_default();
        let value = records.get(key).cloned().unwrap_or_default();
        let body =
            serde_json::json!({"success": !value.is_null(), "value": value, "from_cache": true});
        return ("200 OK", body.to_string());
    }
    if request.starts_with("POST /write ") {
        let body: Value =
            serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap_or_default())
                .expect("a body");
        records.insert(body["key"].as_str().expect("a key").to_owned(), body["value"].clone());
        return ("200 OK", r#"{"success": true}"#.into());
    }
    ("404 Not Found", "{}".into())
}

#[tokio::test]
async fn a_server_with_the_documents_api_alone_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let (url, serve) = another_server().await;
    let named = format!("other={url}");
    let arguments = ["--url", &named, "--repeat", "1", "--rate", "200", "--arrivals", "constant"];
    let arguments: Vec<_> = arguments.into_iter().chain(SHORT).collect();
    let (exit, _, progress, figures) = bench(folder.path(), &arguments).await;
    assert_eq!(exit, Some(0), "{progress}");
    let other = &figures["targets"][0];
    assert_eq!((other["name"].as_str(), sound(other)), (Some("other"), 1));
    assert!(other["phases"][0]["origins"]["far"].as_u64() > Some(0), "{other}");
    let scans: Vec<_> = ["--url", &url, "--workload", "ycsb-e"].into_iter().chain(SHORT).collect();
    let (exit, _, error, _) = bench(folder.path(), &scans).await;
    assert!(error.contains("not applicable"), "{exit:?}: {error}");
    let posts: Vec<_> =
        ["--url", &url, "--workload", "polyglot"].into_iter().chain(SHORT).collect();
    let (exit, _, error, _) = bench(folder.path(), &posts).await;
    assert!(exit == Some(1) && error.contains("it has no /v1/transactions"), "{error}");
    serve.abort();
}

#[tokio::test]
async fn ctrl_c_ends_the_run_and_what_was_measured_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = ["bench", "1", "--duration", "60s", "--warmup", "1s", "--json", "figures.json"];
    let mut command = terrace(&arguments);
    command.current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    while let Some(line) = lines.next_line().await.expect("text") {
        if line.contains("warming up") {
            break;
        }
    }
    let pid = child.id().expect("it runs").to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &pid]).status();
    assert!(sent.expect("kill runs").success());
    let mut table = String::new();
    let mut output = child.stdout.take().expect("a pipe");
    output.read_to_string(&mut table).await.expect("text");
    assert_eq!(child.wait().await.expect("it ends").code(), Some(0));
    assert!(table.contains("Cut short"), "{table}");
    let figures = std::fs::read(folder.path().join("figures.json")).expect("figures");
    let figures: Value = serde_json::from_slice(&figures).expect("JSON");
    assert_eq!(figures["cut_short"], true);
    let page = std::fs::read_to_string(folder.path().join("terrace-bench.html")).expect("a page");
    assert!(page.contains("Cut short."));
    let left = std::fs::read_dir(folder.path().join(".terrace")).expect("the folder").count();
    assert_eq!(left, 0, "the level and its data are gone");
}

#[tokio::test]
async fn mistakes_are_told_in_a_line_before_anything_is_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("mix.toml"), "raed = 100").expect("a file");
    std::fs::write(folder.path().join("old.json"), "{\"format\": 0}").expect("a file");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let base = (taken.local_addr().expect("an address").port() - 1).to_string();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let cases: [(&[&str], &[&str]); 14] = [
        (&["99"], &["no level 99", "choose from"]),
        (&["--url", &nobody], &["cannot be reached"]),
        (&["1", "--url", &nobody], &["cannot be used with"]),
        (&["--url", "ftp://x"], &["http://host:port"]),
        (&["1", "--rate", "10", "--connections", "5"], &["cannot be used with"]),
        (&["1", "--rate", "10", "--ladder"], &["cannot be used with"]),
        (&["1", "--rate", "0"], &["--rate must be"]),
        (&["1", "--port-base", &base], &["cannot be used", "--port-base"]),
        (&["1", "--workload", "mix.toml"], &["unknown key `raed`", "did you mean `read`?"]),
        (&["1", "--workload", "ycsb-x"], &["did you mean `ycsb-"]),
        (&["1", "--duration", "soon"], &["10s or 2m"]),
        (&["1", "--compare", "old.json"], &["format"]),
        (&["1", "--report", "none/report.html"], &["none/report.html", "cannot be written"]),
        (&["1", "--stores", "servers"], &["--url"]),
    ];
    for (arguments, wanted) in cases {
        let (exit, _, error, _) = bench(folder.path(), arguments).await;
        assert_eq!(exit, Some(2), "{arguments:?}: {error}");
        for text in wanted {
            assert!(error.contains(text), "{arguments:?}: {error:?} should say {text:?}");
        }
    }
    assert!(!folder.path().join("figures.json").exists(), "nothing was left behind");
}
