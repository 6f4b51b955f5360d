//! What a read model answers.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join4;
use terrace_core::read_model::{Activity, Counted, Parked, Reached, Row, Rows};
use terrace_core::{
    Budget, Checkpoint, Key, LogPosition, Origin, Page, Record, Scan, Timestamp, Value,
};
use tokio_postgres::types::Type;

use super::super::connection::Connection;
use super::super::inspect::COUNT;
use super::super::read::{MAX_PAGE_BYTES, ScanPage, version, within};
use super::super::statements::{Moment, NO_EPOCH};
use super::super::work::{Failure, Progress, Work, corrupt, not_allowed};
use super::apply::signed;
use super::tables::{ROWS, words};

fn unsigned(row: &tokio_postgres::Row, column: usize) -> Result<u64, Failure> {
    Ok(u64::try_from(row.try_get::<_, i64>(column).map_err(corrupt)?).unwrap_or(0))
}

fn position(row: &tokio_postgres::Row, column: usize) -> Result<LogPosition, Failure> {
    Ok(LogPosition { epoch: unsigned(row, column)?, offset: unsigned(row, column + 1)? })
}

/// How far a projection, or the search index, has come.
pub(super) struct FindCheckpoint(pub(super) &'static str);

impl Work for FindCheckpoint {
    type Answer = Checkpoint;

    const OPERATION: &'static str = "find the checkpoint";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Checkpoint, Failure> {
        const TEXT: &str = "SELECT source, epoch, place FROM terrace_projection WHERE name = $1";
        let rows = connection.ask(TEXT, &[(&self.0, Type::TEXT)]).await?;
        let found = rows.first().map(|row| {
            let log = row.try_get::<_, String>(0).map_err(corrupt)?;
            Ok(Checkpoint::beginning(log).at(position(row, 1)?))
        });
        match found {
            Some(found) => found,
            // Somebody has emptied the table: it begins anew.
            None => {
                connection.command(ROWS).await?;
                Ok(Checkpoint::default())
            }
        }
    }
}

/// Lets nobody project for a while.
pub(super) struct Pause(pub(super) Duration);

impl Work for Pause {
    type Answer = ();

    const OPERATION: &'static str = "pause the projection";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<(), Failure> {
        const TEXT: &str = "UPDATE terrace_projection \
             SET paused_until = clock_timestamp() + $1 * interval '1 millisecond' \
             WHERE name = 'live'";
        let time = i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX);
        connection.ask(TEXT, &[(&time, Type::INT8)]).await?;
        Ok(())
    }
}

/// Where a read within a budget says how many bytes all values have.
const TOTAL: usize = 13;

/// How far the projection had come, in the first columns of a row.
fn reached(row: &tokio_postgres::Row) -> Result<Reached, Failure> {
    let log = row.try_get::<_, &str>(0).map_err(corrupt)?;
    let checkpoint = Checkpoint::beginning(log).at(position(row, 1)?);
    Ok(Reached { checkpoint, whole: row.try_get(3).map_err(corrupt)? })
}

/// A page, and how far the projection had come, in one snapshot.
pub(super) struct ReadPage<'a>(pub(super) &'a Scan);

impl Work for ReadPage<'_> {
    type Answer = (Page, Reached);

    const OPERATION: &'static str = "scan";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<(Page, Reached), Failure> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        // The record of a key that is parked may be old, or missing.
        const REACHED: &str = "SELECT source, epoch, place, \
               whole AND NOT EXISTS (SELECT FROM terrace_parked) \
             FROM terrace_projection WHERE name = 'live'";
        let page = ScanPage { scan: self.0, asked: None, epoch: NO_EPOCH };
        progress.in_transaction(true);
        let (begun, found, page, ended) = join4(
            connection.command(BEGIN),
            connection.ask(REACHED, &[]),
            page.run(connection, progress),
            connection.command("COMMIT"),
        )
        .await;
        if ended.is_ok() {
            progress.in_transaction(false);
        }
        begun?;
        let reached = found?.first().map(reached).transpose()?.unwrap_or_default();
        let page = Page { origin: Origin::READ_MODEL, ..page? };
        ended?;
        Ok((page, reached))
    }
}

