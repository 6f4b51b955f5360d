//! Tells one cache of writes, in the background and until it has heard.
//!
//! A write puts its key into a bounded queue and goes on. One task sends `PURGE /v1/records/{key}`, with the
//! key as `Surrogate-Key` for caches that purge by that, over one connection as long as there are more. What
//! the cache does not take stays first and is sent again, after a pause that grows. A key waits once, however
//! often it is written. Nothing here is on a disk: after a crash the caches keep to `s-maxage`.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::{Request, StatusCode};
use terrace_core::{
    Backoff, Deadline, Error, Inspection, Key, Result, Runtime, Status, Task, Unit,
};
use tokio::sync::Notify;

use super::{RECORDS, SURROGATE_KEY, spelled};
use crate::config::redacted;
use crate::outbound::{Connection, Remote};

/// Keys that wait for one cache. More than that is told, and left to `s-maxage`.
const MOST: usize = 10_000;
/// How long the cache may take for one.
const WITHIN: Duration = Duration::from_secs(2);
/// How long those that wait may take when the process ends.
const AT_THE_END: Duration = Duration::from_secs(1);
/// Bytes of an answer, which nobody reads.
const ANSWER: usize = 64 * 1024;

/// The purges that one cache is owed.
#[derive(Debug)]
pub(super) struct Purges {
    owed: Arc<Owed>,
    _task: Task,
}

struct Owed {
    name: String,
    server: Remote,
    /// For how long it may keep what it has.
    bound: Duration,
    queue: Mutex<Queue>,
    news: Notify,
    settled: Notify,
    sent: AtomicU64,
    lost: AtomicU64,
    runtime: Runtime,
}

#[derive(Debug, Default)]
struct Queue {
    keys: VecDeque<Key>,
    /// The same, without the one that is being sent: a write that comes now is another.
    known: HashSet<Key>,
    /// Why the last one was not taken.
    trouble: Option<String>,
    /// Until when the cache may have something of which it was never told.
    lost_until: Option<Instant>,
}

impl std::fmt::Debug for Owed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owed").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Purges {
    pub(super) fn start(address: &str, bound: Duration, runtime: &Runtime) -> Result<Self> {
        let name = redacted(address);
        let server = Remote::at(address)?.ok_or_else(|| {
            Error::invalid(format!("edge.purge has {name:?}; give the cache as http://host:port"))
        })?;
        let owed = Arc::new(Owed {
            name,
            server,
            bound,
            queue: Mutex::default(),
            news: Notify::new(),
            settled: Notify::new(),
            sent: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            runtime: runtime.clone(),
        });
        let pays = Arc::clone(&owed);
        let task = runtime.keep("purges of caches in front", move || {
            let pays = Arc::clone(&pays);
            async move { pays.go_on_paying().await }
        });
        Ok(Self { owed, _task: task })
    }

    /// Puts keys into the queue; never waits.
    pub(super) fn owe(&self, keys: &[Key]) {
        let owed = &self.owed;
        let mut queue = owed.queue();
        for key in keys {
            if queue.known.contains(key) {
                continue;
            }
            if queue.keys.len() >= MOST {
                owed.lost.fetch_add(1, Relaxed);
                queue.lost_until = Some(owed.runtime.now() + owed.bound);
                continue;
            }
            queue.known.insert(key.clone());
            queue.keys.push_back(key.clone());
        }
        owed.news.notify_one();
    }

    /// Waits a moment for what is owed, unless the cache does not take it.
    pub(super) async fn settle(&self) {
        let owed = &self.owed;
        let paid = async {
            while owed.is_paying() {
                owed.settled.notified().await;
            }
        };
        let until = Deadline::at(owed.runtime.now() + AT_THE_END);
        owed.runtime.within(until, paid).await;
    }

    pub(super) fn inspect(&self) -> Inspection {
        let owed = &self.owed;
        let queue = owed.queue();
        let tree = Inspection::new("front-cache")
            .instance(&*owed.name)
            .gauge("waiting", queue.keys.len() as u64, Unit::Count)
            .counter("purged", owed.sent.load(Relaxed))
            .counter("not_told", owed.lost.load(Relaxed));
        let (name, bound) = (&owed.name, owed.bound.as_secs());
        let now = owed.runtime.now();
        if let Some(why) = &queue.trouble {
            let note = format!(
                "the cache {name} does not hear of writes ({why}) and may be {bound} s behind; they are \
                 sent again until it does"
            );
            return tree.status(Status::Degraded, note);
        }
        if queue.lost_until.is_some_and(|until| now < until) {
            let note = format!(
                "the cache {name} was not told of some writes, as too many waited, and may be {bound} s \
                 behind"
            );
            return tree.status(Status::Degraded, note);
        }
        tree
    }
}

