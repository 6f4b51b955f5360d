//! Adding transactions: one round trip, or three with an idempotency key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{join, join3, join4};
use serde::{Deserialize, Serialize};
use terrace_core::ledger::{Posted, Posting, Transaction};
use terrace_core::{Durability, Error, ErrorKind, Idempotency, Timestamp, Token, Version};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::super::connection::{Connection, Repeated};
use super::super::idempotency::{self, Claim};
use super::super::locked;
use super::super::read::version;
use super::super::snapshot;
use super::super::sqlstate::{is_locked, outcome_unknown};
use super::super::statements::{Moment, Parameter, Sql, generation};
use super::super::work::{Failure, Progress, Work, corrupt};
use super::super::write::{leave, roll_back, transaction, unreadable};

/// A batch of transactions to add.
pub(super) struct PostBatch<'a> {
    pub(super) batch: &'a [Posting],
    pub(super) request: Option<&'a Idempotency>,
    /// Whether they were tried again because nothing was seen to hold their accounts.
    pub(super) again: AtomicBool,
}

/// They are added in the order of the batch; the trigger takes the accounts in the order of the users,
/// so that no two batches wait for each other.
const POST: &str = concat!(
    "INSERT INTO transactions (user_id, amount, transaction_type) \
     SELECT u.k, u.c * 0.01, u.t FROM unnest($1::text[], $2::bigint[], $3::text[]) AS u(k, c, t) \
     WHERE ",
    generation!("$4"),
    " IS NOT NULL RETURNING id, user_id, created_at, pg_current_xact_id()"
);

/// The accounts that this transaction has written.
const ACCOUNTS: &str = "SELECT key, version FROM records \
     WHERE key = ANY ($1::text[]) AND xmin = pg_current_xact_id()::xid";

impl Work for PostBatch<'_> {
    type Answer = Vec<Posted>;

    const OPERATION: &'static str = "post";

    async fn run(
        &self,
        connection: &Connection,
        progress: &Progress,
    ) -> Result<Vec<Posted>, Failure> {
        let columns = Columns::of(self.batch);
        columns.prepare(connection).await?;
        let done = match self.request {
            None => columns.post(connection, progress, self.batch).await,
            // Boxed: it is large, and only some posts need it.
            Some(_) => Box::pin(self.transact(connection, progress, &columns)).await,
        };
        match done {
            Err(Failure::Driver(error)) if is_locked(&error) && !progress.is_in_transaction() => {
                progress.nothing_applied();
                // Who waits for the first answer to a request, or once more, waits on.
                let waits = self.request.is_some() || !self.again.swap(true, Ordering::Relaxed);
                Err(locked::look(connection, columns.users.into_iter(), waits, error).await)
            }
            done => done,
        }
    }
}

/// What posting needs, of nobody: the tables, the right to change them, and a server that takes writes.
pub(super) struct PostNothing;

impl Work for PostNothing {
    type Answer = ();

    const OPERATION: &'static str = "inspect";

    async fn run(&self, connection: &Connection, _: &Progress) -> Result<(), Failure> {
        let columns = Columns::of(&[]);
        columns.prepare(connection).await?;
        columns.insert(connection).await?;
        Ok(())
    }
}

struct Columns<'a> {
    users: Vec<&'a str>,
    cents: Vec<i64>,
    kinds: Vec<&'a str>,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a [Posting]) -> Self {
        Self {
            users: batch.iter().map(|posting| posting.user.as_str()).collect(),
            cents: batch.iter().map(|posting| posting.amount.cents()).collect(),
            kinds: batch.iter().map(|posting| posting.kind.as_str()).collect(),
        }
    }

    async fn prepare(&self, connection: &Connection) -> Result<(), tokio_postgres::Error> {
        let history = &*connection.history;
        connection.prepare_for(Repeated::Post, POST, &self.added(&history)).await?;
        connection.prepare_for(Repeated::Accounts, ACCOUNTS, &self.accounts()).await
    }

    fn added<'s>(&'s self, history: &'s &str) -> [(Parameter<'s>, Type); 4] {
        [
            (&self.users, Type::TEXT_ARRAY),
            (&self.cents, Type::INT8_ARRAY),
            (&self.kinds, Type::TEXT_ARRAY),
            (history, Type::TEXT),
        ]
    }

    fn accounts(&self) -> [(Parameter<'_>, Type); 1] {
        [(&self.users, Type::TEXT_ARRAY)]
    }

    async fn insert(&self, connection: &Connection) -> Result<Vec<Row>, tokio_postgres::Error> {
        let history = &*connection.history;
        connection.run_prepared(Repeated::Post, &self.added(&history)).await
    }

    async fn written(&self, connection: &Connection) -> Result<Vec<Row>, tokio_postgres::Error> {
        connection.run_prepared(Repeated::Accounts, &self.accounts()).await
    }

    /// All of the transaction is sent at once. After a failure COMMIT ends it as a ROLLBACK, and the
    /// first failure is the cause. Were BEGIN to fail alone, the insert would have committed by itself.
    async fn post(
        &self,
        connection: &Connection,
        progress: &Progress,
        batch: &[Posting],
    ) -> Result<Vec<Posted>, Failure> {
        let promised = connection.durability();
        progress.commits();
        progress.in_transaction(true);
        let (begun, rows, accounts, committed) = join4(
            connection.command("BEGIN"),
            self.insert(connection),
            self.written(connection),
            connection.command("COMMIT"),
        )
        .await;
        if committed.is_ok() {
            progress.in_transaction(false);
        }
        match begun {
            Err(error) if rows.is_ok() => return Err(unreadable(error)),
            begun => begun?,
        }
        let (rows, accounts) = (rows?, accounts?);
        committed?;
        let number = added_all(connection, batch, &rows).await?;
        let durability = connection.committed(promised).await;
        let token = Token::of(Arc::clone(&connection.history), connection.position(number));
        let done = done(batch, &rows, &accounts, durability)?;
        Ok(answers(batch, done, &token))
    }
}

