//! A server that is one of a primary and its replicas: how far it has come in the write-ahead log.
//!
//! Positions are (timeline, place in the log). A token must hold all that an answer has shown, so
//! the place is asked for after the answer, on the session that gave it. On a primary that is where
//! the log ends, which is past the COMMIT of everything that can be seen. On a replica it is where
//! the replay stands: but a COMMIT shows a moment before the replay counts it as done, so as long
//! as the replay has something before it, the token asks for one byte more, which any replica has
//! only after that record. A replay that has reached the end of what it received, or that waits for
//! more, is past all of it.
//!
//! Versions must not go back when a replica is promoted that had not received the latest: see
//! [`RAISE`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use terrace_core::{Deadline, Error, ErrorKind, NodeState, Position, Result, Role, Token};
use tokio::sync::Mutex;
use tokio_postgres::Row;
use tokio_postgres::types::{PgLsn, Type};

use super::connect::Connection;
use super::sqlstate::{Stage, because, explain};
use super::statements::Sql;
use super::work::Worker;

macro_rules! position {
    () => {
        "SELECT \
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_insert_lsn() END, \
           CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() END, \
           CASE WHEN NOT pg_is_in_recovery() THEN \
             ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END, \
           CASE WHEN pg_is_in_recovery() THEN \
             (pg_stat_get_wal_receiver()).received_tli END AS received_tli"
    };
}

/// Where its log ends or its replay stands; on a replica, what it has received; on a primary, its
/// timeline; on a replica, the timeline that it receives, if this user may know (`pg_monitor`). The
/// replay is asked before what was received: see the [module](self).
pub(super) const POSITION: &str = position!();

/// Whether the replay waits for something to replay, and after that where it stands, and on which
/// timeline. If it waited, everything shown before is before that place.
pub(super) const WAITING: &str = "SELECT \
     EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' \
       AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval', 'RecoveryPause', \
         'RecoveryApplyDelay', 'RestoreCommand', 'RecoveryEndCommand', 'WalReceiverExit')), \
     CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, \
     (pg_stat_get_wal_receiver()).received_tli";

/// Notes a new timeline, and whoever is the first to do so lets the sequence of versions leave out a
/// million numbers: those that the primary of before gave out beyond what this server received. No
/// cache and no client then holds a version from the future.
///
/// It is committed here alone: a standby that is waited for may not be there yet, and one that is
/// promoted without it raises again.
const RAISE: &str = "INSERT INTO meta AS m (name, value) VALUES ('timeline', $1) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value \
       WHERE m.value <> excluded.value \
     RETURNING setval('records_version', (SELECT last_value FROM records_version) + 1048576)";

/// As [`POSITION`]; then which run of the server it is, the timeline that a replica follows, and the
/// name of the history. Each source of the timeline may lag behind, none is ahead of the log.
pub(super) const STATE: &str = concat!(
    "SELECT p.*, \
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
       greatest((pg_control_checkpoint()).timeline_id, \
         (pg_control_recovery()).min_recovery_end_timeline, \
         p.received_tli), \
       (SELECT value FROM meta WHERE name = 'history'), \
       pg_size_bytes(current_setting('wal_segment_size')), \
       pg_has_role('pg_read_all_stats', 'USAGE') FROM (",
    position!(),
    ") AS p"
);

/// What a server said of its place in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) is_replica: bool,
    /// Everything before it is shown.
    reached: u64,
    /// Everything shown is before it.
    shown: u64,
    /// Of a primary, its own; of a replica, that of what it receives, where that is known.
    timeline: Option<u64>,
    /// The replay has something before it, or nobody knows.
    is_busy: bool,
}

impl Place {
    fn of(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let reached = row.try_get::<_, Option<PgLsn>>(0)?.map_or(0, u64::from);
        let received = row.try_get::<_, Option<PgLsn>>(1)?.map(u64::from);
        let timeline = timeline_of(row, 2)?;
        // Asked last: a server that was promoted in between has told where its own log ends.
        if timeline.is_some() {
            let (is_replica, is_busy) = (false, false);
            return Ok(Self { is_replica, reached, shown: reached, timeline, is_busy });
        }
        Ok(Self::of_replica(reached, received, timeline_of(row, 3)?))
    }

