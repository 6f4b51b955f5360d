//! All rows of a file, in one snapshot.

use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, params};
use terrace_core::{BoxFuture, Key, LogPosition, Logged, Result, Rows};

use super::super::failure;
use super::super::reader::decode;
use super::{Inner, open};

const PAGE: i64 = 500;

const NEXT: &str = "SELECT value, version, created_at, updated_at, deleted, key FROM records
    WHERE key > ?1 ORDER BY key LIMIT ?2";

impl Inner {
    pub(super) async fn rows(
        &self,
        after: Option<Key>,
        quiet: Option<BoxFuture<'_, Result<()>>>,
    ) -> Result<Box<dyn Rows>> {
        const BEGIN: &str = "BEGIN DEFERRED; SELECT 1 FROM meta LIMIT 1";
        let snapshot = Mutex::new(open(&self.options)?);
        match quiet {
            None => run(&snapshot, BEGIN)?,
            Some(quiet) => {
                // Rolled back when it is closed, wherever this ends.
                let alone = Mutex::new(open(&self.options)?);
                run(&alone, "BEGIN IMMEDIATE")?;
                quiet.await?;
                run(&snapshot, BEGIN)?;
                run(&alone, "ROLLBACK")?;
            }
        }
        let connection = snapshot.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(Snapshot { connection, after, ended: false }))
    }
}

fn run(connection: &Mutex<Connection>, text: &str) -> Result<()> {
    let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
    connection.execute_batch(text).map_err(failure::of)
}

struct Snapshot {
    connection: Connection,
    after: Option<Key>,
    ended: bool,
}

impl Snapshot {
    fn page(&mut self) -> Result<Vec<Logged>> {
        let after = self.after.as_ref().map_or("", Key::as_str);
        let mut statement = self.connection.prepare_cached(NEXT).map_err(failure::of)?;
        let mut rows = statement.query(params![after, PAGE]).map_err(failure::of)?;
        let mut page = Vec::new();
        while let Some(row) = rows.next().map_err(failure::of)? {
            let text = row.get_ref(5).ok().and_then(|field| field.as_str().ok());
            let key = text.and_then(|text| Key::new(text).ok());
            let key = key.ok_or_else(|| failure::corrupt("key"))?;
            let (record, version) = decode(row, || Ok(key.clone()))?;
            page.push(Logged {
                position: LogPosition::default(),
                key,
                version,
                record,
                ancestry: None,
            });
        }
        Ok(page)
    }
}

impl Rows for Snapshot {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Logged>>> {
        Box::pin(async move {
            if self.ended {
                return Ok(Vec::new());
            }
            let page = self.page()?;
            self.after = page.last().map(|row| row.key.clone());
            self.ended = page.is_empty();
            Ok(page)
        })
    }
}