impl PostBatch<'_> {
    /// Takes the request, adds, stores what is answered.
    async fn transact(
        &self,
        connection: &Connection,
        progress: &Progress,
        columns: &Columns<'_>,
    ) -> Result<Vec<Posted>, Failure> {
        let promised = connection.durability();
        let claim = Claim::new(self.request);
        let of_history: [Parameter<'_>; 1] = [&&*connection.history];
        progress.in_transaction(true);
        // Were BEGIN to fail alone, what is sent with it would change nothing but an empty claim.
        let (begun, claimed, number) = join3(
            connection.command("BEGIN"),
            claim.take::<DonePosting>(connection),
            connection.run(Sql::Transaction, &of_history),
        )
        .await;
        let step = begun.map_err(Failure::from).and_then(|()| {
            let (claimed, number) = (claimed?, number?);
            let number = number.first().ok_or(Failure::AnotherHistory)?;
            Ok((claimed, number.try_get::<_, snapshot::Transaction>(0).map_err(corrupt)?))
        });
        let (claimed, number) = match step {
            Ok(step) => step,
            Err(failure) => return Err(roll_back(connection, progress, failure).await),
        };
        let position = connection.position(number);
        if let Some(remembered) = claimed {
            leave(connection, progress).await?;
            let done = remembered.matching(self.request)?;
            let token = idempotency::found(connection, Some(number));
            return Ok(answers(self.batch, done, &token));
        }
        let (rows, accounts) = join(columns.insert(connection), columns.written(connection)).await;
        let added = async {
            let (rows, accounts) = (rows?, accounts?);
            added_all(connection, self.batch, &rows).await?;
            done(self.batch, &rows, &accounts, promised)
        };
        let done = match added.await {
            Ok(done) => done,
            Err(failure) => return Err(roll_back(connection, progress, failure).await),
        };
        progress.commits();
        let (kept, committed) =
            join(claim.keep(connection, done.iter(), None), connection.command("COMMIT")).await;
        if committed.is_ok() {
            progress.in_transaction(false);
        }
        kept?;
        committed?;
        let durability = connection.committed(promised).await;
        let mut posted =
            answers(self.batch, done, &Token::of(Arc::clone(&connection.history), position));
        posted.iter_mut().for_each(|it| it.durability = durability);
        Ok(posted)
    }
}

/// What is stored of a transaction under an idempotency key.
#[derive(Serialize, Deserialize)]
struct DonePosting {
    id: u64,
    created_at: Timestamp,
    version: Version,
    durability: Durability,
}

fn answers(batch: &[Posting], done: Vec<DonePosting>, token: &Token) -> Vec<Posted> {
    let answer = |(posting, done): (&Posting, DonePosting)| {
        let DonePosting { id, created_at, version, durability } = done;
        let transaction = Transaction { id, posting: posting.clone(), created_at };
        Posted { transaction, version, durability, token: token.clone() }
    };
    batch.iter().zip(done).map(answer).collect()
}

/// The transaction that added all of the batch.
async fn added_all(
    connection: &Connection,
    batch: &[Posting],
    rows: &[Row],
) -> Result<snapshot::Transaction, Failure> {
    let number = transaction(connection, rows, 3).await?.ok_or(Failure::AnotherHistory)?;
    match rows.len() {
        added if added == batch.len() => Ok(number),
        0 => {
            let message = "a trigger or rule of the table `transactions` keeps a row from being added; \
                           change it, or the request";
            Err(Failure::Refused(Error::new(ErrorKind::InvalidInput, message)))
        }
        _ => Err(Failure::Refused(outcome_unknown())),
    }
}

/// What was done, as the server says. It answers in the order of the batch, but does not promise to.
fn done(
    batch: &[Posting],
    rows: &[Row],
    accounts: &[Row],
    durability: Durability,
) -> Result<Vec<DonePosting>, Failure> {
    let mut versions = HashMap::with_capacity(accounts.len());
    for row in accounts {
        let number = row.try_get(1).map_err(unreadable)?;
        versions.insert(row.try_get::<_, &str>(0).map_err(unreadable)?, version(number));
    }
    let done = batch.iter().zip(rows).map(|(posting, row)| {
        let user = row.try_get::<_, &str>(1).map_err(unreadable)?;
        if user != posting.user.as_str() {
            return Err(Failure::Refused(outcome_unknown()));
        }
        let version = *versions.get(user).ok_or_else(no_account)?;
        let id = u64::try_from(row.try_get::<_, i64>(0).map_err(unreadable)?).unwrap_or(0);
        let Moment(created_at) = row.try_get(2).map_err(unreadable)?;
        Ok(DonePosting { id, created_at, version, durability })
    });
    done.collect()
}

/// It may be committed, with an account that does not have it.
fn no_account() -> Failure {
    let message = "the transaction may be stored, but its account is not kept: the triggers of the \
                   table `transactions` are missing; restart Terrace, which makes them and counts the \
                   accounts anew";
    Failure::Refused(Error::new(ErrorKind::OutcomeUnknown, message))
}
