//! Redis comes back with its old memory, or was away for one instance alone.
//!
//! A Redis that was away for all instances costs no staleness. One that was away for the writer
//! alone costs every other instance at most [`WATCH`]. At level 5 a near cache may lag by [`WATCH`].

use std::time::Duration;

use terrace_lab::{Direction, Evidence};
use terrace_prove::checkers::{Freshness, freshness};

use super::engines::redis;
use super::field::{Field, Instance};
use super::readers::Readers;
use super::{SLACK, WATCH, pause, rounds, until};

const KEYS: usize = 4;
/// How long the short outages last, and how long readers go on after each outage.
const SHORT: Duration = Duration::from_millis(950);
const AFTERWARDS: Duration = Duration::from_millis(2500);

/// How Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    /// Its process is stopped, and goes on later.
    Paused,
    /// Neither instance reaches it.
    Cut,
    /// Neither instance reaches it; the writer does last.
    BackForTheReader,
    /// Connections of both instances are reset again and again, for less than a second.
    Resets,
    /// It is killed, and starts with a snapshot from before.
    OldMemory,
    /// The writer alone cannot reach it.
    CutFromWriter,
}

impl Away {
    /// How stale it may make an answer that does not come from a near cache.
    fn costs(self) -> Duration {
        match self {
            Self::Paused | Self::Cut | Self::BackForTheReader | Self::OldMemory => Duration::ZERO,
            // The reader may be back before the writer has noticed that it is cut off.
            Self::Resets | Self::CutFromWriter => WATCH + SLACK,
        }
    }
}

/// What becomes of the writer before Redis is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    Lives,
    Killed,
    Terminated,
}

struct Scenario {
    field: Field,
    a: Option<Instance>,
    b: Instance,
    /// Read all the time.
    keys: Vec<String>,
    /// Read only when Redis is back: what is cached of them is from before.
    quiet: Vec<String>,
    before: (Evidence, Evidence),
}

impl Scenario {
    async fn prepare(level: u8) -> Self {
        let field = Field::new(level).await;
        let (a, b) = (field.instance("a").await, field.instance("b").await);
        let named = |name| (0..KEYS).map(|number| format!("{name}{number}")).collect();
        let (keys, quiet): (Vec<_>, Vec<_>) = (named("k"), named("quiet"));
        for key in keys.iter().chain(&quiet) {
            a.writes(key, "old").await;
            b.caches(key, "old", if level == 5 { "near" } else { "far" }).await;
        }
        let before = (a.redis.evidence(), b.redis.evidence());
        Self { field, a: Some(a), b, keys, quiet, before }
    }

    fn a(&self) -> &Instance {
        self.a.as_ref().expect("it runs")
    }

    async fn begin(&self, away: Away) {
        let redis_server = &self.field.redis;
        match away {
            Away::Paused => redis_server.pause(),
            Away::Cut | Away::BackForTheReader => {
                self.a().redis.cut();
                self.b.redis.cut();
            }
            Away::Resets => {
                self.a().redis.reset();
                self.b.redis.reset();
            }
            Away::OldMemory => {
                redis(redis_server, "SAVE").await;
                redis_server.kill();
            }
            Away::CutFromWriter => self.a().redis.cut(),
        }
    }

    /// While Redis is away: all keys get new values, and readers meet the fault.
    async fn meanwhile(&self, away: Away) {
        let writes = async {
            for key in self.keys.iter().chain(&self.quiet) {
                self.a().writes(key, "new").await;
            }
        };
        match away {
            Away::Resets => {
                let resets = async {
                    for _ in 0..SHORT.as_millis() / 50 {
                        self.a().redis.reset();
                        self.b.redis.reset();
                        pause(Duration::from_millis(50)).await;
                    }
                };
                tokio::join!(writes, resets);
            }
            // The other instance notices nothing: what is measured is how long it goes on so.
            Away::CutFromWriter => {
                writes.await;
                pause(WATCH + SLACK).await;
            }
            Away::Paused | Away::Cut | Away::BackForTheReader | Away::OldMemory => {
                writes.await;
                for key in &self.keys {
                    until("the other instance asks the database", async || {
                        let answer = self.b.client.read(key).send().await;
                        let origin = answer.origin.unwrap_or_default();
                        let database = origin == "primary" || origin.starts_with("shard:");
                        answer.found.as_deref() == Some("new") && database
                    })
                    .await;
                }
            }
        }
    }

