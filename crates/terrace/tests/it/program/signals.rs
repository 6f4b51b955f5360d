//! Signals: the first one asks, the second one ends.

use super::{Program, Stores, terrace};

#[tokio::test]
async fn a_terminal_that_goes_away_drains_as_sigterm_does() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(6, &Stores::Embedded(directory.path())).await;
    assert!(program.write("a", "1").await);
    assert_eq!(program.end_by("HUP").await.code(), Some(0));
}

/// `nohup`: whoever starts it wants it to outlive the terminal.
#[tokio::test]
async fn an_ignored_hangup_stays_ignored() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut command = tokio::process::Command::new("/bin/sh");
    let program = terrace(&[]).as_std().get_program().to_owned();
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(program);
    command.args(["serve", "1", "--data-dir"]).arg(directory.path()).kill_on_drop(true);
    let program = Program::start(command).await;
    program.signal("HUP");
    for number in 0..20 {
        assert!(program.write("a", &number.to_string()).await);
    }
    assert_eq!(program.terminate().await.code(), Some(0));
}
