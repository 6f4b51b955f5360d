//! Every statement of requests: constant texts with array parameters, so that one plan serves
//! batches of every size.

use futures_util::future::try_join_all;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use terrace_core::{RegionId, Timestamp};

/// One statement of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sql {
    /// Every key's place in the parameter with its record, if there is one, and with the first key
    /// what the snapshot proves of this history. On a shard under an epoch, the last parameter.
    Read,
    /// The same within a budget, the parameter before the last: beside each row the bytes of all values,
    /// which are left out when they are more.
    ReadWithin,
    /// What a snapshot proves of this history.
    Seen,
    /// Records after a key, from a key, below a key, at most so many, and of so many bytes: one more
    /// than the one whose value reaches them. On a shard under an epoch, the last parameter.
    Scan,
    /// What this server is, and how far it has come.
    State,
    /// Sets values of distinct keys, under this history. On a shard under an epoch, the last parameter.
    Put,
    /// The transaction's number, under this history.
    Transaction,
    /// Sets values of distinct keys, or deletes them, where the row has not come as far in a journal.
    Place,
    /// How far rows have come, each with its place in the parameter.
    Placed,
    /// Locks the rows of keys in the order of the keys and answers their state.
    Lock,
    /// Makes traces of deleted records for keys without a row and locks all rows, in the order of the
    /// keys.
    Reserve,
    /// Draws versions.
    Draw,
    /// Makes rows that a lock did not find.
    Insert,
    /// Changes rows that are locked.
    Update,
    /// Takes an idempotency key, unless it is taken.
    Claim,
    /// What a taken idempotency key holds.
    Recall,
    /// Stores the result under the claimed key.
    Remember,
    /// Removes at most so many results that are older than a day, the oldest first, and counts them.
    Forget,
    /// Lets the transaction go on under this epoch of the shard, or ends it. Prepared on shards only.
    Enter,
}

/// The generation of the history that a parameter names, if it is in force and of this table as it is:
/// the file of a table is another one when it was emptied or made again.
macro_rules! generation {
    ($parameter:literal) => {
        concat!(
            "(SELECT generation FROM terrace_history WHERE name = ",
            $parameter,
            " AND records = pg_relation_filenode('records'))"
        )
    };
}

pub(super) use generation;

// Behind the macro that they use.
mod reads;
pub(super) mod region;

use reads::{
    EPOCH_READ, EPOCH_READ_WITHIN, EPOCH_SCAN, READ, READ_ROWS, READ_ROWS_WITHIN, READ_WITHIN,
    SCAN, SEEN, STATE,
};

impl Sql {
    /// The last one is for shards.
    const ALL: [Self; 19] = [
        Self::Read,
        Self::ReadWithin,
        Self::Seen,
        Self::Scan,
        Self::State,
        Self::Put,
        Self::Transaction,
        Self::Place,
        Self::Placed,
        Self::Lock,
        Self::Reserve,
        Self::Draw,
        Self::Insert,
        Self::Update,
        Self::Claim,
        Self::Recall,
        Self::Remember,
        Self::Forget,
        Self::Enter,
    ];

