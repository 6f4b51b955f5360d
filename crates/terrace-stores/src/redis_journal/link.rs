//! The two connections: one that pipelines, one that blocks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{
    Cmd, ConnectionAddr, ErrorKind as Kind, RedisError, RedisResult, Script, ServerErrorKind, Value,
};
use terrace_core::{
    Backoff, Breaker, Deadline, Durability, Error, ErrorKind, Result, Runtime, Sequence, Trip,
};
use tokio::sync::Mutex;

use super::options::RedisJournalOptions;
use crate::journal::{self, SettingsLook};
use crate::redis::refusal::{Needs, Refusal};
use crate::redis::servers::Servers;

/// The consumer group of all flushers.
pub(super) const GROUP: &str = "flushers";
/// How many requests may wait for the driver before callers wait.
const PIPELINE: usize = 1024;
/// The pause between attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

const PROGRESS: &str = include_str!("lua/progress.lua");

/// The scripts, each one atomic step in the server.
pub(super) struct Scripts {
    pub(super) append: Script,
    pub(super) settle: Script,
    pub(super) progress: Script,
    pub(super) retry: Script,
    pub(super) bury: Script,
    pub(super) raise: Script,
    enter: Script,
}

/// What a call that was sent and not answered may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Nothing that counts, or nothing that a repeat would not do.
    Harmless,
    /// It may have appended.
    Appends,
}

pub(super) struct Link {
    pub(super) options: RedisJournalOptions,
    pub(super) runtime: Runtime,
    pub(super) address: String,
    pub(super) keys: [String; 5],
    pub(super) consumer: String,
    pub(super) scripts: Scripts,
    settings: SettingsLook,
    servers: Servers,
    main: Mutex<Place>,
    blocking: Mutex<Place>,
    /// Whether to connect again.
    pub(super) breaker: Breaker,
    connects: AtomicU64,
    closed: AtomicBool,
    /// The last sequence that any server of this journal was seen to have given out.
    furthest: AtomicU64,
    /// When entries of dead claimers were last looked for.
    pub(super) swept: Mutex<Option<Instant>>,
}

/// A connection, while there is one, and to whom it is.
type Place = Option<(MultiplexedConnection, ConnectionAddr)>;

impl Link {
    pub(super) fn new(options: RedisJournalOptions, runtime: Runtime) -> Result<Self> {
        options.check()?;
        let named = |name: &str| format!("{{{}}}:{name}", options.namespace);
        let servers = Servers::of(&options.url, &named("stream"))?;
        let with = |text: &str| Script::new(&format!("{PROGRESS}\n{text}"));
        Ok(Self {
            keys: ["stream", "meta", "dead", "order", "again"].map(named),
            consumer: format!("{:016x}", runtime.random()),
            scripts: Scripts {
                append: with(include_str!("lua/append.lua")),
                settle: with(include_str!("lua/settle.lua")),
                progress: with("return progress()"),
                retry: with(include_str!("lua/retry.lua")),
                bury: with(include_str!("lua/bury.lua")),
                raise: with(include_str!("lua/raise.lua")),
                enter: with(include_str!("lua/enter.lua")),
            },
            settings: SettingsLook::default(),
            address: servers.shown().to_owned(),
            servers,
            main: Mutex::default(),
            blocking: Mutex::default(),
            breaker: Breaker::new(Trip::InARow(1), Backoff::new(PAUSE, PAUSE), runtime.clone()),
            connects: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            furthest: AtomicU64::new(0),
            swept: Mutex::default(),
            options,
            runtime,
        })
    }

