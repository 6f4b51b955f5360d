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
