//! A store whose every call is answered by the test, when and how the test likes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::{
    BoxFuture, Durability, Error, ErrorKind, Generation, Inspection, Key, Origin, Outcome, Page,
    Position, Proof, Read, ReadOptions, Receipt, Record, Result, Scan, Standing, Status, Store,
    Timestamp, Token, Value, Version, Write, WriteOptions,
};

/// A store between two hands: the test drives the caller with one and answers with the other.
///
/// Each call arrives at the [`Hand`] and waits there until it is answered, which forces any order of
/// events without a sleep. A call that the hand drops answers `Internal`.
///
/// ```
/// use terrace_core::testkit::{Scripted, key};
/// use terrace_core::{StoreExt, Version};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (store, mut hand) = Scripted::new();
/// let key = key("a");
/// let (record, ()) = tokio::join!(store.get(&key), async {
///     hand.read().await.found(&[("a", "one", 7)]);
/// });
/// assert_eq!(record.unwrap().unwrap().version, Version::new(7));
/// # }
/// ```
#[derive(Debug)]
pub struct Scripted {
    calls: mpsc::UnboundedSender<Call>,
    down: Arc<AtomicBool>,
}

/// The test's end of a [`Scripted`] store.
#[derive(Debug)]
pub struct Hand {
    calls: mpsc::UnboundedReceiver<Call>,
    down: Arc<AtomicBool>,
}

/// One call that waits for its answer.
#[derive(Debug)]
pub enum Call {
    /// A call of [`Store::read`].
    Read(ReadCall),
    /// A call of [`Store::write`].
    Write(WriteCall),
    /// A call of [`Store::scan`].
    Scan(ScanCall),
}

/// A read that waits for its answer.
#[derive(Debug)]
pub struct ReadCall {
    /// The keys asked for.
    pub keys: Vec<Key>,
    /// How.
    pub how: ReadOptions,
    reply: oneshot::Sender<Result<Vec<Read>>>,
}

/// A write that waits for its answer.
#[derive(Debug)]
pub struct WriteCall {
    /// The writes.
    pub batch: Vec<Write>,
    /// How.
    pub how: WriteOptions,
    reply: oneshot::Sender<Result<Vec<Receipt>>>,
}

/// A scan that waits for its answer.
#[derive(Debug)]
pub struct ScanCall {
    /// What to list.
    pub scan: Scan,
    /// How.
    pub how: ReadOptions,
    reply: oneshot::Sender<Result<Page>>,
}

impl Scripted {
    /// The history that its tokens name.
    pub const HISTORY: &'static str = "scripted";

    /// A store, and the hand that answers its calls.
    pub fn new() -> (Arc<Self>, Hand) {
        let (sender, calls) = mpsc::unbounded_channel();
        let down = Arc::new(AtomicBool::new(false));
        (Arc::new(Self { calls: sender, down: Arc::clone(&down) }), Hand { calls, down })
    }

