//! `terrace reconcile`, beside the level that it looks at.

use super::super::terrace;
use super::*;

/// Runs `terrace reconcile --json`; answers whether it succeeded, and what it said.
pub(super) async fn reconcile(environment: &[(&str, &str)], arguments: &[&str]) -> (bool, Value) {
    let mut command = terrace(&["reconcile", "--json"]);
    command.args(arguments).envs(environment.iter().copied());
    let output = command.output().await.expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{errors}"));
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_hand_has_changed_is_found_and_mended() {
    let directory = tempfile::tempdir().expect("a directory");
    let (redis, documents) =
        tokio::join!(own_redis(directory.path()), own_documents(directory.path()));
    let (database, cache, store) = (fresh_database(), redis.url(), documents.url());
    let stores = Stores::Servers { database: &database, cache: &cache };
    let owners = [("MONGODB_URL", &*store)];
    let program = Program::serve_with(8, &stores, &[], &owners).await;
    for user in ["a", "b", "c"] {
        assert_eq!(program.pay(user, 10.0).await.0, 200);
    }
    let beside = [("DATABASE_URL", &*database), ("MONGODB_URL", &*store)];
    assert_eq!(
        reconcile(&beside, &["--dry-run"]).await,
        (
            true,
            json!({"accounts": 3, "wrong_accounts": [], "wrong_summaries": [], "mended": false})
        )
    );
    // An account that is not what its transactions add up to goes into the summary, too.
    let wrong = "ALTER TABLE transactions DISABLE TRIGGER USER; \
         INSERT INTO transactions (user_id, amount, transaction_type) VALUES ('b', 5, 'hand'); \
         ALTER TABLE transactions ENABLE TRIGGER USER";
    sql(&database, wrong).await;
    let (clean, found) = reconcile(&beside, &["--dry-run"]).await;
    assert!(!clean);
    assert_eq!(found["wrong_accounts"], json!(["b"]));
    assert_eq!(reconcile(&beside, &["--dry-run"]).await.1, found, "nothing was changed");
    let (mended, found) = reconcile(&beside, &[]).await;
    assert_eq!((mended, &found["mended"]), (true, &json!(true)));
    assert!(reconcile(&beside, &["--dry-run"]).await.0);
    let summary = program.json("/v1/users/b/summary").await;
    assert_eq!((&summary["transactions"], &summary["balance"]), (&json!(2), &json!(15.0)));
}

#[tokio::test]
async fn an_embedded_level_is_compared_beside_the_program_that_serves_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_str().expect("text");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    assert_eq!(program.pay("a", 10.0).await.0, 200);
    let arguments = ["--stores", "embedded", "--data-dir", place, "--dry-run"];
    let (clean, found) = reconcile(&[], &arguments).await;
    assert_eq!((clean, &found["accounts"]), (true, &json!(1)));
}

/// What came after the backup is in no summary, and nobody has to do anything for it.
#[tokio::test]
async fn a_ledger_that_is_put_back_from_a_backup_takes_the_summaries_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, backup) =
        (directory.path().join("embedded/l8-ledger.sqlite"), directory.path().join("backup"));
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    assert_eq!(program.pay("a", 10.0).await.0, 200);
    assert!(program.terminate().await.success());
    std::fs::copy(&file, &backup).expect("a backup");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    for user in ["a", "later"] {
        assert_eq!(program.pay(user, 1.0).await.0, 200);
        program.summary(user).await;
    }
    assert!(program.terminate().await.success());
    std::fs::remove_file(&file).expect("the ledger is lost");
    std::fs::copy(&backup, &file).expect("it is put back");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    assert_eq!(program.summary("a").await["balance"], 10.0);
    let later = program.send("GET", "/v1/users/later/summary", &Value::Null).await;
    assert_eq!(later.0, 404, "{}", later.1);
}