    pub(super) fn reconnects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed).saturating_sub(1)
    }

    pub(super) fn furthest(&self) -> Sequence {
        Sequence::new(self.furthest.load(Ordering::Relaxed))
    }

    pub(super) fn note(&self, last: Sequence) {
        self.furthest.fetch_max(last.get(), Ordering::Relaxed);
    }

    pub(super) fn durability(&self) -> Durability {
        self.settings.durability(self.runtime.now())
    }

    /// How accepted writes may be lost, and what to do.
    pub(super) fn loses(&self) -> Option<String> {
        self.settings.loses()
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        *self.main.lock().await = None;
        // The blocking one is held while it waits; it ends with its wait.
        if let Ok(mut blocking) = self.blocking.try_lock() {
            *blocking = None;
        }
    }

    /// The connection that pipelines.
    pub(super) async fn connection(&self) -> Result<MultiplexedConnection> {
        let mut place = self.main.lock().await;
        if let Some((live, _)) = &*place {
            return Ok(live.clone());
        }
        let live = self.connect(&mut place).await?;
        self.prepare(&live).await.inspect_err(|_| *place = None)?;
        Ok(live)
    }

    async fn connect(&self, place: &mut Place) -> Result<MultiplexedConnection> {
        if self.closed.load(Ordering::Acquire) {
            return Err(journal::closed());
        }
        let pass = self.breaker.admit().ok_or_else(unreachable)?;
        let deadline = Deadline::at(self.runtime.now() + self.options.connect_timeout);
        let work = self.servers.connect(&self.runtime, PIPELINE);
        match self.runtime.within(deadline, work).await {
            Some(Ok((live, address))) => {
                pass.succeeded();
                *place = Some((live.clone(), address));
                Ok(live)
            }
            failed => {
                pass.failed();
                let lost = failed.and_then(Result::err).map_or(Lost::Silent, Lost::Said);
                Err(self.failed(lost, Sent::Harmless))
            }
        }
    }

    /// Makes the group where it is missing, and learns what an append is worth.
    async fn prepare(&self, live: &MultiplexedConnection) -> Result<()> {
        let mut live = live.clone();
        self.make_group(&mut live).await?;
        self.enter(&mut live).await?;
        self.learn_settings(&mut live).await?;
        self.connects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn make_group(&self, live: &mut MultiplexedConnection) -> Result<()> {
        let mut make = redis::cmd("XGROUP");
        make.arg("CREATE").arg(&self.keys[0]).arg(GROUP).arg("0").arg("MKSTREAM");
        match self.timed(make.query_async::<Value>(live)).await {
            Err(Lost::Said(error)) if error.code() == Some("BUSYGROUP") => Ok(()),
            // Where it is missing, the next claim makes it; what waits can be read, and settled.
            Err(lost) if lost.refusal().is_some_and(Refusal::is_of_writes) => Ok(()),
            Err(lost) => Err(self.failed(lost, Sent::Harmless)),
            Ok(_) => Ok(()),
        }
    }

    /// Makes sure that the journal is of this server process and of the memory that it has now.
    async fn enter(&self, live: &mut MultiplexedConnection) -> Result<()> {
        let mut ask = redis::cmd("INFO");
        ask.arg("server").arg("replication");
        let info = match self.timed(ask.query_async::<String>(live)).await {
            Ok(info) => info,
            Err(lost) => return Err(self.failed(lost, Sent::Harmless)),
        };
        let of = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().trim()
        };
        let mut enter = self.scripts.enter.prepare_invoke();
        for key in &self.keys {
            enter.key(key);
        }
        enter.arg(of("run_id")).arg(of("master_replid"));
        let entered = self.timed(enter.invoke_async::<u64>(live)).await;
        entered.map(drop).map_err(|lost| self.failed(lost, Sent::Harmless))
    }

    async fn learn_settings(&self, live: &mut MultiplexedConnection) -> Result<()> {
        let begun = self.runtime.now();
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("appendonly").arg("appendfsync").arg("no-appendfsync-on-rewrite");
        ask.arg("maxmemory").arg("maxmemory-policy");
        let mut evicts = false;
        let durability = match self.timed(ask.query_async::<Vec<String>>(live)).await {
            Ok(settings) => {
                evicts = self::evicts(&settings);
                // Whoever takes the place of a server may lack what that one has flushed.
                let keeps = is_flushed(&settings) && !self.servers.may_fail_over();
                if keeps { Durability::Journaled } else { Durability::Accepted }
            }
            // Not every user may ask.
            Err(lost) if lost.refusal() == Some(Refusal::Command) => Durability::Accepted,
            Err(lost) => return Err(self.failed(lost, Sent::Harmless)),
        };
        let loses = "the journal's Redis may evict accepted writes when its memory is full; give the \
                     journal a Redis of its own (JOURNAL_URL), or set its maxmemory-policy to noeviction";
        self.settings.note(begun, durability, evicts.then(|| loses.to_owned()));
        Ok(())
    }

    /// Asks anew how Redis is set up, where the last look is older than half the time that it counts.
    pub(super) async fn keep_looking(&self) {
        if self.settings.is_due(self.runtime.now())
            && let Err(error) = self.look_at_settings().await
        {
            tracing::debug!(%error, "Redis does not say how it is set up");
        }
    }

    /// Asks how Redis is set up.
    pub(super) async fn look_at_settings(&self) -> Result<()> {
        self.leave_with_others(&mut *self.main.lock().await).await;
        let mut live = self.connection().await?;
        let learned = match self.enter(&mut live).await {
            Ok(()) => self.learn_settings(&mut live).await,
            failed => failed,
        };
        if learned.is_err() {
            self.lose().await;
        }
        learned
    }

    /// Runs a script, and loads it first when the server does not know it.
    pub(super) async fn call(&self, script: &Script, arguments: &Cmd, sent: Sent) -> Result<Value> {
        let mut live = self.connection().await?;
        let mut loaded = false;
        loop {
            let work = async {
                let answer = live.send_packed_command(arguments).await;
                answer.and_then(Value::extract_error)
            };
            match self.timed(work).await {
                Ok(answer) => return Ok(answer),
                Err(Lost::Said(error)) if is_unknown_script(&error) && !loaded => {
                    loaded = true;
                    let load = script.load_async(&mut live);
                    self.timed(load).await.map_err(|lost| self.failed(lost, Sent::Harmless))?;
                }
                Err(lost) => {
                    if lost.ends_connection() {
                        self.lose().await;
                    }
                    return Err(self.failed(lost, sent));
                }
            }
        }
    }

    /// Gives a connection up whose server others have left, though it answers: one that is cut off from those
    /// who decide goes on for a while.
    async fn leave_with_others(&self, place: &mut Place) {
        if let Some((_, address)) = &*place
            && self.servers.have_left(&self.runtime, address).await
        {
            *place = None;
        }
    }

    /// Gives the connection up; the next call connects.
    async fn lose(&self) {
        *self.main.lock().await = None;
    }

    /// Runs a command that may block on the connection for those.
    pub(super) async fn block(&self, command: &Cmd, patience: Duration) -> Result<Value> {
        let mut place = self.blocking.lock().await;
        self.leave_with_others(&mut place).await;
        let mut live = match &*place {
            Some((live, _)) => live.clone(),
            None => self.connect(&mut place).await?,
        };
        let deadline = Deadline::at(self.runtime.now() + patience + self.options.command_timeout);
        let answer = self.runtime.within(deadline, command.query_async(&mut live)).await;
        let lost = match answer {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) if error.code() == Some("NOGROUP") => {
                // The journal was lost, or flushed by hand.
                self.make_group(&mut live).await?;
                return Ok(Value::Nil);
            }
            Some(Err(error)) => Lost::Said(error),
            None => Lost::Silent,
        };
        if lost.ends_connection() {
            *place = None;
        }
        Err(self.failed(lost, Sent::Harmless))
    }

    async fn timed<T>(&self, work: impl Future<Output = RedisResult<T>>) -> Result<T, Lost> {
        let deadline = Deadline::at(self.runtime.now() + self.options.command_timeout);
        match self.runtime.within(deadline, work).await {
            Some(answer) => answer.map_err(Lost::Said),
            None => Err(Lost::Silent),
        }
    }

    /// The error for a call without an answer.
    fn failed(&self, lost: Lost, sent: Sent) -> Error {
        let error = match (lost.refusal(), sent) {
            // What the server refused it has not done: each script writes its first key last or first
            // of all, and a refusal comes with the first write.
            (Some(refusal), _) => self.refused(refusal),
            (None, Sent::Appends) => journal::outcome_unknown(),
            (None, Sent::Harmless) => unreachable(),
        };
        match lost {
            Lost::Said(cause) => error.caused_by(cause),
            Lost::Silent => error,
        }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        const COMMANDS: &str = "EVALSHA, SCRIPT, INFO, CONFIG|GET, TIME, GET, SET, HGET, HSET, HMGET, \
                                HDEL, HEXISTS, HINCRBY, ZADD, ZREM, ZRANGE, ZCARD and all of @stream";
        let keys = format!("{{{}}}:*", self.options.namespace);
        let says = refusal.says(Needs { keys: &keys, channel: "", commands: COMMANDS });
        let message = format!("the journal's Redis {says}; nothing was changed");
        Error::new(ErrorKind::Unavailable, message)
    }
}

