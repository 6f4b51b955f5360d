//! A row that another session holds in an open transaction: writes of that row wait, and no others.

use std::process::Stdio;

use futures_util::future::join_all;
use serde_json::json;
use terrace_lab::testing::replicated;
use terrace_prove::checkers::lost_writes;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;

use super::engines::{postgres_program, sql};
use super::field::{Field, Instance};
use super::until;

/// A session of somebody else with an open transaction.
struct Holder(Child);

impl Holder {
    /// Begins a transaction with this statement.
    async fn begin(url: &str, statement: &str) -> Self {
        let open = "application_name = 'holder' AND state = 'idle in transaction'";
        let others = sessions(url, open).await;
        let mut session = postgres_program("psql", &["-X", "-A", "-t", "-q", url]);
        session.env("PGAPPNAME", "holder").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut session = session.spawn().expect("psql runs");
        let text = format!("BEGIN; {statement};\n");
        let pipe = session.stdin.as_mut().expect("a pipe");
        pipe.write_all(text.as_bytes()).await.expect("a write");
        until("the transaction is open", async || sessions(url, open).await > others).await;
        Self(session)
    }

    /// Ends the transaction.
    async fn end(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().await.expect("psql ends");
    }
}

async fn sessions(url: &str, which: &str) -> u32 {
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {which}"
    );
    sql(url, &count).await.parse().expect("a number")
}

fn lock(keys: &str) -> String {
    format!("SELECT FROM records WHERE key IN ({keys}) FOR UPDATE")
}

