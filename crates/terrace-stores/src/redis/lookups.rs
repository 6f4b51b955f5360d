//! Reads: the epoch and the entries in one atomic `MGET`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{Cmd, RedisError, RedisResult, Value};
use terrace_core::{BoxFuture, Budget, Key, Lease, Lookup, Result, Timestamp, Version};

use super::Shared;
use super::batches::{CHUNK, Question};
use super::entry::{Parsed, epoch_digits, parse, parse_epoch, timestamp};
use super::link::Live;

/// What the server had under one key.
#[derive(Debug)]
pub(super) struct Found {
    epoch: [u8; 16],
    lease: Lease,
    value: Value,
    /// The server's time.
    now: Timestamp,
}

/// The answer to one `MGET`.
struct Fetched {
    epoch: [u8; 16],
    lease: Lease,
    /// One a key, in the order asked.
    values: Vec<Value>,
}

impl Question for Key {
    type Answer = Found;

    fn bytes(&self) -> usize {
        self.as_str().len()
    }

    fn ask(shared: &Shared, keys: Vec<Self>) -> BoxFuture<'_, Result<Vec<Found>>> {
        Box::pin(async move {
            let live = shared.link.live()?;
            let fetched = shared.link.ask(&live, shared.fetch(&live, &keys)).await?;
            let now = timestamp(live.clock.at(shared.runtime().now()));
            let Fetched { epoch, lease, values } = fetched;
            Ok(values.into_iter().map(|value| Found { epoch, lease, value, now }).collect())
        })
    }
}

impl Shared {
    /// Looks keys up: one together with others' in a batch, several in as few commands as they
    /// need. Where they are more than the budget none is loaded, and nobody knows what was written.
    pub(super) async fn lookup(&self, keys: &[Key], budget: Budget) -> Result<Vec<Lookup>> {
        if let [key] = keys {
            let Found { epoch, lease, value, now } = self.ask(&self.reads, key.clone()).await?;
            return Ok(vec![self.judge(key, &value, &epoch, lease, now)]);
        }
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let live = self.link.live()?;
        if !budget.holds(keys.len()) && !self.fit(&live, keys, budget).await? {
            let Fetched { lease, .. } = self.link.ask(&live, self.fetch(&live, &[])).await?;
            keys.iter().for_each(|_| self.counters.miss());
            return Ok(vec![Lookup::Written { lease, version: Version::UNKNOWN }; keys.len()]);
        }
        let chunks = keys.chunks(CHUNK).map(|chunk| self.fetch(&live, chunk));
        let fetched = self.link.ask(&live, futures_util::future::try_join_all(chunks)).await?;
        let now = timestamp(live.clock.at(self.runtime().now()));
        let mut lookups = Vec::with_capacity(keys.len());
        for (keys, Fetched { epoch, lease, values }) in keys.chunks(CHUNK).zip(fetched) {
            let found = keys.iter().zip(values);
            lookups.extend(found.map(|(key, value)| self.judge(key, &value, &epoch, lease, now)));
        }
        Ok(lookups)
    }

    /// Whether the entries of these keys are within the budget.
    async fn fit(&self, live: &Arc<Live>, keys: &[Key], mut budget: Budget) -> Result<bool> {
        let mut lengths = redis::pipe();
        for key in keys {
            let mut length = redis::cmd("STRLEN");
            self.names.write_entry(&mut length, key);
            lengths.add_command(length);
        }
        let mut connection = live.connection.clone();
        let lengths = lengths.query_async::<Vec<usize>>(&mut connection);
        let lengths = self.link.ask(live, lengths).await?;
        Ok(lengths.into_iter().all(|length| budget.spend(length).is_ok()))
    }

    /// For how long the server's memory has been whole, as far as this instance has heard.
    pub(super) fn whole_for(&self) -> Duration {
        let Ok(live) = self.link.live() else { return Duration::ZERO };
        let now = live.clock.at(self.runtime().now());
        let since = now.saturating_sub(live.born.load(Ordering::Relaxed));
        // The clock is fast by at most what an answer may take.
        Duration::from_millis(since).saturating_sub(self.options.command_timeout)
    }

    async fn fetch(&self, live: &Live, keys: &[Key]) -> RedisResult<Fetched> {
        let command = self.mget(keys);
        let mut values = match live.connection.clone().send_packed_command(&command).await? {
            Value::Array(values) if values.len() == keys.len() + 1 => values,
            Value::ServerError(error) => return Err(error.into()),
            _ => return Err(malformed()),
        };
        // The epoch is asked for last, so that taking it off moves nothing.
        let Some(Value::BulkString(epoch)) = values.pop() else {
            // The memory is gone (`FLUSHALL`): all leases of before end with the epoch.
            let lease = self.link.check_epoch(live, false).await?;
            return fetched(epoch_digits(lease).as_bytes(), vec![Value::Nil; keys.len()]);
        };
        if let Some(born) = parse_birth(&epoch) {
            live.born.store(born, Ordering::Relaxed);
        }
        let fetched = fetched(&epoch, values)?;
        self.link.remember(fetched.lease);
        Ok(fetched)
    }

    fn mget(&self, keys: &[Key]) -> Cmd {
        let names: usize = keys.iter().map(|key| self.names.entry_len(key)).sum();
        let mut command = Cmd::with_capacity(keys.len() + 2, names + self.names.epoch.len() + 4);
        command.arg("MGET");
        for key in keys {
            self.names.write_entry(&mut command, key);
        }
        command.arg(&self.names.epoch);
        command
    }

    fn judge(
        &self,
        key: &Key,
        value: &Value,
        epoch: &[u8; 16],
        lease: Lease,
        now: Timestamp,
    ) -> Lookup {
        let parsed = match value {
            Value::BulkString(bytes) => parse(bytes, key, epoch, now, &self.histories),
            _ => Parsed::Nothing,
        };
        match parsed {
            Parsed::Entry(entry) => {
                self.counters.hit();
                Lookup::Hit(entry)
            }
            Parsed::Nothing => {
                self.counters.miss();
                Lookup::Miss(lease)
            }
            Parsed::Tombstone(version) => {
                self.counters.miss();
                Lookup::Written { lease, version }
            }
            Parsed::Malformed => {
                self.counters.malformed();
                self.counters.miss();
                Lookup::Miss(lease)
            }
        }
    }
}

fn fetched(epoch: &[u8], values: Vec<Value>) -> RedisResult<Fetched> {
    let (digits, _) = epoch.split_first_chunk::<16>().ok_or_else(malformed)?;
    let lease = parse_epoch(digits).ok_or_else(malformed)?;
    Ok(Fetched { epoch: *digits, lease, values })
}

/// Since when the memory is whole, at the end of the epoch's value.
fn parse_birth(epoch: &[u8]) -> Option<u64> {
    std::str::from_utf8(epoch.last_chunk::<20>()?).ok()?.parse().ok()
}

fn malformed() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "the answer of Redis is malformed").into()
}
