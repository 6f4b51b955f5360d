//! One connection's life: takes a job, sends it, judges the answer.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use terrace_core::Runtime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::answer;
use crate::api::Api;
use crate::feed::{Feed, Job};
use crate::keys;
use crate::ledger::{Ledger, Moment, Verdict};
use crate::tally::{Failure, Tally, micros};
use crate::value::{Named, WriteId};
use crate::wire::{Broken, Connection};
use crate::workload::{Operation, ValueBytes};

/// A scan asks for at most so many neighbours, as YCSB's workload E does.
const SCAN: u32 = 100;
/// After a connection that could not be made: a dead server must not keep the generator busy.
const PAUSE: Duration = Duration::from_millis(20);

/// How connections are made; tests make them in memory.
pub trait Connect {
    /// What bytes go over.
    type Stream: AsyncRead + AsyncWrite + Unpin;
    /// A new connection.
    fn connect(&self) -> impl Future<Output = io::Result<Self::Stream>>;
}

/// Connections over TCP.
#[derive(Clone, Copy, Debug)]
pub struct Tcp(pub SocketAddr);

impl Connect for Tcp {
    type Stream = TcpStream;

    async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.0).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// How clients behave.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// A request without an answer by then has failed.
    pub timeout: Duration,
    /// How long values are.
    pub value_bytes: ValueBytes,
    /// Whether a connection sends the last token it got, and so reads its own writes.
    pub sends_tokens: bool,
}

/// What the connections of one worker share.
pub struct Shared<'a, C> {
    /// Makes connections.
    pub connect: &'a C,
    /// Makes requests.
    pub api: &'a Api,
    /// Judges answers.
    pub ledger: &'a Ledger,
    /// The ledger's zero.
    pub epoch: Instant,
    /// Gives jobs.
    pub feed: &'a Feed<'a>,
    /// Counts.
    pub tally: &'a RefCell<Tally>,
    /// The clock.
    pub runtime: &'a Runtime,
    /// How to behave.
    pub manners: Manners,
    /// Who writes.
    pub writer: u16,
    /// The worker's writes so far.
    pub sequence: &'a Cell<u64>,
}

impl<C> std::fmt::Debug for Shared<'_, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("writer", &self.writer).finish_non_exhaustive()
    }
}

/// One connection, reconnected when it breaks.
pub(crate) struct Client<'a, C: Connect> {
    shared: &'a Shared<'a, C>,
    connection: Option<Connection<C::Stream>>,
    limit: Limit<'a>,
    token: Vec<u8>,
}

impl<'a, C: Connect> Client<'a, C> {
    pub(crate) fn new(shared: &'a Shared<'a, C>) -> Self {
        let limit = Limit { runtime: shared.runtime, timer: None };
        Self { shared, connection: None, limit, token: Vec::new() }
    }

    /// Makes the connection before it is needed; one that fails is tried again with the first job.
    pub(crate) async fn connect(&mut self) {
        let deadline = self.shared.runtime.now() + self.shared.manners.timeout;
        let _ = open(&mut self.connection, &mut self.limit, self.shared, deadline).await;
    }

