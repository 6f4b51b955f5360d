//! A failover that loses acknowledged writes, with both hosts in one URL.
//!
//! PostgreSQL promises no more than that with an asynchronous standby. What is lost must be lost for
//! everybody: no cache shows it, no token of it is satisfied, no version of it is given out again.

use std::time::Duration;

use terrace_lab::testing::{Replicated, replicated};
use terrace_prove::checkers::conditions;
use terrace_prove::{Answer, Outcome};

use super::engines::{redis, sql};
use super::field::{Field, Instance};
use super::{WATCH, pause, rounds, until};

/// Written again after the failover.
const WRITTEN: &str = "written";
/// Not written after the failover.
const LEFT: &str = "left";
/// More writes are lost than a sequence of PostgreSQL runs ahead in the log (32).
const LOST: usize = 60;

/// Acknowledged writes that the failover loses.
struct Lost {
    written: Vec<Answer>,
    left: Answer,
}

/// How instances find the new primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    /// Both hosts are in the URL.
    OfBoth,
    /// One address, which leads to whoever is primary.
    OfThePrimary,
}

struct Failover {
    address: Address,
    servers: Replicated,
    field: Field,
    a: Instance,
    b: Instance,
}

impl Failover {
    async fn new(level: u8, address: Address) -> Self {
        let servers = replicated(1, &[]).await;
        let (primary, standby) = (&servers.primary, &servers.standbys[0]);
        let both = format!("127.0.0.1:{},127.0.0.1:{}", primary.port(), standby.port());
        let url = match address {
            Address::OfBoth => {
                primary.url().replace(&format!("127.0.0.1:{}", primary.port()), &both)
            }
            Address::OfThePrimary => primary.url(),
        };
        let field = Field::on(level, url).await;
        let (a, b) = (field.instance("a").await, field.instance("b").await);
        Self { address, servers, field, a, b }
    }

    /// Writes that the standby has; it gets no others.
    async fn cut_off(&self) {
        for key in [WRITTEN, LEFT] {
            self.applied(&self.a, key, "kept").await;
        }
        let (primary, standby) = (self.servers.primary.url(), self.servers.standbys[0].url());
        let sent = sql(&primary, "SELECT pg_current_wal_insert_lsn()").await;
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{sent}'::pg_lsn");
        until("the standby has it", async || sql(&standby, &has_it).await == "t").await;
        sql(&standby, "ALTER SYSTEM SET primary_conninfo = ''").await;
        sql(&standby, "SELECT pg_reload_conf()").await;
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
        until("the standby is cut off", async || sql(&standby, receivers).await == "0").await;
    }

    /// Writes that the standby has, then some that it has not.
    async fn lose(&self) -> Lost {
        self.cut_off().await;
        let mut written = Vec::new();
        for number in 0..LOST {
            written.push(self.applied(&self.a, WRITTEN, &format!("lost {number}")).await);
        }
        let left = self.applied(&self.a, LEFT, "lost").await;
        // It is in every cache that there is.
        for key in [WRITTEN, LEFT] {
            for instance in [&self.a, &self.b] {
                for _ in 0..3 {
                    let seen = instance.client.read(key).send().await;
                    assert!(seen.found.as_ref().is_some_and(|it| it.starts_with("lost")), "{seen}");
                }
            }
        }
        Lost { written, left }
    }

    async fn applied(&self, to: &Instance, key: &str, value: &str) -> Answer {
        let mut answer = to.client.write(key, value).wait().send().await;
        until("the write is acknowledged", async || {
            if !answer.is_acknowledged() {
                pause(Duration::from_millis(20)).await;
                answer = to.client.write(key, value).wait().send().await;
            }
            answer.is_acknowledged()
        })
        .await;
        answer
    }

    async fn fail_over(&self) {
        self.servers.primary.kill();
        self.servers.standbys[0].promote().await.expect("a promotion");
        let promoted = self.servers.standbys[0].url();
        let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        assert_eq!(sql(&promoted, timeline).await, "00000002", "another timeline");
        if self.address == Address::OfThePrimary {
            let standby = ([127, 0, 0, 1], self.servers.standbys[0].port()).into();
            self.a.postgres.retarget(standby);
            self.b.postgres.retarget(standby);
        }
    }

    /// Both instances have met the new primary.
    async fn both_write(&self) {
        for instance in [&self.a, &self.b] {
            self.applied(instance, "other", "after the failover").await;
        }
    }
}

