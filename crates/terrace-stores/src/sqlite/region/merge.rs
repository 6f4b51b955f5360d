//! Merges changes and rows of other regions, in the transaction that is open and as rows are.

use rusqlite::{Connection, OptionalExtension, params};
use terrace_core::{
    Ancestry, Batch, Checkpoint, Conflict, KeyState, Logged, PositionLost, RegionOptions, Result,
    Seen, Timestamp, Value, Version, region,
};

use super::super::job::{Follow, Step};
use super::super::{failure, follow, idempotency, log};

/// How long losses are listed.
const LISTED_FOR_MICROS: i64 = 30 * 24 * 60 * 60 * 1_000_000;

/// Does it within the transaction that is open; answers the highest version that has come, and nothing
/// where none has.
pub(in super::super) fn perform(
    follow: &Follow,
    connection: &Connection,
    options: &RegionOptions,
    now_micros: i64,
) -> Result<Option<Version>> {
    follow::as_is(connection, |connection, counter| {
        let came = match &follow.step {
            Step::Apply(batch) => {
                apply(connection, &follow.source, batch)?;
                let collected = Seen::collected(&batch.changes);
                raise_horizon(connection, collected)?;
                merge(connection, &batch.changes, options, now_micros)?.max(Some(collected))
            }
            Step::Merge(rows) => merge(connection, rows, options, now_micros)?,
            Step::BeginAnew(log) => {
                let anew = Checkpoint { log: log.clone(), ..Checkpoint::default() };
                follow::keep(connection, &follow.source, &anew)?;
                None
            }
        };
        Ok((came, counter))
    })
}

/// Moves the checkpoint.
fn apply(connection: &Connection, source: &str, batch: &Batch) -> Result<()> {
    if follow::checkpoint(connection, source)? != batch.from {
        return Err(PositionLost::error("another process has followed from there"));
    }
    follow::keep(connection, source, &batch.to)
}

fn merge(
    connection: &Connection,
    changes: &[Logged],
    options: &RegionOptions,
    now_micros: i64,
) -> Result<Option<Version>> {
    let newest = changes.iter().map(|change| change.version).max();
    options.check_clock(newest.unwrap_or_default(), log::moment(now_micros))?;
    let mut noticed = 0;
    for change in changes {
        noticed += one(connection, change, now_micros)?;
        if let Some(Ancestry::Change { request: Some(result), .. }) = change.ancestry.as_deref() {
            idempotency::take(connection, result, now_micros)?;
        }
    }
    if noticed > 0 {
        forget(connection, 2 * noticed, now_micros)?;
    }
    Ok(newest)
}

/// What is here of the key.
struct Known {
    state: KeyState,
    /// The value of the record.
    value: Option<String>,
}

/// Merges one; answers how many losses it has noticed.
fn one(connection: &Connection, change: &Logged, now_micros: i64) -> Result<usize> {
    const TAKE: &str = "INSERT INTO records
        (key, value, version, created_at, updated_at, deleted, seen)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
        ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version,
        created_at = excluded.created_at, updated_at = excluded.updated_at,
        deleted = excluded.deleted, seen = excluded.seen, seq = 0";
    const SEEN: &str = "UPDATE records SET seen = ?2 WHERE key = ?1";
    let key = change.key.as_str();
    let known = find(connection, change)?;
    let (before, after) = (&known.state, known.state.with(change));
    if after.version != before.version {
        let micros = |time: Timestamp| time.as_microsecond();
        let row = change
            .record
            .as_ref()
            .map(|it| (it.value.as_str(), micros(it.created_at), micros(it.updated_at)));
        let (value, created_at, updated_at) = row.unwrap_or(("", now_micros, now_micros));
        let version = signed(change.version)?;
        let row =
            params![key, value, version, created_at, updated_at, after.deleted, text(&after)?];
        run(connection, TAKE, row)?;
    } else if after.seen != before.seen {
        run(connection, SEEN, params![key, text(&after)?])?;
    }
    list(connection, change, &known, &after, now_micros)
}