/// What a write is answered: the status, and why.
async fn put(instance: &Instance, key: &str, value: &str) -> (u16, String) {
    let url = format!("{}/v1/records/{key}", instance.program.url());
    let request = reqwest::Client::new().put(url).json(&json!({ "value": value }));
    let answer = request.send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

/// Both lanes wait for a row each; what comes meanwhile is one batch, and held rows are in it.
async fn a_held_row_fails_alone(level: u8) {
    let field = Field::new(level).await;
    let a = field.instance("a").await;
    for key in ["held-0", "held-1", "held-2"] {
        a.writes(key, "old").await;
    }
    let rows = Holder::begin(&field.database, &lock("'held-0', 'held-1', 'held-2'")).await;
    let acknowledged = async |key: &str| {
        let (status, text) = put(&a, key, "new").await;
        assert!(status == 200 || status == 201, "{status} {text}");
    };
    let refused = async |key: &str| {
        let (status, text) = put(&a, key, "new").await;
        assert!(status == 503 && text.contains("another session holds the row"), "{status} {text}");
    };
    let batch = async {
        // Answered after the first two writes have come in.
        a.client.read("held-0").strong().send().await;
        let names: Vec<_> = (0..12).map(|number| format!("free-{number}")).collect();
        let free = join_all(names.iter().map(|name| acknowledged(name)));
        tokio::join!(free, join_all(["held-2", "held-0", "held-2"].map(refused)));
    };
    tokio::join!(join_all(["held-0", "held-1"].map(refused)), batch);
    // They are known to be held, and hold up nobody.
    tokio::join!(refused("held-0"), refused("held-1"), acknowledged("free-0"));
    rows.end().await;
    for key in ["held-0", "held-1", "held-2", "free-0"] {
        a.writes(key, "newest").await;
        let read = a.client.read(key).strong().send().await;
        assert_eq!(read.found.as_deref(), Some("newest"), "{read}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fails_alone_at_level_1() {
    a_held_row_fails_alone(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fails_alone_at_level_2() {
    a_held_row_fails_alone(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fails_alone_at_level_5() {
    a_held_row_fails_alone(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fails_alone_at_level_7() {
    a_held_row_fails_alone(7).await;
}

/// A row that is being inserted shows itself to nobody; a prepared transaction has no session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inserted_and_prepared() {
    let servers = replicated(0, &[("max_prepared_transactions", "4")]).await;
    let field = Field::on(1, servers.primary.url()).await;
    let a = field.instance("a").await;
    a.writes("prepared", "old").await;
    let insert = "INSERT INTO records (key, value) VALUES ('inserted', 'theirs')";
    let holder = Holder::begin(&field.database, insert).await;
    let prepare = format!("BEGIN; {}; PREPARE TRANSACTION 'theirs'", lock("'prepared'"));
    sql(&field.database, &prepare).await;
    let names: Vec<_> = (0..12).map(|number| format!("free-{number}")).collect();
    for _ in 0..2 {
        let free = names.iter().map(|name| a.client.write(name, "new").send());
        let held = ["inserted", "prepared"].map(|key| put(&a, key, "new"));
        let (free, held) = tokio::join!(join_all(free), join_all(held));
        for answer in free {
            assert!(answer.is_acknowledged(), "{answer}");
        }
        for (status, text) in held {
            assert!(status == 503 && text.contains("another session"), "{status} {text}");
        }
    }
    holder.end().await;
    sql(&field.database, "ROLLBACK PREPARED 'theirs'").await;
    a.writes("inserted", "new").await;
    a.writes("prepared", "new").await;
}

/// Everybody waits for a table that is locked, and hears why before the deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_is_waited_for() {
    let field = Field::new(1).await;
    let a = field.instance("a").await;
    a.writes("k", "old").await;
    let table = "LOCK TABLE records IN ACCESS EXCLUSIVE MODE";
    let holder = Holder::begin(&field.database, table).await;
    let read = async {
        let read = a.client.read("k").send().await;
        assert_eq!(read.status, 503, "{read}");
    };
    let ((status, text), ()) = tokio::join!(put(&a, "k", "new"), read);
    assert!(status == 503 && text.contains("has locked a table"), "{status} {text}");
    // One that is let go in time is no failure.
    let waits = "application_name = 'terrace' AND wait_event_type = 'Lock'";
    let release = async {
        until("a write waits", async || sessions(&field.database, waits).await > 0).await;
        holder.end().await;
    };
    tokio::join!(async { drop(a.writes("k", "new").await) }, release);
}

/// A row of the read model is waited for, too, and the write database answers for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_read_model_is_told() {
    // Of its own: open transactions of other tests would hold the log back.
    let servers = replicated(0, &[]).await;
    let field = Field::on(7, servers.primary.url()).await;
    let a = field.instance("a").await;
    let write = a.writes("held", "old").await;
    assert_eq!(a.client.read("held").after(&write).send().await.found.as_deref(), Some("old"));
    let row = "SELECT FROM terrace_read.records WHERE key = 'held' FOR UPDATE";
    let holder = Holder::begin(&field.database, row).await;
    let write = a.writes("held", "new").await;
    until("health says so", async || a.client.document("/health").await["status"] == "degraded")
        .await;
    let read = a.client.read("held").after(&write).send().await;
    assert_eq!(read.found.as_deref(), Some("new"), "{read}");
    holder.end().await;
    a.becomes_healthy().await;
}

/// What a journal has accepted waits for the row, and is applied when it is let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn is_waited_for_by_a_journal() {
    let field = Field::new(6).await;
    let journal = field.journal().await;
    let url = journal.url();
    let of_journal = [("JOURNAL_URL", url.as_str())];
    let a = field.instance_with("a", &field.database, &of_journal).await;
    for key in ["held", "other"] {
        assert!(a.client.write(key, "old").wait().send().await.is_acknowledged());
    }
    let holder = Holder::begin(&field.database, &lock("'held'")).await;
    for number in ["1", "2"] {
        a.writes("held", number).await;
        a.writes("other", number).await;
    }
    until("health says who holds the row", async || {
        let health = a.client.document("/health").await;
        health["status"] == "degraded" && health.to_string().contains("application holder")
    })
    .await;
    for key in ["held", "other"] {
        let read = a.client.read(key).send().await;
        assert_eq!(read.found.as_deref(), Some("2"), "{read}");
        let read = a.client.read(key).strong().send().await;
        assert!(read.status == 503 || read.found.as_deref() == Some("2"), "{read}");
    }
    let rows = sql(&field.database, "SELECT value FROM records WHERE key = 'held'").await;
    assert_eq!(rows, "old", "it was held all the time");
    holder.end().await;
    a.becomes_healthy().await;
    for key in ["held", "other"] {
        let read = a.client.read(key).strong().send().await;
        assert_eq!(read.found.as_deref(), Some("2"), "{read}");
    }
    lost_writes(&field.history.operations()).assert_not_violated();
}
