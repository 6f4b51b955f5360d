//! What others ask a database that is a region.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    Batch, BoxFuture, ChangeLog, Checkpoint, Checkpoints, Conflict, Deadline, Error, ErrorKind,
    Follower, Inspection, Key, KeyRange, LeaderLease, LogPosition, Logged, Position, RangeDigest,
    RegionId, RegionOptions, RegionStore, Result, Token, Unit, Version,
};
use tokio_postgres::types::{ToSql, Type};

use super::super::PostgresStore;
use super::super::connection::Connection;
use super::super::log::of_region::HasNews;
use super::super::snapshot::{self, Snapshot, Transaction};
use super::super::work::{Failure, Progress, Work, corrupt};
use super::super::worker::Worker;
use super::RegionParts;
use super::merge::{Merge, text_of};
use super::rows::{Collect, Digest, ListConflicts, ReadRows};

type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// Many rows take longer than a request may.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

impl PostgresStore {
    /// Gives the log of a region its name.
    pub(in super::super) fn name_log(&self, name: Option<Arc<str>>) {
        if let Some((region, name)) = self.region.as_ref().zip(name) {
            region.log.is_named(name);
        }
    }

    /// Says of a region how many losses are listed.
    pub(in super::super) async fn with_conflicts(&self, tree: Inspection) -> Inspection {
        if self.region.is_none() {
            return tree;
        }
        match self.worker.perform(&CountConflicts, self.patience()).await {
            Ok(listed) => tree.gauge("conflicts", listed, Unit::Count),
            Err(_) => tree,
        }
    }

    fn parts(&self) -> &RegionParts {
        // PROOF: only a store that was connected as a region is used as one.
        #[expect(clippy::expect_used, reason = "see the line above")]
        self.region.as_ref().expect("a database that was connected as a region")
    }

    /// A follower that commits the place apart from the effect, for the test that must catch it.
    #[cfg(feature = "mutants")]
    pub fn follower_with_position_apart(&self, origin: RegionId) -> Arc<dyn Follower> {
        let (worker, options) = (self.worker.clone(), self.parts().options.clone());
        Arc::new(RegionFollower { worker, options, origin, is_apart: true })
    }

    fn patience(&self) -> Deadline {
        Deadline::at(self.worker.runtime.now() + self.worker.patience * 2)
    }

    async fn perform_long<W: Work>(&self, work: &W) -> Result<W::Answer> {
        let worker = Worker { patience: PATIENCE, ..self.worker.clone() };
        worker.perform(work, Deadline::at(worker.runtime.now() + PATIENCE)).await
    }
}

impl RegionStore for PostgresStore {
    fn region(&self) -> &RegionOptions {
        &self.parts().options
    }

    fn own_log(&self) -> Arc<dyn ChangeLog> {
        Arc::clone(&self.parts().log) as _
    }

    fn follower_of(&self, origin: RegionId) -> Arc<dyn Follower> {
        let (worker, options) = (self.worker.clone(), self.parts().options.clone());
        Arc::new(RegionFollower { worker, options, origin, is_apart: false })
    }

    fn lease(&self, origin: RegionId) -> Option<Arc<dyn LeaderLease>> {
        let owner = format!("{:016x}", self.worker.runtime.random());
        Some(Arc::new(FollowLease { worker: self.worker.clone(), origin, owner }))
    }

