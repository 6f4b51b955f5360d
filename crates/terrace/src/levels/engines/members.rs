//! The servers of one history behind a router, each with batches of its own.

use std::sync::Arc;

use futures_util::future::join_all;
use terrace_core::{Error, ErrorKind, Node, Result, Store};
use terrace_layers::{
    Coalesce, CoalesceOptions, ConcurrencyLimit, ConcurrencyLimitOptions, Member, ReplicaRouter,
    ReplicaRouterOptions,
};
use terrace_stores::{PostgresOptions, PostgresStore};

use super::{Connections, Engines, Replicated};
use crate::config::millis;

impl Engines {
    /// PostgreSQL servers by URL, whichever is the primary now.
    pub(super) async fn replicated_by(&self, urls: &[String]) -> Result<Replicated> {
        let options = |url: &str| {
            let options = self.postgres_options(url, Connections::Pooled);
            PostgresOptions { member: true, ..options }
        };
        // The one that takes writes makes the tables; it need not be the first, after a promotion. Where
        // none does, a replica names the history: reads go on.
        let mut found = Err(Error::invalid("no database is named; set PRIMARY_DATABASE_URL"));
        for (place, url) in urls.iter().enumerate() {
            let connected = PostgresStore::connect(options(url), self.runtime.clone()).await;
            match connected {
                Ok(store) if store.takes_writes().await => {
                    found = Ok((place, store));
                    break;
                }
                Ok(store) if found.is_err() => found = Ok((place, store)),
                // What is wrong with the first is what people look for.
                Err(error) if place == 0 => found = Err(error),
                _ => {}
            }
        }
        let (known, store) = found?;
        let history = store.history();
        let mut store = Some(store);
        let mut members = Vec::new();
        for (place, url) in urls.iter().enumerate() {
            let member = match store.take_if(|_| place == known) {
                Some(store) => store,
                None => PostgresStore::member(options(url), self.runtime.clone())?,
            };
            members.push(Arc::new(member));
        }
        // One that is down may come; one that can never be used is a mistake of the settings.
        let examined = join_all(members.iter().map(|member| member.examine())).await;
        let wrong = |error: &Error| error.kind() == ErrorKind::InvalidInput;
        if let Some(error) = examined.into_iter().filter_map(Result::err).find(wrong) {
            return Err(error);
        }
        let members = members.into_iter().map(|member| self.member(member)).collect();
        let router = self.router(&history, members).await;
        Ok(Replicated { router, history })
    }

    /// Batches of its own for each server.
    pub(super) fn member<S: Store + Node>(&self, server: Arc<S>) -> Member {
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
        let store = ConcurrencyLimit::new(store, &options, self.runtime.clone());
        Member { store: Arc::new(store), node: server }
    }

    pub(super) async fn router(&self, history: &Arc<str>, members: Vec<Member>) -> ReplicaRouter {
        let max_lag = millis(self.config.replicas.max_lag_ms);
        let options = ReplicaRouterOptions { max_lag, ..ReplicaRouterOptions::default() };
        ReplicaRouter::start(Arc::clone(history), members, options, self.runtime.clone()).await
    }
}
