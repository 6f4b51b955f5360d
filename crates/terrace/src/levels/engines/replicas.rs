//! A primary and its replicas in the mode in force.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use terrace_core::{Error, Node, Result, Store};
use terrace_lab::PostgresOptions as LabOptions;
use terrace_layers::{
    Coalesce, CoalesceOptions, ConcurrencyLimit, ConcurrencyLimitOptions, Follow, FollowOptions,
    Member, ReplicaRouter, ReplicaRouterOptions,
};
use terrace_stores::sqlite::Synchronous;
use terrace_stores::{PostgresOptions, PostgresStore, SqliteOptions, SqliteStore};

use super::servers::{PrivateServers, from_lab};
use super::{Connections, Engines, Servers, lock};
use crate::config::millis;

/// The servers of one history behind their router.
pub(in crate::levels) struct Replicated {
    pub(in crate::levels) router: ReplicaRouter,
    /// The name of the records' history.
    pub(in crate::levels) history: Arc<str>,
}

impl Engines {
    /// A primary with replicas: files, private servers, or yours.
    pub(in crate::levels) async fn replicated(&self) -> Result<Replicated> {
        match &*self.servers {
            Servers::Embedded { directory, locks } => {
                let lock = lock(directory, self.level)?;
                locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
                self.replicated_files(directory).await
            }
            Servers::Local { directory, private, .. } => {
                let urls = self.replicated_servers(directory, private).await?;
                self.replicated_urls(&urls).await
            }
            Servers::Urls { database, .. } => {
                let config = &self.config.replicas;
                let primary =
                    if config.primary_url.is_empty() { database } else { &config.primary_url };
                let mut urls = one_host_each(primary);
                let separate = |letter: char| letter.is_whitespace();
                for url in separated(&config.urls).split(separate).filter(|url| !url.is_empty()) {
                    urls.extend(one_host_each(url));
                }
                if urls.len() == 1 {
                    tracing::warn!(
                        "level 3 has no replica, so its primary answers all reads; set \
                         REPLICA_DATABASE_URL"
                    );
                }
                self.replicated_urls(&urls).await
            }
        }
    }

    /// One file that is written, and files that follow its change log.
    async fn replicated_files(&self, directory: &Path) -> Result<Replicated> {
        let config = &self.config.replicas;
        let path = |name: String| directory.join(format!("l{}{name}.sqlite", self.level));
        let primary = SqliteOptions::new(path(String::new()));
        let primary = Arc::new(SqliteStore::open(primary, self.runtime.clone())?);
        let history = primary.history();
        let mut members = vec![self.member(Arc::clone(&primary))];
        let mut replicators = Vec::new();
        for number in 1..=config.count {
            let options = SqliteOptions {
                replica_of: Some(Arc::clone(&history)),
                // What is lost is copied again.
                synchronous: Synchronous::Normal,
                ..SqliteOptions::new(path(format!("-replica-{number}")))
            };
            let replica = Arc::new(SqliteStore::open(options, self.runtime.clone())?);
            let (log, follower) = (primary.change_log(), replica.follower("primary"));
            let (log, follower, runtime) =
                (Arc::new(log), Arc::new(follower), self.runtime.clone());
            let replicator =
                Follow::new("replicator", log, follower, FollowOptions::default(), runtime);
            replicators.push(replicator.start());
            members.push(self.member(replica));
        }
        let router = self.router(&history, members).await.fed_by(replicators);
        Ok(Replicated { router, history })
    }

