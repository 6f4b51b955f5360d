//! Two instances on one PostgreSQL and one Redis.

use std::time::Duration;

use super::{Program, Stores};

/// The bound of level 5 for a write through another instance.
const BOUND: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_through_one_is_seen_through_the_other() {
    let database = terrace_lab::testing::fresh_database();
    let cache = terrace_lab::testing::redis().url();
    let stores = Stores::Servers { database: &database, cache: &cache };
    let (a, b) = (Program::serve(5, &stores).await, Program::serve(5, &stores).await);
    a.becomes("healthy").await;
    b.becomes("healthy").await;
    for round in 0..200 {
        let value = round.to_string();
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        // The reader's near cache holds the old value.
        reader.read("shared").await.expect("a read");
        reader.read("shared").await.expect("a read");
        assert!(writer.write("shared", &value).await);
        assert_eq!(writer.read("shared").await, Ok(Some(value.clone())), "fresh where written");
        let seen = tokio::time::timeout(BOUND, async {
            while reader.read("shared").await != Ok(Some(value.clone())) {
                tokio::task::yield_now().await;
            }
        });
        seen.await.expect("seen through the other instance within the bound");
    }
}
