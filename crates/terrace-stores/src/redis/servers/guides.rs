//! Who serves now, where servers take each other's place: what those who decide or know it say.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{ConnectionAddr, RedisError, RedisResult, Value};
use terrace_core::{Deadline, Runtime};

use super::Way;
use crate::redis::refusal::Refusal;

/// How long all together may take to name the server.
const PATIENCE: Duration = Duration::from_millis(400);
/// How many questions may wait for the driver.
const PIPELINE: usize = 16;

/// What they are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Sentinels: the primary that they watch under this name.
    Primary(String),
}

/// All who are asked.
pub(super) struct Guides {
    pub(super) question: Question,
    all: Vec<Guide>,
    way: Way,
    /// The epoch of the last decision that was believed.
    believed: AtomicU64,
}

/// One of them, and the connection to it.
struct Guide {
    address: ConnectionAddr,
    kept: Mutex<Option<MultiplexedConnection>>,
}

/// Whom one of them names. The decision of a higher epoch is the later one.
struct Named {
    epoch: u64,
    address: ConnectionAddr,
}

impl Guide {
    fn kept(&self) -> Option<MultiplexedConnection> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep(&self, connection: Option<MultiplexedConnection>) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

impl Guides {
    pub(super) fn new(question: Question, all: Vec<ConnectionAddr>, way: Way) -> Self {
        let guide = |address| Guide { address, kept: Mutex::default() };
        let all = all.into_iter().map(guide).collect();
        Self { question, all, way, believed: AtomicU64::new(0) }
    }

    /// The server that the latest decision names, as far as a majority of them knows, or as many as answer in
    /// time. One that is cut off from the others tells of a server that was left: what is older than what was
    /// believed before counts only where a majority says it, as after it was set up anew.
    pub(super) async fn find(&self, runtime: &Runtime) -> RedisResult<ConnectionAddr> {
        let end = Deadline::at(runtime.now() + PATIENCE);
        let asked = self.all.iter().map(|guide| self.ask(runtime, guide, end));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let (mut answers, mut latest, mut failed) = (0, None::<Named>, None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(named) => {
                    answers += 1;
                    if latest.as_ref().is_none_or(|known| known.epoch < named.epoch) {
                        latest = Some(named);
                    }
                    if self.is_majority(answers) {
                        break;
                    }
                }
                // What one says is worth more than the silence of others.
                Err(error) if failed.is_none() || Refusal::of(&error).is_some() => {
                    failed = Some(error);
                }
                Err(_) => {}
            }
        }
        let Some(named) = latest else { return Err(failed.unwrap_or_else(timed_out)) };
        if named.epoch < self.believed.load(Ordering::Relaxed) && !self.is_majority(answers) {
            return Err(Lost::Behind.into());
        }
        self.believed.store(named.epoch, Ordering::Relaxed);
        Ok(named.address)
    }

    fn is_majority(&self, answers: usize) -> bool {
        answers * 2 > self.all.len()
    }

    async fn ask(&self, runtime: &Runtime, guide: &Guide, end: Deadline) -> RedisResult<Named> {
        let work = async {
            let mut connection = match guide.kept() {
                Some(kept) => kept,
                None => {
                    let made = self.way.connect(&guide.address, runtime, PIPELINE).await?;
                    guide.keep(Some(made.clone()));
                    made
                }
            };
            self.question.ask(&mut connection).await
        };
        let answer = runtime.within(end, work).await.unwrap_or_else(|| Err(timed_out()));
        if answer.is_err() {
            guide.keep(None);
        }
        answer
    }
}

impl Question {
    async fn ask(&self, connection: &mut MultiplexedConnection) -> RedisResult<Named> {
        match self {
            Self::Primary(name) => primary(connection, name).await,
        }
    }

    /// Whether the server that was found is what it was named for. One that came back may not know yet that
    /// another has its place.
    pub(super) async fn check(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let role = redis::cmd("ROLE").query_async::<Vec<Value>>(connection).await;
        match role {
            Ok(role) => match role.first() {
                Some(Value::BulkString(role)) if role == b"master" => Ok(()),
                _ => Err(Lost::Replica.into()),
            },
            // Who may not ask learns it at the first write.
            Err(error) if Refusal::of(&error) == Some(Refusal::Command) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The address comes by the command for clients: while sentinels carry a failover out, the other one still
/// tells of the old primary, with the epoch of the new one.
async fn primary(connection: &mut MultiplexedConnection, name: &str) -> RedisResult<Named> {
    let mut both = redis::pipe();
    both.cmd("SENTINEL").arg("MASTER").arg(name);
    both.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    type Answer = (HashMap<String, String>, (String, u16));
    let answer = both.query_async::<Answer>(connection).await;
    let (about, (host, port)) = answer.map_err(|error| {
        let says = error.to_string();
        if says.contains("No such master") { Lost::UnknownName.into() } else { error }
    })?;
    let epoch = about.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(Named { epoch, address: ConnectionAddr::Tcp(host, port) })
}

/// Why there is no server to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Sentinels watch none of this name.
    UnknownName,
    /// Whoever was named is a replica.
    Replica,
    /// Too few answer to believe what is older than what was believed.
    Behind,
}

impl Lost {
    /// What is wrong, and what to do next.
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::UnknownName => {
                "is not known to its sentinels by the name in the URL; write the name of their `sentinel \
                 monitor` behind the slash"
            }
            Self::Replica => {
                "is a replica, though it is named as the primary; wait until the failover is over, and \
                 look into the log of the sentinels if it lasts"
            }
            Self::Behind => {
                "is named by too few, who tell of an earlier time; bring back the others, or the way to \
                 them"
            }
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server {}", self.says())
    }
}

impl StdError for Lost {}

impl From<Lost> for RedisError {
    fn from(lost: Lost) -> Self {
        io::Error::other(lost).into()
    }
}

pub(super) fn timed_out() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}
