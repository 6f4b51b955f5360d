//! Level 6: a flusher that is cut from the cache, and a journal that is down.

use std::time::Duration;

use terrace_prove::checkers::{Freshness, freshness, sessions};

use super::field::Field;
use super::readers::Readers;
use super::{SLACK, WATCH, pause, rounds};

/// One instance is cut from the cache, and applies what the other has accepted. The other sees its
/// write while it waits, and afterwards, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flusher_that_is_cut_from_the_cache_costs_a_second() {
    for _ in 0..rounds() {
        let field = Field::new(6).await;
        let journal = field.journal().await;
        let url = journal.url();
        let flushes = [("JOURNAL_URL", url.as_str())];
        let accepts = [flushes[0], ("TERRACE_JOURNAL_FLUSHER", "apart")];
        let a = field.instance_with("flushes", &field.database, &flushes).await;
        let b = field.instance_with("accepts", &field.database, &accepts).await;
        let keys: Vec<_> = (0..4).map(|number| format!("k{number}")).collect();
        for key in &keys {
            b.client.write(key, "old").wait().send().await;
            b.caches(key, "old", "far").await;
        }
        a.redis.cut();
        let readers = Readers::start(&[&b.client], &keys);
        for key in &keys {
            b.writes(key, "new").await;
        }
        pause(Duration::from_secs(4)).await;
        readers.end().await;
        assert!(a.redis.evidence().refused > 0, "the flusher tried to reach the cache");
        let promise = Freshness { allowed: WATCH + SLACK, ..Freshness::default() };
        freshness(&field.history.operations(), &promise).assert_holds();
    }
}

/// Nothing waits, so a token asks the journal nothing that the database does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_answered_while_the_journal_is_down() {
    for _ in 0..rounds() {
        let field = Field::new(6).await;
        let journal = field.journal().await;
        let url = journal.url();
        let environment = [("JOURNAL_URL", url.as_str())];
        let a = field.instance_with("a", &field.database, &environment).await;
        let b = field.instance_with("b", &field.database, &environment).await;
        let accepted = a.writes("accepted", "1").await;
        let applied = a.client.write("applied", "1").wait().send().await;
        let seen = a.client.read("accepted").strong().after(&accepted).after(&applied).send().await;
        assert!(seen.has_read() && seen.found.is_some(), "{seen}");
        journal.kill();
        let mut refused = Vec::new();
        // What was applied before its answer asks for the database alone; the instance that took the
        // other write knows that it does not wait any more.
        for (instance, key, answer) in [
            (&a, "applied", &applied),
            (&b, "applied", &applied),
            (&a, "accepted", &seen),
            (&a, "applied", &seen),
        ] {
            let read = instance.client.read(key).after(answer).send().await;
            if !read.has_read() {
                refused.push(read.to_string());
            }
        }
        sessions(&field.history.operations()).assert_not_violated();
        assert!(refused.is_empty(), "nothing waits:\n{}", refused.join("\n"));
    }
}
