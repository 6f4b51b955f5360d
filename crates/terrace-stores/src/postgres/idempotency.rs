//! Requests that are done once: their first result, stored in the transaction of the write.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use terrace_core::{
    Deadline, Durability, Error, ErrorKind, Idempotency, Origin, Outcome, Position, Receipt, Token,
    Version,
};

use super::connection::Connection;
use super::snapshot::{Transaction, event};
use super::statements::{Parameter, Sql};
use super::work::{Failure, Progress, Work, corrupt};
use super::worker::Worker;

/// The right to do a request, which one transaction at a time can hold. A second one that wants it
/// waits in the server until the first has ended.
pub(super) struct Claim<'a> {
    request: Option<&'a Idempotency>,
}

impl<'a> Claim<'a> {
    /// No request, nothing to claim.
    pub(super) fn new(request: Option<&'a Idempotency>) -> Self {
        Self { request }
    }

    /// Takes the right, or answers what was stored by who had it.
    pub(super) async fn take<D: DeserializeOwned>(
        &self,
        connection: &Connection,
    ) -> Result<Option<Remembered<D>>, Failure> {
        let Some(request) = self.request else { return Ok(None) };
        let (key, fingerprint) = (request.key(), &request.fingerprint()[..]);
        let parameters: [Parameter<'_>; 2] = [&key, &fingerprint];
        let recalled: [Parameter<'_>; 1] = [&key];
        let (claimed, found) = futures_util::future::join(
            connection.run(Sql::Claim, &parameters),
            connection.run(Sql::Recall, &recalled),
        )
        .await;
        if !claimed?.is_empty() {
            return Ok(None);
        }
        let found = found?;
        let row = found.first().ok_or_else(lost)?;
        let fingerprint = row.try_get::<_, Vec<u8>>(0).map_err(corrupt)?;
        let text = row.try_get::<_, Option<&str>>(1).map_err(corrupt)?.ok_or_else(lost)?;
        let done = serde_json::from_str(text).map_err(|_| lost())?;
        Ok(Some(Remembered { fingerprint, done }))
    }

    /// Stores the result. Under the first version that was written, where there is one, it travels to
    /// other regions.
    pub(super) async fn keep<D: Serialize>(
        &self,
        connection: &Connection,
        result: impl Iterator<Item = D>,
        first: Option<Version>,
    ) -> Result<(), Failure> {
        let Some(request) = self.request else { return Ok(()) };
        let text = serde_json::to_string(&result.collect::<Vec<_>>()).map_err(|error| {
            let message = "the result of the request cannot be stored";
            Failure::Refused(Error::new(ErrorKind::Internal, message).caused_by(error))
        })?;
        let first = first.map(|version| version.get().cast_signed());
        connection.run(Sql::Remember, &[&request.key(), &text, &first]).await?;
        Ok(())
    }
}

fn lost() -> Failure {
    let message = "the stored result of the request cannot be read; send it with a new \
                   Idempotency-Key after a look at what it did";
    Failure::Refused(Error::new(ErrorKind::Corrupt, message))
}

/// A result that was stored earlier.
pub(super) struct Remembered<D> {
    fingerprint: Vec<u8>,
    done: Vec<D>,
}

impl<D> Remembered<D> {
    /// Refused when it is the result of another request.
    pub(super) fn matching(self, request: Option<&Idempotency>) -> Result<Vec<D>, Failure> {
        match request {
            Some(request) if self.fingerprint == request.fingerprint() => Ok(self.done),
            _ => Err(Failure::Refused(Idempotency::reused())),
        }
    }
}

/// The lowest version that was written.
pub(super) fn first_written(answers: &[(Outcome, Version)]) -> Option<Version> {
    let applied = answers.iter().filter(|(outcome, _)| outcome.is_applied());
    applied.map(|&(_, version)| version).min()
}

/// What is stored of a write.
#[derive(Serialize, Deserialize)]
pub(super) struct DoneWrite {
    outcome: Outcome,
    version: Version,
    durability: Durability,
    /// The transaction, where there is a change log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transaction: Option<u64>,
}

impl DoneWrite {
    pub(super) fn of(
        connection: &Connection,
        (outcome, version): (Outcome, Version),
        logged: Option<Transaction>,
    ) -> Self {
        let durability = connection.durability();
        Self { outcome, version, durability, transaction: logged.map(|number| number.0) }
    }

    /// As it was answered the first time. Whether a standby has it by now, nobody has waited for.
    pub(super) fn receipt(self, connection: &Connection, token: Token) -> Receipt {
        let Self { outcome, version, durability, transaction } = self;
        // What was done in another region is in no log of this one.
        let region = connection.dialect.region();
        let here = region.is_none() || version.region() == region;
        Receipt {
            outcome,
            version,
            durability: durability.min(Durability::Committed),
            token,
            origin: Origin::PRIMARY,
            event: event(outcome, version, transaction.filter(|_| here).map(Transaction)),
            cached: false,
        }
    }
}

/// Of the transaction that found a result: what it could see holds what was written.
pub(super) fn found(connection: &Connection, by: Option<Transaction>) -> Token {
    let position = by.map_or(Position::NONE, |it| connection.position(it));
    Token::of(Arc::clone(&connection.history), position)
}

/// Forgets results that are older than a day, and answers whether there may be more of them: it goes
/// on for half a second at most.
pub(super) async fn forget_old(worker: &Worker) -> Result<bool, Error> {
    let end = worker.runtime.now() + Duration::from_millis(500);
    while worker.runtime.now() < end {
        let deadline = Deadline::at(worker.runtime.now() + worker.patience);
        if worker.perform(&ForgetSome, deadline).await? < ForgetSome::AT_ONCE {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Forgets a bounded number of results that are older than a day, and answers how many.
struct ForgetSome;

impl ForgetSome {
    const AT_ONCE: i64 = 1000;
}

impl Work for ForgetSome {
    type Answer = i64;

    const OPERATION: &'static str = "forget old idempotency keys";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<i64, Failure> {
        let rows = connection.run(Sql::Forget, &[&Self::AT_ONCE]).await?;
        rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::Runtime;
    use terrace_lab::testing;

    use super::super::{ConnectionSource, PostgresOptions, PostgresStore};
    use super::*;

    #[tokio::test]
    async fn all_that_is_old_is_forgotten_and_nothing_else() {
        let options = PostgresOptions {
            source: ConnectionSource::pooled(1, 1),
            ..PostgresOptions::new(testing::fresh_database())
        };
        let store = PostgresStore::connect(options, Runtime::system()).await.unwrap();
        let connector = store.worker.pool.connector();
        let hand = connector.open().await.unwrap();
        let old = "INSERT INTO terrace_idempotency (key, fingerprint, result, created_at) \
             SELECT i::text, '', '[]', now() - interval '1 hour' * (i / 100) \
             FROM generate_series(1, 6000) AS i";
        hand.command(old).await.unwrap();
        while forget_old(&store.worker).await.unwrap() {}
        let left = "DO $$ BEGIN ASSERT (SELECT count(*) FROM terrace_idempotency) BETWEEN 2300 AND 2499; \
             END $$";
        hand.command(left).await.expect("a day is left");
    }
}
