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

use super::ConnectionSetup;
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
    /// Nodes of a cluster: the one that has this slot. A name where there is one, else an address.
    Owner { slot: u16, by_name: bool },
}

/// All who are asked.
pub(super) struct Guides {
    pub(super) question: Question,
    all: Vec<Guide>,
    way: ConnectionSetup,
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
    pub(super) fn new(question: Question, all: Vec<ConnectionAddr>, way: ConnectionSetup) -> Self {
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
            self.question.ask(&mut connection, &guide.address).await
        };
        let answer = runtime.within(end, work).await.unwrap_or_else(|| Err(timed_out()));
        if answer.is_err() {
            guide.keep(None);
        }
        answer
    }
}

impl Question {
    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        asked: &ConnectionAddr,
    ) -> RedisResult<Named> {
        match self {
            Self::Primary(name) => primary(connection, name).await,
            Self::Owner { slot, by_name } => {
                let mut ask = redis::cmd("CLUSTER");
                ask.arg("NODES");
                let nodes = ask.query_async::<String>(connection).await.map_err(|error| {
                    let says = error.to_string();
                    if says.contains("cluster support disabled") {
                        Lost::NoCluster.into()
                    } else {
                        error
                    }
                })?;
                let owner = nodes.lines().find_map(|line| owner(line, *slot, *by_name, asked));
                owner.ok_or_else(|| Lost::NoOwner.into())
            }
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

/// About the primary, and its address.
type Answer = (HashMap<String, String>, (String, u16));

/// The address comes by the command for clients: while sentinels carry a failover out, the other one still
/// tells of the old primary, with the epoch of the new one.
async fn primary(connection: &mut MultiplexedConnection, name: &str) -> RedisResult<Named> {
    let mut both = redis::pipe();
    both.cmd("SENTINEL").arg("MASTER").arg(name);
    both.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let answer = both.query_async::<Answer>(connection).await;
    let (about, (host, port)) = answer.map_err(|error| {
        let says = error.to_string();
        if says.contains("No such master") { Lost::UnknownName.into() } else { error }
    })?;
    let epoch = about.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    Ok(Named { epoch, address: ConnectionAddr::Tcp(host, port) })
}

/// The node of a line of `CLUSTER NODES`, if it has this slot:
/// `id address:port@bus,name flags primary ping pong epoch link slot first-last ...`.
fn owner(line: &str, slot: u16, by_name: bool, asked: &ConnectionAddr) -> Option<Named> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let has = |slots: &&str| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        // Slots on their way from or to others stand in brackets, which are no numbers.
        first.parse().is_ok_and(|first: u16| first <= slot)
            && last.parse().is_ok_and(|last: u16| slot <= last)
    };
    fields.get(8..)?.iter().find(|slots| has(slots))?;
    let (address, name) = fields[1].split_once(',').unwrap_or((fields[1], ""));
    let name = name.split(',').next().filter(|name| by_name && !name.is_empty());
    let (host, port) = address.split('@').next()?.rsplit_once(':')?;
    let host = match (name, host, asked) {
        (Some(name), _, _) => name,
        // One that was never told its own address is where it was asked.
        (None, "", ConnectionAddr::Tcp(host, _)) => host,
        (None, host, _) => host.trim_matches(['[', ']']),
    };
    let address = ConnectionAddr::Tcp(host.to_owned(), port.parse().ok()?);
    Some(Named { epoch: fields[6].parse().ok()?, address })
}

/// The slot of a key: of what stands in its first braces, if there is something (Redis cluster
/// specification, "Key distribution model").
pub(super) fn slot_of(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let hashed = tag.map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key);
    let mut sum = 0_u16;
    for byte in hashed.bytes() {
        sum ^= u16::from(byte) << 8;
        for _ in 0..8 {
            sum = if sum & 0x8000 == 0 { sum << 1 } else { (sum << 1) ^ 0x1021 };
        }
    }
    sum % 16_384
}

/// Why there is no server to connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Sentinels watch none of this name.
    UnknownName,
    /// Whoever was named is a replica.
    Replica,
    /// Whoever was asked is no node of a cluster.
    NoCluster,
    /// No node of the cluster has the slot.
    NoOwner,
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
                 look into the logs of those who name it if it lasts"
            }
            Self::NoCluster => {
                "is no node of a cluster; write redis:// in the place of redis+cluster://"
            }
            Self::NoOwner => {
                "is a cluster without a node for its keys; give it all slots (redis-cli --cluster fix)"
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_that_of_the_braces() {
        // As `CLUSTER KEYSLOT` has them.
        for (key, slot) in
            [("123456789", 12739), ("foo", 12182), ("{foo}:a", 12182), ("a{}b", slot_of("a{}b"))]
        {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_ne!(slot_of("a{}b"), slot_of(""));
    }

    #[test]
    fn the_owner_of_a_slot_is_found() {
        let asked = ConnectionAddr::Tcp("seed".to_owned(), 1);
        let found = |line: &str, slot, by_name| {
            owner(line, slot, by_name, &asked).map(|named| (named.epoch, named.address.to_string()))
        };
        let at = |epoch, address: &str| Some((epoch, address.to_owned()));
        let line =
            "id 10.0.0.1:7000@17000,one.example master - 0 0 7 connected 0-9 12 [12->-other]";
        assert_eq!(found(line, 9, false), at(7, "10.0.0.1:7000"));
        assert_eq!(found(line, 12, true), at(7, "one.example:7000"));
        assert_eq!(found(line, 10, false), None);
        assert_eq!(
            found("id :7000@17000 myself,master - 0 0 1 connected 5", 5, true),
            at(1, "seed:7000")
        );
        assert_eq!(
            found("id ::1:7000@17000 master - 0 0 1 connected 5", 5, false),
            at(1, "::1:7000")
        );
        assert_eq!(found("id 10.0.0.1:7000@17000 slave other 0 0 1 connected", 5, false), None);
        assert_eq!(found("", 5, false), None);
    }
}