    fn text(self, dialect: Dialect) -> &'static str {
        if matches!(dialect, Dialect::Region(_))
            && let Some(text) = region::text(self)
        {
            return text;
        }
        match self {
            Self::Read if dialect.is_shard() => EPOCH_READ,
            Self::ReadWithin if dialect.is_shard() => EPOCH_READ_WITHIN,
            Self::Scan if dialect.is_shard() => EPOCH_SCAN,
            Self::Put if dialect.is_shard() => EPOCH_PUT,
            Self::Read => READ,
            Self::ReadWithin => READ_WITHIN,
            Self::Seen => SEEN,
            Self::Scan => SCAN,
            Self::State => STATE,
            Self::Put => PUT,
            Self::Transaction => TRANSACTION,
            Self::Place => PLACE,
            Self::Placed => PLACED,
            Self::Lock => {
                "SELECT key, version, deleted, seq FROM records WHERE key = ANY ($1::text[]) \
                 ORDER BY key FOR UPDATE"
            }
            // Rows in conflict are locked even when they are not updated.
            Self::Reserve => {
                "INSERT INTO records AS r (key, value, deleted) \
                 SELECT u.k, '', true FROM unnest($1::text[]) AS u(k) \
                 ON CONFLICT (key) DO UPDATE SET deleted = r.deleted WHERE false"
            }
            Self::Draw => "SELECT nextval('records_version') FROM generate_series(1, $1::bigint)",
            Self::Insert => {
                "INSERT INTO records (key, value, version, deleted, seq, created_at, updated_at) \
                 SELECT u.k, u.v, u.n, u.d, u.s, t.at, t.at \
                 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::bigint[], \
                     $6::bigint[]) AS u(k, v, n, d, s, a), \
                   LATERAL (SELECT coalesce('epoch'::timestamptz + u.a * interval '1 millisecond', \
                     now()) AS at) AS t"
            }
            Self::Update => UPDATE,
            // Claim and result are committed together. A claim without a result was made when BEGIN had
            // failed, and belongs to nobody.
            Self::Claim => {
                "INSERT INTO terrace_idempotency AS i (key, fingerprint) VALUES ($1, $2) \
                 ON CONFLICT (key) DO UPDATE \
                 SET fingerprint = excluded.fingerprint, result = NULL, created_at = now() \
                 WHERE i.created_at < now() - interval '24 hours' OR i.result IS NULL \
                 RETURNING true"
            }
            Self::Recall => "SELECT fingerprint, result FROM terrace_idempotency WHERE key = $1",
            Self::Remember => "UPDATE terrace_idempotency SET result = $2 WHERE key = $1",
            Self::Forget => {
                "WITH gone AS (DELETE FROM terrace_idempotency WHERE key IN (SELECT key FROM terrace_idempotency \
                   WHERE created_at < now() - interval '24 hours' ORDER BY created_at LIMIT $1 \
                   FOR UPDATE SKIP LOCKED) RETURNING 1) \
                 SELECT count(*) FROM gone"
            }
            Self::Enter => "SELECT terrace_shard_enter($1)",
        }
    }

    fn types(self, dialect: Dialect) -> &'static [Type] {
        let types = self.all_types();
        match self {
            Self::Read | Self::ReadWithin | Self::Scan | Self::Put if !dialect.is_shard() => {
                &types[..types.len() - 1]
            }
            Self::Insert | Self::Update | Self::Remember
                if !matches!(dialect, Dialect::Region(_)) =>
            {
                &types[..types.len() - 1]
            }
            _ => types,
        }
    }

    /// Those of a shard, or of a region.
    fn all_types(self) -> &'static [Type] {
        match self {
            Self::Placed | Self::Lock | Self::Reserve => &[Type::TEXT_ARRAY],
            Self::Read => &[Type::TEXT_ARRAY, Type::TEXT, Type::INT8],
            Self::ReadWithin => &[Type::TEXT_ARRAY, Type::TEXT, Type::INT8, Type::INT8],
            Self::Seen | Self::Transaction => &[Type::TEXT],
            Self::Scan => &[Type::TEXT, Type::TEXT, Type::TEXT, Type::INT8, Type::INT8, Type::INT8],
            Self::State => &[],
            Self::Put => &[Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::TEXT, Type::INT8],
            Self::Draw | Self::Forget | Self::Enter => &[Type::INT8],
            Self::Place => &[
                Type::TEXT_ARRAY,
                Type::TEXT_ARRAY,
                Type::INT8_ARRAY,
                Type::BOOL_ARRAY,
                Type::TEXT,
            ],
            Self::Insert => &[
                Type::TEXT_ARRAY,
                Type::TEXT_ARRAY,
                Type::INT8_ARRAY,
                Type::BOOL_ARRAY,
                Type::INT8_ARRAY,
                Type::INT8_ARRAY,
                Type::INT8_ARRAY,
            ],
            Self::Update => &[
                Type::TEXT_ARRAY,
                Type::TEXT_ARRAY,
                Type::INT8_ARRAY,
                Type::BOOL_ARRAY,
                Type::INT8_ARRAY,
                Type::BOOL_ARRAY,
                Type::INT8_ARRAY,
                Type::INT8_ARRAY,
            ],
            Self::Claim => &[Type::TEXT, Type::BYTEA],
            Self::Recall => &[Type::TEXT],
            Self::Remember => &[Type::TEXT, Type::TEXT, Type::INT8],
        }
    }
}

/// A changed row's time is that of the write, and past both of its times.
const UPDATE: &str = "UPDATE records r SET value = u.v, version = u.n, deleted = u.d, seq = u.s, \
     updated_at = greatest(t.at, r.updated_at + interval '1 microsecond', \
       r.created_at + interval '1 microsecond'), \
     created_at = CASE WHEN u.c THEN \
       greatest(t.at, r.updated_at + interval '1 microsecond', \
         r.created_at + interval '1 microsecond') \
       ELSE r.created_at END \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[], $5::bigint[], \
         $6::boolean[], $7::bigint[]) AS u(k, v, n, d, s, c, a), \
       LATERAL (SELECT coalesce('epoch'::timestamptz + u.a * interval '1 millisecond', \
         now()) AS at) AS t \
     WHERE r.key = u.k";