impl Owed {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_paying(&self) -> bool {
        let queue = self.queue();
        !queue.keys.is_empty() && queue.trouble.is_none()
    }

    /// Never ends.
    async fn go_on_paying(&self) -> Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            while let Err(why) = self.pay().await {
                if self.queue().trouble.replace(why.clone()).is_none() {
                    tracing::warn!(cache = self.name, why, "a cache does not hear of writes");
                }
                self.settled.notify_one();
                backoff.wait(&self.runtime).await;
            }
            backoff.reset();
            self.settled.notify_one();
            self.news.notified().await;
        }
    }

    /// Sends all that is owed, the first first.
    async fn pay(&self) -> std::result::Result<(), String> {
        let mut connection = None;
        while let Some(key) = self.first() {
            let until = Deadline::at(self.runtime.now() + WITHIN);
            let sent = self.runtime.within(until, self.send(&mut connection, &key)).await;
            let sent = sent.unwrap_or_else(|| Err("it does not answer in time".to_owned()));
            let mut queue = self.queue();
            if let Err(why) = sent {
                queue.known.insert(key);
                return Err(why);
            }
            queue.keys.pop_front();
            self.sent.fetch_add(1, Relaxed);
            if queue.trouble.take().is_some() {
                tracing::info!(cache = self.name, "the cache hears of writes again");
            }
        }
        Ok(())
    }

    /// The key that has waited longest; from now on a write of it is another.
    fn first(&self) -> Option<Key> {
        let mut queue = self.queue();
        let key = queue.keys.front().cloned()?;
        queue.known.remove(&key);
        Some(key)
    }

    async fn send(
        &self,
        connection: &mut Option<Connection>,
        key: &Key,
    ) -> std::result::Result<(), String> {
        let mut open = match connection.take().filter(Connection::is_open) {
            Some(open) => open,
            None => self.server.connect().await?,
        };
        let tag = spelled(key.as_str());
        let path = format!("{}{RECORDS}{tag}", self.server.path().trim_end_matches('/'));
        let request = Request::builder().method("PURGE").uri(path).header(SURROGATE_KEY, tag);
        let status = open.send(request, Bytes::new(), ANSWER).await?.status();
        *connection = Some(open);
        match status {
            // The last two say that it has nothing under this key.
            it if it.is_success() => Ok(()),
            StatusCode::NOT_FOUND | StatusCode::PRECONDITION_FAILED => Ok(()),
            other => Err(format!("it answers {other} to PURGE")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn keys(numbers: std::ops::Range<usize>) -> Vec<Key> {
        numbers.map(|number| Key::new(format!("a/{number}")).expect("a key")).collect()
    }

    /// Takes purges on this listener until there were so many; says which, in their order.
    async fn cache(listener: TcpListener, wanted: usize) -> Vec<String> {
        let mut taken = Vec::new();
        while taken.len() < wanted {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut text = String::new();
            let mut buffer = [0; 1024];
            while taken.len() < wanted {
                let count = stream.read(&mut buffer).await.unwrap_or_default();
                text.push_str(std::str::from_utf8(&buffer[..count]).expect("text"));
                if count == 0 {
                    break;
                }
                while let Some((head, rest)) = text.split_once("\r\n\r\n") {
                    let line = head.lines().next().expect("a line");
                    taken.push(line.to_owned());
                    text = rest.to_owned();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).await.expect("it is taken");
                }
            }
        }
        taken
    }

    #[tokio::test]
    async fn a_cache_that_comes_back_hears_of_each_key_once_and_of_no_more_than_the_queue_holds() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let runtime = Runtime::system();
        let purges = Purges::start(&format!("http://{address}"), Duration::ZERO, &runtime);
        let purges = purges.expect("purges");
        let wait_until = async |wanted: Status, waiting: u64| {
            let until = runtime.now() + Duration::from_secs(60);
            while purges.inspect().status != wanted
                || purges.inspect().number("waiting") != Some(waiting)
            {
                assert!(runtime.now() < until, "{:?}", purges.inspect());
                tokio::task::yield_now().await;
            }
        };
        purges.owe(&keys(0..5));
        wait_until(Status::Degraded, 5).await;
        // It does not wait for a cache that is away.
        purges.settle().await;
        purges.owe(&keys(0..7));
        wait_until(Status::Degraded, 7).await;
        let listener = TcpListener::bind(address).await.expect("the same port");
        let taken = cache(listener, 7).await;
        let wanted: Vec<_> =
            (0..7).map(|it| format!("PURGE /v1/records/a%2F{it} HTTP/1.1")).collect();
        assert_eq!(taken, wanted);
        wait_until(Status::Healthy, 0).await;
        purges.owe(&keys(0..MOST + 9));
        assert_eq!(purges.inspect().number("not_told"), Some(9));
    }
}
