//! The one connection: made in the background, trusted after the check of the epoch, given up at
//! the first sign of trouble.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redis::aio::MultiplexedConnection;
use redis::{ConnectionAddr, RedisResult};
use terrace_core::{Backoff, Deadline, Lease, Result, Runtime};
use tokio::sync::{Notify, watch};

use super::clock::{ServerClock, millis};
use super::entry::{epoch_digits, parse_epoch};
use super::failure::Down;
use super::names::Names;
use super::options::RedisCacheOptions;
use super::refusal::Refusal;
use super::scripts::{Scripts, call, call_of};
use super::servers::Servers;

/// How many requests may wait for the driver before callers wait; its default of 50 makes them wait
/// for each other at a few thousand requests a second.
const PIPELINE: usize = 4096;
/// How many ended epochs an instance remembers.
const ENDED: usize = 16;

/// A connection whose server's memory has been checked.
pub(super) struct Live {
    pub(super) connection: MultiplexedConnection,
    address: ConnectionAddr,
    /// Names the server's process, and the memory that it has from itself or from another server.
    pub(super) run_id: String,
    pub(super) clock: ServerClock,
    /// The latest message whose number was seen, and its epoch.
    message: Mutex<(Vec<u8>, u64)>,
    /// Since when its memory is whole, by its clock, in ms.
    pub(super) born: AtomicU64,
}

impl Live {
    /// Notes the number of a message.
    pub(super) fn note(&self, epoch: Vec<u8>, number: &[u8]) {
        let number = parse_number(number);
        let mut known = self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != epoch || known.1 < number {
            *known = (epoch, number);
        }
    }

    fn noted(&self) -> (Vec<u8>, u64) {
        self.message.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn parse_number(digits: &[u8]) -> u64 {
    std::str::from_utf8(digits).ok().and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// What the server says of itself and of its replication.
async fn info(connection: &mut MultiplexedConnection) -> RedisResult<String> {
    redis::cmd("INFO").arg("server").arg("replication").query_async(connection).await
}

/// The process, and the history of its memory: a server that was made a replica has another one.
fn identity(info: &str) -> Option<String> {
    let memory = field(info, "master_replid").unwrap_or_default();
    Some(format!("{}/{memory}", field(info, "run_id")?))
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("run_id", &self.run_id).finish_non_exhaustive()
    }
}

/// Holds the live connection, if there is one.
#[derive(Debug)]
pub(super) struct Link {
    servers: Servers,
    names: Names,
    options: RedisCacheOptions,
    pub(super) scripts: Scripts,
    pub(super) runtime: Runtime,
    live: RwLock<Option<Arc<Live>>>,
    down: watch::Sender<Option<Down>>,
    lost: Notify,
    /// The epochs that this instance saw end, latest last, and the one in force.
    epochs: Mutex<VecDeque<Lease>>,
    /// The run id of the process that this instance was connected to last; empty when what that
    /// process remembers is in doubt.
    previous: Mutex<Option<String>>,
    connects: AtomicU64,
    losses: AtomicU64,
}

impl Link {
    pub(super) fn new(
        servers: Servers,
        names: Names,
        options: RedisCacheOptions,
        runtime: Runtime,
    ) -> Self {
        Self {
            servers,
            names,
            scripts: Scripts::of(&options),
            options,
            runtime,
            live: RwLock::new(None),
            down: watch::Sender::new(Some(Down::Starting)),
            lost: Notify::new(),
            epochs: Mutex::new(VecDeque::new()),
            previous: Mutex::new(None),
            connects: AtomicU64::new(0),
            losses: AtomicU64::new(0),
        }
    }

    /// The live connection.
    ///
    /// # Errors
    /// `Unavailable` at once when there is none.
    pub(super) fn live(&self) -> Result<Arc<Live>> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).clone();
        live.ok_or_else(|| self.down().unwrap_or(Down::Unreachable).error())
    }

    /// Why there is no live connection, unless there is one.
    pub(super) fn down(&self) -> Option<Down> {
        *self.down.borrow()
    }