/// Why a call has no answer.
#[derive(Debug)]
enum Lost {
    Said(RedisError),
    Silent,
}

impl Lost {
    /// Nothing where the server has not said a word.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Said(error) => Refusal::of(error),
            Self::Silent => None,
        }
    }

    /// One that was refused for what is asked is as good as before; another server, or another memory
    /// of it, may be the right one.
    fn ends_connection(&self) -> bool {
        use Refusal::{Cluster, Credentials, Distrusted, Loading, Replica};
        matches!(
            self.refusal(),
            None | Some(
                Cluster | Credentials | Distrusted(_) | Loading | Refusal::Lost(_) | Replica
            )
        )
    }
}

fn unreachable() -> Error {
    let message = "the journal cannot be reached, and nothing was changed; try again";
    Error::new(ErrorKind::Unavailable, message)
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == Kind::Server(ServerErrorKind::NoScript)
}

/// Whether these settings flush each append before its answer, and keep it.
fn is_flushed(settings: &[String]) -> bool {
    let is = |name: &str, wanted: &str| {
        settings.chunks_exact(2).any(|pair| pair[0] == name && pair[1] == wanted)
    };
    is("appendonly", "yes")
        && is("appendfsync", "always")
        && is("no-appendfsync-on-rewrite", "no")
        && (is("maxmemory", "0") || is("maxmemory-policy", "noeviction"))
}

