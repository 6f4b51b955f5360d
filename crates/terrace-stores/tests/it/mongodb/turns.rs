//! Who waits for whom: not everybody for one hot document, nor for long questions.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, select};
use terrace_core::testkit::{key, value};
use terrace_core::{Deadline, ReadOptions, Runtime, Scan, Store, StoreExt};
use terrace_lab::{Direction, FaultProxy, testing};
use terrace_stores::{MongoDocuments, MongoOptions};

use super::connect;

/// A store with few connections, where no answer comes on those that have asked for this.
async fn without_answers_for(name: &str) -> (FaultProxy, Arc<MongoDocuments>) {
    let url = testing::fresh_documents();
    connect(&url).await.put(key("cold"), value("{}")).await.unwrap();
    let proxy = FaultProxy::to_port(testing::mongo().port()).await.unwrap();
    let options = MongoOptions { max_connections: 4, ..MongoOptions::new(proxy.url(&url)) };
    let store = MongoDocuments::connect(options, Runtime::system()).await.unwrap();
    proxy.only(name.as_bytes());
    proxy.hold(Direction::Responses);
    (proxy, Arc::new(store))
}

/// Reads another document while all of these wait.
async fn reads_beside<T>(
    proxy: &FaultProxy,
    store: &MongoDocuments,
    calls: Vec<impl Future<Output = T>>,
) {
    let cold = async {
        while proxy.evidence().held_bytes == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            let deadline = Deadline::at(Runtime::system().now() + Duration::from_secs(3));
            let how = ReadOptions { deadline, ..ReadOptions::default() };
            assert!(store.get_read(&key("cold"), &how).await.unwrap().record.is_some());
        }
    };
    let (all, cold) = (std::pin::pin!(join_all(calls)), std::pin::pin!(cold));
    let first = select(cold, all).await;
    assert!(matches!(first, futures_util::future::Either::Left(_)), "they still wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_document_do_not_hold_up_others() {
    let (proxy, store) = without_answers_for("hot").await;
    let puts = (0..16).map(|_| store.put(key("hot"), value("{}"))).collect();
    reads_beside(&proxy, &store, puts).await;
    proxy.pass();
    store.put(key("hot"), value("{}")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_do_not_hold_up_reads_of_documents() {
    let (proxy, store) = without_answers_for("stuck").await;
    let (scan, how) = (Scan::prefix("stuck"), ReadOptions::default());
    let scans = (0..16).map(|_| store.scan(&scan, &how)).collect();
    reads_beside(&proxy, &store, scans).await;
    proxy.pass();
    store.scan(&scan, &how).await.unwrap();
}
