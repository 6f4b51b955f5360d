//! Servers that are wrong, slow, gone, or back.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{ErrorKind, ReadOptions, Runtime, Status, Store, StoreExt, Write, WriteOptions};
use terrace_lab::{PostgresServer, testing};
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{key, session, value, within};

async fn refused(url: &str) -> String {
    let options = PostgresOptions::new(url);
    let error = PostgresStore::connect(options, Runtime::system()).await.expect_err(url);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let server = testing::postgres().port().to_string();
    assert!(!error.message().contains(&server), "no address for clients: {error}");
    error.to_string()
}

#[tokio::test]
async fn each_mistake_in_the_url_has_its_own_answer() {
    let good = testing::fresh_database();
    let (start, database) = good.rsplit_once('/').expect("a database");
    let (user, host) = start.rsplit_once('@').expect("a user");
    let (user, password) = user.rsplit_once(':').expect("a password");
    let wrong = refused(&format!("{user}:wrongpassword@{host}/{database}")).await;
    assert!(wrong.contains("user or the password") && wrong.contains(host), "{wrong}");
    assert!(!wrong.contains("wrongpassword"));
    let nobody = refused(&format!("postgres://nobody:x@{host}/{database}")).await;
    assert!(nobody.contains("user or the password"), "{nobody}");
    let missing = refused(&format!("{start}/missing")).await;
    assert!(missing.contains("createdb") && !missing.contains(password), "{missing}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let free = port.local_addr().expect("an address").port();
    drop(port);
    let down = refused(&format!("postgres://a:b@127.0.0.1:{free}/c")).await;
    assert!(down.contains("cannot be reached") && down.contains(&free.to_string()), "{down}");
    let encrypted = refused(&format!("{good}?sslmode=require")).await;
    assert!(encrypted.contains("cannot be reached"), "{encrypted}");
}

#[tokio::test]
async fn a_statement_past_the_servers_limit_changed_nothing() {
    let url = testing::fresh_database();
    let options = PostgresOptions {
        source: ConnectionSource::pooled(1, 1),
        statement_timeout: Duration::from_millis(200),
        ..PostgresOptions::new(&url)
    };
    let store = PostgresStore::connect(options, Runtime::system()).await.expect("a store");
    store.put(key("a"), value("0")).await.expect("a put");
    let mut hand = session(&url).await;
    let lock = hand.transaction().await.expect("a transaction");
    lock.execute("SELECT 1 FROM records WHERE key = 'a' FOR UPDATE", &[]).await.expect("a lock");
    for write in [Write::put(key("a"), value("1")), Write::delete(key("a"))] {
        let error = store.write_one(write).await.expect_err("locked");
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    }
    lock.rollback().await.expect("a rollback");
    let record = store.get(&key("a")).await.expect("a read").expect("a record");
    assert_eq!(record.value.as_str(), "0");
}

async fn private_server(directory: &std::path::Path) -> PostgresServer {
    let options = terrace_lab::PostgresOptions {
        temporary: true,
        ..terrace_lab::PostgresOptions::new(directory.join("server"))
    };
    PostgresServer::start(options).await.expect("a server")
}

/// Kills the server under load and starts it again, several times: what was acknowledged is there, and
/// the pool works at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_acknowledged_and_the_pool_recovers() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = private_server(directory.path()).await;
    let options = PostgresOptions {
        source: ConnectionSource::pooled(2, 4),
        ..PostgresOptions::new(server.url())
    };
    let store = Arc::new(PostgresStore::connect(options, Runtime::system()).await.expect("store"));
    for round in 0..3 {
        let writer = Arc::clone(&store);
        let (send, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
        let load = tokio::task::spawn(async move {
            for count in 0_u64.. {
                let text = format!("{round}-{count}");
                match writer.put(key("a"), value(&text)).await {
                    Ok(receipt) => drop(send.send((receipt.version, text))),
                    Err(error) => {
                        let kinds = [ErrorKind::OutcomeUnknown, ErrorKind::Unavailable];
                        assert!(kinds.contains(&error.kind()), "{error}");
                        return;
                    }
                }
            }
        });
        for _ in 0..20 {
            acknowledged.recv().await.expect("an acknowledgement");
        }
        let killed = server.clone();
        tokio::task::spawn_blocking(move || killed.kill()).await.expect("killed");
        load.await.expect("an honest error");
        assert_eq!(store.get(&key("a")).await.expect_err("down").kind(), ErrorKind::Unavailable);
        let mut newest = None;
        while let Some(latest) = acknowledged.recv().await {
            newest = Some(latest);
        }
        server.restart().await.expect("a restart");
        let record = store.get(&key("a")).await.expect("usable at once").expect("a record");
        if let Some((version, text)) = newest {
            assert!(record.version >= version, "an acknowledged write was lost");
            assert!(record.version > version || record.value.as_str() == text);
        }
        store.put(key("a"), value("after")).await.expect("usable at once");
    }
    store.close().await.expect("closed");
    server.stop().await.expect("stopped");
}

/// A server that answers nothing: every call ends at its deadline, honestly, and all is well once the
/// server goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_nobody_past_the_deadline() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = private_server(directory.path()).await;
    let options = PostgresOptions {
        source: ConnectionSource::pooled(2, 2),
        ..PostgresOptions::new(server.url())
    };
    let runtime = Runtime::system();
    let store = PostgresStore::connect(options, runtime.clone()).await.expect("a store");
    store.put(key("a"), value("1")).await.expect("a put");
    server.pause();
    let mut late = Duration::ZERO;
    let limit = Duration::from_millis(150);
    for round in 0..10 {
        let start = runtime.now();
        let error = if round % 2 == 0 {
            let how = ReadOptions::strong(within(limit));
            store.get_read(&key("a"), &how).await.expect_err("silent")
        } else {
            let how = WriteOptions { deadline: within(limit), ..WriteOptions::default() };
            let put = vec![Write::put(key("a"), value("2"))];
            store.write(put, &how).await.expect_err("silent")
        };
        late = late.max((runtime.now() - start).saturating_sub(limit));
        let expected = match round {
            0 => ErrorKind::DeadlineExceeded,
            1 => ErrorKind::OutcomeUnknown,
            _ => ErrorKind::Unavailable,
        };
        assert_eq!(error.kind(), expected, "round {round}: {error}");
    }
    // Not a measurement: far below the statement timeout, which is what a missing bound waits for.
    assert!(late < Duration::from_secs(2), "late by {late:?}");
    assert_eq!(store.inspect().await.status, Status::Down);
    server.resume();
    store.get(&key("a")).await.expect("a read").expect("a record");
    server.stop().await.expect("stopped");
}
