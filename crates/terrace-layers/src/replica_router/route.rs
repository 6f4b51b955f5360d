//! The way of one request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use terrace_core::{
    Consistency, Deadline, Error, ErrorKind, Origin, Position, ReadOptions, Receipt, Result, Token,
    Write, WriteOptions,
};

use super::Shared;
use super::pick::Wish;
use super::question::Question;
use super::table::{Seat, Table};

/// Where a read may go.
enum Way {
    /// To a replica that grants this.
    Replica(Wish),
    /// To the primary alone.
    Primary,
}

/// One of those under way with a server, until dropped.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn one(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(super) async fn route<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
    ) -> Result<Q::Answer> {
        for _ in 0..3 {
            how.deadline.check(self.runtime.now())?;
            let (table, way) = self.way(how).await?;
            let history = Arc::clone(&table.standing.history);
            let answer = match way {
                Way::Replica(wish) => self.ask_replicas(question, how, table, wish).await,
                Way::Primary => self.ask_primary(question, how, false).await,
            };
            // Where a new history has begun meanwhile, what the token asks for may be lost: looked
            // at anew.
            if how.token.is_none() || self.table.load().standing.history == history {
                return answer;
            }
        }
        let message = "the primary has changed again and again during the read; try again";
        Err(self.refused(Error::new(ErrorKind::Unavailable, message)))
    }

    async fn ask_replicas<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        mut table: Arc<Table>,
        wish: Wish,
    ) -> Result<Q::Answer> {
        let mut tried = None;
        // Once, and once elsewhere.
        for _ in 0..2 {
            let Some(number) = self.pick(&table, wish, tried) else { break };
            match self.ask_replica(question, how, &table, number).await {
                Ok(Some(answer)) => return Ok(answer),
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
                Ok(None) | Err(_) => {
                    self.counts.retried.fetch_add(1, Ordering::Relaxed);
                    how.deadline.check(self.runtime.now())?;
                }
            }
            tried = Some(number);
            table = self.table.load_full();
        }
        self.without_replicas(question, how, wish).await
    }

    /// What a read asks for, as far as replicas are concerned, by the table in which that was looked
    /// at.
    async fn way(&self, how: &ReadOptions) -> Result<(Arc<Table>, Way)> {
        let within = match how.consistency {
            Consistency::Strong => Duration::ZERO,
            Consistency::Default => self.options.max_lag,
            Consistency::MaxStale(limit) => limit.min(self.options.max_lag),
        };
        let wish = Wish { reached: Position::NONE, within };
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::IgnoresTokens) {
            return Ok((self.table.load_full(), Way::Replica(wish)));
        }
        let (table, way) = self.way_of_token(how, wish).await?;
        let strong = how.consistency == Consistency::Strong;
        Ok((table, if strong { Way::Primary } else { way }))
    }

    async fn way_of_token(&self, how: &ReadOptions, mut wish: Wish) -> Result<(Arc<Table>, Way)> {
        let mut table = self.table.load_full();
        let Some(token) = &how.token else { return Ok((table, Way::Replica(wish))) };
        if self.histories.is_behind(token) {
            table = self.see_history(token, how.deadline).await?;
        }
        self.histories.check(token)?;
        let Some(asked) = token.position(&table.standing.history) else {
            return Ok((table, Way::Replica(wish)));
        };
        wish.reached = asked;
        let strong = how.consistency == Consistency::Strong;
        if strong || !self.reach(wish, how.deadline).await {
            return Ok((table, Way::Primary));
        }
        // It may have been reached in a later table; in a new history, all is looked at anew.
        let now = self.table.load_full();
        let table = if now.standing.history == table.standing.history { now } else { table };
        Ok((table, Way::Replica(wish)))
    }

    /// Waits for a replica that grants the wish; `false` when none does in time.
    async fn reach(&self, wish: Wish, deadline: Deadline) -> bool {
        let granted = || self.pick(&self.table.load(), wish, None).is_some();
        if granted() {
            return true;
        }
        if self.table.load().replicas.is_empty() {
            return false;
        }
        self.counts.waits.fetch_add(1, Ordering::Relaxed);
        let until = Deadline::at(self.runtime.now() + self.options.token_wait).min(deadline);
        self.wait_until(until, granted).await
    }

    /// Waits for a table of which this is so, while the servers are asked again and again.
    async fn wait_until(&self, until: Deadline, is_so: impl Fn() -> bool) -> bool {
        let mut swapped = self.swapped.subscribe();
        loop {
            swapped.mark_unchanged();
            if is_so() {
                return true;
            }
            self.look_all();
            match self.runtime.within(until, swapped.changed()).await {
                Some(Ok(())) => {}
                _ => return is_so(),
            }
        }
    }

    /// A token of a life of the database that nobody here has spoken of yet: no server known so far may
    /// answer.
    async fn see_history(&self, token: &Token, deadline: Deadline) -> Result<Arc<Table>> {
        let until = Deadline::at(self.runtime.now() + self.options.primary_wait).min(deadline);
        if self.wait_until(until, || !self.histories.is_behind(token)).await {
            return Ok(self.table.load_full());
        }
        let message = "the token is of a newer primary than can be reached from here; try again";
        Err(self.refused(Error::new(ErrorKind::Unavailable, message)))
    }

    /// Asks a replica; nothing when its answer proves nothing, because it is another since.
    async fn ask_replica<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        table: &Table,
        number: usize,
    ) -> Result<Option<Q::Answer>> {
        let server = &self.members[number];
        let Some(seat) = &table.seats[number] else { return Ok(None) };
        let (consistency, token) = (Consistency::Default, how.token.clone().filter(|_| !Q::PROVES));
        let now = self.runtime.now();
        let deadline = how.deadline.min(Deadline::at(now + self.options.patience));
        let plain = ReadOptions { consistency, token, deadline };
        let busy = Busy::one(&server.outstanding);
        // The store keeps the deadline: a second timer would cost every read.
        let answer = question.ask(&*server.member.store, &plain).await;
        drop(busy);
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.failed(number, how, &error);
                return Err(error);
            }
        };
        if server.failures.load(Ordering::Relaxed) > 0 {
            server.failures.store(0, Ordering::Relaxed);
        }
        if !self.is_same(number, seat) || !self.proves::<Q>(&answer, table, how) {
            return Ok(None);
        }
        // It shows how far its server has come, sooner than the next question does.
        if let Some(through) = Q::through(&answer).filter(|it| !seat.has_reached(*it)) {
            seat.reached.fetch_max(through.get(), Ordering::AcqRel);
        }
        let age = seat.age(self.runtime.now()).unwrap_or(Duration::MAX);
        Q::mark(&mut answer, origin(number), age);
        self.counts.replica_reads.fetch_add(1, Ordering::Relaxed);
        Ok(Some(answer))
    }

    /// Whether an answer is of the history in force, and proves what the token asks for.
    fn proves<Q: Question>(&self, answer: &Q::Answer, table: &Table, how: &ReadOptions) -> bool {
        #[cfg(feature = "mutants")]
        if self.mutant.is_some() {
            return true;
        }
        let history = &table.standing.history;
        let asked = how.token.as_ref().and_then(|token| token.position(history));
        Q::proves(answer, history, asked.unwrap_or_default())
    }

    /// Whether a server is in the life and the history of this seat, and has not gone back.
    fn is_same(&self, number: usize, seat: &Seat) -> bool {
        #[cfg(feature = "mutants")]
        if self.mutant == Some(super::Mutant::ForgetsLives) {
            return true;
        }
        let table = self.table.load();
        table.seats[number].as_ref().is_some_and(|now| now.is_same(seat))
    }

    /// Notes a failed read.
    fn failed(&self, number: usize, how: &ReadOptions, error: &Error) {
        // Neither a client in a hurry nor a long line says anything of the server.
        let no_fault = matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Overloaded);
        if no_fault || how.deadline.passed(self.runtime.now()) {
            return;
        }
        const ENOUGH: usize = 3;
        let server = &self.members[number];
        server.look.notify_one();
        if server.failures.fetch_add(1, Ordering::Relaxed) + 1 >= ENOUGH {
            server.failures.store(0, Ordering::Relaxed);
            let now = self.runtime.now();
            self.change(None, |book| book.rest(number, now, &self.options));
        }
    }

    /// No replica can answer: the primary, if there is room; else a replica that lags, if the
    /// client has no wishes of its own; else nobody.
    async fn without_replicas<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        wish: Wish,
    ) -> Result<Q::Answer> {
        let stale = how.is_default() && self.options.stale_if_all_lag;
        let any = Wish { within: Duration::MAX, ..wish };
        // While the primary says nothing, nobody waits for it in vain.
        if stale
            && self.table.load().is_primary_silent()
            && let Some(answer) = self.ask_any(question, how, any).await
        {
            return Ok(answer);
        }
        let until = Deadline::at(self.runtime.now() + self.options.patience).min(how.deadline);
        let until = if stale { until } else { how.deadline };
        let asked = self.runtime.within(until, self.ask_primary(question, how, true)).await;
        let error = match asked.unwrap_or_else(|| Err(Deadline::exceeded())) {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if stale
            && error.kind() != ErrorKind::InvalidInput
            && let Some(answer) = self.ask_any(question, how, any).await
        {
            return Ok(answer);
        }
        Err(self.refused(error))
    }

    /// Asks a replica that lags.
    async fn ask_any<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        any: Wish,
    ) -> Option<Q::Answer> {
        let table = self.table.load_full();
        let number = self.pick(&table, any, None)?;
        let answer = self.ask_replica(question, how, &table, number).await.ok()??;
        self.counts.stale.fetch_add(1, Ordering::Relaxed);
        Some(answer)
    }

    /// Asks the primary; `spared` when that is for want of a replica.
    async fn ask_primary<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        spared: bool,
    ) -> Result<Q::Answer> {
        let counted = spared || how.consistency != Consistency::Strong;
        // With no replicas there is nothing to spare it.
        let _room = match counted && self.members.len() > 1 {
            true => Some(self.room(how.deadline).await?),
            false => None,
        };
        for _ in 0..2 {
            let number = self.primary(how.deadline).await?;
            let table = self.table.load_full();
            let Some(seat) = table.seats[number].as_ref() else { continue };
            let server = &self.members[number];
            let busy = Busy::one(&server.outstanding);
            // Whatever is acknowledged is there, and what is lost was refused.
            let asked = question.ask(&*server.member.store, how).await;
            drop(busy);
            let mut answer = match asked {
                Ok(answer) => answer,
                Err(error) => {
                    server.look.notify_one();
                    return Err(error);
                }
            };
            // Another may have been promoted meanwhile.
            let now = self.table.load();
            if now.primary == Some(number) && self.is_same(number, seat) {
                Q::mark(&mut answer, Origin::PRIMARY, Duration::ZERO);
                self.counts.primary_reads.fetch_add(1, Ordering::Relaxed);
                return Ok(answer);
            }
        }
        let message = "the primary has changed during the read; try again";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    /// A place among the reads that the primary takes for want of a replica.
    async fn room(&self, deadline: Deadline) -> Result<tokio::sync::SemaphorePermit<'_>> {
        self.counts.fallbacks.fetch_add(1, Ordering::Relaxed);
        let until = Deadline::at(self.runtime.now() + self.options.primary_wait).min(deadline);
        match self.runtime.within(until, self.fallback.acquire()).await {
            Some(Ok(permit)) => Ok(permit),
            _ => {
                let message = "no replica is new enough, and the primary takes no more reads in \
                               their place; try again a little later";
                let error = Error::new(ErrorKind::Overloaded, message);
                Err(error.retry_after(Duration::from_secs(1)))
            }
        }
    }

    /// The server that takes writes; waits for one.
    async fn primary(&self, deadline: Deadline) -> Result<usize> {
        if let Some(number) = self.table.load().primary {
            return Ok(number);
        }
        let until = Deadline::at(self.runtime.now() + self.options.primary_wait).min(deadline);
        self.wait_until(until, || self.table.load().primary.is_some()).await;
        let table = self.table.load();
        table.primary.ok_or_else(|| {
            let error = Error::new(ErrorKind::Unavailable, table.why_no_primary());
            self.refused(error.retry_after(Duration::from_secs(1)))
        })
    }

    pub(super) async fn write(
        &self,
        batch: Vec<Write>,
        how: &WriteOptions,
    ) -> Result<Vec<Receipt>> {
        how.deadline.check(self.runtime.now()).map_err(|error| error.during("write"))?;
        let number = self.primary(how.deadline).await.map_err(|error| error.during("write"))?;
        let timeline = self.table.load().timeline;
        let server = &self.members[number];
        let written = server.member.store.write(batch, how).await;
        if written.is_err() {
            // It may be no primary any more.
            self.look_all();
            return written;
        }
        // The write may have waited there for long. What a server commits beside its successor, or
        // its rival, is in no history that goes on.
        let table = self.table.load();
        if (table.primary, table.timeline) == (Some(number), timeline) {
            return written;
        }
        let message = "the primary has changed during the write, which may be lost with the old one; \
                       read the record, or repeat the request with its Idempotency-Key";
        Err(Error::new(ErrorKind::OutcomeUnknown, message).during("write"))
    }

    fn refused(&self, error: Error) -> Error {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        error
    }
}

fn origin(number: usize) -> Origin {
    Origin::replica(u16::try_from(number).unwrap_or(u16::MAX))
}