/// Rows by keys.
pub(super) struct ReadRows<'a> {
    pub(super) keys: &'a [Key],
    pub(super) budget: Budget,
}

impl Work for ReadRows<'_> {
    type Answer = Rows;

    const OPERATION: &'static str = "read";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Rows, Failure> {
        let mut distinct = Vec::with_capacity(self.keys.len());
        let mut places = HashMap::with_capacity(self.keys.len());
        let asked = self.keys.iter().map(|key| {
            *places.entry(key).or_insert_with(|| {
                distinct.push(key);
                distinct.len() - 1
            })
        });
        let asked = asked.collect::<Vec<_>>();
        let keys = distinct.iter().map(|key| key.as_str()).collect::<Vec<_>>();
        let found = if self.budget.holds(keys.len()) {
            connection.read_rows(&keys).await?
        } else {
            let left = i64::try_from(self.budget.left()).unwrap_or(i64::MAX);
            let found = connection.read_rows_within(&keys, left).await?;
            within(self.budget, &found, TOTAL)?;
            found
        };
        let mut rows = vec![Row::default(); distinct.len()];
        let mut answer = Rows::default();
        // Each row goes when it is copied: values may be large.
        for row in found {
            let row = &row;
            answer.reached = reached(row)?;
            let Some(place) = row.try_get::<_, Option<i64>>(4).map_err(corrupt)? else { continue };
            let place = usize::try_from(place).unwrap_or(0).wrapping_sub(1);
            if let (Some(key), Some(place)) = (distinct.get(place), rows.get_mut(place)) {
                place.parked = row.try_get(5).map_err(corrupt)?;
                if row.try_get::<_, Option<i64>>(6).map_err(corrupt)?.is_some() {
                    *place = Row { parked: place.parked, ..counted((*key).clone(), row, 6)? };
                }
            }
        }
        answer.rows = match asked.len() == rows.len() {
            true => rows,
            false => asked.into_iter().map(|place| rows[place].clone()).collect(),
        };
        Ok(answer)
    }
}

/// The row whose version, deletion, times, value and counts begin at `column`.
fn counted(key: Key, row: &tokio_postgres::Row, column: usize) -> Result<Row, Failure> {
    let version = version(row.try_get(column).map_err(corrupt)?);
    let deleted = row.try_get::<_, bool>(column + 1).map_err(corrupt)?;
    let record = if deleted {
        None
    } else {
        let Moment(created_at) = row.try_get(column + 2).map_err(corrupt)?;
        let Moment(updated_at) = row.try_get(column + 3).map_err(corrupt)?;
        let value = row.try_get::<_, &str>(column + 4).map_err(corrupt)?;
        let value = Value::new(value).map_err(not_allowed)?;
        Some(Record { key, value, version, created_at, updated_at })
    };
    let (reads, writes) = (unsigned(row, column + 5)?, unsigned(row, column + 6)?);
    Ok(Row { record, version, reads, writes, parked: false })
}

fn all(rows: &[tokio_postgres::Row]) -> Result<Vec<Row>, Failure> {
    let row = |row| {
        let name = tokio_postgres::Row::try_get::<_, &str>(row, 0).map_err(corrupt)?;
        let key = Key::new(name).map_err(not_allowed);
        key.and_then(|key| counted(key, row, 1)).map_err(|failure| failure.in_row(name))
    };
    rows.iter().map(row).collect()
}

const COLUMNS: &str =
    "key, version, deleted, created_at, updated_at, value, read_count, write_count";

/// These rows in this order, as far as their values are within a page, but one at least. The sizes are
/// known without reading large values.
fn page(rows: &str, order: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM (SELECT *, sum(octet_length(value)) OVER (ORDER BY {order} \
             ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS bytes, \
             row_number() OVER (ORDER BY {order}) AS number FROM ({rows}) AS found) AS page \
         WHERE bytes <= {MAX_PAGE_BYTES} OR number = 1 ORDER BY number"
    )
}

/// Records with all these words.
pub(super) struct Search<'a> {
    pub(super) words: &'a str,
    pub(super) limit: usize,
}