/// The furthest sequence of a journal whose row is gone: no write up to there is applied any more. See
/// [`super::tombstones`].
macro_rules! settled {
    () => {
        "(SELECT coalesce(max(value::bigint), 0) FROM terrace_meta WHERE name = 'settled')"
    };
}
pub(super) use settled;

const TRANSACTION: &str = concat!(
    "SELECT pg_current_xact_id(), ",
    settled!(),
    " WHERE ",
    generation!("$1"),
    " IS NOT NULL"
);

/// The furthest sequence that a row carries or carried.
pub(super) const FURTHEST: &str =
    concat!("SELECT greatest((SELECT coalesce(max(seq), 0) FROM records), ", settled!(), ")");

const PLACED: &str = concat!(
    "SELECT u.i, r.version, r.deleted, greatest(r.seq, ",
    settled!(),
    ") FROM unnest($1::text[]) WITH ORDINALITY AS u(k, i) LEFT JOIN records r ON r.key = u.k"
);

/// A version past that of the row, which a person may have set. What no database draws does not count,
/// see [`terrace_core::Version::of_row`].
macro_rules! successor {
    () => {
        "greatest(nextval('records_version'), \
         CASE WHEN r.version < 9007199254740992 THEN r.version + 1 END)"
    };
}

/// The version of a replaced row is drawn while the row is locked: `excluded.version` was
/// drawn before, and a faster writer may have a later one. A replaced row's time is past both of its times, so only a
/// new record has `created_at = updated_at`.
macro_rules! put {
    ($only:literal) => {
        concat!(
            "INSERT INTO records AS r (key, value) \
     SELECT u.k, u.v FROM unnest($1::text[], $2::text[]) AS u(k, v) WHERE ",
            $only,
            generation!("$3"),
            " IS NOT NULL \
     ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = ",
            successor!(),
            ", deleted = false, \
     updated_at = greatest(now(), r.updated_at + interval '1 microsecond', \
       r.created_at + interval '1 microsecond'), \
     created_at = CASE WHEN r.deleted THEN \
       greatest(now(), r.updated_at + interval '1 microsecond', \
         r.created_at + interval '1 microsecond') \
       ELSE r.created_at END \
     RETURNING key, version, created_at = updated_at, pg_current_xact_id()"
        )
    };
}

const PUT: &str = put!("");

/// The same under an epoch. `terrace_shard_enter` is volatile: it takes its lock, and then looks in a snapshot
/// of its own.
const EPOCH_PUT: &str = put!("(SELECT terrace_shard_enter($4)) AND ");

/// As [`PUT`], for writes of a journal: a row that has come as far is left alone and not answered. A
/// deletion without a record leaves a row, too, with `created_at = updated_at`.
/// Its time is that at which the journal accepted it: the milliseconds of the sequence. A journal forgets
/// what is settled, so the commit waits for the disk whatever the settings are.
const PLACE: &str = concat!(
    "INSERT INTO records AS r (key, value, seq, deleted, created_at, updated_at) \
     SELECT u.k, u.v, u.s, u.d, t.at, t.at \
     FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]) AS u(k, v, s, d), \
       LATERAL (SELECT 'epoch'::timestamptz + (u.s >> 21) * interval '1 millisecond' AS at) AS t \
     WHERE u.s > ",
    settled!(),
    " AND ",
    generation!("$5"),
    " IS NOT NULL AND (SELECT set_config('synchronous_commit', CASE s WHEN 'off' THEN 'local' \
         ELSE s END, true) FROM current_setting('synchronous_commit') AS s) IS NOT NULL \
     ON CONFLICT (key) DO UPDATE SET value = excluded.value, seq = excluded.seq, version = ",
    successor!(),
    ", deleted = excluded.deleted, \
     updated_at = greatest(excluded.updated_at, r.updated_at + interval '1 microsecond', \
       r.created_at + interval '1 microsecond'), \
     created_at = CASE WHEN r.deleted THEN \
       greatest(excluded.updated_at, r.updated_at + interval '1 microsecond', \
         r.created_at + interval '1 microsecond') \
       ELSE r.created_at END \
     WHERE r.seq < excluded.seq \
     RETURNING key, version, created_at = updated_at, pg_current_xact_id()"
);

/// The epoch of work under none: no shard has it.
pub(super) const NO_EPOCH: i64 = -1;

/// A parameter of a statement.
pub(super) type Parameter<'a> = &'a (dyn ToSql + Sync);

/// The statements of one connection, prepared or not.
#[derive(Debug)]
pub(super) enum Statements {
    /// Each call sends text, types and parameters at once; for connections with one request.
    Unprepared,
    /// Parsed and planned once, in the order of [`Sql::ALL`].
    Prepared(Vec<Statement>),
    /// The one statement that a read model runs for each request.
    ReadRows(Statement),
}

