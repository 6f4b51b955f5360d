//! The counter of permits that all instances share.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue as _, RedisResult, Script};
use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Permits, Quotas, Result, Runtime, Taken, Wanted,
};
use tokio::sync::Mutex;

use super::refusal::{Needs, Refusal};
use super::scripts::{call, call_of};
use super::servers::Servers;

/// How many requests may wait for the driver before callers wait.
const PIPELINE: usize = 1024;

/// How to count permits in Redis.
#[derive(Clone)]
pub struct RedisPermitsOptions {
    /// As [`RedisCacheOptions::url`](super::RedisCacheOptions::url).
    pub url: String,
    /// What the keys begin with. Instances that share limits have the same.
    pub namespace: String,
    /// Redis answers within this time or is taken for down. Default: 250 ms.
    pub command_timeout: Duration,
}

impl RedisPermitsOptions {
    /// The defaults for this server and namespace.
    pub fn new(url: impl Into<String>, namespace: impl Into<String>) -> Self {
        let command_timeout = Duration::from_millis(250);
        Self { url: url.into(), namespace: namespace.into(), command_timeout }
    }
}

impl fmt::Debug for RedisPermitsOptions {
    /// Without the URL, which holds the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPermitsOptions")
            .field("namespace", &self.namespace)
            .field("command_timeout", &self.command_timeout)
            .finish_non_exhaustive()
    }
}

/// Permits in Redis: a hash for each client and window, `namespace:limit:slot:{client}`, with a field for each
/// slot that counts, 22 at most. A call is one script for all windows, on the clock of Redis. A hash goes by
/// itself when none of it counts any more.
///
/// A server that evicts keys, or loses its memory, forgets what clients have taken.
pub struct RedisPermits {
    servers: Servers,
    options: RedisPermitsOptions,
    runtime: Runtime,
    connection: Mutex<Connection>,
    script: Script,
}

/// The connection that calls share, and its number.
#[derive(Default)]
struct Connection {
    live: Option<MultiplexedConnection>,
    number: u64,
}

impl RedisPermits {
    /// A counter on this server; connects when it is first used.
    ///
    /// # Errors
    /// `InvalidInput` for a URL that cannot be used.
    pub fn new(options: RedisPermitsOptions, runtime: Runtime) -> Result<Self> {
        let servers = Servers::of(&options.url, &format!("{{{}:limit}}", options.namespace))?;
        let script = Script::new(include_str!("lua/take.lua"));
        Ok(Self { servers, options, runtime, connection: Mutex::default(), script })
    }

    async fn take_of(&self, name: &str, quotas: &Quotas, wanted: Wanted) -> Result<Taken> {
        let mut command = call_of(&self.script, quotas.all().len());
        let windows = quotas.all().iter().map(|quota| {
            (u64::try_from(quota.slot().as_micros()).unwrap_or(u64::MAX), quota.limit)
        });
        // Slots of another length have other numbers, and so a count of their own.
        for (slot, _) in windows.clone() {
            command.arg(format!("{}:{slot}:{{{name}}}", self.prefix()));
        }
        command.arg(wanted.least).arg(wanted.most);
        for (slot, limit) in windows {
            command.arg(limit).arg(slot);
        }
        let deadline = Deadline::at(self.runtime.now() + self.options.command_timeout);
        let mut used = None;
        let work = async {
            let (number, mut connection) = self.connect().await?;
            used = Some(number);
            let answer = call(&mut connection, &self.script, &command).await?;
            RedisResult::Ok(<(u32, u32, u64, usize)>::from_redis_value(answer)?)
        };
        let answer = self.runtime.within(deadline, work).await;
        if let Some(Ok((granted, left, micros, tightest))) = answer {
            return Ok(Taken { granted, left, more_in: Duration::from_micros(micros), tightest });
        }
        // Whatever is still to come on it is no answer to the next call.
        self.give_up(used).await;
        Err(match answer {
            Some(Err(error)) => self.failure(error),
            _ => unavailable("does not answer in time"),
        })
    }

    /// What all keys begin with. In a cluster it is in braces, so that all have one slot: whoever counts has
    /// one connection.
    fn prefix(&self) -> String {
        let namespace = &self.options.namespace;
        match self.servers.are_a_cluster() {
            true => format!("{{{namespace}:limit}}"),
            false => format!("{namespace}:limit"),
        }
    }

    /// The connection, made by the first who needs it.
    async fn connect(&self) -> RedisResult<(u64, MultiplexedConnection)> {
        let mut kept = self.connection.lock().await;
        if let Some(live) = &kept.live {
            return Ok((kept.number, live.clone()));
        }
        let (live, _) = self.servers.connect(&self.runtime, PIPELINE).await?;
        kept.number += 1;
        kept.live = Some(live.clone());
        Ok((kept.number, live))
    }

    async fn give_up(&self, number: Option<u64>) {
        let mut kept = self.connection.lock().await;
        if number == Some(kept.number) {
            kept.live = None;
        }
    }

    fn failure(&self, error: redis::RedisError) -> Error {
        let keys = format!("{}:*", self.prefix());
        let commands = "EVALSHA, SCRIPT, TIME, HGETALL, HINCRBY, HDEL and PEXPIRE";
        let says = match Refusal::of(&error) {
            Some(refusal) => Cow::Owned(refusal.says(Needs { keys: &keys, channel: "", commands })),
            None => Cow::Borrowed("cannot be reached"),
        };
        unavailable(&says).caused_by(error)
    }
}

fn unavailable(says: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the Redis that counts requests {says}"))
}

impl Permits for RedisPermits {
    fn take<'a>(
        &'a self,
        client: &'a str,
        quotas: &'a Quotas,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Taken>> {
        Box::pin(self.take_of(client, quotas, wanted))
    }
}

impl fmt::Debug for RedisPermits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPermits").field("options", &self.options).finish_non_exhaustive()
    }
}
