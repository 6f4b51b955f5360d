//! A table of transactions that another program has made.

use terrace_core::{ErrorKind, Ledger};
use terrace_lab::testing;

use super::{account, all, assert_sound, connect, open, options, post, session};

/// As the described system makes it.
const DESCRIBED: &str = "CREATE TABLE transactions (id SERIAL PRIMARY KEY, user_id VARCHAR(255), \
     amount DECIMAL(10, 2), transaction_type VARCHAR(50), created_at TIMESTAMP DEFAULT NOW()); \
     INSERT INTO transactions (user_id, amount, transaction_type, created_at) VALUES \
     ('user:1', 12.50, 'purchase', '2024-05-01 10:00:00.25'), \
     ('user:2', -0.01, 'refund', '2024-05-02 10:00:00'), \
     ('user:1', 99999999.99, 'purchase', '2023-01-01 00:00:00')";

#[tokio::test]
async fn rows_of_the_described_system_keep_their_ids_and_times() {
    let url = testing::fresh_database();
    let hand = session(&url).await;
    hand.batch_execute(DESCRIBED).await.expect("a table");
    let ledger = connect(&url).await;
    let found = all(&ledger, "user:1").await;
    let found =
        found.iter().map(|it| (it.id, it.posting.amount.cents(), it.created_at.to_string()));
    assert_eq!(
        found.collect::<Vec<_>>(),
        [
            (1, 1250, "2024-05-01T10:00:00.25Z".to_owned()),
            (3, 9_999_999_999, "2023-01-01T00:00:00Z".to_owned()),
        ]
    );
    let (one, version) = account(&ledger, "user:1").await.expect("an account");
    assert_eq!((one.transactions, one.balance.cents()), (2, 10_000_001_249));
    assert_eq!(one.last_at.to_string(), "2024-05-01T10:00:00.25Z");
    assert_eq!(post(&ledger, "user:1", -1).await.id, 4);
    assert_sound(&ledger).await;
    // The described system goes on with its own statement.
    let insert = "INSERT INTO transactions (user_id, amount, transaction_type) \
         VALUES ($1, $2::text::numeric, $3) RETURNING id";
    let row = hand.query_one(insert, &[&"user:2", &"5.55", &"purchase"]).await.expect("a row");
    assert_eq!(row.get::<_, i64>(0), 5);
    assert_eq!(account(&ledger, "user:2").await.expect("one").0.balance.cents(), 554);
    ledger.close().await.expect("closed");
    let again = connect(&url).await;
    let (found, later) = account(&again, "user:1").await.expect("an account");
    assert!(found.transactions == 3 && later > version);
    assert_eq!(again.count().await, Ok(5));
    assert_sound(&again).await;
}

/// A table of rows alone, as after a restore of the data, goes on after the highest id.
#[tokio::test]
async fn ids_go_on_after_those_that_are_there() {
    for table in [
        "CREATE TABLE transactions (id bigint PRIMARY KEY, user_id text, amount numeric, \
         transaction_type text, created_at timestamptz, note text)",
        "CREATE TABLE transactions (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
         user_id varchar(40) NOT NULL, amount numeric(6, 1), transaction_type varchar(9), \
         created_at timestamptz DEFAULT now())",
        "CREATE TABLE transactions (id serial PRIMARY KEY, user_id text, amount numeric(12, 4), \
         transaction_type text, created_at timestamp)",
        "CREATE UNLOGGED TABLE transactions (id smallserial UNIQUE, user_id text, amount numeric, \
         transaction_type text, created_at timestamp)",
    ] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        let rows = "INSERT INTO transactions (id, user_id, amount, transaction_type) \
             OVERRIDING SYSTEM VALUE VALUES (2000, 'a', 12.5, 'x')";
        hand.batch_execute(&format!("{table}; {rows}")).await.expect(table);
        let ledger = connect(&url).await;
        assert_eq!(post(&ledger, "a", 1).await.id, 2001, "{table}");
        hand.batch_execute(
            "INSERT INTO transactions (id, user_id, amount, transaction_type) \
             OVERRIDING SYSTEM VALUE VALUES (5000000000, 'a', 1, 'x')",
        )
        .await
        .expect(table);
        ledger.close().await.expect("closed");
        let ledger = connect(&url).await;
        assert_eq!(post(&ledger, "a", 1).await.id, 5_000_000_001, "{table}");
        assert_eq!(account(&ledger, "a").await.expect("one").0.balance.cents(), 1352, "{table}");
        let logged =
            "SELECT relpersistence = 'p' FROM pg_class WHERE oid = 'transactions'::regclass";
        assert!(hand.query_one(logged, &[]).await.expect("a table").get::<_, bool>(0), "{table}");
        assert_sound(&ledger).await;
    }
}

/// What cannot be kept as it is, is named, and left as it is.
#[tokio::test]
async fn what_cannot_be_taken_over_is_refused_by_name() {
    let changed = |change: &str| format!("{DESCRIBED}; {change}");
    for (table, word) in [
        ("CREATE TABLE transactions (id int, what text)".to_owned(), "another program"),
        ("CREATE VIEW transactions AS SELECT 1 AS id".to_owned(), "view"),
        (changed("ALTER TABLE transactions ALTER amount TYPE float8"), "`amount`"),
        (changed("ALTER TABLE transactions ALTER id TYPE text"), "`id`"),
        (changed("ALTER TABLE transactions DROP CONSTRAINT transactions_pkey"), "not unique"),
        (
            changed(
                "ALTER TABLE transactions ADD must int NOT NULL DEFAULT 1; \
                 ALTER TABLE transactions ALTER must DROP DEFAULT",
            ),
            "`must`",
        ),
        (
            changed(
                "ALTER TABLE transactions ALTER amount TYPE numeric; UPDATE transactions SET amount = 0.001",
            ),
            "decimals",
        ),
        (changed("UPDATE transactions SET user_id = NULL"), "`user_id`"),
        (changed("UPDATE transactions SET user_id = ''"), "empty"),
        (changed("UPDATE transactions SET amount = 'NaN'"), "no number"),
        (changed("UPDATE transactions SET created_at = 'infinity'"), "time"),
        (changed("CREATE VIEW v AS SELECT user_id FROM transactions"), "view v"),
    ] {
        let url = testing::fresh_database();
        let hand = session(&url).await;
        hand.batch_execute(&table).await.expect(&table);
        let picture = "SELECT string_agg(t::text, ',' ORDER BY t) FROM transactions t";
        let before = hand.query_one(picture, &[]).await.expect("rows").get::<_, Option<String>>(0);
        let error = open(options(&url)).await.map(drop).expect_err(&table);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.message().contains(word), "{word}: {error}");
        let after = hand.query_one(picture, &[]).await.expect("rows").get::<_, Option<String>>(0);
        assert_eq!(before, after);
    }
}
