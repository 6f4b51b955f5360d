//! Wrong usage and bad surroundings: a clear line, the next step, the right exit code.

use std::process::Output;

use super::{free_port, terrace};

/// Arguments, environment, the exit code, and what the error must say.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, &'a [&'a str]);

async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = terrace(arguments);
    command.envs(environment.iter().copied()).current_dir(directory.path());
    let Output { status, stdout, stderr } = command.output().await.expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_next_step() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address.port())).expect("an address");
    let port = taken.1.to_string();
    let nobody = format!("postgres://u:hush@127.0.0.1:{}/d", free_port());
    let database = terrace_lab::testing::fresh_database();
    let wrong_password = database.replacen(":", ":x", 2).replacen(":x//", "://", 1);
    let cases: [Case<'_>; 9] = [
        (&["serve", "11"], &[], 2, &["no level 11", "0, 1, 2, "]),
        (&["serve", "1", "--port", &port], &[], 1, &["is in use", "--port-base"]),
        (&["serve", "1", "--config", "none.toml"], &[], 2, &["none.toml", "cannot be read"]),
        (&["serve", "1"], &[("TERRACE_SERVER_HOTS", "x")], 2, &["did you mean server.host?"]),
        (&["serve", "1", "--stores", "servers"], &[], 1, &["DATABASE_URL"]),
        (&["serve", "2"], &[("DATABASE_URL", &nobody)], 1, &["REDIS_URL"]),
        (
            &["serve", "1", "--port", "0"],
            &[("DATABASE_URL", &nobody)],
            1,
            &["host and port", "127.0.0.1"],
        ),
        (&["serve", "1", "--port", "0"], &[("DATABASE_URL", &wrong_password)], 1, &["password"]),
        (&["serve", "1", "--port", "0", "--data-dir", "/proc/none"], &[], 1, &["--data-dir"]),
    ];
    for (arguments, environment, code, wanted) in cases {
        let (exit, _, error) = run(arguments, environment).await;
        assert_eq!(exit, Some(code), "{arguments:?}: {error}");
        for text in wanted {
            assert!(error.contains(text), "{arguments:?}: {error:?} should say {text:?}");
        }
        assert!(!error.contains("hush"), "no password is shown: {error}");
    }
}

#[tokio::test]
async fn pages_for_people_and_for_programs() {
    for level in ["0", "1", "2", "4", "5"] {
        let (exit, page, _) = run(&["explain", level], &[]).await;
        assert_eq!(exit, Some(0));
        assert!(page.contains("Guarantee") && page.contains("Observe(Timeout("), "{page}");
        let (_, json, _) = run(&["explain", level, "--json"], &[]).await;
        let page: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(page["level"].to_string(), level);
    }
    let url = "postgres://u:hush@h/d";
    let (exit, settings, _) = run(&["config"], &[("DATABASE_URL", url)]).await;
    assert_eq!(exit, Some(0));
    assert!(settings.contains("postgres://u:***@h/d") && settings.contains("DATABASE_URL"));
    let (exit, found, _) = run(&["doctor"], &[]).await;
    assert_eq!(exit, Some(0));
    assert!(found.contains("data directory"), "{found}");
}

#[tokio::test]
async fn the_version_names_the_features() {
    let (code, said, _) = run(&["--version"], &[]).await;
    assert_eq!(code, Some(0));
    assert!(said.starts_with("terrace 0.") && said.contains("features: "), "{said}");
    assert_eq!(said.contains("nats"), cfg!(feature = "nats"), "{said}");
}

#[tokio::test]
async fn one_directory_serves_one_process() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = super::Stores::Embedded(directory.path());
    let first = super::Program::serve(1, &stores).await;
    let path = directory.path().to_string_lossy().into_owned();
    let (exit, _, error) = run(&["serve", "1", "--port", "0", "--data-dir", &path], &[]).await;
    assert_eq!(exit, Some(1));
    assert!(error.contains("in use") && error.contains("--data-dir"), "{error}");
    assert!(first.terminate().await.success());
}

/// What is read from a file, and not from the environment.
async fn with_file(text: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("terrace.toml"), text).expect("a file");
    let mut command = terrace(&["config"]);
    let output = command.current_dir(directory.path()).output().await.expect("it runs");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[tokio::test]
