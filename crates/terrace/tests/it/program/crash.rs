//! `kill -9` amid concurrent writes: nothing acknowledged is lost.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;

use super::{Program, Stores, own_postgres};

const CYCLES: usize = 4;
const WRITERS: usize = 16;
/// How many acknowledgements to wait for in a cycle before the kill.
const ACKNOWLEDGED: usize = 400;

/// The newest acknowledged number of each key.
type Acknowledged = Arc<Mutex<HashMap<String, usize>>>;

/// Writes growing numbers to a few keys until the program is gone.
async fn write_until_gone(
    program: Arc<Program>,
    writer: usize,
    from: usize,
    seen: Acknowledged,
    count: Arc<AtomicUsize>,
) {
    for number in from.. {
        let key = format!("w{writer}-{}", number % 5);
        if !program.write(&key, &number.to_string()).await {
            return;
        }
        seen.lock().expect("not poisoned").insert(key, number);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Every acknowledged write, or a newer one of its key, must be there.
async fn check(program: &Program, seen: &Acknowledged) {
    let seen = seen.lock().expect("not poisoned").clone();
    assert!(!seen.is_empty());
    for (key, number) in seen {
        let value = program.read(&key).await.expect("a read").unwrap_or_default();
        let found: usize = value.parse().unwrap_or_default();
        assert!(found >= number, "{key}: {number} was acknowledged, {value:?} is there");
    }
}

async fn killed_amid_writes(level: u8, stores: Stores<'_>) {
    let seen = Acknowledged::default();
    for cycle in 0..CYCLES {
        let program = Arc::new(Program::serve(level, &stores).await);
        if cycle > 0 {
            check(&program, &seen).await;
        }
        let count = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let from = cycle * 1_000_000;
                let work = write_until_gone(
                    Arc::clone(&program),
                    writer,
                    from,
                    Arc::clone(&seen),
                    Arc::clone(&count),
                );
                tokio::spawn(work)
            })
            .collect();
        while count.load(Ordering::Relaxed) < ACKNOWLEDGED {
            tokio::task::yield_now().await;
        }
        kill_from_outside(&program);
        join_all(writers).await;
        Arc::into_inner(program).expect("the writers are gone").kill().await;
    }
    check(&Program::serve(level, &stores).await, &seen).await;
}

fn kill_from_outside(program: &Program) {
    let pid = program.child.id().expect("it runs").to_string();
    let status = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    assert!(status.expect("kill runs").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_on_sqlite() {
    let directory = tempfile::tempdir().expect("a directory");
    killed_amid_writes(1, Stores::Embedded(directory.path())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_on_postgres() {
    let database = terrace_lab::testing::fresh_database();
    killed_amid_writes(1, Stores::Servers { database: &database, cache: "" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_postgres_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = own_postgres(directory.path()).await;
    let database = server.create_database("terrace").await.expect("a database");
    let stores = Stores::Servers { database: &database, cache: "" };
    let program = Arc::new(Program::serve(1, &stores).await);
    let seen = Acknowledged::default();
    for cycle in 0..CYCLES {
        let count = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let work = write_until_gone(
                    Arc::clone(&program),
                    writer,
                    cycle * 1_000_000,
                    Arc::clone(&seen),
                    Arc::clone(&count),
                );
                tokio::spawn(work)
            })
            .collect();
        while count.load(Ordering::Relaxed) < ACKNOWLEDGED {
            tokio::task::yield_now().await;
        }
        server.kill();
        join_all(writers).await;
        server.restart().await.expect("PostgreSQL starts again");
        program.becomes("healthy").await;
        check(&program, &seen).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_survive_a_stop_and_a_start() {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = |directory: &'static Path| Stores::Embedded(directory);
    let path: &'static Path = Box::leak(directory.path().to_owned().into_boxed_path());
    for level in [0, 1, 2, 5] {
        let program = Program::serve(level, &stores(path)).await;
        assert!(program.write("kept", &level.to_string()).await);
        assert!(program.terminate().await.success(), "SIGTERM ends with exit code 0");
        let program = Program::serve(level, &stores(path)).await;
        assert_eq!(program.read("kept").await, Ok(Some(level.to_string())));
    }
}