/// Keeps what is lost and what is awaited.
fn list(
    connection: &Connection,
    change: &Logged,
    known: &Known,
    after: &KeyState,
    now_micros: i64,
) -> Result<usize> {
    const KEEP: &str = "INSERT INTO conflicts (key, version, awaited, winner, digest, noticed_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (key, version) DO NOTHING";
    const DROP: &str = "DELETE FROM conflicts WHERE key = ?1 AND version = ?2";
    let (before, key) = (&known.state, change.key.as_str());
    let gone = before.lost.difference(&after.lost);
    for version in gone.chain(before.awaited.difference(&after.awaited)) {
        run(connection, DROP, params![key, signed(*version)?])?;
    }
    for version in after.awaited.difference(&before.awaited) {
        let (version, winner) = (signed(*version)?, signed(after.version)?);
        run(connection, KEEP, params![key, version, true, winner, None::<Vec<u8>>, now_micros])?;
    }
    let mut noticed = 0;
    for &loser in after.lost.difference(&before.lost) {
        let mine = || {
            let value = known.value.as_ref().filter(|_| !before.deleted).map(Value::new);
            Ok(value.transpose()?.as_ref().map(region::digest_of))
        };
        let mine = if loser == before.version { Some(mine()?) } else { None };
        let at = log::moment(now_micros);
        let it = Conflict::noticed(change, loser, after.version, mine, at);
        let (loser, winner) = (signed(loser)?, signed(it.winner)?);
        let digest = it.digest.map(|digest| digest.to_vec());
        let at = it.noticed_at.as_microsecond();
        run(connection, KEEP, params![key, loser, false, winner, digest, at])?;
        noticed += 1;
    }
    Ok(noticed)
}

fn find(connection: &Connection, change: &Logged) -> Result<Known> {
    const ROW: &str = "SELECT version, deleted, seen, value FROM records WHERE key = ?1";
    const LISTED: &str = "SELECT version, awaited FROM conflicts
        WHERE key = ?1 AND (?2 OR awaited OR version IN (?3, ?4))";
    let key = change.key.as_str();
    let mut known = Known { state: KeyState::default(), value: None };
    let row = connection.prepare_cached(ROW).and_then(|mut statement| {
        let row = statement.query_row([key], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?, row.get(3)?))
        });
        row.optional()
    });
    let (state, mut version) = (&mut known.state, 0_i64);
    if let Some((found, deleted, seen, value)) = row.map_err(failure::of)? {
        (version, state.deleted, known.value) = (found, deleted, value);
        state.seen = parse(&seen)?;
    }
    // Over a version that a person made up everything is new.
    state.version = Version::of_row(version).unwrap_or(Version::NONE);
    state.seen.add(state.version);
    state.seen.add(horizon(connection)?);
    let (all, replaced) = match change.ancestry.as_deref() {
        Some(Ancestry::Change { replaced, .. }) => (false, *replaced),
        _ => (true, Version::NONE),
    };
    let mut listed = connection.prepare_cached(LISTED).map_err(failure::of)?;
    let listed = listed
        .query_map(params![key, all, signed(change.version)?, signed(replaced)?], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?))
        });
    for row in listed.map_err(failure::of)? {
        let (version, awaited) = row.map_err(failure::of)?;
        let list = if awaited { &mut state.awaited } else { &mut state.lost };
        list.extend(Version::of_row(version));
    }
    Ok(known)
}

/// Up to when deletions were collected.
pub(super) fn horizon(connection: &Connection) -> Result<Version> {
    const HORIZON: &str = "SELECT value FROM meta WHERE name = 'collected'";
    let asked = connection.prepare_cached(HORIZON);
    let found = asked.and_then(|mut asked| asked.query_row([], |row| row.get(0)));
    Ok(Version::of_row(found.map_err(failure::of)?).unwrap_or_default())
}

fn raise_horizon(connection: &Connection, horizon: Version) -> Result<()> {
    const RAISE: &str = "UPDATE meta SET value = ?1 WHERE name = 'collected' AND value < ?1";
    run(connection, RAISE, [signed(horizon)?])
}

/// What has arrived, as it is stored.
pub(super) fn parse(text: &str) -> Result<Seen> {
    let versions = serde_json::from_str::<Vec<Version>>(text);
    let versions = versions.map_err(|error| failure::corrupt("seen").caused_by(error))?;
    Ok(versions.into_iter().collect())
}

fn text(state: &KeyState) -> Result<String> {
    serde_json::to_string(&state.seen).map_err(|error| failure::corrupt("seen").caused_by(error))
}

/// Removes up to `most` losses that are listed no longer.
fn forget(connection: &Connection, most: usize, now_micros: i64) -> Result<()> {
    const FORGET: &str = "DELETE FROM conflicts WHERE (key, version) IN
        (SELECT key, version FROM conflicts WHERE noticed_at <= ?1 ORDER BY noticed_at LIMIT ?2)";
    let before = now_micros.saturating_sub(LISTED_FOR_MICROS);
    run(connection, FORGET, params![before, i64::try_from(most).unwrap_or(i64::MAX)])
}

fn run(connection: &Connection, text: &str, with: impl rusqlite::Params) -> Result<()> {
    let done = connection.prepare_cached(text).and_then(|mut statement| statement.execute(with));
    done.map(drop).map_err(failure::of)
}

fn signed(version: Version) -> Result<i64> {
    i64::try_from(version.get()).map_err(|_| failure::corrupt("version"))
}
