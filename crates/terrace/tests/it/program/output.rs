//! Output that cannot be written.

use std::process::Stdio;

use super::journal::drained;
use super::{Program, own_postgres, terrace};

/// Where nothing can be written, or nobody reads.
fn nowhere() -> [(&'static str, Stdio); 2] {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("a full device");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    [("a full disk", full.into()), ("a pipe without a reader", writer.into())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_that_cannot_be_written_stop_nothing() {
    for (what, errors) in nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let postgres = own_postgres(directory.path()).await;
        let mut command = terrace(&["serve", "6"]);
        command.env("DATABASE_URL", postgres.create_database("terrace").await.expect("a database"));
        command.env("REDIS_URL", terrace_lab::testing::redis().url()).stderr(errors);
        let program = Program::start(command).await;
        postgres.stop().await.expect("PostgreSQL stops");
        for number in 0..10 {
            assert!(program.write(&format!("k{number}"), "1").await, "{what}: {number}");
        }
        program.becomes("degraded").await;
        postgres.restart().await.expect("PostgreSQL starts again");
        drained(&program).await;
        program.becomes("healthy").await;
        assert_eq!(program.terminate().await.code(), Some(0), "{what}");
    }
}

#[tokio::test]
async fn a_command_whose_output_is_lost_fails_and_one_that_nobody_reads_is_silent() {
    let directory = tempfile::tempdir().expect("a directory");
    let commands: [&[&str]; 12] = [
        &["--help"],
        &["help", "serve"],
        &["--version"],
        &["config"],
        &["config", "--json"],
        &["explain", "1"],
        &["explain", "1", "--json"],
        &["doctor"],
        &["doctor", "--json"],
        &["journal", "status"],
        &["projections", "status", "--json"],
        &["completions", "bash"],
    ];
    for arguments in commands {
        for (what, output) in nowhere() {
            let mut command = terrace(arguments);
            command.current_dir(directory.path()).stdout(output).stderr(Stdio::piped());
            let ended = command.spawn().expect("it starts").wait_with_output().await;
            let ended = ended.expect("it ends");
            let error = String::from_utf8(ended.stderr).expect("text");
            match what {
                "a full disk" => {
                    assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {error}");
                    assert!(error.contains("output cannot be written"), "{arguments:?}: {error}");
                }
                _ => assert_eq!((ended.status.code(), &*error), (Some(0), ""), "{arguments:?}"),
            }
        }
    }
}

/// What a server says as it starts is for people; it serves without.
#[tokio::test]
async fn a_server_whose_greeting_is_lost_serves() {
    for (what, output) in nowhere() {
        let directory = tempfile::tempdir().expect("a directory");
        let port = super::free_port();
        let mut command = terrace(&["serve", "1", "--port", &port.to_string(), "--data-dir"]);
        let child = command.arg(directory.path()).stdout(output).spawn().expect("it starts");
        let (url, client) = (format!("http://127.0.0.1:{port}"), reqwest::Client::new());
        while client.get(format!("{url}/livez")).send().await.is_err() {
            tokio::task::yield_now().await;
        }
        let program = Program { child, said: Vec::new(), url, client };
        assert!(program.write("a", "1").await);
        assert_eq!(program.terminate().await.code(), Some(0), "{what}");
    }
}