    async fn end(&self, away: Away) {
        match away {
            Away::Paused => self.field.redis.resume(),
            Away::OldMemory => {
                self.field.redis.restart().await.expect("Redis starts again");
                let keys = redis(&self.field.redis, "DBSIZE").await;
                assert!(!keys.contains(":0\r\n"), "its old memory is back: {keys}");
            }
            Away::BackForTheReader => self.b.redis.pass(),
            Away::Cut | Away::Resets | Away::CutFromWriter => {
                if let Some(a) = &self.a {
                    a.redis.pass();
                }
                self.b.redis.pass();
            }
        }
    }

    /// The fault happened: to both instances, or to the writer alone.
    fn assert_evidence(&self, away: Away, writer: &Evidence) {
        let other = self.b.redis.evidence();
        let (a, b) = (writer.reset - self.before.0.reset, other.reset - self.before.1.reset);
        match away {
            Away::Cut | Away::BackForTheReader | Away::Resets => {
                assert!(a > 0 && b > 0, "{writer:?} {other:?}")
            }
            Away::CutFromWriter => assert!(a > 0 && b == 0, "{writer:?} {other:?}"),
            // `meanwhile` has seen the other instance go to the database.
            Away::Paused | Away::OldMemory => {}
        }
    }
}

async fn cache_returns(level: u8, away: Away, writer: Writer) {
    for _ in 0..rounds() {
        let mut scenario = Scenario::prepare(level).await;
        let readers = Readers::start(&[&scenario.b.client], &scenario.keys);
        scenario.begin(away).await;
        scenario.meanwhile(away).await;
        let evidence = scenario.a().redis.evidence();
        match writer {
            Writer::Lives => {}
            Writer::Killed => scenario.a.take().expect("it runs").program.kill().await,
            Writer::Terminated => {
                let a = scenario.a.take().expect("it runs");
                a.program.terminate().await;
            }
        }
        scenario.end(away).await;
        // Some are read at once, some when the reader says that the cache is back.
        let (soon, late) = scenario.quiet.split_at(KEYS / 2);
        let soon = Readers::start(&[&scenario.b.client], soon);
        scenario.b.becomes_healthy().await;
        let late = Readers::start(&[&scenario.b.client], late);
        pause(AFTERWARDS).await;
        for readers in [readers, soon, late] {
            readers.end().await;
        }
        scenario.assert_evidence(away, &evidence);
        let far = away.costs();
        let mut operations = scenario.field.history.operations();
        let promise = |allowed| Freshness { allowed, ..Freshness::default() };
        let near = if level == 5 { WATCH + SLACK } else { far };
        freshness(&operations, &promise(near)).assert_holds();
        operations.retain(|it| it.origin.as_deref() != Some("near"));
        freshness(&operations, &promise(far)).assert_not_violated();
    }
}

/// One test per way to be away and fate of the writer.
macro_rules! cases {
    ($level:literal in $module:ident { $($name:ident: $away:ident, $writer:ident;)* }) => {
        mod $module {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                cache_returns($level, Away::$away, Writer::$writer).await;
            })*
        }
    };
}

