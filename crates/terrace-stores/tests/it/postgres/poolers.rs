//! PgBouncer before the server: a session pooler is as good as none, a transaction pooler is refused.

use terrace_core::{ChangeLog as _, Deadline, Node as _};
use terrace_core::{ErrorKind, LogPosition, Runtime, Store as _, StoreExt as _};
use terrace_lab::{PgBouncer, testing};
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};

use super::{key, session, value};

/// As it comes, and as people set it up when a program's `options` are refused.
const SETTINGS: [&[(&str, &str)]; 2] = [&[], &[("ignore_startup_parameters", "options")]];

fn pooler(mode: &str, settings: &[(&str, &str)]) -> PgBouncer {
    testing::pgbouncer(&[&[("pool_mode", mode)], settings].concat())
}

/// The URLs of a new database, through the pooler and straight.
fn database(pooler: &PgBouncer) -> (String, String) {
    let direct = testing::fresh_database();
    let name = direct.rsplit_once('/').expect("a path").1;
    (pooler.database_url(name), direct.clone())
}

fn options(url: &str, source: ConnectionSource) -> PostgresOptions {
    let connect_timeout = std::time::Duration::from_secs(30);
    PostgresOptions { source, connect_timeout, ..PostgresOptions::new(url) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_pooler_is_refused_and_named() {
    for settings in SETTINGS {
        let pooler = pooler("transaction", settings);
        let (url, direct) = database(&pooler);
        let pooled = || options(&url, ConnectionSource::pooled(1, 4));
        let per_request = options(&url, ConnectionSource::per_request());
        let refusals = [
            PostgresStore::connect(pooled(), Runtime::system()).await.map(drop),
            PostgresStore::connect(per_request, Runtime::system()).await.map(drop),
            PostgresShard::connect(pooled(), Runtime::system()).await.map(drop),
            PostgresReadModel::connect(pooled(), Runtime::system()).await.map(drop),
            PostgresStore::report(pooled(), Runtime::system()).await.map(drop),
        ];
        for refused in refusals {
            let error = refused.expect_err("two sessions are one");
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.message().contains("pool_mode = session"), "{error}");
        }
        let made = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
        let made = session(&direct).await.query_one(made, &[]).await.expect("a count");
        assert_eq!(made.get::<_, i64>(0), 0, "nothing was made");
        // What others do through the pooler is not changed by the sessions that were refused.
        let others = session(&url).await;
        for setting in ["search_path", "enable_seqscan", "statement_timeout", "plan_cache_mode"] {
            let shown = others.query_one(&format!("SHOW {setting}"), &[]).await.expect("it");
            let (shown, usual) = (shown.get::<_, String>(0), "SELECT reset_val FROM pg_settings");
            let usual = format!("{usual} WHERE name = '{setting}'");
            let usual = others.query_one(&usual, &[]).await.expect("it").get::<_, String>(0);
            assert_eq!(shown, usual, "{setting}");
        }
    }
}

/// A server of several is looked at when it is first asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_behind_a_transaction_pooler_answers_nothing() {
    let pooler = pooler("transaction", SETTINGS[1]);
    let (url, direct) = database(&pooler);
    super::connect(&direct, ConnectionSource::pooled(1, 1)).await;
    let member =
        PostgresStore::member(options(&url, ConnectionSource::pooled(1, 4)), Runtime::system());
    let member = member.expect("options that can be used");
    let _state = member.state(Deadline::NEVER).await;
    let error = member.get(&key("a")).await.expect_err("two sessions are one");
    assert!(error.message().contains("pool_mode = session"), "{error}");
}

/// Without `options` from the client, or where the pooler drops them, each level has its own schema all
/// the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_session_pooler_everything_is_as_without() {
    for settings in SETTINGS {
        let pooler = pooler("session", settings);
        let (url, direct) = database(&pooler);
        for source in [ConnectionSource::pooled(1, 3), ConnectionSource::per_request()] {
            let in_schema = |schema: &str| PostgresOptions {
                schema: schema.to_owned(),
                change_log: true,
                ..options(&url, source.clone())
            };
            let one = PostgresStore::connect(in_schema("one"), Runtime::system()).await;
            let other = PostgresStore::connect(in_schema("other"), Runtime::system()).await;
            let (one, other) = (one.expect("a store"), other.expect("a store"));
            let written = one.put(key("a"), value("1")).await.expect("a put");
            assert_eq!(other.get(&key("a")).await.expect("a read"), None, "schemas are apart");
            let read = one.get(&key("a")).await.expect("a read").expect("a record");
            assert_eq!(read.version, written.version);
            let log = one.log().await.expect("an answer").expect("a log");
            let waited = log.wait(LogPosition::default(), Deadline::NEVER);
            waited.await.expect("a notification, or a look");
            for store in [one, other] {
                store.close().await.expect("closed");
            }
        }
        let hand = session(&direct).await;
        let public = hand.query_one("SELECT to_regclass('public.records') IS NULL", &[]).await;
        assert!(public.expect("a row").get::<_, bool>(0), "nothing is where nobody asked for it");
    }
}
