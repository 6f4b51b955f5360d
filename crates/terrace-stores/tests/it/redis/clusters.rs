//! A cluster: a namespace lives on the node of its slot, which may fail or give the slot away.

use std::net::TcpListener;
use std::time::Duration;

use futures_util::StreamExt as _;
use terrace_core::testkit::key;
use terrace_core::{
    Cache as _, Follower as _, Invalidations as _, Journal as _, Notice, Permits as _, Quota,
    Quotas, Runtime, Status,
};
use terrace_lab::testing;
use terrace_lab::{RedisOptions, RedisServer};
use terrace_stores::{
    RedisCache, RedisCacheOptions, RedisJournal, RedisJournalOptions, RedisPermits,
    RedisPermitsOptions, RedisStream, RedisStreamOptions,
};

use super::{by_hand, cache, fill, hit, invalidate, lease, live, until};

/// Three nodes with slots, and a fourth that follows one of them.
struct Cluster {
    nodes: Vec<RedisServer>,
    directory: tempfile::TempDir,
}

async fn node(directory: &tempfile::TempDir, name: &str) -> RedisServer {
    let bus = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = [
        ("cluster-enabled", "yes".to_owned()),
        ("cluster-port", bus.to_string()),
        ("cluster-node-timeout", "1000".to_owned()),
        ("cluster-require-full-coverage", "no".to_owned()),
        ("user", "peer on >shared allkeys allchannels allcommands".to_owned()),
        ("masteruser", "peer".to_owned()),
        ("masterauth", "shared".to_owned()),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let home = directory.path().join(name);
    let options = RedisOptions { settings, temporary: true, ..RedisOptions::new(home) };
    RedisServer::start(options).await.unwrap()
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut nodes = Vec::new();
        for name in ["n0", "n1", "n2"] {
            nodes.push(node(&directory, name).await);
        }
        let ranges = ["0 5460", "5461 10922", "10923 16383"];
        for (node, range) in nodes.iter().zip(ranges) {
            by_hand::<()>(&node.url(), &format!("CLUSTER ADDSLOTSRANGE {range}")).await;
        }
        let mut cluster = Self { nodes: Vec::new(), directory };
        for node in nodes {
            cluster.joins(node).await;
        }
        cluster
    }

    /// One more node, which all others know.
    async fn joins(&mut self, node: RedisServer) {
        if let Some(first) = self.nodes.first() {
            let bus = by_hand::<Vec<String>>(&first.url(), "CONFIG GET cluster-port").await;
            let meet = format!("CLUSTER MEET 127.0.0.1 {} {}", first.port(), bus[1]);
            by_hand::<()>(&node.url(), &meet).await;
        }
        self.nodes.push(node);
        until("all know each other", async || {
            let mut agree = 0;
            for node in &self.nodes {
                let known = by_hand::<String>(&node.url(), "CLUSTER NODES").await;
                let info = by_hand::<String>(&node.url(), "CLUSTER INFO").await;
                let all = known.lines().count() == self.nodes.len() && !known.contains("handshake");
                let first = known.lines().all(|line| line.contains(" connected"));
                agree += usize::from(all && first && info.contains("cluster_state:ok"));
            }
            agree == self.nodes.len()
        })
        .await;
    }

    fn url(&self) -> String {
        let hosts: Vec<_> =
            self.nodes.iter().map(|it| format!("127.0.0.1:{}", it.port())).collect();
        format!("redis+cluster://peer:shared@{}", hosts.join(","))
    }

    fn options(&self, namespace: &str) -> RedisCacheOptions {
        RedisCacheOptions {
            namespace: namespace.into(),
            backoff: Duration::from_millis(5),
            backoff_limit: Duration::from_millis(50),
            command_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(2),
            announce: true,
            ..RedisCacheOptions::new(self.url())
        }
    }

    /// The place of the node that has a namespace.
    async fn owner(&self, namespace: &str) -> usize {
        let exists = format!("EXISTS {{{namespace}}}:epoch");
        for (place, node) in self.nodes.iter().enumerate() {
            let client = ::redis::Client::open(node.url()).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let mut ask = ::redis::cmd("EXISTS");
            ask.arg(exists.trim_start_matches("EXISTS "));
            if ask.query_async::<u64>(&mut connection).await == Ok(1) {
                return place;
            }
        }
        panic!("no node has it");
    }

    async fn id(&self, place: usize) -> String {
        by_hand(&self.nodes[place].url(), "CLUSTER MYID").await
    }
}

