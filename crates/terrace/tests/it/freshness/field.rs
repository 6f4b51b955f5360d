//! Two instances on the same engines, each behind proxies of its own.

use terrace_core::Runtime;
use terrace_lab::{FaultProxy, Persistence, RedisOptions, RedisServer};
use terrace_prove::{Answer, Client, History};

use super::until;
use crate::program::{Program, Stores};

/// The engines of one scenario, and what its clients saw.
pub(super) struct Field {
    directory: tempfile::TempDir,
    pub(super) level: u8,
    pub(super) redis: RedisServer,
    /// The URL of the database, past all proxies.
    pub(super) database: String,
    pub(super) history: History,
}

/// One running program with a client of it.
pub(super) struct Instance {
    pub(super) program: Program,
    pub(super) client: Client,
    /// What is between it and Redis.
    pub(super) redis: FaultProxy,
    /// What is between it and PostgreSQL.
    pub(super) postgres: FaultProxy,
}

impl Field {
    /// A Redis of its own, and a new database of the shared PostgreSQL.
    pub(super) async fn new(level: u8) -> Self {
        Self::on(level, terrace_lab::testing::fresh_database()).await
    }

    /// A Redis of its own, and a database that is there.
    pub(super) async fn on(level: u8, database: String) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let options = RedisOptions::new(directory.path().join("redis"));
        let redis = RedisServer::start(options).await.expect("Redis starts");
        let history = History::start(Runtime::system());
        Self { directory, level, redis, database, history }
    }

    /// One more Redis, for a journal.
    pub(super) async fn journal(&self) -> RedisServer {
        let persistence = Persistence::AofAlways;
        let directory = self.directory.path().join("journal");
        let options = RedisOptions { persistence, ..RedisOptions::new(directory) };
        RedisServer::start(options).await.expect("Redis starts")
    }

    /// Starts an instance.
    pub(super) async fn instance(&self, name: &str) -> Instance {
        self.instance_with(name, &self.database, &[]).await
    }

    /// Starts an instance with more in its environment, on a database of the same server or servers
    /// as the URL says.
    pub(super) async fn instance_with(
        &self,
        name: &str,
        database: &str,
        environment: &[(&str, &str)],
    ) -> Instance {
        let instance = self.instance_unwell(name, database, environment).await;
        instance.becomes_healthy().await;
        instance
    }

    /// One that starts while something is down.
    pub(super) async fn instance_unwell(
        &self,
        name: &str,
        database: &str,
        environment: &[(&str, &str)],
    ) -> Instance {
        let redis = FaultProxy::to_port(self.redis.port()).await.expect("a proxy");
        let postgres = FaultProxy::to_port(port_of(database)).await.expect("a proxy");
        let (url, cache) = (postgres.url(database), redis.url(&self.redis.url()));
        let stores = Stores::Servers { database: &url, cache: &cache };
        let environment = [&[("TERRACE_LOG_LEVEL", "error")], environment].concat();
        let program = Program::serve_with(self.level, &stores, &[], &environment).await;
        let client = Client::new(name, program.url(), &self.history);
        Instance { program, client, redis, postgres }
    }
}

/// The port of the first host of a URL.
pub(super) fn port_of(url: &str) -> u16 {
    let (_, rest) = url.rsplit_once('@').expect("a URL with a password");
    let digits = rest.split_once(':').expect("a port").1;
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a port")
}

impl Instance {
    pub(super) async fn becomes_healthy(&self) {
        until("the instance is healthy", async || {
            self.client.document("/health").await["status"] == "healthy"
        })
        .await;
    }

    /// A write that must be acknowledged.
    pub(super) async fn writes(&self, key: &str, value: &str) -> Answer {
        let answer = self.client.write(key, value).send().await;
        assert!(answer.is_acknowledged(), "{answer}");
        answer
    }

    /// Reads a key until a cache answers with this value: the nearest cache of the level.
    pub(super) async fn caches(&self, key: &str, value: &str, origin: &str) -> Answer {
        let mut last = None;
        until("the key is cached", async || {
            let answer = self.client.read(key).send().await;
            let is_so =
                answer.found.as_deref() == Some(value) && answer.origin.as_deref() == Some(origin);
            last = Some(answer);
            is_so
        })
        .await;
        last.expect("an answer")
    }
}
