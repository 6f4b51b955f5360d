//! The servers that all tests of a binary share, used from several runtimes.

use terrace_lab::testing;

use crate::client::{redis, sql};

#[test]
fn databases_are_fresh_for_every_runtime() {
    let in_a_runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async { testing::fresh_database() })
    };
    let (first, second) = (in_a_runtime(), in_a_runtime());
    assert_ne!(first, second);
    sql(&first, "create table t (n int)").expect("an empty database");
    sql(&second, "create table t (n int)").expect("another one");
    assert_eq!(sql(&first, "show fsync").as_deref(), Ok("on"));
}

#[tokio::test]
async fn databases_can_be_made_at_once() {
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(testing::fresh_database)).collect();
    for thread in threads {
        let url = thread.join().expect("a database");
        assert_eq!(sql(&url, "select 1").as_deref(), Ok("1"));
    }
    let same = testing::postgres();
    let (one, two) = tokio::join!(same.create_database("same"), same.create_database("same"));
    assert_eq!(one.expect("a database"), two.expect("the same"));
}

#[tokio::test]
async fn prefixes_are_fresh() {
    let (one, two) = (testing::fresh_prefix(), testing::fresh_prefix());
    assert_eq!(one.url, two.url);
    assert_ne!(one.prefix, two.prefix);
    assert_eq!(redis(&one.url, &format!("INCR {}k", one.prefix)), ":1\r\n");
}
