//! The statements that read records.

/// What the snapshot proves stands beside the first row: a sub-select that is worked out once.
macro_rules! read {
    ($where:literal) => {
        concat!(
            "SELECT u.i, r.version, r.deleted, r.created_at, r.updated_at, r.value, r.xmin, \
               CASE WHEN u.i = 1 THEN pg_current_snapshot() END, \
               CASE WHEN u.i = 1 THEN ",
            generation!("$2"),
            " END, CASE WHEN u.i = 1 THEN pg_is_in_recovery() END \
             FROM unnest($1::text[]) WITH ORDINALITY AS u(k, i) \
             LEFT JOIN records r ON r.key = u.k",
            $where
        )
    };
}

pub(super) const READ: &str = read!("");

/// The sizes are known without reading large values.
macro_rules! read_within {
    ($where:literal) => {
        concat!(
            "SELECT i, version, deleted, created_at, updated_at, \
               CASE WHEN total <= $3 THEN value END, writer, snapshot, generation, is_replica, total \
             FROM (SELECT u.i, r.version, r.deleted, r.created_at, r.updated_at, r.value, \
                 r.xmin AS writer, \
                 CASE WHEN u.i = 1 THEN pg_current_snapshot() END AS snapshot, \
                 CASE WHEN u.i = 1 THEN ",
            generation!("$2"),
            " END AS generation, CASE WHEN u.i = 1 THEN pg_is_in_recovery() END AS is_replica, \
                 (sum(octet_length(r.value)) FILTER (WHERE NOT r.deleted) OVER ())::bigint AS total \
               FROM unnest($1::text[]) WITH ORDINALITY AS u(k, i) \
               LEFT JOIN records r ON r.key = u.k",
            $where,
            ") AS found"
        )
    };
}

pub(super) const READ_WITHIN: &str = read_within!("");

/// The sizes are known without reading large values.
macro_rules! scan {
    ($where:literal) => {
        concat!(
            "SELECT key, version, created_at, updated_at, value, writer FROM ( \
               SELECT key, version, created_at, updated_at, value, writer, \
                 sum(octet_length(value)) OVER ( \
                   ORDER BY key ROWS BETWEEN UNBOUNDED PRECEDING AND 2 PRECEDING) AS bytes \
               FROM (SELECT *, xmin AS writer FROM records \
                 WHERE key > $1 AND key >= $2 AND key < $3 AND NOT deleted ",
            $where,
            "ORDER BY key LIMIT $4) AS page \
             ) AS page WHERE bytes IS NULL OR bytes < $5 ORDER BY key"
        )
    };
}

pub(super) const SCAN: &str = scan!("");

/// A sub-select without a column of the query is worked out once, before the first row is looked for.
/// `terrace_shard_look` is stable, so it looks in the snapshot of the statement; it is called to raise only:
/// a call costs about three times what looking costs.
pub(super) const EPOCH_READ: &str = read!(
    " WHERE CASE WHEN (SELECT epoch FROM terrace_shard) = $3 THEN true ELSE terrace_shard_look($3) END"
);

pub(super) const EPOCH_READ_WITHIN: &str = read_within!(
    " WHERE CASE WHEN (SELECT epoch FROM terrace_shard) = $4 THEN true ELSE terrace_shard_look($4) END"
);

pub(super) const EPOCH_SCAN: &str = scan!(
    "AND CASE WHEN (SELECT epoch FROM terrace_shard) = $6 THEN true ELSE terrace_shard_look($6) END "
);

/// How far a read model has come, and for each of distinct keys its place, its row and whether it is
/// parked: one snapshot.
pub(super) const READ_ROWS: &str = "SELECT p.source, p.epoch, p.place, p.whole, u.i, k.key IS NOT NULL, \
       r.version, r.deleted, r.created_at, r.updated_at, r.value, r.read_count, r.write_count \
     FROM terrace_projection p LEFT JOIN unnest($1::text[]) WITH ORDINALITY AS u(k, i) ON true \
     LEFT JOIN records r ON r.key = u.k LEFT JOIN terrace_parked k ON k.key = u.k \
     WHERE p.name = 'live'";

/// The same within a budget: the bytes of all values beside each row, which are left out when they are
/// more.
pub(super) const READ_ROWS_WITHIN: &str = "SELECT source, epoch, place, whole, i, parked, version, deleted, created_at, \
       updated_at, CASE WHEN total <= $2 THEN value END, read_count, write_count, total \
     FROM (SELECT p.source, p.epoch, p.place, p.whole, u.i, k.key IS NOT NULL AS parked, r.version, r.deleted, \
         r.created_at, r.updated_at, r.value, r.read_count, r.write_count, \
         (sum(octet_length(r.value)) FILTER (WHERE NOT r.deleted) OVER ())::bigint AS total \
       FROM terrace_projection p LEFT JOIN unnest($1::text[]) WITH ORDINALITY AS u(k, i) ON true \
       LEFT JOIN records r ON r.key = u.k LEFT JOIN terrace_parked k ON k.key = u.k \
       WHERE p.name = 'live') AS found";

/// Which run of the server this is, where its log ends or its replay stands, and what it shows. What a
/// replay counts as done was visible before.
pub(super) const STATE: &str = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
         ELSE pg_current_wal_flush_lsn() END, \
       pg_current_snapshot(), \
       CASE WHEN pg_is_in_recovery() THEN greatest(0, extract(epoch FROM clock_timestamp() \
         - pg_last_xact_replay_timestamp()) * 1000000)::bigint END";

pub(super) const SEEN: &str =
    concat!("SELECT pg_current_snapshot(), ", generation!("$1"), ", pg_is_in_recovery()");
