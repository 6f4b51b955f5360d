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
