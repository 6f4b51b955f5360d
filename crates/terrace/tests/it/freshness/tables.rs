//! The tables are changed by hand, under instances or between two runs: made again, swapped for a copy,
//! emptied and filled from a dump. What was written since is lost, for caches, tokens and versions, too.

use terrace_prove::Answer;

use super::engines::{postgres_program, sql};
use super::field::{Field, Instance};
use super::{WATCH, pause, until};

const LOST: usize = 40;

async fn serves(instance: &Instance) {
    until("it writes again", async || {
        instance.client.write("other", "after").send().await.is_acknowledged()
    })
    .await;
}

/// What is done to the database by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hand {
    /// `pg_dump -t records --clean`, restored: only this table is made again.
    RecordsMadeAgain,
    /// A copy of the table takes the name of the original.
    Renamed,
    /// `TRUNCATE` all, then `pg_dump --data-only`, with its `setval`.
    DataOnly,
    /// The same, only of `records`, `records_version`.
    RecordsOnly,
    /// The schema is renamed, and a copy of it takes its name.
    SchemaSwapped,
}

async fn dump(field: &Field, arguments: &[&str]) -> String {
    let mut command = postgres_program("pg_dump", arguments);
    let output = command.arg(&field.database).output().await.expect("pg_dump runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

async fn load(field: &Field, dump: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), dump).expect("a write");
    let path = file.path().to_str().expect("a path");
    let arguments = ["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", path, &field.database];
    let output = postgres_program("psql", &arguments).output().await.expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What turns the records back later; the copy that it needs is made now.
async fn copied(field: &Field, hand: Hand) -> String {
    match hand {
        Hand::RecordsMadeAgain => dump(field, &["--clean", "-t", "records"]).await,
        Hand::Renamed => {
            let copy = "BEGIN; CREATE TABLE records_before (LIKE records INCLUDING ALL); \
                        INSERT INTO records_before SELECT * FROM records; COMMIT";
            sql(&field.database, copy).await;
            "ALTER TABLE records RENAME TO records_gone; \
             ALTER TABLE records_before RENAME TO records;"
                .to_owned()
        }
        Hand::DataOnly => {
            let tables = "TRUNCATE records, terrace_history, terrace_meta, terrace_idempotency;";
            format!("{tables}\n{}", dump(field, &["--data-only"]).await)
        }
        Hand::RecordsOnly => {
            let saved =
                dump(field, &["--data-only", "-t", "records", "-t", "records_version"]).await;
            format!("TRUNCATE records;\n{saved}")
        }
        Hand::SchemaSwapped => {
            let text = dump(field, &["-n", "public"]).await.replace("public.", "copy.");
            let lines = text.lines().filter(|line| !line.contains("SCHEMA public"));
            sql(&field.database, "CREATE SCHEMA IF NOT EXISTS copy").await;
            load(field, &lines.collect::<Vec<_>>().join("\n")).await;
            "ALTER SCHEMA public RENAME TO gone; ALTER SCHEMA copy RENAME TO public;".to_owned()
        }
    }
}

/// Caches are loaded, a hand turns the records back, and Terrace goes on.
async fn by_hand(level: u8, hand: Hand, between_runs: bool) {
    let field = Field::new(level).await;
    let (mut a, mut b) = (field.instance("a").await, field.instance("b").await);
    a.writes("written", "kept").await;
    a.writes("left", "kept").await;
    let back = copied(&field, hand).await;
    let mut lost = Vec::new();
    for number in 0..LOST {
        lost.push(a.writes("written", &format!("lost {number}")).await);
    }
    lost.push(a.writes("left", "lost").await);
    for key in ["written", "left"] {
        for instance in [&a, &a, &a, &b, &b, &b] {
            instance.client.read(key).send().await;
        }
        // What still waited would be applied to what comes back.
        assert!(a.client.read(key).strong().send().await.has_read());
    }
    if between_runs {
        a.program.terminate().await;
        b.program.terminate().await;
        load(&field, &back).await;
        (a, b) = (field.instance("a").await, field.instance("b").await);
    } else {
        load(&field, &back).await;
    }
    for instance in [&b, &a] {
        instance.client.read("left").send().await;
        serves(instance).await;
    }
    pause(WATCH).await;
    let wrong = violations(level, &a, &b, &lost).await;
    let identity = "SELECT name, generation, identity, records FROM terrace_history";
    let history = sql(&field.database, identity).await;
    assert!(wrong.is_empty(), "{hand:?} {level} {history}\n{}", wrong.join("\n"));
}

/// What shows of the lost writes, through either instance.
async fn violations(level: u8, a: &Instance, b: &Instance, lost: &[Answer]) -> Vec<String> {
    let mut wrong = Vec::new();
    for instance in [b, a] {
        let now = instance.client.read("left").strong().send().await;
        assert_eq!(now.found.as_deref(), Some("kept"), "it is lost: {now}");
        let read = instance.client.read("left").send().await;
        if read.found.as_deref() != Some("kept") {
            wrong.push(format!("lost, and shown: {read}"));
        }
        for (key, lost) in [("written", &lost[LOST - 1]), ("left", &lost[LOST])] {
            let read = instance.client.read(key).after(lost).send().await;
            if read.status != 503 {
                wrong.push(format!("a token of what is lost was satisfied: {read}"));
            }
        }
    }
    let after = a.client.write("written", "after").wait().send().await;
    assert!(after.is_acknowledged(), "{after}");
    let plain = b.client.read("written");
    // At level 7 a read without the token may be behind.
    let plain = if level == 7 { plain.strong() } else { plain };
    for request in [plain, b.client.read("written").after(&after)] {
        let read = request.send().await;
        if read.found.as_deref() != Some("after") {
            wrong.push(format!("outranked by what is lost: {read} after {after}"));
        }
    }
    let versions: Vec<_> = lost.iter().filter_map(|it| it.version).collect();
    for number in 0..LOST * 2 {
        let other = b.writes("written", &format!("other {number}")).await;
        if other.version.is_some_and(|it| versions.contains(&it)) {
            wrong.push(format!("a lost version is given out again: {other}"));
            break;
        }
    }
    wrong
}

macro_rules! hands {
    ($($name:ident: $level:literal, $hand:ident, $between:literal;)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            by_hand($level, Hand::$hand, $between).await;
        })*
    };
}

hands! {
    records_made_again_at_level_1: 1, RecordsMadeAgain, false;
    records_made_again_at_level_2: 2, RecordsMadeAgain, false;
    records_made_again_at_level_5: 5, RecordsMadeAgain, false;
    records_made_again_at_level_7: 7, RecordsMadeAgain, false;
    records_made_again_between_runs_of_level_2: 2, RecordsMadeAgain, true;
    records_made_again_between_runs_of_level_7: 7, RecordsMadeAgain, true;
    renamed_at_level_1: 1, Renamed, false;
    renamed_at_level_2: 2, Renamed, false;
    renamed_at_level_5: 5, Renamed, false;
    data_only_at_level_1: 1, DataOnly, false;
    data_only_at_level_2: 2, DataOnly, false;
    data_only_at_level_6: 6, DataOnly, false;
    data_only_between_runs_of_level_2: 2, DataOnly, true;
    records_only_at_level_2: 2, RecordsOnly, false;
    records_only_at_level_7: 7, RecordsOnly, false;
    records_only_between_runs_of_level_7: 7, RecordsOnly, true;
    schema_swapped_at_level_2: 2, SchemaSwapped, false;
    schema_swapped_at_level_5: 5, SchemaSwapped, false;
}
