//! Databases that a level cannot use, by each way in which settings name one.

use std::process::Output;

use terrace_lab::testing;

use super::{Program, Stores, terrace};
use crate::freshness::{engines::sql, until};

/// What the program says when it ends instead of serving.
async fn refusal(level: u8, environment: &[(&str, &str)]) -> String {
    let level = level.to_string();
    let mut command = terrace(&["serve", &level, "--port", "0"]);
    command.envs(environment.iter().copied());
    let Output { status, stderr, .. } = command.output().await.expect("it runs");
    let said = String::from_utf8(stderr).expect("text");
    assert_eq!(status.code(), Some(1), "level {level}, {environment:?}: {said}");
    said
}

/// Waits until a read without a token shows the write, which takes a moment at level 7.
async fn shows(program: &Program, level: u8) {
    until(&format!("level {level} shows it"), async || {
        program.read("a").await.expect("a read").as_deref() == Some("1")
    })
    .await;
}

/// A database of the shared server by its name, through a pooler.
fn through(pooler: &terrace_lab::PgBouncer, database: &str) -> String {
    pooler.database_url(database.rsplit_once('/').expect("a path").1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_level_serves_behind_a_transaction_pooler() {
    let settings = [("pool_mode", "transaction"), ("ignore_startup_parameters", "options")];
    let pooler = testing::pgbouncer(&settings);
    let (cache, database) = (testing::redis().url(), testing::fresh_database());
    let url = through(&pooler, &database);
    for level in (0..=7).chain([9]) {
        let said = refusal(level, &[("DATABASE_URL", &url), ("REDIS_URL", &cache)]).await;
        assert!(said.contains("pool_mode = session"), "level {level}: {said}");
    }
    let doctor = terrace(&["doctor"]).env("DATABASE_URL", &url).output().await.expect("it runs");
    let found = String::from_utf8(doctor.stdout).expect("text");
    assert!(found.contains("pool_mode = session"), "{found}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN \
                  ('pg_catalog', 'information_schema')";
    assert_eq!(sql(&database, tables).await, "0", "nothing was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_level_serves_behind_a_session_pooler() {
    let pooler = testing::pgbouncer(&[("pool_mode", "session"), ("default_pool_size", "200")]);
    let cache = testing::redis();
    for level in (0..=7).chain([9]) {
        let database = through(&pooler, &testing::fresh_database());
        let stores = Stores::Servers { database: &database, cache: &cache.url() };
        // A journal must not share a Redis that may evict; here nothing does.
        let program = Program::serve(level, &stores).await;
        assert!(program.write("a", "1").await, "level {level}");
        shows(&program, level).await;
        assert!(program.terminate().await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_encoding_is_refused_whatever_names_it() {
    let (good, cache) = (testing::fresh_database(), testing::redis().url());
    let (server, name) = good.rsplit_once('/').expect("a path");
    let latin = format!("{name}_latin");
    let create = format!(
        "CREATE DATABASE {latin} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    );
    sql(&good, &create).await;
    let latin = format!("{server}/{latin}");
    for level in (0..=7).chain([9]) {
        let said = refusal(level, &[("DATABASE_URL", &latin), ("REDIS_URL", &cache)]).await;
        assert!(said.contains("LATIN1") && said.contains("createdb"), "level {level}: {said}");
    }
    for (level, name) in
        [(3, "REPLICA_DATABASE_URL"), (4, "SHARD_1_URL"), (7, "WRITE_DB_URL"), (7, "READ_DB_URL")]
    {
        let environment = [
            ("DATABASE_URL", good.as_str()),
            ("SHARD_0_URL", &good),
            ("REDIS_URL", &cache),
            (name, &latin),
        ];
        let said = refusal(level, &environment).await;
        assert!(said.contains("LATIN1") && said.contains("createdb"), "{name}: {said}");
    }
}

/// The advice of the refusal is followed at every level.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_schema_can_be_named_where_a_foreign_table_is_in_the_way() {
    let cache = testing::redis().url();
    for level in 0..=7 {
        let database = testing::fresh_database();
        let foreign = "CREATE TABLE records (id serial, title text); \
             INSERT INTO records (title) VALUES ('x'); CREATE TABLE meta (name text, value text)";
        sql(&database, foreign).await;
        // Level 4 has a schema for each shard, unless each has a database.
        let environment =
            [("DATABASE_URL", &*database), ("SHARD_0_URL", &database), ("REDIS_URL", &cache)];
        let said = refusal(level, &environment).await;
        assert!(said.contains("`records`") && said.contains("database.schema"), "{level}: {said}");
        let stores = Stores::Servers { database: &database, cache: &cache };
        let named = [("TERRACE_DATABASE_SCHEMA", "user"), ("SHARD_0_URL", &*database)];
        let program = Program::serve_with(level, &stores, &[], &named).await;
        assert!(program.write("a", "1").await, "level {level}");
        shows(&program, level).await;
        assert!(program.terminate().await.success());
        let left = "SELECT (SELECT string_agg(title, '') FROM public.records), \
             (SELECT count(*) FROM pg_tables WHERE schemaname = 'public'), \
             to_regclass('\"user\".records') IS NOT NULL";
        assert_eq!(sql(&database, left).await, "x|2|t", "level {level}");
    }
}