/// Whether a full memory makes room of what was accepted.
fn evicts(settings: &[String]) -> bool {
    let is_other = |name: &str, than: &str| {
        settings.chunks_exact(2).any(|pair| pair[0] == name && pair[1] != than)
    };
    is_other("maxmemory", "0") && is_other("maxmemory-policy", "noeviction")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_durability_is_claimed_than_the_settings_give() {
        let settings = |changes: &[(&str, &str)]| {
            let mut all = vec![
                ("appendonly", "yes"),
                ("appendfsync", "always"),
                ("no-appendfsync-on-rewrite", "no"),
                ("maxmemory", "0"),
                ("maxmemory-policy", "noeviction"),
            ];
            for (name, value) in changes {
                all.retain(|(known, _)| known != name);
                all.push((name, value));
            }
            let pairs = all.iter().flat_map(|(name, value)| [name.to_string(), value.to_string()]);
            is_flushed(&pairs.collect::<Vec<_>>())
        };
        assert!(settings(&[]));
        assert!(settings(&[("maxmemory-policy", "allkeys-lru")]), "without a limit none evicts");
        assert!(settings(&[("maxmemory", "100")]));
        for (name, value) in [
            ("appendonly", "no"),
            ("appendfsync", "everysec"),
            ("appendfsync", "no"),
            ("no-appendfsync-on-rewrite", "yes"),
        ] {
            assert!(!settings(&[(name, value)]), "{name} {value}");
        }
        assert!(!settings(&[("maxmemory", "100"), ("maxmemory-policy", "allkeys-lru")]));
        assert!(!is_flushed(&[]));
    }
}