cases!(2 in level_2 {
    redis_was_paused: Paused, Lives;
    redis_was_paused_and_the_writer_killed: Paused, Killed;
    redis_was_paused_and_the_writer_terminated: Paused, Terminated;
    redis_was_cut_off: Cut, Lives;
    redis_was_cut_off_and_the_writer_killed: Cut, Killed;
    redis_is_back_for_the_reader_first: BackForTheReader, Lives;
    connections_were_reset: Resets, Lives;
    redis_has_its_old_memory: OldMemory, Lives;
    redis_has_its_old_memory_and_the_writer_was_killed: OldMemory, Killed;
    redis_was_cut_from_the_writer: CutFromWriter, Lives;
    redis_was_cut_from_the_writer_that_was_killed: CutFromWriter, Killed;
    redis_was_cut_from_the_writer_that_was_terminated: CutFromWriter, Terminated;
});

cases!(4 in level_4 {
    redis_was_paused_and_the_writer_killed: Paused, Killed;
    redis_is_back_for_the_reader_first: BackForTheReader, Lives;
    redis_was_cut_from_the_writer: CutFromWriter, Lives;
});

cases!(5 in level_5 {
    redis_was_paused: Paused, Lives;
    redis_was_paused_and_the_writer_killed: Paused, Killed;
    redis_was_paused_and_the_writer_terminated: Paused, Terminated;
    redis_was_cut_off: Cut, Lives;
    redis_was_cut_off_and_the_writer_killed: Cut, Killed;
    redis_is_back_for_the_reader_first: BackForTheReader, Lives;
    connections_were_reset: Resets, Lives;
    redis_has_its_old_memory: OldMemory, Lives;
    redis_has_its_old_memory_and_the_writer_was_killed: OldMemory, Killed;
    redis_was_cut_from_the_writer: CutFromWriter, Lives;
    redis_was_cut_from_the_writer_that_was_killed: CutFromWriter, Killed;
    redis_was_cut_from_the_writer_that_was_terminated: CutFromWriter, Terminated;
});

/// The invalidations of a write are lost on their way: what Redis answers never arrives, or what it
/// is asked.
async fn invalidations_are_lost(level: u8, direction: Direction) {
    for _ in 0..rounds() {
        let scenario = Scenario::prepare(level).await;
        let readers = Readers::start(&[&scenario.b.client], &scenario.keys);
        scenario.a().redis.blackhole(direction);
        for key in &scenario.keys {
            scenario.a().writes(key, "new").await;
        }
        let dropped = scenario.a().redis.evidence().dropped_bytes;
        pause(WATCH + SLACK).await;
        scenario.a().redis.pass();
        scenario.a().becomes_healthy().await;
        pause(WATCH).await;
        readers.end().await;
        assert!(dropped > 0, "something was lost");
        let promise = Freshness { allowed: WATCH + SLACK, ..Freshness::default() };
        freshness(&scenario.field.history.operations(), &promise).assert_holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_the_writer_are_lost_at_level_2() {
    invalidations_are_lost(2, Direction::Requests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_the_writer_are_lost_at_level_5() {
    invalidations_are_lost(5, Direction::Requests).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_to_the_writer_are_lost_at_level_5() {
    invalidations_are_lost(5, Direction::Responses).await;
}

/// The writer cannot reach Redis, and connections of the other instance to the database break: it
/// looks again, and is stale no longer than otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_watch_survives_broken_connections_at_level_2() {
    for _ in 0..rounds() {
        let scenario = Scenario::prepare(2).await;
        let readers = Readers::start(&[&scenario.b.client], &scenario.keys);
        scenario.b.postgres.reset();
        scenario.a().redis.cut();
        for key in &scenario.keys {
            scenario.a().writes(key, "new").await;
        }
        for _ in 0..8 {
            scenario.b.postgres.reset();
            pause(Duration::from_millis(300)).await;
        }
        readers.end().await;
        assert!(scenario.b.postgres.evidence().reset > 0, "connections broke");
        let promise = Freshness { allowed: WATCH + SLACK, ..Freshness::default() };
        freshness(&scenario.field.history.operations(), &promise).assert_holds();
    }
}