#[tokio::test]
async fn every_namespace_is_served_by_the_node_of_its_slot() {
    let cluster = Cluster::start().await;
    let mut owners = Vec::new();
    for namespace in ["a", "b", "c", "d"] {
        let cache = cache(cluster.options(namespace)).await;
        assert_eq!(cache.inspect().await.note, "");
        let mut notices = cache.subscribe();
        assert_eq!(notices.next().await, Some(Notice::Connected));
        let reader = lease(&cache, &key("a")).await;
        fill(&cache, &key("a"), reader, 1).await;
        assert_eq!(hit(&cache, &key("a")).await, Some(1));
        invalidate(&cache, &key("a"), 2).await;
        while !matches!(notices.next().await.expect("a notice"), Notice::Written { .. }) {}
        owners.push(cluster.owner(namespace).await);
    }
    owners.sort_unstable();
    owners.dedup();
    assert_eq!(owners, [0, 1, 2], "on every node there is one");

    let (url, runtime) = (cluster.url(), Runtime::system());
    let journal = RedisJournalOptions {
        connect_timeout: Duration::from_secs(2),
        ..RedisJournalOptions::new(url.clone())
    };
    let journal = RedisJournal::connect(journal, runtime.clone()).await.unwrap();
    assert_eq!(journal.inspect().await.status, Status::Healthy);
    let stream = RedisStreamOptions::new(url.clone(), "events:of:all");
    RedisStream::new(stream, runtime.clone()).unwrap().checkpoint().await.unwrap();
    let permits = RedisPermitsOptions {
        command_timeout: Duration::from_secs(5),
        ..RedisPermitsOptions::new(url, "limits")
    };
    let permits = RedisPermits::new(permits, runtime).unwrap();
    let quota = |seconds| Quota { limit: 5, window: Duration::from_secs(seconds) };
    let quotas = Quotas::from_iter([quota(60), quota(3600)]);
    for client in ["one", "two", "three", "four"] {
        assert_eq!(permits.take(client, &quotas, 1.into()).await.unwrap().granted, 1, "{client}");
    }
}

#[tokio::test]
async fn a_node_that_fails_is_followed_by_its_replica() {
    let mut cluster = Cluster::start().await;
    let cache = cache(cluster.options("terrace")).await;
    let owner = cluster.owner("terrace").await;
    let follower = node(&cluster.directory, "n3").await;
    cluster.joins(follower).await;
    let (id, follower) = (cluster.id(owner).await, cluster.nodes[3].url());
    by_hand::<()>(&follower, &format!("CLUSTER REPLICATE {id}")).await;
    let reader = lease(&cache, &key("a")).await;
    fill(&cache, &key("a"), reader, 1).await;
    until("the replica has it", async || {
        by_hand::<u64>(&follower, "DBSIZE").await
            == by_hand::<u64>(&cluster.nodes[owner].url(), "DBSIZE").await
    })
    .await;
    cluster.nodes[owner].kill();
    until("the cache is lost", async || cache.inspect().await.status == Status::Down).await;
    live(&cache).await;
    assert!(by_hand::<String>(&follower, "INFO replication").await.contains("role:master"));
    assert_eq!(hit(&cache, &key("a")).await, None);
}

#[tokio::test]
async fn a_slot_that_is_given_away_is_followed() {
    let cluster = Cluster::start().await;
    let cache = cache(cluster.options("terrace")).await;
    let reader = lease(&cache, &key("a")).await;
    fill(&cache, &key("a"), reader, 1).await;
    let from = cluster.owner("terrace").await;
    let to = (from + 1) % 3;
    let (giver, taker) = (cluster.nodes[from].url(), cluster.nodes[to].url());
    let slot = by_hand::<u64>(&giver, "CLUSTER KEYSLOT {terrace}:epoch").await;
    let (giver_id, taker_id) = (cluster.id(from).await, cluster.id(to).await);
    by_hand::<()>(&taker, &format!("CLUSTER SETSLOT {slot} IMPORTING {giver_id}")).await;
    by_hand::<()>(&giver, &format!("CLUSTER SETSLOT {slot} MIGRATING {taker_id}")).await;
    let port = cluster.nodes[to].port();
    until("all keys are moved", async || {
        let keys = format!("CLUSTER GETKEYSINSLOT {slot} 100");
        let keys = by_hand::<Vec<String>>(&giver, &keys).await;
        for key in &keys {
            let move_it = format!("MIGRATE 127.0.0.1 {port} {key} 0 2000 AUTH2 peer shared");
            by_hand::<String>(&giver, &move_it).await;
        }
        keys.is_empty()
    })
    .await;
    for node in [&taker, &giver] {
        by_hand::<()>(node, &format!("CLUSTER SETSLOT {slot} NODE {taker_id}")).await;
    }
    until("the new node serves", async || {
        let reader = match cache.lease(&key("b")) {
            Some(reader) => reader,
            None => return false,
        };
        let _ = cache.fill(vec![super::offer(&key("b"), reader, 1)]).await;
        by_hand::<Vec<String>>(&taker, &format!("CLUSTER GETKEYSINSLOT {slot} 100"))
            .await
            .contains(&"{terrace}:entry:b".to_owned())
    })
    .await;
    // What another process was told is not believed.
    assert_eq!(hit(&cache, &key("a")).await, None);
}

#[tokio::test]
async fn a_server_that_is_no_node_says_so() {
    let url = testing::redis().url().replace("redis://", "redis+cluster://");
    let options = RedisCacheOptions::new(url);
    let cache: RedisCache = cache(options).await;
    let note = cache.inspect().await.note;
    assert!(note.contains("is no node of a cluster; write redis://"), "{note}");
}