    fn of_replica(reached: u64, received: Option<u64>, timeline: Option<u64>) -> Self {
        let is_busy = received != Some(reached);
        let shown = reached + u64::from(is_busy);
        Self { is_replica: true, reached, shown, timeline, is_busy }
    }

    /// What [`Sql::ReplicaRead`] says beside the first key, from this column on; nothing if the server
    /// is no replica any more.
    pub(super) fn beside(row: &Row, column: usize) -> Result<Option<Self>, tokio_postgres::Error> {
        if row.try_get::<_, Option<bool>>(column + 3)? != Some(true) {
            return Ok(None);
        }
        let reached = row.try_get::<_, Option<PgLsn>>(column)?.map_or(0, u64::from);
        let received = row.try_get::<_, Option<PgLsn>>(column + 1)?.map(u64::from);
        let timeline = timeline_of(row, column + 2)?;
        Ok(Some(Self::of_replica(reached, received, timeline)))
    }
}

fn timeline_of(row: &Row, column: usize) -> Result<Option<u64>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<i32>>(column)?.and_then(|it| u64::try_from(it).ok()))
}

/// Where the next record goes is behind the header of a page that is yet to be begun; where the last
/// record ended is before it, and that is what a replica comes to (PostgreSQL, `xlog_internal.h`:
/// pages of 8 KiB, a header of 24 bytes, of 40 on the first page of a segment; no record ends within
/// the first 8 bytes behind it).
fn end_of_record(insert: u64, segment: u64) -> u64 {
    const PAGE: u64 = 8192;
    const HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;
    if segment > 0 && insert % segment == LONG_HEADER {
        insert - LONG_HEADER
    } else if insert % PAGE == HEADER {
        insert - HEADER
    } else {
        insert
    }
}

/// Where the server stands now.
pub(super) async fn position(connection: &Connection) -> Result<Place, tokio_postgres::Error> {
    let rows = connection.run(Sql::Position, &[]).await?;
    // A SELECT without FROM has one row.
    Place::of(&rows[0])?.settled(connection).await
}

impl Place {
    /// What a replica received and what it replayed differ also when nothing comes any more: after a
    /// restart while the primary is down. Then nobody would ever come to the next byte.
    pub(super) async fn settled(
        self,
        connection: &Connection,
    ) -> Result<Self, tokio_postgres::Error> {
        if !self.is_busy {
            return Ok(self);
        }
        let rows = connection.run(Sql::Waiting, &[]).await?;
        let waits = rows[0].try_get::<_, bool>(0)?;
        let reached = rows[0].try_get::<_, Option<PgLsn>>(1)?.map(u64::from);
        let timeline = timeline_of(&rows[0], 2)?.or(self.timeline);
        match reached {
            // It was promoted meanwhile.
            None => Self::of(&connection.run(Sql::Position, &[]).await?[0]),
            // What was shown is before what was replayed since.
            Some(reached) if waits || reached > self.reached => {
                Ok(Self::of_replica(reached, Some(reached), timeline))
            }
            // A later place than the one that was known, so perhaps a later timeline.
            Some(_) => Ok(Self { timeline, ..self }),
        }
    }
}

/// What is known of the server.
pub(super) struct Member {
    log: Arc<str>,
    /// The run of the server that answers are given for; 0 for any.
    life: AtomicU64,
    /// The timeline that it follows, as it said last.
    timeline: AtomicU64,
    /// Where its replay stood then: as long as it stands there, it is on that timeline. Asking for the
    /// timeline costs as much as reading a record.
    there: AtomicU64,
    /// Whether it takes writes, as it said last.
    primary: AtomicBool,
    /// The size of its log's segments; 0 until it is known.
    segment: AtomicU64,
    /// The timeline for which versions are known to have been raised.
    raised: AtomicU64,
    warned: AtomicBool,
    /// A session of its own, so that no request delays the question.
    session: Mutex<Session>,
}

#[derive(Default)]
struct Session {
    connection: Option<Connection>,
    /// The forks that lead to this timeline.
    forks: Option<(u64, Vec<Position>)>,
}

