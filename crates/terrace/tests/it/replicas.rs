//! A primary and its streaming standbys under load: tokens, paused replay, kills, promotions.
//!
//! `TERRACE_READS` sets how many reads the token test makes; a million takes some minutes.

mod cached;
mod files;
mod load;
mod servers;

use std::sync::Arc;

use terrace_core::{Node, Runtime, Store};
use terrace_lab::testing::{Replicated, replicated};
use terrace_lab::{PostgresServer, find_program};
use terrace_layers::{Coalesce, CoalesceOptions, Member, ReplicaRouter, ReplicaRouterOptions};
use terrace_stores::{PostgresOptions, PostgresStore};

/// Servers, and what reaches them.
struct Field {
    servers: Replicated,
    members: Vec<Member>,
    history: Arc<str>,
}

impl Field {
    async fn new() -> Self {
        let servers = replicated(2, &[]).await;
        let options = |server: &PostgresServer| PostgresOptions {
            member: true,
            ..PostgresOptions::new(server.url())
        };
        let runtime = Runtime::system();
        let primary = PostgresStore::connect(options(&servers.primary), runtime.clone());
        let primary = primary.await.expect("a primary");
        let history = primary.history();
        let mut members = vec![member(primary)];
        for standby in &servers.standbys {
            let store = PostgresStore::member(options(standby), runtime.clone());
            members.push(member(store.expect("options")));
        }
        Self { servers, members, history }
    }

    async fn router(&self) -> Arc<ReplicaRouter> {
        let (history, members) = (Arc::clone(&self.history), self.members.clone());
        let options = ReplicaRouterOptions::default();
        let router = ReplicaRouter::start(history, members, options, Runtime::system()).await;
        let router = Arc::new(router);
        // The standbys have the tables a moment after the primary.
        until("both replicas serve", || async { in_service(&*router).await == 2 }).await;
        router
    }

    fn standby(&self, number: usize) -> &PostgresServer {
        &self.servers.standbys[number - 1]
    }
}

fn member(store: PostgresStore) -> Member {
    let store = Arc::new(store);
    let node = Arc::clone(&store) as Arc<dyn Node>;
    let merged = Coalesce::new(store, CoalesceOptions::default(), Runtime::system());
    Member { store: Arc::new(merged), node }
}

/// How many replicas the router would ask.
async fn in_service(router: &dyn Store) -> usize {
    let tree = router.inspect().await;
    let tree = tree.find("replica-router").expect("a router");
    let serves = |part: &&terrace_core::Inspection| {
        part.kind == terrace_core::PartKind::Replica && part.status == terrace_core::Status::Healthy
    };
    tree.children.iter().filter(serves).count()
}

/// Waits for what servers bring about; fails after a minute.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let within = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < within, "not within a minute: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Runs a statement as the superuser; again where a standby ended it in favour of its replay.
async fn sql(server: &PostgresServer, statement: &str) -> String {
    let postgres = find_program("postgres").expect("PostgreSQL");
    loop {
        let output = tokio::process::Command::new(postgres.with_file_name("psql"))
            .args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--command", statement])
            .arg(server.url())
            .output()
            .await
            .expect("psql");
        if output.status.success() {
            return String::from_utf8_lossy(&output.stdout).trim().to_owned();
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("conflict with recovery"), "{said}");
    }
}
