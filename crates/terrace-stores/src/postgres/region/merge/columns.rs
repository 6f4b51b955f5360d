//! What has come of a batch, as columns of the statements that write it.

use terrace_core::shard::RequestResult;
use terrace_core::{Ancestry, Logged, Version};
use tokio_postgres::types::Type;

use super::super::super::connection::Connection;
use super::{Done, Keys, Loss, Typed, signed};

/// How long losses are listed.
macro_rules! listed {
    () => {
        "interval '30 days'"
    };
}

/// Records as columns.
#[derive(Default)]
pub(super) struct Records<'a> {
    keys: Vec<&'a str>,
    values: Vec<&'a str>,
    versions: Vec<i64>,
    created: Vec<Option<i64>>,
    updated: Vec<Option<i64>>,
    deleted: Vec<bool>,
}

macro_rules! input {
    () => {
        "(SELECT u.k, u.v, u.n, u.d, \
           coalesce('epoch'::timestamptz + u.c * interval '1 microsecond', now()) AS c, \
           coalesce('epoch'::timestamptz + u.u * interval '1 microsecond', now()) AS u \
         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], \
           $6::boolean[]) AS u(k, v, n, c, u, d)) AS i"
    };
}

/// The negative version in `replaced` says that it is no change of this region.
pub(super) const INSERT: &str = concat!(
    "INSERT INTO records (key, value, version, deleted, created_at, updated_at, replaced) \
     SELECT i.k, i.v, i.n, i.d, i.c, i.u, -i.n FROM ",
    input!(),
    " ORDER BY i.k"
);
pub(super) const UPDATE: &str = concat!(
    "UPDATE records r SET value = i.v, version = i.n, deleted = i.d, created_at = i.c, \
       updated_at = i.u, replaced = -i.n, seq = 0 FROM ",
    input!(),
    " WHERE r.key = i.k"
);

impl<'a> Records<'a> {
    /// Those that have a row, or have none.
    pub(super) fn of(keys: &Keys<'a>, exists: bool) -> Self {
        let mut records = Self::default();
        for (key, known) in keys.iter().filter(|(_, known)| known.exists == exists) {
            let Some(change) = known.record else { continue };
            let record = change.record.as_ref();
            records.keys.push(key);
            records.values.push(record.map_or("", |record| record.value.as_str()));
            records.versions.push(signed(change.version));
            records.created.push(record.map(|record| record.created_at.as_microsecond()));
            records.updated.push(record.map(|record| record.updated_at.as_microsecond()));
            records.deleted.push(record.is_none());
        }
        records
    }

    pub(super) async fn run(&self, connection: &Connection, text: &str) -> Done {
        if self.keys.is_empty() {
            return Ok(());
        }
        let parameters: [Typed<'_>; 6] = [
            (&self.keys, Type::TEXT_ARRAY),
            (&self.values, Type::TEXT_ARRAY),
            (&self.versions, Type::INT8_ARRAY),
            (&self.created, Type::INT8_ARRAY),
            (&self.updated, Type::INT8_ARRAY),
            (&self.deleted, Type::BOOL_ARRAY),
        ];
        connection.ask(text, &parameters).await.map(drop)
    }
}

/// What has arrived, as columns; the versions as text, for arrays hold no arrays.
#[derive(Default)]
pub(super) struct Arrived<'a> {
    keys: Vec<&'a str>,
    seen: Vec<String>,
}

impl<'a> Arrived<'a> {
    pub(super) fn of(keys: &Keys<'a>) -> Self {
        let mut arrived = Self::default();
        for (key, known) in keys.iter().filter(|(_, known)| known.now.seen != known.before.seen) {
            let versions = known.now.seen.versions().iter().map(|version| version.to_string());
            arrived.keys.push(key);
            arrived.seen.push(format!("{{{}}}", versions.collect::<Vec<_>>().join(",")));
        }
        arrived
    }

    pub(super) async fn keep(&self, connection: &Connection) -> Done {
        const KEEP: &str = "INSERT INTO terrace_arrived (key, seen) \
             SELECT u.k, u.s::bigint[] FROM unnest($1::text[], $2::text[]) AS u(k, s) ORDER BY u.k \
             ON CONFLICT (key) DO UPDATE SET seen = excluded.seen";
        if self.keys.is_empty() {
            return Ok(());
        }
        let parameters: [Typed<'_>; 2] =
            [(&self.keys, Type::TEXT_ARRAY), (&self.seen, Type::TEXT_ARRAY)];
        connection.ask(KEEP, &parameters).await.map(drop)
    }
}

/// What is lost or awaited, and no longer, as columns.
#[derive(Default)]
pub(super) struct Losses<'a> {
    keys: Vec<&'a str>,
    versions: Vec<i64>,
    awaited: Vec<bool>,
    winners: Vec<i64>,
    digests: Vec<Option<Vec<u8>>>,
    /// Whether the digest is that of the record that is here.
    here: Vec<bool>,
    noticed: Vec<i64>,
    gone: (Vec<&'a str>, Vec<i64>),
}

impl<'a> Losses<'a> {
    pub(super) fn of(keys: &Keys<'a>) -> Self {
        let mut losses = Self::default();
        for (key, known) in keys {
            let (before, now) = (&known.before, &known.now);
            let gone = before.lost.difference(&now.lost);
            for version in gone.chain(before.awaited.difference(&now.awaited)) {
                losses.gone.0.push(key);
                losses.gone.1.push(signed(*version));
            }
            for version in now.awaited.difference(&before.awaited) {
                losses.push(key, *version, now.version, None);
            }
            for version in now.lost.difference(&before.lost) {
                losses.push(key, *version, now.version, known.noticed.get(version));
            }
        }
        losses
    }