    /// How often a live connection was given up.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Relaxed)
    }

    /// How often a connection became live again after the first time.
    pub(super) fn reconnects(&self) -> u64 {
        self.connects.load(Relaxed).saturating_sub(1)
    }

    /// Returns when the first attempt to connect has ended, well or not.
    pub(super) async fn tried(&self) {
        let mut state = self.down.subscribe();
        // The sender lives as long as this borrow of it.
        let _ = state.wait_for(|down| *down != Some(Down::Starting)).await;
    }

    /// What `work` on this connection answers, within the time of one command. Errors of the
    /// connection, and silence, take it out for everybody.
    pub(super) async fn ask<T>(
        &self,
        live: &Arc<Live>,
        work: impl Future<Output = RedisResult<T>>,
    ) -> Result<T> {
        let deadline = Deadline::at(self.runtime.now() + self.options.command_timeout);
        match self.runtime.within(deadline, work).await {
            // What the server of a lost connection still answers proves nothing: an epoch may have
            // begun since at the one that took its place.
            Some(Ok(answer)) if self.is_current(live) => Ok(answer),
            Some(Ok(_)) => Err(self.down().unwrap_or(Down::Unreachable).error()),
            Some(Err(error)) => {
                let down = Down::of(&error);
                if down.ends_connection() {
                    self.lose(live, down);
                }
                Err(down.error().caused_by(error))
            }
            None => {
                self.lose(live, Down::Silent);
                Err(Down::Silent.error())
            }
        }
    }

    fn is_current(&self, live: &Arc<Live>) -> bool {
        let place = self.live.read().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().is_some_and(|current| Arc::ptr_eq(current, live))
    }

    /// Takes a connection out whose server others have left, though it answers: one that is cut off from those
    /// who decide goes on for a while.
    pub(super) async fn leave_with_others(&self, live: &Arc<Live>) {
        if self.servers.have_left(&self.runtime, &live.address).await {
            self.lose(live, Down::Replaced);
        }
    }

    /// Returns once there is no live connection, where another server may take the place of this one;
    /// elsewhere when the cache is closed.
    pub(super) async fn gone(&self) {
        let mut state = self.down.subscribe();
        let _ = state
            .wait_for(|down| match down {
                Some(Down::Closed) => true,
                down => down.is_some() && self.servers.may_fail_over(),
            })
            .await;
    }

    /// Takes a connection out, unless another took its place already, and begins to reconnect.
    pub(super) fn lose(&self, live: &Arc<Live>, down: Down) {
        let mut place = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if place.as_ref().is_some_and(|current| Arc::ptr_eq(current, live)) {
            *place = None;
            self.losses.fetch_add(1, Relaxed);
            self.down.send_replace(Some(down));
            if down.leaves_doubt() {
                *self.previous() = Some(String::new());
            }
            drop(place);
            tracing::debug!(state = down.note(&self.names), "the cache in Redis was lost");
            self.lost.notify_one();
        }
    }

    /// Takes the connection out for good.
    pub(super) fn close(&self) {
        let mut place = self.live.write().unwrap_or_else(PoisonError::into_inner);
        *place = None;
        self.down.send_replace(Some(Down::Closed));
    }

    /// Keeps a connection live for as long as it is polled.
    pub(super) async fn keep(&self) -> Result<()> {
        let mut backoff = Backoff::new(self.options.backoff, self.options.backoff_limit);
        loop {
            match self.connect().await {
                Ok(live) => {
                    let since = self.runtime.now();
                    self.install(live);
                    self.lost.notified().await;
                    // A server that is lost as soon as it is found gets ever longer pauses, too.
                    if self.runtime.now() - since > self.options.backoff_limit {
                        backoff.reset();
                    }
                }
                Err(down) => {
                    if self.down.send_replace(Some(down)) != Some(down) {
                        let state = down.note(&self.names);
                        tracing::warn!(state, "the cache in Redis is not available");
                    }
                }
            }
            backoff.wait(&self.runtime).await;
        }
    }

    fn install(&self, live: Live) {
        let mut place = self.live.write().unwrap_or_else(PoisonError::into_inner);
        if self.down() == Some(Down::Closed) {
            return;
        }
        *self.previous() = Some(live.run_id.clone());
        *place = Some(Arc::new(live));
        self.connects.fetch_add(1, Relaxed);
        self.down.send_replace(None);
        tracing::debug!("the cache in Redis is connected");
    }

    async fn connect(&self) -> std::result::Result<Live, Down> {
        let deadline = Deadline::at(self.runtime.now() + self.options.connect_timeout);
        let attempt = self.runtime.within(deadline, self.connect_and_check()).await;
        attempt.unwrap_or(Err(Down::Silent))
    }

    async fn connect_and_check(&self) -> std::result::Result<Live, Down> {
        let connected = self.servers.connect(&self.runtime, PIPELINE).await;
        let (mut connection, address) = connected.map_err(|error| Down::of(&error))?;
        let info = info(&mut connection).await.map_err(|error| Down::of(&error))?;
        if field(&info, "redis_version").is_some_and(is_too_old) {
            return Err(Down::TooOld);
        }
        let run_id = identity(&info).ok_or(Down::Refused(Refusal::Other))?;
        let run_id = self.identity(&run_id).to_owned();
        self.scripts.load(&mut connection).await.map_err(|error| Down::of(&error))?;
        let (clock, born) = (ServerClock::default(), AtomicU64::new(u64::MAX));
        let live = Live { connection, address, run_id, clock, message: Mutex::default(), born };
        // Others may have begun an epoch in this process, and filled it, while this instance still
        // told the previous one of its writes.
        let anew = self.previous().as_ref().is_some_and(|previous| *previous != live.run_id);
        self.check_epoch(&live, anew).await.map_err(|error| Down::of(&error))?;
        // Its user must be allowed what others rely on.
        let channel = if self.options.announce { self.names.channel.as_str() } else { "" };
        self.beat(&live, channel).await.map_err(|error| Down::of(&error))?;
        Ok(live)
    }

    /// Writes something, learns the server's time, publishes the number of the latest message if there
    /// is a channel, and finds out whether the server has older memory by now.
    pub(super) async fn beat(&self, live: &Live, channel: &str) -> RedisResult<()> {
        let script = &self.scripts.heartbeat;
        let mut command = call_of(script, 3);
        command.arg(&self.names.epoch).arg(&self.names.number).arg(&self.names.beat);
        command.arg(channel).arg(millis(self.options.heartbeat.saturating_mul(4)));
        // Answers of others that came later may be known before this one.
        let (asked, noted) = (self.runtime.now(), live.noted());
        let (mut beats, mut asks) = (live.connection.clone(), live.connection.clone());
        let both =
            futures_util::future::try_join(call(&mut beats, script, &command), info(&mut asks));
        let (answer, info) = both.await?;
        let (time, epoch, number): (u64, Vec<u8>, Vec<u8>) = redis::from_redis_value(answer)?;
        live.clock.learn(asked, self.runtime.now(), time);
        let is_same = identity(&info).is_some_and(|found| *self.identity(&found) == *live.run_id);
        live.note(epoch.clone(), &number);
        // Numbers only grow within an epoch.
        let goes_back = noted.0 == epoch && parse_number(&number) < noted.1;
        if !is_same || goes_back {
            return Err((redis::ErrorKind::Client, "the server's memory was replaced").into());
        }
        Ok(())
    }

    /// Makes sure that there is an epoch that began in this process of the server, `anew` if it has
    /// to begin now, and answers it.
    pub(super) async fn check_epoch(&self, live: &Live, anew: bool) -> RedisResult<Lease> {
        let script = &self.scripts.epoch;
        let mut connection = live.connection.clone();
        let mut command = call_of(script, 1);
        command.arg(&self.names.epoch).arg(&live.run_id);
        command.arg(epoch_digits(Lease(self.runtime.random()))).arg(self.ended_epochs());
        command.arg(u8::from(anew));
        let asked = self.runtime.now();
        let (epoch, time, born): (Vec<u8>, u64, u64) =
            redis::from_redis_value(call(&mut connection, script, &command).await?)?;
        let epoch = parse_epoch(&epoch)
            .ok_or((redis::ErrorKind::UnexpectedReturnType, "the epoch is malformed"))?;
        live.clock.learn(asked, self.runtime.now(), time);
        live.born.store(born, Relaxed);
        self.remember(epoch);
        Ok(epoch)
    }

    /// Notes the epoch in force. One that came before must not come back: the memory would be that
    /// of a server that others had left.
    pub(super) fn remember(&self, epoch: Lease) {
        let mut epochs = self.epochs();
        if !epochs.contains(&epoch) {
            epochs.push_back(epoch);
            if epochs.len() > ENDED {
                epochs.pop_front();
            }
        }
    }

    /// The epoch in force, as it was seen last.
    pub(super) fn epoch(&self) -> Option<Lease> {
        self.epochs().back().copied()
    }

    fn ended_epochs(&self) -> String {
        let epochs = self.epochs();
        let ended = epochs.iter().take(epochs.len().saturating_sub(1));
        ended.map(|epoch| epoch_digits(*epoch)).collect::<Vec<_>>().join(" ")
    }

    fn previous(&self) -> MutexGuard<'_, Option<String>> {
        self.previous.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn epochs(&self) -> MutexGuard<'_, VecDeque<Lease>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(not(feature = "mutants"))]
    fn identity<'a>(&self, run_id: &'a str) -> &'a str {
        run_id
    }

    #[cfg(feature = "mutants")]
    fn identity<'a>(&self, run_id: &'a str) -> &'a str {
        match self.options.mutant {
            Some(super::mutants::Mutant::TrustsAnyMemory) => "",
            _ => run_id,
        }
    }

    /// A pub/sub connection of its own.
    pub(super) async fn listen(
        &self,
        channel: &str,
    ) -> std::result::Result<redis::aio::PubSub, Down> {
        let work = async {
            let mut listener = self.servers.listen(&self.runtime).await?;
            listener.subscribe(channel).await?;
            Ok(listener)
        };
        let deadline = Deadline::at(self.runtime.now() + self.options.connect_timeout);
        let attempt = self.runtime.within(deadline, work).await;
        attempt
            .unwrap_or_else(|| Err(timed_out()))
            .map_err(|error: redis::RedisError| Down::of(&error))
    }
}

fn timed_out() -> redis::RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Scripts with flags came with Redis 7.
fn is_too_old(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_some_and(|major| major < 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_info_are_found() {
        let info = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n";
        assert_eq!(field(info, "run_id"), Some("abc"));
        assert_eq!(field(info, "run"), None);
        assert_eq!(identity("run_id:a\r\nmaster_replid:b\r\n").as_deref(), Some("a/b"));
        assert_eq!(identity("master_replid:b\r\n"), None);
        assert!(!is_too_old("7.0.15"));
        assert!(is_too_old("6.2.1"));
    }
}
