//! What waits in the journal is read through the instance that accepted it, whatever else is away.

use terrace_lab::RedisServer;

use super::field::{Field, Instance};
use super::{WATCH, pause};

async fn apart(field: &Field, journal: &RedisServer) -> Instance {
    let url = journal.url();
    let apart = [("JOURNAL_URL", url.as_str()), ("TERRACE_JOURNAL_FLUSHER", "apart")];
    field.instance_with("a", &field.database, &apart).await
}

async fn restarts(journal: &RedisServer) {
    journal.kill();
    journal.restart().await.expect("Redis starts again");
    pause(WATCH).await;
}

/// A journal that restarts and has kept everything begins a life, in which all of it waits as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_restarts_of_the_journal() {
    let field = Field::new(6).await;
    let journal = field.journal().await;
    let a = apart(&field, &journal).await;
    let mut written = Vec::new();
    for life in 0..3 {
        let key = format!("of-life-{life}");
        written.push((a.writes(&key, "waits").await, key));
        restarts(&journal).await;
        for (write, key) in &written {
            let read = a.client.read(key).send().await;
            assert_eq!(read.found.as_deref(), Some("waits"), "{read}");
            // Somebody else might have applied a later one, for all that is known after a look-up.
            let read = a.client.read(key).after(write).send().await;
            assert!(read.found.as_deref() == Some("waits") || read.status == 503, "{read}");
        }
    }
}

/// Caches have what was before, and the database cannot be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away() {
    let field = Field::new(6).await;
    let journal = field.journal().await;
    let url = journal.url();
    let a = field.instance_with("a", &field.database, &[("JOURNAL_URL", url.as_str())]).await;
    for key in ["one", "two"] {
        assert!(a.client.write(key, "old").wait().send().await.is_acknowledged());
        a.caches(key, "old", "far").await;
    }
    a.postgres.cut();
    for key in ["one", "two"] {
        let write = a.writes(key, "new").await;
        for _ in 0..3 {
            let read = a.client.read(key).send().await;
            assert_eq!(read.found.as_deref(), Some("new"), "{read}");
            let read = a.client.read(key).after(&write).send().await;
            assert_eq!(read.found.as_deref(), Some("new"), "{read}");
        }
    }
    restarts(&journal).await;
    for key in ["one", "two"] {
        let read = a.client.read(key).send().await;
        assert_eq!(read.found.as_deref(), Some("new"), "{read}");
    }
    a.postgres.pass();
}
