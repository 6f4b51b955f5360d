//! The statements of requests to a database that is one of several regions: versions are drawn by
//! `terrace_version`, and each row says in `replaced` which version it has overwritten. See
//! [`super::super::region`].

use super::Sql;

/// Up to when deletions were collected: what a new row has overwritten.
macro_rules! horizon {
    () => {
        "(SELECT coalesce(max(value::bigint), 0) AS at FROM terrace_meta \
         WHERE name = 'collected') AS h"
    };
}

/// The text of a statement that is another one than elsewhere.
pub(super) fn text(sql: Sql) -> Option<&'static str> {
    Some(match sql {
        Sql::Put => PUT,
        Sql::Draw => "SELECT terrace_version() FROM generate_series(1, $1::bigint)",
        Sql::Insert => INSERT,
        Sql::Update => UPDATE,
        Sql::Remember => "UPDATE terrace_idempotency SET result = $2, version = $3 WHERE key = $1",
        _ => return None,
    })
}

/// What was drawn before the row was locked counts if it is above the row's version: it is nobody else's.
/// Else another writer was faster, or another region was ahead, and a version is drawn under the lock.
const PUT: &str = concat!(
    "INSERT INTO records AS r (key, value, replaced) \
     SELECT u.k, u.v, h.at FROM unnest($1::text[], $2::text[]) AS u(k, v), ",
    horizon!(),
    " WHERE ",
    generation!("$3"),
    " IS NOT NULL \
     ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = CASE \
         WHEN excluded.version > r.version OR r.version >= 9007199254740992 THEN excluded.version \
         ELSE greatest(terrace_version(), terrace_after(r.version)) END, \
       replaced = r.version, deleted = false, \
     updated_at = greatest(now(), r.updated_at + interval '1 microsecond', \
       r.created_at + interval '1 microsecond'), \
     created_at = CASE WHEN r.deleted THEN \
       greatest(now(), r.updated_at + interval '1 microsecond', \
         r.created_at + interval '1 microsecond') \
       ELSE r.created_at END \
     RETURNING key, version, created_at = updated_at, pg_current_xact_id()"
);

const INSERT: &str = concat!(
    "INSERT INTO records (key, value, version, deleted, seq, created_at, updated_at, replaced) \
     SELECT u.k, u.v, u.n, u.d, u.s, t.at, t.at, CASE WHEN u.p > 0 THEN u.p ELSE h.at END \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::bigint[], \
         $6::bigint[], $7::bigint[]) AS u(k, v, n, d, s, a, p), \
       LATERAL (SELECT coalesce('epoch'::timestamptz + u.a * interval '1 millisecond', \
         now()) AS at) AS t, ",
    horizon!()
);

const UPDATE: &str = "UPDATE records r SET value = u.v, version = u.n, deleted = u.d, seq = u.s, \
     replaced = u.p, \
     updated_at = greatest(t.at, r.updated_at + interval '1 microsecond', \
       r.created_at + interval '1 microsecond'), \
     created_at = CASE WHEN u.c THEN \
       greatest(t.at, r.updated_at + interval '1 microsecond', \
         r.created_at + interval '1 microsecond') \
       ELSE r.created_at END \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::bigint[], \
         $6::boolean[], $7::bigint[], $8::bigint[]) AS u(k, v, n, d, s, c, a, p), \
       LATERAL (SELECT coalesce('epoch'::timestamptz + u.a * interval '1 millisecond', \
         now()) AS at) AS t \
     WHERE r.key = u.k";

/// As elsewhere, with what each change has overwritten.
pub(in super::super) const LOG_SUPERSEDED: &str = concat!(
    "INSERT INTO commands (version, type, key, value, created_at, time, replaced) \
     SELECT u.n, CASE WHEN u.d THEN 'RecordDeleted' WHEN u.c THEN 'RecordCreated' \
         ELSE 'RecordUpdated' END, \
       u.k, CASE WHEN u.d THEN NULL ELSE u.v END, \
       CASE WHEN r.deleted IS NOT FALSE OR u.c THEN now() ELSE r.created_at END, now(), \
       CASE WHEN u.p > 0 THEN u.p ELSE h.at END \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::boolean[], $6::bigint[]) \
       AS u(k, v, n, d, c, p) LEFT JOIN records r ON r.key = u.k, ",
    horizon!()
);
