//! Tables that other programs keep in the same schema.

use terrace_core::{ErrorKind, ReadModel as _, Runtime, StoreExt as _};
use terrace_lab::testing;
use terrace_stores::postgres::ConnectionSource;
use terrace_stores::{PostgresOptions, PostgresReadModel, PostgresShard, PostgresStore};

use super::{key, session, value};

fn options(url: &str) -> PostgresOptions {
    PostgresOptions { source: ConnectionSource::pooled(1, 2), ..PostgresOptions::new(url) }
}

/// All that is in the schema `public` of these tables.
async fn picture(hand: &tokio_postgres::Client, tables: &[&str]) -> String {
    let mut all = String::new();
    for table in tables {
        let columns = "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ',' \
             ORDER BY attnum) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0";
        let columns = hand.query_one(columns, &[table]).await.expect("columns");
        let rows =
            format!("SELECT coalesce(string_agg(t::text, ',' ORDER BY t), '') FROM {table} t");
        let rows = hand.query_one(&rows, &[]).await.expect("rows");
        all.push_str(&format!(
            "{table}({}): {}\n",
            columns.get::<_, Option<String>>(0).unwrap_or_default(),
            rows.get::<_, String>(0)
        ));
    }
    all
}

/// Common names: earlier ones of Terrace's own tables.
#[tokio::test]
async fn tables_with_common_names_are_in_nobodys_way() {
    const FOREIGN: &str = "CREATE TABLE meta (name text PRIMARY KEY, value text); \
         INSERT INTO meta VALUES ('schema', '999'), ('log', 'ours'), ('settled', '9223372036854775807'); \
         CREATE TABLE idempotency (id int, key text); INSERT INTO idempotency VALUES (1, 'k'); \
         CREATE TABLE shard (number int); INSERT INTO shard VALUES (7); \
         CREATE TABLE shard_followed (who text); \
         CREATE TABLE projection (name text, source text); INSERT INTO projection VALUES ('live', ''); \
         CREATE TABLE parked (car text); CREATE TABLE words (word text); \
         CREATE TABLE activity (minute int, what text); INSERT INTO activity VALUES (1, 'x'); \
         CREATE FUNCTION shard_enter(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false'";
    const NAMES: [&str; 8] = [
        "meta",
        "idempotency",
        "shard",
        "shard_followed",
        "projection",
        "parked",
        "words",
        "activity",
    ];
    for schema in ["2", "4", "999", "first"] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        hand.batch_execute(&FOREIGN.replace("999", schema)).await.expect("foreign tables");
        let before = picture(&hand, &NAMES).await;
        let logged = PostgresOptions { change_log: true, ..options(&url) };
        let store = PostgresStore::connect(logged, Runtime::system()).await.expect("a store");
        store.put(key("a"), value("1")).await.expect("a put");
        let shard = PostgresShard::connect(options(&url), Runtime::system()).await;
        shard.expect("a shard");
        assert_eq!(picture(&hand, &NAMES).await, before);

        let url = testing::fresh_database();
        let hand = session(&url).await;
        hand.batch_execute(FOREIGN).await.expect("foreign tables");
        let before = picture(&hand, &NAMES).await;
        let model = PostgresReadModel::connect(options(&url), Runtime::system()).await;
        let model = model.expect("a read model");
        assert!(
            model.read(&[key("a")], terrace_core::Budget::default()).await.expect("rows").rows[0]
                .record
                .is_none()
        );
        assert_eq!(picture(&hand, &NAMES).await, before);
    }
}

/// Terrace's own names, by accident.
#[tokio::test]
async fn a_foreign_table_with_a_name_of_terraces_own_is_refused_by_name() {
    for table in [
        "terrace_meta",
        "terrace_idempotency",
        "terrace_history",
        "terrace_shard",
        "terrace_shard_followed",
        "commands",
        "terrace_projection",
        "terrace_parked",
        "terrace_activity",
        "terrace_words",
    ] {
        for foreign in [
            format!(
                "CREATE TABLE {table} (id int, version int); INSERT INTO {table} VALUES (1, 2)"
            ),
            format!("CREATE VIEW {table} AS SELECT 1 AS id"),
        ] {
            let url = testing::fresh_database();
            let hand = session(&url).await;
            hand.batch_execute(&foreign).await.expect(table);
            let before = picture(&hand, &[table]).await;
            let of_a_shard = table.contains("shard");
            let of_a_model =
                ["projection", "parked", "activity", "words"].iter().any(|it| table.ends_with(it));
            let logged = PostgresOptions { change_log: true, ..options(&url) };
            let refused = match (of_a_shard, of_a_model) {
                (true, _) => {
                    PostgresShard::connect(options(&url), Runtime::system()).await.map(drop)
                }
                (_, true) => {
                    PostgresReadModel::connect(options(&url), Runtime::system()).await.map(drop)
                }
                _ => PostgresStore::connect(logged, Runtime::system()).await.map(drop),
            };
            let error = refused.expect_err(table);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{table}: {error}");
            assert!(error.message().contains(&format!("`{table}`")), "{table}: {error}");
            assert!(error.message().contains("database.schema"), "{table}: {error}");
            assert_eq!(picture(&hand, &[table]).await, before, "it is left alone");
            // The advice.
            let elsewhere = PostgresOptions { schema: "elsewhere".into(), ..options(&url) };
            PostgresStore::connect(elsewhere, Runtime::system()).await.expect("another schema");
        }
    }
}

