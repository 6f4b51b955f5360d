//! Changes of a read model: batches with their checkpoints, counts of reads, parked keys.

use std::collections::BTreeMap;

use terrace_core::read_model::{Folded, Projection, fold};
use terrace_core::{Batch, Key, Timestamp};
use tokio_postgres::types::Type;

use super::super::connection::{Connection, Repeated};
use super::super::work::{Failure, Progress, Work};
use super::steps::{LOCK, LOCK_NEXT, SHARE, Statement, Typed, locked};
use super::tables::{self, name, suffix};

/// One batch.
pub(super) struct Apply<'a> {
    pub(super) of: Projection,
    pub(super) batch: &'a Batch,
}

/// Changes as columns.
#[derive(Default)]
struct Columns<'a> {
    keys: Vec<&'a str>,
    values: Vec<&'a str>,
    versions: Vec<i64>,
    created: Vec<i64>,
    updated: Vec<i64>,
    deleted: Vec<bool>,
    commands: Vec<i64>,
    reasons: Vec<Option<&'a str>>,
    epochs: Vec<i64>,
    places: Vec<i64>,
}

/// The first moment of PostgreSQL's calendar, in microseconds since 1970: `-infinity` lies before it.
const EARLIEST: i64 = -210_866_803_200_000_000;

impl<'a> Columns<'a> {
    fn push(&mut self, folded: &'a Folded, reason: Option<&'a str>) {
        let change = &folded.newest;
        let record = change.record.as_ref();
        let micros = |at: Timestamp| at.as_microsecond().max(EARLIEST);
        let (created, updated) =
            record.map_or((0, 0), |record| (micros(record.created_at), micros(record.updated_at)));
        self.keys.push(change.key.as_str());
        self.values.push(record.map_or("", |record| record.value.as_str()));
        self.versions.push(signed(change.version.get()));
        self.created.push(created);
        self.updated.push(updated);
        self.deleted.push(record.is_none());
        self.commands.push(signed(folded.commands));
        self.reasons.push(reason);
        self.epochs.push(signed(change.position.epoch));
        self.places.push(signed(change.position.offset));
    }
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Of a key's changes the highest version counts, wherever it stands; each is counted. The record of a
/// deletion has no times.
const UPSERT: &str = "ON CONFLICT (key) DO UPDATE SET \
       write_count = r.write_count + excluded.write_count, \
       value = CASE WHEN excluded.version > r.version THEN excluded.value ELSE r.value END, \
       created_at = CASE WHEN excluded.version > r.version \
         THEN excluded.created_at ELSE r.created_at END, \
       updated_at = CASE WHEN excluded.version > r.version \
         THEN excluded.updated_at ELSE r.updated_at END, \
       deleted = CASE WHEN excluded.version > r.version THEN excluded.deleted ELSE r.deleted END, \
       version = greatest(excluded.version, r.version)";

/// All of it hangs on `moved`: without the checkpoint there is no input.
fn text(of: Projection) -> String {
    let (end, records, name) = (suffix(of), tables::records(of), name(of));
    format!(
        "WITH moved AS ( \
           UPDATE terrace_projection SET epoch = $1, place = $2, whole = whole OR $18 \
           WHERE name = '{name}' AND source = $3 AND epoch = $4 AND place = $5 \
             AND (paused_until IS NULL OR paused_until < clock_timestamp()) RETURNING 1), \
         input AS ( \
           SELECT u.k, u.v, u.n, timestamptz 'epoch' + u.c * interval '1 microsecond' AS c, \
             timestamptz 'epoch' + u.u * interval '1 microsecond' AS u, u.d, u.w, u.r, u.e, u.p \
           FROM moved, unnest($6::text[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], \
             $11::boolean[], $12::bigint[], $13::text[], $14::bigint[], $15::bigint[]) \
             AS u(k, v, n, c, u, d, w, r, e, p)), \
         stopped AS ( \
           INSERT INTO terrace_parked{end} AS r \
             (key, epoch, place, commands, reason, value, version, created_at, updated_at, deleted) \
           SELECT i.k, i.e, i.p, i.w, coalesce(i.r, ''), i.v, i.n, i.c, i.u, i.d FROM input i \
           WHERE i.r IS NOT NULL OR EXISTS (SELECT 1 FROM terrace_parked{end} p WHERE p.key = i.k) \
           ON CONFLICT (key) DO UPDATE SET commands = r.commands + excluded.commands, \
             value = CASE WHEN excluded.version > r.version THEN excluded.value ELSE r.value END, \
             created_at = CASE WHEN excluded.version > r.version \
               THEN excluded.created_at ELSE r.created_at END, \
             updated_at = CASE WHEN excluded.version > r.version \
               THEN excluded.updated_at ELSE r.updated_at END, \
             deleted = CASE WHEN excluded.version > r.version \
               THEN excluded.deleted ELSE r.deleted END, \
             version = greatest(excluded.version, r.version)), \
         put AS ( \
           INSERT INTO {records} AS r \
             (key, value, version, created_at, updated_at, deleted, write_count) \
           SELECT i.k, i.v, i.n, i.c, i.u, i.d, i.w FROM input i \
           WHERE i.r IS NULL AND NOT EXISTS (SELECT 1 FROM terrace_parked{end} p WHERE p.key = i.k) \
           {UPSERT}), \
         counted AS ( \
           INSERT INTO terrace_activity{end} AS a (minute, writes) \
           SELECT u.m, u.w FROM moved, unnest($16::bigint[], $17::bigint[]) AS u(m, w) \
           ON CONFLICT (minute) DO UPDATE SET writes = a.writes + excluded.writes) \
         SELECT count(*) FROM moved"
    )
}

impl Work for Apply<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "project";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<bool, Failure> {
        let batch = self.batch;
        let (mut columns, folded) = (Columns::default(), fold(&batch.changes));
        folded.iter().for_each(|folded| columns.push(folded, batch.refused.as_deref()));
        let mut minutes = BTreeMap::<i64, i64>::new();
        for at in folded.iter().flat_map(|folded| &folded.written) {
            *minutes.entry(at.as_second().div_euclid(60)).or_default() += 1;
        }
        let (minutes, writes): (Vec<_>, Vec<_>) = minutes.into_iter().unzip();
        let (to, from) = (batch.to.position, batch.from.position);
        let [epoch, place, from_epoch, from_place] =
            [to.epoch, to.offset, from.epoch, from.offset].map(signed);
        let source = batch.from.log.as_str();
        let ends = !batch.more;
        let parameters: [Typed<'_>; 18] = [
            (&epoch, Type::INT8),
            (&place, Type::INT8),
            (&source, Type::TEXT),
            (&from_epoch, Type::INT8),
            (&from_place, Type::INT8),
            (&columns.keys, Type::TEXT_ARRAY),
            (&columns.values, Type::TEXT_ARRAY),
            (&columns.versions, Type::INT8_ARRAY),
            (&columns.created, Type::INT8_ARRAY),
            (&columns.updated, Type::INT8_ARRAY),
            (&columns.deleted, Type::BOOL_ARRAY),
            (&columns.commands, Type::INT8_ARRAY),
            (&columns.reasons, Type::TEXT_ARRAY),
            (&columns.epochs, Type::INT8_ARRAY),
            (&columns.places, Type::INT8_ARRAY),
            (&minutes, Type::INT8_ARRAY),
            (&writes, Type::INT8_ARRAY),
            (&ends, Type::BOOL),
        ];
        let text = text(self.of);
        let (lock, work) = match self.of {
            Projection::Live => (LOCK, Statement::Repeated(Repeated::Project, &text)),
            Projection::Next => (LOCK_NEXT, Statement::Once(&text)),
        };
        let rows = locked(connection, progress, lock, work, &parameters).await?;
        Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0))
    }
}