    async fn call<T>(&self, make: impl FnOnce(oneshot::Sender<Result<T>>) -> Call) -> Result<T> {
        let gone = || Error::new(ErrorKind::Internal, "the test did not answer this call");
        let (reply, answer) = oneshot::channel();
        self.calls.send(make(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Hand {
    /// The next call, of whatever kind. Waits for it without end: a test that hangs here has found a
    /// call that does not come.
    ///
    /// # Panics
    /// When the store is gone.
    pub async fn next(&mut self) -> Call {
        self.calls.recv().await.expect("the store is alive")
    }

    /// The next call, if one waits already.
    pub fn try_next(&mut self) -> Option<Call> {
        self.calls.try_recv().ok()
    }

    /// The next call, which must be a read.
    ///
    /// # Panics
    /// When it is another.
    pub async fn read(&mut self) -> ReadCall {
        match self.next().await {
            Call::Read(call) => call,
            other => panic!("a read was expected, not {other:?}"),
        }
    }

    /// The next call, which must be a write.
    ///
    /// # Panics
    /// When it is another.
    pub async fn write(&mut self) -> WriteCall {
        match self.next().await {
            Call::Write(call) => call,
            other => panic!("a write was expected, not {other:?}"),
        }
    }

    /// The next call, which must be a scan.
    ///
    /// # Panics
    /// When it is another.
    pub async fn scan(&mut self) -> ScanCall {
        match self.next().await {
            Call::Scan(call) => call,
            other => panic!("a scan was expected, not {other:?}"),
        }
    }

    /// Makes the store's inspection say that it is down, or healthy again.
    pub fn report_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }

    /// Answers every call from `store` from now on, until the scripted store is gone.
    pub async fn pass_on(mut self, store: Arc<dyn Store>) {
        while let Some(call) = self.calls.recv().await {
            call.pass_on(&*store).await;
        }
    }
}

impl Call {
    /// Answers this call as `store` answers it.
    pub async fn pass_on(self, store: &dyn Store) {
        match self {
            Self::Read(call) => {
                let answer = store.read(&call.keys, &call.how).await;
                call.answer(answer);
            }
            Self::Write(call) => {
                let answer = store.write(call.batch.clone(), &call.how).await;
                call.answer(answer);
            }
            Self::Scan(call) => {
                let answer = store.scan(&call.scan, &call.how).await;
                call.answer(answer);
            }
        }
    }
}

impl ReadCall {
    /// Answers with this.
    pub fn answer(self, answer: Result<Vec<Read>>) {
        let _ = self.reply.send(answer);
    }

    /// Answers with these records (key, value, version); other keys asked for are missing.
    pub fn found(self, records: &[(&str, &str, u64)]) {
        self.found_under(&Standing::of(Scripted::HISTORY), records);
    }

    /// The same, as a database that is said to have this history and this generation.
    pub fn found_under(self, standing: &Standing, records: &[(&str, &str, u64)]) {
        let records: HashMap<_, _> =
            records.iter().map(|(key, value, version)| (*key, (*value, *version))).collect();
        let reads = self
            .keys
            .iter()
            .map(|key| match records.get(key.as_str()) {
                Some((value, version)) => read_of(key, Some(value), *version, standing),
                None => read_of(key, None, 0, standing),
            })
            .collect();
        self.answer(Ok(reads));
    }

    /// Answers with an error of this kind.
    pub fn fail(self, kind: ErrorKind) {
        self.answer(Err(Error::new(kind, "scripted")));
    }

    /// Whether the caller has gone.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Waits until the caller has gone.
    pub async fn abandoned(&mut self) {
        self.reply.closed().await;
    }
}

impl WriteCall {
    /// Answers with this.
    pub fn answer(self, answer: Result<Vec<Receipt>>) {
        let _ = self.reply.send(answer);
    }

    /// Answers that all were applied, the first at this version, the next at the next.
    pub fn applied(self, first: u64) {
        let receipts = (first..)
            .zip(&self.batch)
            .map(|(version, write)| {
                let outcome = match write.change {
                    crate::Change::Put(_) => Outcome::Replaced,
                    crate::Change::Delete => Outcome::Deleted,
                };
                receipt_of(outcome, version)
            })
            .collect();
        self.answer(Ok(receipts));
    }

    /// Answers with an error of this kind.
    pub fn fail(self, kind: ErrorKind) {
        self.answer(Err(Error::new(kind, "scripted")));
    }

    /// Whether the caller has gone.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

impl ScanCall {
    /// Answers with this.
    pub fn answer(self, answer: Result<Page>) {
        let _ = self.reply.send(answer);
    }

    /// Answers with an error of this kind.
    pub fn fail(self, kind: ErrorKind) {
        self.answer(Err(Error::new(kind, "scripted")));
    }
}

/// An answer as a database would give it.
fn read_of(key: &Key, value: Option<&str>, version: u64, standing: &Standing) -> Read {
    let at = Timestamp::UNIX_EPOCH;
    let record = value.map(|text| Record {
        key: key.clone(),
        value: Value::new(text).expect("the test gives a good value"),
        version: Version::new(version),
        created_at: at,
        updated_at: at,
    });
    let Standing { history, generation, .. } = standing.clone();
    let proof = Proof { history, generation, ..proof_of(version) };
    Read {
        record,
        version: Version::new(version),
        origin: Origin::PRIMARY,
        age: Duration::ZERO,
        token: proof.token(),
        proof: Some(proof),
    }
}

/// What a scripted answer at this version proves: everything up to it.
pub fn proof_of(version: u64) -> Proof {
    Proof {
        history: Scripted::HISTORY.into(),
        generation: Generation::default(),
        through: Position::new(version),
        shown: Position::new(version),
    }
}

fn receipt_of(outcome: Outcome, version: u64) -> Receipt {
    Receipt {
        outcome,
        version: Version::new(version),
        durability: Durability::Committed,
        token: token_of(version),
        origin: Origin::PRIMARY,
        event: None,
        cached: false,
    }
}

fn token_of(version: u64) -> Token {
    Token::of(Scripted::HISTORY, Position::new(version))
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}

impl Store for Scripted {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        let (keys, how) = (keys.to_vec(), how.clone());
        Box::pin(self.call(move |reply| Call::Read(ReadCall { keys, how, reply })))
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        let how = how.clone();
        Box::pin(self.call(move |reply| Call::Write(WriteCall { batch, how, reply })))
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        let (scan, how) = (scan.clone(), how.clone());
        Box::pin(self.call(move |reply| Call::Scan(ScanCall { scan, how, reply })))
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async move {
            let tree = Inspection::new("scripted");
            match self.down.load(Ordering::Relaxed) {
                true => tree.status(Status::Down, "the test says so"),
                false => tree,
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