    /// Works until the feed is over.
    pub(crate) async fn run(&mut self) {
        while let Some(job) = self.shared.feed.next().await {
            let timeout = self.shared.manners.timeout;
            let now = self.shared.runtime.now();
            let from = job.intended.unwrap_or(now);
            // A request that has waited half its time is not worth sending: it would only be cut off.
            let outcome = match now < from + timeout / 2 {
                true => self.perform(job, now, from + timeout).await,
                false => Err(Failure::Unsent),
            };
            match outcome {
                Ok(ended) => {
                    self.shared.tally.borrow_mut().answered(job.operation, ended - from);
                }
                Err(why) => {
                    self.shared.tally.borrow_mut().failed(job.operation, why, timeout);
                    if why == Failure::Refused {
                        self.shared.runtime.sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Does the job; when it was answered.
    async fn perform(&mut self, job: Job, now: Instant, by: Instant) -> Result<Instant, Failure> {
        match job.operation {
            Operation::Read => self.read(job.key, now, by).await,
            Operation::Update | Operation::Insert => self.write(job.key, now, by).await,
            Operation::Scan => self.scan(job.key, now, by).await,
            Operation::Post => self.post(job.key, by).await,
            Operation::Statement => self.statement(job.key, by).await,
            Operation::ReadModifyWrite => {
                let read = self.read(job.key, now, by).await?;
                self.write(job.key, read, by).await
            }
        }
    }

    async fn read(&mut self, key: u32, sent: Instant, by: Instant) -> Result<Instant, Failure> {
        let shared = self.shared;
        let connection = open(&mut self.connection, &mut self.limit, shared, by).await?;
        shared.api.read(&mut connection.request, key, &self.token);
        let ended = self.exchange(by).await?;
        let Some(connection) = &self.connection else { return Err(Failure::Lost) };
        let value = answer::value(connection.body()).ok_or(Failure::Protocol)?;
        let verdict = shared.ledger.judge(key, value, shared.moment_before(sent));
        shared.judged(connection, verdict, || words(verdict, key, value));
        self.rest();
        Ok(ended)
    }

    async fn statement(&mut self, key: u32, by: Instant) -> Result<Instant, Failure> {
        let shared = self.shared;
        let connection = open(&mut self.connection, &mut self.limit, shared, by).await?;
        let values = shared.ledger.values();
        shared.api.statement(&mut connection.request, values, key, &self.token);
        let acknowledged = shared.ledger.posts_acknowledged(key);
        let ended = self.exchange(by).await?;
        let Some(connection) = &self.connection else { return Err(Failure::Lost) };
        let kinds = answer::kinds(connection.body()).ok_or(Failure::Protocol)?;
        let (verdict, kind) = shared.ledger.judge_statement(key, kinds, acknowledged);
        shared.judged(connection, verdict, || words(verdict, key, kind));
        self.rest();
        Ok(ended)
    }

    async fn scan(&mut self, key: u32, sent: Instant, by: Instant) -> Result<Instant, Failure> {
        use rand::RngExt as _;

        let shared = self.shared;
        let limit = shared.feed.draw(|draw| draw.rng().random_range(1..=SCAN));
        let connection = open(&mut self.connection, &mut self.limit, shared, by).await?;
        shared.api.scan(&mut connection.request, key, limit, &self.token);
        let ended = self.exchange(by).await?;
        let Some(connection) = &self.connection else { return Err(Failure::Lost) };
        let mut tally = shared.tally.borrow_mut();
        tally.origin(&connection.answer.origin);
        for (name, value) in answer::records(connection.body()) {
            let number = name.rsplit('-').next().unwrap_or_default();
            let Ok(key) = number.parse() else { continue };
            let verdict = shared.ledger.judge(key, value, shared.moment_before(sent));
            tally.findings.add(verdict, || words(verdict, key, value));
        }
        drop(tally);
        self.rest();
        Ok(ended)
    }

    async fn write(&mut self, key: u32, sent: Instant, by: Instant) -> Result<Instant, Failure> {
        let shared = self.shared;
        let named = shared.name(key);
        let bytes = shared.feed.draw(|draw| shared.manners.value_bytes.draw(draw.rng()));
        let connection = open(&mut self.connection, &mut self.limit, shared, by).await?;
        shared.api.write(&mut connection.request, shared.ledger.values(), named, bytes);
        shared.ledger.sent(named, shared.moment_before(sent));
        let outcome = self.exchange(by).await;
        match outcome {
            Ok(_) => shared.ledger.acknowledged(named, shared.moment_after()),
            // A client's mistake changes nothing, by HTTP's own rules.
            Err(Failure::Status(400..=499)) => shared.ledger.refused(named),
            Err(_) => shared.ledger.in_doubt(named),
        }
        let ended = outcome?;
        self.written();
        Ok(ended)
    }

    async fn post(&mut self, key: u32, by: Instant) -> Result<Instant, Failure> {
        let shared = self.shared;
        let named = shared.name(key);
        let connection = open(&mut self.connection, &mut self.limit, shared, by).await?;
        shared.api.post(&mut connection.request, shared.ledger.values(), named);
        shared.ledger.post_sent(key);
        let outcome = self.exchange(by).await;
        match outcome {
            Ok(_) => shared.ledger.post_acknowledged(key),
            Err(Failure::Status(400..=499)) => shared.ledger.post_refused(key),
            // It stays sent, and so in doubt.
            Err(_) => {}
        }
        let ended = outcome?;
        self.written();
        Ok(ended)
    }

    /// Keeps what the answer to a write says of it.
    fn written(&mut self) {
        let shared = self.shared;
        if let Some(connection) = &self.connection {
            let answer = &connection.answer;
            let durability = answer.durability.as_slice();
            let durabilities = &mut shared.tally.borrow_mut().durabilities;
            durabilities.add(durability, 1, || durability.to_vec());
            if shared.manners.sends_tokens && !answer.token.is_empty() {
                self.token.clone_from(&answer.token);
            }
        }
        self.rest();
    }

    /// Sends what stands in the connection's request; any success is an answer. The connection is
    /// dropped when it cannot be used again.
    async fn exchange(&mut self, by: Instant) -> Result<Instant, Failure> {
        let Some(connection) = &mut self.connection else { return Err(Failure::Lost) };
        let outcome = match self.limit.within(by, connection.exchange()).await {
            None => Err(Failure::Timeout),
            Some(Err(Broken::Lost(_))) => Err(Failure::Lost),
            Some(Err(Broken::Protocol)) => Err(Failure::Protocol),
            Some(Ok(())) => match connection.answer.status {
                200..=299 => Ok(self.shared.runtime.now()),
                status => Err(Failure::Status(status)),
            },
        };
        match outcome {
            Err(Failure::Status(_)) => self.rest(),
            Err(_) => self.connection = None,
            Ok(_) => {}
        }
        outcome
    }

    /// Lets go of a connection that the server wants closed.
    fn rest(&mut self) {
        if self.connection.as_ref().is_some_and(Connection::closes) {
            self.connection = None;
        }
    }
}

/// The connection, made now when there is none.
async fn open<'c, C: Connect>(
    connection: &'c mut Option<Connection<C::Stream>>,
    limit: &mut Limit<'_>,
    shared: &Shared<'_, C>,
    by: Instant,
) -> Result<&'c mut Connection<C::Stream>, Failure> {
    if connection.is_none() {
        let stream = match limit.within(by, shared.connect.connect()).await {
            None => return Err(Failure::Timeout),
            Some(Err(_)) => return Err(Failure::Refused),
            Some(Ok(stream)) => stream,
        };
        *connection = Some(Connection::new(stream));
    }
    connection.as_mut().ok_or(Failure::Refused)
}

impl<C> Shared<'_, C> {
    /// A new write of this worker.
    fn name(&self, key: u32) -> Named {
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        Named { key, write: WriteId::new(self.writer, sequence) }
    }

    /// Counts where a read came from, and what it turned out to be.
    fn judged<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        connection: &Connection<S>,
        verdict: Verdict,
        words: impl FnOnce() -> String,
    ) {
        let mut tally = self.tally.borrow_mut();
        match connection.answer.origin.as_slice() {
            b"" => tally.origin(answer::origin(connection.body()).unwrap_or_default().as_bytes()),
            origin => tally.origin(origin),
        }
        tally.findings.add(verdict, words);
    }

    /// A moment, rounded down: nothing is called earlier than it was.
    fn moment_before(&self, when: Instant) -> Moment {
        micros(when.saturating_duration_since(self.epoch))
    }

    /// Now, rounded up: an acknowledgement is not called earlier than it was seen.
    fn moment_after(&self) -> Moment {
        self.moment_before(self.runtime.now()) + 1
    }
}

/// A wrong answer, in words.
pub(crate) fn words(verdict: Verdict, key: u32, value: Option<&str>) -> String {
    let key = keys::text(key);
    let shown = value.unwrap_or("nothing");
    let shown: String = shown.chars().take(60).collect();
    match verdict {
        Verdict::Right => format!("{key} showed {shown}"),
        Verdict::Stale(age) => {
            let age = Duration::from_micros(age);
            format!("{key} showed {shown}, superseded {age:?} before the read was sent")
        }
        Verdict::Missing(age) => {
            let age = Duration::from_micros(age);
            format!("{key} showed nothing, {age:?} after a write of it was acknowledged")
        }
        Verdict::Swapped => format!("{key} showed another key's value, {shown}"),
        Verdict::MadeUp => format!("{key} showed {shown}, which nobody wrote in this run"),
        Verdict::Lacking(count) => {
            format!(
                "the statement of {key} lost {count} transactions that were acknowledged before"
            )
        }
        Verdict::Surplus(count) => format!(
            "the statement of {key} made up {count} transactions: shown twice, or never posted"
        ),
    }
}

/// A deadline for each request without a timer for each: one timer is set anew only when it ends.
struct Limit<'a> {
    runtime: &'a Runtime,
    timer: Option<(Instant, Timer)>,
}

type Timer = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Limit<'_> {
    async fn within<T>(&mut self, by: Instant, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            loop {
                let (_, timer) = match &mut self.timer {
                    // A timer that ends later than this deadline would be too late.
                    Some(set) if set.0 <= by => set,
                    slot => slot.insert((by, self.runtime.sleep_until(by))),
                };
                match timer.as_mut().poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) if self.runtime.now() >= by => {
                        self.timer = None;
                        return Poll::Ready(None);
                    }
                    Poll::Ready(()) => self.timer = None,
                }
            }
        })
        .await
    }
}