/// What kind of database a session is with; chosen when the store connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// It has all records, or is a replica of one that has.
    Plain,
    /// It has all records and a change log, which has every change of them.
    Logged,
    /// One of several regions, with a change log of its own changes.
    Region(RegionId),
    /// One of several shards: what it has, it answers under an epoch.
    Shard,
    /// The same, with a change log that has every change which is made here.
    LoggedShard,
    /// A read model.
    ReadModel,
}

impl Dialect {
    /// Whether each change is in a change log.
    pub(super) fn is_logged(self) -> bool {
        matches!(self, Self::Logged | Self::Region(_) | Self::LoggedShard)
    }

    /// Whether work is done under an epoch.
    pub(super) fn is_shard(self) -> bool {
        matches!(self, Self::Shard | Self::LoggedShard)
    }

    /// The region whose versions are drawn.
    pub(super) fn region(self) -> Option<RegionId> {
        if let Self::Region(region) = self { Some(region) } else { None }
    }
}

impl Statements {
    /// Prepares all, in one round trip.
    pub(super) async fn prepare(
        client: &Client,
        dialect: Dialect,
    ) -> Result<Self, tokio_postgres::Error> {
        let count = match dialect {
            Dialect::Plain | Dialect::Logged | Dialect::Region(_) => Sql::ALL.len() - 1,
            Dialect::Shard | Dialect::LoggedShard => Sql::ALL.len(),
            Dialect::ReadModel => {
                let statement = client.prepare_typed(READ_ROWS, &[Type::TEXT_ARRAY]).await?;
                return Ok(Self::ReadRows(statement));
            }
        };
        let prepare = |sql: &Sql| client.prepare_typed(sql.text(dialect), sql.types(dialect));
        try_join_all(Sql::ALL[..count].iter().map(prepare)).await.map(Self::Prepared)
    }

    /// Sends a statement when first polled, so that futures polled together are pipelined in that
    /// order; answers its rows. Parameters that the dialect does not have are left out.
    pub(super) async fn run(
        &self,
        (client, dialect): (&Client, Dialect),
        sql: Sql,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match self {
            Self::Prepared(all) => {
                let statement = &all[sql as usize];
                client.query(statement, &parameters[..statement.params().len()]).await
            }
            Self::Unprepared | Self::ReadRows(_) => {
                let types = sql.types(dialect).iter().cloned();
                let typed = parameters.iter().copied().zip(types).collect::<Vec<_>>();
                client.query_typed(sql.text(dialect), &typed).await
            }
        }
    }
}

impl Statements {
    /// See [`READ_ROWS_WITHIN`].
    pub(super) async fn read_rows_within(
        client: &Client,
        keys: &[&str],
        bytes: i64,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        let parameters: [(Parameter<'_>, Type); 2] =
            [(&keys, Type::TEXT_ARRAY), (&bytes, Type::INT8)];
        client.query_typed(READ_ROWS_WITHIN, &parameters).await
    }

    /// See [`READ_ROWS`].
    pub(super) async fn read_rows(
        &self,
        client: &Client,
        keys: &[&str],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match self {
            Self::ReadRows(statement) => client.query(statement, &[&keys]).await,
            _ => client.query_typed(READ_ROWS, &[(&keys, Type::TEXT_ARRAY)]).await,
        }
    }
}

/// A `timestamptz` as it comes over the wire: microseconds since 2000-01-01, UTC.
pub(super) struct Moment(pub(super) Timestamp);

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        const UNIX_SECONDS_OF_2000: i64 = 946_684_800;
        let micros = i64::from_be_bytes(raw.try_into()?);
        let unix = micros.saturating_add(UNIX_SECONDS_OF_2000 * 1_000_000);
        // `infinity` and years that a Timestamp cannot hold, which only people write.
        let edge = if unix < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Ok(Self(Timestamp::from_microsecond(unix).unwrap_or(edge)))
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::TIMESTAMPTZ
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_statement_is_found_at_its_place() {
        for (index, sql) in Sql::ALL.into_iter().enumerate() {
            assert_eq!(sql as usize, index);
            let region = Dialect::Region(RegionId::new(1).unwrap());
            for dialect in [Dialect::Plain, Dialect::Logged, Dialect::LoggedShard, region] {
                let (text, types) = (sql.text(dialect), sql.types(dialect));
                assert!(types.is_empty() || text.contains(&format!("${}", types.len())), "{text}");
                assert!(!text.contains(&format!("${}", types.len() + 1)), "{text}");
            }
        }
    }

    #[test]
    fn a_moment_counts_from_2000() {
        let at =
            |micros: i64| Moment::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes()).unwrap().0;
        assert_eq!(at(0).to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(at(i64::MAX), Timestamp::MAX);
        assert_eq!(at(i64::MIN), Timestamp::MIN);
    }
}
