//! Before and after the load: whether the server has the API, the key set, the last read of everything.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use memchr::memmem;
use rand::rngs::Xoshiro256PlusPlus;
use terrace_core::{Deadline, Runtime};

use crate::answer;
use crate::api::{Api, Dialect};
use crate::client::{Connect, words};
use crate::figures::Check;
use crate::keys;
use crate::ledger::{Ledger, Moment, Verdict};
use crate::tally::micros;
use crate::value::{Named, WriteId};
use crate::wire::{Broken, Connection};
use crate::workload::{Operation, ValueBytes, Workload};

/// Keys in one request of the record API.
const BATCH: u32 = 500;
/// Connections that load and check.
const LANES: usize = 32;
/// A lagging read may catch up for so long before what it does not show counts as lost.
const CATCH_UP: Duration = Duration::from_secs(10);
/// All keys are read once more for at most so long, then all statements.
const CHECK: Duration = Duration::from_secs(20);

/// Speaks to one server outside of the measured phases.
#[derive(Debug)]
pub(crate) struct Preparation<'a, C> {
    pub(crate) connect: &'a C,
    pub(crate) api: &'a Api,
    pub(crate) ledger: &'a Ledger,
    pub(crate) epoch: Instant,
    pub(crate) runtime: &'a Runtime,
    pub(crate) timeout: Duration,
    pub(crate) stop: &'a AtomicBool,
}

/// What a server can, beside the documents' API.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    pub(crate) dialect: Dialect,
    pub(crate) lists: bool,
    pub(crate) batches: bool,
    pub(crate) transactions: bool,
}

impl Abilities {
    /// None, until the server was asked.
    pub(crate) const UNKNOWN: Self =
        Self { dialect: Dialect::RECORDS, lists: false, batches: false, transactions: false };

    /// Whether this workload can be put on the server; why not.
    pub(crate) fn suffice(self, workload: &Workload) -> Outcome<()> {
        if workload.has(Operation::Scan) && !self.lists {
            return Err(format!(
                "not applicable: it has no GET {} to scan with",
                self.dialect.list
            ));
        }
        let needs = [Operation::Post, Operation::Statement];
        if needs.into_iter().any(|operation| workload.has(operation)) && !self.transactions {
            return Err(format!(
                "not applicable: workload {} posts and reads transactions, and it has no \
                 /v1/transactions (level 8 has); choose another --workload",
                workload.name
            ));
        }
        Ok(())
    }
}

/// How everything is read once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Key by key.
    Keys,
    /// Many keys in one request.
    Batches,
    /// The statements of the keys' users.
    Statements,
}

type Outcome<T> = Result<T, String>;

