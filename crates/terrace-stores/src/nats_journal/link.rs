//! The connection, the streams, and what their messages look like.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use async_nats::connection::State as Connected;
use async_nats::jetstream::{self, message::Acker};
use async_nats::{Client, ConnectOptions, ServerAddr};
use terrace_core::{Deadline, Durability, Error, ErrorKind, Result, Runtime, Sequence};
use tokio::sync::{Mutex, OnceCell};

use super::NatsJournalOptions;
use super::streams::Streams;
use crate::journal::{SettingsLook, closed};

/// The one consumer, of all flushers.
pub(super) const CONSUMER: &str = "flushers";

pub(super) struct Link {
    pub(super) options: NatsJournalOptions,
    pub(super) runtime: Runtime,
    pub(super) client: Client,
    pub(super) context: jetstream::Context,
    pub(super) streams: OnceCell<Streams>,
    /// The end of the stream as it was seen last; held while something is appended.
    pub(super) end: Mutex<Option<End>>,
    /// Below it this process gives nothing out.
    pub(super) lowest: AtomicU64,
    /// The number of the last message, and since when this process has known it.
    pub(super) newest: std::sync::Mutex<(u64, Instant)>,
    /// The number of the first message and of the last delivery, and since when they are so.
    standing: std::sync::Mutex<((u64, u64), Instant)>,
    /// Entries that this process has claimed.
    pub(super) claimed: std::sync::Mutex<HashMap<Sequence, Claimed>>,
    pub(super) held_writes: AtomicU64,
    pub(super) held_bytes: AtomicU64,
    settings: SettingsLook,
    closed: AtomicBool,
}

/// The end of the stream of entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) epoch: u64,
    /// The stream's own number of its last message.
    pub(super) number: u64,
    pub(super) last: Sequence,
}

/// What it takes to settle an entry.
pub(super) struct Claimed {
    /// Of the stream: in a later one of the same name its number is another entry's.
    pub(super) epoch: u64,
    pub(super) acker: Acker,
    /// Key and digest of its request, if it has one.
    pub(super) request: Option<(String, String)>,
}

impl Link {
    pub(super) async fn connect(options: NatsJournalOptions, runtime: Runtime) -> Result<Self> {
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if !(1..=64).contains(&options.namespace.len()) || !options.namespace.bytes().all(named) {
            return Err(Error::invalid(
                "the journal's namespace must have 1 to 64 letters, digits, - or _",
            ));
        }
        let (connect, servers) = connection(&options)?;
        let client = connect.connect(servers).await.map_err(|_| malformed())?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(options.command_timeout);
        let newest = std::sync::Mutex::new((0, runtime.now()));
        let standing = std::sync::Mutex::new(((0, 0), runtime.now()));
        Ok(Self {
            options,
            runtime,
            newest,
            standing,
            client,
            context,
            streams: OnceCell::new(),
            end: Mutex::default(),
            lowest: AtomicU64::new(0),
            claimed: std::sync::Mutex::default(),
            held_writes: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
            settings: SettingsLook::default(),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Fails at once where the driver would wait for a connection.
    pub(super) fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        match self.client.connection_state() {
            Connected::Connected => Ok(()),
            _ => Err(unreachable()),
        }
    }

    /// The streams, made where they are missing.
    pub(super) async fn streams(&self) -> Result<&Streams> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let make = Box::pin(self.streams.get_or_try_init(|| self.make()));
        self.timed(make).await?
    }

    /// Nothing is ready, and yet something waits. A server that was killed may bring back messages that
    /// were settled, where its consumer has passed: nobody would get them again. A consumer that begins
    /// anew delivers them, and the rows tell that they have come as far. So does one that says that it
    /// delivers, and has delivered nothing for three takeovers.
    pub(super) async fn deliver_again(&self) -> Result<()> {
        let Streams { entries, consumer, .. } = self.streams().await?;
        let state = self.timed(entries.get_info()).await?.map_err(failed)?.state;
        // One that is gone is made again.
        if let Ok(passed) = self.timed(consumer.get_info()).await? {
            let comes = passed.num_pending > 0 || passed.num_ack_pending > 0;
            let floor = passed.ack_floor.stream_sequence;
            let is_right = comes || state.messages == 0 || state.first_sequence > floor;
            let now = (state.first_sequence, passed.delivered.consumer_sequence);
            if is_right && (state.messages == 0 || !self.stands_still(now)) {
                return Ok(());
            }
        }
        tracing::warn!(
            messages = state.messages,
            "NATS does not deliver messages of the journal that are there, as after a crash: they are \
             delivered anew, and what was applied stays as it is"
        );
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) =
            ((0, 0), self.runtime.now());
        // Another instance may have been faster.
        let _gone = self.timed(entries.delete_consumer(CONSUMER)).await?;
        self.timed(entries.create_consumer(self.consumer())).await?.map_err(failed)?;
        Ok(())
    }