async fn what_is_out_of_range_is_told_with_its_bounds_and_where_it_stands() {
    let files = [
        ("[server]\nport_base = 70000", "server.port_base", "70000", "from 0 to 65525"),
        ("[database]\npool_max = -1", "database.pool_max", "-1", "from 1 to 10000"),
        ("[cache]\nttl_seconds = 0", "cache.ttl_seconds", "0", "from 1 to 315360000"),
        ("[log]\nformat = \"xml\"", "log.format", "\"xml\"", "text or json"),
        ("[stores]\nnamespace = \"a b\"", "stores.namespace", "\"a b\"", "letters"),
    ];
    for (text, setting, value, bounds) in files {
        let (exit, error) = with_file(text).await;
        assert_eq!(exit, Some(2), "{error}");
        for part in [setting, value, bounds, "terrace.toml"] {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    }
    let variables = [
        ("CACHE_TTL", "99999999999999999999", "cache.ttl_seconds", "from 1 to 315360000"),
        ("TERRACE_SERVER_REQUEST_TIMEOUT_MS", "9223372036854775807", "server.", "to 86400000"),
        ("TERRACE_JOURNAL_REPLICAS", "0", "journal.replicas", "from 1 to 5"),
        ("TERRACE_STORES_MODE", "docker", "stores.mode", "auto, embedded, local or servers"),
    ];
    for (name, value, setting, bounds) in variables {
        let (exit, _, error) = run(&["config"], &[(name, value)]).await;
        assert_eq!(exit, Some(2), "{error}");
        for part in [setting, value, bounds, name] {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    }
    let (exit, _, error) = run(&["config", "--port-base", "65530"], &[]).await;
    assert!(exit == Some(2) && error.contains("--port-base) is 65530"), "{error}");
}

#[tokio::test]
async fn links_to_services_of_kubernetes_are_no_settings() {
    let links = [
        ("TERRACE_PORT", "tcp://10.96.0.7:8000"),
        ("TERRACE_SERVICE_HOST", "10.96.0.7"),
        ("TERRACE_SERVICE_PORT", "8000"),
        ("TERRACE_SERVICE_PORT_HTTP", "8000"),
        ("TERRACE_PORT_8000_TCP", "tcp://10.96.0.7:8000"),
        ("TERRACE_PORT_8000_TCP_ADDR", "10.96.0.7"),
        ("TERRACE_PORT_8000_TCP_PORT", "8000"),
        ("TERRACE_PORT_8000_TCP_PROTO", "tcp"),
        // A service "terrace-cache".
        ("TERRACE_CACHE_PORT", "tcp://[fd00::7]:6379"),
        ("TERRACE_CACHE_SERVICE_HOST", "fd00::7"),
        ("TERRACE_CACHE_SERVICE_PORT", "6379"),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let stores = super::Stores::Embedded(directory.path());
    let program = super::Program::serve_with(1, &stores, &[], &links).await;
    assert!(program.terminate().await.success());
    let typos = [
        ("TERRACE_PORT", "8000"),
        ("TERRACE_SERVER_PORT", "8000"),
        ("TERRACE_SERVICE_HOST", "localhost"),
        ("TERRACE_PORT_8000", "tcp://10.96.0.7:8000"),
    ];
    for (name, value) in typos {
        let (exit, _, error) = run(&["config"], &[(name, value)]).await;
        assert!(exit == Some(2) && error.contains("there is no setting"), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_line_end_after_a_secret_is_no_part_of_it() {
    let database = terrace_lab::testing::fresh_database();
    let redis = terrace_lab::testing::redis().url();
    let (database, redis) = (format!("{database}\n"), format!(" {redis}\r\n"));
    let environment = [("JOURNAL_URL", redis.as_str())];
    let stores = super::Stores::Servers { database: &database, cache: &redis };
    let program = super::Program::serve_with(6, &stores, &[], &environment).await;
    assert!(program.write("a", "1").await);
    assert!(program.terminate().await.success());
    let urls =
        terrace::config::sources::DOCUMENTED_NAMES.iter().filter(|(_, it)| it.contains("url"));
    let shard = [("SHARD_0_URL", "shards.urls")];
    for (name, setting) in urls.chain(&shard) {
        let (_, settings, error) = run(&["config", "--json"], &[(name, "postgres://h/d\n")]).await;
        let all: serde_json::Value = serde_json::from_str(&settings).expect(&error);
        assert_eq!(all[setting]["value"], "postgres://h/d", "{name}");
    }
}

/// All instances together need a session for each of their connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_counts_the_sessions_of_all_instances() {
    let database = terrace_lab::testing::fresh_database();
    for (instances, is_good) in [("1", true), ("1000", false)] {
        let environment =
            [("DATABASE_URL", database.as_str()), ("TERRACE_LIMITS_INSTANCES", instances)];
        let (exit, found, _) = run(&["doctor", "--json"], &environment).await;
        assert_eq!(exit, Some(0));
        let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
        let all = found["findings"].as_array().expect("findings");
        let sessions = all.iter().find(|it| it["what"] == "database sessions").expect("it");
        assert_eq!(sessions["good"], is_good, "{sessions}");
        let says = sessions["says"].as_str().expect("text");
        assert_eq!(says.contains("raise max_connections"), !is_good, "{says}");
    }
}

/// What the user of Redis may not do is named, with the pattern that grants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_rights_that_are_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = terrace_lab::RedisOptions::new(directory.path().join("redis"));
    let server = terrace_lab::RedisServer::start(server).await.expect("Redis starts");
    let url = server.url();
    let (login, address) = url.split_once('@').expect("a login in the URL");
    let cli = terrace_lab::find_program("redis-server").expect("Redis");
    let mut cli = tokio::process::Command::new(cli.with_file_name("redis-cli"));
    cli.env("REDISCLI_AUTH", login.rsplit_once(':').expect("a password").1);
    cli.args(["-p", &server.port().to_string(), "ACL", "SETUSER", "teller", "on", ">secret"]);
    cli.args(["+@all", "resetchannels", "~{terrace:*"]);
    assert!(cli.status().await.expect("redis-cli runs").success());
    let (url, database) =
        (format!("redis://teller:secret@{address}"), terrace_lab::testing::fresh_database());
    let environment = [
        ("DATABASE_URL", database.as_str()),
        ("REDIS_URL", url.as_str()),
        ("JOURNAL_URL", url.as_str()),
    ];
    let (exit, found, _) = run(&["doctor", "--json"], &environment).await;
    assert_eq!(exit, Some(0));
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    let says = |what: &str| {
        let mut all = found["findings"].as_array().expect("findings").iter();
        let one = all.find(|one| one["what"] == what && one["good"] == false);
        one.map(|one| one["says"].to_string()).unwrap_or_default()
    };
    let grants = ["`&{terrace:doctor}:invalidations`", "`~terrace:events:", "`~{terrace-journal:"];
    for (what, grant) in ["cache", "event stream", "journal"].iter().zip(grants) {
        assert!(says(what).contains(grant), "{what}: {found}");
    }
}