impl Member {
    pub(super) fn new(history: &str) -> Self {
        Self {
            log: format!("{history}:wal").into(),
            life: AtomicU64::new(0),
            timeline: AtomicU64::new(0),
            there: AtomicU64::new(0),
            primary: AtomicBool::new(false),
            segment: AtomicU64::new(0),
            raised: AtomicU64::new(0),
            warned: AtomicBool::new(false),
            session: Mutex::default(),
        }
    }

    /// Proof of having seen what the server showed when it was there; nothing when its timeline is
    /// not known yet.
    pub(super) fn token(&self, place: Place) -> Token {
        // A replica may follow a promotion before it is looked at again.
        let known = self.timeline.load(Ordering::Acquire);
        let epoch = place.timeline.map_or(known, |timeline| match place.is_replica {
            true => timeline.max(known),
            false => timeline,
        });
        if epoch == 0 {
            return Token::default();
        }
        let offset = if place.is_replica { place.shown } else { self.end(place.shown) };
        Token::of(Arc::clone(&self.log), Position { epoch, offset })
    }

    fn end(&self, insert: u64) -> u64 {
        end_of_record(insert, self.segment.load(Ordering::Relaxed))
    }

    /// Whether a session with this run of the server may answer.
    pub(super) fn check(&self, life: u64) -> Result<()> {
        let admitted = self.life.load(Ordering::Acquire);
        if admitted == 0 || life == admitted {
            return Ok(());
        }
        let message = "the database server has restarted and is being looked at; try again";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    pub(super) fn takes_writes(&self) -> bool {
        self.primary.load(Ordering::Acquire)
    }

    /// Where a replica is on the timeline that is known.
    pub(super) fn there(&self) -> PgLsn {
        self.there.load(Ordering::Acquire).into()
    }

    pub(super) fn admit(&self, state: &NodeState) {
        self.primary.store(state.role == Role::Primary, Ordering::Release);
        self.timeline.store(state.position.epoch, Ordering::Release);
        // After the timeline: an answer asks for this first.
        self.there.store(state.position.offset, Ordering::Release);
        self.life.store(state.life, Ordering::Release);
    }

    pub(super) async fn ask(&self, worker: &Worker, deadline: Deadline) -> Result<NodeState> {
        let asked = worker.runtime.within(deadline, async {
            let mut session = self.session.lock().await;
            // Taken out: a question that is dropped or fails leaves no session in doubt.
            let connection = match session.connection.take().filter(|it| !it.is_closed()) {
                Some(connection) => connection,
                None => worker.pool.connector().open().await?,
            };
            let (state, forks) = self.ask_by(&connection, session.forks.take()).await?;
            *session = Session { connection: Some(connection), forks };
            Ok(state)
        });
        asked.await.unwrap_or_else(|| Err(Deadline::exceeded().during("ask for the state")))
    }

    async fn ask_by(
        &self,
        connection: &Connection,
        known: Option<(u64, Vec<Position>)>,
    ) -> Result<(NodeState, Option<(u64, Vec<Position>)>)> {
        let failed = |error| explain(error, Stage::Harmless).during("ask for the state");
        let rows = connection.run(Sql::State, &[]).await.map_err(failed)?;
        let row = &rows[0];
        let place = Place::of(row).map_err(failed)?;
        let life = row.try_get::<_, i64>(4).map_err(failed)?.unsigned_abs();
        let followed = row.try_get::<_, Option<i32>>(5).map_err(failed)?.unwrap_or(0);
        let followed = u64::try_from(followed).unwrap_or(0);
        // Without a receiver only the control file tells, which is minutes late; within a life a
        // timeline does not go back.
        let followed = match self.life.load(Ordering::Acquire) == life {
            true => followed.max(self.timeline.load(Ordering::Acquire)),
            false => followed,
        };
        let history = row.try_get::<_, Option<&str>>(6).map_err(failed)?.unwrap_or_default();
        let segment = row.try_get::<_, i64>(7).map_err(failed)?.unsigned_abs();
        self.segment.store(segment, Ordering::Relaxed);
        let knows_timelines = row.try_get::<_, bool>(8).map_err(failed)?;
        if !knows_timelines {
            self.warn_once();
        }
        let epoch = match place.is_replica {
            true => followed,
            false => place.timeline.unwrap_or(0),
        };
        if !place.is_replica {
            self.raise_versions(connection, epoch).await.map_err(failed)?;
        }
        let forks = match known.filter(|(timeline, _)| *timeline == epoch) {
            Some(known) => Some(known),
            // A standby whose timeline is not known may have named the wrong one in tokens: then
            // nobody may say that they are lost.
            None if !knows_timelines => None,
            None => forks(connection, epoch).await.map(|forks| (epoch, forks)),
        };
        let state = NodeState {
            role: if place.is_replica { Role::Replica } else { Role::Primary },
            life,
            history: history.into(),
            log: Arc::clone(&self.log),
            position: Position {
                epoch,
                offset: if place.is_replica { place.reached } else { self.end(place.reached) },
            },
            forks: forks.as_ref().map(|(_, forks)| forks.clone()).unwrap_or_default(),
        };
        Ok((state, forks))
    }
}

impl Member {
    fn warn_once(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "this user may not see which timeline a standby follows, so after a promotion \
                 standbys come back minutes late; GRANT pg_monitor to it"
            );
        }
    }

    /// Before a primary of a new timeline is said to be one: see [`RAISE`].
    async fn raise_versions(
        &self,
        connection: &Connection,
        timeline: u64,
    ) -> Result<(), tokio_postgres::Error> {
        if timeline <= 1 || self.raised.load(Ordering::Relaxed) == timeline {
            return Ok(());
        }
        const KNOWN: &str = "SELECT 1 FROM meta WHERE name = 'timeline' AND value = $1";
        let text = timeline.to_string();
        if connection.ask(KNOWN, &[(&text, Type::TEXT)]).await?.is_empty() {
            connection.command("BEGIN; SET LOCAL synchronous_commit = local").await?;
            connection.ask(RAISE, &[(&text, Type::TEXT)]).await?;
            connection.command("COMMIT").await?;
        }
        self.raised.store(timeline, Ordering::Relaxed);
        Ok(())
    }
}