    fn checkpoints(&self) -> BoxFuture<'_, Result<Checkpoints>> {
        Box::pin(async { self.worker.perform(&FindCheckpoints, self.patience()).await })
    }

    fn has_news(&self, after: LogPosition, until: Position) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            let (region, until) = (&self.parts().options, snapshot::transaction(until));
            self.worker.perform(&HasNews { region, after, until }, self.patience()).await
        })
    }

    fn forget_origin(&self, origin: RegionId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move { self.worker.perform(&Forget(origin), self.patience()).await })
    }

    fn conflicts<'a>(
        &'a self,
        after: Option<&'a (Key, Version)>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Conflict>>> {
        Box::pin(async move {
            self.worker.perform(&ListConflicts { after, limit }, self.patience()).await
        })
    }

    fn digest<'a>(&'a self, range: &'a KeyRange) -> BoxFuture<'a, Result<RangeDigest>> {
        Box::pin(async move {
            self.perform_long(&Digest { options: &self.parts().options, range }).await
        })
    }

    fn rows<'a>(&'a self, range: &'a KeyRange, limit: usize) -> BoxFuture<'a, Result<Vec<Logged>>> {
        Box::pin(async move {
            self.perform_long(&ReadRows { options: &self.parts().options, range, limit }).await
        })
    }

    fn merge_rows(&self, rows: Vec<Logged>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let (options, now) = (&self.parts().options, self.worker.runtime.wall());
            let merge = Merge { options, changes: &rows, follow: None, now };
            self.worker.perform(&merge, self.patience()).await.map(drop)
        })
    }

    fn collect(&self, horizon: Version) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move {
            horizon.check_horizon()?;
            let (mut all, mut after) = (0, String::new());
            loop {
                let some = Collect { horizon, after: &after };
                let (count, last) = self.perform_long(&some).await?;
                all += count;
                match last {
                    Some(last) => after = last,
                    None => return Ok(all),
                }
            }
        })
    }
}

/// Follows another region into this one.
struct RegionFollower {
    worker: Worker,
    options: RegionOptions,
    origin: RegionId,
    /// The wrong way, which a test must catch: the place is committed before the effect.
    is_apart: bool,
}

impl RegionFollower {
    async fn perform<W: Work>(&self, work: &W) -> Result<W::Answer> {
        let deadline = Deadline::at(self.worker.runtime.now() + self.worker.patience * 2);
        self.worker.perform(work, deadline).await
    }
}

impl Follower for RegionFollower {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async {
            let all = self.perform(&FindCheckpoints).await?;
            Ok(all.of(self.origin).cloned().unwrap_or_default())
        })
    }

    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let mut follow = Some((self.origin, &batch.from, &batch.to));
            if self.is_apart {
                if self.checkpoint().await? != batch.from {
                    return Ok(false);
                }
                self.perform(&Begin(self.origin, batch.to.clone())).await?;
                follow = None;
            }
            let (options, now) = (&self.options, self.worker.runtime.wall());
            self.perform(&Merge { options, changes: &batch.changes, follow, now }).await
        })
    }

    fn begin_anew<'a>(&'a self, log: &'a str) -> BoxFuture<'a, Result<()>> {
        let anew = Checkpoint { log: log.to_owned(), ..Checkpoint::default() };
        Box::pin(async move { self.perform(&Begin(self.origin, anew)).await })
    }
}

impl fmt::Display for RegionFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.worker.pool.connector().fmt(f)
    }
}

impl fmt::Debug for RegionFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegionFollower").field(&self.origin).finish()
    }
}

/// How far all origins were followed. Each checkpoint has the transaction that moved it: who sees that
/// one sees what it applied. A transaction that is under way may move one further, and have a lower
/// number: the checkpoints speak for what lies before it.
struct FindCheckpoints;

impl Work for FindCheckpoints {
    type Answer = Checkpoints;

    const OPERATION: &'static str = "find the checkpoints";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<Checkpoints, Failure> {
        const FIND: &str = "SELECT f.origin, f.checkpoint, f.moved, now.snapshot \
             FROM (SELECT pg_current_snapshot() AS snapshot) AS now \
             LEFT JOIN terrace_followed f ON true ORDER BY f.origin";
        let (mut origins, mut position, mut through) = (Vec::new(), Position::NONE, Position::NONE);
        for row in connection.ask(FIND, &[]).await? {
            let now: Snapshot = row.try_get(3).map_err(corrupt)?;
            through = now.through(connection.generation);
            let Some(number) = row.try_get::<_, Option<i16>>(0).map_err(corrupt)? else { continue };
            let number = u8::try_from(number).unwrap_or(0);
            let text = row.try_get::<_, &str>(1).map_err(corrupt)?;
            let checkpoint = serde_json::from_str(text).map_err(|error| {
                let message = "a checkpoint in the table `terrace_followed` cannot be read; remove \
                               its row, and the origin is copied anew";
                Failure::Refused(Error::new(ErrorKind::Corrupt, message).caused_by(error))
            })?;
            let moved: Transaction = row.try_get(2).map_err(corrupt)?;
            position = position.max(connection.position(moved));
            origins.push((RegionId::new(number).map_err(Failure::Refused)?, checkpoint));
        }
        let token = Token::of(Arc::clone(&connection.history), position);
        Ok(Checkpoints { origins, token, through })
    }
}

