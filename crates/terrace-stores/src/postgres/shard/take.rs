//! What a shard takes over from another, and what it lets go.

use std::fmt;
use std::sync::Arc;

use terrace_core::shard::RequestResult;
use terrace_core::{
    Batch, BoxFuture, Checkpoint, Error, ErrorKind, Follower, Key, Logged, Result, SlotSet,
    Timestamp,
};
use tokio_postgres::{Client, Row};

use super::super::sqlstate::{Stage, explain};
use super::{Inner, refused, signed};

const UPSERT: &str = "INSERT INTO records AS r (key, value, version, created_at, updated_at, deleted) \
     SELECT u.k, u.v, u.n, 'epoch'::timestamptz + u.c * interval '1 microsecond', \
       'epoch'::timestamptz + u.u * interval '1 microsecond', u.d \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::boolean[]) \
       AS u(k, v, n, c, u, d) \
     ORDER BY u.k \
     ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version, \
       created_at = excluded.created_at, updated_at = excluded.updated_at, \
       deleted = excluded.deleted \
     WHERE r.version < excluded.version";

const FOLLOWED: &str = "SELECT follow FROM terrace_shard_followed WHERE source = $1";

const KEEP_FOLLOW: &str = "INSERT INTO terrace_shard_followed VALUES ($1, $2) \
     ON CONFLICT (source) DO UPDATE SET follow = excluded.follow";

const KEEP_RESULTS: &str = "INSERT INTO terrace_idempotency AS i (key, fingerprint, result, created_at) \
     SELECT u.k, u.f, u.r, 'epoch'::timestamptz + u.t * interval '1 microsecond' \
     FROM unnest($1::text[], $2::bytea[], $3::text[], $4::bigint[]) AS u(k, f, r, t) \
     ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, \
       result = excluded.result, created_at = excluded.created_at \
     WHERE i.created_at < excluded.created_at";

const RESULTS: &str = "SELECT key, fingerprint, result, \
       (extract(epoch FROM created_at) * 1000000)::bigint \
     FROM terrace_idempotency WHERE key >= $1 AND key < $2 AND result IS NOT NULL";

impl Inner {
    async fn checkpoint(&self, source: &str) -> Result<Checkpoint> {
        let (mut session, mut place) = self.take_session().await?;
        let found = session.client().query_opt(FOLLOWED, &[&source]).await.map_err(refused)?;
        *place = Some(session);
        Ok(parsed(found))
    }

    /// Applies rows where the checkpoint is as given, and moves it; without rows wherever it is.
    async fn keep(
        &self,
        (epoch, source): (u64, &str),
        rows: Option<(&Checkpoint, &Columns<'_>)>,
        to: &Checkpoint,
    ) -> Result<bool> {
        let to = serde_json::to_string(to).map_err(|error| {
            Error::new(ErrorKind::Internal, "a checkpoint cannot be written").caused_by(error)
        })?;
        let (mut session, mut place) = self.take_session().await?;
        let kept = keep(session.client(), (epoch, source), rows, &to).await?;
        *place = Some(session);
        Ok(kept)
    }

    pub(super) async fn forget_followed(&self) -> Result<()> {
        let (mut session, mut place) = self.take_session().await?;
        session
            .client()
            .batch_execute("DELETE FROM terrace_shard_followed")
            .await
            .map_err(refused)?;
        *place = Some(session);
        Ok(())
    }

    /// The names of results begin with their slots, so those of a range lie together.
    pub(super) async fn results(&self, slots: SlotSet) -> Result<Vec<RequestResult>> {
        let (mut session, mut place) = self.take_session().await?;
        let mut results = Vec::new();
        for range in slots.to_string().split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            // `;` follows `:`.
            let (from, until) = (format!("{first:0>5}:"), format!("{last:0>5};"));
            let found = session.client().query(RESULTS, &[&from, &until]).await.map_err(refused)?;
            results.extend(found.iter().map(|row| RequestResult {
                key: row.get(0),
                fingerprint: row.get(1),
                result: row.get(2),
                at_micros: row.get(3),
            }));
        }
        *place = Some(session);
        Ok(results)
    }

    pub(super) async fn keep_results(&self, epoch: u64, results: Vec<RequestResult>) -> Result<()> {
        if results.is_empty() {
            return Ok(());
        }
        let keys = results.iter().map(|it| it.key.as_str()).collect::<Vec<_>>();
        let fingerprints = results.iter().map(|it| it.fingerprint.as_slice()).collect::<Vec<_>>();
        let texts = results.iter().map(|it| it.result.as_str()).collect::<Vec<_>>();
        let times = results.iter().map(|it| it.at_micros).collect::<Vec<_>>();
        let (mut session, mut place) = self.take_session().await?;
        let transaction = session.client().transaction().await.map_err(refused)?;
        enter(&transaction, epoch).await?;
        let columns: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
            [&keys, &fingerprints, &texts, &times];
        transaction.execute(KEEP_RESULTS, &columns).await.map_err(refused)?;
        transaction.commit().await.map_err(|error| explain(error, Stage::Committing))?;
        *place = Some(session);
        Ok(())
    }