    /// Whether the first message and the last delivery are those of three takeovers ago.
    fn stands_still(&self, found: (u64, u64)) -> bool {
        let now = self.runtime.now();
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        if standing.0 != found {
            *standing = (found, now);
        }
        now.saturating_duration_since(standing.1) > self.options.takeover * 3
    }

    /// How safe an append is, asked anew. What somebody has removed is made again.
    pub(super) async fn look(&self) -> Result<Durability> {
        self.check()?;
        let begun = self.runtime.now();
        let made = Box::pin(self.make());
        let made = self.timed(made).await??;
        let durability = match made.entries.cached_info().config.num_replicas {
            0..3 => Durability::Accepted,
            _ => Durability::Journaled,
        };
        self.settings.note(begun, durability, self.loses(&made));
        Ok(durability)
    }

    /// Makes sure that nothing is accepted that the streams would lose.
    ///
    /// # Errors
    /// `Unavailable`, which tells the settings.
    pub(super) fn check_settings(&self) -> Result<()> {
        match self.settings.loses() {
            Some(loses) => Err(Error::new(ErrorKind::Unavailable, loses)),
            None => Ok(()),
        }
    }

    /// Looks before an append, unless a look counts.
    pub(super) async fn have_looked(&self) -> Result<()> {
        if !self.settings.counts(self.runtime.now()) {
            self.look().await?;
        }
        self.check_settings()
    }

    /// Asks again, where the last look is older than half the time that it counts.
    pub(super) async fn keep_looking(&self) {
        if self.settings.is_due(self.runtime.now())
            && let Err(error) = self.look().await
        {
            tracing::debug!(%error, "NATS does not say how its streams are set up");
        }
    }

    pub(super) fn durability(&self) -> Durability {
        self.settings.durability(self.runtime.now())
    }

    /// What the work answers within the time of one call.
    pub(super) async fn timed<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let deadline = Deadline::at(self.runtime.now() + self.options.command_timeout);
        self.runtime.within(deadline, work).await.ok_or_else(unreachable)
    }

    pub(super) fn claimed(&self) -> std::sync::MutexGuard<'_, HashMap<Sequence, Claimed>> {
        // Every change of the map is complete when a panic could happen, so poison means nothing.
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The subject of an entry with so many writes.
    pub(super) fn entry_subject(&self, writes: u64) -> String {
        format!("{}.w.{writes}", self.options.namespace)
    }

    /// The subject of a dead letter that is tried again.
    pub(super) fn again_subject(&self, sequence: Sequence) -> String {
        format!("{}.again.{}", self.options.namespace, sequence.get())
    }

    pub(super) fn floor_subject(&self) -> String {
        format!("{}_kept.floor", self.options.namespace)
    }

    pub(super) fn dead_subject(&self, sequence: Sequence) -> String {
        format!("{}_kept.dead.{:020}", self.options.namespace, sequence.get())
    }

    pub(super) fn request_subject(&self, key: &str) -> String {
        let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("{}_requests.{hex}", self.options.namespace)
    }
}

/// How to connect, and where to. The driver leaves the credentials in an address alone.
fn connection(options: &NatsJournalOptions) -> Result<(ConnectOptions, Vec<ServerAddr>)> {
    let servers = options.url.split(',').map(str::parse::<ServerAddr>);
    let servers = servers.collect::<Result<Vec<_>, _>>().map_err(|_| malformed())?;
    let connect = ConnectOptions::new()
        .retry_on_initial_connect()
        .request_timeout(Some(options.command_timeout));
    let named = servers.iter().find_map(|server| {
        Some((server.username()?.to_owned(), server.password().unwrap_or_default().to_owned()))
    });
    Ok(match named {
        Some((user, password)) => (connect.user_and_password(user, password), servers),
        None => (connect, servers),
    })
}

/// The driver's error may repeat a part of the URL, and a URL holds a password.
fn malformed() -> Error {
    Error::invalid("the journal's URL cannot be used; write nats://[user:password@]host[:port]")
}

/// How many writes an entry with this subject has.
pub(super) fn writes_of(subject: &str) -> u64 {
    let mut words = subject.rsplit('.');
    match (words.next(), words.next()) {
        (Some(count), Some("w")) => count.parse().unwrap_or(1),
        _ => 1,
    }
}

pub(super) fn unreachable() -> Error {
    let message = "the journal cannot be reached, and nothing was changed; try again";
    Error::new(ErrorKind::Unavailable, message)
}

pub(super) fn failed(error: impl StdError + Send + Sync + 'static) -> Error {
    unreachable().caused_by(error)
}
