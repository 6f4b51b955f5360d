//! The index of the words of documents: the tables `words` and `unindexed`.

use rusqlite::{Connection, TransactionBehavior, params};
use terrace_core::{Json, Page, Result, Scan};

use super::failure;
use super::reader::{Reader, Seen};
use super::schema;

const COLUMNS: &str = "r.value, r.version, r.created_at, r.updated_at, r.deleted, r.key";

/// Makes the tables, and indexes what was not written by Terrace.
pub(super) fn install(connection: &mut Connection) -> Result<()> {
    let failed = |error| failure::of(error).during("migrate");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let is_new = schema::lost(&transaction, &["words", "unindexed"])?.is_some();
    transaction.execute_batch(include_str!("words.sql")).map_err(failed)?;
    if is_new {
        let all = "INSERT OR REPLACE INTO unindexed SELECT key FROM records WHERE deleted = 0";
        transaction.execute_batch(all).map_err(failed)?;
    }
    while let Some((key, value)) = next_unindexed(&transaction)? {
        index(&transaction, &key, value.as_deref())?;
    }
    transaction.commit().map_err(failed)
}

fn next_unindexed(connection: &Connection) -> Result<Option<(String, Option<String>)>> {
    let next = "SELECT u.key, r.value FROM unindexed AS u
        LEFT JOIN records AS r ON r.key = u.key AND r.deleted = 0 LIMIT 1";
    let mut next = connection.prepare_cached(next).map_err(failure::of)?;
    let mut rows = next.query([]).map_err(failure::of)?;
    let Some(row) = rows.next().map_err(failure::of)? else { return Ok(None) };
    Ok(Some((row.get(0).map_err(failure::of)?, row.get(1).map_err(failure::of)?)))
}

/// Puts the words of a document in the place of those that the key has; `None` when it is deleted.
pub(super) fn index(connection: &Connection, key: &str, document: Option<&str>) -> Result<()> {
    let run = |text, key| {
        let mut statement = connection.prepare_cached(text).map_err(failure::of)?;
        statement.execute([key]).map(drop).map_err(failure::of)
    };
    run("DELETE FROM words WHERE key = ?1", key)?;
    run("DELETE FROM unindexed WHERE key = ?1", key)?;
    // What a hand has written may be no document; then nothing finds it by a word.
    let words = document.and_then(|text| Json::parse(text).ok()).map(|json| json.words());
    let add = "INSERT INTO words (key, word) VALUES (?1, ?2)";
    let mut add = connection.prepare_cached(add).map_err(failure::of)?;
    for word in words.unwrap_or_default() {
        add.execute(params![key, word]).map_err(failure::of)?;
    }
    Ok(())
}

/// The page of documents that have all these words.
pub(super) fn select(
    reader: &Reader<'_>,
    words: &[String],
    scan: &Scan,
    seen: &Seen,
    mut selects: impl FnMut(&str) -> Result<bool>,
) -> Result<Page> {
    let others = (1..words.len()).map(|number| {
        let place = number + 3;
        format!(" AND EXISTS (SELECT 1 FROM words AS o WHERE o.key = w.key AND o.word = ?{place})")
    });
    let question = format!(
        "SELECT {COLUMNS} FROM words AS w CROSS JOIN records AS r ON r.key = w.key
         WHERE w.word = ?3 AND w.key >= ?1 AND w.key < ?2 AND r.deleted = 0{}
         UNION ALL
         SELECT {COLUMNS} FROM unindexed AS u CROSS JOIN records AS r ON r.key = u.key
         WHERE u.key >= ?1 AND u.key < ?2 AND r.deleted = 0
         ORDER BY 6",
        others.collect::<String>()
    );
    let words = words.iter().map(String::as_str).collect::<Vec<_>>();
    reader.page(&question, &words, scan, seen, |record| selects(record.value.as_str()))
}