    pub(super) async fn forget(&self, epoch: u64, keys: Vec<Key>) -> Result<()> {
        let keys = keys.iter().map(Key::as_str).collect::<Vec<_>>();
        let (mut session, mut place) = self.take_session().await?;
        let transaction = session.client().transaction().await.map_err(refused)?;
        enter(&transaction, epoch).await?;
        let delete = "DELETE FROM records WHERE key = ANY ($1::text[])";
        transaction.execute(delete, &[&keys]).await.map_err(refused)?;
        transaction.commit().await.map_err(|error| explain(error, Stage::Committing))?;
        *place = Some(session);
        Ok(())
    }
}

/// What follows in the transaction is no change of this shard's own: its log leaves it out.
async fn enter(transaction: &tokio_postgres::Transaction<'_>, epoch: u64) -> Result<()> {
    const ENTER: &str = "SELECT terrace_shard_enter($1), set_config('terrace.moves', 'on', true)";
    transaction.execute(ENTER, &[&signed(epoch)]).await.map_err(refused)?;
    Ok(())
}

/// Puts rows in the place of older ones if the checkpoint is there, and moves it.
async fn keep(
    client: &mut Client,
    (epoch, source): (u64, &str),
    rows: Option<(&Checkpoint, &Columns<'_>)>,
    to: &str,
) -> Result<bool> {
    let transaction = client.transaction().await.map_err(refused)?;
    enter(&transaction, epoch).await?;
    if let Some((from, columns)) = rows {
        let locked = format!("{FOLLOWED} FOR UPDATE");
        let known = transaction.query_opt(&locked, &[&source]).await.map_err(refused)?;
        if parsed(known) != *from {
            return Ok(false);
        }
        if !columns.keys.is_empty() {
            let Columns { keys, values, versions, created, updated, deleted } = columns;
            let parameters: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [keys, values, versions, created, updated, deleted];
            transaction.execute(UPSERT, &parameters).await.map_err(refused)?;
        }
    }
    transaction.execute(KEEP_FOLLOW, &[&source, &to]).await.map_err(refused)?;
    transaction.commit().await.map_err(|error| explain(error, Stage::Committing))?;
    Ok(true)
}

/// What cannot be read is no place: to begin anew is always right.
fn parsed(found: Option<Row>) -> Checkpoint {
    found.and_then(|row| serde_json::from_str(row.get(0)).ok()).unwrap_or_default()
}

/// Takes another shard's rows over.
pub(super) struct Taker {
    pub(super) inner: Arc<Inner>,
    pub(super) epoch: u64,
    pub(super) source: String,
}

impl Follower for Taker {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(self.inner.checkpoint(&self.source))
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            // One statement changes a row once: of several changes the newest.
            let mut rows = batch.changes.iter().collect::<Vec<_>>();
            rows.sort_by(|a, b| a.key.cmp(&b.key).then(b.version.cmp(&a.version)));
            rows.dedup_by(|later, kept| later.key == kept.key);
            let columns = Columns::of(&rows);
            let from = Some((&batch.from, &columns));
            self.inner.keep((self.epoch, &self.source), from, &batch.to).await
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let start = Checkpoint { log: log.to_owned(), ..Checkpoint::default() };
        Box::pin(async move {
            self.inner.keep((self.epoch, &self.source), None, &start).await.map(drop)
        })
    }
}

impl fmt::Display for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("postgres")
    }
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taker").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Rows as columns.
#[derive(Default)]
struct Columns<'a> {
    keys: Vec<&'a str>,
    values: Vec<&'a str>,
    versions: Vec<i64>,
    created: Vec<i64>,
    updated: Vec<i64>,
    deleted: Vec<bool>,
}

impl<'a> Columns<'a> {
    fn of(rows: &[&'a Logged]) -> Self {
        let mut columns = Self::default();
        let micros = |time: Timestamp| time.as_microsecond();
        for row in rows {
            let record = row.record.as_ref();
            columns.keys.push(row.key.as_str());
            columns.values.push(record.map_or("", |record| record.value.as_str()));
            columns.versions.push(signed(row.version.get()));
            columns.created.push(record.map_or(0, |record| micros(record.created_at)));
            columns.updated.push(record.map_or(0, |record| micros(record.updated_at)));
            columns.deleted.push(record.is_none());
        }
        columns
    }
}
