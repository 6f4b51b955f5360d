//! Events on a Redis stream, for others.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Script};
use terrace_core::{
    Batch, BoxFuture, Checkpoint, Deadline, Error, ErrorKind, Follower, LogPosition, Logged,
    Result, Runtime,
};
use tokio::sync::Mutex;

use super::refusal::{Needs, Refusal};
use super::servers::Servers;

/// How many requests may wait for the driver before callers wait.
const PIPELINE: usize = 1024;

/// How to publish on a Redis stream.
#[derive(Clone)]
pub struct RedisStreamOptions {
    /// As [`RedisCacheOptions::url`](super::RedisCacheOptions::url).
    pub url: String,
    /// The stream's key.
    pub key: String,
    /// About how many events the stream keeps. Default 1 000 000.
    pub max_events: u64,
    /// Redis answers within this time or is taken for down. Default 2 s.
    pub timeout: Duration,
}

impl RedisStreamOptions {
    /// The defaults for this server and key.
    pub fn new(url: impl Into<String>, key: impl Into<String>) -> Self {
        let timeout = Duration::from_secs(2);
        Self { url: url.into(), key: key.into(), max_events: 1_000_000, timeout }
    }
}

impl fmt::Debug for RedisStreamOptions {
    /// Without the URL, which holds the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStreamOptions")
            .field("key", &self.key)
            .field("max_events", &self.max_events)
            .finish_non_exhaustive()
    }
}

/// A Redis stream whose entries have the positions of their events as ids: `epoch-offset`. Redis takes
/// an id once, and remembers the last also when entries are trimmed, so the stream is its own
/// checkpoint.
///
/// It goes on whatever the log's name is: a failover without loss leaves consumers where they are. After
/// one with loss it stands behind the log's end, and refuses to begin anew.
///
/// Fields: `type` (`RecordCreated` where the record's two times are equal, else `RecordUpdated`;
/// `RecordDeleted`), `key`, `value` (but of a deletion), `version`, `time` (microseconds since 1970; but
/// of a deletion). Two events of one key may stand in either order when their transactions overlapped: the
/// higher version is the newer.
pub struct RedisStream {
    servers: Servers,
    options: RedisStreamOptions,
    runtime: Runtime,
    connection: Mutex<Option<MultiplexedConnection>>,
    published: std::sync::Mutex<Option<Published>>,
    last: Script,
}

/// What this instance has published last: a log's position may lie behind the last event before it.
#[derive(Clone, Copy)]
struct Published {
    end: LogPosition,
    to: LogPosition,
}

/// The last id, also of a stream whose entries are gone, and the version in its entry, if that is there.
const LAST: &str = r"
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then
    if string.find(info.err, 'no such key', 1, true) then return {'0-0', ''} end
    return info
end
local id, version = '0-0', ''
for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then id = info[i + 1] end
end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if last and last[1] == id then
    for i = 1, #last[2], 2 do
        if last[2][i] == 'version' then version = last[2][i + 1] end
    end
end
return {id, version}
";

/// The end of the stream.
struct End {
    id: LogPosition,
    /// The position in the log of its last event. Events that share a position have ids of their own.
    event: LogPosition,
}

impl RedisStream {
    /// A stream on this server; connects when it is first used.
    ///
    /// # Errors
    /// `InvalidInput` for a URL that cannot be read.
    pub fn new(options: RedisStreamOptions, runtime: Runtime) -> Result<Self> {
        let servers = Servers::of(&options.url, &options.key)?;
        let (connection, published, last) =
            (Mutex::default(), std::sync::Mutex::default(), Script::new(LAST));
        Ok(Self { servers, options, runtime, connection, published, last })
    }