impl Work for Search<'_> {
    type Answer = Vec<Row>;

    const OPERATION: &'static str = "search";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Row>, Failure> {
        // By the words that a row has now, whatever is indexed.
        let now = words!("r.key", "r.value");
        let rows = format!(
            "SELECT r.*, ts_rank(w.words, q) AS rank \
             FROM terrace_words w JOIN records r ON r.key = w.key, plainto_tsquery('simple', $1) AS q \
             WHERE w.words @@ q AND NOT r.deleted \
               AND (w.version = r.version OR {now} @@ q) ORDER BY rank DESC, key LIMIT $2"
        );
        let text = page(&rows, "rank DESC, key");
        let limit = signed(self.limit as u64);
        all(&connection.ask(&text, &[(&self.words, Type::TEXT), (&limit, Type::INT8)]).await?)
    }
}

/// Records with the highest counts.
pub(super) struct Top {
    pub(super) by: Counted,
    pub(super) limit: usize,
}

impl Work for Top {
    type Answer = Vec<Row>;

    const OPERATION: &'static str = "find the top";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Row>, Failure> {
        let column = match self.by {
            Counted::Reads => "read_count",
            Counted::Writes => "write_count",
        };
        let order = format!("{column} DESC, key");
        let rows = format!("SELECT * FROM records WHERE NOT deleted ORDER BY {order} LIMIT $1");
        let text = page(&rows, &order);
        all(&connection.ask(&text, &[(&signed(self.limit as u64), Type::INT8)]).await?)
    }
}

/// Values written by time.
pub(super) struct ByTime {
    pub(super) bucket: Duration,
    pub(super) limit: usize,
}

impl Work for ByTime {
    type Answer = Vec<Activity>;

    const OPERATION: &'static str = "tell the activity";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Activity>, Failure> {
        const TEXT: &str = "SELECT minute / $1 * $1, sum(writes)::bigint FROM terrace_activity \
             GROUP BY 1 ORDER BY 1 DESC LIMIT $2";
        let minutes = signed((self.bucket.as_secs() / 60).max(1));
        let limit = signed(self.limit as u64);
        let rows = connection.ask(TEXT, &[(&minutes, Type::INT8), (&limit, Type::INT8)]).await?;
        let bucket = |row: &tokio_postgres::Row| {
            let minute = row.try_get::<_, i64>(0).map_err(corrupt)?;
            let from = Timestamp::from_second(minute.saturating_mul(60)).unwrap_or_default();
            Ok(Activity { from, writes: unsigned(row, 1)? })
        };
        rows.iter().map(bucket).collect()
    }
}

/// Keys that are stopped.
pub(super) struct ParkedKeys(pub(super) usize);

impl Work for ParkedKeys {
    type Answer = Vec<Parked>;

    const OPERATION: &'static str = "list parked keys";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Vec<Parked>, Failure> {
        const TEXT: &str = "SELECT key, epoch, place, commands, reason FROM terrace_parked \
             ORDER BY epoch, place, key LIMIT $1";
        let rows = connection.ask(TEXT, &[(&signed(self.0 as u64), Type::INT8)]).await?;
        let parked = |row: &tokio_postgres::Row| {
            let key = Key::new(row.try_get::<_, &str>(0).map_err(corrupt)?).map_err(not_allowed)?;
            let (position, commands) = (position(row, 1)?, unsigned(row, 3)?);
            let reason = row.try_get::<_, String>(4).map_err(corrupt)?;
            Ok(Parked { key, position, commands, reason })
        };
        rows.iter().map(parked).collect()
    }
}

/// How many records and parked keys there are. Of many records the number is the planner's.
pub(super) struct Counts;

impl Work for Counts {
    type Answer = (u64, u64);

    const OPERATION: &'static str = "count";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<(u64, u64), Failure> {
        let text = format!("SELECT ({COUNT}), (SELECT count(*) FROM terrace_parked)");
        let rows = connection.ask(&text, &[]).await?;
        match rows.first() {
            Some(row) => Ok((unsigned(row, 0)?, unsigned(row, 1)?)),
            None => Ok((0, 0)),
        }
    }
}