    /// A private primary and its streaming standbys.
    async fn replicated_servers(
        &self,
        directory: &Path,
        private: &PrivateServers,
    ) -> Result<Vec<String>> {
        let place = |name: &str| directory.join(format!("l{}-{name}", self.level));
        let settings: Vec<(String, String)> = [
            // A standby that stays away must not fill the disk; it is made anew then.
            ("max_slot_wal_keep_size", "4GB"),
            ("wal_keep_size", "64MB"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        let options =
            |name: &str| LabOptions { settings: settings.clone(), ..LabOptions::new(place(name)) };
        let primary = private.postgres(options("primary")).await?;
        let mut urls = vec![primary.create_database("terrace").await.map_err(from_lab)?];
        for number in 1..=self.config.replicas.count {
            let name = format!("replica_{number}");
            let started = primary.start_standby(&name, options(&name)).await.map_err(from_lab)?;
            private.keep(&started);
            urls.push(started.database_url("terrace"));
        }
        Ok(urls)
    }

    /// Servers by URL, whichever is the primary now.
    async fn replicated_urls(&self, urls: &[String]) -> Result<Replicated> {
        let options = |url: &str| {
            let options = self.postgres_options(url, Connections::Pooled);
            PostgresOptions { member: true, ..options }
        };
        // The one that takes writes makes the tables and names the history; it need not be the
        // first, after a promotion.
        let mut found = Err(Error::invalid("no database is named; set PRIMARY_DATABASE_URL"));
        for (place, url) in urls.iter().enumerate() {
            let connected = PostgresStore::connect(options(url), self.runtime.clone()).await;
            match (connected, &found) {
                (Ok(store), _) => {
                    found = Ok((place, store));
                    break;
                }
                // What is wrong with the first is what people look for.
                (Err(error), Err(_)) if place == 0 => found = Err(error),
                (Err(_), _) => {}
            }
        }
        let (primary, store) = found?;
        let history = store.history();
        let mut store = Some(store);
        let mut members = Vec::new();
        for (place, url) in urls.iter().enumerate() {
            let member = match store.take_if(|_| place == primary) {
                Some(store) => store,
                None => PostgresStore::member(options(url), self.runtime.clone())?,
            };
            members.push(self.member(Arc::new(member)));
        }
        let router = self.router(&history, members).await;
        Ok(Replicated { router, history })
    }

    /// Batches of its own for each server.
    fn member<S: Store + Node>(&self, server: Arc<S>) -> Member {
        let store = Arc::clone(&server) as Arc<dyn Store>;
        // One lane: with several servers at work, a second one would only make batches smaller.
        let options = CoalesceOptions { read_lanes: 1, ..CoalesceOptions::default() };
        let store = Arc::new(Coalesce::new(store, options, self.runtime.clone()));
        if !self.config.cache.enabled {
            return Member { store, node: server };
        }
        // A dead cache sends every read here. A cap a server: who waits for a dead primary must not
        // keep out whom replicas can answer.
        let options = ConcurrencyLimitOptions::default();
        let store = ConcurrencyLimit::new(store, options, self.runtime.clone());
        Member { store: Arc::new(store), node: server }
    }

    async fn router(&self, history: &Arc<str>, members: Vec<Member>) -> ReplicaRouter {
        let config = &self.config.replicas;
        let options = ReplicaRouterOptions {
            refresh: millis(config.refresh_ms),
            max_lag: millis(config.max_lag_ms),
            token_wait: millis(config.token_wait_ms),
            fallback_limit: usize::try_from(config.fallback_limit).unwrap_or(usize::MAX),
            ..ReplicaRouterOptions::default()
        };
        let (history, runtime) = (Arc::clone(history), self.runtime.clone());
        ReplicaRouter::start(history, members, options, runtime).await
    }
}

/// The list with spaces for the commas between URLs; those between hosts stay.
fn separated(urls: &str) -> String {
    urls.replace(",postgres://", " postgres://").replace(",postgresql://", " postgresql://")
}

/// A URL with several hosts as one URL a host.
fn one_host_each(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (format!("{login}@"), hosts),
        None => (String::new(), authority),
    };
    hosts.split(',').map(|host| format!("{scheme}://{login}{host}{tail}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{one_host_each, separated};

    #[test]
    fn every_host_is_a_server() {
        assert_eq!(
            one_host_each("postgres://u:p@a:1,b/db?sslmode=require"),
            ["postgres://u:p@a:1/db?sslmode=require", "postgres://u:p@b/db?sslmode=require"]
        );
        assert_eq!(one_host_each("postgres://a"), ["postgres://a"]);
        let list = "postgres://a,b/db,postgres://c/db postgresql://d/db";
        assert_eq!(separated(list), "postgres://a,b/db postgres://c/db postgresql://d/db");
    }
}