    /// One exchange with the broker; after a failure the next one has a new connection.
    async fn exchange<T>(
        &self,
        work: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T> {
        let deadline = Deadline::at(self.runtime.now() + self.options.timeout);
        let mut kept = self.connection.lock().await;
        let work = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => self.servers.connect(&self.runtime, PIPELINE).await?.0,
            };
            let answer = work(&mut connection).await?;
            *kept = Some(connection);
            Ok(answer)
        };
        match self.runtime.within(deadline, work).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => {
                let error: redis::RedisError = error;
                let message = match Refusal::of(&error) {
                    Some(refusal) => {
                        let says = refusal.says(self.needs());
                        format!("the broker {says}; events wait in the log").into()
                    }
                    None => Cow::from("the broker cannot be reached; events wait in the log"),
                };
                Err(Error::new(ErrorKind::Unavailable, message).caused_by(error))
            }
            None => {
                let message = "the broker does not answer in time; events wait in the log";
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        }
    }

    fn needs(&self) -> Needs<'_> {
        let commands =
            "WATCH, UNWATCH, MULTI, EXEC, EVALSHA, EVAL, SCRIPT, XADD, XINFO and XREVRANGE";
        Needs { keys: &self.options.key, channel: "", commands }
    }

    async fn end(&self, connection: &mut MultiplexedConnection) -> RedisResult<End> {
        let last = self.last.key(&self.options.key);
        let (id, version): (String, String) = last.invoke_async(connection).await?;
        let id = position(&id);
        let offset = version.parse().unwrap_or(id.offset);
        Ok(End { id, event: LogPosition { offset, ..id } })
    }

    /// All events as one transaction, after this id.
    fn transaction(&self, last: LogPosition, events: &[Logged]) -> Pipeline {
        let mut all = redis::pipe();
        all.atomic();
        for (place, (id, event)) in ids(last, events).into_iter().zip(events).enumerate() {
            let kind = match &event.record {
                None => "RecordDeleted",
                Some(record) if record.created_at == record.updated_at => "RecordCreated",
                Some(_) => "RecordUpdated",
            };
            let add = all.cmd("XADD").arg(&self.options.key);
            if place + 1 == events.len() {
                add.arg("MAXLEN").arg("~").arg(self.options.max_events.min(i64::MAX as u64));
            }
            add.arg(id.to_string()).arg("type").arg(kind).arg("key").arg(event.key.as_str());
            add.arg("version").arg(event.version.get());
            if let Some(record) = &event.record {
                add.arg("value").arg(record.value.as_str());
                add.arg("time").arg(record.updated_at.as_microsecond());
            }
        }
        all
    }
}

fn position(id: &str) -> LogPosition {
    let (epoch, offset) = id.split_once('-').unwrap_or((id, "0"));
    LogPosition { epoch: epoch.parse().unwrap_or(0), offset: offset.parse().unwrap_or(0) }
}

/// Ids of events in their order. Events that share a position take the next ones.
fn ids(last: LogPosition, events: &[Logged]) -> Vec<LogPosition> {
    let mut before = last;
    let next = events.iter().map(|event| {
        if event.position > before {
            before = event.position;
        } else {
            before.offset += 1;
        }
        before
    });
    next.collect()
}

impl RedisStream {
    fn published(&self) -> std::sync::MutexGuard<'_, Option<Published>> {
        self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Publishes all events or none; `false` when the stream's end is not where they follow.
    async fn publish(&self, batch: &Batch) -> Result<bool> {
        let (from, known) = (batch.from.position, *self.published());
        let end = match known.filter(|known| known.to == from) {
            Some(known) => known.end,
            None => from,
        };
        let to = Published { end, to: batch.to.position };
        if batch.changes.is_empty() {
            *self.published() = Some(to);
            return Ok(true);
        }
        // Nothing happens when somebody else adds in between. A script would do the same in one
        // exchange, and take twice the time of Redis for each event.
        let done = self.exchange(async |connection| {
            redis::cmd("WATCH").arg(&self.options.key).exec_async(connection).await?;
            let found = self.end(connection).await?;
            if found.event != end {
                redis::cmd("UNWATCH").exec_async(connection).await?;
                return Ok(false);
            }
            let all = self.transaction(found.id, &batch.changes);
            let done: Option<Vec<String>> = all.query_async(connection).await?;
            Ok(done.is_some())
        });
        let done = done.await?;
        let last = batch.changes.last().map_or(end, |event| event.position);
        *self.published() = done.then_some(Published { end: last, ..to });
        Ok(done)
    }
}

impl Follower for RedisStream {
    fn checkpoint(&self) -> BoxFuture<'_, Result<Checkpoint>> {
        Box::pin(async move {
            let end = self.exchange(async |connection| self.end(connection).await).await?.event;
            Ok(Checkpoint::beginning(Checkpoint::ANY_LOG).at(end))
        })
    }

    /// Each position is published once. What is refused stays refused: consumers count on every event.
    fn apply<'a>(&'a self, batch: &'a Batch) -> BoxFuture<'a, Result<bool>> {
        Box::pin(self.publish(batch))
    }

    fn begin_anew<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async {
            let message = "the stream cannot go on: the database has lost events that the stream has, \
                           as after a restore, or its log no longer keeps those that come next; \
                           rename or remove the stream, and what the log has is published anew";
            Err(Error::new(ErrorKind::Unavailable, message).with("stream", &self.options.key))
        })
    }
}

impl fmt::Display for RedisStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis stream {}", self.options.key)
    }
}

impl fmt::Debug for RedisStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStream").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::{Key, Version};

    use super::*;

    #[test]
    fn ids_rise_also_where_events_share_a_position() {
        let at = |epoch, offset| LogPosition { epoch, offset };
        let event = |position| Logged {
            position,
            key: Key::new("a").unwrap(),
            version: Version::new(1),
            record: None,
            ancestry: None,
        };
        let events = [at(1, 5), at(1, 5), at(1, 6), at(2, 1)].map(event);
        assert_eq!(ids(at(1, 4), &events), [at(1, 5), at(1, 6), at(1, 7), at(2, 1)]);
        assert_eq!(position("12-7"), at(12, 7));
    }
}