/// Reads of keys, in the order of the keys.
pub(super) struct AddReads<'a>(pub(super) &'a [(Key, u64)]);

impl Work for AddReads<'_> {
    type Answer = ();

    const OPERATION: &'static str = "count reads";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const ADD: &str = "UPDATE records r SET read_count = r.read_count + u.n \
             FROM unnest($1::text[], $2::bigint[]) AS u(k, n) WHERE r.key = u.k";
        let keys = self.0.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>();
        let counts = self.0.iter().map(|(_, count)| signed(*count)).collect::<Vec<_>>();
        let parameters: [Typed<'_>; 2] = [(&keys, Type::TEXT_ARRAY), (&counts, Type::INT8_ARRAY)];
        locked(connection, progress, SHARE, Statement::Once(ADD), &parameters).await.map(drop)
    }
}

/// What a parked key missed.
pub(super) struct Retry<'a>(pub(super) &'a Key);

impl Work for Retry<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "retry a parked key";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<bool, Failure> {
        let text = format!(
            "WITH gone AS (DELETE FROM terrace_parked WHERE key = $1 RETURNING *), \
             put AS (INSERT INTO records AS r \
                 (key, value, version, created_at, updated_at, deleted, write_count) \
               SELECT key, value, version, created_at, updated_at, deleted, commands FROM gone \
               {UPSERT}) \
             SELECT count(*) FROM gone"
        );
        let key = self.0.as_str();
        let work = Statement::Once(&text);
        let rows = locked(connection, progress, LOCK, work, &[(&key, Type::TEXT)]).await?;
        Ok(rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0))
    }
}