impl<C: Connect> Preparation<'_, C> {
    /// Whether the server has the documents' API, and what else it can.
    pub(crate) async fn probe(&self) -> Outcome<Abilities> {
        let dialect = self.dialect().await?;
        let lists = self.get(&format!("{}?limit=1", dialect.list)).await?.0 == 200;
        let transactions = format!("/v1/transactions?limit=1&user_id={}", keys::text(0));
        let transactions = self.get(&transactions).await?.0 == 200;
        let mut connection = self.open().await?;
        self.api.read_all(&mut connection.request, 0..1);
        let batches = self.exchange(&mut connection).await? == 200;
        Ok(Abilities { dialect, lists, batches, transactions })
    }

    /// The one in which the server answers.
    async fn dialect(&self) -> Outcome<Dialect> {
        let mut answered = Vec::new();
        for dialect in [Dialect::RECORDS, Dialect::DOCUMENTS] {
            let path = format!("{}{}", dialect.read, keys::text(0));
            let (status, connection) = self.get(&path).await?;
            if status == 200 && answer::value(connection.body()).is_some() {
                return Ok(dialect);
            }
            let key = if status == 401 { " (give a key with --header)" } else { "" };
            answered.push(format!("GET {path} answered {status}{key}"));
        }
        Err(format!("it does not have the documents' API: {}", answered.join(", ")))
    }

    /// Asks once, on a connection of its own.
    async fn get(&self, path: &str) -> Outcome<(u16, Connection<C::Stream>)> {
        let mut connection = self.open().await?;
        self.api.get(&mut connection.request, path);
        Ok((self.exchange(&mut connection).await?, connection))
    }

    /// Writes every key once.
    pub(crate) async fn load(
        &self,
        keys: u32,
        bytes: ValueBytes,
        abilities: Abilities,
        rng: Xoshiro256PlusPlus,
        tell: impl Fn(u64),
    ) -> Outcome<()> {
        let size = if abilities.batches { BATCH } else { 1 };
        let (next, done) = (Cell::new(0), Cell::new(0));
        let rng = RefCell::new(rng);
        self.lanes(|| async {
            let mut connection = self.open().await?;
            while let Some(from) = Some(next.get()).filter(|from| *from < keys) {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let to = (from + size).min(keys);
                next.set(to);
                if connection.closes() {
                    connection = self.open().await?;
                }
                self.write(&mut connection, from..to, bytes, size > 1, &rng).await?;
                done.set(done.get() + u64::from(to - from));
                tell(done.get());
            }
            Ok(())
        })
        .await
    }

    async fn write(
        &self,
        connection: &mut Connection<C::Stream>,
        keys: std::ops::Range<u32>,
        bytes: ValueBytes,
        batch: bool,
        rng: &RefCell<Xoshiro256PlusPlus>,
    ) -> Outcome<()> {
        let named = |key| Named { key, write: WriteId::new(0, u64::from(key)) };
        let long = || bytes.draw(&mut *rng.borrow_mut());
        for key in keys.clone() {
            self.ledger.sent(named(key), self.moment());
        }
        let values = self.ledger.values();
        match batch {
            true => {
                let writes = keys.clone().map(|key| (named(key), long()));
                self.api.write_all(&mut connection.request, values, writes);
            }
            false => self.api.write(&mut connection.request, values, named(keys.start), long()),
        }
        let status = self.exchange(connection).await?;
        let body = connection.body();
        let refused = ["\"unavailable\"", "\"unknown\"", "\"precondition_failed\""];
        let whole = refused.iter().all(|word| memmem::find(body, word.as_bytes()).is_none());
        if !(200..300).contains(&status) || !whole {
            let said: String = String::from_utf8_lossy(body).chars().take(200).collect();
            return Err(format!("the key set could not be loaded: status {status}, {said}"));
        }
        for key in keys {
            self.ledger.acknowledged(named(key), self.moment() + 1);
        }
        Ok(())
    }

    /// Reads every key and every statement once more, those that lag again and again for a while.
    pub(crate) async fn check(&self, abilities: Abilities) -> Outcome<Check> {
        let (known, posted) = (self.ledger.known(), self.ledger.posted());
        let statements = u32::try_from(posted.len()).unwrap_or(u32::MAX);
        let of = u64::from(known) + u64::from(statements);
        let check = RefCell::new(Check { of, ..Check::default() });
        let reading = if abilities.batches { Reading::Batches } else { Reading::Keys };
        self.check_all(reading, known, |at| at, &check).await?;
        if statements > 0 {
            self.check_all(Reading::Statements, statements, |at| posted[at as usize], &check)
                .await?;
        }
        Ok(check.into_inner())
    }

    async fn check_all(
        &self,
        reading: Reading,
        count: u32,
        key: impl Fn(u32) -> u32,
        check: &RefCell<Check>,
    ) -> Outcome<()> {
        let size = if reading == Reading::Batches { BATCH } else { 1 };
        let next = Cell::new(0);
        let until = self.runtime.now() + CHECK;
        self.lanes(|| async {
            let mut connection = self.open().await?;
            while let Some(from) = Some(next.get()).filter(|from| *from < count) {
                if self.runtime.now() > until || self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let to = (from + size).min(count);
                next.set(to);
                let keys = (from..to).map(&key).collect();
                self.check_some(&mut connection, keys, reading, check).await?;
            }
            Ok(())
        })
        .await
    }

    async fn check_some(
        &self,
        connection: &mut Connection<C::Stream>,
        mut keys: Vec<u32>,
        reading: Reading,
        check: &RefCell<Check>,
    ) -> Outcome<()> {
        check.borrow_mut().read += keys.len() as u64;
        let patience = self.runtime.now() + CATCH_UP;
        loop {
            let sent = self.moment();
            if connection.closes() {
                *connection = self.open().await?;
            }
            let request = &mut connection.request;
            match reading {
                Reading::Keys => self.api.read(request, keys[0], b""),
                Reading::Batches => self.api.read_all(request, keys.iter().copied()),
                Reading::Statements => {
                    self.api.statement(request, self.ledger.values(), keys[0], b"");
                }
            }
            let status = self.exchange(connection).await?;
            if !(200..300).contains(&status) {
                return Err(format!(
                    "the last read of everything was answered with status {status}"
                ));
            }
            let late = self.runtime.now() >= patience || self.stop.load(Ordering::Relaxed);
            let mut again = Vec::new();
            let judged = self.judge(&keys, reading, connection.body(), sent);
            for (key, (verdict, shown)) in keys.iter().zip(judged) {
                let mut check = check.borrow_mut();
                match verdict {
                    Verdict::Right => continue,
                    Verdict::Stale(_) | Verdict::Missing(_) | Verdict::Lacking(_) if !late => {
                        again.push(*key);
                        continue;
                    }
                    Verdict::Stale(_) | Verdict::Missing(_) | Verdict::Lacking(_) => {
                        check.lost += 1;
                    }
                    Verdict::Swapped | Verdict::MadeUp | Verdict::Surplus(_) => check.wrong += 1,
                }
                if check.examples.len() < 5 {
                    check.examples.push(words(verdict, *key, shown));
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            keys = again;
            self.runtime.sleep(Duration::from_millis(200)).await;
        }
    }

    /// What an answer shows of each of these keys.
    fn judge<'b>(
        &self,
        keys: &[u32],
        reading: Reading,
        body: &'b [u8],
        sent: Moment,
    ) -> Vec<(Verdict, Option<&'b str>)> {
        let judged = |(key, value): (&u32, _)| (self.ledger.judge(*key, value, sent), value);
        match reading {
            Reading::Keys => vec![judged((&keys[0], answer::value(body).flatten()))],
            Reading::Batches => {
                keys.iter().zip(answer::records(body).map(|(_, value)| value)).map(judged).collect()
            }
            Reading::Statements => {
                // Nothing is under way any more.
                let acknowledged = self.ledger.posts_acknowledged(keys[0]);
                let kinds = answer::kinds(body).into_iter().flatten();
                vec![self.ledger.judge_statement(keys[0], kinds, acknowledged)]
            }
        }
    }

    /// Runs some of the same at once; the first error is the answer.
    async fn lanes<F: Future<Output = Outcome<()>>>(&self, lane: impl Fn() -> F) -> Outcome<()> {
        let mut lanes: FuturesUnordered<F> = (0..LANES).map(|_| lane()).collect();
        while let Some(ended) = lanes.next().await {
            ended?;
        }
        Ok(())
    }

    async fn open(&self) -> Outcome<Connection<C::Stream>> {
        let deadline = Deadline::at(self.runtime.now() + self.timeout);
        match self.runtime.within(deadline, self.connect.connect()).await {
            None => Err("it does not take connections in time".into()),
            Some(Err(error)) => Err(format!("it cannot be reached: {error}")),
            Some(Ok(stream)) => Ok(Connection::new(stream)),
        }
    }

    async fn exchange(&self, connection: &mut Connection<C::Stream>) -> Outcome<u16> {
        // More patient than a measured request: a batch is much more work.
        let deadline = Deadline::at(self.runtime.now() + self.timeout.max(Duration::from_secs(30)));
        match self.runtime.within(deadline, connection.exchange()).await {
            None => Err("it did not answer in time".into()),
            Some(Err(Broken::Lost(error))) => Err(format!("the connection was lost: {error}")),
            Some(Err(Broken::Protocol)) => Err("it does not speak HTTP/1.1".into()),
            Some(Ok(())) => Ok(connection.answer.status),
        }
    }

    fn moment(&self) -> Moment {
        micros(self.runtime.now().saturating_duration_since(self.epoch))
    }
}
