//! A Redis that says no: the reason is told, nothing was appended, and what waits can be settled.

use terrace_core::testkit::journal_contract::claim_all;
use terrace_core::{ErrorKind, Journal, Runtime, Settled, Status};
use terrace_lab::{Persistence, RedisServer};
use terrace_stores::RedisJournalOptions;

use super::{connect, options, put, server};

/// A command beside the journal; what it says no to is the test's business.
async fn by_hand(server: &RedisServer, words: &str) {
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut words = words.split(' ');
    let mut command = ::redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    let _: () = command.query_async(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_no_writes_says_why_and_what_waits_is_settled() {
    let (server, _directory) = server(Persistence::None).await;
    for (no, yes, reason) in [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "OOM"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", "READONLY"),
    ] {
        let journal = connect(options(server.url())).await;
        journal.append(vec![put("a")]).await.expect("an append");
        by_hand(&server, no).await;
        let refused = journal.append(vec![put("b")]).await.expect_err(reason);
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{reason}: nothing was appended");
        assert!(refused.message().contains(reason), "{refused}");
        let tree = journal.inspect().await;
        assert_eq!(tree.status, Status::Down, "{reason}");
        assert!(tree.note.contains(reason), "{}", tree.note);
        if reason == "OOM" {
            // Else nothing would ever make room; through an instance that has just come, too.
            let another = connect(options(server.url())).await;
            let done = claim_all(&another).await.iter().map(Settled::of).collect();
            assert_eq!(another.settle(done).await.expect("a settlement").writes, 0);
        }
        by_hand(&server, yes).await;
        let again = loop {
            match journal.append(vec![put("c")]).await {
                Ok(again) => break again,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
            }
            tokio::task::yield_now().await;
        };
        assert!(again.spans[0].is_ok());
        assert_eq!(journal.inspect().await.status, Status::Healthy, "{reason}");
        by_hand(&server, "FLUSHALL").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_says_so() {
    let (server, _directory) = server(Persistence::None).await;
    let journal = connect(options(server.url())).await;
    by_hand(&server, "CONFIG SET busy-reply-threshold 10").await;
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let endless = Runtime::system().spawn("endless script", async move {
        let script = ::redis::Script::new("while true do end");
        let _ended: ::redis::RedisResult<()> = script.invoke_async(&mut connection).await;
    });
    let refused = loop {
        if let Err(error) = journal.append(vec![put("a")]).await {
            break error;
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("BUSY"), "{refused}");
    by_hand(&server, "SCRIPT KILL").await;
    endless.await;
    journal.append(vec![put("b")]).await.expect("an append");
}

/// The missing right, and the pattern that grants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_without_rights_is_told_which() {
    let (server, _directory) = server(Persistence::None).await;
    let keys = "{terrace-journal}:*";
    for (rights, says) in [
        ("+@all ~other:*".to_owned(), format!("grant `~{keys}`")),
        (format!("+@all -xadd ~{keys}"), "run what is needed (ACL); grant EVALSHA".to_owned()),
    ] {
        by_hand(&server, &format!("ACL SETUSER teller reset on >secret {rights}")).await;
        let address = server.url().split_once('@').unwrap().1.to_owned();
        let url = format!("redis://teller:secret@{address}");
        let journal = connect(RedisJournalOptions { ..options(url) }).await;
        let refused = journal.append(vec![put("a")]).await.expect_err("it has no rights");
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(refused.message().contains(&says), "{refused}");
    }
    let journal = connect(options(format!("redis://127.0.0.1:{}/", server.port()))).await;
    let note = journal.inspect().await.note;
    assert!(note.contains("user name or password"), "{note}");
}