/// What keeps a table of records from being taken over is named, and nothing is changed.
#[tokio::test]
async fn what_is_in_the_way_of_taking_records_over_is_named() {
    const TABLE: &str = "CREATE TABLE records (key varchar(255) PRIMARY KEY, value varchar(9))";
    let own = "CREATE TABLE records (key text PRIMARY KEY, value text";
    for (made, named, lifted) in [
        (
            format!("{TABLE}; CREATE VIEW shown AS SELECT key, value FROM records"),
            &["shown", "view"][..],
            "DROP VIEW shown",
        ),
        (
            format!("{TABLE}; INSERT INTO records VALUES ('a', NULL)"),
            &["`value`", "NULL"],
            "DELETE FROM records",
        ),
        (
            format!("{own}, loud text GENERATED ALWAYS AS (upper(key)) STORED)"),
            &["loud", "generated"],
            "ALTER TABLE records DROP COLUMN loud",
        ),
        (
            "CREATE TABLE records (key text PRIMARY KEY, name text, \
             value text GENERATED ALWAYS AS (upper(name)) STORED)"
                .into(),
            &["`value`", "generated"],
            "ALTER TABLE records ALTER value DROP EXPRESSION",
        ),
        (
            "CREATE VIEW records AS SELECT 'a' AS key, 'b' AS value".into(),
            &["view"],
            "DROP VIEW records",
        ),
        (
            format!("{own}, tenant int NOT NULL)"),
            &["`tenant`"],
            "ALTER TABLE records ALTER tenant SET DEFAULT 0",
        ),
        (
            "CREATE TABLE records (key text PRIMARY KEY, value jsonb)".into(),
            &["`value`", "jsonb"],
            "ALTER TABLE records ALTER value TYPE text",
        ),
        (
            "CREATE TABLE records (key text, value text)".into(),
            &["`key`", "unique"],
            "ALTER TABLE records ADD PRIMARY KEY (key)",
        ),
        (
            "CREATE TABLE records (key text PRIMARY KEY, data text)".into(),
            &["`value`"],
            "ALTER TABLE records RENAME data TO value",
        ),
    ] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        hand.batch_execute(&made).await.expect(&made);
        let error = PostgresStore::connect(options(&url), Runtime::system()).await;
        let error = error.expect_err(&made);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{made}: {error}");
        for name in named {
            assert!(error.message().contains(name), "{made}: {error} should name {name}");
        }
        let left = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace \
             AND relkind IN ('r', 'S') AND relname <> 'records'";
        let left = hand.query_one(left, &[]).await.expect("a count").get::<_, i64>(0);
        assert_eq!(left, 0, "{made}: nothing was made");
        hand.batch_execute(lifted).await.expect(lifted);
        let store = PostgresStore::connect(options(&url), Runtime::system()).await;
        store.expect(lifted).put(key("b"), value("1")).await.expect(lifted);
    }
}

#[tokio::test]
async fn an_owner_who_must_be_asked_is_named() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    let other = super::rights::role(&hand, &url, "starter").await;
    hand.batch_execute(&format!(
        "CREATE TABLE records (key text PRIMARY KEY, value text); \
         GRANT ALL ON SCHEMA public TO {0}; GRANT ALL ON records TO {0}",
        other.name
    ))
    .await
    .expect("a table of somebody else");
    let error = PostgresStore::connect(options(&other.url), Runtime::system()).await;
    let error = error.expect_err("it must be altered");
    for name in ["`records`", "terrace", &other.name] {
        assert!(error.message().contains(name), "{error} should name {name}");
    }
    hand.batch_execute(&format!("ALTER TABLE records OWNER TO {}", other.name)).await.expect("it");
    PostgresStore::connect(options(&other.url), Runtime::system()).await.expect("the advice");
}