/// Where the earlier timelines ended, if this user may read that (`pg_read_server_files`).
async fn forks(connection: &Connection, timeline: u64) -> Option<Vec<Position>> {
    if timeline <= 1 {
        return Some(Vec::new());
    }
    let file = format!("pg_wal/{timeline:08X}.history");
    let ask = format!("SELECT pg_read_file('{file}', 0, 1048576, true)");
    let rows = connection.ask(&ask, &[]).await.ok()?;
    let text = rows.first()?.try_get::<_, Option<&str>>(0).ok()??;
    Some(text.lines().filter_map(fork).collect())
}

/// A line of a timeline's history: the earlier timeline, where it ended, and why.
fn fork(line: &str) -> Option<Position> {
    let mut words = line.split_whitespace();
    let epoch = words.next()?.parse().ok()?;
    let offset = words.next()?.parse::<PgLsn>().ok()?.into();
    Some(Position { epoch, offset })
}

/// The error for a token that a replica cannot prove.
pub(super) fn behind() -> Error {
    let message = "a replica cannot prove what the token asks for; ask the primary";
    Error::new(ErrorKind::Unavailable, message)
}

/// The error for a read that a replica ended, because a change of the primary was in its way.
pub(super) fn conflict(error: tokio_postgres::Error) -> Error {
    let message = "a replica had to end the read in favour of a change of its primary; try again";
    because(Error::new(ErrorKind::Unavailable, message), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_read_from_the_history_of_a_timeline() {
        let line = "1\t0/30001B8\tno recovery target specified";
        assert_eq!(fork(line), Some(Position { epoch: 1, offset: 0x300_01B8 }));
        assert_eq!(fork(""), None);
        assert_eq!(fork("# a comment"), None);
    }

    #[test]
    fn the_end_of_the_log_is_where_the_last_record_ended() {
        const SEGMENT: u64 = 16 << 20;
        for (insert, end) in [
            (8192 + 24, 8192),
            (8192 + 32, 8192 + 32),
            (8192 + 40, 8192 + 40),
            (8192 * 3, 8192 * 3),
            (SEGMENT + 40, SEGMENT),
        ] {
            assert_eq!(end_of_record(insert, SEGMENT), end);
        }
        assert_eq!(end_of_record(SEGMENT + 40, 0), SEGMENT + 40, "until the size is known");
    }
}