struct CountConflicts;

impl Work for CountConflicts {
    type Answer = u64;

    const OPERATION: &'static str = "count conflicts";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<u64, Failure> {
        const COUNT: &str = "SELECT count(*) FROM terrace_conflicts WHERE NOT awaited";
        let rows = connection.ask(COUNT, &[]).await?;
        let count = rows.first().map_or(Ok(0), |row| row.try_get::<_, i64>(0));
        Ok(count.map_err(corrupt)?.unsigned_abs())
    }
}

/// Puts an origin's checkpoint in the place of another one.
struct Begin(RegionId, Checkpoint);

impl Work for Begin {
    type Answer = ();

    const OPERATION: &'static str = "begin to follow another region";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const BEGIN: &str = "INSERT INTO terrace_followed (origin, checkpoint) VALUES ($1, $2) \
             ON CONFLICT (origin) DO UPDATE SET checkpoint = excluded.checkpoint, \
               moved = pg_current_xact_id()";
        let (origin, checkpoint) = (i16::from(self.0.get()), text_of(&self.1)?);
        let parameters: [Typed<'_>; 2] = [(&origin, Type::INT2), (&checkpoint, Type::TEXT)];
        progress.commits();
        connection.ask(BEGIN, &parameters).await?;
        Ok(())
    }
}

struct Forget(RegionId);

impl Work for Forget {
    type Answer = ();

    const OPERATION: &'static str = "forget another region";

    async fn run(&self, connection: &Connection, progress: &Progress) -> Result<(), Failure> {
        const FORGET: &str = "WITH lease AS (DELETE FROM terrace_follows WHERE origin = $1) \
             DELETE FROM terrace_followed WHERE origin = $1";
        progress.commits();
        connection.ask(FORGET, &[(&i16::from(self.0.get()), Type::INT2)]).await?;
        Ok(())
    }
}

/// The lease of an origin, held by a session that lives as long as this process.
struct FollowLease {
    worker: Worker,
    origin: RegionId,
    owner: String,
}

impl LeaderLease for FollowLease {
    fn hold(&self, time: Duration) -> BoxFuture<'_, Result<bool>> {
        Box::pin(async move {
            let deadline = Deadline::at(self.worker.runtime.now() + self.worker.patience);
            let hold = Hold { origin: self.origin, owner: &self.owner, time };
            self.worker.apart.perform(&hold, deadline).await
        })
    }
}

impl fmt::Debug for FollowLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FollowLease").field(&self.origin).field(&self.owner).finish()
    }
}

/// Takes or keeps the lease. Who has it is known by its session, so that nobody waits for one that has
/// died.
struct Hold<'a> {
    origin: RegionId,
    owner: &'a str,
    time: Duration,
}

impl Work for Hold<'_> {
    type Answer = bool;

    const OPERATION: &'static str = "lease another region's log";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<bool, Failure> {
        const HOLD: &str = "INSERT INTO terrace_follows AS f (origin, owner, pid, session_begun, \
               leased_until) \
             SELECT $1, $2, pg_backend_pid(), a.backend_start, \
               clock_timestamp() + $3 * interval '1 millisecond' \
             FROM pg_stat_activity a WHERE a.pid = pg_backend_pid() \
             ON CONFLICT (origin) DO UPDATE SET owner = excluded.owner, pid = excluded.pid, \
               session_begun = excluded.session_begun, leased_until = excluded.leased_until \
             WHERE f.owner = excluded.owner OR f.leased_until < clock_timestamp() \
               OR NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = f.pid \
                 AND (a.backend_start = f.session_begun OR a.backend_start IS NULL)) \
             RETURNING 1";
        let time = i64::try_from(self.time.as_millis()).unwrap_or(i64::MAX);
        let parameters: [Typed<'_>; 3] = [
            (&i16::from(self.origin.get()), Type::INT2),
            (&self.owner, Type::TEXT),
            (&time, Type::INT8),
        ];
        Ok(!connection.ask(HOLD, &parameters).await?.is_empty())
    }
}
