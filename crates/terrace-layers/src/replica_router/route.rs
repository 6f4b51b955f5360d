//! The way of one read: to a replica, to another, to the primary.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{
    Consistency, Deadline, Error, ErrorKind, Origin, Pass, Position, ReadOptions, Result, Token,
};

use super::freshness::Wish;
use super::pick::Picked;
use super::question::Question;
use super::table::{Seat, Table};
use super::{Shared, count};

impl Shared {
    pub(super) async fn route<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
    ) -> Result<Q::Answer> {
        for _ in 0..3 {
            how.deadline.check(self.runtime.now())?;
            let (table, wish) = self.wish(how).await?;
            let history = Arc::clone(&table.lead.standing.history);
            let answer = match wish {
                Some(wish) => self.ask_replicas(question, how, table, wish).await,
                None => self.ask_primary(question, how, false).await,
            };
            // Where a new history has begun meanwhile, what the token asks for may be lost: looked
            // at anew.
            if how.token.is_none() || self.table.load().lead.standing.history == history {
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
            let Some(picked) = self.pick(&table, wish, tried) else { break };
            let number = picked.number;
            match self.ask_one_or_two(question, how, &table, wish, picked).await {
                Ok(Some(answer)) => return Ok(answer),
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error),
                Ok(None) | Err(_) => {
                    count(&self.counts.retried);
                    how.deadline.check(self.runtime.now())?;
                }
            }
            tried = Some(number);
            table = self.table.load_full();
        }
        self.without_replicas(question, how, wish).await
    }

    /// What a read wants of a replica, nothing where only the primary will do; with the table in which
    /// that was looked at.
    async fn wish(&self, how: &ReadOptions) -> Result<(Arc<Table>, Option<Wish>)> {
        let within = match how.consistency {
            Consistency::Strong => None,
            Consistency::Default => Some(self.options.max_lag),
            Consistency::MaxStale(limit) => Some(limit.min(self.options.max_lag)),
        };
        let mut table = self.table.load_full();
        let wish = within.map(|within| Wish { reached: Position::NONE, within });
        let Some(token) = &how.token else { return Ok((table, wish)) };
        if self.histories.is_behind(token) {
            table = self.see_history(token, how.deadline).await?;
        }
        self.histories.check(token)?;
        let history = &table.lead.standing.history;
        let (Some(reached), Some(wish)) = (token.position(history), wish) else {
            return Ok((table, wish));
        };
        let wish = Wish { reached, ..wish };
        if !self.reach(wish, how.deadline).await {
            return Ok((table, None));
        }
        // It may have been reached in a later table; in a new history, all is looked at anew.
        let now = self.table.load_full();
        let table = if now.lead.standing.history == *history { now } else { table };
        Ok((table, Some(wish)))
    }

    /// Waits for a replica that grants the wish; `false` when none does in time.
    async fn reach(&self, wish: Wish, deadline: Deadline) -> bool {
        let granted = || self.is_granted(&self.table.load(), wish);
        if granted() {
            return true;
        }
        if self.table.load().replicas.is_empty() {
            return false;
        }
        count(&self.counts.waits);
        let until = Deadline::at(self.runtime.now() + self.options.token_wait).min(deadline);
        self.wait_until(until, granted).await
    }

    /// Waits for a table of which this is so, while the servers are asked again and again.
    pub(super) async fn wait_until(&self, until: Deadline, is_so: impl Fn() -> bool) -> bool {
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
    pub(super) async fn ask_replica<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        table: &Table,
        Picked { number, pass }: Picked,
    ) -> Result<Option<Q::Answer>> {
        let server = &self.members[number];
        let Some(seat) = &table.seats[number] else { return Ok(None) };
        let (consistency, token) = (Consistency::Default, how.token.clone().filter(|_| !Q::PROVES));
        let now = self.runtime.now();
        let deadline = how.deadline.min(Deadline::at(now + self.options.patience));
        let plain = ReadOptions { consistency, token, deadline, ..how.clone() };
        let busy = server.busy();
        // The store keeps the deadline: a second timer would cost every read.
        let answer = question.ask(&*server.member.store, &plain).await;
        drop(busy);
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.failed(number, how, &error, pass);
                return Err(error);
            }
        };
        if pass.is_some_and(Pass::succeeded) {
            tracing::info!(node = %server.member.node, "a replica answers reads again");
            let now = self.runtime.now();
            self.change(None, |table, _| table.recovered(number, now));
        }
        if !self.is_same(number, seat) || !self.proves::<Q>(&answer, table, how) {
            return Ok(None);
        }
        // It shows how far its server has come, sooner than the next question does.
        if let Some(through) = Q::through(&answer) {
            seat.shows(through);
        }
        let ended = self.runtime.now();
        self.hedge.took(ended - now, ended);
        let age = seat.age(ended).unwrap_or(Duration::MAX);
        Q::mark(&mut answer, origin(number), age);
        count(&self.counts.replica_reads);
        Ok(Some(answer))
    }

    /// Whether an answer is of the history in force, and proves what the token asks for.
    fn proves<Q: Question>(&self, answer: &Q::Answer, table: &Table, how: &ReadOptions) -> bool {
        let history = &table.lead.standing.history;
        let asked = how.token.as_ref().and_then(|token| token.position(history));
        Q::proves(answer, history, asked.unwrap_or_default())
    }

    /// Whether a server is in the life and the history of this seat, and has not gone back.
    pub(super) fn is_same(&self, number: usize, seat: &Seat) -> bool {
        let table = self.table.load();
        table.seats[number].as_ref().is_some_and(|now| now.is_same(seat))
    }

    /// Notes a failed read.
    fn failed(&self, number: usize, how: &ReadOptions, error: &Error, pass: Option<Pass>) {
        // Neither a client in a hurry nor a long line says anything of the server.
        let no_fault = matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Overloaded);
        if no_fault || how.deadline.passed(self.runtime.now()) {
            return;
        }
        let server = &self.members[number];
        server.look.notify_one();
        if pass.is_some_and(Pass::failed) {
            tracing::warn!(node = %server.member.node, %error, "the reads of a replica fail; it rests");
        }
    }

    /// No replica can answer: the primary, if there is room; else a replica that lags, if the
    /// client wishes for no more, or allows as much; else nobody.
    async fn without_replicas<Q: Question>(
        &self,
        question: &Q,
        how: &ReadOptions,
        wish: Wish,
    ) -> Result<Q::Answer> {
        let within = match how.consistency {
            Consistency::Default => Duration::MAX,
            Consistency::MaxStale(limit) => limit,
            Consistency::Strong => Duration::ZERO,
        };
        let stale =
            within > self.options.max_lag && how.token.is_none() && self.options.stale_if_all_lag;
        let any = Wish { within, ..wish };
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
        let picked = self.pick(&table, any, None)?;
        let answer = self.ask_replica(question, how, &table, picked).await.ok()??;
        count(&self.counts.stale);
        Some(answer)
    }

    pub(super) fn refused(&self, error: Error) -> Error {
        count(&self.counts.refused);
        error
    }
}

fn origin(number: usize) -> Origin {
    Origin::replica(u16::try_from(number).unwrap_or(u16::MAX))
}