/// What was lost is shown by nobody, once the new primary has answered.
async fn caches_forget(level: u8, address: Address) {
    for _ in 0..rounds() {
        let failover = Failover::new(level, address).await;
        let lost = failover.lose().await;
        failover.fail_over().await;
        failover.both_write().await;
        pause(WATCH).await;
        let mut wrong = Vec::new();
        for instance in [&failover.b, &failover.a] {
            let now = instance.client.read(LEFT).strong().send().await;
            assert_eq!(now.found.as_deref(), Some("kept"), "it is lost: {now}");
            let read = instance.client.read(LEFT).send().await;
            if read.found.as_deref() != Some("kept") {
                wrong.push(format!("lost, and shown: {read}"));
            }
            for (key, lost) in [(WRITTEN, &lost.written[LOST - 1]), (LEFT, &lost.left)] {
                let read = instance.client.read(key).after(lost).send().await;
                if read.outcome != Outcome::Fail || read.status != 503 {
                    wrong.push(format!("a token of what is lost was satisfied: {read}"));
                }
            }
        }
        let after = failover.applied(&failover.a, WRITTEN, "after").await;
        for instance in [&failover.b, &failover.a] {
            let read = instance.client.read(WRITTEN).send().await;
            let with_token = instance.client.read(WRITTEN).after(&after).send().await;
            for read in [read, with_token] {
                if read.found.as_deref() != Some("after") {
                    wrong.push(format!("outranked by what is lost: {read}"));
                }
            }
        }
        // What a read shows can be changed on its condition.
        for instance in [&failover.b, &failover.a] {
            let read = instance.client.read(LEFT).send().await;
            let version = read.version.expect("a version");
            let value = format!("on condition through {}", read.instance);
            let write = instance.client.write(LEFT, &value).if_version(version).send().await;
            if !write.is_acknowledged() {
                wrong.push(format!("refused: {write} after {read}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_forget_what_is_lost_at_level_2() {
    caches_forget(2, Address::OfBoth).await;
}

/// The promotion of level 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_forget_what_is_lost_at_level_3() {
    caches_forget(3, Address::OfBoth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_forget_what_is_lost_at_level_4() {
    caches_forget(4, Address::OfBoth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_forget_what_is_lost_at_level_5() {
    caches_forget(5, Address::OfBoth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_forget_what_is_lost_at_level_6() {
    caches_forget(6, Address::OfBoth).await;
}

/// `If-Match` on a version of lost content meets no version of anything else, and a token of it is
/// not satisfied.
async fn a_lost_version_matches_nothing(address: Address) {
    for _ in 0..rounds() {
        let failover = Failover::new(1, address).await;
        let lost = failover.lose().await;
        failover.fail_over().await;
        failover.both_write().await;
        let client = &failover.a.client;
        let versions: Vec<_> = lost.written.iter().filter_map(|it| it.version).collect();
        let token = client.read(LEFT).after(&lost.left).send().await;
        // Somebody else writes, and versions that were lost may come up again. A new key draws one
        // version and a known key two, so together they meet odd and even ones.
        let mut met = versions[LOST - 1];
        for number in 0..LOST * 2 {
            failover.applied(&failover.b, &format!("new {number}"), "after").await;
            let other = failover.applied(&failover.b, WRITTEN, &format!("other {number}")).await;
            if let Some(version) = other.version.filter(|it| versions.contains(it)) {
                met = version;
                break;
            }
        }
        let blind = client.write(WRITTEN, "blind").if_version(met).send().await;
        assert_eq!(blind.status, 412, "a version of lost content matched: {blind}");
        assert_eq!(token.status, 503, "a token of what is lost was satisfied: {token}");
        conditions(&failover.field.history.operations()).assert_not_violated();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_version_matches_nothing_at_level_1() {
    a_lost_version_matches_nothing(Address::OfBoth).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_version_matches_nothing_behind_one_address() {
    a_lost_version_matches_nothing(Address::OfThePrimary).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_forget_what_is_lost_behind_one_address() {
    caches_forget(5, Address::OfThePrimary).await;
}

/// A stream that has events which nobody else has says so, also when the transactions of the new primary
/// have passed its end; made anew it has every event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_lost_events_stands_still_and_says_so() {
    let failover = Failover::new(7, Address::OfThePrimary).await;
    failover.cut_off().await;
    for number in 0..LOST {
        failover.applied(&failover.a, &format!("lost {number}"), "x").await;
    }
    let cache = &failover.field.redis;
    let stream = redis(cache, "KEYS terrace:events:*").await;
    let stream = stream.lines().find(|it| it.starts_with("terrace:")).expect("a stream").trim();
    let length = async || {
        let said = redis(cache, &format!("XLEN {stream}")).await;
        said.lines().find(|it| it.starts_with(':')).unwrap_or_default().trim().to_owned()
    };
    let published = format!(":{}", LOST + 2);
    until("all is published", async || length().await == published).await;
    failover.fail_over().await;
    failover.both_write().await;
    for number in 0..3 * LOST {
        failover.applied(&failover.a, &format!("later {number}"), "x").await;
    }
    pause(WATCH).await;
    for instance in [&failover.a, &failover.b] {
        let health = instance.client.document("/health").await;
        assert_eq!(health["status"], "degraded", "{health}");
    }
    assert_eq!(length().await, published, "nothing follows what is not in the log");
    redis(cache, &format!("DEL {stream}")).await;
    let logged = sql(&failover.servers.standbys[0].url(), "SELECT count(*) FROM commands").await;
    let logged = format!(":{logged}");
    until("all is published anew", async || length().await == logged).await;
    failover.a.becomes_healthy().await;
}