    fn push(&mut self, key: &'a str, version: Version, winner: Version, loss: Option<&Loss>) {
        let conflict = loss.map(|loss| &loss.conflict);
        self.keys.push(key);
        self.versions.push(signed(version));
        self.awaited.push(loss.is_none());
        self.winners.push(signed(conflict.map_or(winner, |conflict| conflict.winner)));
        self.digests.push(conflict.and_then(|it| it.digest).map(|digest| digest.to_vec()));
        self.here.push(loss.is_some_and(|loss| loss.is_here));
        let noticed = conflict.map(|conflict| conflict.noticed_at.as_microsecond());
        self.noticed.push(noticed.unwrap_or_default());
    }

    /// Before the records change: the digest of one that is lost is that of what it is until then. For
    /// each that is listed two go that are old.
    pub(super) async fn keep(&self, connection: &Connection) -> Done {
        const KEEP: &str = concat!(
            "WITH old AS (DELETE FROM terrace_conflicts WHERE ctid = ANY (ARRAY( \
               SELECT ctid FROM terrace_conflicts WHERE noticed_at < now() - ",
            listed!(),
            " ORDER BY noticed_at LIMIT 2 * cardinality($1::text[])))) \
             INSERT INTO terrace_conflicts (key, version, awaited, winner, digest, noticed_at) \
             SELECT u.k, u.n, u.a, u.w, CASE WHEN u.h THEN (SELECT \
                 CASE WHEN NOT r.deleted THEN sha256(convert_to(r.value, 'UTF8')) END \
                 FROM records r WHERE r.key = u.k) ELSE u.g END, \
               CASE WHEN u.t = 0 THEN now() \
                 ELSE 'epoch'::timestamptz + u.t * interval '1 microsecond' END \
             FROM unnest($1::text[], $2::bigint[], $3::boolean[], $4::bigint[], $5::bytea[], \
               $6::boolean[], $7::bigint[]) AS u(k, n, a, w, g, h, t) \
             ON CONFLICT (key, version) DO NOTHING"
        );
        if self.keys.is_empty() {
            return Ok(());
        }
        let parameters: [Typed<'_>; 7] = [
            (&self.keys, Type::TEXT_ARRAY),
            (&self.versions, Type::INT8_ARRAY),
            (&self.awaited, Type::BOOL_ARRAY),
            (&self.winners, Type::INT8_ARRAY),
            (&self.digests, Type::BYTEA_ARRAY),
            (&self.here, Type::BOOL_ARRAY),
            (&self.noticed, Type::INT8_ARRAY),
        ];
        connection.ask(KEEP, &parameters).await.map(drop)
    }

    pub(super) async fn drop(&self, connection: &Connection) -> Done {
        const DROP: &str = "DELETE FROM terrace_conflicts c \
             USING unnest($1::text[], $2::bigint[]) AS u(k, n) WHERE c.key = u.k AND c.version = u.n";
        let (keys, versions) = &self.gone;
        if keys.is_empty() {
            return Ok(());
        }
        let parameters: [Typed<'_>; 2] = [(keys, Type::TEXT_ARRAY), (versions, Type::INT8_ARRAY)];
        connection.ask(DROP, &parameters).await.map(drop)
    }
}

/// Results of requests that were made in another region, as columns.
#[derive(Default)]
pub(super) struct Results<'a> {
    keys: Vec<&'a str>,
    fingerprints: Vec<&'a [u8]>,
    texts: Vec<&'a str>,
    times: Vec<i64>,
}

impl<'a> Results<'a> {
    pub(super) fn of(changes: &'a [Logged]) -> Self {
        let result = |change: &'a Logged| match change.ancestry.as_deref() {
            Some(Ancestry::Change { request, .. }) => request.as_ref(),
            _ => None,
        };
        let mut results = Self::default();
        for RequestResult { key, fingerprint, result, at_micros } in
            changes.iter().filter_map(result)
        {
            results.keys.push(key);
            results.fingerprints.push(fingerprint);
            results.texts.push(result);
            results.times.push(*at_micros);
        }
        results
    }

    /// Unless the request was made here, too.
    pub(super) async fn keep(&self, connection: &Connection) -> Done {
        const KEEP: &str = "INSERT INTO terrace_idempotency AS i (key, fingerprint, result, created_at) \
             SELECT DISTINCT ON (u.k) u.k, u.f, u.r, \
               'epoch'::timestamptz + u.t * interval '1 microsecond' \
             FROM unnest($1::text[], $2::bytea[], $3::text[], $4::bigint[]) AS u(k, f, r, t) \
             ORDER BY u.k \
             ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, \
               result = excluded.result, created_at = excluded.created_at, version = NULL \
             WHERE i.created_at < now() - interval '24 hours' OR i.result IS NULL";
        if self.keys.is_empty() {
            return Ok(());
        }
        let parameters: [Typed<'_>; 4] = [
            (&self.keys, Type::TEXT_ARRAY),
            (&self.fingerprints, Type::BYTEA_ARRAY),
            (&self.texts, Type::TEXT_ARRAY),
            (&self.times, Type::INT8_ARRAY),
        ];
        connection.ask(KEEP, &parameters).await.map(drop)
    }
}
